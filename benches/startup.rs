//! How long from the start of the process to its first answered call, and how much memory it takes to idle.
//!
//! `cargo bench --bench startup`; Linux only, because it reads /proc.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{ConversationRef, GetParticipantRequest};
use participant_gateway::sandbox::V1_CONVERSATION;

const ROUNDS: usize = 11;
const PATIENCE: Duration = Duration::from_secs(10);

struct Round {
    ready: Duration,
    answered: Duration,
    idle_kib: u64,
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| runtime.block_on(round())).collect();
    println!("{ROUNDS} starts of `serve --sandbox`; min, median, max");
    show("ready file written, ms", rounds.iter().map(|round| millis(round.ready)));
    show("first call answered, ms", rounds.iter().map(|round| millis(round.answered)));
    show("resident after the call, MiB", rounds.iter().map(|round| round.idle_kib as f64 / 1024.0));
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn show(what: &str, figures: impl Iterator<Item = f64>) {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let (min, median, max) = (figures[0], figures[figures.len() / 2], figures[figures.len() - 1]);
    println!("{what:<32} {min:>8.1} {median:>8.1} {max:>8.1}");
}

async fn round() -> Round {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ready.json");
    let began = Instant::now();
    let mut gateway = start(&file);
    let address = loop {
        if let Ok(text) = std::fs::read_to_string(&file) {
            let addresses: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
            break addresses["grpc"].as_str().expect("it tells the address").to_owned();
        }
        assert!(began.elapsed() < PATIENCE, "the gateway does not get ready");
        std::hint::spin_loop();
    };
    let ready = began.elapsed();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let mut client = ParticipantServiceClient::new(endpoint.connect().await.expect("a connection"));
    let conversation = ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() };
    let request = GetParticipantRequest {
        conversation: Some(conversation),
        participant_id: "alice".into(),
        read_options: None,
    };
    client.get_participant(request).await.expect("an answer");
    let answered = began.elapsed();
    let idle_kib = resident_kib(gateway.id());
    gateway.kill().expect("it still runs");
    gateway.wait().expect("it ends");
    Round { ready, answered, idle_kib }
}

fn start(ready_file: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
        .args([
            "serve",
            "--sandbox",
            "--grpc-listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--ready-file",
        ])
        .arg(ready_file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}
