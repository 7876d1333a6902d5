//! 100,000 events, some twice and none in order, while gateways and Redis are killed: is each told once to each watcher?

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use participant_gateway::proto::WatchParticipantsRequest;
use participant_gateway::proto::watch_participants_response::Message;
use participant_gateway::sandbox::{Sandbox, Settings};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::delivery::{Delivery, event_id};
use crate::processes::{Addresses, Gateway, Redis};

const EVENTS: usize = 100_000;
const DUPLICATES: usize = EVENTS / 20;
/// An event comes up to so many places later than it was.
const DISORDER: usize = 2_000;
const BATCH: usize = 50;
const SENDERS: usize = 8;
const WATCHERS: usize = 6;
const REPLICAS: usize = 3;
const FROM_KILL_TO_KILL: Duration = Duration::from_secs(1);

/// Where the replicas are at the moment, and what went wrong on the way.
struct Fleet {
    replicas: RwLock<Vec<Addresses>>,
    sent_again: AtomicUsize,
    resumed: AtomicUsize,
    all_taken: AtomicBool,
}

impl Fleet {
    fn any(&self) -> Addresses {
        self.replicas.read().expect("nobody panics")[fastrand::usize(..REPLICAS)]
    }
}

pub(crate) async fn run() {
    let sandbox = Sandbox::bind(Settings::default()).await.expect("a sandbox");
    let (twilio, end) = (sandbox.local_addr(), CancellationToken::new());
    tokio::spawn(sandbox.run(end.clone()));
    let redis = Redis::start(true).await;
    let url = redis.url();
    let mut gateways = Vec::new();
    for _ in 0..REPLICAS {
        gateways.push(gateway(twilio, &url).await.current().await);
    }
    let fleet = Arc::new(Fleet {
        replicas: RwLock::new(gateways.iter().map(|gateway| gateway.addresses).collect()),
        sent_again: AtomicUsize::new(0),
        resumed: AtomicUsize::new(0),
        all_taken: AtomicBool::new(false),
    });
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let token = begin(&fleet).await;
        watchers.spawn(watch(fleet.clone(), token));
    }
    let began = Instant::now();
    let killing = tokio::spawn({
        let (fleet, url) = (fleet.clone(), url.clone());
        async move { kill(&fleet, gateways, redis, twilio, &url).await }
    });
    send_all(&fleet).await;
    let seconds = began.elapsed().as_secs_f64();
    fleet.all_taken.store(true, Ordering::SeqCst);
    let survivors = killing.await.expect("it ends");
    post_until_taken(&fleet, &reqwest::Client::new(), &Delivery::batch(&[EVENTS])).await;
    let told = watchers.join_all().await;
    check(&told);
    println!(
        "{EVENTS} events, {DUPLICATES} of them twice, in {seconds:.0} s; {} gateways and {} Redis killed; {} deliveries sent \
         again; {WATCHERS} watchers resumed {} times: each told each event once, all in one order",
        survivors.gateways_killed,
        survivors.redis_killed,
        fleet.sent_again.load(Ordering::Relaxed),
        fleet.resumed.load(Ordering::Relaxed),
    );
    end.cancel();
}

/// A token of now.
async fn begin(fleet: &Fleet) -> String {
    let mut client = fleet.any().connect().await.expect("a connection");
    let stream = client.watch_participants(WatchParticipantsRequest::default()).await.expect("a stream");
    let message = stream.into_inner().message().await.expect("a heartbeat");
    message.expect("a heartbeat").resume_token
}

