//! The traces that a collector gets of the real process, and what a collector that fails costs: nothing.

#![allow(clippy::unwrap_used)] // in helpers: clippy spares the tests themselves only

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::*;
use participant_gateway::sandbox::{Account, Sandbox, Settings, V1_CONVERSATION, V2_CONVERSATION};
use participant_gateway::telemetry::metrics::METRICS;
use participant_gateway::telemetry::traces::SPANS;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// An OTLP collector: hands on every span, with the attributes of its resource.
#[derive(Clone)]
struct Sink(mpsc::UnboundedSender<(HashMap<String, String>, Span)>);

impl Sink {
    fn take(&self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let about = attributes(&resource.resource.unwrap_or_default().attributes);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let _ = self.0.send((about.clone(), span));
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        // What a collector that wants a key does.
        if request.metadata().get("x-api-key").is_none_or(|key| key != "the-key") {
            return Err(Status::unauthenticated("no key"));
        }
        self.take(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

/// The metrics that it was sent.
#[derive(Clone, Default)]
struct Pushed(Arc<Mutex<Vec<ExportMetricsServiceRequest>>>);

impl Pushed {
    fn names(&self) -> BTreeSet<String> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_metrics);
        let scopes = resources.flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect()
    }
}

#[tonic::async_trait]
impl MetricsService for Pushed {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse { partial_success: None }))
    }
}

fn attributes(pairs: &[opentelemetry_proto::tonic::common::v1::KeyValue]) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs =
        pairs.iter().filter_map(|pair| Some((pair.key.clone(), text(pair.value.as_ref()?.value.as_ref()?))));
    pairs.collect()
}

/// What the collector got of one run.
struct Collected {
    resource: HashMap<String, String>,
    spans: Vec<Span>,
    metrics: Vec<ExportMetricsServiceRequest>,
    /// What the process printed.
    out: String,
}

impl Collected {
    fn named(&self, name: &str) -> Vec<&Span> {
        self.spans.iter().filter(|span| span.name == name).collect()
    }

    fn children(&self, parent: &Span) -> Vec<&Span> {
        self.spans.iter().filter(|span| span.parent_span_id == parent.span_id).collect()
    }
}

/// A gateway process, on its own sandbox unless a configuration file names an upstream. It may export to an address.
struct Process {
    child: Child,
    /// Both are read while it runs: where nobody reads, it writes no more lines.
    out: JoinHandle<String>,
    err: JoinHandle<String>,
    addresses: serde_json::Value,
    client: ParticipantServiceClient<tonic::transport::Channel>,
}

impl Process {
    async fn start(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ready.json");
        let mut child = Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
            .args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--ready-file"])
            .arg(&file)
            .args(env.iter().all(|(name, _)| *name != "GATEWAY_CONFIG").then_some("--sandbox"))
            .env_clear()
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        let addresses: serde_json::Value = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break serde_json::from_str(&text).unwrap();
            }
            assert!(Instant::now() < deadline, "the gateway does not get ready");
            tokio::task::yield_now().await;
        };
        let grpc = format!("http://{}", addresses["grpc"].as_str().unwrap());
        let channel = Endpoint::from_shared(grpc).unwrap().connect().await.unwrap();
        let (out, err) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
        Self { child, out, err, addresses, client: ParticipantServiceClient::new(channel) }
    }

    async fn fault(&self, fault: serde_json::Value) {
        let url = format!("http://{}/_sandbox/faults", self.addresses["sandbox"].as_str().unwrap());
        let answer = reqwest::Client::new().post(url).json(&fault).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    async fn clear_faults(&self) {
        let url = format!("http://{}/_sandbox/faults", self.addresses["sandbox"].as_str().unwrap());
        assert_eq!(reqwest::Client::new().delete(url).send().await.unwrap().status(), 204);
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.addresses["admin"].as_str().unwrap());
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    async fn dropped_spans(&self) -> f64 {
        let text = self.metrics().await;
        let line = text.lines().find(|line| {
            line.starts_with("participant_telemetry_spans_total") && line.contains("\"dropped\"")
        });
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Ends it, and gives its log lines and how long the end took.
    async fn end(self) -> (Vec<serde_json::Value>, Duration) {
        let (_, lines, took) = self.end_with_output().await;
        (lines, took)
    }

    /// With what it printed, too.
    async fn end_with_output(self) -> (String, Vec<serde_json::Value>, Duration) {
        let (out, lines, took) = self.end_as_text().await;
        (out, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), took)
    }

    /// What it printed, and its log.
    async fn end_as_text(mut self) -> (String, String, Duration) {
        let began = Instant::now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        drop(self.client);
        let (out, lines) = (self.out.await.unwrap(), self.err.await.unwrap());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        (out, lines, began.elapsed())
    }
}

