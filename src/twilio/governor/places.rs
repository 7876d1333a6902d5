//! The places of an account, and who has to wait for one: pure, but for the channels that tell those who wait.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::limit::Limit;
use super::queue::{Kind, Queue, Spot};
use crate::ids::CallerId;

/// Nobody waits longer, whatever the deadline: whoever has no answer by then has often asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How much the newest of the times that places were held counts in their mean.
const NEWEST_SHARE: f64 = 0.1;

/// Who asks for a place, and how long there is to wait for it.
#[derive(Clone, Copy, Debug)]
pub(in crate::twilio) struct Ask {
    pub(in crate::twilio) kind: Kind,
    pub(in crate::twilio) caller: CallerId,
    /// By when Twilio has to have answered.
    pub(in crate::twilio) deadline: Instant,
}

/// How a request ended that had a place.
#[derive(Clone, Copy, Debug)]
pub(in crate::twilio) enum Ending {
    /// Twilio answered, and had so many requests of the account under way, where it told.
    Answered(Option<u64>),
    /// Twilio had too many requests of the account under way: so many, where it told.
    Exceeded(Option<u64>),
    /// Twilio failed: no sign of how many it can take.
    Failed,
    /// Nothing was sent, or nobody waited for the end: no sign of how long one takes, either.
    Dropped,
}

/// What becomes of who asks.
pub(super) enum Entry {
    Taken,
    Queued(Queued),
    Refused(Refusal),
}

/// Who waits is told by the channel, and must leave the queue otherwise.
pub(super) struct Queued {
    pub(super) spot: Spot<CallerId>,
    pub(super) turn: oneshot::Receiver<()>,
    pub(super) until: Instant,
}

/// Nothing is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    /// Out of a closed set.
    pub(super) reason: &'static str,
    /// How long it would have taken.
    pub(super) wait: Duration,
}

/// An account's places. Where one is free nobody waits.
pub(super) struct Places {
    limit: Limit,
    taken: usize,
    queue: Queue<CallerId, oneshot::Sender<()>>,
    /// How long a place was held, in the mean; `None` before the first was given back.
    typical: Option<Duration>,
    /// When a place was taken or given back last.
    moved: Instant,
}

/// What an account has under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) limit: usize,
    pub(super) in_flight: usize,
    pub(super) queued_reads: usize,
    pub(super) queued_writes: usize,
}

impl Places {
    pub(super) fn new(most: usize, max_queue: usize, now: Instant) -> Self {
        Self { limit: Limit::new(most), taken: 0, queue: Queue::new(max_queue), typical: None, moved: now }
    }

    pub(super) fn enter(&mut self, ask: Ask, now: Instant) -> Entry {
        if self.taken < self.limit.get() {
            self.taken += 1;
            self.moved = now;
            return Entry::Taken;
        }
        let wait = self.expected_wait(ask, now);
        // What begins later is not answered in time.
        let latest = ask.deadline.checked_sub(self.typical.unwrap_or_default()).unwrap_or(now);
        let until = latest.min(now + LONGEST_WAIT);
        if !self.queue.has_room(ask.caller) {
            return Entry::Refused(Refusal { reason: "queue_full", wait });
        }
        if now + wait >= until {
            return Entry::Refused(Refusal { reason: "no_time", wait });
        }
        let (tell, turn) = oneshot::channel();
        let spot = self.queue.push(ask.kind, ask.caller, tell);
        Entry::Queued(Queued { spot, turn, until })
    }

    /// A place although none may be free.
    pub(super) fn enter_beyond(&mut self, now: Instant) {
        self.taken += 1;
        self.moved = now;
    }

    /// By the pace at which places become free; where none does, as long again as none did.
    pub(super) fn expected_wait(&self, ask: Ask, now: Instant) -> Duration {
        let turns = self.queue.ahead(ask.kind, ask.caller) + 1;
        let by_pace = self.typical.unwrap_or_default().mul_f64(turns as f64 / self.limit.get() as f64);
        by_pace.max(now.saturating_duration_since(self.moved))
    }

