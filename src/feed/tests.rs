use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::proto::{Address, Participant, ParticipantEventType};

fn account() -> AccountId {
    AccountId::parse("AC00000000000000000000000000000000").unwrap()
}

fn event(id: &str, kind: ParticipantEventType, participant: &str, second: i64) -> Event {
    let event = ParticipantEvent {
        id: id.into(),
        r#type: kind.into(),
        participant: Some(Participant { id: participant.into(), ..Participant::default() }),
        event_time: Some(prost_types::Timestamp { seconds: second, nanos: 0 }),
        remove_time: None,
    };
    Event { account: account(), version: ApiVersion::V1, event }
}

fn added(number: usize) -> Event {
    event(&format!("EZ{number}"), ParticipantEventType::Added, &format!("MB{number}"), 1)
}

/// A feed that keeps so many events, however large.
fn kept(events: usize) -> Feed {
    Feed::local(Capacity { events, bytes: u64::MAX })
}

/// An event that weighs about so much.
fn large(number: usize, bytes: usize) -> Event {
    let mut large = added(number);
    large.event.participant.as_mut().unwrap().attributes = "x".repeat(bytes);
    large
}

fn in_conversation(number: usize, conversation: &str) -> Event {
    let mut event = added(number);
    event.event.participant.as_mut().unwrap().conversation_id = conversation.into();
    event
}

fn topics(conversation: &str) -> HashSet<Topic> {
    HashSet::from([(account(), ApiVersion::V1, conversation.into())])
}

fn publish(feed: &Feed, event: Event) -> Published {
    // Alone, it waits for nothing.
    feed.publish(event).now_or_never().unwrap().unwrap()
}

fn ids(batch: &[Told]) -> Vec<&str> {
    batch.iter().map(|told| told.event.event.id.as_str()).collect()
}

async fn next(subscription: &mut Subscription) -> Result<Vec<Told>, Missed> {
    timeout(std::time::Duration::from_secs(5), subscription.next()).await.expect("there is something to tell")
}

#[tokio::test]
async fn a_watcher_is_told_what_comes_after_it_came() {
    let feed = kept(10);
    publish(&feed, added(0));
    let mut watcher = feed.subscribe(None).unwrap();
    publish(&feed, added(1));
    publish(&feed, added(2));
    assert_eq!(ids(&next(&mut watcher).await.unwrap()), ["EZ1", "EZ2"]);
    let waiting = tokio::spawn(async move { next(&mut watcher).await.map(|batch| batch.len()) });
    publish(&feed, added(3));
    assert_eq!(waiting.await.unwrap(), Ok(1));
}

#[tokio::test]
async fn a_place_is_resumed_without_gap_or_repeat_while_the_ring_holds_it() {
    let feed = kept(4);
    let begin = feed.subscribe(None).unwrap().place();
    for number in 0..4 {
        publish(&feed, added(number));
    }
    let mut watcher = feed.subscribe(Some(begin)).unwrap();
    let batch = next(&mut watcher).await.unwrap();
    assert_eq!(ids(&batch), ["EZ0", "EZ1", "EZ2", "EZ3"]);
    let mut resumed = feed.subscribe(Some(batch[1].position)).unwrap();
    assert_eq!(ids(&next(&mut resumed).await.unwrap()), ["EZ2", "EZ3"]);

    publish(&feed, added(4));
    assert_eq!(feed.subscribe(Some(begin)).err(), Some(Expired));
    assert!(feed.subscribe(Some(batch[0].position)).is_ok(), "all after it is there");
    let future = Position { number: 99, ..batch[0].position };
    assert_eq!(feed.subscribe(Some(future)).err(), Some(Expired));
    let of_an_earlier_process = Position { epoch: begin.epoch - 1, number: 2 };
    assert_eq!(feed.subscribe(Some(of_an_earlier_process)).err(), Some(Expired));
}

#[tokio::test]
async fn who_lags_is_told_so_while_its_place_can_be_resumed() {
    let feed = kept(10);
    let mut slow = feed.subscribe(None).unwrap();
    for number in 0..6 {
        publish(&feed, added(number));
    }
    assert_eq!(next(&mut slow).await.err(), Some(Missed::Lagged));
    let mut resumed = feed.subscribe(Some(slow.place())).unwrap();
    assert_eq!(next(&mut resumed).await.unwrap().len(), 6, "it catches up, which is no lag");
}

