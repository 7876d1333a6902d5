//! The gateway as a process with a sandbox, and what Linux tells of it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(20);

/// Killed with the value.
pub(crate) struct Gateway {
    pub(crate) child: Child,
    pub(crate) grpc: SocketAddr,
    admin: String,
    sandbox: String,
}

impl Gateway {
    /// What it logs goes to `log`; its threads run on `core` alone, if that is told.
    pub(crate) async fn start(log: Stdio, core: Option<usize>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ready.json");
        let child = spawn(&file, log, core);
        let end = Instant::now() + PATIENCE;
        let ready: Value = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break serde_json::from_str(&text).expect("the ready file is JSON");
            }
            assert!(Instant::now() < end, "the gateway does not get ready");
            sleep(Duration::from_millis(5)).await;
        };
        let address = |key: &str| ready[key].as_str().expect("it tells the address").to_owned();
        let grpc = address("grpc").parse().expect("an address");
        Self { child, grpc, admin: address("admin"), sandbox: address("sandbox") }
    }

    pub(crate) async fn make_slow(&self, participant: &str) {
        let fault = json!({ "match": { "path_contains": participant }, "latency_ms": 10_000 });
        self.arrange("faults", fault).await;
    }

    pub(crate) async fn populate(&self, conversation: &str, count: u32) {
        self.arrange("populate", json!({ "conversation": conversation, "count": count })).await;
    }

    async fn arrange(&self, what: &str, how: Value) {
        let url = format!("http://{}/_sandbox/{what}", self.sandbox);
        let answer = reqwest::Client::new().post(url).json(&how).send().await.expect("the sandbox answers");
        assert!(answer.status().is_success(), "the sandbox does it");
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        self.kib_of("VmRSS:")
    }

    /// Since it started, as Linux keeps it: a peak between two looks counts, too.
    pub(crate) fn most_resident_kib(&self) -> u64 {
        self.kib_of("VmHWM:")
    }

    fn kib_of(&self, what: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = self.proc("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
        // Linux counts it in hundredths.
        (ticks(11) + ticks(12)) / 100.0
    }

    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// What `/metrics` tells under this name, summed over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.admin);
        let text = reqwest::get(url).await.expect("it answers").text().await.expect("text");
        let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
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

fn spawn(ready_file: &Path, log: Stdio, core: Option<usize>) -> Child {
    let binary = env!("CARGO_BIN_EXE_participant-gateway");
    let mut command = Command::new(if core.is_some() { "taskset" } else { binary });
    if let Some(core) = core {
        // It becomes the gateway: the process is the gateway's.
        command.args(["--cpu-list", &core.to_string(), binary]);
    }
    command
        .args([
            "serve",
            "--sandbox",
            "--grpc-listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--ready-file",
        ])
        .arg(ready_file)
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap_or_default())
        .env("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "5m")
        // By estimate: what guessed ids fill of it, the process has about twice, which is not to hide what else grows.
        .env("GATEWAY_CACHE_MAX_BYTES", (16 * 1024 * 1024).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the gateway starts")
}
