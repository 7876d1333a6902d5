//! What watchers cost one process: events a second, CPU time, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use participant_gateway::proto::watch_participants_response::Message;
use participant_gateway::proto::{ConversationRef, WatchParticipantsRequest};
use participant_gateway::sandbox::{Sandbox, Settings};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::delivery::{Delivery, conversation};
use crate::processes::Gateway;

/// A connection has no more streams.
const STREAMS: usize = 100;
const BATCH: usize = 100;
const SENDERS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(100);

pub(crate) async fn run() {
    println!("watchers, each of  events   applied/s     told/s   CPU ms/event   KiB/watcher");
    measure(0, false, 20_000).await;
    measure(100, false, 20_000).await;
    measure(10_000, true, 2_000).await;
    measure(10_000, false, 200).await;
}

/// A gateway of its own, with so many watchers of everything, or each of a conversation of its own.
async fn measure(watchers: usize, of_one: bool, events: usize) {
    let sandbox = Sandbox::bind(Settings::default()).await.expect("a sandbox");
    let (twilio, end) = (sandbox.local_addr(), CancellationToken::new());
    tokio::spawn(sandbox.run(end.clone()));
    // So that nobody lags: what is measured is how fast all are told.
    let gateway = Gateway::start(twilio, &[("GATEWAY_WATCH_EVENTS_KEPT", "100000")]).await;
    let told = Arc::new(AtomicUsize::new(0));
    let (idle, mut streams) = (gateway.resident_bytes(), JoinSet::new());
    for number in (0..watchers).step_by(STREAMS) {
        open(&gateway, number, of_one, &told, &mut streams).await;
    }
    let memory = (gateway.resident_bytes() - idle) / 1024.0 / watchers.max(1) as f64;
    let (began, cpu) = (Instant::now(), gateway.cpu_seconds());
    send(&gateway, events).await;
    let applied = began.elapsed().as_secs_f64();
    let all = if of_one { events } else { events * watchers };
    let telling = async {
        while told.load(Ordering::Relaxed) < all {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, telling).await.expect("all are told");
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{watchers:>8} {:>8} {events:>8} {:>11.0} {:>10.0} {:>14.3} {memory:>13.1}",
        if of_one { "one" } else { "all" },
        events as f64 / applied,
        all as f64 / seconds,
        (gateway.cpu_seconds() - cpu) * 1000.0 / events as f64,
    );
    end.cancel();
}

/// A connection full of watchers, all of which have begun.
async fn open(
    gateway: &Gateway,
    first: usize,
    of_one: bool,
    told: &Arc<AtomicUsize>,
    streams: &mut JoinSet<()>,
) {
    let client = gateway.addresses.connect().await.expect("a connection");
    let mut opening = JoinSet::new();
    for number in first..first + STREAMS {
        let mut client = client.clone();
        let one = ConversationRef { conversation_id: conversation(number), ..Default::default() };
        let conversations = if of_one { vec![one] } else { Vec::new() };
        opening.spawn(async move {
            let request = WatchParticipantsRequest { conversations, ..Default::default() };
            let mut stream = client.watch_participants(request).await.expect("a stream").into_inner();
            stream.message().await.expect("a heartbeat");
            stream
        });
    }
    for mut stream in opening.join_all().await {
        let told = told.clone();
        streams.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                if let Some(Message::Event(_)) = message.message {
                    told.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
}

async fn send(gateway: &Gateway, events: usize) {
    let (listener, next) = (gateway.addresses.events, Arc::new(AtomicUsize::new(0)));
    let numbers: Vec<usize> = (0..events).collect();
    let deliveries: Arc<Vec<_>> = Arc::new(numbers.chunks(BATCH).map(Delivery::batch).collect());
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (deliveries, next) = (deliveries.clone(), next.clone());
        senders.spawn(async move {
            let http = reqwest::Client::new();
            while let Some(delivery) = deliveries.get(next.fetch_add(1, Ordering::Relaxed)) {
                while !delivery.post(&http, listener).await {}
            }
        });
    }
    senders.join_all().await;
}
