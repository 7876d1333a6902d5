//! What became of writes that carry an id of their caller's choice, so that one that is repeated is answered and not done
//! again.

use std::future::ready;
use std::time::Duration;

use moka::future::Cache as Moka;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use tokio::sync::watch;

use crate::ids::{AccountId, RequestId};

/// The contract's promise: so long an outcome is kept, from when its write was claimed.
const KEPT: Duration = Duration::from_secs(600);
/// So many are kept at most, at about a KiB each; the least recently used leaves first.
const MAX_OUTCOMES: u64 = 50_000;

type Key = (AccountId, RequestId);
/// Tells one request from another that comes with the same id.
type Fingerprint = [u8; 32];

/// The outcomes of writes by their request ids.
#[derive(Clone)]
pub struct Outcomes<T> {
    entries: Moka<Key, Entry<T>>,
}

#[derive(Clone)]
struct Entry<T> {
    fingerprint: Fingerprint,
    settled: watch::Receiver<Option<Settled<T>>>,
}

/// What a write came to.
#[derive(Clone, Debug)]
pub enum Settled<T> {
    /// It was done, or refused: this is what every repetition is answered.
    Outcome(T),
    /// It was never processed, and can be claimed anew.
    Released,
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

/// The place of an outcome that is not there yet.
pub struct Slot<T: Clone + Send + Sync + 'static> {
    outcomes: Outcomes<T>,
    key: Key,
    settled: watch::Sender<Option<Settled<T>>>,
}

/// An outcome that is there, or will be.
pub struct Repeated<T>(watch::Receiver<Option<Settled<T>>>);

impl<T: Clone + Send + Sync + 'static> Default for Outcomes<T> {
    fn default() -> Self {
        let entries = Moka::builder()
            .max_capacity(MAX_OUTCOMES)
            // The default policy may refuse new entries while it is full, and with them the promise.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(KEPT)
            .build();
        Self { entries }
    }
}

impl<T: Clone + Send + Sync + 'static> Outcomes<T> {
    /// Who comes first with an id gets the slot; everybody else, what becomes of it.
    pub async fn claim(&self, account: AccountId, id: RequestId, fingerprint: Fingerprint) -> Claim<T> {
        let key = (account, id);
        let (sender, settled) = watch::channel(None);
        let entry = Entry { fingerprint, settled };
        let there = self.entries.entry(key.clone()).or_insert(entry).await;
        if there.is_fresh() {
            return Claim::First(Slot { outcomes: self.clone(), key, settled: sender });
        }
        let there = there.into_value();
        if there.fingerprint == fingerprint {
            Claim::Repeated(Repeated(there.settled))
        } else {
            Claim::OtherRequest
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Slot<T> {
    /// Keeps the outcome for who repeats the write.
    pub fn settle(self, outcome: T) {
        self.settled.send_replace(Some(Settled::Outcome(outcome)));
    }

    /// Nothing was done: whoever repeats the write, or waits for it, may do it.
    pub async fn release(self) {
        let is_ours = |there: &Entry<T>| there.settled.same_channel(&self.settled.subscribe());
        // The order matters: who is told that it was released claims the id anew.
        let entry = self.outcomes.entries.entry(self.key.clone());
        let removal = entry.and_compute_with(|there| {
            ready(if there.is_some_and(|there| is_ours(there.value())) { Op::Remove } else { Op::Nop })
        });
        removal.await;
        self.settled.send_replace(Some(Settled::Released));
    }
}

impl<T: Clone> Repeated<T> {
    /// Waits for the write; `None` where it was lost on the way, and may or may not have been done.
    pub async fn settled(mut self) -> Option<Settled<T>> {
        let settled = self.0.wait_for(Option::is_some).await.ok()?;
        settled.clone()
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
        let outcomes = Outcomes::default();
        let slot = first(&outcomes).await;
        let waiting = repeated(&outcomes).await;
        assert!(matches!(claim(&outcomes, 2).await, Claim::OtherRequest));
        slot.settle(7);
        assert!(matches!(waiting.settled().await, Some(Settled::Outcome(7))));
        assert!(matches!(repeated(&outcomes).await.settled().await, Some(Settled::Outcome(7))));
    }

    #[tokio::test]
    async fn what_came_to_nothing_is_claimed_anew_by_any_request() {
        let outcomes = Outcomes::default();
        let slot = first(&outcomes).await;
        let waiting = repeated(&outcomes).await;
        slot.release().await;
        assert!(matches!(waiting.settled().await, Some(Settled::Released)));
        assert!(matches!(claim(&outcomes, 2).await, Claim::First(_)));
    }

    #[tokio::test]
    async fn a_slot_that_is_dropped_is_lost_and_not_claimed_again() {
        let outcomes = Outcomes::default();
        drop(first(&outcomes).await);
        assert!(repeated(&outcomes).await.settled().await.is_none());
    }
}