#[tokio::test]
async fn who_watches_while_events_are_lost_is_told_so() {
    let feed = kept(10);
    publish(&feed, added(0));
    let mut all = feed.subscribe(None).unwrap();
    let mut few = feed.subscribe_to(topics("CH1"), None).unwrap();
    feed.lose().await.unwrap();
    for watcher in [&mut all, &mut few] {
        assert_eq!(next(watcher).await.err(), Some(Missed::Gone));
        assert_eq!(feed.subscribe(Some(watcher.place())).err(), Some(Expired));
    }
    let mut later = feed.subscribe(None).unwrap();
    publish(&feed, added(1));
    assert_eq!(ids(&next(&mut later).await.unwrap()), ["EZ1"]);
}

#[tokio::test]
async fn who_asks_again_only_when_it_is_gone_is_told_so() {
    let feed = kept(4);
    let mut asleep = feed.subscribe(None).unwrap();
    for number in 0..5 {
        publish(&feed, added(number));
    }
    assert_eq!(next(&mut asleep).await.err(), Some(Missed::Gone));
    assert_eq!(feed.subscribe(Some(asleep.place())).err(), Some(Expired));
    assert_eq!(feed.subscribe(Some(Position::default())).err(), Some(Expired), "the place of none");
}

#[tokio::test]
async fn what_is_kept_is_bounded_in_bytes_too() {
    let feed = Feed::local(Capacity { events: 100, bytes: 100_000 });
    let begin = feed.subscribe(None).unwrap().place();
    for number in 0..4 {
        publish(&feed, large(number, 22_000));
    }
    let batch = next(&mut feed.subscribe(Some(begin)).unwrap()).await.unwrap();
    assert_eq!(ids(&batch), ["EZ0", "EZ1", "EZ2", "EZ3"]);
    publish(&feed, large(4, 22_000));
    assert_eq!(feed.subscribe(Some(begin)).err(), Some(Expired));
    let mut resumed = feed.subscribe(Some(batch[0].position)).unwrap();
    assert_eq!(ids(&next(&mut resumed).await.unwrap()), ["EZ1", "EZ2", "EZ3", "EZ4"]);

    publish(&feed, large(5, 1_000_000));
    assert_eq!(ids(&next(&mut resumed).await.unwrap()), ["EZ5"], "the newest is always kept");
    assert_eq!(feed.subscribe(Some(batch[3].position)).err(), Some(Expired));
    for number in 6..10 {
        publish(&feed, large(number, 22_000));
    }
    assert_eq!(next(&mut feed.subscribe(Some(resumed.place())).unwrap()).await.unwrap().len(), 4);
}

#[tokio::test]
async fn many_empty_addresses_weigh_as_much_as_they_take() {
    let feed = Feed::local(Capacity { events: 100, bytes: 100_000 });
    let mut watcher = feed.subscribe(None).unwrap();
    for number in 0..2 {
        let mut event = added(number);
        event.event.participant.as_mut().unwrap().addresses = vec![Address::default(); 1000];
        publish(&feed, event);
    }
    assert_eq!(next(&mut watcher).await.err(), Some(Missed::Gone));
}

#[tokio::test]
async fn large_events_are_given_a_few_at_once() {
    let feed = kept(100);
    let mut watcher = feed.subscribe(None).unwrap();
    for (number, bytes) in [2_000_000, 500_000, 400_000, 300_000].into_iter().enumerate() {
        publish(&feed, large(number, bytes));
    }
    for expected in [["EZ0"].as_slice(), &["EZ1", "EZ2"], &["EZ3"]] {
        assert_eq!(ids(&next(&mut watcher).await.unwrap()), expected);
    }
}

#[tokio::test]
async fn who_lags_by_bytes_is_told_so_while_its_place_can_be_resumed() {
    let feed = Feed::local(Capacity { events: 100, bytes: 100_000 });
    let mut slow = feed.subscribe(None).unwrap();
    publish(&feed, large(0, 80_000));
    assert_eq!(next(&mut slow).await.unwrap().len(), 1, "one is no lag, however large");
    for number in 1..4 {
        publish(&feed, large(number, 22_000));
    }
    assert_eq!(next(&mut slow).await.err(), Some(Missed::Lagged));
    let mut resumed = feed.subscribe(Some(slow.place())).unwrap();
    assert_eq!(ids(&next(&mut resumed).await.unwrap()), ["EZ1", "EZ2", "EZ3"]);
}

