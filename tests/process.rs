//! The process as its operator meets it: exit codes, what it prints and writes, and how it ends.

#![allow(clippy::unwrap_used)] // in helpers: clippy spares the tests themselves only

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{Channel as Kind, *};
use participant_gateway::sandbox::{self, Sandbox, V1_CONVERSATION, V2_CONVERSATION};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use tokio_stream::StreamExt as _;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_types::StatusExt as _;

/// Far longer than anything here takes: a test that waits for ever fails.
const PATIENCE: Duration = Duration::from_secs(30);
const SERVICE: &str = "participant.v1.ParticipantService";
const ALICE: &str = "MB00000000000000000000000000000001";

type Client = ParticipantServiceClient<Channel>;

fn gateway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_participant-gateway"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Runs it to its end.
fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    gateway().args(args).envs(env.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Lines as they come.
struct Lines {
    incoming: mpsc::UnboundedReceiver<String>,
    all: Vec<String>,
}

impl Lines {
    fn of(source: impl Read + Send + 'static) -> Self {
        let (sender, incoming) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                // A test that has ended reads no more.
                let _ = sender.send(line);
            }
        });
        Self { incoming, all: Vec::new() }
    }

    /// Reads on until a line that has this in it.
    async fn until(&mut self, part: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.incoming.recv()).await;
            match line.unwrap_or_else(|_| panic!("no line has {part:?}: {:#?}", self.all)) {
                Some(line) => {
                    self.all.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                None => panic!("the process ended without a line that has {part:?}: {:#?}", self.all),
            }
        }
    }

    /// Reads to the end.
    async fn rest(&mut self) -> &[String] {
        while let Some(line) = timeout(PATIENCE, self.incoming.recv()).await.expect("the stream does not end")
        {
            self.all.push(line);
        }
        &self.all
    }

    /// Those of the process's own log lines that it wrote up to now, each a JSON object.
    fn json(&self) -> Vec<Value> {
        self.all
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Signal {
    Terminate,
    Interrupt,
}

/// A process of the test's own, killed with it.
struct Process {
    child: Child,
    out: Lines,
    err: Lines,
    directory: TempDir,
}

impl Process {
    /// `serve` on free ports.
    fn serve(flags: &[&str], env: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready.json");
        let mut command = gateway();
        command.args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]).args(flags);
        command.arg("--ready-file").arg(ready).envs(env.iter().copied());
        Self::spawn(command, directory)
    }

    fn spawn(mut command: Command, directory: TempDir) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (Lines::of(child.stdout.take().unwrap()), Lines::of(child.stderr.take().unwrap()));
        Self { child, out, err, directory }
    }

    /// Waits until it serves, and tells where.
    async fn ready(&mut self) -> Ready {
        self.err.until("serving").await;
        Ready::read(&self.directory.path().join("ready.json")).expect("it is written before the line")
    }

    fn signal(&self, signal: Signal) {
        let name = if signal == Signal::Terminate { "-TERM" } else { "-INT" };
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for the end: the exit code.
    async fn exit(&mut self) -> Option<i32> {
        self.out.rest().await;
        self.err.rest().await;
        // The streams are closed, so there is next to nothing to wait for.
        self.child.wait().unwrap().code()
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, or is to end now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Debug)]
struct Ready {
    json: Value,
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Ready {
    fn read(path: &Path) -> Option<Self> {
        let json: Value =
            serde_json::from_str(&std::fs::read_to_string(path).ok()?).expect("it is never half written");
        let address = |key: &str| json[key].as_str().unwrap().parse().unwrap();
        Some(Self { grpc: address("grpc"), admin: address("admin"), json })
    }

    async fn client(&self) -> Client {
        ParticipantServiceClient::new(self.channel().await)
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }

    async fn admin(&self, path: &str) -> u16 {
        reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap().status().as_u16()
    }

    fn embedded(&self) -> Control {
        Control::new(self.json["sandbox"].as_str().unwrap())
    }
}

/// The sandbox's control routes.
#[derive(Clone)]
struct Control(String);

impl Control {
    fn new(address: impl std::fmt::Display) -> Self {
        Self(format!("http://{address}/_sandbox"))
    }

