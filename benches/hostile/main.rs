//! A good client beside everything that is hostile: what it sees of it, and what it costs the gateway.
//!
//! `cargo bench --bench hostile [-- WORD]`, where WORD picks the attacks whose name has it; `HOSTILE_MINUTES` says for how
//! long, 10 if it does not. The gateway is a process with a sandbox, on a core of its own. For a tenth of the time the good
//! client is alone with it, then the attacks of this folder and of `benches/flood` go on one after the other, each from
//! another process, and for a last tenth it is alone again. Linux only. A whole run writes docs/hostile.md; one fails where
//! the gateway dies, panics, takes more memory than it may, or does not come back to what it was.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use attacks::Attack;
use gateway::Gateway;
use good::{Calls, Good};

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)] // it is the tests'
#[path = "../../tests/gateway/wire.rs"]
mod wire;

#[allow(dead_code)] // it is the other benchmark's
#[path = "../flood/attacks.rs"]
mod floods;
#[path = "../flood/gateway.rs"]
mod gateway;

mod attacks;
mod good;

/// So much memory all of it together may take beside what the gateway has at first.
const MOST_KIB: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let [mode, name, address, millis] = &arguments[..]
        && mode == "attack"
    {
        runtime().block_on(attacker(name, address, millis));
        return ExitCode::SUCCESS;
    }
    let word = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen = |attack: &Attack| word.is_none_or(|word| attack.name().contains(word.as_str()));
    let attacks: Vec<Attack> = Attack::all().into_iter().filter(chosen).collect();
    assert!(!attacks.is_empty(), "no attack has that in its name");
    let minutes =
        std::env::var("HOSTILE_MINUTES").ok().map(|text| text.parse().expect("a number of minutes"));
    let minutes: f64 = minutes.unwrap_or(10.0);
    let cores = Cores::allowed();
    cores.settle();
    let run = runtime().block_on(Run::of(&attacks, Duration::from_secs_f64(60.0 * minutes), cores));
    let table = run.table();
    println!("{table}");
    if word.is_none() && !cfg!(debug_assertions) {
        std::fs::write("docs/hostile.md", document(minutes, &table)).expect("the document can be written");
    }
    let problems = run.problems();
    for problem in &problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This program as the attacker: the last line tells what the gateway said.
async fn attacker(name: &str, address: &str, millis: &str) {
    let attack = Attack::all().into_iter().find(|attack| attack.name() == name).expect("an attack");
    let end = Instant::now() + Duration::from_millis(millis.parse().expect("milliseconds"));
    let report = attack.run(address.parse().expect("an address"), end).await;
    println!("{}", serde_json::json!({ "connections": report.connections, "told": report.told }));
}

/// The two cores in use: the gateway's, and that of all others.
#[derive(Clone, Copy)]
struct Cores {
    gateway: usize,
    others: usize,
}

impl Cores {
    /// The first and the last of those that this process may use.
    fn allowed() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
        let mut cores = list.split([',', '-']).map(|core| core.trim().parse().expect("a core"));
        let gateway = cores.next().expect("a core");
        Self { gateway, others: cores.next_back().unwrap_or(gateway) }
    }

    /// Puts this process where the others belong, before it has other threads.
    fn settle(self) {
        let status = Command::new("taskset")
            .args(["--pid", "--cpu-list", &self.others.to_string(), &std::process::id().to_string()])
            .stdout(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "taskset, of util-linux, is needed");
    }
}

/// What a phase looked like.
struct Phase {
    name: &'static str,
    calls: Calls,
    /// What the gateway did to the attackers.
    told: String,
    rss_kib: u64,
    files: usize,
    cpu_percent: f64,
}

/// What the gateway was like when all was over.
struct Run {
    phases: Vec<Phase>,
    before_kib: u64,
    most_kib: u64,
    in_flight: f64,
    log_lines: usize,
    panics: usize,
    /// Its exit code after SIGTERM.
    exit: Option<i32>,
}

