//! Three replicas behind a real Envoy, which balances calls by their health. Each in turn gets SIGTERM, ends, and starts again
//! in its place, twenty times over, at a fixed rate of calls, of which nobody repeats any: neither Envoy nor the client.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_server::SERVICE_NAME;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::load::{Client, Load};
use crate::replica::{self, PATIENCE, Process};

const REPLICAS: usize = 3;
const ROUNDS: usize = 20;
const CALLS_A_SECOND: u32 = 300;
const CONNECTIONS: usize = 8;
/// How often Envoy asks each replica; two answers that are not SERVING take it out.
const HEALTH_CHECK: &str = "0.5s";
/// Longer than two checks.
const DRAIN_DELAY: &str = "2s";
/// From the end of a replica to its start, as if it took a while.
const AWAY: Duration = Duration::from_millis(500);

/// Whether no call was lost, and some are without the delay; true where there is no Envoy.
pub(crate) async fn run() -> bool {
    let Some(binary) = binary() else {
        eprintln!("SKIPPED: no Envoy. `.ci/get-envoy` fetches one, or name the binary in ENVOY");
        return true;
    };
    let rounds = std::env::var("ROLLOUT_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number"));
    println!(
        "\n{REPLICAS} replicas behind Envoy, {CALLS_A_SECOND} calls/s, no retries; health checks each {HEALTH_CHECK}\n"
    );
    println!("drain.delay  rounds   restarts     calls      lost   longest");
    let with_delay = rollout(&binary, DRAIN_DELAY, rounds).await;
    let without_delay = rollout(&binary, "0s", 1).await;
    if rounds >= ROUNDS {
        write(&version(&binary), &[&with_delay, &without_delay]);
    }
    with_delay.load.failed() == 0 && without_delay.load.failed() > 0
}

fn binary() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ci/bin/envoy");
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    named.or(Some(fetched)).filter(|binary| binary.exists())
}

/// What a run has shown.
struct Rollout {
    drain_delay: &'static str,
    rounds: usize,
    load: Arc<Load>,
}

async fn rollout(binary: &Path, drain_delay: &'static str, rounds: usize) -> Rollout {
    let mut tasks = JoinSet::new();
    let upstream = replica::twilio(&mut tasks).await;
    let places: Vec<SocketAddr> = (0..REPLICAS).map(|_| free_address()).collect();
    let mut replicas = Vec::new();
    for place in &places {
        replicas.push(replica::start(upstream, drain_delay, *place).await.0);
    }
    let envoy = Envoy::start(binary, &places);
    envoy.wait_for_all().await;
    let (load, end) = (Arc::new(Load::default()), CancellationToken::new());
    tasks.spawn(call(load.clone(), envoy.listener, end.clone()));
    for round in 1..=rounds {
        for (index, place) in places.iter().enumerate() {
            replicas.remove(index).terminate().await;
            sleep(AWAY).await;
            replicas.insert(index, replica::start(upstream, drain_delay, *place).await.0);
            envoy.wait_for_all().await;
        }
        eprintln!("round {round} of {rounds}: {} answered, {} lost", load.answered(), load.failed());
    }
    end.cancel();
    // The fake Twilio is the other task.
    tasks.join_next().await;
    let rollout = Rollout { drain_delay, rounds, load };
    rollout.show();
    rollout
}

/// A port that is free now, and that no outgoing connection is given while a replica is away: Linux gives those from 32768 on.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..30_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// At a fixed rate, whether or not earlier calls have ended; it ends when all have.
async fn call(load: Arc<Load>, envoy: SocketAddr, end: CancellationToken) {
    let endpoint = Endpoint::from_shared(format!("http://{envoy}")).expect("an address");
    let clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::new(endpoint.connect_lazy())).collect();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CALLS_A_SECOND);
    let mut calls = JoinSet::new();
    for number in 0.. {
        if end.run_until_cancelled(ticks.tick()).await.is_none() {
            break;
        }
        while calls.try_join_next().is_some() {}
        let (load, client) = (load.clone(), clients[number % CONNECTIONS].clone());
        calls.spawn(async move { load.call(number as u64, Some(client)).await });
    }
    calls.join_all().await;
}

/// A running Envoy; dropped, it is killed.
struct Envoy {
    listener: SocketAddr,
    admin: SocketAddr,
    http: reqwest::Client,
    _process: Process,
    _folder: TempDir,
}