    async fn post(&self, route: &str, body: Value) {
        let answer =
            reqwest::Client::new().post(format!("{}/{route}", self.0)).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    async fn get(&self, route: &str) -> Value {
        reqwest::get(format!("{}/{route}", self.0)).await.unwrap().json().await.unwrap()
    }

    async fn fault(&self, fault: Value) {
        self.post("faults", fault).await;
    }

    async fn held(&self, at_least: u32) {
        timeout(PATIENCE, self.get(&format!("held?at_least={at_least}"))).await.expect("nothing is held");
    }

    async fn release(&self) {
        self.post("release", json!({})).await;
    }
}

/// A sandbox that outlives the process, which it is the upstream of.
async fn lasting_sandbox() -> (String, Control, DropGuard) {
    let fake = Sandbox::bind(sandbox::Settings::default()).await.unwrap();
    let (address, end) = (fake.local_addr(), CancellationToken::new());
    tokio::spawn(fake.run(end.clone()));
    (format!("--upstream-url=http://{address}"), Control::new(address), end.drop_guard())
}

const ACCOUNT: [(&str, &str); 2] =
    [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)];

fn conversation(id: &str) -> Option<ConversationRef> {
    Some(ConversationRef { conversation_id: id.into(), ..Default::default() })
}

fn get(id: &str) -> GetParticipantRequest {
    GetParticipantRequest {
        conversation: conversation(V1_CONVERSATION),
        participant_id: id.into(),
        read_options: None,
    }
}

fn get_fresh(id: &str) -> GetParticipantRequest {
    GetParticipantRequest {
        read_options: Some(ReadOptions {
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        }),
        ..get(id)
    }
}

fn update(attributes: &str) -> UpdateParticipantRequest {
    UpdateParticipantRequest {
        conversation: conversation(V1_CONVERSATION),
        participant_id: ALICE.into(),
        participant: Some(Participant { attributes: attributes.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn create(identity: &str) -> CreateParticipantRequest {
    let address = Address { channel: Kind::Chat.into(), address: identity.into(), ..Default::default() };
    CreateParticipantRequest {
        conversation: conversation(V1_CONVERSATION),
        participant: Some(Participant { addresses: vec![address], ..Default::default() }),
        ..Default::default()
    }
}

// === The command line

#[test]
fn without_credentials_it_exits_64_and_says_what_to_set() {
    let output = run(&["serve"], &[]);
    let told = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0), "{told}");
    for name in
        ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_API_KEY", "TWILIO_API_SECRET", "--sandbox"]
    {
        assert!(told.contains(name), "{told}");
    }
}

#[test]
fn a_wrong_configuration_exits_64_with_one_line_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, "cache.tttl = \"1s\"\n").unwrap();
    let args = ["serve", "--sandbox", "--drain-delay=soon", "--config", file.to_str().unwrap()];
    let output = run(&args, &[("GATEWAY_CACHE_TTL", "-1s")]);
    let told = text(&output.stderr);
    assert_eq!((output.status.code(), told.lines().count()), (Some(64), 3), "{told}");
    for name in ["cache.tttl", "--drain-delay", "GATEWAY_CACHE_TTL"] {
        assert!(told.contains(name), "{told}");
    }
    let output = run(&["sandbox", "--listen=here"], &[]);
    assert!(output.status.code() == Some(64) && text(&output.stderr).contains("--listen"), "{output:?}");
}

#[test]
fn an_events_listener_without_an_auth_token_exits_64() {
    let key = [
        ("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID),
        ("TWILIO_API_KEY", sandbox::API_KEY_SID),
        ("TWILIO_API_SECRET", sandbox::API_KEY_SECRET),
    ];
    let flags = ["serve", "--events-listen=127.0.0.1:0", "--events-public-url=https://a.example.com/events"];
    let output = run(&flags, &key);
    let told = text(&output.stderr);
    assert_eq!((output.status.code(), told.lines().count()), (Some(64), 1), "{told}");
    assert!(told.contains("--events-listen") && told.contains("auth_token"), "{told}");
}

#[test]
fn another_address_than_loopback_exits_64_without_a_choice_of_who_may_call() {
    for env in [&ACCOUNT[..], &[]] {
        let sandbox = env.is_empty().then_some("--sandbox");
        let args: Vec<&str> = ["serve", "--grpc-listen=0.0.0.0:0"].into_iter().chain(sandbox).collect();
        let output = run(&args, env);
        let told = text(&output.stderr);
        assert_eq!((output.status.code(), told.lines().count()), (Some(64), 1), "{told}");
        for choice in ["auth.mode", "mtls", "tls.client_ca_file", "jwt", "tokens", "mesh", "open"] {
            assert!(told.contains(choice), "{told}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_has_expired_and_a_key_that_all_may_read_are_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.path().join(name));
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    std::fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let env = [("GATEWAY_TLS_CERT_FILE", &certificate), ("GATEWAY_TLS_KEY_FILE", &key)];
    let env = env.map(|(name, path)| (name, path.to_str().unwrap()));
    let mut process = Process::serve(&["--sandbox"], &env);
    let expired = process.err.until("the certificate has expired").await;
    assert!(expired.contains("2021-01-01T00:00:00Z"), "{expired}");
    let readable = process.err.until("may read the private key").await;
    assert!(readable.contains("tls.key"), "{readable}");
    process.ready().await;
    process.signal(Signal::Interrupt);
    assert_eq!(process.exit().await, Some(0));
    let secret = pair.serialize_pem();
    assert!(!process.err.rest().await.iter().any(|line| line.contains(secret.lines().nth(1).unwrap())));
}

#[test]
fn an_unknown_flag_or_command_exits_64() {
    for (args, named) in [
        (&["serve", "--no-such-flag"][..], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (&["sandbox", "--sandbox"], "--sandbox"),
        (&[], "serve"),
    ] {
        let output = run(args, &ACCOUNT);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0), "{output:?}");
        assert!(text(&output.stderr).contains(named), "{output:?}");
    }
}

#[test]
fn help_exits_0_and_tells_every_flag() {
    let output = run(&["serve", "--help"], &[]);
    let told = text(&output.stdout);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    for setting in participant_gateway::config::SETTINGS {
        let Some(flag) = setting.flag else { continue };
        assert!(told.contains(&format!("--{flag}")) && told.contains(setting.env), "{flag}: {told}");
    }
    for args in [&["--help"][..], &["--version"], &["sandbox", "--help"], &["check-config", "--help"]] {
        assert_eq!(run(args, &[]).status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn check_config_reports_all_and_shows_no_secret() {
    let secret = ("GATEWAY_PAGE_TOKEN_KEY", "planted-page-token-key");
    let env =
        [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", "planted-auth-token"), secret];
    let good = run(&["check-config", "--drain-delay=1s"], &env);
    assert_eq!((good.status.code(), good.stderr.len()), (Some(0), 0), "{good:?}");
    let bad = run(
        &["check-config", "--drain-delay=soon"],
        &[env[0], env[1], ("GATEWAY_PAGE_TOKEN_KEY", "planted")],
    );
    assert_eq!(bad.status.code(), Some(64), "{bad:?}");
    for (output, delay) in [(&good, "1s"), (&bad, "soon")] {
        let told = text(&output.stdout);
        for setting in participant_gateway::config::SETTINGS {
            assert!(
                told.lines().any(|line| line.starts_with(setting.key)),
                "{} is not in {told}",
                setting.key
            );
        }
        assert!(told.contains(&format!("drain.delay = {delay}  [--drain-delay]")), "{told}");
        assert!(!format!("{told}{}", text(&output.stderr)).contains("planted"), "{output:?}");
    }
    let problems = text(&bad.stderr);
    assert!(problems.contains("--drain-delay") && problems.contains("GATEWAY_PAGE_TOKEN_KEY"), "{problems}");
}

// === The start

#[tokio::test]
async fn the_ready_file_appears_whole_with_the_bound_addresses() {
    let mut gateway = Process::serve(&["--sandbox"], &[]);
    let path = gateway.directory.path().join("ready.json");
    let patience = Instant::now() + PATIENCE;
    // As a script does that waits for the name.
    let ready = loop {
        if let Some(ready) = Ready::read(&path) {
            break ready;
        }
        assert!(Instant::now() < patience && gateway.is_running(), "it never appears");
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let keys: Vec<_> = ready.json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["admin", "events", "grpc", "sandbox"]);
    let events: SocketAddr = ready.json["events"].as_str().unwrap().parse().unwrap();
    assert!(events.port() != 0 && TcpStream::connect(events).await.is_ok());
    assert!(ready.grpc.port() != 0 && ready.admin.port() != 0);
    // It serves from that moment on.
    ready.client().await.get_participant(get("alice")).await.unwrap();
    assert_eq!((ready.admin("/livez").await, ready.admin("/readyz").await), (200, 200));
    assert_eq!(ready.embedded().get("requests").await["total"], 1);
    let files: Vec<_> =
        std::fs::read_dir(gateway.directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["ready.json"]);
    // The addresses are logged, too.
    let line: Value = serde_json::from_str(&gateway.err.until("serving").await).unwrap();
    for listener in ["grpc", "admin", "events", "sandbox"] {
        assert_eq!(line[listener], ready.json[listener], "{listener}");
    }
}

/// As many as the machine allows are asked for, so that it is the gateway that leaves none.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_crash_leaves_no_core_dump() {
    use std::os::unix::process::ExitStatusExt as _;
    let directory = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -S -c $(ulimit -H -c) && exec \"$@\"", "sh"]);
    shell.arg(env!("CARGO_BIN_EXE_participant-gateway"));
    shell.args(["serve", "--sandbox", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]);
    shell.arg("--ready-file").arg(directory.path().join("ready.json")).current_dir(&directory);
    let mut gateway = Process::spawn(shell, directory);
    let ready = gateway.ready().await;
    let pid = gateway.child.id();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
    // It still counts itself.
    let metrics =
        reqwest::get(format!("http://{}/metrics", ready.admin)).await.unwrap().text().await.unwrap();
    for name in ["process_open_fds", "process_max_fds", "process_resident_memory_bytes", "process_threads"] {
        assert!(metrics.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {metrics}");
    }
    assert!(Command::new("kill").args(["-ABRT", &pid.to_string()]).status().unwrap().success());
    gateway.exit().await;
    let status = gateway.child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}

/// How often these bytes stand in what the process has written to its memory; `None` for those who may not read it.
#[cfg(target_os = "linux")]
fn in_memory(pid: u32, bytes: &str) -> Option<usize> {
    use std::os::unix::fs::FileExt as _;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let writable = maps.lines().filter_map(|map| map.split_once(" rw")?.0.split_once('-'));
    let count = |(from, to): (&str, &str)| {
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut content = vec![0; usize::try_from(to - from).unwrap()];
        // What was unmapped meanwhile holds nothing.
        let length = memory.read_at(&mut content, from).unwrap_or_default();
        content[..length].windows(bytes.len()).filter(|window| *window == bytes.as_bytes()).count()
    };
    Some(writable.map(count).sum())
}

/// Three are kept: the one in use and the two before it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_secret_that_is_no_longer_kept_is_not_in_memory() {
    let (upstream, control, _end) = lasting_sandbox().await;
    // Whoever frees memory writes over its beginning.
    let secrets: Vec<_> = (0..5).map(|at| format!("{:064}planted-{at}-of-five-auth-tokens", 0)).collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let accept = async |secret: &String| {
        let change = json!({ "account": sandbox::ACCOUNT_SID, "auth_tokens": [secret] });
        let put = reqwest::Client::new().put(format!("{}/credentials", control.0)).json(&change);
        assert_eq!(put.send().await.unwrap().status(), 204);
        std::fs::write(&file, secret).unwrap();
    };
    accept(&secrets[0]).await;
    let env = [ACCOUNT[0], ("TWILIO_AUTH_TOKEN_FILE", file.to_str().unwrap())];
    let mut gateway = Process::serve(&[&upstream], &env);
    let mut client = gateway.ready().await.client().await;
    for secret in &secrets {
        accept(secret).await;
        client.get_participant(get_fresh("alice")).await.unwrap();
    }
    for (at, secret) in secrets.iter().enumerate() {
        let Some(count) = in_memory(gateway.child.id(), &secret[64..]) else { return };
        assert_eq!(count > 0, at >= 2, "{secret}: {count}");
    }
}

#[tokio::test]
async fn without_a_sandbox_the_ready_file_says_so() {
    let (upstream, _, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream], &ACCOUNT);
    let ready = gateway.ready().await;
    assert!(ready.json["sandbox"].is_null() && ready.json["events"].is_null(), "{}", ready.json);
    ready.client().await.get_participant(get("alice")).await.unwrap();
}

#[tokio::test]
async fn a_ready_file_that_cannot_be_written_is_a_failure() {
    let output = run(
        &[
            "serve",
            "--sandbox",
            "--grpc-listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--ready-file=/dev/null/ready",
        ],
        &[],
    );
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("ready file"), "{output:?}");
}

/// The words of a shell command, without its quotes.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (at, part) in command.split('\'').enumerate() {
        if at % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        for (at, word) in part.split(' ').enumerate() {
            if at > 0 {
                words.push(String::new());
            }
            words.last_mut().unwrap().push_str(word);
        }
    }
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

#[tokio::test]
async fn the_commands_that_it_prints_work_as_they_stand() {
    let mut gateway = Process::serve(&["--sandbox"], &[]);
    let ready = gateway.ready().await;
    gateway.out.until("Stop with").await;
    let commands: Vec<_> =
        gateway.out.all.iter().filter(|line| line.trim_start().starts_with("grpcurl ")).collect();
    assert_eq!(commands.len(), 3, "{:?}", gateway.out.all);
    let mut methods = Vec::new();
    for command in commands {
        let words = words(command);
        let [grpcurl, plaintext, data, request, address, method] = &words[..] else { panic!("{words:?}") };
        assert_eq!(
            [grpcurl.as_str(), plaintext, data, address],
            ["grpcurl", "-plaintext", "-d", &ready.grpc.to_string()]
        );
        let request: Value = serde_json::from_str(request).unwrap();
        let mut client = ready.client().await;
        let conversation = conversation(request["conversation"]["conversation_id"].as_str().unwrap());
        let told = match method.strip_prefix("participant.v1.ParticipantService/").unwrap() {
            "GetParticipant" => {
                let participant_id = request["participant_id"].as_str().unwrap().into();
                let get = GetParticipantRequest { conversation, participant_id, read_options: None };
                client.get_participant(get).await.map(|_| ())
            }
            "ListParticipants" => {
                let list = ListParticipantsRequest { conversation, ..Default::default() };
                client.list_participants(list).await.map(|_| ())
            }
            "UpdateParticipant" => {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                let update = UpdateParticipantRequest {
                    conversation,
                    participant_id: text(&request["participant_id"]),
                    participant: Some(Participant {
                        display_name: text(&request["participant"]["display_name"]),
                        ..Default::default()
                    }),
                    update_mask: Some(prost_types::FieldMask {
                        paths: vec![text(&request["update_mask"]["paths"][0])],
                    }),
                    ..Default::default()
                };
                client.update_participant(update).await.map(|_| ())
            }
            other => panic!("{other} is not among the commands' methods"),
        };
        told.unwrap_or_else(|error| panic!("{method}: {error}"));
        methods.push(method.clone());
    }
    methods.dedup();
    assert_eq!(methods.len(), 3);
}

#[tokio::test]
async fn a_port_in_use_is_a_failure_that_names_address_and_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--grpc-listen", "--admin-listen"), ("--admin-listen", "--grpc-listen")] {
        let output = run(&["serve", "--sandbox", flag, &address, other, "127.0.0.1:0"], &[]);
        let told = text(&output.stderr);
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        assert!(told.contains(&address) && told.contains(flag), "{told}");
    }
    let output = run(&["sandbox", "--listen", &address], &[]);
    let told = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && told.contains(&address) && told.contains("--listen"),
        "{told}"
    );
}