impl Run {
    async fn of(attacks: &[Attack], time: Duration, cores: Cores) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let file = log.reopen().expect("a file");
        let mut gateway = Gateway::start(file.into(), Some(cores.gateway)).await;
        gateway.make_slow(floods::SLOW).await;
        gateway.populate(floods::LARGE_CONVERSATION, floods::LISTED).await;
        let mut good = Good::new(gateway.grpc);
        // Its connection is there, and what is cached is cached.
        good.calls_for(Duration::from_secs(1)).await;
        let before_kib = gateway.resident_kib();
        let mut phases = vec![phase("before", &mut good, &gateway, time / 10, None).await];
        let each = time.mul_f64(0.8) / u32::try_from(attacks.len()).expect("a few");
        for attack in attacks {
            phases.push(phase(attack.name(), &mut good, &gateway, each, Some(*attack)).await);
        }
        phases.push(phase("after", &mut good, &gateway, time / 10, None).await);
        let in_flight = settled(&gateway).await;
        let most_kib = gateway.most_resident_kib();
        let exit = stop(&mut gateway).await;
        let text = std::fs::read_to_string(log.path()).expect("the log");
        let panics = text.lines().filter(|line| line.contains("panicked")).count();
        Self { phases, before_kib, most_kib, in_flight, log_lines: text.lines().count(), panics, exit }
    }

    fn during(&self) -> &[Phase] {
        &self.phases[1..self.phases.len() - 1]
    }

    fn table(&self) -> String {
        let mut table = HEAD.to_owned();
        for phase in &self.phases {
            table.push_str(&phase.markdown());
        }
        let mut all = Calls::default();
        self.during().iter().for_each(|phase| all.add(&phase.calls));
        let _ = write!(
            table,
            "\nDuring all attacks: {} calls, {:.3} % succeeded, half within {:.1} ms, 99 % within {:.1} ms.\n\
             Memory: {:.1} MiB before, {:.1} MiB at most. Calls in flight afterwards: {}. Panics: {}. Lines of the log: {}. \
             Exit code after SIGTERM: {}.\n",
            all.count(),
            all.percent(),
            all.quantile(500),
            all.quantile(990),
            self.before_kib as f64 / 1024.0,
            self.most_kib as f64 / 1024.0,
            self.in_flight,
            self.panics,
            self.log_lines,
            self.exit.map_or("none".to_owned(), |code| code.to_string()),
        );
        table
    }

    fn problems(&self) -> Vec<String> {
        let (first, last) = (&self.phases[0].calls, &self.phases[self.phases.len() - 1].calls);
        let grown = self.most_kib.saturating_sub(self.before_kib);
        [
            (first.failures() > 0, "calls failed before any attack".to_owned()),
            (last.failures() > 0, "calls fail after the attacks".to_owned()),
            (grown > MOST_KIB, format!("it took {} MiB more", grown / 1024)),
            (self.in_flight > 0.0, format!("{} calls stay in flight", self.in_flight)),
            (self.panics > 0, format!("{} panics", self.panics)),
            (self.exit != Some(0), format!("it ended with {:?}", self.exit)),
        ]
        .into_iter()
        .filter_map(|(is_so, what)| is_so.then_some(what))
        .collect()
    }
}

const HEAD: &str = "| while | calls | succeeded, % | p50, ms | p99, ms | longest, ms | failed | what the gateway did | RSS, MiB | files | CPU, % |\n|---|---|---|---|---|---|---|---|---|---|---|\n";

impl Phase {
    fn markdown(&self) -> String {
        let mut calls = Calls::default();
        calls.add(&self.calls);
        format!(
            "| {} | {} | {:.2} | {:.1} | {:.1} | {:.1} | {} | {} | {:.1} | {} | {:.0} |\n",
            self.name,
            calls.count(),
            calls.percent(),
            calls.quantile(500),
            calls.quantile(990),
            calls.quantile(1000),
            calls.why_failed(),
            self.told,
            self.rss_kib as f64 / 1024.0,
            self.files,
            self.cpu_percent,
        )
    }
}

