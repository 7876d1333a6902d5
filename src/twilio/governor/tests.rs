use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;

fn governor(max_concurrency: usize, max_queue: usize) -> Arc<Governor> {
    let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
    Arc::new(Governor::new(account, max_concurrency, max_queue, Metrics::new(None).unwrap()))
}

fn read(caller: u8, within: Duration) -> Ask {
    let caller = CallerId::Peer(IpAddr::V4(Ipv4Addr::new(127, 0, 0, caller)));
    Ask { kind: Kind::Read, caller, deadline: Instant::now() + within }
}

const LONG: Duration = Duration::from_secs(60);

/// Somebody who waits for a place, in a task.
async fn queued(governor: &Arc<Governor>) -> JoinHandle<Result<Permit, Duration>> {
    let (entered, before) = (governor.clone(), governor.load().queued_reads);
    let task = tokio::spawn(async move { entered.enter(read(1, LONG)).await });
    while governor.load().queued_reads == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn a_free_place_is_taken_without_a_pause() {
    let governor = governor(2, 0);
    let places = [governor.enter(read(1, LONG)).now_or_never(), governor.enter(read(1, LONG)).now_or_never()];
    assert!(places.iter().all(|place| matches!(place, Some(Ok(_)))));
    assert!(matches!(governor.enter(read(1, LONG)).now_or_never(), Some(Err(_))));
    drop(places);
    assert_eq!(governor.load().in_flight, 0);
}

#[tokio::test]
async fn who_goes_away_leaves_the_queue_at_once() {
    let governor = governor(1, 10);
    let place = governor.enter(read(1, LONG)).await.unwrap();
    let waiting = queued(&governor).await;
    waiting.abort();
    assert!(waiting.await.err().unwrap().is_cancelled());
    assert_eq!((governor.load().queued_reads, governor.load().in_flight), (0, 1));
    place.end(Ending::Answered(None));
    assert_eq!(governor.load().in_flight, 0);
}

#[tokio::test]
async fn a_place_goes_on_where_its_next_holder_goes_away_at_the_same_moment() {
    let governor = governor(1, 10);
    let place = governor.enter(read(1, LONG)).await.unwrap();
    let (gone, next) = (queued(&governor).await, queued(&governor).await);
    // It is told of its turn, and never runs to take it.
    place.end(Ending::Answered(None));
    gone.abort();
    assert!(gone.await.err().unwrap().is_cancelled());
    let place = next.await.unwrap().unwrap();
    assert_eq!((governor.load().queued_reads, governor.load().in_flight), (0, 1));
    drop(place);
    assert_eq!(governor.load().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_refused_in_time_for_an_answer() {
    let governor = governor(1, 10);
    let place = governor.enter(read(1, LONG)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    place.end(Ending::Answered(None));
    let _place = governor.enter(read(1, LONG)).await.unwrap();
    let began = Instant::now();
    let wait = governor.enter(read(1, Duration::from_secs(4))).await.err().unwrap();
    assert_eq!(began.elapsed().as_secs(), 3, "an answer takes a second");
    assert!(wait >= Duration::from_secs(3));
    assert_eq!(governor.load().queued_reads, 0);
}

#[tokio::test]
async fn the_wait_that_is_told_is_bounded() {
    let governor = governor(1, 0);
    let _place = governor.enter(read(1, LONG)).await.unwrap();
    assert_eq!(governor.enter(read(1, LONG)).await.err(), Some(WAITS.0));
}