#[test]
fn ids_are_told_apart_and_known_again_however_long_they_are() {
    let feed = kept(10);
    let long = |last: &str| event(&("x".repeat(100_000) + last), ParticipantEventType::Added, "MB1", 1);
    assert_eq!(publish(&feed, long("1")), Published::Told);
    assert_eq!(publish(&feed, long("2")), Published::Told);
    assert_eq!(publish(&feed, long("1")), Published::Repeated);
}

#[test]
fn an_id_is_told_once() {
    let feed = kept(10);
    assert_eq!(publish(&feed, added(1)), Published::Told);
    assert_eq!(publish(&feed, added(1)), Published::Repeated);
    let of_v2 = Event { version: ApiVersion::V2, ..added(1) };
    assert_eq!(publish(&feed, of_v2), Published::Told);
}

#[test]
fn what_is_older_than_a_removal_brings_nobody_back() {
    use ParticipantEventType::{Added, Removed, Updated};
    let feed = kept(10);
    let published = |id, kind, second| publish(&feed, event(id, kind, "MB1", second));
    assert_eq!(published("1", Removed, 10), Published::Told);
    assert_eq!(published("2", Added, 5), Published::Outdated);
    assert_eq!(published("3", Updated, 9), Published::Outdated);
    assert_eq!(published("4", Added, 11), Published::Told, "added again");
    assert_eq!(published("6", Removed, 4), Published::Told);
    assert_eq!(published("7", Updated, 9), Published::Outdated, "the later removal counts");
    assert_eq!(publish(&feed, event("5", Updated, "MB2", 1)), Published::Told, "another participant");
}

