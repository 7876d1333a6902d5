//! Whether Twilio's events keep the cache true, and so how old an answer may be that nobody asked to be younger.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::ids::{AccountId, ApiVersion};

/// Stands for never.
const NEVER: u64 = u64::MAX;

/// A stream of events that is so far behind keeps nothing true.
const LONGEST_BEHIND: Duration = Duration::from_secs(60);

/// Which accounts are told of changes, per API version: v1's events say nothing of v2. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Freshness {
    sources: Arc<HashMap<(AccountId, ApiVersion), AtomicU64>>,
    /// Up to which moment a stream has told what v1 had to tell, and which of these moments other replicas know.
    followed: Arc<[AtomicU64; 2]>,
    /// Moments are counted in milliseconds from here.
    begin: Instant,
    lifetimes: Lifetimes,
    /// Whether other replicas can tell this one what they are told; `None` where there are none.
    bus: Option<Arc<AtomicBool>>,
}

/// How old a cached answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Where events tell of changes.
    pub with_events: Duration,
    /// Where none do.
    pub without_events: Duration,
    /// So long after a delivery its source counts as live.
    pub live_window: Duration,
}

impl Freshness {
    /// Of these accounts; none of their sources is live yet. `bus` is [`Feed::is_current`](crate::feed::Feed::is_current).
    pub fn new(
        mut lifetimes: Lifetimes,
        accounts: impl IntoIterator<Item = AccountId>,
        bus: Option<Arc<AtomicBool>>,
    ) -> Self {
        // The cache keeps nothing for longer.
        lifetimes.without_events = lifetimes.without_events.min(lifetimes.with_events);
        let both = |account: AccountId| {
            [ApiVersion::V1, ApiVersion::V2]
                .map(|version| ((account.clone(), version), AtomicU64::new(NEVER)))
        };
        let sources = accounts.into_iter().flat_map(both).collect();
        let followed = Arc::new([AtomicU64::new(NEVER), AtomicU64::new(NEVER)]);
        Self { sources: Arc::new(sources), followed, begin: Instant::now(), lifetimes, bus }
    }

    /// A delivery of this source was verified so long ago. Whether that is worth telling: who was told lately knows.
    pub fn delivered(&self, account: &AccountId, version: ApiVersion, age: Duration) -> bool {
        let Some(last) = self.sources.get(&(account.clone(), version)) else {
            return false;
        };
        let at = self.now().saturating_sub(millis(age));
        let before = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
            (last == NEVER || last < at).then_some(at)
        });
        let is_news = |last| last == NEVER || at - last > millis(self.lifetimes.live_window) / 8;
        before.is_ok_and(is_news)
    }

    /// A stream has told what v1 had to tell up to `behind` ago, of all accounts. Whether that is worth telling.
    pub fn followed(&self, behind: Duration) -> bool {
        let [last, known] = self.followed.as_ref();
        // One that is further behind than this process is old is no use yet.
        let Some(moment) = self.now().checked_sub(millis(behind)) else {
            return false;
        };
        last.store(moment, Ordering::Relaxed);
        let before = known.load(Ordering::Relaxed);
        let is_news = before == NEVER || moment.saturating_sub(before) > millis(LONGEST_BEHIND) / 6;
        if is_news {
            known.store(moment, Ordering::Relaxed);
        }
        is_news
    }

    /// How long ago the moment is up to which a stream was followed; as long as this process lives, if none was.
    pub fn behind(&self) -> Duration {
        let last = self.followed[0].load(Ordering::Relaxed);
        let last = if last == NEVER { 0 } else { last };
        Duration::from_millis(self.now().saturating_sub(last))
    }

    /// Whether events of the account are known to arrive.
    pub fn is_live(&self, account: &AccountId, version: ApiVersion) -> bool {
        let is_within = |last: &AtomicU64, window: Duration| {
            let last = last.load(Ordering::Relaxed);
            last != NEVER && self.now().saturating_sub(last) <= millis(window)
        };
        let is_followed = version == ApiVersion::V1 && is_within(&self.followed[0], LONGEST_BEHIND);
        let last = self.sources.get(&(account.clone(), version));
        let is_told = is_followed || last.is_some_and(|last| is_within(last, self.lifetimes.live_window));
        is_told && self.bus.as_ref().is_none_or(|bus| bus.load(Ordering::SeqCst))
    }

    /// Each source, by version and account, and whether it is live.
    pub fn all(&self) -> Vec<(&'static str, String, bool)> {
        let state = |(account, version): &(AccountId, ApiVersion)| {
            (version.as_str(), account.to_string(), self.is_live(account, *version))
        };
        self.sources.keys().map(state).collect()
    }

    /// How old an answer about the account may be.
    pub fn lifetime(&self, account: &AccountId, version: ApiVersion) -> Duration {
        if self.is_live(account, version) {
            self.lifetimes.with_events
        } else {
            self.lifetimes.without_events
        }
    }

    /// How old an answer may be that no event keeps true.
    pub fn lifetime_without_events(&self) -> Duration {
        self.lifetimes.without_events
    }

    fn now(&self) -> u64 {
        millis(self.begin.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_followed_keeps_v1_live_while_it_is_less_than_a_minute_behind() {
        let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
        let (day, second) = (Duration::from_secs(24 * 3600), Duration::from_secs(1));
        let lifetimes = Lifetimes { with_events: day, without_events: second, live_window: day };
        let mut freshness = Freshness::new(lifetimes, [account.clone()], None);
        let lives = |freshness: &Freshness| {
            [ApiVersion::V1, ApiVersion::V2].map(|version| freshness.is_live(&account, version))
        };
        assert!(!freshness.followed(day), "so far behind it is of no use");
        assert_eq!(lives(&freshness), [false, false]);
        freshness.begin -= Duration::from_secs(3600);
        assert!(freshness.behind() >= Duration::from_secs(3600));
        assert!(freshness.followed(Duration::from_secs(59)));
        assert!((59..3600).contains(&freshness.behind().as_secs()));
        assert_eq!(lives(&freshness), [true, false]);
        assert!(!freshness.followed(Duration::from_secs(58)), "who was told lately knows");
        assert!(freshness.followed(Duration::ZERO));
        assert!(!freshness.followed(Duration::from_secs(61)));
        assert_eq!(lives(&freshness), [false, false]);
    }
}