fn read(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

async fn traced(is_grpc: bool, calls: impl AsyncFnOnce(&mut Process)) -> (Collected, Vec<serde_json::Value>) {
    traced_with(is_grpc, &[], calls).await
}

/// Runs `calls` against a gateway that exports to a sink, by gRPC or HTTP, and gives what both sides saw.
async fn traced_with(
    is_grpc: bool,
    env: &[(&str, &str)],
    calls: impl AsyncFnOnce(&mut Process),
) -> (Collected, Vec<serde_json::Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (send, mut receive) = mpsc::unbounded_channel();
    let sink = Sink(send);
    let pushed = Pushed::default();
    let serving = if is_grpc {
        let service = TraceServiceServer::new(sink);
        let server = Server::builder()
            .add_service(service)
            .add_service(MetricsServiceServer::new(pushed.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(async move { server.await.unwrap() })
    } else {
        let receive = async move |body: axum::body::Bytes| {
            sink.take(ExportTraceServiceRequest::decode(body).unwrap());
        };
        let routes = axum::Router::new().route("/v1/traces", axum::routing::post(receive));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() })
    };
    let export = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", if is_grpc { "grpc" } else { "http/protobuf" }),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=the-key"),
        ("OTEL_SERVICE_NAME", "the-gateway"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let mut process = Process::start(&[&export, env].concat()).await;
    calls(&mut process).await;
    let (out, lines, _) = process.end_with_output().await;
    serving.abort();
    let metrics = std::mem::take(&mut *pushed.0.lock().unwrap());
    let mut collected = Collected { resource: HashMap::new(), spans: Vec::new(), metrics, out };
    while let Ok((resource, span)) = receive.try_recv() {
        collected.resource = resource;
        collected.spans.push(span);
    }
    (collected, lines)
}

fn get(conversation_id: &str, participant_id: &str) -> Request<GetParticipantRequest> {
    let conversation = ConversationRef { conversation_id: conversation_id.into(), ..Default::default() };
    let mut request = Request::new(GetParticipantRequest {
        conversation: Some(conversation),
        participant_id: participant_id.into(),
        read_options: None,
    });
    let parent = format!("00-{TRACE}-{CALLER}-01");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const METHOD: &str = "participant.v1.ParticipantService/GetParticipant";

#[tokio::test]
async fn a_trace_leads_from_the_caller_to_twilio_on_both_versions() {
    let faces = [
        (V1_CONVERSATION, "alice", "/v1/Conversations/{ConversationSid}/Participants/{Sid}"),
        (
            V2_CONVERSATION,
            "conv_participant_00000000000000000000000001",
            "/v2/Conversations/{conversationId}/Participants/{id}",
        ),
    ];
    for (is_grpc, (conversation, participant, template)) in [true, false].into_iter().zip(faces) {
        let (collected, _) = traced(is_grpc, async |process: &mut Process| {
            for _ in 0..2 {
                process.client.get_participant(get(conversation, participant)).await.unwrap();
            }
        })
        .await;
        assert_eq!(collected.resource["service.name"], "the-gateway");
        assert_eq!(collected.resource["deployment.environment.name"], "test");
        let calls = collected.named(METHOD);
        let [miss, hit] = calls[..] else { panic!("{:#?}", collected.spans) };
        for call in [miss, hit] {
            assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.into(), CALLER.into()));
            assert_eq!(call.kind(), SpanKind::Server);
            let about = attributes(&call.attributes);
            assert_eq!((about["rpc.system.name"].as_str(), about["rpc.method"].as_str()), ("grpc", METHOD));
            assert_eq!(about["rpc.response.status_code"], "OK");
        }
        assert!(collected.children(hit).is_empty(), "a hit costs nothing");
        let [load] = collected.children(miss)[..] else { panic!("{:#?}", collected.spans) };
        assert_eq!(load.name, "cache load");
        let [request] = collected.children(load)[..] else { panic!("{:#?}", collected.spans) };
        assert_eq!((request.name.clone(), request.kind()), (format!("GET {template}"), SpanKind::Client));
        let about = attributes(&request.attributes);
        assert_eq!(
            (about["http.request.method"].as_str(), about["url.template"].as_str()),
            ("GET", template)
        );
        assert_eq!(about["http.response.status_code"], "200");
        assert!(
            about["twilio.request_id"].starts_with("RQ") && about.contains_key("twilio.concurrent_requests")
        );
        assert!(about.contains_key("server.address") && about.contains_key("server.port"));
        assert!(!about.contains_key("http.request.resend_count"));
    }
}

