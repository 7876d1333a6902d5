//! What becomes of calls while Twilio fails, has too much to do, or hangs. Each call reads another participant, so that
//! neither the cache nor another call can answer it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use participant_gateway::proto::GetParticipantResponse;
use prost::Message as _;

use crate::client::{Answer, CONNECTIONS, Call, Client, Status, framed};
use crate::gateway::{Read, call, participant};
use crate::process::{Cores, Process};
use crate::upstream::{Behaviour, behave, requests};

/// Twilio's, when it is well.
const DELAY: Duration = Duration::from_millis(20);
/// Of each call. What comes later, counted from when the call was due, is no use to anybody.
const DEADLINE: Duration = Duration::from_secs(2);
const GRPC_TIMEOUT: &str = "2S";

const FAILING: [u32; 4] = [0, 10, 50, 100];
const FAILING_RATE: f64 = 200.0;

/// At a time, which is 1,000 a second with that delay.
const CAPACITY: usize = 20;
const OFFERED: [f64; 4] = [0.5, 0.9, 1.2, 5.0];

const BROWN_OUT_RATE: f64 = 200.0;
const BROWN_OUT_DELAY_MS: u64 = 30_000;

/// How long each part takes.
#[derive(Clone, Copy)]
pub(crate) struct Lengths {
    pub(crate) load: Duration,
    pub(crate) brown_out: Duration,
}

pub(crate) struct Faults {
    pub(crate) failing: Vec<Failing>,
    pub(crate) offered: Vec<Offered>,
    pub(crate) brown_out: BrownOut,
}

/// While so many of a hundred requests fail.
pub(crate) struct Failing {
    pub(crate) percent: u32,
    pub(crate) outcome: Outcome,
    pub(crate) requests_a_call: f64,
}

/// While so many times Twilio's capacity is asked for.
pub(crate) struct Offered {
    pub(crate) times: f64,
    pub(crate) outcome: Outcome,
    /// Good answers a second, while calls came.
    pub(crate) goodput: f64,
}

pub(crate) struct BrownOut {
    pub(crate) before: Outcome,
    pub(crate) during: Outcome,
    pub(crate) after: Outcome,
    /// From the healing to the begin of the last call that did not fare as before.
    pub(crate) recovery: Duration,
    pub(crate) growth_mib: f64,
}

/// What became of one call.
#[derive(Clone)]
struct Told {
    number: u64,
    /// When it was answered, since the first was due.
    at: Duration,
    took: Duration,
    answer: Result<(), Status>,
}

/// What became of some calls.
pub(crate) struct Outcome {
    /// How long it was called.
    pub(crate) seconds: f64,
    /// Times of those that were answered within the deadline.
    pub(crate) good: Vec<Duration>,
    pub(crate) late: usize,
    pub(crate) failed: Vec<Duration>,
    pub(crate) codes: BTreeMap<Status, usize>,
}

pub(crate) async fn measure(cores: Cores, lengths: Lengths) -> Faults {
    let upstream = cores.upstream(DELAY);
    let (mut failing, mut offered) = (Vec::new(), Vec::new());
    for percent in FAILING {
        eprintln!("{percent} % of Twilio's answers fail");
        failing.push(fail(cores, &upstream, percent, lengths.load).await);
    }
    let behaviour = Behaviour { capacity: CAPACITY, ..Behaviour::healthy(DELAY) };
    behave(upstream.address, behaviour).await;
    let mut asking = Asking::start(cores, &upstream).await;
    let capacity = CAPACITY as f64 / DELAY.as_secs_f64();
    for times in OFFERED {
        eprintln!("{times} × what Twilio can answer");
        let told = asking.ask(capacity * times, lengths.load).await;
        let outcome = Outcome::of(&told, lengths.load);
        let is_good = |one: &&Told| one.answer.is_ok() && one.took <= DEADLINE && one.at <= lengths.load;
        let goodput = told.iter().filter(is_good).count() as f64 / outcome.seconds;
        offered.push(Offered { times, outcome, goodput });
    }
    drop(asking);
    let brown_out = brown_out(cores, &upstream, lengths).await;
    Faults { failing, offered, brown_out }
}

async fn fail(cores: Cores, upstream: &Process, percent: u32, length: Duration) -> Failing {
    behave(upstream.address, Behaviour { failing: percent, ..Behaviour::healthy(DELAY) }).await;
    let mut asking = Asking::start(cores, upstream).await;
    let before = requests(upstream.address).await;
    let told = asking.ask(FAILING_RATE, length).await;
    let asked = requests(upstream.address).await - before;
    let requests_a_call = asked as f64 / told.len() as f64;
    Failing { percent, outcome: Outcome::of(&told, length), requests_a_call }
}