#[tokio::test]
async fn the_sandbox_serves_alone_and_ends_with_a_signal() {
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let mut command = gateway();
        command.args(["sandbox", "--listen=127.0.0.1:0", "--fault=status=503,times=1"]);
        let mut fake = Process::spawn(command, tempfile::tempdir().unwrap());
        let line = fake.out.until("http://").await;
        let base = &line[line.find("http://").unwrap()..];
        let http = reqwest::Client::new();
        for expected in [503, 200] {
            let request = http.get(format!("{base}/v1/Conversations/{V1_CONVERSATION}/Participants"));
            let answer =
                request.basic_auth(sandbox::ACCOUNT_SID, Some(sandbox::AUTH_TOKEN)).send().await.unwrap();
            assert_eq!(answer.status(), expected);
        }
        fake.signal(signal);
        assert_eq!(fake.exit().await, Some(0), "{signal:?}");
    }
}

// === What it says

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("every error carries an ErrorInfo").reason
}

#[tokio::test]
async fn a_failed_call_is_one_json_line_and_nothing_of_the_caller_is_in_it() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let filter = ("GATEWAY_LOG_FILTER", "info,participant_gateway=trace");
    let key = ("GATEWAY_PAGE_TOKEN_KEY", "planted-page-token-key");
    let mut gateway = Process::serve(&[&upstream], &[ACCOUNT[0], ACCOUNT[1], filter, key]);
    let ready = gateway.ready().await;
    let mut client = ready.client().await;
    let mut reasons = BTreeMap::<String, usize>::new();
    let mut note = |status: Status| *reasons.entry(reason(&status)).or_default() += 1;

    note(client.get_participant(get("planted-identity@example.com")).await.unwrap_err());
    note(client.get_participant(get("planted\nidentity")).await.unwrap_err());
    let list = ListParticipantsRequest {
        conversation: conversation(V1_CONVERSATION),
        page_token: "planted-page-token".into(),
        ..Default::default()
    };
    note(client.list_participants(list).await.unwrap_err());
    // The sandbox repeats what it was sent in the text of its error.
    client.create_participant(create("planted-identity")).await.unwrap();
    note(client.create_participant(create("planted-identity")).await.unwrap_err());
    let body = json!({ "code": 20001, "message": "planted-body", "status": 400, "more_info": "https://planted.example" });
    control
        .fault(json!({ "match": { "method": "POST" }, "status": 400, "body": body.to_string(), "times": 1 }))
        .await;
    note(client.update_participant(update(r#"{"a":"planted-attributes"}"#)).await.unwrap_err());
    note(client.update_participant(update("planted-attributes, no JSON")).await.unwrap_err());
    control.fault(json!({ "match": { "method": "POST" }, "cut": "before", "times": 1 })).await;
    note(client.update_participant(update(r#"{"a":"planted-attributes"}"#)).await.unwrap_err());
    control.fault(json!({ "match": { "method": "GET" }, "body": "{\"sid\":7,\"planted\":\"planted-body\"", "times": 1 })).await;
    note(client.get_participant(get_fresh("planted-identity")).await.unwrap_err());
    let named = || CreateParticipantRequest {
        conversation: conversation(V2_CONVERSATION),
        participant: Some(Participant {
            display_name: "planted-name".into(),
            addresses: vec![Address {
                channel: Kind::Email.into(),
                address: "planted-address@example.com".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    client.create_participant(named()).await.unwrap();
    note(client.create_participant(named()).await.unwrap_err());
    // A call that succeeds is no line.
    client.get_participant(get("planted-identity")).await.unwrap();
    client.update_participant(update(r#"{"a":"planted-attributes"}"#)).await.unwrap();

    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
    let mut logged = BTreeMap::<String, usize>::new();
    for line in gateway.err.json() {
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        // Of writes there are records beside.
        let Some(code) = line["rpc.response.status_code"].as_str().filter(|_| line["target"] != "audit")
        else {
            continue;
        };
        assert!(code != "OK" && line["duration_ms"].is_u64() && line["message"].is_string(), "{line}");
        assert!(line["rpc.method"].as_str().unwrap().starts_with(SERVICE), "{line}");
        *logged.entry(line["reason"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(logged, reasons);
    assert!(reasons.len() >= 6, "{reasons:?}");
    let credentials = STANDARD.encode(format!("{}:{}", sandbox::ACCOUNT_SID, sandbox::AUTH_TOKEN));
    for line in gateway.out.all.iter().chain(&gateway.err.all) {
        assert!(!line.contains("planted"), "{line}");
        assert!(!line.contains(&credentials), "{line}");
    }
}

/// Whoever reads the log may go away, as may a terminal.
#[tokio::test]
async fn it_serves_on_when_nobody_reads_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ready.json");
    let mut command = gateway();
    command.args(["serve", "--sandbox", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]);
    command.arg("--ready-file").arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    let patience = Instant::now() + PATIENCE;
    let ready = loop {
        if let Some(ready) = Ready::read(&path) {
            break Some(ready);
        }
        if Instant::now() > patience || child.try_wait().unwrap().is_some() {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let Some(ready) = ready else { panic!("it does not start: {:?}", child.wait()) };
    let mut client = ready.client().await;
    for _ in 0..10 {
        // Each of them is a line that cannot be written.
        assert_eq!(client.get_participant(get("nobody")).await.unwrap_err().code(), Code::NotFound);
    }
    client.get_participant(get("alice")).await.unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let code = tokio::task::spawn_blocking(move || child.wait().unwrap().code()).await.unwrap();
    assert_eq!(code, Some(0));
}

/// By one family of addresses alone, and by both.
#[tokio::test]
async fn it_listens_on_ipv6_and_on_both_families() {
    for (listen, hosts) in [("[::1]:0", &["[::1]"][..]), ("[::]:0", &["[::1]", "127.0.0.1"])] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = gateway();
        command.args(["serve", "--sandbox", "--grpc-listen", listen, "--admin-listen", listen]);
        command.args(["--auth-mode", "open"]).arg("--ready-file").arg(directory.path().join("ready.json"));
        let mut process = Process::spawn(command, directory);
        let ready = process.ready().await;
        for host in hosts {
            let at = |port| format!("http://{host}:{port}");
            let channel = Endpoint::from_shared(at(ready.grpc.port())).unwrap().connect().await.unwrap();
            ParticipantServiceClient::new(channel).get_participant(get("alice")).await.unwrap();
            let answer = reqwest::get(at(ready.admin.port()) + "/livez").await.unwrap();
            assert_eq!(answer.status(), 200, "{host} of {listen}");
        }
    }
}

// === Twilio's certificate

/// Certificates of one authority, which the process trusts, and of none.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    /// For this name and these years; signed by itself where there is no authority.
    fn certificate(authority: Option<&Self>, name: &str, years: std::ops::Range<i32>) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let certificate = match authority {
            Some(authority) => params.signed_by(&key, &authority.0),
            None => params.self_signed(&key),
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.unwrap().der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What a peer in Twilio's place saw of a connection: the protocols that were offered, and what came in, decrypted; nothing
/// where the handshake failed.
type Seen = (Vec<String>, Option<String>);

/// A peer behind TLS that answers every request with an empty participant, and tells what it saw.
async fn tls_peer(acceptor: TlsAcceptor) -> (SocketAddr, mpsc::UnboundedReceiver<Seen>, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, end) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (sender, seen) = mpsc::unbounded_channel();
    let accepting = async move {
        while let Ok((connection, _)) = listener.accept().await {
            let hello = LazyConfigAcceptor::new(Acceptor::default(), connection).await.unwrap();
            let protocols = hello.client_hello().alpn().into_iter().flatten();
            let protocols = protocols.map(text).collect();
            let request = match hello.into_stream(acceptor.config().clone()).await {
                Ok(connection) => Some(answer_once(connection).await),
                Err(_) => None,
            };
            sender.send((protocols, request)).unwrap();
        }
    };
    tokio::spawn(end.clone().run_until_cancelled_owned(accepting));
    (address, seen, end.drop_guard())
}

async fn answer_once(mut connection: TlsStream<TcpStream>) -> String {
    let mut received = Vec::new();
    while !received.windows(4).any(|four| four == b"\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut received).await.unwrap(), 0);
    }
    let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    connection.write_all(answer).await.unwrap();
    connection.shutdown().await.unwrap();
    text(&received)
}

/// The process trusts the authority of a file, as it trusts the system's: the environment says where that is.
#[tokio::test]
async fn a_certificate_that_is_not_twilios_is_told_no_credentials() {
    let authority = Authority::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority.0.pem()).unwrap();
    let trusted = Some(&authority);
    for (what, peer, is_good) in [
        ("good", Authority::certificate(trusted, "localhost", 2020..2100), true),
        ("expired", Authority::certificate(trusted, "localhost", 2020..2021), false),
        ("not valid yet", Authority::certificate(trusted, "localhost", 2099..2100), false),
        ("another host's", Authority::certificate(trusted, "conversations.twilio.com", 2020..2100), false),
        ("self-signed", Authority::certificate(None, "localhost", 2020..2100), false),
        ("a stranger's", Authority::certificate(Some(&Authority::new()), "localhost", 2020..2100), false),
    ] {
        let (address, mut seen, _end) = tls_peer(peer).await;
        let upstream = format!("--upstream-url=https://localhost:{}", address.port());
        let trust = [("SSL_CERT_FILE", file.path().to_str().unwrap()), ("GATEWAY_UPSTREAM_MAX_RETRIES", "0")];
        let mut process = Process::serve(&[&upstream], &[&ACCOUNT[..], &trust].concat());
        let mut client = process.ready().await.client().await;
        for conversation_id in [V1_CONVERSATION, V2_CONVERSATION] {
            let get = GetParticipantRequest { conversation: conversation(conversation_id), ..get_fresh("x") };
            let read = client.get_participant(get).await.map(|_| ()).map_err(|status| reason(&status));
            let (protocols, request) = seen.recv().await.unwrap();
            assert_eq!(protocols, ["http/1.1"]);
            assert_eq!((read.is_ok(), request.is_some()), (is_good, is_good), "{what}: {read:?}");
            assert!(request.is_none_or(|head| head.contains("authorization: Basic ")), "{what}");
            assert!(read.is_ok() || read == Err("UPSTREAM_UNAVAILABLE".into()), "{what}: {read:?}");
        }
        let created = client.create_participant(create("dana")).await.map_err(|status| status.code());
        assert_eq!(created.map(|_| ()), if is_good { Ok(()) } else { Err(Code::Unavailable) }, "{what}");
    }
}

// === The end

async fn serving(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status()
}

/// Waits until the health of the service is told to be this.
async fn until_health(watch: &mut tonic::Streaming<HealthCheckResponse>, expected: ServingStatus) {
    loop {
        let told =
            timeout(PATIENCE, watch.message()).await.expect("health does not change").unwrap().unwrap();
        if told.status() == expected {
            return;
        }
    }
}

#[tokio::test]
async fn after_sigterm_it_is_not_ready_and_serves_on() {
    // The delay is longer than the test: what is seen here, is seen during it.
    let mut gateway = Process::serve(&["--sandbox", "--drain-delay=10m"], &[]);
    let ready = gateway.ready().await;
    let channel = ready.channel().await;
    let watch = HealthCheckRequest { service: SERVICE.into() };
    let mut watch = HealthClient::new(channel.clone()).watch(watch).await.unwrap().into_inner();
    until_health(&mut watch, ServingStatus::Serving).await;
    assert_eq!(serving(&channel, "").await, ServingStatus::Serving);

    gateway.signal(Signal::Terminate);
    until_health(&mut watch, ServingStatus::NotServing).await;
    assert_eq!(serving(&channel, SERVICE).await, ServingStatus::NotServing);
    assert_eq!(serving(&channel, "").await, ServingStatus::Serving);
    gateway.err.until("not ready").await;
    assert_eq!((ready.admin("/readyz").await, ready.admin("/livez").await), (503, 200));
    // Calls are served, on old connections and on new ones.
    ParticipantServiceClient::new(channel).get_participant(get("alice")).await.unwrap();
    ready.client().await.get_participant(get("alice")).await.unwrap();
    assert!(gateway.is_running());

    gateway.signal(Signal::Terminate);
    let code = gateway.exit().await;
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}

#[tokio::test]
async fn after_the_delay_it_drains_and_exits_0() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-delay=300ms"], &[]);
    let ready = gateway.ready().await;
    let mut client = ready.client().await;
    client.get_participant(get("alice")).await.unwrap();
    let began = Instant::now();
    gateway.signal(Signal::Terminate);
    assert_eq!(gateway.exit().await, Some(0));
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(gateway.err.all.last().unwrap().contains("drained"), "{:#?}", gateway.err.all);
}

#[tokio::test]
async fn sigint_waits_for_no_balancer() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-delay=10m"], &[]);
    let _idle = gateway.ready().await.client().await;
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
}

/// Begins a read that the sandbox holds.
async fn held_read(ready: &Ready, control: &Control) -> JoinHandle<Result<(), Status>> {
    control.fault(json!({ "match": { "method": "GET" }, "hold": true, "times": 1 })).await;
    let mut client = ready.client().await;
    let call = tokio::spawn(async move { client.get_participant(get("bob")).await.map(|_| ()) });
    control.held(1).await;
    call
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for second in [Signal::Terminate, Signal::Interrupt] {
        let mut gateway = Process::serve(&["--sandbox", "--drain-delay=0s", "--drain-timeout=10m"], &[]);
        let ready = gateway.ready().await;
        let call = held_read(&ready, &ready.embedded()).await;
        gateway.signal(Signal::Terminate);
        gateway.err.until("draining").await;
        gateway.signal(second);
        let code = gateway.exit().await;
        assert_eq!(code, Some(1), "{second:?}");
        let told = gateway.err.all.iter().any(|line| line.contains("second signal"));
        assert!(told, "{:#?}", gateway.err.all);
        assert!(call.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_call_in_flight_is_answered_before_the_exit() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream], &ACCOUNT);
    let ready = gateway.ready().await;
    let call = held_read(&ready, &control).await;
    gateway.signal(Signal::Interrupt);
    gateway.err.until("draining").await;
    control.release().await;
    call.await.unwrap().unwrap();
    assert_eq!(gateway.exit().await, Some(0));
}

#[tokio::test]
async fn a_stuck_call_is_cut_and_counted() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream, "--drain-timeout=300ms"], &ACCOUNT);
    let ready = gateway.ready().await;
    let call = held_read(&ready, &control).await;
    let began = Instant::now();
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(call.await.unwrap().is_err());
    let lines = gateway.err.json();
    let cut = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with("drain timeout"));
    let cut = cut.unwrap_or_else(|| panic!("{lines:#?}"));
    assert_eq!((&cut["level"], &cut["calls"]), (&json!("WARN"), &json!(1)), "{cut}");
}

#[tokio::test]
async fn a_connection_that_never_speaks_does_not_hold_the_exit() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-timeout=10m"], &[]);
    let ready = gateway.ready().await;
    let mut silent = TcpStream::connect(ready.grpc).await.unwrap();
    // It is accepted by now: the next one is served.
    ready.client().await.get_participant(get("alice")).await.unwrap();
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
    // Nothing but perhaps the server's preface, and then the end.
    let mut received = Vec::new();
    timeout(PATIENCE, silent.read_to_end(&mut received)).await.expect("it is open").ok();
    assert!(gateway.err.all.last().unwrap().contains("drained"), "{:#?}", gateway.err.all);
}

#[tokio::test]
async fn a_silent_connection_to_the_admin_listener_does_not_hold_the_exit() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-timeout=10m"], &[]);
    let ready = gateway.ready().await;
    let _silent = TcpStream::connect(ready.admin).await.unwrap();
    assert_eq!(ready.admin("/livez").await, 200);
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
}

#[tokio::test]
async fn whoever_watches_the_health_does_not_hold_the_exit() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-timeout=10m"], &[]);
    let ready = gateway.ready().await;
    let mut health = HealthClient::new(ready.channel().await);
    let mut watches = Vec::new();
    for service in [SERVICE, ""] {
        let request = HealthCheckRequest { service: service.into() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        until_health(&mut watch, ServingStatus::Serving).await;
        watches.push(watch);
    }
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
    assert!(gateway.err.all.last().unwrap().contains("drained"), "{:#?}", gateway.err.all);
}

#[tokio::test]
async fn an_open_reflection_stream_does_not_hold_the_exit() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-timeout=10m"], &[]);
    let ready = gateway.ready().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    // A tool that is left open asks once, and keeps its side of the stream for more.
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut client = ServerReflectionClient::new(ready.channel().await);
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
}

/// Sends a create that the sandbox holds, and goes away.
async fn orphaned_create(ready: &Ready, control: &Control) {
    control.fault(json!({ "match": { "method": "POST" }, "hold": true, "times": 1 })).await;
    let mut client = ready.client().await;
    let call = tokio::spawn(async move { client.create_participant(create("orphan")).await.map(|_| ()) });
    control.held(1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_write_whose_caller_has_gone_is_awaited() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream, "--drain-timeout=10m"], &ACCOUNT);
    let ready = gateway.ready().await;
    orphaned_create(&ready, &control).await;
    gateway.signal(Signal::Interrupt);
    gateway.err.until("draining").await;
    let drained = timeout(Duration::from_millis(300), gateway.err.until("drained")).await;
    assert!(drained.is_err() && gateway.is_running(), "it does not wait: {:#?}", gateway.err.all);
    control.release().await;
    assert_eq!(gateway.exit().await, Some(0));
    let log = control.get("requests").await;
    assert_eq!((&log["total"], &log["last"][0]["method"]), (&json!(1), &json!("POST")), "{log}");
    let lines = gateway.err.json();
    let gone = lines.iter().find(|line| line["rpc.response.status_code"] == "CANCELLED");
    let gone = gone.unwrap_or_else(|| panic!("{lines:#?}"));
    assert!(gone["message"].as_str().unwrap().contains("went away"), "{gone}");
    // How it ended is for the log alone to tell.
    let ended = |line: &Value| {
        line["message"].as_str().is_some_and(|text| text.contains("after its caller had gone"))
    };
    assert!(lines.iter().any(ended), "{lines:#?}");
    // It took effect: another process finds it.
    let mut other = Process::serve(&[&upstream], &ACCOUNT);
    other.ready().await.client().await.get_participant(get("orphan")).await.unwrap();
}

#[tokio::test]
async fn a_write_that_outlasts_the_drain_is_cut_and_counted() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream, "--drain-timeout=300ms"], &ACCOUNT);
    let ready = gateway.ready().await;
    orphaned_create(&ready, &control).await;
    gateway.signal(Signal::Interrupt);
    assert_eq!(gateway.exit().await, Some(0));
    let lines = gateway.err.json();
    let cut = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with("drain timeout"));
    assert_eq!(cut.unwrap_or_else(|| panic!("{lines:#?}"))["writes_and_loads"], 1);
}

