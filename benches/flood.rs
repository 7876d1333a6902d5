//! Callers that do not keep to HTTP/2, or to what is decent: what each costs the gateway, and what a caller that does sees.
//!
//! `cargo bench --bench flood [-- WORD]`, where WORD picks the floods whose name has it. Each goes against a gateway of its
//! own, a process with a sandbox, from four connections for four seconds; one that is closed is opened anew. Linux only,
//! because it reads /proc. A whole run writes docs/floods.md, and fails where one takes more memory than it may.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{ConversationRef, GetParticipantRequest, ListParticipantsRequest};
use participant_gateway::sandbox::V1_CONVERSATION;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};
use tonic::transport::Endpoint;

use wire::*;

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)] // it is the tests'
#[path = "../tests/gateway/wire.rs"]
mod wire;

const CONNECTIONS: usize = 4;
const TIME: Duration = Duration::from_secs(4);
/// So much memory a flood may take.
const MOST_KIB: u64 = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

const GET: &str = "/participant.v1.ParticipantService/GetParticipant";
const LIST: &str = "/participant.v1.ParticipantService/ListParticipants";
/// Listed by the attackers: some 25 KB, more than is handed to HTTP/2 at once.
const LISTED: u32 = 50;
const LARGE_CONVERSATION: &str = "CH000000000000000000000000000000f1";
/// Read by the victim, from the cache.
const CALM: &str = "alice";
/// Read by the attackers: the sandbox takes ten seconds over it.
const SLOW: &str = "MB00000000000000000000000000000001";

/// What a connection sends.
struct Flood {
    name: &'static str,
    /// What it sets for the gateway's answers.
    settings: &'static [(u16, u32)],
    first: fn() -> Vec<u8>,
    /// Sent again and again, each time with the next number, counted from 0.
    next: fn(u32) -> Vec<u8>,
}

const NO_WINDOW: &[(u16, u32)] = &[(4, 0)];

const FLOODS: &[Flood] = &[
    Flood { name: "rapid reset", settings: &[], first: Vec::new, next: |at| reset(at, CALM) },
    Flood { name: "rapid reset of 10 s calls", settings: &[], first: Vec::new, next: |at| reset(at, SLOW) },
    Flood {
        name: "CONTINUATION",
        settings: &[],
        first: open_headers,
        next: |_| frame(CONTINUATION, 0, 1, &[0; 64]),
    },
    Flood { name: "empty DATA", settings: &[], first: open_body, next: |_| frame(DATA, 0, 1, &[]) },
    Flood { name: "DATA of 1 byte", settings: &[], first: open_body, next: |_| frame(DATA, 0, 1, &[0]) },
    Flood { name: "PING", settings: &[], first: Vec::new, next: |_| frame(PING, 0, 0, &[0; 8]) },
    Flood { name: "SETTINGS", settings: &[], first: Vec::new, next: |_| frame(SETTINGS, 0, 0, &[]) },
    Flood {
        name: "PRIORITY",
        settings: &[],
        first: Vec::new,
        next: |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]),
    },
    Flood {
        name: "HPACK garbage",
        settings: &[],
        first: Vec::new,
        next: |at| frame(HEADERS, END_HEADERS, 2 * at + 1, &[0xff; 64]),
    },
    Flood {
        name: "random bytes",
        settings: &[],
        first: Vec::new,
        next: |_| (0..64).map(|_| fastrand::u8(..)).collect(),
    },
    Flood {
        name: "10 s calls",
        settings: &[],
        first: Vec::new,
        next: |at| call(2 * at + 1, GET, &get(SLOW)),
    },
    Flood {
        name: "calls without a body",
        settings: &[],
        first: Vec::new,
        next: |at| call_without_body(2 * at + 1, GET),
    },
    Flood {
        name: "answers that are not read",
        settings: NO_WINDOW,
        first: Vec::new,
        next: |at| call(2 * at + 1, GET, &get(CALM)),
    },
    Flood {
        name: "lists of which a byte is read",
        settings: &[(4, 1)],
        first: Vec::new,
        next: |at| call(2 * at + 1, LIST, &list()),
    },
];

fn reset(at: u32, participant: &str) -> Vec<u8> {
    let stream = 2 * at + 1;
    [call(stream, GET, &get(participant)), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
}

fn open_headers() -> Vec<u8> {
    frame(HEADERS, 0, 1, &call_headers(GET))
}

/// A message that is announced as 2 MiB, the largest that is taken.
fn open_body() -> Vec<u8> {
    [call_without_body(1, GET), frame(DATA, 0, 1, &[0, 0, 0x20, 0, 0])].concat()
}

fn list() -> Vec<u8> {
    let conversation = ConversationRef { conversation_id: LARGE_CONVERSATION.into(), ..Default::default() };
    let request =
        ListParticipantsRequest { conversation: Some(conversation), page_size: 100, ..Default::default() };
    framed(&request)
}

fn request(participant: &str) -> GetParticipantRequest {
    let conversation = ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() };
    GetParticipantRequest {
        conversation: Some(conversation),
        participant_id: participant.into(),
        read_options: None,
    }
}

