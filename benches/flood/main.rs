//! Callers that do not keep to HTTP/2, or to what is decent: what each costs the gateway, and what a caller that does sees.
//!
//! `cargo bench --bench flood [-- WORD]`, where WORD picks the floods whose name has it. Each goes against a gateway of its
//! own, a process with a sandbox, from four connections for four seconds; one that is closed is opened anew. Linux only,
//! because it reads /proc. A whole run writes docs/floods.md, and fails where one takes more memory than it may.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

use attacks::*;
use gateway::Gateway;

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)] // it is the tests'
#[path = "../../tests/gateway/wire.rs"]
mod wire;

#[allow(dead_code)] // another benchmark has more use for it
mod attacks;
#[allow(dead_code)]
mod gateway;

const CONNECTIONS: usize = 4;
const TIME: Duration = Duration::from_secs(4);
/// So much memory a flood may take.
const MOST_KIB: u64 = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let chosen = |flood: &&Flood| word.as_ref().is_none_or(|word| flood.name.contains(word.as_str()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut table = HEAD.to_owned();
    print!("{HEAD}");
    let mut is_good = true;
    for flood in FLOODS.iter().filter(chosen) {
        let row = runtime.block_on(measure(flood));
        is_good &= row.most_kib.saturating_sub(row.before_kib) <= MOST_KIB;
        let row = row.markdown(flood.name);
        print!("{row}");
        table.push_str(&row);
    }
    if word.is_none() && !cfg!(debug_assertions) {
        std::fs::write("docs/floods.md", document(&table)).expect("the document can be written");
    }
    if is_good {
        return ExitCode::SUCCESS;
    }
    eprintln!("a flood takes more than {} MiB", MOST_KIB / 1024);
    ExitCode::FAILURE
}

const HEAD: &str = "| flood | RSS before, most, MiB | CPU, s | connections | what the gateway did | others' calls | p50, ms | longest, ms |\n|---|---|---|---|---|---|---|---|\n";

fn document(table: &str) -> String {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().expect("git");
    let commit = String::from_utf8(commit.stdout).expect("text");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let commit = commit.trim();
    format!(
        "# Floods\n\n\
         What callers cost that do not keep to HTTP/2, or take all that it lets them have. `cargo bench --bench flood` writes this\n\
         page: release build of commit {commit}, {cores} cores shared with the attackers, who have {CONNECTIONS} connections for {} seconds and open\n\
         each anew as soon as it is closed. Meanwhile somebody else reads a cached participant, one call after the other. The most that\n\
         a flood may add to the memory is {} MiB; the gateway itself fails the run beyond that. Limits: [configuration.md](configuration.md#what-callers-may-take).\n\n\
         {table}\n\
         A frame that is told is one that the gateway sent, per connection the last; `closed` is a connection that ended without GOAWAY,\n\
         `stood` one that was there to the end. REFUSED_STREAM counts streams.\n",
        TIME.as_secs(),
        MOST_KIB / 1024,
    )
}

struct Row {
    before_kib: u64,
    most_kib: u64,
    cpu_seconds: f64,
    connections: usize,
    told: BTreeMap<String, usize>,
    latencies: Vec<Duration>,
}

impl Row {
    fn markdown(mut self, name: &str) -> String {
        self.latencies.sort_unstable();
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let middle = self.latencies.get(self.latencies.len() / 2).copied().unwrap_or_default();
        let longest = self.latencies.last().copied().unwrap_or_default();
        let mut told = String::new();
        for (what, count) in &self.told {
            let comma = if told.is_empty() { "" } else { ", " };
            let _ = write!(told, "{comma}{count} × {what}");
        }
        format!(
            "| {name} | {:.1} → {:.1} | {:.1} | {} | {told} | {} | {:.1} | {:.1} |\n",
            self.before_kib as f64 / 1024.0,
            self.most_kib as f64 / 1024.0,
            self.cpu_seconds,
            self.connections,
            self.latencies.len(),
            millis(middle),
            millis(longest),
        )
    }
}

async fn measure(flood: &'static Flood) -> Row {
    let gateway = Gateway::start(Stdio::null(), None).await;
    gateway.make_slow(SLOW).await;
    gateway.populate(LARGE_CONVERSATION, LISTED).await;
    let mut victim = Victim::new(&gateway).await;
    victim.call().await;
    victim.latencies.clear();
    let (before_kib, cpu_before) = (gateway.resident_kib(), gateway.cpu_seconds());
    let end = Instant::now() + TIME;
    let pace = Pace { from: Ipv4Addr::LOCALHOST.into(), batch: 50, pause: Duration::ZERO };
    let mut attackers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        attackers.spawn(attack(flood, pace, gateway.grpc, end));
    }
    while Instant::now() < end {
        victim.call().await;
        sleep(Duration::from_millis(2)).await;
    }
    let (most_kib, cpu_seconds) = (gateway.most_resident_kib(), gateway.cpu_seconds() - cpu_before);
    let (mut connections, mut told) = (0, BTreeMap::new());
    for report in attackers.join_all().await {
        connections += report.connections;
        for (what, count) in report.told {
            *told.entry(what).or_default() += count;
        }
    }
    // Whatever it was, it has not made the gateway deaf.
    victim.call().await;
    Row { before_kib, most_kib, cpu_seconds, connections, told, latencies: victim.latencies }
}

/// Who keeps to all rules.
struct Victim {
    client: ParticipantServiceClient<tonic::transport::Channel>,
    latencies: Vec<Duration>,
}

impl Victim {
    async fn new(gateway: &Gateway) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.grpc)).expect("an address");
        let client = ParticipantServiceClient::new(endpoint.connect().await.expect("a connection"));
        Self { client, latencies: Vec::new() }
    }

    async fn call(&mut self) {
        let began = Instant::now();
        let call = self.client.get_participant(request(CALM));
        let answer = timeout(PATIENCE, call).await.expect("the gateway answers others");
        answer.expect("the gateway answers others well");
        self.latencies.push(began.elapsed());
    }
}