/// What the callers of the load saw.
#[derive(Default)]
struct Load {
    answered: AtomicU64,
    failed: Mutex<Vec<(SystemTime, Status)>>,
}

impl Load {
    fn note(&self, result: Result<(), Status>) {
        match result {
            Ok(()) => {
                self.answered.fetch_add(1, Ordering::SeqCst);
            }
            Err(status) => self.failed.lock().unwrap().push((SystemTime::now(), status)),
        }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }
}

/// When a log line was written.
fn written(line: &str) -> SystemTime {
    let line: Value = serde_json::from_str(line).unwrap();
    humantime::parse_rfc3339(line["timestamp"].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_no_accepted_call() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream, "--drain-delay=500ms"], &ACCOUNT);
    let ready = gateway.ready().await;
    let (load, mut callers) = (Arc::new(Load::default()), JoinSet::new());
    let (gone, end) = (CancellationToken::new(), Instant::now() + PATIENCE);
    for connection in 0..8 {
        let client = ready.client().await;
        for caller in 0..4 {
            let (mut client, load, gone) = (client.clone(), load.clone(), gone.clone());
            callers.spawn(async move {
                // Until the process is gone; a caller that cannot connect does not spin.
                while !gone.is_cancelled() && Instant::now() < end {
                    let result = if caller % 2 == 0 {
                        client.get_participant(get_fresh("alice")).await.map(|_| ())
                    } else {
                        client
                            .update_participant(update(&format!("{{\"by\":{connection}}}")))
                            .await
                            .map(|_| ())
                    };
                    let failed = result.is_err();
                    load.note(result);
                    if failed {
                        let _ = timeout(Duration::from_millis(20), gone.cancelled()).await;
                    }
                }
            });
        }
    }
    while load.answered() < 500 {
        assert!(Instant::now() < end, "there is no load");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gateway.signal(Signal::Terminate);
    gateway.err.until("serving on").await;
    let at_sigterm = load.answered();
    let draining = written(&gateway.err.until("draining").await);
    let at_goaway = load.answered();
    let code = gateway.exit().await;
    gone.cancel();
    callers.join_all().await;

    let (answered, failed) = (load.answered(), std::mem::take(&mut *load.failed.lock().unwrap()));
    let early = failed.iter().filter(|(at, _)| *at < draining).count();
    // What the client's own transport says has a source; what the gateway says comes without.
    let refused = failed.iter().filter(|(_, status)| std::error::Error::source(status).is_none()).count();
    let received = control.get("requests").await["total"].as_u64().unwrap();
    let lost = received.abs_diff(answered);
    println!(
        "{answered} calls answered ({at_sigterm} before SIGTERM, {} during the delay, {} after), {} found no \
         connection, {refused} refused, {early} failed before the drain, {lost} lost",
        at_goaway - at_sigterm,
        answered - at_goaway,
        failed.len() - refused,
    );
    assert_eq!(code, Some(0), "{:#?}", gateway.err.all);
    assert_eq!((early, refused), (0, 0), "{failed:#?}");
    // Each call costs one request: one that got as far as the upstream has been answered.
    assert_eq!(lost, 0, "{received} requests were received");
    assert!(at_goaway > at_sigterm, "it does not serve during the delay");
    assert!(gateway.err.all.last().unwrap().contains("drained"), "{:#?}", gateway.err.all);
}

