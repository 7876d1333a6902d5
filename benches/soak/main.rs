//! Mixed load for half an hour, with faults that come and go: does the gateway leak, and does it ever tell what is wrong?
//!
//! `cargo bench --bench soak`, `SOAK_MINUTES` long (30). Gateway and sandbox are processes; a relay between them and one before
//! the gateway can be cut. Calls come at a fixed rate, whether or not earlier ones have ended; the model knows what each may
//! answer. It fails where one answer is wrong, something leaks, or a call fails although all has been well for a while. A run
//! of the default length or longer writes docs/soak.md. Linux only, because it reads /proc.

mod audit;
mod calls;
mod model;
mod processes;
mod proof;
mod reads;
mod relay;
mod report;
mod tally;
mod watch;
mod weather;
mod writes;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit::Posts;
use calls::{Caller, Client};
use model::{Conversation, Face};
use processes::{Gateway, Twilio, Vitals};
use relay::Relay;
use report::{Report, Sample};
use serde_json::json;
use tally::Tally;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use weather::Windows;

const DEFAULT_MINUTES: f64 = 30.0;
const CALLS_A_SECOND: u32 = 200;
/// Of calls that have not ended; beyond it none is made, and that is counted.
const MOST_IN_FLIGHT: usize = 5_000;
const CONVERSATIONS_OF_EACH_VERSION: usize = 6;
const WATCHERS_THAT_COME_AND_GO: usize = 4;
const SAMPLES: Duration = Duration::from_secs(5);
/// The journal holds 1000 requests.
const JOURNAL: Duration = Duration::from_secs(1);
/// What a caller has left goes on in the gateway for `upstream.total_timeout`, idle connections stay for
/// `upstream.pool_idle_timeout`; both are 15 s.
const SETTLING: Duration = Duration::from_secs(35);

/// What all callers share.
struct World {
    conversations: Vec<Conversation>,
    tally: Tally,
    twilio: Twilio,
    /// Events that the watcher which stays was told.
    heard: AtomicU64,
}