impl Envoy {
    fn start(binary: &Path, replicas: &[SocketAddr]) -> Self {
        let (listener, admin) = (free_address(), free_address());
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, configuration(listener, admin, replicas).to_string()).expect("a file");
        let child = Command::new(binary)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let process = Process(child.expect("Envoy starts"));
        Self { listener, admin, http: reqwest::Client::new(), _process: process, _folder: folder }
    }

    /// Until it sends calls to every replica.
    async fn wait_for_all(&self) {
        let began = Instant::now();
        while self.healthy().await != REPLICAS {
            assert!(began.elapsed() < PATIENCE, "Envoy does not take all replicas");
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn healthy(&self) -> usize {
        let Ok(answer) = self.http.get(format!("http://{}/clusters", self.admin)).send().await else {
            return 0;
        };
        let text = answer.text().await.unwrap_or_default();
        text.lines().filter(|line| line.ends_with("::health_flags::healthy")).count()
    }
}

fn configuration(listener: SocketAddr, admin: SocketAddr, replicas: &[SocketAddr]) -> Value {
    let socket = |address: &SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let endpoints = replicas.iter().map(|address| json!({"endpoint": {"address": socket(address)}}));
    let connections = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let protocol = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "admin": {"address": socket(&admin)},
        "static_resources": {
            "listeners": [{
                "address": socket(&listener),
                "filter_chains": [{"filters": [{
                    "name": "http",
                    "typed_config": {
                        "@type": connections,
                        "stat_prefix": "calls",
                        "codec_type": "HTTP2",
                        // No retry policy: what is lost is seen.
                        "route_config": {"virtual_hosts": [{
                            "name": "all", "domains": ["*"],
                            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "gateway", "timeout": "30s"}}],
                        }]},
                        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
                    },
                }]}],
            }],
            "clusters": [{
                "name": "gateway",
                "connect_timeout": "1s",
                "load_assignment": {"cluster_name": "gateway", "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}]},
                // Without it calls go to replicas that are known to be away, where half of them are.
                "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": protocol, "explicit_http_config": {"http2_protocol_options": {}},
                }},
                "health_checks": [{
                    "grpc_health_check": {"service_name": SERVICE_NAME},
                    "interval": HEALTH_CHECK, "timeout": "1s", "unhealthy_threshold": 2, "healthy_threshold": 1,
                    // It asks that seldom until the first call has come: its default is a minute.
                    "no_traffic_interval": HEALTH_CHECK,
                }],
            }],
        },
    })
}

fn version(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").output().expect("Envoy tells its version");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split('/')
        .find(|part| part.starts_with(|letter: char| letter.is_ascii_digit()) && part.contains('.'))
        .unwrap_or("?")
        .to_owned()
}

impl Rollout {
    fn show(&self) {
        let Self { drain_delay, rounds, load } = self;
        let (lost, longest) = (load.failed(), load.longest().as_millis());
        let (restarts, calls) = (rounds * REPLICAS, load.answered() + lost);
        println!("{drain_delay:<11}{rounds:>8}{restarts:>11}{calls:>10}{lost:>10}{longest:>7} ms");
        for (what, times) in load.failures() {
            println!("    {times} × {what}");
        }
    }

    fn row(&self) -> String {
        let Self { drain_delay, rounds, load } = self;
        let (lost, longest) = (load.failed(), load.longest().as_millis());
        let calls = load.answered() + lost;
        format!(
            "| {} | {rounds} | {} | {calls} | **{lost}** | {longest} ms |\n",
            drain_delay.replace('s', " s"),
            rounds * REPLICAS
        )
    }
}

/// Puts the table into docs/rollout.md, between its markers.
fn write(version: &str, rollouts: &[&Rollout]) {
    const MARKERS: [&str; 2] = ["<!-- envoy: begin -->\n", "<!-- envoy: end -->"];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rollout.md");
    let document = std::fs::read_to_string(path).expect("docs/rollout.md");
    let (before, rest) = document.split_once(MARKERS[0]).expect("the marker that begins the table");
    let (_, after) = rest.split_once(MARKERS[1]).expect("the marker that ends the table");
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().expect("git");
    let commit = String::from_utf8_lossy(&commit.stdout).trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut table = String::from(
        "| `drain.delay` | rounds | restarts | calls | lost | longest call |\n|---|---|---|---|---|---|\n",
    );
    for rollout in rollouts {
        table.push_str(&rollout.row());
    }
    let build = format!("Envoy {version}, release build of commit {commit}, {cores} cores shared by all.");
    writeln!(table, "\n{build}").expect("a string takes it");
    let text = format!("{before}{}{table}{}{after}", MARKERS[0], MARKERS[1]);
    std::fs::write(path, text).expect("docs/rollout.md can be written");
}