async fn brown_out(cores: Cores, upstream: &Process, lengths: Lengths) -> BrownOut {
    eprintln!("Every answer is {BROWN_OUT_DELAY_MS} ms late");
    let healthy = Behaviour::healthy(DELAY);
    behave(upstream.address, healthy).await;
    let mut asking = Asking::start(cores, upstream).await;
    let before = Outcome::of(&asking.ask(BROWN_OUT_RATE, lengths.load).await, lengths.load);
    let resident = asking.gateway.resident_bytes();
    behave(upstream.address, Behaviour { delay_ms: BROWN_OUT_DELAY_MS, ..healthy }).await;
    // The load does not pause at the healing, so it goes on in the same loop of calls.
    let length = lengths.brown_out + 2 * lengths.load;
    let address = upstream.address;
    let healing = tokio::spawn(async move {
        tokio::time::sleep(lengths.brown_out).await;
        behave(address, healthy).await;
    });
    let told = asking.ask(BROWN_OUT_RATE, length).await;
    healing.await.expect("it heals");
    let growth_mib = (asking.gateway.resident_bytes() - resident) / 1024.0 / 1024.0;
    let first = told.first().expect("calls").number;
    let due = |one: &Told| Duration::from_secs_f64((one.number - first) as f64 / BROWN_OUT_RATE);
    let (during, after): (Vec<_>, Vec<_>) = told.into_iter().partition(|one| due(one) < lengths.brown_out);
    let normal = 4 * percentile(&before.good, 99.0).max(DELAY);
    let fares_worse = after.iter().filter(|one| one.answer.is_err() || one.took > normal);
    let recovery = fares_worse.map(due).max().map_or(Duration::ZERO, |last| last - lengths.brown_out);
    BrownOut {
        before,
        during: Outcome::of(&during, lengths.brown_out),
        after: Outcome::of(&after, 2 * lengths.load),
        recovery,
        growth_mib,
    }
}

/// A gateway, and who asks it for one participant after the other.
struct Asking {
    gateway: Process,
    client: Client,
    next: u64,
}

impl Asking {
    async fn start(cores: Cores, upstream: &Process) -> Self {
        let gateway = cores.gateway(upstream, &[]);
        let call = Call { timeout: GRPC_TIMEOUT, ..call(0, Read::Cached) };
        let client = Client::connect(gateway.address, &call, CONNECTIONS).await;
        Self { gateway, client, next: 0 }
    }

    /// So many calls a second, and what became of them, in their order.
    async fn ask(&mut self, rate: f64, length: Duration) -> Vec<Told> {
        let (first, told, began) = (self.next, Arc::new(Mutex::new(Vec::new())), Instant::now());
        let frame = move |number| framed(&call(first + number, Read::Cached).request);
        let note = {
            let told = told.clone();
            move |number, answer, took| {
                let number = first + number;
                let answer = checked(number, answer);
                told.lock().expect("nobody panics").push(Told { number, at: began.elapsed(), took, answer });
            }
        };
        self.client.open_loop(rate, length, frame, note).await;
        let mut told = std::mem::take(&mut *told.lock().expect("nobody panics"));
        told.sort_by_key(|one| one.number);
        self.next += told.len() as u64;
        told
    }
}

fn checked(number: u64, answer: Answer) -> Result<(), Status> {
    let decoded = GetParticipantResponse::decode(answer?).expect("a message");
    assert_eq!(decoded.participant.expect("a participant").id, participant(number), "a wrong answer");
    Ok(())
}

impl Outcome {
    fn of(told: &[Told], length: Duration) -> Self {
        let (mut good, mut late, mut failed, mut codes) = (Vec::new(), 0, Vec::new(), BTreeMap::new());
        for one in told {
            match one.answer {
                Ok(()) if one.took <= DEADLINE => good.push(one.took),
                Ok(()) => late += 1,
                Err(status) => {
                    failed.push(one.took);
                    *codes.entry(status).or_insert(0) += 1;
                }
            }
        }
        Self { seconds: length.as_secs_f64(), good, late, failed, codes }
    }
}

/// Of so many of a hundred; nothing of none.
pub(crate) fn percentile(times: &[Duration], percent: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let place = (times.len() as f64 * percent / 100.0).ceil() as usize;
    times.get(place.saturating_sub(1)).copied().unwrap_or_default()
}
