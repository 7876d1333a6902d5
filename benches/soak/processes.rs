//! The gateway and the sandbox as processes, and what /proc and /metrics tell of the gateway.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::sandbox::{ACCOUNT_SID, AUTH_TOKEN};
use serde_json::{Value, json};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(20);
/// What the gateway logs, to find out about what was wrong.
const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/soak.log");

/// Dropped, it is killed.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_participant-gateway"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The fake Twilio, and its control routes.
pub(crate) struct Twilio {
    process: Process,
    pub(crate) address: SocketAddr,
    http: reqwest::Client,
}

impl Twilio {
    pub(crate) fn start() -> Self {
        let mut child = binary()
            .args(["sandbox", "--listen=127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let (_, address) = line.trim().rsplit_once("http://").expect("it says where it listens");
        Self {
            process: Process(child),
            address: address.parse().expect("an address"),
            http: reqwest::Client::new(),
        }
    }

    pub(crate) async fn post(&self, route: &str, body: Value) {
        self.control(self.http.post(self.url(route)).json(&body)).await;
    }

    pub(crate) async fn put(&self, route: &str, body: Value) {
        self.control(self.http.put(self.url(route)).json(&body)).await;
    }

    pub(crate) async fn clear_faults(&self) {
        self.control(self.http.delete(self.url("faults"))).await;
    }

    pub(crate) async fn get(&self, route: &str) -> Value {
        self.control(self.http.get(self.url(route))).await
    }

    fn url(&self, route: &str) -> String {
        format!("http://{}/_sandbox/{route}", self.address)
    }

    async fn control(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.send().await.expect("the sandbox answers");
        let (status, text) = (answer.status(), answer.text().await.expect("a text"));
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// What Twilio itself answers to its own API, past the gateway.
    pub(crate) async fn api(&self, path: &str) -> Value {
        let request = self.http.get(format!("http://{}{path}", self.address));
        let answer = request.basic_auth(ACCOUNT_SID, Some(AUTH_TOKEN)).send().await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    /// A change that somebody else makes.
    pub(crate) async fn update_v1(&self, conversation: &str, participant: &str, attributes: &str) {
        let path = format!("/v1/Conversations/{conversation}/Participants/{participant}");
        let request = self.http.post(format!("http://{}{path}", self.address));
        let request = request.basic_auth(ACCOUNT_SID, Some(AUTH_TOKEN)).form(&[("Attributes", attributes)]);
        assert!(request.send().await.is_ok_and(|answer| answer.status().is_success()), "it is changed");
    }

    /// It neither answers nor hangs up, until it is let go on.
    pub(crate) fn freeze(&self, is_frozen: bool) {
        let signal = if is_frozen { "-STOP" } else { "-CONT" };
        let sent = Command::new("kill").args([signal, &self.process.0.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{signal} cannot be sent");
    }
}

/// The gateway that is tried.
pub(crate) struct Gateway {
    process: Process,
    pub(crate) grpc: SocketAddr,
    pub(crate) events_url: String,
    admin: SocketAddr,
    http: reqwest::Client,
}

/// What the process holds at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vitals {
    pub(crate) rss_kib: f64,
    pub(crate) files: usize,
    pub(crate) threads: usize,
    pub(crate) calls: f64,
    pub(crate) cache_entries: f64,
    pub(crate) cache_kib: f64,
}

impl Gateway {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let events = free.expect("a free port");
        let events_url = format!("http://{events}/events");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ready.json");
        let child = binary()
            .args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .args(["--upstream-url", &format!("http://{upstream}")])
            .args(["--events-listen", &events.to_string(), "--events-public-url", &events_url])
            .arg("--ready-file")
            .arg(&file)
            .envs([("TWILIO_ACCOUNT_SID", ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", AUTH_TOKEN)])
            .stderr(std::fs::File::create(LOG).expect("a file for the log"))
            .spawn();
        let process = Process(child.expect("the binary starts"));
        let ready = ready(&file).await;
        let address = |listener: &str| {
            let address = ready[listener].as_str().and_then(|address| address.parse().ok());
            address.expect("the ready file tells the addresses")
        };
        let (grpc, admin) = (address("grpc"), address("admin"));
        Self { process, grpc, events_url, admin, http: reqwest::Client::new() }
    }

    pub(crate) async fn vitals(&self) -> Vitals {
        let process = format!("/proc/{}", self.process.0.id());
        let status = std::fs::read_to_string(format!("{process}/status")).expect("/proc");
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the status");
            line.split_whitespace().next().and_then(|number| number.parse::<usize>().ok()).expect("a number")
        };
        let metrics = self.metrics().await;
        let gauge = |name: &str| sum(&metrics, name, "");
        Vitals {
            rss_kib: line("VmRSS:") as f64,
            files: std::fs::read_dir(format!("{process}/fd")).expect("/proc").count(),
            threads: line("Threads:"),
            calls: gauge("participant_calls_in_flight"),
            cache_entries: gauge("participant_cache_entries"),
            cache_kib: gauge("participant_cache_weight_bytes") / 1024.0,
        }
    }

    /// Events that ended like this.
    pub(crate) async fn events(&self, outcome: &str) -> u64 {
        let label = format!("participant_events_outcome=\"{outcome}\"");
        sum(&self.metrics().await, "participant_events_received_total", &label) as u64
    }

    async fn metrics(&self) -> String {
        let answer = self.http.get(format!("http://{}/metrics", self.admin)).send().await;
        answer.expect("the gateway answers").text().await.expect("a text")
    }
}

async fn ready(file: &Path) -> Value {
    let began = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(file) {
            return serde_json::from_str(&text).expect("the ready file is JSON");
        }
        assert!(began.elapsed() < PATIENCE, "the gateway does not get ready");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Over all series of the metric with this label.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of_name = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let series = of_name.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
    series.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).fold(0.0, |sum, value| sum + value)
}

/// Both versions' events, some twice and some in disorder.
pub(crate) fn events_settings(url: &str) -> Value {
    json!({"url": url, "duplicates": 0.05, "reorder": 0.05, "give_up_ms": 3_600_000, "seed": 1})
}
