//! Gateways as processes, and the fake Twilio behind them.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::sandbox::{ACCOUNT_SID, AUTH_TOKEN, Sandbox, Settings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A fake Twilio in this process; the answer is where it listens.
pub(crate) async fn twilio(tasks: &mut JoinSet<()>) -> SocketAddr {
    let fake = Sandbox::bind(Settings::default()).await.expect("a sandbox");
    let address = fake.local_addr();
    tasks.spawn(async move { fake.run(CancellationToken::new()).await });
    address
}

pub(crate) async fn connect(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("a connection")
}

/// A child of this bench's own, killed with it.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// As a pod ends.
    pub(crate) async fn terminate(mut self) {
        let killed = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()), "SIGTERM cannot be sent");
        let ended = tokio::task::spawn_blocking(move || self.0.wait()).await.expect("it waits");
        assert!(ended.is_ok_and(|status| status.success()), "a replica ended badly");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, or is to end now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a gateway that listens there (port 0: anywhere), and waits until it says where.
pub(crate) async fn start(
    upstream: SocketAddr,
    drain_delay: &str,
    listen: SocketAddr,
) -> (Process, SocketAddr) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ready.json");
    let child = Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
        .args(["serve", "--admin-listen=127.0.0.1:0", "--grpc-listen", &listen.to_string()])
        .args(["--upstream-url", &format!("http://{upstream}"), "--drain-delay", drain_delay, "--ready-file"])
        .arg(&file)
        .env_clear()
        .envs([("TWILIO_ACCOUNT_SID", ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", AUTH_TOKEN)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let process = Process(child.expect("the binary starts"));
    let end = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read_to_string(&file) {
            let addresses: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
            let address = addresses["grpc"].as_str().and_then(|address| address.parse().ok());
            return (process, address.expect("it tells the address"));
        }
        assert!(Instant::now() < end, "a replica does not get ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
