//! The processes that are measured: on which core they run, what they take of it and of memory.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::sandbox;

use crate::envoy;

const PATIENCE: Duration = Duration::from_secs(20);

/// The two cores in use. On a machine with one they are the same.
#[derive(Clone, Copy)]
pub(crate) struct Cores {
    /// Of what is measured.
    server: usize,
    /// Of who asks, and of who is asked by the servers.
    client: usize,
}

/// A running server; dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Modes of this program end when it is closed.
    _stdin: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cores {
    /// The first and the last of those that this process may use.
    pub(crate) fn allowed() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
        let mut cores = list.split([',', '-']).map(|core| core.trim().parse().expect("a core"));
        let server = cores.next().expect("a core");
        Self { server, client: cores.next_back().unwrap_or(server) }
    }

    /// Puts this process where the client belongs; before it has other threads, which would stay where they are.
    pub(crate) fn settle(self) {
        let status = Command::new("taskset")
            .args(["--pid", "--cpu-list", &self.client.to_string(), &std::process::id().to_string()])
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "taskset, of util-linux, is needed");
    }

    /// The bare server, with the answer in this file.
    pub(crate) fn bare(self, answer: &Path) -> Process {
        own(pinned(self.server), &["bare", answer.to_str().expect("a path")])
    }

    pub(crate) fn sink(self) -> Process {
        own(pinned(self.client), &["sink"])
    }

    pub(crate) fn upstream(self, delay: Duration) -> Process {
        own(pinned(self.client), &["upstream", &delay.as_millis().to_string()])
    }

    /// The gateway before this Twilio, with these variables and no others.
    pub(crate) fn gateway(self, twilio: &Process, env: &[(&str, &str)]) -> Process {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ready.json");
        let child = pinned(self.server)
            .arg(env!("CARGO_BIN_EXE_participant-gateway"))
            .args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .arg(format!("--upstream-url=http://{}", twilio.address))
            .arg("--ready-file")
            .arg(&file)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID)
            .env("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("taskset is there");
        let ready = until("the gateway writes its ready file", || std::fs::read_to_string(&file).ok());
        let ready: serde_json::Value = serde_json::from_str(&ready).expect("the ready file is JSON");
        let address = ready["grpc"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        Process { child, address, _stdin: None }
    }

    /// Envoy from this binary, before this upstream, with one thread for calls.
    pub(crate) fn envoy(self, binary: &str, upstream: &Process) -> Process {
        let folder = tempfile::tempdir().expect("a folder");
        let (descriptors, config) = (folder.path().join("twilio.pb"), folder.path().join("envoy.json"));
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        std::fs::write(&descriptors, envoy::descriptors()).expect("it is written");
        let text = envoy::config(address, upstream.address, &descriptors).to_string();
        std::fs::write(&config, text).expect("it is written");
        let child = pinned(self.server)
            .arg(binary)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("taskset is there");
        let process = Process { child, address, _stdin: None };
        until("Envoy listens", || TcpStream::connect(address).ok());
        process
    }
}

/// The value, once there is one. It does not sleep, because starts are measured.
fn until<T>(what: &str, value: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = value() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "not yet: {what}");
        std::thread::yield_now();
    }
}

/// This program as one of its servers, which tells its address in a line.
fn own(mut command: Command, mode: &[&str]) -> Process {
    command.arg(std::env::current_exe().expect("this program")).arg("server").args(mode);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("taskset is there");
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    Process { child, address: line.trim().parse().expect("an address"), _stdin: stdin }
}

/// `taskset` becomes the program that is added: its process is the program's.
fn pinned(core: usize) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]);
    command
}

impl Process {
    pub(crate) fn resident_bytes(&self) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("/proc");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
        let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
        kib.expect("a number") * 1024.0
    }

    /// On the processor so far, to the nanosecond, of its threads: those that call for so much do not end before it does.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("/proc");
        let nanos = threads.filter_map(|thread| {
            // A thread may end meanwhile.
            let figures = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            figures.split_whitespace().next()?.parse::<f64>().ok()
        });
        nanos.sum::<f64>() / 1e9
    }
}