/// The good client's calls for so long, beside the attack.
async fn phase(
    name: &'static str,
    good: &mut Good,
    gateway: &Gateway,
    time: Duration,
    attack: Option<Attack>,
) -> Phase {
    let attacker = attack.map(|attack| spawn(attack, gateway.grpc, time));
    let (began, cpu) = (Instant::now(), gateway.cpu_seconds());
    let half = time / 2;
    let mut calls = good.calls_for(half).await;
    let (rss_kib, files) = (gateway.resident_kib(), gateway.open_files());
    calls.add(&good.calls_for(half).await);
    let cpu_percent = 100.0 * (gateway.cpu_seconds() - cpu) / began.elapsed().as_secs_f64();
    let told = attacker.map(|child| child.wait_with_output().expect("the attacker ends"));
    let told = told.map(|output| summary(&String::from_utf8_lossy(&output.stdout))).unwrap_or_default();
    Phase { name, calls, told, rss_kib, files, cpu_percent }
}

/// It is where the good client is, and gives way to it.
fn spawn(attack: Attack, address: SocketAddr, time: Duration) -> std::process::Child {
    Command::new("nice")
        .args(["-n", "19"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["attack", attack.name(), &address.to_string(), &time.as_millis().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("nice is there")
}

fn summary(line: &str) -> String {
    let report: serde_json::Value = serde_json::from_str(line.trim()).unwrap_or_default();
    let told: BTreeMap<String, u64> = serde_json::from_value(report["told"].clone()).unwrap_or_default();
    let mut text = format!("{} connections", report["connections"]);
    for (what, count) in told {
        let _ = write!(text, ", {count} × {what}");
    }
    text
}

/// How many calls are in flight when all that ends by itself has ended.
async fn settled(gateway: &Gateway) -> f64 {
    let end = Instant::now() + PATIENCE;
    loop {
        let in_flight = gateway.metric("participant_calls_in_flight").await;
        if in_flight == 0.0 || Instant::now() > end {
            return in_flight;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn stop(gateway: &mut Gateway) -> Option<i32> {
    let pid = gateway.child.id().to_string();
    let status = Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
    assert!(status.success(), "it is there to be told");
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(Some(status)) = gateway.child.try_wait() {
            return status.code();
        }
        sleep(Duration::from_millis(50)).await;
    }
    None
}

fn document(minutes: f64, table: &str) -> String {
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().expect("git");
    let commit = String::from_utf8(commit.stdout).expect("text");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let limits = std::fs::read_to_string("/proc/self/limits").expect("/proc");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("it is there");
    let files = files.split_whitespace().next().expect("a number");
    format!(
        "# Hostile traffic\n\n\
         What a client that keeps to all rules sees of those who do not, and what they cost the gateway. `cargo bench --bench hostile` writes\n\
         this page: release build of commit {}, {minutes} minutes, a machine of {cores} cores. The gateway and its sandbox have one core; the good\n\
         client and the attackers share the other, the attackers at the lowest priority (`nice 19`) and at a bounded rate: from each of four\n\
         addresses fifty frames every 5 ms, or two connections. What the good client loses is so the gateway's loss, as far as one core for\n\
         both sides of loopback lets one tell. Everything is as by default, but for a cache of 16 MiB; the process may\n\
         open {files} files, so that it takes half as many connections.\n\n\
         The good client calls a hundred times a second, whatever becomes of earlier calls: v1 and v2 by turns, half of them from the\n\
         cache and half past it, each with a deadline of a second and counted from the moment at which it was due. Success is OK with\n\
         the participant that was asked for. A tenth of the time it is alone, before and after; each attack has the same share of the rest.\n\n\
         {table}\n\
         RSS and files are those amid the phase. `closed` is a connection that ended without GOAWAY, `stood` one that was there to the end.\n\
         The run fails by itself where a call fails before or after the attacks, a call stays in flight, the gateway panics, does not end\n\
         with 0, or takes more than {} MiB.\n",
        commit.trim(),
        MOST_KIB / 1024,
    )
}
