//! Events out of Kinesis: the gateway as a process, before a server that speaks Kinesis. `.ci/kinesis` starts two and runs
//! this: moto, which knows the wider API, and kinesalite, which alone lets a shard end. In between stands a proxy, which
//! fails on demand and counts.

#![cfg(feature = "kinesis")]
#![allow(clippy::unwrap_used)] // in helpers: clippy spares the tests themselves only

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::watch_participants_response::Message;
use participant_gateway::proto::*;
use participant_gateway::sandbox::{ACCOUNT_SID, V1_CONVERSATION};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use uuid::Uuid;

/// Far longer than anything here takes: a test that waits for ever fails.
const PATIENCE: Duration = Duration::from_secs(60);
const ALICE: &str = "MB00000000000000000000000000000001";

/// What the gateway signs with; neither server looks at it.
const CREDENTIALS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-east-1")];

// === The server, and what stands before it

/// A stream of a test's own, spoken to directly.
#[derive(Clone)]
struct Stream {
    server: String,
    name: String,
}

impl Stream {
    /// On moto.
    async fn create() -> Self {
        Self::create_on("KINESIS_TEST_MOTO").await
    }

    async fn create_on(server: &str) -> Self {
        let stream = Self::unborn(server);
        stream.begin().await;
        stream
    }

    /// A name that nobody has used.
    fn unborn(server: &str) -> Self {
        let server = std::env::var(server).unwrap_or_else(|_| panic!("{server} is not set: run .ci/kinesis"));
        Self { server, name: Uuid::from_u128(rand()).to_string() }
    }

    async fn begin(&self) {
        self.call("CreateStream", json!({ "ShardCount": 1 })).await;
        self.active().await;
    }

    /// Waits until what was asked for is done.
    async fn active(&self) {
        until("the stream is active", async || {
            let summary = self.call("DescribeStreamSummary", json!({})).await;
            (summary["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE").then_some(())
        })
        .await;
    }

    async fn call(&self, operation: &str, mut body: Value) -> Value {
        body["StreamName"] = json!(self.name);
        let answer = reqwest::Client::new()
            .post(&self.server)
            .header("x-amz-target", format!("Kinesis_20131202.{operation}"))
            .header("x-amz-date", "20260101T000000Z")
            .header("content-type", "application/x-amz-json-1.1")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/kinesis/aws4_request, SignedHeaders=host, Signature=00",
            )
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{operation}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Its sequence number.
    async fn put(&self, data: impl AsRef<[u8]>) -> String {
        self.put_for("key", data).await
    }

    async fn put_for(&self, key: &str, data: impl AsRef<[u8]>) -> String {
        let record = json!({ "Data": STANDARD.encode(data), "PartitionKey": key });
        self.call("PutRecord", record).await["SequenceNumber"].as_str().unwrap().to_owned()
    }

    /// Its only shard, in halves.
    async fn split(&self) {
        let whole = self.open_shards().await.remove(0);
        let split =
            json!({ "ShardToSplit": whole["ShardId"], "NewStartingHashKey": (u128::MAX / 2).to_string() });
        self.call("SplitShard", split).await;
        self.active().await;
    }

    async fn open_shards(&self) -> Vec<Value> {
        let listed = self.call("ListShards", json!({})).await;
        let shards = listed["Shards"].as_array().unwrap().clone();
        let is_open = |shard: &Value| shard["SequenceNumberRange"]["EndingSequenceNumber"].is_null();
        shards.into_iter().filter(is_open).collect()
    }
}

fn rand() -> u128 {
    use std::hash::BuildHasher as _;
    let half = || u128::from(std::collections::hash_map::RandomState::new().hash_one(0));
    (half() << 64) | half()
}

/// A CloudEvent about alice, or whoever the id tells.
fn event(id: &str, r#type: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "type": format!("com.twilio.conversations.participant.{type}"),
        "source": format!("/v1/Conversations/{V1_CONVERSATION}/Participants/{ALICE}"),
        "dataschema": "https://events-schemas.twilio.com/Conversations.ParticipantUpdated/2",
        "datacontenttype": "application/json",
        "time": "2026-01-01T00:00:00.000Z",
        "data": {
            "AccountSid": ACCOUNT_SID,
            "ChatServiceSid": "IS00000000000000000000000000000001",
            "ConversationSid": V1_CONVERSATION,
            "ParticipantSid": ALICE,
            "RoleSid": "RL00000000000000000000000000000001",
            "DateCreated": "2026-01-01T00:00:00.000Z",
            "DateUpdated": "2026-01-01T00:00:00.000Z",
            "Identity": "alice",
            "Attributes": "{}",
        },
    })
}

