//! What became of writes that carry an id of their caller's choice, so that one that is repeated is answered and not done
//! again.

use std::future::ready;
use std::time::Duration;

use moka::future::Cache as Moka;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ids::{AccountId, RequestId};

type Key = (AccountId, RequestId);
/// Tells one request from another that comes with the same id.
type Fingerprint = [u8; 32];

/// What an entry weighs beside its outcome, by estimate.
const ENTRY_BYTES: u32 = 512;

/// The outcomes of writes by their request ids.
#[derive(Clone)]
pub struct Outcomes<T> {
    entries: Moka<Key, Entry<T>>,
}

/// Bounds of what is kept.
#[derive(Debug)]
pub struct Kept<T> {
    /// So long an outcome is kept from when its write ended.
    pub lifetime: Duration,
    /// So much is kept at most, by estimate; the least recently used leaves first.
    pub max_bytes: u64,
    /// What an outcome weighs.
    pub weight: fn(&T) -> u32,
}

#[derive(Clone)]
struct Entry<T> {
    fingerprint: Fingerprint,
    progress: watch::Receiver<Progress<T>>,
}

/// How far a write has come.
#[derive(Clone, Debug)]
enum Progress<T> {
    /// Nothing was sent.
    Claimed,
    /// It may have been sent.
    Begun,
    /// It was never processed, and can be claimed anew.
    Released,
    /// It was done, or refused: this is what every repetition is answered.
    Settled(T),
}

/// What a call with a request id finds.
pub enum Claim<T: Clone + Send + Sync + 'static> {
    /// It is the first: it does the write and settles the slot.
    First(Slot<T>),
    /// The write is done, or under way.
    Repeated(Repeated<T>),
    /// The id came with another request before.
    OtherRequest,
}

/// The place of an outcome that is not there yet. Dropped before it has begun, it leaves the id free; dropped after that, the
/// outcome is lost.
pub struct Slot<T: Clone + Send + Sync + 'static> {
    outcomes: Outcomes<T>,
    key: Key,
    entry: Entry<T>,
    progress: watch::Sender<Progress<T>>,
}

/// An outcome that is there, or will be.
pub struct Repeated<T>(watch::Receiver<Progress<T>>);

/// What a write came to that another call did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled<T> {
    /// What every repetition is answered.
    Outcome(T),
    /// Nothing: the id can be claimed anew.
    Nothing,
    /// It was lost on the way, and may or may not have been done.
    Lost,
}

impl<T: Clone + Send + Sync + 'static> Outcomes<T> {
    /// None yet.
    pub fn new(kept: &Kept<T>) -> Self {
        let weight = kept.weight;
        let entries = Moka::builder()
            .max_capacity(kept.max_bytes)
            .weigher(move |_, entry: &Entry<T>| match &*entry.progress.borrow() {
                Progress::Settled(outcome) => ENTRY_BYTES.saturating_add(weight(outcome)),
                Progress::Claimed | Progress::Begun | Progress::Released => ENTRY_BYTES,
            })
            // The default policy may refuse new entries while it is full, and with them the promise.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(kept.lifetime)
            .build();
        Self { entries }
    }

    /// Who comes first with an id gets the slot; everybody else, what becomes of it.
    pub async fn claim(&self, account: AccountId, id: RequestId, fingerprint: Fingerprint) -> Claim<T> {
        let key = (account, id);
        loop {
            let (sender, progress) = watch::channel(Progress::Claimed);
            let entry = Entry { fingerprint, progress };
            // Not `or_insert`, which looks first and inserts then: of two at once, both would be first.
            let there = self.entries.entry(key.clone()).or_insert_with(ready(entry.clone())).await;
            if there.is_fresh() {
                return Claim::First(Slot { outcomes: self.clone(), key, entry, progress: sender });
            }
            let there = there.into_value();
            if there.is_abandoned() {
                self.remove(&key, &there).await;
            } else if there.fingerprint == fingerprint {
                return Claim::Repeated(Repeated(there.progress));
            } else {
                return Claim::OtherRequest;
            }
        }
    }

    async fn remove(&self, key: &Key, entry: &Entry<T>) {
        let is_it = |there: &Entry<T>| there.progress.same_channel(&entry.progress);
        let removal = self.entries.entry(key.clone()).and_compute_with(|there| {
            ready(if there.is_some_and(|there| is_it(there.value())) { Op::Remove } else { Op::Nop })
        });
        removal.await;
    }

    /// Drops what has expired, until the token is cancelled: it holds PII.
    pub async fn upkeep(&self, end: CancellationToken) {
        super::tidy(&self.entries, end).await;
    }
}

impl<T> Entry<T> {
    /// Whether whoever claimed it went away before anything was sent.
    fn is_abandoned(&self) -> bool {
        // Only a closed channel is an error.
        self.progress.has_changed().is_err() && matches!(*self.progress.borrow(), Progress::Claimed)
    }
}

impl<T: Clone + Send + Sync + 'static> Slot<T> {
    /// From now on the write may have been sent.
    pub fn begin(&self) {
        self.progress.send_replace(Progress::Begun);
    }

    /// Keeps the outcome for who repeats the write.
    pub async fn settle(self, outcome: T) {
        self.progress.send_replace(Progress::Settled(outcome));
        // Put in anew, it is weighed with its outcome, and its lifetime begins.
        self.outcomes.entries.insert(self.key, self.entry).await;
    }

    /// Nothing was done: whoever repeats the write, or waits for it, may do it.
    pub async fn release(self) {
        // The order matters: who is told that it was released claims the id anew.
        self.outcomes.remove(&self.key, &self.entry).await;
        self.progress.send_replace(Progress::Released);
    }
}