fn get(participant: &str) -> Vec<u8> {
    framed(&request(participant))
}

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("it is short");
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

fn main() -> ExitCode {
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let chosen = |flood: &&Flood| word.as_ref().is_none_or(|word| flood.name.contains(word.as_str()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut table = HEAD.to_owned();
    print!("{HEAD}");
    let mut is_good = true;
    for flood in FLOODS.iter().filter(chosen) {
        let row = runtime.block_on(measure(flood));
        is_good &= row.most_kib.saturating_sub(row.before_kib) <= MOST_KIB;
        let row = row.markdown(flood.name);
        print!("{row}");
        table.push_str(&row);
    }
    if word.is_none() && !cfg!(debug_assertions) {
        std::fs::write("docs/floods.md", document(&table)).expect("the document can be written");
    }
    if is_good {
        return ExitCode::SUCCESS;
    }
    eprintln!("a flood takes more than {} MiB", MOST_KIB / 1024);
    ExitCode::FAILURE
}

const HEAD: &str = "| flood | RSS before, most, MiB | CPU, s | connections | what the gateway did | others' calls | p50, ms | longest, ms |\n|---|---|---|---|---|---|---|---|\n";

fn document(table: &str) -> String {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().expect("git");
    let commit = String::from_utf8(commit.stdout).expect("text");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let commit = commit.trim();
    format!(
        "# Floods\n\n\
         What callers cost that do not keep to HTTP/2, or take all that it lets them have. `cargo bench --bench flood` writes this\n\
         page: release build of commit {commit}, {cores} cores shared with the attackers, who have {CONNECTIONS} connections for {} seconds and open\n\
         each anew as soon as it is closed. Meanwhile somebody else reads a cached participant, one call after the other. The most that\n\
         a flood may add to the memory is {} MiB; the gateway itself fails the run beyond that. Limits: [configuration.md](configuration.md#what-callers-may-take).\n\n\
         {table}\n\
         A frame that is told is one that the gateway sent, per connection the last; `closed` is a connection that ended without GOAWAY,\n\
         `stood` one that was there to the end. REFUSED_STREAM counts streams.\n",
        TIME.as_secs(),
        MOST_KIB / 1024,
    )
}

struct Row {
    before_kib: u64,
    most_kib: u64,
    cpu_seconds: f64,
    connections: usize,
    told: BTreeMap<String, usize>,
    latencies: Vec<Duration>,
}

impl Row {
    fn markdown(mut self, name: &str) -> String {
        self.latencies.sort_unstable();
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let middle = self.latencies.get(self.latencies.len() / 2).copied().unwrap_or_default();
        let longest = self.latencies.last().copied().unwrap_or_default();
        let mut told = String::new();
        for (what, count) in &self.told {
            let comma = if told.is_empty() { "" } else { ", " };
            let _ = write!(told, "{comma}{count} × {what}");
        }
        format!(
            "| {name} | {:.1} → {:.1} | {:.1} | {} | {told} | {} | {:.1} | {:.1} |\n",
            self.before_kib as f64 / 1024.0,
            self.most_kib as f64 / 1024.0,
            self.cpu_seconds,
            self.connections,
            self.latencies.len(),
            millis(middle),
            millis(longest),
        )
    }
}

async fn measure(flood: &'static Flood) -> Row {
    let gateway = Gateway::start().await;
    gateway.make_slow(SLOW).await;
    gateway.populate(LARGE_CONVERSATION, LISTED).await;
    let mut victim = Victim::new(&gateway).await;
    victim.call().await;
    victim.latencies.clear();
    let (before_kib, cpu_before) = (gateway.resident_kib(), gateway.cpu_seconds());
    let end = Instant::now() + TIME;
    let mut attackers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        attackers.spawn(attack(flood, gateway.grpc, end));
    }
    while Instant::now() < end {
        victim.call().await;
        sleep(Duration::from_millis(2)).await;
    }
    let (most_kib, cpu_seconds) = (gateway.most_resident_kib(), gateway.cpu_seconds() - cpu_before);
    let (mut connections, mut told) = (0, BTreeMap::new());
    for report in attackers.join_all().await {
        connections += report.connections;
        for (what, count) in report.told {
            *told.entry(what).or_default() += count;
        }
    }
    // Whatever it was, it has not made the gateway deaf.
    victim.call().await;
    Row { before_kib, most_kib, cpu_seconds, connections, told, latencies: victim.latencies }
}

#[derive(Default)]
struct Report {
    connections: usize,
    told: BTreeMap<String, usize>,
}

impl Report {
    fn note(&mut self, what: impl Into<String>) {
        *self.told.entry(what.into()).or_default() += 1;
    }
}

async fn attack(flood: &'static Flood, address: SocketAddr, end: Instant) -> Report {
    let mut report = Report::default();
    while Instant::now() < end {
        report.connections += 1;
        let Wire { mut reader, mut writer } = Wire::open(address, flood.settings).await;
        let writing = async {
            let mut sent = writer.send(&(flood.first)()).await;
            let mut at = 0;
            while sent.is_ok() {
                let batch: Vec<u8> = (at..at + 50).flat_map(flood.next).collect();
                // Nothing is sent twice as a stream: its number would be too large.
                at = (at + 50) % (1 << 30);
                sent = writer.send(&batch).await;
            }
            // What the gateway still says is read to its end.
            std::future::pending::<()>().await;
        };
        let reading = async {
            while let Some(frame) = reader.next().await {
                match frame.kind {
                    GOAWAY if frame.error() != 0 => return format!("GOAWAY {}", name_of(frame.error())),
                    RST_STREAM if frame.error() == REFUSED_STREAM => report.note("REFUSED_STREAM"),
                    _ => {}
                }
            }
            "closed".to_owned()
        };
        let ended = tokio::select! {
            ended = reading => ended,
            () = writing => unreachable!("it waits for ever"),
            () = sleep_until(end.into()) => "stood".to_owned(),
        };
        report.note(ended);
    }
    report
}

/// The errors of HTTP/2 by their names.
fn name_of(error: u32) -> String {
    match error {
        1 => "PROTOCOL_ERROR".to_owned(),
        9 => "COMPRESSION_ERROR".to_owned(),
        6 => "FRAME_SIZE_ERROR".to_owned(),
        ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM".to_owned(),
        other => other.to_string(),
    }
}

/// Who keeps to all rules.
struct Victim {
    client: ParticipantServiceClient<tonic::transport::Channel>,
    latencies: Vec<Duration>,
}

impl Victim {
    async fn new(gateway: &Gateway) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.grpc)).expect("an address");
        let client = ParticipantServiceClient::new(endpoint.connect().await.expect("a connection"));
        Self { client, latencies: Vec::new() }
    }

    async fn call(&mut self) {
        let began = Instant::now();
        let call = self.client.get_participant(request(CALM));
        let answer = timeout(PATIENCE, call).await.expect("the gateway answers others");
        answer.expect("the gateway answers others well");
        self.latencies.push(began.elapsed());
    }
}