fn updated(id: &str) -> String {
    event(id, "updated").to_string()
}

/// Kinesis's own form: the data is JSON within JSON.
fn as_text(mut event: Value) -> String {
    event["data"] = json!(event["data"].to_string());
    event.to_string()
}

/// What the proxy answers in place of the server.
#[derive(Clone)]
struct Fault {
    operation: &'static str,
    code: &'static str,
}

#[derive(Default)]
struct Script {
    faults: Mutex<VecDeque<Fault>>,
    is_down: AtomicBool,
    /// When each operation was asked for.
    asked: Mutex<BTreeMap<String, Vec<Instant>>>,
}

#[derive(Clone)]
struct Proxy {
    server: String,
    url: String,
    script: Arc<Script>,
}

impl Proxy {
    async fn before(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Self { server: server.to_owned(), url, script: Arc::default() };
        let routes = Router::new().route("/", post(pass)).with_state(proxy.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        proxy
    }

    /// The next requests for the operation fail so.
    fn fail(&self, times: usize, operation: &'static str, code: &'static str) {
        self.script.faults.lock().unwrap().extend(vec![Fault { operation, code }; times]);
    }

    /// Whether all faults were met.
    fn is_through(&self) -> bool {
        self.script.faults.lock().unwrap().is_empty()
    }

    fn asked(&self, operation: &str) -> Vec<Instant> {
        self.script.asked.lock().unwrap().get(operation).cloned().unwrap_or_default()
    }

    fn set_down(&self, is_down: bool) {
        self.script.is_down.store(is_down, Ordering::Relaxed);
    }
}

async fn pass(State(proxy): State<Proxy>, headers: HeaderMap, body: Bytes) -> Response {
    let operation = headers["x-amz-target"].to_str().unwrap().rsplit('.').next().unwrap().to_owned();
    proxy.script.asked.lock().unwrap().entry(operation.clone()).or_default().push(Instant::now());
    if proxy.script.is_down.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "<html>down</html>").into_response();
    }
    let fault = {
        let mut faults = proxy.script.faults.lock().unwrap();
        let is_next = faults.front().is_some_and(|fault| fault.operation == operation);
        if is_next { faults.pop_front() } else { None }
    };
    if let Some(Fault { code, .. }) = fault {
        let body = json!({ "__type": code, "message": "as the test wants it" }).to_string();
        return (StatusCode::BAD_REQUEST, [("content-type", "application/x-amz-json-1.1")], body)
            .into_response();
    }
    let mut request = reqwest::Client::new().post(&proxy.server).body(body);
    for name in ["x-amz-target", "x-amz-date", "content-type", "authorization"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value.as_bytes());
        }
    }
    let answer = request.send().await.unwrap();
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap();
    (status, [("content-type", "application/x-amz-json-1.1")], answer.bytes().await.unwrap()).into_response()
}

// === The gateway

/// A gateway that reads the stream, killed with the test.
struct Gateway {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    said: Vec<String>,
    addresses: Value,
    client: ParticipantServiceClient<Channel>,
    _directory: TempDir,
}