    /// Somebody who was queued goes away, with the turn where it has come meanwhile. Tells whom to wake.
    pub(super) fn leave(&mut self, spot: Spot<CallerId>, now: Instant) -> Vec<oneshot::Sender<()>> {
        if self.queue.remove(spot) { Vec::new() } else { self.free(now) }
    }

    /// A place that was taken at `began` is given back. Tells whom to wake.
    pub(super) fn end(&mut self, began: Instant, ending: Ending, now: Instant) -> Vec<oneshot::Sender<()>> {
        match ending {
            Ending::Answered(total) => self.limit.answered(self.taken, total, now),
            Ending::Exceeded(total) => self.limit.exceeded(began, self.taken, total, now),
            Ending::Failed => {}
            Ending::Dropped => return self.free(now),
        }
        let held = now.saturating_duration_since(began);
        let mean = |typical: Duration| typical.mul_f64(1.0 - NEWEST_SHARE) + held.mul_f64(NEWEST_SHARE);
        self.typical = Some(self.typical.map_or(held, mean));
        self.free(now)
    }

    fn free(&mut self, now: Instant) -> Vec<oneshot::Sender<()>> {
        self.taken -= 1;
        self.moved = now;
        let mut next = Vec::new();
        while self.taken < self.limit.get()
            && let Some(waiter) = self.queue.pop()
        {
            self.taken += 1;
            next.push(waiter);
        }
        next
    }

