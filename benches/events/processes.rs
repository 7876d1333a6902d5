//! Gateways and a Redis as processes that can be killed.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::sandbox;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

use crate::delivery::PUBLIC_URL;

pub(crate) type Client = ParticipantServiceClient<Channel>;

const PATIENCE: Duration = Duration::from_secs(20);

/// Dropped, it is killed.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where a gateway listens.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) grpc: SocketAddr,
    pub(crate) events: SocketAddr,
    admin: SocketAddr,
}

/// A running gateway; dropped, it is killed.
pub(crate) struct Gateway {
    process: Process,
    pub(crate) addresses: Addresses,
}

impl Gateway {
    /// With these variables, in front of this fake Twilio.
    pub(crate) async fn start(twilio: SocketAddr, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ready.json");
        let child = Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
            .args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--upstream-url"])
            .arg(format!("http://{twilio}"))
            .arg("--ready-file")
            .arg(&file)
            .env("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID)
            .env("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)
            .env("GATEWAY_EVENTS_LISTEN", "127.0.0.1:0")
            .env("GATEWAY_EVENTS_PUBLIC_URL", PUBLIC_URL)
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let process = Process(child);
        let began = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                return Self { process, addresses: Addresses::parse(&text) };
            }
            assert!(began.elapsed() < PATIENCE, "the gateway does not get ready");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until it knows all that is in Redis.
    pub(crate) async fn current(self) -> Self {
        let began = Instant::now();
        loop {
            let url = format!("http://{}/metrics", self.addresses.admin);
            let metrics = reqwest::get(url).await.expect("an answer").text().await.expect("a text");
            if metrics.contains("participant_bus_current 1\n") {
                return self;
            }
            assert!(began.elapsed() < PATIENCE, "the gateway does not find Redis");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn resident_bytes(&self) -> f64 {
        let path = format!("/proc/{}/status", self.process.0.id());
        let status = std::fs::read_to_string(path).expect("/proc");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
        kib.expect("a number") * 1024.0
    }

    /// User and system time so far; the kernel counts in hundredths of a second.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.process.0.id());
        let stat = std::fs::read_to_string(path).expect("/proc");
        // The second field, the name, is in brackets and may hold anything; utime and stime are the 14th and the 15th.
        let (_, fields) = stat.rsplit_once(')').expect("the name's bracket");
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.map(|field| field.parse::<f64>().expect("a number")).sum::<f64>() / 100.0
    }
}

impl Addresses {
    fn parse(ready: &str) -> Self {
        let ready: serde_json::Value = serde_json::from_str(ready).expect("the ready file is JSON");
        let address =
            |name: &str| ready[name].as_str().and_then(|text| text.parse().ok()).expect("an address");
        Self { grpc: address("grpc"), events: address("events"), admin: address("admin") }
    }

    pub(crate) async fn connect(&self) -> Result<Client, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc))?;
        Ok(ParticipantServiceClient::new(endpoint.connect().await?))
    }
}

/// A redis-server on a free port; dropped, it is killed.
pub(crate) struct Redis {
    port: u16,
    is_durable: bool,
    data: TempDir,
    process: Option<Process>,
}

impl Redis {
    /// A durable one has on disk what it acknowledged.
    pub(crate) async fn start(is_durable: bool) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (port, data) = (free.expect("a free port").port(), tempfile::tempdir().expect("a folder"));
        let mut redis = Self { port, is_durable, data, process: None };
        redis.start_again().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) async fn start_again(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", if self.is_durable { "yes" } else { "no" }])
            .args(["--appendfsync", "always", "--dir"])
            .arg(self.data.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a redis-server");
        self.process = Some(Process(child));
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "redis-server does not start");
            sleep(Duration::from_millis(10)).await;
        }
    }
}