impl Gateway {
    async fn start(stream: &str, server: &str, env: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready.json");
        let mut child = Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
            .env_clear()
            .args(["serve", "--sandbox", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .args(["--kinesis-stream", stream])
            .arg("--ready-file")
            .arg(&ready)
            .env("GATEWAY_KINESIS_POLL_INTERVAL", "200ms")
            .env("AWS_ENDPOINT_URL", server)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines_of(child.stderr.take().unwrap());
        let addresses: Value = until("the gateway serves", async || {
            serde_json::from_str(&std::fs::read_to_string(&ready).ok()?).ok()
        })
        .await;
        let endpoint =
            Endpoint::from_shared(format!("http://{}", addresses["grpc"].as_str().unwrap())).unwrap();
        let client = ParticipantServiceClient::new(endpoint.connect().await.unwrap());
        Self { child, lines, said: Vec::new(), addresses, client, _directory: directory }
    }

    /// One that has begun to read, and a watcher of it.
    async fn reading(stream: &Stream, proxy: &Proxy) -> (Self, Watcher) {
        let gateway = Self::start(&stream.name, &proxy.url, &CREDENTIALS).await;
        let watcher = gateway.watch().await;
        gateway.reads().await;
        (gateway, watcher)
    }

    /// Waits until every shard was asked.
    async fn reads(&self) {
        until("v1 is live", async || self.live().await.then_some(())).await;
        assert!(self.behind().await < 20.0);
    }

    /// What the metric says, in seconds.
    async fn behind(&self) -> f64 {
        let text = self.admin("metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix("participant_kinesis_behind_seconds "));
        value.unwrap().parse().unwrap()
    }

    /// Whether the cache trusts the events of v1, and of v1 alone.
    async fn live(&self) -> bool {
        let text = self.admin("metrics").await;
        let live: Vec<_> = text.lines().filter(|line| line.starts_with("participant_events_live{")).collect();
        let is = |version: &str, value: &str| {
            live.iter().any(|line| line.contains(&format!("\"{version}\"")) && line.ends_with(value))
        };
        is("v1", "} 1") && is("v2", "} 0")
    }

    async fn admin(&self, path: &str) -> String {
        let url = format!("http://{}/{path}", self.addresses["admin"].as_str().unwrap());
        reqwest::get(url).await.unwrap().error_for_status().unwrap().text().await.unwrap()
    }

    async fn watch(&self) -> Watcher {
        self.watch_after("").await
    }

    async fn watch_after(&self, token: &str) -> Watcher {
        let request = WatchParticipantsRequest { resume_token: token.to_owned(), ..Default::default() };
        let stream = self.client.clone().watch_participants(request).await.unwrap();
        let mut watcher = Watcher { stream: stream.into_inner(), token: String::new() };
        assert!(matches!(watcher.message().await, Message::Heartbeat(_)), "a stream begins with one");
        watcher
    }

    /// How the cache served alice.
    async fn read(&self) -> CacheStatus {
        let conversation = ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() };
        let request = GetParticipantRequest {
            conversation: Some(conversation),
            participant_id: ALICE.into(),
            read_options: None,
        };
        let answer = self.client.clone().get_participant(request).await.unwrap().into_inner();
        answer.read_info.unwrap().cache_status()
    }

    /// Reads the log on until a line that has this in it.
    async fn says(&mut self, part: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.lines.recv()).await;
            let line = line.unwrap_or_else(|_| panic!("no line has {part:?}: {:#?}", self.said));
            let line = line.unwrap_or_else(|| panic!("it ended: {:#?}", self.said));
            self.said.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }
}

impl Gateway {
    /// Asks it to end, and waits until it has.
    async fn ends(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        while self.lines.recv().await.is_some() {}
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has ended already, or is to end now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(source: impl std::io::Read + Send + 'static) -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            // A test that has ended reads no more.
            let _ = sender.send(line);
        }
    });
    lines
}

struct Watcher {
    stream: Streaming<WatchParticipantsResponse>,
    /// Where it can be resumed from.
    token: String,
}

impl Watcher {
    async fn message(&mut self) -> Message {
        let next = timeout(PATIENCE, self.stream.message()).await.expect("nothing is told");
        let next = next.unwrap().unwrap();
        self.token = next.resume_token;
        next.message.unwrap()
    }

    async fn event(&mut self) -> ParticipantEvent {
        loop {
            if let Message::Event(event) = self.message().await {
                return event;
            }
        }
    }