    pub(super) fn load(&self) -> Load {
        Load {
            limit: self.limit.get(),
            in_flight: self.taken,
            queued_reads: self.queue.len(Kind::Read),
            queued_writes: self.queue.len(Kind::Write),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn ask(kind: Kind, caller: u8, deadline: Instant) -> Ask {
        Ask { kind, caller: CallerId::Peer(IpAddr::V4(Ipv4Addr::new(127, 0, 0, caller))), deadline }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// One place, which is taken, and was held for a second before.
    fn busy(now: Instant) -> Places {
        let mut places = Places::new(1, 100, now);
        assert!(matches!(places.enter(ask(Kind::Read, 1, now), now), Entry::Taken));
        assert!(places.end(now - seconds(1), Ending::Answered(None), now).is_empty());
        assert!(matches!(places.enter(ask(Kind::Read, 1, now), now), Entry::Taken));
        places
    }

    #[test]
    fn who_would_wait_beyond_the_deadline_is_refused_at_once() {
        let now = Instant::now();
        let mut places = busy(now);
        // A second for the turn, and one for the answer.
        let Entry::Refused(refusal) = places.enter(ask(Kind::Read, 1, now + seconds(2)), now) else {
            panic!("it waits in vain");
        };
        assert_eq!((refusal.reason, refusal.wait), ("no_time", seconds(1)));
        let Entry::Queued(queued) = places.enter(ask(Kind::Read, 1, now + seconds(3)), now) else {
            panic!("there is time enough");
        };
        assert_eq!(queued.until, now + seconds(2));
        // The second of them would begin two seconds from now.
        assert!(matches!(places.enter(ask(Kind::Read, 1, now + seconds(3)), now), Entry::Refused(_)));
        let Entry::Queued(queued) = places.enter(ask(Kind::Read, 1, now + seconds(60)), now) else {
            panic!("there is time enough");
        };
        assert_eq!(queued.until, now + LONGEST_WAIT);
    }

    #[test]
    fn where_no_place_becomes_free_the_wait_grows() {
        let now = Instant::now();
        let mut places = busy(now);
        let later = now + seconds(4);
        assert_eq!(places.expected_wait(ask(Kind::Read, 1, later), later), seconds(4));
        assert!(matches!(places.enter(ask(Kind::Read, 1, later + seconds(5)), later), Entry::Refused(_)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Enter(Kind, u8, u64),
        /// Somebody who was queued goes away, whether the turn has come or not.
        Leave(usize),
        End(usize, Ending),
    }

    fn step() -> impl Strategy<Value = Step> {
        let ending = prop_oneof![
            4 => proptest::option::of(0..20_u64).prop_map(Ending::Answered),
            1 => proptest::option::of(0..20_u64).prop_map(Ending::Exceeded),
            1 => select(vec![Ending::Failed, Ending::Dropped]),
        ];
        let kind = select(vec![Kind::Read, Kind::Write]);
        prop_oneof![
            3 => (kind, 0..4_u8, 0..20_u64).prop_map(|(kind, caller, left)| Step::Enter(kind, caller, left)),
            1 => any::<usize>().prop_map(Step::Leave),
            2 => (any::<usize>(), ending).prop_map(|(at, ending)| Step::End(at, ending)),
        ]
    }

    /// Those who have a place, and those who wait.
    #[derive(Default)]
    struct Crowd {
        began: Vec<Instant>,
        queued: Vec<Queued>,
    }

    impl Crowd {
        /// Those who were told that it is their turn have a place.
        fn wake(&mut self, next: Vec<oneshot::Sender<()>>, now: Instant) {
            let before = self.queued.len();
            let woken = next.len();
            next.into_iter().for_each(|waiter| waiter.send(()).unwrap());
            self.queued.retain_mut(|queued| queued.turn.try_recv().is_err());
            assert_eq!(before - self.queued.len(), woken, "each turn is somebody's");
            self.began.extend(vec![now; woken]);
        }
    }

    proptest! {
        #[test]
        fn no_place_is_given_beyond_the_limit_and_none_is_lost(
            most in 1..8_usize,
            steps in vec((step(), 0..300_u64), 0..200),
        ) {
            let mut now = Instant::now();
            let (mut places, mut crowd) = (Places::new(most, 20, now), Crowd::default());
            for (step, passed) in steps {
                now += Duration::from_millis(passed);
                let before = crowd.began.len();
                match step {
                    Step::Enter(kind, caller, left) => {
                        match places.enter(ask(kind, caller, now + seconds(left)), now) {
                            Entry::Taken => crowd.began.push(now),
                            Entry::Queued(queued) => {
                                prop_assert!(queued.until > now && queued.until <= now + seconds(left));
                                crowd.queued.push(queued);
                            }
                            Entry::Refused(_) => prop_assert!(before >= places.load().limit),
                        }
                    }
                    Step::Leave(at) if !crowd.queued.is_empty() => {
                        let queued = crowd.queued.remove(at % crowd.queued.len());
                        prop_assert!(places.leave(queued.spot, now).is_empty());
                    }
                    Step::End(at, ending) if !crowd.began.is_empty() => {
                        let began = crowd.began.swap_remove(at % crowd.began.len());
                        let next = places.end(began, ending, now);
                        crowd.wake(next, now);
                    }
                    Step::Leave(_) | Step::End(..) => {}
                }
                let Load { limit, in_flight, queued_reads, queued_writes } = places.load();
                prop_assert_eq!(in_flight, crowd.began.len());
                prop_assert_eq!(queued_reads + queued_writes, crowd.queued.len());
                prop_assert!(in_flight <= limit.max(before) && limit <= most);
                prop_assert!(crowd.queued.is_empty() || in_flight >= limit, "somebody waits for a free place");
            }
            // All end, and everybody has had a turn.
            while let Some(began) = crowd.began.pop() {
                let next = places.end(began, Ending::Failed, now);
                crowd.wake(next, now);
            }
            prop_assert!(crowd.queued.is_empty());
            prop_assert_eq!(places.load().in_flight, 0);
        }
    }

    #[test]
    fn a_turn_that_nobody_takes_goes_on_to_the_next() {
        let now = Instant::now();
        let mut places = busy(now);
        let far = ask(Kind::Read, 1, now + seconds(60));
        let [Entry::Queued(first), Entry::Queued(mut second)] =
            [places.enter(far, now), places.enter(far, now)]
        else {
            panic!("the place is taken");
        };
        let mut next = places.end(now, Ending::Failed, now);
        assert_eq!(next.len(), 1);
        // Before the first is told, it is dropped.
        let told = next.remove(0);
        let after = places.leave(first.spot, now);
        assert!(told.send(()).is_ok());
        after.into_iter().for_each(|waiter| waiter.send(()).unwrap());
        assert!(second.turn.try_recv().is_ok());
        let load = Load { limit: 1, in_flight: 1, queued_reads: 0, queued_writes: 0 };
        assert_eq!(places.load(), load);
    }
}