#[tokio::test]
async fn what_metrics_tells_is_pushed_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let pushed = Pushed::default();
    let service = MetricsServiceServer::new(pushed.clone());
    let server = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
    let serving = tokio::spawn(async move { server.await.unwrap() });
    let mut process = Process::start(&[
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
    ])
    .await;
    process.fault(json!({ "status": 503, "times": 1 })).await;
    process.fault(json!({ "body": r#"{"new":1,"last_read_timestamp":"noon"}"#, "times": 1 })).await;
    for _ in 0..2 {
        process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
    }
    process.end().await;
    serving.abort();
    // No event has come in, no call failed or was one too many, no request had to wait, nobody has to prove anything, and there
    // is neither TLS nor a bus nor a stream.
    let silent = [
        ".events.received",
        ".events.age",
        ".calls.shed",
        ".calls.failed",
        ".auth.",
        ".jwks.",
        ".tls.",
        ".queue.wait",
        ".upstream.refusals",
        ".bus.",
        ".kinesis.",
    ];
    let expected = METRICS.iter().filter(|row| !silent.iter().any(|part| row.name.contains(part)));
    let expected: BTreeSet<_> = expected.map(|row| row.name.to_owned()).collect();
    assert_eq!(pushed.names(), expected);
}

#[tokio::test]
async fn retries_and_errors_are_spans_of_their_own_kind() {
    let (collected, lines) = traced(true, async |process: &mut Process| {
        process.fault(json!({ "status": 503, "code": 20503, "times": 1 })).await;
        process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
        process.client.get_participant(get(V1_CONVERSATION, "nobody-here")).await.unwrap_err();
        process.fault(json!({ "body": "<html>", "times": 1 })).await;
        process.client.get_participant(get(V1_CONVERSATION, "bob")).await.unwrap_err();
    })
    .await;
    let status = |span: &Span| span.status.clone().unwrap_or_default().code();
    let calls: Vec<_> = collected.named(METHOD).into_iter().map(status).collect();
    // That nobody is there is no error of the gateway's.
    assert_eq!(calls, [StatusCode::Unset, StatusCode::Unset, StatusCode::Error]);
    let requests: Vec<_> = collected.spans.iter().filter(|span| span.kind() == SpanKind::Client).collect();
    let resends: Vec<_> = requests
        .iter()
        .map(|span| {
            attributes(&span.attributes).get("http.request.resend_count").cloned().unwrap_or_default()
        })
        .collect();
    assert_eq!(resends, ["", "1", "", ""]);
    assert_eq!((status(requests[0]), status(requests[1])), (StatusCode::Error, StatusCode::Unset));
    assert_eq!(attributes(&requests[0].attributes)["error.type"], "answered");

    // The log lines of the failed calls name the trace, and the spans of the calls.
    let failed: Vec<_> = lines.iter().filter(|line| line.get("reason").is_some()).collect();
    assert_eq!(failed.len(), 2, "{lines:#?}");
    for line in failed {
        assert_eq!(line["trace_id"], TRACE);
        assert!(
            collected
                .named(METHOD)
                .iter()
                .any(|span| hex(&span.span_id) == line["span_id"].as_str().unwrap())
        );
    }
}

#[tokio::test]
async fn who_joined_a_load_links_to_it_and_a_stream_tells_its_pages() {
    let (collected, _) = traced(true, async |process: &mut Process| {
        process.fault(json!({ "latency_ms": 300, "times": 1 })).await;
        let (mut one, mut other) = (process.client.clone(), process.client.clone());
        let (first, second) = tokio::join!(
            one.get_participant(get(V1_CONVERSATION, "alice")),
            other.get_participant(get(V1_CONVERSATION, "alice")),
        );
        let statuses =
            [first, second].map(|answer| answer.unwrap().into_inner().read_info.unwrap().cache_status());
        assert!(statuses.contains(&CacheStatus::Coalesced), "{statuses:?}");
        // A failure is shared, too.
        process.fault(json!({ "latency_ms": 300, "times": 1, "body": "<html>" })).await;
        let (first, second) = tokio::join!(
            one.get_participant(get(V1_CONVERSATION, "bob")),
            other.get_participant(get(V1_CONVERSATION, "bob")),
        );
        assert!(first.is_err() && second.is_err(), "{first:?} {second:?}");
        let conversation = ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() };
        let request = StreamParticipantsRequest { conversation: Some(conversation), page_size: 2 };
        let mut stream = process.client.stream_participants(request).await.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
    })
    .await;
    let loads: Vec<_> =
        collected.named("cache load").into_iter().map(|load| (&load.span_id, &load.trace_id)).collect();
    let links: Vec<_> = collected.named(METHOD).into_iter().flat_map(|call| &call.links).collect();
    let linked: Vec<_> = links.iter().map(|link| (&link.span_id, &link.trace_id)).collect();
    assert_eq!((loads.len(), linked), (2, loads));
    let [stream] = collected.named("participant.v1.ParticipantService/StreamParticipants")[..] else {
        panic!("{:#?}", collected.spans)
    };
    let pages: Vec<_> =
        stream.events.iter().map(|event| attributes(&event.attributes)["participants"].clone()).collect();
    assert_eq!(pages, ["2", "1"]);
    assert_eq!(collected.children(stream).len(), 2, "a request a page");
}

#[tokio::test]
async fn a_refresh_that_nobody_waits_for_has_a_trace_of_its_own() {
    let env = [("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "2s"), ("GATEWAY_CACHE_STALE_WHILE_REVALIDATE", "1s")];
    let calls = async |process: &mut Process| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
            if answer.into_inner().read_info.unwrap().cache_status() == CacheStatus::StaleRevalidating {
                break;
            }
            assert!(Instant::now() < deadline, "it is fresh for ever");
        }
        while !process.metrics().await.contains("refresh_outcome=\"renewed\"} 1") {
            assert!(Instant::now() < deadline, "it was never renewed");
        }
    };
    let (collected, _) = traced_with(true, &env, calls).await;
    let [refresh] = collected.named("cache refresh")[..] else { panic!("{:#?}", collected.spans) };
    let [load] = collected.children(refresh)[..] else { panic!("{:#?}", collected.spans) };
    assert_eq!((load.name.as_str(), collected.children(load).len()), ("cache load", 1));
    let [link] = &refresh.links[..] else { panic!("{refresh:#?}") };
    let served = collected.named(METHOD).into_iter().find(|call| call.span_id == link.span_id).unwrap();
    assert!(refresh.parent_span_id.is_empty() && served.trace_id != refresh.trace_id);
}

/// What must be seen nowhere: planted as identity, address, name, attributes and token; the sandbox's credentials, in
/// Base64 too; and the collector's key.
const PLANTED: [&str; 5] = ["planted", "+1555017", "sandbox:", "QUMwMDAw", "the-key"];

fn planted(channel: participant_gateway::proto::Channel, address: &str) -> Participant {
    let address = Address { channel: channel.into(), address: address.into(), ..Default::default() };
    Participant { addresses: vec![address], ..Default::default() }
}

/// Every method on both versions, good and bad, with planted values in every field that holds any.
async fn plant(process: &mut Process) -> Vec<Status> {
    use participant_gateway::proto::Channel::{Chat, Sms};
    let mut errors = Vec::new();
    let client = &mut process.client.clone();
    for (id, version) in [(V1_CONVERSATION, 1), (V2_CONVERSATION, 2)] {
        let conversation = Some(ConversationRef { conversation_id: id.into(), ..Default::default() });
        let participant = match version {
            1 => Participant { attributes: r#"{"planted":1}"#.into(), ..planted(Chat, "planted-identity") },
            _ => Participant { display_name: "planted name".into(), ..planted(Sms, "+15550177777") },
        };
        let create = CreateParticipantRequest {
            conversation: conversation.clone(),
            participant: Some(participant.clone()),
            webhook_enabled: None,
            ..Default::default()
        };
        let created =
            client.create_participant(create.clone()).await.unwrap().into_inner().participant.unwrap();
        errors.extend(client.create_participant(create.clone()).await.err());
        process.fault(json!({ "match": { "method": "POST" }, "times": 1, "cut": "before" })).await;
        errors.extend(client.create_participant(create.clone()).await.err());
        let invalid =
            Participant { attributes: "{planted".into(), role_id: "planted".into(), ..participant.clone() };
        errors.extend(
            client
                .create_participant(CreateParticipantRequest { participant: Some(invalid), ..create })
                .await
                .err(),
        );
        for participant_id in ["planted-identity", "planted/../identity", "planted\n"] {
            errors.extend(client.get_participant(get(id, participant_id)).await.err());
        }
        let update = |participant_id: &str| UpdateParticipantRequest {
            conversation: conversation.clone(),
            participant_id: participant_id.into(),
            participant: Some(Participant { addresses: Vec::new(), ..participant.clone() }),
            ..Default::default()
        };
        let watch = WatchParticipantsRequest {
            conversations: conversation.iter().cloned().collect(),
            ..Default::default()
        };
        let mut watch = client.watch_participants(watch).await.unwrap().into_inner();
        watch.message().await.unwrap().unwrap();
        client.update_participant(update(&created.id)).await.unwrap();
        let batch = BatchGetParticipantsRequest {
            conversation: conversation.clone(),
            participant_ids: vec![created.id.clone()],
            ..Default::default()
        };
        client.batch_get_participants(batch).await.unwrap();
        errors.extend(client.update_participant(update("planted-nobody")).await.err());
        let list = ListParticipantsRequest { conversation: conversation.clone(), ..Default::default() };
        client.list_participants(list.clone()).await.unwrap();
        errors.extend(
            client
                .list_participants(ListParticipantsRequest { page_token: "planted".into(), ..list })
                .await
                .err(),
        );
        let stream = StreamParticipantsRequest { conversation: conversation.clone(), page_size: 2 };
        let mut stream = client.stream_participants(stream).await.unwrap().into_inner();
        while stream.message().await.unwrap().is_some() {}
        let body = r#"{"identity":"planted","date_created":"planted","createdAt":"planted"}"#;
        process.fault(json!({ "times": 1, "body": body })).await;
        errors.extend(client.get_participant(get(id, &created.id)).await.err());
        let delete = DeleteParticipantRequest {
            conversation: conversation.clone(),
            participant_id: created.id.clone(),
            webhook_enabled: None,
        };
        errors.extend(client.delete_participant(delete).await.err());
        let named =
            ConversationRef { conversation_id: "planted name".into(), api_version: 1, ..Default::default() };
        let list = ListParticipantsRequest { conversation: Some(named), ..Default::default() };
        errors.extend(client.list_participants(list).await.err());
    }
    errors
}

/// A request with what a caller may send beside its message.
fn about<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    for name in ["authorization", "cookie", "x-api-key", "x-forwarded-client-cert", "baggage"] {
        metadata.insert(name, "planted=planted".parse().unwrap());
    }
    metadata.insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    request.set_timeout(Duration::from_secs(5));
    request
}

/// A call of every method about a participant of this conversation, with planted values wherever a text may stand.
async fn call_each(
    client: &mut ParticipantServiceClient<tonic::transport::Channel>,
    id: &str,
    participant_id: &str,
) -> [Result<(), Status>; 10] {
    let named = ConversationRef { conversation_id: id.into(), ..Default::default() };
    let (conversation, participant_id) = (Some(named.clone()), participant_id.to_owned());
    let mut participant = planted(participant_gateway::proto::Channel::Chat, "planted-other");
    participant.attributes = r#"{"planted":"+15550177778"}"#.into();
    let get = GetParticipantRequest {
        conversation: conversation.clone(),
        participant_id: participant_id.clone(),
        read_options: Some(ReadOptions { max_age: Some(Default::default()), ..Default::default() }),
    };
    let batch = BatchGetParticipantsRequest {
        conversation: conversation.clone(),
        participant_ids: vec![participant_id.clone(), "planted-second".into()],
        ..Default::default()
    };
    let create = CreateParticipantRequest {
        conversation: conversation.clone(),
        participant: Some(participant.clone()),
        request_id: "planted-request".into(),
        ..Default::default()
    };
    let preview = CreateParticipantRequest { validate_only: true, ..create.clone() };
    let update = UpdateParticipantRequest {
        conversation: conversation.clone(),
        participant_id: participant_id.clone(),
        participant: Some(Participant { addresses: Vec::new(), ..participant }),
        ..Default::default()
    };
    let delete = DeleteParticipantRequest {
        conversation: conversation.clone(),
        participant_id,
        webhook_enabled: None,
    };
    let list = ListParticipantsRequest { conversation: conversation.clone(), ..Default::default() };
    let stream = StreamParticipantsRequest { conversation, page_size: 2 };
    let person = ListParticipantConversationsRequest { address: "+15550177777".into(), ..Default::default() };
    let watch = WatchParticipantsRequest {
        conversations: vec![named],
        resume_token: "planted-resume".into(),
        ..Default::default()
    };
    let streamed = match client.stream_participants(about(stream)).await {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let watched = match client.watch_participants(about(watch)).await {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    [
        client.get_participant(about(get)).await.map(drop),
        client.batch_get_participants(about(batch)).await.map(drop),
        client.create_participant(about(create)).await.map(drop),
        client.create_participant(about(preview)).await.map(drop),
        client.update_participant(about(update)).await.map(drop),
        client.list_participants(about(list)).await.map(drop),
        client.list_participant_conversations(about(person)).await.map(drop),
        streamed,
        watched,
        client.delete_participant(about(delete)).await.map(drop),
    ]
}

/// Twilio's answers that are no success, and broken ones, each with planted words in all that it says.
fn planted_faults() -> Vec<serde_json::Value> {
    let problem = |status: u16| {
        json!({ "status": status, "body": json!({
            "code": 50000 + u32::from(status), "status": status, "httpStatusCode": status, "message": "planted +15550177777",
            "userError": "planted", "more_info": "https://planted.example", "details": { "planted": "planted" },
            "params": { "planted": "planted" }
        }).to_string(), "headers": { "location": "https://planted.example/planted", "x-planted": "planted" } })
    };
    let mut faults: Vec<_> = [400, 401, 403, 404, 409, 422, 302, 500].into_iter().map(problem).collect();
    faults.push(json!({ "status": 200, "body": "planted, which is no JSON" }));
    faults.push(json!({ "status": 200, "body": r#"{"sid":{"planted":1},"participants":"planted","id":["planted"]}"# }));
    faults.push(json!({ "status": 403, "body": "<html>planted</html>", "content_type": "text/html" }));
    faults
}

/// Every method on both versions: where Twilio fails, and with ids that are none. A well-formed id of a conversation may be told.
async fn plant_failures(process: &mut Process) -> Vec<Status> {
    let client = &mut process.client.clone();
    let mut ended = Vec::new();
    for id in [V1_CONVERSATION, V2_CONVERSATION] {
        for fault in planted_faults() {
            process.fault(fault).await;
            ended.extend(call_each(client, id, "planted-identity").await);
            process.clear_faults().await;
        }
    }
    for id in ["planted", "CHplanted", "conv_conversation_9", "planted\n", "../planted", ""] {
        ended.extend(call_each(client, id, "planted-identity").await);
    }
    for id in [V1_CONVERSATION, V2_CONVERSATION] {
        ended.extend(call_each(client, id, "planted-identity").await);
        ended.extend(call_each(client, id, "planted/../identity\u{1b}").await);
    }
    ended.into_iter().filter_map(Result::err).collect()
}

/// What the other listeners can be sent, with planted words in each part.
async fn plant_by_http(process: &Process) -> String {
    let http = reqwest::Client::new();
    let mut told = String::new();
    for listener in ["admin", "events"] {
        let address = process.addresses[listener].as_str().unwrap();
        for path in ["planted", "log-filter", "events?planted=planted&bodySHA256=planted", ""] {
            for method in [reqwest::Method::GET, reqwest::Method::PUT, reqwest::Method::POST] {
                let request =
                    http.request(method, format!("http://{address}/{path}")).body(r#"{"planted":1}"#);
                let request = request.header("x-twilio-signature", "cGxhbnRlZA==").bearer_auth("planted");
                told += &request.send().await.unwrap().text().await.unwrap();
            }
        }
    }
    told
}

#[track_caller]
fn assert_nowhere(planted: &[impl AsRef<str>], everything: &str) {
    for secret in planted.iter().map(AsRef::as_ref) {
        let at = everything.find(secret);
        assert!(
            at.is_none(),
            "{secret}: …{}…",
            at.map_or("", |at| &everything[at.saturating_sub(200)..at + 40])
        );
    }
}

#[tokio::test]
async fn nothing_of_a_participant_and_no_secret_is_on_any_surface() {
    let mut told = String::new();
    let env = [
        ("GATEWAY_LOG_FILTER", "trace"),
        ("GATEWAY_LOG_ACCESS", "true"),
        ("GATEWAY_PAGE_TOKEN_KEY", "planted-page-token-key"),
        ("GATEWAY_UPSTREAM_MAX_RETRIES", "0"),
    ];
    let (collected, lines) = traced_with(true, &env, async |process: &mut Process| {
        let mut errors = plant(process).await;
        assert!(errors.len() >= 16, "{errors:#?}");
        errors.extend(plant_failures(process).await);
        assert!(errors.len() >= 200, "{}", errors.len());
        told += &plant_by_http(process).await;
        for error in errors {
            // Its details are bytes in which texts stand as they are.
            told += &format!("{} {} ", error.message(), String::from_utf8_lossy(error.details()));
        }
        told += &process.metrics().await;
    })
    .await;
    assert!(collected.spans.len() >= 40 && lines.len() >= 16, "{} {}", collected.spans.len(), lines.len());
    assert!(!collected.metrics.is_empty() && collected.out.contains("grpc"), "{}", collected.out);
    let Collected { spans, metrics, out, resource } = &collected;
    assert_nowhere(&PLANTED, &format!("{told} {out} {lines:?} {spans:?} {metrics:?} {resource:?}"));
    // And the spans are what the documentation says.
    for span in &collected.spans {
        let kind = format!("{:?}", span.kind()).to_lowercase();
        let row = SPANS.iter().find(|row| row.kind == kind).unwrap_or_else(|| panic!("{span:?}"));
        for name in attributes(&span.attributes).keys() {
            let is_ours =
                !["busy_ns", "idle_ns", "code.", "thread."].iter().any(|theirs| name.starts_with(theirs));
            assert!(!is_ours || row.attributes.contains(&name.as_str()), "{name} of {}", span.name);
        }
    }
}

/// Three accounts, one for each kind of credentials, whose secrets are good, then new, then refused, then gone.
#[tokio::test]
async fn no_secret_of_an_account_is_on_any_surface() {
    let sids = ['1', '2', '3'].map(|digit| digit.to_string().repeat(32));
    let secrets = ["planted-one", "planted-two"];
    let account = |digits: &String| Account { sid: format!("AC{digits}"), auth_token: secrets[0].into() };
    let settings = Settings { accounts: sids.iter().map(account).collect(), ..Default::default() };
    let twilio = Sandbox::bind(settings).await.unwrap();
    let url = format!("http://{}", twilio.local_addr());
    let twilio = tokio::spawn(twilio.run(CancellationToken::new()));
    let accept = async |secret: &str| {
        for digits in &sids {
            let change = json!({
                "account": format!("AC{digits}"), "auth_tokens": [secret], "api_secret": secret,
                "client_secret": secret, "revoke_tokens": true
            });
            let put = reqwest::Client::new().put(format!("{url}/_sandbox/credentials")).json(&change);
            assert_eq!(put.send().await.unwrap().status(), 204);
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let secret_file = folder.path().join("secret");
    let config_file = folder.path().join("gateway.toml");
    std::fs::write(&secret_file, secrets[0]).unwrap();
    accept(secrets[0]).await;
    let [one, two, three] = &sids;
    let config = format!(
        "upstream.url = {url:?}\nupstream.token_url = \"{url}/v2/token\"\nsecrets.reload_interval = \"20ms\"\n\
         [[accounts]]\naccount_sid = \"AC{one}\"\nauth_token_file = {secret_file:?}\n\
         [[accounts]]\naccount_sid = \"AC{two}\"\napi_key = \"SK{two}\"\napi_secret_file = {secret_file:?}\n\
         [[accounts]]\naccount_sid = \"AC{three}\"\nclient_id = \"OQ{three}\"\nclient_secret_file = {secret_file:?}\n"
    );
    std::fs::write(&config_file, config).unwrap();

    let mut told = String::new();
    let env = [("GATEWAY_CONFIG", config_file.to_str().unwrap()), ("GATEWAY_LOG_FILTER", "trace")];
    let (collected, lines) = traced_with(true, &env, async |process: &mut Process| {
        let mut call = async |is_ok: bool| {
            let calls = sids.iter().map(|digits| {
                let mut client = process.client.clone();
                let mut request = get(V1_CONVERSATION, "alice").into_inner();
                request.conversation.get_or_insert_default().account_id = format!("AC{digits}");
                request.read_options = Some(ReadOptions {
                    max_age: Some(prost_types::Duration::default()),
                    ..Default::default()
                });
                tokio::spawn(async move { client.get_participant(request).await })
            });
            for call in calls.collect::<Vec<_>>() {
                let result = call.await.unwrap();
                assert_eq!(result.is_ok(), is_ok, "{result:?}");
                let error = result.err().unwrap_or_else(|| Status::ok(""));
                told += &format!("{} {} ", error.message(), String::from_utf8_lossy(error.details()));
            }
        };
        call(true).await;
        accept(secrets[1]).await;
        std::fs::write(&secret_file, secrets[1]).unwrap();
        call(true).await;
        accept("planted-other").await;
        std::fs::write(&secret_file, "planted\nplanted").unwrap();
        call(false).await;
        told += &process.metrics().await;
    })
    .await;
    twilio.abort();
    assert!(collected.spans.len() >= 9 && lines.len() >= 9, "{} {}", collected.spans.len(), lines.len());
    let basic = |user: &str| STANDARD.encode(format!("{user}:planted")).trim_end_matches('=').to_owned();
    // And the access tokens, which are JWTs.
    let planted =
        ["planted".to_owned(), "eyJ".to_owned(), basic(&format!("AC{one}")), basic(&format!("SK{two}"))];
    assert_nowhere(&planted, &format!("{told} {:?} {lines:?}", collected.spans));
}

#[tokio::test]
async fn twilio_gets_the_traces_ids_only_where_it_is_asked_for() {
    for (value, is_expected) in [("false", false), ("true", true)] {
        let (collected, _) = traced_with(
            true,
            &[("GATEWAY_UPSTREAM_PROPAGATE_TRACE", value)],
            async |process: &mut Process| {
                process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
                let url =
                    format!("http://{}/_sandbox/requests", process.addresses["sandbox"].as_str().unwrap());
                let log: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
                let parent = log["last"][0]["headers"].get("traceparent").and_then(|value| value.as_str());
                assert_eq!(parent.is_some_and(|parent| parent.contains(TRACE)), is_expected, "{log}");
            },
        )
        .await;
        assert_eq!(collected.named(METHOD).len(), 1);
    }
}

#[tokio::test]
async fn what_the_sampler_leaves_out_is_neither_exported_nor_dropped() {
    let (collected, _) =
        traced_with(true, &[("OTEL_TRACES_SAMPLER", "always_off")], async |process: &mut Process| {
            process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
            assert_eq!(process.dropped_spans().await, 0.0);
        })
        .await;
    assert!(collected.spans.is_empty(), "{:#?}", collected.spans);
}

#[tokio::test]
async fn a_caller_that_is_not_sampled_has_no_spans_and_keeps_its_trace() {
    let env = [("GATEWAY_UPSTREAM_PROPAGATE_TRACE", "true")];
    let (collected, lines) = traced_with(true, &env, async |process: &mut Process| {
        let unsampled = |participant_id| {
            let mut request = get(V1_CONVERSATION, participant_id);
            let parent = format!("00-{TRACE}-{CALLER}-00");
            request.metadata_mut().insert("traceparent", parent.parse().unwrap());
            request
        };
        process.client.get_participant(unsampled("alice")).await.unwrap();
        process.client.get_participant(unsampled("nobody-here")).await.unwrap_err();
        let url = format!("http://{}/_sandbox/requests", process.addresses["sandbox"].as_str().unwrap());
        let log: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        for request in log["last"].as_array().unwrap() {
            let parent = request["headers"]["traceparent"].as_str().unwrap();
            assert!(parent.contains(TRACE) && parent.ends_with("-00"), "{parent}");
        }
    })
    .await;
    // Neither the call nor what it began: a load runs in a task of its own.
    assert!(collected.spans.is_empty(), "{:#?}", collected.spans);
    let failed = lines.iter().find(|line| line.get("reason").is_some()).unwrap();
    assert_eq!(failed["trace_id"], TRACE);
}

#[tokio::test]
async fn calls_that_the_grpc_layer_refuses_are_counted_too() {
    let mut process = Process::start(&[]).await;
    let large = ListParticipantsRequest { page_token: "A".repeat(3 << 20), ..Default::default() };
    process.client.list_participants(large).await.unwrap_err();
    let metrics = process.metrics().await;
    let is_counted = |line: &str| {
        line.starts_with("rpc_server_call_duration_seconds_count")
            && line.contains("OUT_OF_RANGE")
            && line.ends_with(" 1")
    };
    assert!(metrics.lines().any(is_counted), "{metrics}");
    process.end().await;
}

#[tokio::test]
async fn a_collector_that_is_down_costs_no_call_and_its_spans_are_counted() {
    // Bound and dropped: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoint = format!("http://{address}");
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let mut process = Process::start(&env).await;
    // A full batch is sent at once.
    for _ in 0..600 {
        process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while process.dropped_spans().await < 512.0 {
        assert!(Instant::now() < deadline, "they are not counted");
    }
    process.end().await;
}

#[tokio::test]
async fn a_collector_that_hangs_holds_the_exit_two_seconds_at_most() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut process = Process::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]).await;
    process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
    let (_, took) = process.end().await;
    // Spans and metrics hang both; what is above two seconds is the drain and the machine's.
    assert!(took < Duration::from_millis(3500), "{took:?}");
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_exported_and_lines_have_no_ids() {
    let mut process = Process::start(&[]).await;
    process.client.get_participant(get(V1_CONVERSATION, "nobody-here")).await.unwrap_err();
    let (lines, _) = process.end().await;
    let failed = lines.iter().find(|line| line.get("reason").is_some()).unwrap();
    assert!(failed.get("trace_id").is_none(), "{failed}");
}

#[tokio::test]
async fn a_call_that_succeeds_has_a_line_where_it_is_slow_or_all_have_one() {
    for (env, expected) in [
        (vec![], vec![]),
        (vec![("GATEWAY_LOG_SLOW_CALL", "50ms")], vec!["slow call"]),
        (vec![("GATEWAY_LOG_ACCESS", "true")], vec!["call", "call"]),
        (vec![("GATEWAY_LOG_ACCESS", "true"), ("GATEWAY_LOG_SLOW_CALL", "50ms")], vec!["slow call", "call"]),
    ] {
        let mut process = Process::start(&env).await;
        process.fault(json!({ "latency_ms": 200, "times": 1 })).await;
        for _ in 0..2 {
            process.client.get_participant(get(V1_CONVERSATION, "alice")).await.unwrap();
        }
        let (lines, _) = process.end().await;
        let calls: Vec<_> = lines.iter().filter(|line| line["rpc.method"] == METHOD).collect();
        let messages: Vec<_> = calls.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, expected, "{env:?}");
        assert!(calls.iter().all(|line| line["duration_ms"].is_u64()));
    }
}

/// A write of alice's, within the caller's trace.
fn update() -> Request<UpdateParticipantRequest> {
    let request = get(V1_CONVERSATION, "alice");
    let conversation = request.get_ref().conversation.clone();
    let participant = Some(Participant { attributes: r#"{"planted":1}"#.into(), ..Default::default() });
    let update = UpdateParticipantRequest {
        conversation,
        participant_id: "alice".into(),
        participant,
        ..Default::default()
    };
    let (metadata, extensions, _) = request.into_parts();
    Request::from_parts(metadata, extensions, update)
}

#[tokio::test]
async fn an_audit_has_records_of_its_own_whatever_the_filter() {
    let env = [("GATEWAY_LOG_FILTER", "error")];
    let (_, lines) = traced_with(true, &env, async |process: &mut Process| {
        process.client.get_participant(get(V1_CONVERSATION, "nobody-here")).await.unwrap_err();
        process.client.update_participant(update()).await.unwrap();
    })
    .await;
    let [record] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!((&record["target"], &record["message"]), (&json!("audit"), &json!("write")));
    assert_eq!((&record["caller"], &record["trace_id"]), (&json!("address:127.0.0.1"), &json!(TRACE)));
    assert_eq!(record["conversation"], V1_CONVERSATION);
    // No key stands twice, and the participant is told by its id.
    assert!(record["participant"].as_str().unwrap().starts_with("MB") && record["duration_ms"].is_u64());
    assert!(record.get("span_id").is_none(), "{record}");

    let mut process =
        Process::start(&[("GATEWAY_LOG_AUDIT", "false"), ("GATEWAY_LOG_FILTER", "trace")]).await;
    process.client.update_participant(update()).await.unwrap();
    let (lines, _) = process.end().await;
    assert!(lines.iter().all(|line| line["message"] != "write"), "{lines:#?}");
}

#[tokio::test]
async fn a_record_of_the_audit_is_a_line_for_people_too() {
    let mut process =
        Process::start(&[("GATEWAY_LOG_FORMAT", "text"), ("GATEWAY_LOG_FILTER", "error")]).await;
    process.client.update_participant(update()).await.unwrap();
    let (_, text, _) = process.end_as_text().await;
    let [line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(line.contains(" audit: write caller=\"address:127.0.0.1\""), "{line}");
    assert!(line.contains("rpc.response.status_code=\"OK\"") && !line.contains("None"), "{line}");
}

#[tokio::test]
async fn the_logs_filter_is_changed_while_the_process_runs() {
    let mut process = Process::start(&[("GATEWAY_LOG_FILTER", "warn")]).await;
    let url = format!("http://{}/log-filter", process.addresses["admin"].as_str().unwrap());
    let put =
        async |filter: &'static str| reqwest::Client::new().put(&url).body(filter).send().await.unwrap();
    process.client.get_participant(get(V1_CONVERSATION, "nobody-here")).await.unwrap_err();
    for wrong in ["participant_gateway=loud", "inof", "warn,hyper"] {
        let refused = put(wrong).await;
        assert_eq!(refused.status(), 400, "{wrong}");
        assert!(refused.text().await.unwrap().contains("must be a level"));
    }
    assert_eq!(put("info").await.status(), 200);
    process.client.get_participant(get(V2_CONVERSATION, "conv_participant_9")).await.unwrap_err();
    let (lines, _) = process.end().await;
    let versions: Vec<_> = lines
        .iter()
        .filter_map(|line| line.get("api.version"))
        .map(|version| version.as_str().unwrap())
        .collect();
    assert_eq!(versions, ["v2"], "only what came after the change: {lines:#?}");
}

#[tokio::test]
async fn what_twilio_has_added_is_logged_once_by_the_name_of_its_key() {
    let mut process = Process::start(&[]).await;
    let body = |secret: &str| {
        let binding = json!({ "type": secret, "newer": secret });
        json!({ "sid": "MB1", "new_key": secret, secret: 1, "messaging_binding": binding }).to_string()
    };
    for secret in ["+15550100001", "dana@example.com"] {
        process.fault(json!({ "body": body(secret), "times": 1 })).await;
        let mut read = get(V1_CONVERSATION, "alice");
        read.get_mut().read_options =
            Some(ReadOptions { max_age: Some(prost_types::Duration::default()), ..Default::default() });
        process.client.get_participant(read).await.unwrap();
    }
    let (lines, _) = process.end().await;
    let told: Vec<_> = lines.iter().filter(|line| line.get("key").is_some()).collect();
    let mut keys: Vec<_> = told.iter().map(|line| line["key"].as_str().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["(other)", "messaging_binding.newer", "messaging_binding.type", "new_key"]);
    assert!(told.iter().all(|line| line["level"] == "WARN" && line["api.version"] == "v1"), "{told:#?}");
    for line in &lines {
        assert!(!line.to_string().contains("+1555") && !line.to_string().contains("dana"), "{line}");
    }
}