/// Killed with the value.
struct Gateway {
    child: Child,
    grpc: SocketAddr,
    sandbox: String,
}

impl Gateway {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ready.json");
        let child = spawn(&file);
        let end = Instant::now() + PATIENCE;
        let ready: Value = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break serde_json::from_str(&text).expect("the ready file is JSON");
            }
            assert!(Instant::now() < end, "the gateway does not get ready");
            sleep(Duration::from_millis(5)).await;
        };
        let address = |key: &str| ready[key].as_str().expect("it tells the address").to_owned();
        Self { child, grpc: address("grpc").parse().expect("an address"), sandbox: address("sandbox") }
    }

    async fn make_slow(&self, participant: &str) {
        let fault = json!({ "match": { "path_contains": participant }, "latency_ms": 10_000 });
        self.arrange("faults", fault).await;
    }

    async fn populate(&self, conversation: &str, count: u32) {
        self.arrange("populate", json!({ "conversation": conversation, "count": count })).await;
    }

    async fn arrange(&self, what: &str, how: Value) {
        let url = format!("http://{}/_sandbox/{what}", self.sandbox);
        let answer = reqwest::Client::new().post(url).json(&how).send().await.expect("the sandbox answers");
        assert!(answer.status().is_success(), "the sandbox does it");
    }

    fn resident_kib(&self) -> u64 {
        self.kib_of("VmRSS:")
    }

    /// Since it started, as Linux keeps it: a peak between two looks counts, too.
    fn most_resident_kib(&self) -> u64 {
        self.kib_of("VmHWM:")
    }

    fn kib_of(&self, what: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn cpu_seconds(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
        // Linux counts it in hundredths.
        (ticks(11) + ticks(12)) / 100.0
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).expect("it runs")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(ready_file: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
        .args([
            "serve",
            "--sandbox",
            "--grpc-listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--ready-file",
        ])
        .arg(ready_file)
        .env_clear()
        .env("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "5m")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the gateway starts")
}