// === Files

/// The processor's time that it has used, in clock ticks of 10 ms.
fn ticks(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.child.id())).unwrap();
    // After the name, which may hold anything, in parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn without_files_it_waits_and_goes_on_as_soon_as_there_are_some() {
    const FILES: usize = 64;
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready.json");
    let mut command = Command::new("sh");
    command.env_clear().stdin(Stdio::null()).envs(ACCOUNT);
    let (upstream, _control, _end) = lasting_sandbox().await;
    let script = format!("ulimit -n {FILES} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_participant-gateway"), "serve", &upstream]);
    command.args(["--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--ready-file"]).arg(&ready);
    let mut gateway = Process::spawn(command, directory);
    let ready = gateway.ready().await;
    let mut client = ready.client().await;
    client.get_participant(get(ALICE)).await.unwrap();

    // The gRPC listener takes half of the files at most; here the rest is taken, too.
    let mut taken = Vec::new();
    for _ in 0..2 * FILES {
        taken.push(TcpStream::connect(ready.admin).await.unwrap());
    }
    let files = format!("/proc/{}/fd", gateway.child.id());
    let all_taken = async {
        while std::fs::read_dir(&files).unwrap().count() < FILES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, all_taken).await.expect("the admin listener takes what there is");
    let mut waiting = TcpStream::connect(ready.grpc).await.unwrap();
    gateway.err.until("gRPC listener cannot accept").await;
    let (before, began) = (ticks(&gateway), Instant::now());
    while began.elapsed() < Duration::from_secs(1) {
        client.get_participant(get(ALICE)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let used = ticks(&gateway) - before;
    assert!(used < 30, "it used {used} ticks of a hundred");

    drop(taken);
    // The one that waited is accepted, and told the settings.
    timeout(PATIENCE, waiting.read_u8()).await.expect("it is accepted").unwrap();
    ready.client().await.get_participant(get(ALICE)).await.unwrap();
    gateway.err.until("accepts connections again").await;
}

// === The probe

const NO_CONVERSATION: [&str; 2] =
    ["CH99999999999999999999999999999999", "conv_conversation_99999999999999999999999999"];

/// Off this thread, on which the sandbox may run that the gateway asks meanwhile.
async fn probe(address: SocketAddr, flags: &[&str]) -> Output {
    let mut command = gateway();
    command.args(["probe", "--address", &address.to_string()]).args(flags);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The one step that failed, as it is told.
fn failed_step(output: &Output) -> String {
    let told = text(&output.stderr);
    assert_eq!((output.status.code(), told.matches("FAILED  ").count()), (Some(1), 1), "{output:?}");
    assert!(told.contains(" ms)") && told.contains("next: "), "{told}");
    told
}

#[tokio::test]
async fn a_probe_takes_every_step_and_reads_past_the_cache() {
    let (upstream, control, _end) = lasting_sandbox().await;
    let mut gateway = Process::serve(&[&upstream], &ACCOUNT);
    let ready = gateway.ready().await;
    let bare = text(&probe(ready.grpc, &[]).await.stdout);
    assert_eq!(bare.lines().count(), 4, "{bare}");
    assert_eq!(control.get("requests").await["total"], 0);
    for (at, (conversation, version)) in
        [(V1_CONVERSATION, "v1"), (V2_CONVERSATION, "v2"), (V1_CONVERSATION, "v1")].into_iter().enumerate()
    {
        let read = ["--conversation", conversation];
        let named = ["--api-version", version, "--account-id", sandbox::ACCOUNT_SID];
        for (flags, nth) in
            [(&read[..], 1), (&[read, [named[0], named[1]], [named[2], named[3]]].concat(), 2)]
        {
            let output = probe(ready.grpc, flags).await;
            let told = text(&output.stdout);
            assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{told}");
            assert_eq!(told.lines().filter(|line| line.ends_with(" ms)")).count(), 5, "{told}");
            let steps =
                ["connection", "health of \"\"", SERVICE, "reflection", "ListParticipants: 1 from Twilio"];
            for (line, step) in told.lines().zip(steps) {
                assert!(line.starts_with("ok ") && line.contains(step), "{told}");
            }
            assert_eq!(control.get("requests").await["total"], 2 * at + nth);
        }
    }
}

#[tokio::test]
async fn a_probe_finds_nothing_where_nothing_listens() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = probe(free, &[]).await;
    assert!(failed_step(&output).contains("connection: no connection: "), "{output:?}");
    assert!(failed_step(&output).contains("refused") && output.stdout.is_empty(), "{output:?}");
}

#[tokio::test]
async fn a_probe_tells_another_server_from_a_gateway() {
    let mut gateway = Process::serve(&["--sandbox"], &[]);
    let ready = gateway.ready().await;
    assert!(failed_step(&probe(ready.admin, &[]).await).contains("health of \"\": "));
}

#[tokio::test]
async fn a_probe_fails_while_the_gateway_drains() {
    let mut gateway = Process::serve(&["--sandbox", "--drain-delay=10m"], &[]);
    let ready = gateway.ready().await;
    gateway.signal(Signal::Terminate);
    gateway.err.until("not ready").await;
    let output = probe(ready.grpc, &["--conversation", V1_CONVERSATION]).await;
    assert!(failed_step(&output).contains(&format!("health of {SERVICE:?}: NOT_SERVING")), "{output:?}");
    assert!(text(&output.stdout).contains("health of \"\": SERVING"), "{output:?}");
}

#[tokio::test]
async fn an_unknown_conversation_passes_a_probe_only_where_it_is_expected() {
    let mut gateway = Process::serve(&["--sandbox"], &[]);
    let ready = gateway.ready().await;
    for (none, some) in NO_CONVERSATION.into_iter().zip([V1_CONVERSATION, V2_CONVERSATION]) {
        let told = failed_step(&probe(ready.grpc, &["--conversation", none]).await);
        assert!(told.contains("ListParticipants: NOT_FOUND, CONVERSATION_NOT_FOUND: "), "{told}");
        let output = probe(ready.grpc, &["--conversation", none, "--expect-not-found"]).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stdout).contains("no such conversation, as expected"), "{output:?}");
        let told = failed_step(&probe(ready.grpc, &["--conversation", some, "--expect-not-found"]).await);
        assert!(told.contains("leave --expect-not-found out"), "{told}");
    }
}

