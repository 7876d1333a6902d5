//! What telemetry costs: cached Gets per second of the gateway's own CPU time, with and without the export of traces.
//!
//! `cargo bench --bench telemetry`; Linux only, because it reads /proc. The candidates run side by side and take turns, so that
//! a machine that gets slower gets slower for all of them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{ConversationRef, GetParticipantRequest};
use participant_gateway::sandbox::V1_CONVERSATION;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

const ROUNDS: usize = 7;
const CONNECTIONS: usize = 4;
const STREAMS: usize = 8;
const CALLS_A_STREAM: usize = 400;
/// The kernel counts CPU time in hundredths of a second wherever Linux runs today.
const TICKS_A_SECOND: f64 = 100.0;

struct Sink;

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

struct Candidate {
    name: &'static str,
    child: Child,
    clients: Vec<ParticipantServiceClient<Channel>>,
    calls_a_cpu_second: Vec<f64>,
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let up = format!("http://{}", listener.local_addr().expect("an address"));
    let sink = Server::builder().add_service(TraceServiceServer::new(Sink));
    tokio::spawn(sink.serve_with_incoming(TcpIncoming::from(listener)));
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        format!("http://{}", listener.local_addr().expect("an address"))
    };
    let hundredth = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.01")];
    let mut candidates = vec![
        start("metrics only", None, &[]).await,
        start("traces of 1 %", Some(&up), &hundredth).await,
        start("traces of 100 %", Some(&up), &[]).await,
        start("traces of 100 %, collector down", Some(&down), &[]).await,
    ];
    // The first round fills caches and pools, and is not counted.
    for round in 0..=ROUNDS {
        for candidate in &mut candidates {
            let figure = candidate.load().await;
            if round > 0 {
                candidate.calls_a_cpu_second.push(figure);
            }
        }
    }
    let calls = CONNECTIONS * STREAMS * CALLS_A_STREAM;
    println!(
        "cached Gets per CPU second, {ROUNDS} rounds of {calls} calls, taking turns; min, median, max, median ratio"
    );
    let base = candidates[0].calls_a_cpu_second.clone();
    for candidate in &mut candidates {
        let mut ratios: Vec<f64> =
            candidate.calls_a_cpu_second.iter().zip(&base).map(|(figure, base)| figure / base).collect();
        let figures = &mut candidate.calls_a_cpu_second;
        figures.sort_by(f64::total_cmp);
        ratios.sort_by(f64::total_cmp);
        let (min, median, max) = (figures[0], figures[ROUNDS / 2], figures[ROUNDS - 1]);
        println!("{:<34} {min:>8.0} {median:>8.0} {max:>8.0} {:>6.2}", candidate.name, ratios[ROUNDS / 2]);
        candidate.child.kill().expect("it still runs");
        candidate.child.wait().expect("it ends");
    }
}

async fn start(name: &'static str, collector: Option<&str>, env: &[(&str, &str)]) -> Candidate {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ready.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_participant-gateway"));
    command
        .args([
            "serve",
            "--sandbox",
            "--grpc-listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--ready-file",
        ])
        .arg(&file)
        .envs(env.iter().copied())
        .env("GATEWAY_CACHE_TTL", "1h")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(endpoint) = collector {
        command
            .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    }
    let child = command.spawn().expect("the binary starts");
    let address = ready(&file).await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        clients.push(ParticipantServiceClient::new(endpoint.connect().await.expect("a connection")));
    }
    Candidate { name, child, clients, calls_a_cpu_second: Vec::new() }
}

async fn ready(file: &Path) -> String {
    let began = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(file) {
            let addresses: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
            return addresses["grpc"].as_str().expect("it tells the address").to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the gateway does not get ready");
        tokio::task::yield_now().await;
    }
}

impl Candidate {
    async fn load(&self) -> f64 {
        let before = cpu_seconds(self.child.id());
        let mut streams = JoinSet::new();
        for client in self.clients.iter().flat_map(|client| std::iter::repeat_n(client, STREAMS)) {
            let mut client = client.clone();
            streams.spawn(async move {
                for _ in 0..CALLS_A_STREAM {
                    client.get_participant(alice()).await.expect("an answer");
                }
            });
        }
        streams.join_all().await;
        (CONNECTIONS * STREAMS * CALLS_A_STREAM) as f64 / (cpu_seconds(self.child.id()) - before)
    }
}

fn alice() -> GetParticipantRequest {
    let conversation = ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() };
    GetParticipantRequest {
        conversation: Some(conversation),
        participant_id: "alice".into(),
        read_options: None,
    }
}

/// User and system time of the process so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("/proc");
    // The second field, the name, is in brackets and may hold anything; utime and stime are the 14th and the 15th.
    let (_, fields) = stat.rsplit_once(')').expect("the name's bracket");
    let ticks =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() / TICKS_A_SECOND
}