/// The ids that a watcher is told until the last, at whichever replica is there.
async fn watch(fleet: Arc<Fleet>, mut token: String) -> Vec<String> {
    let (mut ids, last) = (Vec::new(), event_id(EVENTS));
    loop {
        let ended = watch_once(&fleet, &mut token, &mut ids).await;
        assert_ne!(ended, Some(Code::OutOfRange), "the watcher was away for too long");
        if ids.last() == Some(&last) {
            return ids;
        }
        fleet.resumed.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
}

async fn watch_once(fleet: &Fleet, token: &mut String, ids: &mut Vec<String>) -> Option<Code> {
    let last = event_id(EVENTS);
    let mut client = fleet.any().connect().await.ok()?;
    let request = WatchParticipantsRequest { resume_token: token.clone(), ..Default::default() };
    let mut stream = match client.watch_participants(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return Some(status.code()),
    };
    loop {
        let told = match stream.message().await {
            Ok(told) => told?,
            Err(status) => return Some(status.code()),
        };
        *token = told.resume_token;
        if let Some(Message::Event(event)) = told.message {
            ids.push(event.id);
        }
        if ids.last() == Some(&last) {
            return None;
        }
    }
}

fn check(told: &[Vec<String>]) {
    for (watcher, ids) in told.iter().enumerate() {
        let distinct: HashSet<_> = ids.iter().collect();
        let missing = (0..EVENTS).filter(|number| !distinct.contains(&event_id(*number))).count();
        assert_eq!(missing, 0, "watcher {watcher} was told {} ids, and missed some", ids.len());
        assert_eq!(ids.len(), EVENTS + 1, "watcher {watcher} was told some twice");
        assert!(ids == &told[0], "watcher {watcher} was told in another order");
    }
}

/// Every event, some twice, in disorder: v1's in batches, each tenth as v2's.
fn deliveries() -> Vec<Delivery> {
    let twice = (0..DUPLICATES).map(|_| fastrand::usize(..EVENTS));
    let mut numbers: Vec<usize> = (0..EVENTS).chain(twice).collect();
    numbers.sort_by_cached_key(|number| number + fastrand::usize(..DISORDER));
    let (v2, v1): (Vec<usize>, Vec<usize>) = numbers.into_iter().partition(|number| number % 10 == 0);
    let mut deliveries = Vec::new();
    let mut callbacks = v2.into_iter();
    for batch in v1.chunks(BATCH) {
        deliveries.push(Delivery::batch(batch));
        deliveries.extend(callbacks.by_ref().take(BATCH / 9 + 1).map(Delivery::callback));
    }
    deliveries.extend(callbacks.map(Delivery::callback));
    deliveries
}

async fn send_all(fleet: &Arc<Fleet>) {
    let (deliveries, next) = (Arc::new(deliveries()), Arc::new(AtomicUsize::new(0)));
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (fleet, deliveries, next) = (fleet.clone(), deliveries.clone(), next.clone());
        senders.spawn(async move {
            let http = reqwest::Client::new();
            while let Some(delivery) = deliveries.get(next.fetch_add(1, Ordering::Relaxed)) {
                post_until_taken(&fleet, &http, delivery).await;
            }
        });
    }
    senders.join_all().await;
}

async fn post_until_taken(fleet: &Fleet, http: &reqwest::Client, delivery: &Delivery) {
    while !delivery.post(http, fleet.any().events).await {
        fleet.sent_again.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
}

/// What runs at the end.
struct Survivors {
    _gateways: Vec<Gateway>,
    _redis: Redis,
    gateways_killed: usize,
    redis_killed: usize,
}

/// Kills a gateway, and each third time Redis, and starts it again, until all is taken.
async fn kill(
    fleet: &Fleet,
    mut gateways: Vec<Gateway>,
    mut redis: Redis,
    twilio: SocketAddr,
    url: &str,
) -> Survivors {
    let (mut gateways_killed, mut redis_killed) = (0, 0);
    for round in 1.. {
        sleep(FROM_KILL_TO_KILL).await;
        if fleet.all_taken.load(Ordering::SeqCst) {
            break;
        }
        if round % 3 == 0 {
            redis.kill();
            redis.start_again().await;
            redis_killed += 1;
            continue;
        }
        let index = fastrand::usize(..REPLICAS);
        drop(gateways.remove(index));
        gateways.insert(index, gateway(twilio, url).await);
        fleet.replicas.write().expect("nobody panics")[index] = gateways[index].addresses;
        gateways_killed += 1;
    }
    Survivors { _gateways: gateways, _redis: redis, gateways_killed, redis_killed }
}

async fn gateway(twilio: SocketAddr, redis: &str) -> Gateway {
    // The default suffices at a hundred events a second; here thousands come while a replica restarts.
    let env = [("GATEWAY_REDIS_URL", redis), ("GATEWAY_WATCH_EVENTS_KEPT", "50000")];
    Gateway::start(twilio, &env).await
}