#[tokio::test]
async fn expecting_no_conversation_excuses_nothing_else() {
    let (upstream, _, _end) = lasting_sandbox().await;
    let wrong = [ACCOUNT[0], ("TWILIO_AUTH_TOKEN", "planted-auth-token")];
    let mut gateway = Process::serve(&[&upstream], &wrong);
    let ready = gateway.ready().await;
    for none in NO_CONVERSATION {
        let told = failed_step(&probe(ready.grpc, &["--conversation", none, "--expect-not-found"]).await);
        assert!(told.contains("FAILED_PRECONDITION, UPSTREAM_CREDENTIALS_REJECTED: "), "{told}");
        assert!(told.contains("next: on-call: replace"), "{told}");
    }
}

#[tokio::test]
async fn a_probe_does_not_outlast_its_timeout() {
    // The kernel accepts for it; it never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = probe(silent.local_addr().unwrap(), &["--timeout=300ms"]).await;
    assert!(failed_step(&output).contains("health of \"\": no answer in time"), "{output:?}");

    let mut gateway = Process::serve(&["--sandbox"], &[]);
    let ready = gateway.ready().await;
    ready.embedded().fault(json!({ "match": { "method": "GET" }, "hold": true })).await;
    let output = probe(ready.grpc, &["--timeout=1s", "--conversation", V1_CONVERSATION]).await;
    assert!(failed_step(&output).contains("ListParticipants: no answer in time"), "{output:?}");
}

#[test]
fn a_probe_that_is_asked_for_wrongly_exits_64() {
    let conversation = ["--address=127.0.0.1:1", "--conversation", V1_CONVERSATION];
    for (flags, named) in [
        (&[][..], "--address"),
        (&["--address=127.0.0.1"], "--address"),
        (&["--address=:50051"], "--address"),
        (&["--address=me@127.0.0.1:1"], "--address"),
        (&["--address=127.0.0.1:99999"], "--address"),
        (&["--address=http://127.0.0.1:1"], "--address"),
        (&["--address=127.0.0.1:1", "--timeout=0s"], "--timeout"),
        (&["--address=127.0.0.1:1", "--conversation=.."], "--conversation"),
        (&["--address=127.0.0.1:1", "--expect-not-found"], "--conversation"),
        (&["--address=127.0.0.1:1", "--api-version=v1"], "--conversation"),
        (&[&conversation[..], &["--api-version=v3"]].concat(), "--api-version"),
        (&[&conversation[..], &["--account-id=AC1"]].concat(), "--account-id"),
    ] {
        let output = run(&[&["probe"], flags].concat(), &[]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0), "{flags:?} {output:?}");
        assert!(text(&output.stderr).contains(named), "{flags:?} {output:?}");
    }
}