#[tokio::test]
async fn a_watcher_of_a_conversation_sleeps_through_the_events_of_others_and_never_lags_for_them() {
    let feed = kept(10);
    let mut watcher = feed.subscribe_to(topics("CH1"), None).unwrap();
    let begin = watcher.place();
    for number in 0..30 {
        publish(&feed, in_conversation(number, "CH2"));
        assert!(watcher.next().now_or_never().is_none());
    }
    assert!(watcher.place() > begin, "a heartbeat's token moves on");
    let mut resumed = feed.subscribe(Some(watcher.place())).unwrap();
    publish(&feed, in_conversation(30, "CH1"));
    publish(&feed, in_conversation(31, "CH2"));
    assert_eq!(ids(&next(&mut resumed).await.unwrap()), ["EZ30", "EZ31"]);
    assert_eq!(ids(&next(&mut watcher).await.unwrap()), ["EZ30"]);
    assert!(watcher.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_watcher_of_a_conversation_that_does_not_read_lags_and_then_has_lost() {
    let feed = kept(10);
    let mut watcher = feed.subscribe_to(topics("CH1"), None).unwrap();
    let tell = |numbers: std::ops::Range<usize>, conversation| {
        numbers.for_each(|number| {
            publish(&feed, in_conversation(number, conversation));
        });
    };
    tell(0..20, "CH2");
    tell(20..21, "CH1");
    tell(21..26, "CH2");
    assert_eq!(next(&mut watcher).await.err(), Some(Missed::Lagged));
    let mut resumed = feed.subscribe_to(topics("CH1"), Some(watcher.place())).unwrap();
    assert_eq!(ids(&next(&mut resumed).await.unwrap()), ["EZ20"]);
    tell(26..31, "CH2");
    assert_eq!(next(&mut watcher).await.err(), Some(Missed::Gone));
    assert!(resumed.next().now_or_never().is_none());
    assert_eq!(feed.subscribe(Some(watcher.place())).err(), Some(Expired));
}

#[tokio::test]
async fn a_watcher_of_a_conversation_catches_up_over_many_events_of_others() {
    let feed = kept(1000);
    let begin = feed.subscribe(None).unwrap().place();
    for number in 0..600 {
        publish(&feed, in_conversation(number, if number % 599 == 0 { "CH1" } else { "CH2" }));
    }
    let (mut watcher, mut told) = (feed.subscribe_to(topics("CH1"), Some(begin)).unwrap(), Vec::new());
    while let Some(batch) = watcher.next().now_or_never() {
        told.extend(ids(&batch.unwrap()).into_iter().map(str::to_owned));
    }
    assert_eq!(told, ["EZ0", "EZ599"]);
}

#[tokio::test]
async fn where_the_feed_begins_anew_a_sleeping_watcher_is_told_that_it_may_have_missed_something() {
    let feed = kept(10);
    let mut asleep = feed.subscribe_to(topics("CH1"), None).unwrap();
    let after = asleep.place().next().next();
    feed.restart(after, Vec::new());
    assert_eq!(next(&mut asleep).await.err(), Some(Missed::Gone));
    let mut new = feed.subscribe_to(topics("CH1"), None).unwrap();
    feed.restart(after, Vec::new());
    assert!(next(&mut new).await.unwrap().is_empty(), "nothing was lost after the place");
    publish(&feed, in_conversation(1, "CH1"));
    assert_eq!(ids(&next(&mut new).await.unwrap()), ["EZ1"]);
}

#[tokio::test]
async fn ten_thousand_watchers_are_told_an_event_once_each_and_leave_nothing_behind() {
    let feed = kept(10);
    let mut watchers = JoinSet::new();
    for number in 0..10_000 {
        let topics = [HashSet::new(), topics("CH1")].into_iter().nth(number % 2).unwrap();
        let mut watcher = feed.subscribe_to(topics, None).unwrap();
        watchers.spawn(async move { (ids(&next(&mut watcher).await.unwrap()).join(" "), watcher) });
    }
    let mut elsewhere: Vec<_> =
        (0..1000).map(|number| feed.subscribe_to(topics(&format!("CZ{number}")), None).unwrap()).collect();
    // So that all of them wait.
    tokio::task::yield_now().await;
    publish(&feed, in_conversation(1, "CH1"));
    while let Some(watcher) = watchers.join_next().await {
        let (told, mut watcher) = watcher.unwrap();
        assert_eq!(told, "EZ1");
        assert!(watcher.next().now_or_never().is_none());
    }
    assert!(elsewhere.iter_mut().all(|watcher| watcher.next().now_or_never().is_none()));
    assert_eq!((feed.shared.latest.receiver_count(), feed.state().sleepers.is_empty()), (0, false));
    drop(elsewhere);
    assert!(feed.state().sleepers.is_empty());
}

#[test]
fn places_have_no_gap_between_them() {
    let place = Position { epoch: 7, number: 0 };
    assert!(place.before() < place && place.before().next() == place);
    assert_eq!(place.next().before(), place);
}

#[test]
fn a_place_is_written_and_read() {
    let place = Position { epoch: 1_700_000_000_000, number: 42 };
    assert_eq!(place.to_string().parse(), Ok(place));
    for text in ["", "-", "1-", "-1", "1", "+1-2", "1-2-3", "a-b", "99999999999999999999-0"] {
        assert_eq!(text.parse::<Position>(), Err(NoPosition), "{text}");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However rarely it asks, and from wherever it resumes: until it is told that it has lost something, a watcher of a
        /// conversation is told all of its events, once and in order.
        #[test]
        fn a_watcher_of_a_conversation_misses_nothing(steps in prop::collection::vec(0..8, 0..200)) {
            let feed = kept(8);
            let mut watcher = feed.subscribe_to(topics("CH0"), None).unwrap();
            let (mut expected, mut told) = (Vec::new(), Vec::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    0..5 => {
                        publish(&feed, in_conversation(number, &format!("CH{step}")));
                        expected.extend((step == 0).then(|| format!("EZ{number}")));
                    }
                    5..7 => match watcher.next().now_or_never() {
                        None => prop_assert_eq!(&told, &expected),
                        Some(Ok(batch)) => told.extend(ids(&batch).into_iter().map(str::to_owned)),
                        Some(Err(Missed::Lagged)) => {
                            watcher = feed.subscribe_to(topics("CH0"), Some(watcher.place())).unwrap();
                        }
                        Some(Err(Missed::Gone)) => {
                            prop_assert!(told.len() < expected.len());
                            return Ok(());
                        }
                    },
                    _ => match feed.subscribe_to(topics("CH0"), Some(watcher.place())) {
                        Ok(resumed) => watcher = resumed,
                        Err(Expired) => {
                            prop_assert!(told.len() < expected.len());
                            return Ok(());
                        }
                    },
                }
                prop_assert!(expected.starts_with(&told));
            }
        }
    }
}