    /// How it ends, without an event before that.
    async fn ended(&mut self) -> Code {
        loop {
            let next = timeout(PATIENCE, self.stream.message()).await.expect("it does not end");
            match next.map(|next| next.and_then(|next| next.message)) {
                Ok(Some(Message::Heartbeat(_))) => {}
                Ok(other) => panic!("{other:?} before the end"),
                Err(status) => return status.code(),
            }
        }
    }

    /// The ids of the next events.
    async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.push(self.event().await.id);
        }
        ids
    }
}

/// Asks again until there is something.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// === What is read

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn what_is_put_after_the_start_is_told_in_order_in_both_forms() {
    let stream = Stream::create().await;
    stream.put(updated("before")).await;
    let proxy = Proxy::before(&stream.server).await;
    let (_gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    stream.put(updated("an object")).await;
    stream.put(as_text(event("a text", "updated"))).await;
    stream
        .put(json!({ "specversion": "1.0", "id": "x", "type": "com.twilio.other", "data": {} }).to_string())
        .await;
    stream.put(as_text(event("removed", "removed"))).await;
    let told = [watcher.event().await, watcher.event().await, watcher.event().await];
    assert_eq!(told.each_ref().map(|event| event.id.as_str()), ["an object", "a text", "removed"]);
    assert_eq!(told[2].r#type(), ParticipantEventType::Removed);
    assert_eq!(told[1].participant.as_ref().unwrap().conversation_id, V1_CONVERSATION);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn an_event_makes_the_cache_forget() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    assert_eq!(gateway.read().await, CacheStatus::Miss);
    assert_eq!(gateway.read().await, CacheStatus::Hit);
    stream.put(updated("1")).await;
    watcher.ids(1).await;
    assert_eq!(gateway.read().await, CacheStatus::Miss);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_record_that_cannot_be_read_is_passed_and_told_without_what_it_holds() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (mut gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    let first = stream.put("mallory's secret, no JSON").await;
    let second = stream
        .put(br#"{"id":"1","type":"com.twilio.conversations.participant.added","data":"mallory"}"#)
        .await;
    stream.put([0xff, 0xfe]).await;
    stream.put(updated("whole")).await;
    assert_eq!(watcher.ids(1).await, ["whole"]);
    for number in [first, second] {
        let line = gateway.says("cannot be read, and is passed over").await;
        assert!(
            line.contains(&format!("\"sequence_number\":\"{number}\"")) && line.contains("shardId-"),
            "{line}"
        );
    }
    assert!(!gateway.said.concat().contains("mallory"), "{:#?}", gateway.said);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_record_that_cannot_be_read_makes_the_cache_forget() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (gateway, _) = Gateway::reading(&stream, &proxy).await;
    assert_eq!(gateway.read().await, CacheStatus::Miss);
    assert_eq!(gateway.read().await, CacheStatus::Hit);
    stream.put("no JSON").await;
    // Nobody is told when it does; by itself it would remember for minutes.
    until("the cache forgets", async || (gateway.read().await == CacheStatus::Miss).then_some(())).await;
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn shards_that_are_split_and_merged_are_followed_without_loss_or_repeat() {
    let stream = Stream::create_on("KINESIS_TEST_KINESALITE").await;
    let proxy = Proxy::before(&stream.server).await;
    let (_gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    let put = async |round: usize| {
        for number in 0..5 {
            for key in ["a", "b", "c", "d"] {
                stream.put_for(key, updated(&format!("{key}-{round}{number}"))).await;
            }
        }
    };
    put(1).await;
    stream.split().await;
    put(2).await;
    let halves = stream.open_shards().await;
    let merge = json!({ "ShardToMerge": halves[0]["ShardId"], "AdjacentShardToMerge": halves[1]["ShardId"] });
    stream.call("MergeShards", merge).await;
    stream.active().await;
    put(3).await;
    stream.put(updated("last")).await;
    let told = watcher.ids(61).await;
    assert_eq!(told.last().unwrap(), "last", "nothing comes twice");
    for key in ["a", "b", "c", "d"] {
        let of_key: Vec<_> = told.iter().filter(|id| id.starts_with(key)).cloned().collect();
        let put: Vec<_> =
            (1..=3).flat_map(|round| (0..5).map(move |number| format!("{key}-{round}{number}"))).collect();
        assert_eq!(of_key, put, "each once, and in order");
    }
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_test_of_the_sink_is_logged_and_an_event_of_another_account_is_told_to_nobody() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (mut gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    let test_id = Uuid::from_u128(rand()).to_string();
    let test = json!({
        "specversion": "1.0",
        "id": "EZ1",
        "type": "com.twilio.eventstreams.test-event",
        "dataschema": "https://events-schemas.twilio.com/EventStreams.TestSink/1.json",
        "data": { "test_id": test_id },
    });
    stream.put(as_text(test)).await;
    let mut other = event("other", "updated");
    other["data"]["AccountSid"] = json!("AC99999999999999999999999999999999");
    stream.put(other.to_string()).await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    let line = gateway.says("Twilio tests the sink").await;
    assert!(line.contains(&test_id), "{line}");
    let metrics = gateway.admin("metrics").await;
    for outcome in ["test", "refused", "told"] {
        let of = |line: &&str| {
            line.contains("source=\"kinesis\"")
                && line.contains(&format!("\"{outcome}\""))
                && line.ends_with("} 1")
        };
        let counted = metrics.lines().filter(|line| line.starts_with("participant_events_received_total"));
        assert_eq!(counted.filter(of).count(), 1, "{outcome}");
    }
}

// === What goes wrong

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn throttling_is_backed_off_from() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (mut gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    let before = proxy.asked("GetRecords").len();
    proxy.fail(4, "GetRecords", "ProvisionedThroughputExceededException");
    stream.put(updated("1")).await;
    gateway.says("raise kinesis.poll_interval").await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    assert!(proxy.is_through());
    // The last of the four waits is of 2 to 4 s.
    let asked = &proxy.asked("GetRecords");
    let longest =
        asked.windows(2).skip(before.saturating_sub(1)).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest >= Duration::from_secs(2), "{longest:?}");
    gateway.says("is read again").await;
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn an_iterator_that_has_expired_is_made_anew_after_the_last_record() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (_gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    // Also before there was a record, from when on the stream is read by time.
    proxy.fail(1, "GetRecords", "ExpiredIteratorException");
    until("the fault is met", async || proxy.is_through().then_some(())).await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    proxy.fail(1, "GetRecords", "ExpiredIteratorException");
    until("the fault is met", async || proxy.is_through().then_some(())).await;
    stream.put(updated("2")).await;
    assert_eq!(watcher.ids(1).await, ["2"]);
    assert_eq!(proxy.asked("GetShardIterator").len(), 3);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_server_that_was_away_is_caught_up_with() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    let (mut gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    proxy.set_down(true);
    for id in ["1", "2", "3"] {
        stream.put(updated(id)).await;
    }
    gateway.says("cannot be reached, or has failed").await;
    assert_eq!(gateway.read().await, CacheStatus::Miss);
    assert_eq!(gateway.admin("readyz").await, "ready\n");
    until("the metric grows", async || (gateway.behind().await > 1.0).then_some(())).await;
    proxy.set_down(false);
    assert_eq!(watcher.ids(3).await, ["1", "2", "3"]);
    let failures = gateway.said.iter().filter(|line| line.contains("has failed")).count();
    assert_eq!(failures, 1, "{:#?}", gateway.said);
    gateway.says("is read again").await;
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_stream_that_is_not_there_is_asked_for_until_it_is() {
    let stream = Stream::unborn("KINESIS_TEST_MOTO");
    let mut gateway = Gateway::start(&stream.name, &stream.server, &CREDENTIALS).await;
    gateway.says("check kinesis.stream").await;
    let mut watcher = gateway.watch().await;
    stream.begin().await;
    gateway.reads().await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_stream_that_is_created_anew_is_read_although_a_shard_of_that_name_had_ended() {
    let stream = Stream::create_on("KINESIS_TEST_KINESALITE").await;
    let proxy = Proxy::before(&stream.server).await;
    let (mut gateway, mut watcher) = Gateway::reading(&stream, &proxy).await;
    stream.split().await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    stream.call("DeleteStream", json!({})).await;
    gateway.says("there is no such stream").await;
    stream.begin().await;
    // Who was told of the old one may have missed the end of it.
    assert_eq!(watcher.ended().await, Code::OutOfRange);
    let mut watcher = gateway.watch().await;
    stream.put(updated("2")).await;
    assert_eq!(watcher.ids(1).await, ["2"]);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn credentials_that_are_refused_or_missing_say_what_to_do_and_stop_nothing() {
    let stream = Stream::create().await;
    let proxy = Proxy::before(&stream.server).await;
    proxy.fail(1, "ListShards", "UnrecognizedClientException");
    proxy.fail(1, "ListShards", "AccessDeniedException");
    let mut gateway = Gateway::start(&stream.name, &proxy.url, &CREDENTIALS).await;
    let line = gateway.says("AWS refuses the credentials").await;
    assert!(line.contains("UnrecognizedClientException"), "{line}");
    assert_eq!(gateway.read().await, CacheStatus::Miss);
    assert_eq!(gateway.admin("readyz").await, "ready\n");
    gateway.says("listed again").await;

    for env in [&[("AWS_REGION", "us-east-1")][..], &CREDENTIALS[..2]] {
        let mut gateway = Gateway::start(&stream.name, &proxy.url, env).await;
        gateway.says("there are no AWS credentials, or no region").await;
        assert_eq!(gateway.read().await, CacheStatus::Miss);
        assert_eq!(gateway.admin("readyz").await, "ready\n");
    }
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn a_stream_can_be_named_by_its_arn_which_tells_the_region() {
    let stream = Stream::create().await;
    let described = stream.call("DescribeStreamSummary", json!({})).await;
    let arn = described["StreamDescriptionSummary"]["StreamARN"].as_str().unwrap().to_owned();
    let gateway = Gateway::start(&arn, &stream.server, &CREDENTIALS[..2]).await;
    let mut watcher = gateway.watch().await;
    gateway.reads().await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
}

// === With a bus

/// The variables of replicas that share a Redis.
struct Bus {
    url: String,
    prefix: String,
}

impl Bus {
    fn new() -> Self {
        let url = std::env::var("KINESIS_TEST_REDIS").expect("it is not set: run .ci/kinesis");
        Self { url, prefix: Uuid::from_u128(rand()).to_string() }
    }

    /// A replica before a proxy of its own.
    async fn replica(&self, stream: &Stream) -> (Gateway, Proxy) {
        self.replica_by(&self.url, stream).await
    }

    /// One that has a way of its own to Redis.
    async fn linked_replica(&self, stream: &Stream) -> (Gateway, Link) {
        let link = Link::to(self.url.trim_start_matches("redis://")).await;
        let (gateway, _) = self.replica_by(&format!("redis://{}", link.address), stream).await;
        (gateway, link)
    }

    async fn replica_by(&self, redis: &str, stream: &Stream) -> (Gateway, Proxy) {
        let proxy = Proxy::before(&stream.server).await;
        let bus = [("GATEWAY_REDIS_URL", redis), ("GATEWAY_REDIS_KEY_PREFIX", self.prefix.as_str())];
        let env: Vec<_> = CREDENTIALS.into_iter().chain(bus).collect();
        (Gateway::start(&stream.name, &proxy.url, &env).await, proxy)
    }
}

/// A way to Redis that can be cut.
struct Link {
    address: SocketAddr,
    to: String,
    forwarding: JoinHandle<()>,
}

impl Link {
    async fn to(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, to: to.to_owned(), forwarding: tokio::spawn(forward(listener, to.to_owned())) }
    }

    async fn cut(&mut self) {
        self.forwarding.abort();
        let _ = (&mut self.forwarding).await;
    }

    async fn heal(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.forwarding = tokio::spawn(forward(listener, self.to.clone()));
    }
}

/// Cancelled, all its connections end.
async fn forward(listener: TcpListener, to: String) {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let to = to.clone();
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn with_a_bus_that_is_away_for_a_while_nothing_is_lost_or_told_twice() {
    let (stream, bus) = (Stream::create().await, Bus::new());
    let (mut gateway, mut link) = bus.linked_replica(&stream).await;
    gateway.reads().await;
    let mut watcher = gateway.watch().await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    let token = watcher.token.clone();

    link.cut().await;
    stream.put(updated("2")).await;
    stream.put(updated("3")).await;
    gateway.says("cannot be handed on").await;
    link.heal().await;
    stream.put(updated("4")).await;
    assert_eq!(watcher.ids(3).await, ["2", "3", "4"]);
    assert_eq!(gateway.watch_after(&token).await.ids(3).await, ["2", "3", "4"]);

    // What it has saved meanwhile is true, too.
    gateway.ends().await;
    stream.put(updated("5")).await;
    let (gateway, _) = bus.replica(&stream).await;
    assert_eq!(gateway.watch_after(&token).await.ids(4).await, ["2", "3", "4", "5"]);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn with_a_bus_a_replica_that_loses_its_turn_to_another_repeats_and_loses_nothing() {
    let (stream, bus) = (Stream::create().await, Bus::new());
    let (mut first, mut link) = bus.linked_replica(&stream).await;
    first.reads().await;
    let (mut second, _) = bus.replica(&stream).await;
    second.says("standing by").await;
    let mut watcher = first.watch().await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    let token = watcher.token.clone();

    link.cut().await;
    stream.put(updated("2")).await;
    first.says("cannot be handed on").await;
    stream.put(updated("3")).await;
    assert_eq!(second.watch_after(&token).await.ids(2).await, ["2", "3"]);
    first.says("lost the right to read").await;
    link.heal().await;
    first.says("standing by").await;
    stream.put(updated("4")).await;
    assert_eq!(watcher.ids(3).await, ["2", "3", "4"], "where it was cut off, too");
    for gateway in [&first, &second] {
        assert_eq!(gateway.watch_after(&token).await.ids(3).await, ["2", "3", "4"]);
    }
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn with_a_bus_one_replica_reads_for_all_and_another_takes_over() {
    let (stream, bus) = (Stream::create().await, Bus::new());
    let (first, first_proxy) = bus.replica(&stream).await;
    first.reads().await;
    let (mut second, second_proxy) = bus.replica(&stream).await;
    second.says("standing by").await;
    // Who does not read knows that another does.
    until("v1 is live", async || second.live().await.then_some(())).await;
    let mut watcher = second.watch().await;
    assert_eq!(second.read().await, CacheStatus::Miss);
    assert_eq!(second.read().await, CacheStatus::Hit);
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    assert_eq!(second.read().await, CacheStatus::Miss);
    assert!(second_proxy.asked("GetRecords").is_empty() && !first_proxy.asked("GetRecords").is_empty());

    // Killed, it gives nothing back: the lease runs out.
    drop(first);
    stream.put(updated("2")).await;
    stream.put(updated("3")).await;
    assert_eq!(watcher.ids(2).await, ["2", "3"]);
    second.reads().await;

    // Asked to end, it gives the lease back.
    let (mut third, _) = bus.replica(&stream).await;
    third.says("standing by").await;
    let mut watcher = third.watch().await;
    second.ends().await;
    stream.put(updated("4")).await;
    assert_eq!(watcher.ids(1).await, ["4"]);
}

#[tokio::test]
#[ignore = "needs a Kinesis: run .ci/kinesis"]
async fn with_a_bus_a_restart_goes_on_after_the_last_record_and_through_a_split() {
    let (stream, bus) = (Stream::create_on("KINESIS_TEST_KINESALITE").await, Bus::new());
    let (mut gateway, _) = bus.replica(&stream).await;
    gateway.reads().await;
    let mut watcher = gateway.watch().await;
    stream.put(updated("1")).await;
    assert_eq!(watcher.ids(1).await, ["1"]);
    gateway.ends().await;

    stream.put(updated("2")).await;
    stream.split().await;
    stream.put(updated("3")).await;

    let (gateway, _) = bus.replica(&stream).await;
    let mut watcher = gateway.watch_after(&watcher.token).await;
    assert_eq!(watcher.ids(2).await, ["2", "3"]);
    gateway.reads().await;
    stream.put(updated("4")).await;
    assert_eq!(watcher.ids(1).await, ["4"], "nothing comes twice");
}
