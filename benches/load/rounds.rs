//! What is compared with what: sections of candidates that take turns, round by round.

use std::time::Duration;

use crate::client::{CONNECTIONS, Call, Client};
use crate::envoy;
use crate::gateway::{CACHED, CONVERSATION, Read, checked, participant, telemetry};
use crate::process::{Cores, Process};

/// No candidate is near its limit at the fixed rate: it is this part of what the slowest of the section manages.
const PART_OF_PEAK: f64 = 0.3;

const OFF: &str = "gateway, telemetry off";
const ON: &str = "gateway, metrics, traces of 1 %";

/// How long is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// Of each kind of load, in each round.
    pub(crate) length: Duration,
}

/// Candidates under the same load. The first is what the others are compared with.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// Calls a second, where they do not wait for each other.
    pub(crate) rate: f64,
    pub(crate) measured: Vec<Measured>,
}

/// A server that runs, and a client of its own.
struct Candidate {
    name: &'static str,
    process: Process,
    client: Client,
}

/// What was measured of a candidate.
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) rounds: Vec<Round>,
    pub(crate) resident_mib: f64,
}

/// What one round told of a candidate. Times are in microseconds.
pub(crate) struct Round {
    /// With all streams of all connections in use.
    pub(crate) calls_a_second: f64,
    pub(crate) calls_a_cpu_second: f64,
    /// Of the server's core, meanwhile, of a hundred: with less than nearly all the client is the limit.
    pub(crate) busy_at_peak: f64,
    pub(crate) p99_at_peak: f64,
    /// One call at a time.
    pub(crate) alone_p50: f64,
    pub(crate) alone_cpu: f64,
    /// At the fixed rate.
    pub(crate) cpu: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Calls that failed, of all of them.
    pub(crate) failed: f64,
}

/// One section after the other. `envoy` is the binary, where there is one.
pub(crate) async fn run(cores: Cores, effort: Effort, envoy: Option<&str>) -> Vec<Section> {
    if envoy.is_none() {
        eprintln!("SKIPPED: Envoy, because ENVOY does not name its binary. Nothing is compared with it.");
    }
    let mut sections = vec![cached(cores, effort).await];
    for (title, delay) in [
        ("Get past the cache, Twilio answers at once", Duration::ZERO),
        ("Get past the cache, Twilio answers after 20 ms", Duration::from_millis(20)),
    ] {
        sections.push(uncached(cores, effort, envoy, (title, delay)).await);
    }
    sections
}

async fn cached(cores: Cores, effort: Effort) -> Section {
    let (upstream, sink) = (cores.upstream(Duration::ZERO), cores.sink());
    let (off, on) = gateways(cores, &upstream, &sink);
    let (call, answer) = checked(&off, Read::Cached).await;
    checked(&on, Read::Cached).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), answer).expect("it is written");
    let bare = Candidate::new("bare tonic", cores.bare(file.path()), &call).await;
    let [off, on] = [Candidate::new(OFF, off, &call).await, Candidate::new(ON, on, &call).await];
    measure("Cached Get", vec![bare, off, on], effort).await
}

async fn uncached(
    cores: Cores,
    effort: Effort,
    envoy: Option<&str>,
    (title, delay): (&'static str, Duration),
) -> Section {
    let (upstream, sink) = (cores.upstream(delay), cores.sink());
    let (off, on) = gateways(cores, &upstream, &sink);
    let (call, _) = checked(&off, Read::PastTheCache).await;
    let mut candidates = Vec::new();
    if let Some(binary) = envoy {
        let process = cores.envoy(binary, &upstream);
        let call = envoy::checked(&process, CONVERSATION, &participant(1)).await;
        candidates.push(Candidate::new("Envoy, reverse transcoder", process, &call).await);
    }
    candidates.push(Candidate::new(OFF, off, &call).await);
    candidates.push(Candidate::new(ON, on, &call).await);
    measure(title, candidates, effort).await
}

/// Two before the same Twilio: without telemetry, and with it.
fn gateways(cores: Cores, upstream: &Process, sink: &Process) -> (Process, Process) {
    let collector = format!("http://{}", sink.address);
    let on: Vec<_> = CACHED.into_iter().chain(telemetry(&collector)).collect();
    (cores.gateway(upstream, &CACHED), cores.gateway(upstream, &on))
}

/// Round by round, in turns.
async fn measure(title: &'static str, candidates: Vec<Candidate>, effort: Effort) -> Section {
    eprintln!("{title}");
    // Caches, pools and allocators fill before anything counts.
    let mut slowest = f64::INFINITY;
    for candidate in &candidates {
        slowest = slowest.min(candidate.peak(effort.length).await);
    }
    let rate = (slowest * PART_OF_PEAK / 100.0).floor() * 100.0;
    let mut rounds: Vec<Vec<Round>> = candidates.iter().map(|_| Vec::new()).collect();
    for number in 1..=effort.rounds {
        for (candidate, rounds) in candidates.iter().zip(&mut rounds) {
            let round = candidate.round(effort.length, rate).await;
            eprintln!(
                "  round {number} of {}: {:<36} {:>7.0} calls a second with {:>3.0} % of the core, p99 {:>6.0} µs",
                effort.rounds, candidate.name, round.calls_a_second, round.busy_at_peak, round.p99
            );
            rounds.push(round);
        }
    }
    let measured = candidates.into_iter().zip(rounds).map(|(candidate, rounds)| Measured {
        name: candidate.name,
        rounds,
        resident_mib: candidate.process.resident_bytes() / 1024.0 / 1024.0,
    });
    Section { title, rate, measured: measured.collect() }
}

impl Candidate {
    async fn new(name: &'static str, process: Process, call: &Call) -> Self {
        let client = Client::connect(process.address, call, CONNECTIONS).await;
        Self { name, process, client }
    }

    async fn peak(&self, length: Duration) -> f64 {
        let load = self.client.saturate(length).await;
        load.good() as f64 / load.seconds
    }

    async fn round(&self, length: Duration, rate: f64) -> Round {
        let start = self.process.cpu_seconds();
        let full = self.client.saturate(length).await;
        let after_full = self.process.cpu_seconds();
        let alone = self.client.alone(length / 2).await;
        let after_alone = self.process.cpu_seconds();
        let open = self.client.at_rate(rate, length).await;
        let end = self.process.cpu_seconds();
        let micros_a_call = |cpu: f64, calls: u64| cpu * 1e6 / calls as f64;
        Round {
            calls_a_second: full.good() as f64 / full.seconds,
            calls_a_cpu_second: full.good() as f64 / (after_full - start),
            busy_at_peak: 100.0 * (after_full - start) / full.seconds,
            p99_at_peak: full.micros(99.0),
            alone_p50: alone.micros(50.0),
            alone_cpu: micros_a_call(after_alone - after_full, alone.good()),
            cpu: micros_a_call(end - after_alone, open.good()),
            p50: open.micros(50.0),
            p99: open.micros(99.0),
            p999: open.micros(99.9),
            failed: (full.failed + alone.failed + open.failed) as f64,
        }
    }
}