fn main() -> ExitCode {
    let minutes =
        std::env::var("SOAK_MINUTES").map_or(DEFAULT_MINUTES, |text| text.parse().expect("minutes"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let report = runtime.block_on(soak(Duration::from_secs_f64(minutes * 60.0)));
    println!("{}", report.markdown());
    if minutes >= DEFAULT_MINUTES {
        report.write();
    }
    let complaints = report.complaints();
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn soak(length: Duration) -> Report {
    let twilio = Twilio::start();
    let upstream = Relay::start(twilio.address).await;
    let gateway = Gateway::start(upstream.address).await;
    let proof = proof::the_model_can_fail(&twilio, Client::new(channel(gateway.grpc))).await;
    proof.expect("no fault is in force yet");
    twilio.put("events", processes::events_settings(&gateway.events_url)).await;
    let front = Relay::start(gateway.grpc).await;
    let world = Arc::new(World {
        conversations: conversations(&twilio).await,
        tally: Tally::default(),
        twilio,
        heard: AtomicU64::new(0),
    });
    let at_start = gateway.vitals().await;
    let mut watchers = JoinSet::new();
    watchers.spawn({
        let (world, address) = (world.clone(), gateway.grpc);
        async move { watch::stay(&world, address).await }
    });
    for _ in 0..WATCHERS_THAT_COME_AND_GO {
        let (world, address) = (world.clone(), front.address);
        watchers.spawn(async move { watch::come_and_go(&world, address).await });
    }
    let (end, began) = (CancellationToken::new(), Instant::now());
    let ((windows, troubles), (), samples, posts, ()) = tokio::join!(
        weather::change(&world.twilio, &upstream, &world.tally, &end),
        weather::break_connections(&front, &end),
        sample(&gateway, &world, began, length, &end),
        read_journal(&world.twilio, &end),
        load(&world, gateway.grpc, front.address, &end),
    );
    let last = settle(&world, &gateway, posts, &windows).await;
    watchers.shutdown().await;
    drop(front);
    let at_end = idle(&gateway).await;
    Report { length, troubles, samples, at_start, at_end, last, counts: world.tally.with(std::mem::take) }
}

async fn conversations(twilio: &Twilio) -> Vec<Conversation> {
    let mut conversations = Vec::new();
    for number in 0..CONVERSATIONS_OF_EACH_VERSION {
        for face in [Face::V1, Face::V2] {
            let conversation = Conversation::new(face, 100 + number);
            twilio.post("populate", json!({"conversation": conversation.id, "count": 0})).await;
            conversations.push(conversation);
        }
    }
    conversations
}

/// A connection that is made, and made again, when there is a call.
fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy()
}

/// Calls at a fixed rate until the end, and then until all of them have ended.
async fn load(world: &Arc<World>, gateway: SocketAddr, front: SocketAddr, end: &CancellationToken) {
    let steady: Vec<Client> = (0..4).map(|_| Client::new(channel(gateway))).collect();
    let fragile: Vec<Client> = (0..4).map(|_| Client::new(channel(front))).collect();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CALLS_A_SECOND);
    let mut calls = JoinSet::new();
    while end.run_until_cancelled(ticks.tick()).await.is_some() {
        while let Some(done) = calls.try_join_next() {
            done.expect("every call is as it should be");
        }
        if calls.len() >= MOST_IN_FLIGHT {
            world.tally.with(|counts| counts.not_made += 1);
            continue;
        }
        let world = world.clone();
        let is_fragile = fastrand::u8(..4) == 0;
        let client = match fastrand::usize(..100) {
            // Who comes for one call, and goes.
            0 => Client::new(channel(gateway)),
            any if is_fragile => fragile[any % fragile.len()].clone(),
            any => steady[any % steady.len()].clone(),
        };
        calls.spawn(async move {
            let conversation = &world.conversations[fastrand::usize(..world.conversations.len())];
            let (tally, twilio) = (&world.tally, &world.twilio);
            Caller { client, is_fragile, conversation, tally, twilio }.call().await;
        });
    }
    calls.join_all().await;
}

/// Looks at the gateway every few seconds, and says when it is over.
async fn sample(
    gateway: &Gateway,
    world: &World,
    began: Instant,
    length: Duration,
    end: &CancellationToken,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    while began.elapsed() < length {
        sleep(SAMPLES).await;
        let sample = Sample { at: began.elapsed(), vitals: gateway.vitals().await };
        let (calls, wrong) = world.tally.with(|counts| (counts.calls, counts.wrong));
        let Vitals { rss_kib, files, threads, calls: in_flight, cache_entries, .. } = sample.vitals;
        eprintln!(
            "{:>5} s  {calls:>8} calls  {wrong} wrong  RSS {:>6.1} MiB  {files:>4} files  {threads} threads  \
             {in_flight:>4} in flight  {cache_entries:>6} cached",
            sample.at.as_secs(),
            rss_kib / 1024.0
        );
        samples.push(sample);
    }
    end.cancel();
    samples
}

async fn read_journal(twilio: &Twilio, end: &CancellationToken) -> Posts {
    let mut posts = Posts::default();
    while end.run_until_cancelled(sleep(JOURNAL)).await.is_some() {
        posts.read_on(twilio).await;
    }
    posts
}

/// What was found when all was over.
struct Last {
    held: usize,
    posts: Posts,
    events: serde_json::Value,
    heard: u64,
    outdated: u64,
}

async fn settle(world: &World, gateway: &Gateway, mut posts: Posts, windows: &Windows) -> Last {
    eprintln!("the load has ended; all that it left behind ends, too");
    let (client, began) = (Client::new(channel(gateway.grpc)), Instant::now());
    while began.elapsed() < SETTLING {
        posts.read_on(&world.twilio).await;
        sleep(JOURNAL).await;
    }
    posts.judge(&world.tally, windows);
    let events = world.twilio.get("events?idle=true").await;
    let outdated = gateway.events("outdated").await;
    let emitted = events["emitted"].as_u64().unwrap_or_default();
    let (began, heard) = (Instant::now(), || world.heard.load(Ordering::SeqCst));
    while heard() + outdated < emitted && began.elapsed() < SAMPLES {
        sleep(Duration::from_millis(10)).await;
    }
    let mut held = 0;
    for conversation in &world.conversations {
        held += audit::compare(&world.tally, &world.twilio, &client, conversation).await;
    }
    Last { held, posts, events, heard: heard(), outdated }
}

/// When nobody calls any more.
async fn idle(gateway: &Gateway) -> Vitals {
    let began = Instant::now();
    loop {
        let vitals = gateway.vitals().await;
        if vitals.calls == 0.0 && began.elapsed() > SETTLING || began.elapsed() > 2 * SETTLING {
            return vitals;
        }
        sleep(JOURNAL).await;
    }
}