impl<T: Clone> Repeated<T> {
    /// Waits for the write to end.
    pub async fn settled(mut self) -> Settled<T> {
        let ended = |progress: &Progress<T>| matches!(progress, Progress::Settled(_) | Progress::Released);
        // It fails where the slot was dropped.
        let _ = self.0.wait_for(ended).await.map(|_| ());
        match &*self.0.borrow() {
            Progress::Settled(outcome) => Settled::Outcome(outcome.clone()),
            Progress::Released | Progress::Claimed => Settled::Nothing,
            Progress::Begun => Settled::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> AccountId {
        AccountId::parse("AC00000000000000000000000000000000").unwrap()
    }

    fn id() -> RequestId {
        RequestId::parse("7c9e6679-7425-40de-944b-e07fc1f90ae7").unwrap()
    }

    fn outcomes(max_bytes: u64) -> Outcomes<u8> {
        Outcomes::new(&Kept { lifetime: Duration::from_secs(600), max_bytes, weight: |_| 0 })
    }

    async fn claim(outcomes: &Outcomes<u8>, fingerprint: u8) -> Claim<u8> {
        outcomes.claim(account(), id(), [fingerprint; 32]).await
    }

    async fn first(outcomes: &Outcomes<u8>) -> Slot<u8> {
        match claim(outcomes, 1).await {
            Claim::First(slot) => slot,
            Claim::Repeated(_) | Claim::OtherRequest => panic!("the id is claimed already"),
        }
    }

    async fn repeated(outcomes: &Outcomes<u8>) -> Repeated<u8> {
        match claim(outcomes, 1).await {
            Claim::Repeated(repeated) => repeated,
            Claim::First(_) | Claim::OtherRequest => panic!("the id is not claimed by this request"),
        }
    }

    #[tokio::test]
    async fn the_first_settles_for_who_waits_and_who_comes_later() {
        let outcomes = outcomes(1 << 20);
        let slot = first(&outcomes).await;
        slot.begin();
        let waiting = repeated(&outcomes).await;
        assert!(matches!(claim(&outcomes, 2).await, Claim::OtherRequest));
        slot.settle(7).await;
        assert_eq!(waiting.settled().await, Settled::Outcome(7));
        assert_eq!(repeated(&outcomes).await.settled().await, Settled::Outcome(7));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_that_come_at_once_one_is_first() {
        const PAIRS: u128 = 5_000;
        let outcomes = outcomes(1 << 30);
        for number in 1..=PAIRS {
            let id = RequestId::parse(&uuid::Uuid::from_u128(number).to_string()).unwrap();
            let claim = || {
                let outcomes = outcomes.clone();
                tokio::spawn(async move { outcomes.claim(account(), id, [1; 32]).await })
            };
            let (one, other) = (claim(), claim());
            let claims = [one.await.unwrap(), other.await.unwrap()];
            let firsts = claims.iter().filter(|claim| matches!(claim, Claim::First(_))).count();
            assert_eq!(firsts, 1, "pair {number}");
        }
    }

    #[tokio::test]
    async fn what_came_to_nothing_is_claimed_anew_by_any_request() {
        let outcomes = outcomes(1 << 20);
        let slot = first(&outcomes).await;
        slot.begin();
        let waiting = repeated(&outcomes).await;
        slot.release().await;
        assert_eq!(waiting.settled().await, Settled::Nothing);
        assert!(matches!(claim(&outcomes, 2).await, Claim::First(_)));
    }

    #[tokio::test]
    async fn whoever_goes_away_before_anything_is_sent_leaves_the_id_free() {
        let outcomes = outcomes(1 << 20);
        let slot = first(&outcomes).await;
        let waiting = repeated(&outcomes).await;
        drop(slot);
        assert_eq!(waiting.settled().await, Settled::Nothing);
        assert!(matches!(claim(&outcomes, 2).await, Claim::First(_)));
    }

    #[tokio::test]
    async fn what_was_begun_and_lost_is_not_done_again() {
        let outcomes = outcomes(1 << 20);
        let slot = first(&outcomes).await;
        slot.begin();
        drop(slot);
        assert_eq!(repeated(&outcomes).await.settled().await, Settled::Lost);
    }

    #[tokio::test]
    async fn outcomes_end_by_their_lifetime_and_by_weight() {
        let short = Outcomes::new(&Kept { lifetime: Duration::ZERO, max_bytes: 1 << 20, weight: |_: &u8| 0 });
        first(&short).await.settle(1).await;
        assert!(matches!(claim(&short, 2).await, Claim::First(_)));

        let heavy = Outcomes::new(&Kept {
            lifetime: Duration::from_secs(600),
            max_bytes: 4096,
            weight: |_: &u8| 8192,
        });
        first(&heavy).await.settle(1).await;
        heavy.entries.run_pending_tasks().await;
        assert_eq!(heavy.entries.entry_count(), 0, "one that is too heavy by itself is not kept");
    }
}
