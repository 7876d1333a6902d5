//! Whether Twilio's events keep the cache true, and so how old an answer may be that nobody asked to be younger.

mod ages;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(super) use ages::Ages;
pub use ages::{Graces, Lifetimes};

use crate::ids::{AccountId, ApiVersion};

/// Stands for never: before every moment that counts.
const NEVER: i64 = i64::MIN;

/// A stream of events that is so far behind keeps nothing true.
const LONGEST_BEHIND: Duration = Duration::from_secs(60);

/// Which accounts are told of changes, per API version: v1's events say nothing of v2. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Freshness {
    sources: Arc<HashMap<(AccountId, ApiVersion), Source>>,
    /// The stream that tells all that v1 has to tell.
    followed: Arc<Source>,
    /// When something was said of it last. Held while what was said is noted: the last word counts.
    followed_said_at: Arc<Mutex<i64>>,
    /// Moments are counted in milliseconds from here.
    begin: Instant,
    lifetimes: Lifetimes,
    /// Since when other replicas can tell this one what they are told, by the system's clock, 0 where they cannot; `None`
    /// where there are none.
    bus: Option<Arc<AtomicU64>>,
}

/// Something that tells of changes.
#[derive(Debug)]
struct Source {
    /// When it told something last.
    last: AtomicI64,
    /// Since when it has not been silent for longer than it may be. What was cached before is kept true by nobody.
    since: AtomicI64,
    /// Up to which moment other replicas know of it. Not `last`: where it tells something all the time, nothing would be news.
    known: AtomicI64,
}

impl Source {
    fn new() -> Self {
        let [last, since, known] = [NEVER; 3].map(AtomicI64::new);
        Self { last, since, known }
    }

    fn is_live(&self, now: i64, window: Duration) -> bool {
        let last = self.last.load(Ordering::SeqCst);
        last != NEVER && now.saturating_sub(last) <= millis(window)
    }

    /// It told something at this moment.
    fn tell(&self, at: i64, now: i64, window: Duration) {
        if !self.is_live(now, window) {
            self.since.store(now, Ordering::SeqCst);
        }
        self.last.fetch_max(at, Ordering::SeqCst);
    }

    /// Whether other replicas are to be let know of this moment. They know by then.
    fn is_news(&self, at: i64, step: Duration) -> bool {
        let known = self.known.load(Ordering::SeqCst);
        let is_news = known == NEVER || at.saturating_sub(known) > millis(step);
        if is_news {
            self.known.store(at, Ordering::SeqCst);
        }
        is_news
    }
}

impl Freshness {
    /// Of these accounts; none of their sources is live yet. `bus` is
    /// [`Feed::current_since`](crate::feed::Feed::current_since).
    pub fn new(
        mut lifetimes: Lifetimes,
        accounts: impl IntoIterator<Item = AccountId>,
        bus: Option<Arc<AtomicU64>>,
    ) -> Self {
        // The cache keeps nothing for longer.
        lifetimes.without_events = lifetimes.without_events.min(lifetimes.with_events);
        let both = |account: AccountId| {
            [ApiVersion::V1, ApiVersion::V2].map(|version| ((account.clone(), version), Source::new()))
        };
        Self {
            sources: Arc::new(accounts.into_iter().flat_map(both).collect()),
            followed: Arc::new(Source::new()),
            followed_said_at: Arc::new(Mutex::new(NEVER)),
            begin: Instant::now(),
            lifetimes,
            bus,
        }
    }

    /// A delivery of this source was verified so long ago. Whether that is worth telling: who was told lately knows.
    pub fn delivered(&self, account: &AccountId, version: ApiVersion, age: Duration) -> bool {
        let Some(source) = self.sources.get(&(account.clone(), version)) else {
            return false;
        };
        let (now, window) = (self.now(), self.lifetimes.live_window);
        let at = now.saturating_sub(millis(age));
        source.tell(at, now, window);
        source.is_news(at, window / 8)
    }

    /// Somebody said so long ago that a stream had then told what v1 had to tell up to `behind` before, of all accounts.
    /// Whether that is worth telling.
    pub fn followed(&self, behind: Duration, age: Duration) -> bool {
        let now = self.now();
        let at = now.saturating_sub(millis(age));
        let moment = at.saturating_sub(millis(behind));
        let mut said_at = self.followed_said_at.lock().unwrap_or_else(PoisonError::into_inner);
        // What another replica said before this one took over may be heard late.
        if at < *said_at {
            return false;
        }
        *said_at = at;
        let was_live = self.followed.is_live(now, LONGEST_BEHIND);
        // It may fall back, too: what it says now counts.
        self.followed.last.store(moment, Ordering::SeqCst);
        if !was_live && self.followed.is_live(now, LONGEST_BEHIND) {
            self.followed.since.store(now, Ordering::SeqCst);
        }
        self.followed.is_news(moment, LONGEST_BEHIND / 6)
    }

    /// How long ago the moment is up to which a stream was followed; as long as this process lives, if none was.
    pub fn behind(&self) -> Duration {
        let last = self.followed.last.load(Ordering::SeqCst);
        let last = if last == NEVER { 0 } else { last };
        Duration::from_millis(u64::try_from(self.now().saturating_sub(last)).unwrap_or_default())
    }

    /// Whether events of the account are known to arrive.
    pub fn is_live(&self, account: &AccountId, version: ApiVersion) -> bool {
        self.live_for(account, version).is_some()
    }

    /// For how long events of the account have been known to arrive.
    fn live_for(&self, account: &AccountId, version: ApiVersion) -> Option<Duration> {
        let now = self.now();
        let followed = (version == ApiVersion::V1).then(|| (self.followed.as_ref(), LONGEST_BEHIND));
        let told = self.sources.get(&(account.clone(), version));
        let told = told.map(|source| (source, self.lifetimes.live_window));
        let live =
            [followed, told].into_iter().flatten().filter(|(source, window)| source.is_live(now, *window));
        let since = live.map(|(source, _)| source.since.load(Ordering::SeqCst)).min()?;
        // Rounded up: what was loaded at once is kept true.
        let for_so_long = u64::try_from(now.saturating_sub(since)).unwrap_or_default() + 1;
        let for_so_long = Duration::from_millis(for_so_long);
        match self.bus.as_ref().map(|bus| bus.load(Ordering::SeqCst)) {
            None => Some(for_so_long),
            Some(0) => None,
            Some(since) => Some(for_so_long.min(Duration::from_millis(unix_millis().saturating_sub(since)))),
        }
    }

    /// Each source, by version and account, and whether it is live.
    pub fn all(&self) -> Vec<(&'static str, String, bool)> {
        let state = |(account, version): &(AccountId, ApiVersion)| {
            (version.as_str(), account.to_string(), self.is_live(account, *version))
        };
        self.sources.keys().map(state).collect()
    }

    /// How old an answer about the account's participants may be.
    pub(super) fn ages(&self, account: &AccountId, version: ApiVersion) -> Ages<'_> {
        Ages::new(self.live_for(account, version), &self.lifetimes)
    }

    /// How old an answer may be that no event keeps true.
    pub(super) fn ages_without_events(&self) -> Ages<'_> {
        Ages::new(None, &self.lifetimes)
    }

    /// For how long an answer may be told past its lifetime.
    pub(super) fn graces(&self) -> &Graces {
        &self.lifetimes.graces
    }

    fn now(&self) -> i64 {
        millis(self.begin.elapsed())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_followed_keeps_v1_live_while_it_is_less_than_a_minute_behind() {
        let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
        let (day, second) = (Duration::from_secs(24 * 3600), Duration::from_secs(1));
        let lifetimes = Lifetimes {
            with_events: day,
            without_events: second,
            live_window: day,
            graces: Graces::default(),
        };
        let mut freshness = Freshness::new(lifetimes, [account.clone()], None);
        let lives = |freshness: &Freshness| {
            [ApiVersion::V1, ApiVersion::V2].map(|version| freshness.is_live(&account, version))
        };
        freshness.followed(day, Duration::ZERO);
        assert_eq!(lives(&freshness), [false, false], "so far behind it is of no use");
        freshness.begin -= Duration::from_secs(3600);
        assert!(freshness.behind() >= Duration::from_secs(3600));
        assert!(freshness.followed(Duration::from_secs(59), Duration::ZERO));
        assert!((59..3600).contains(&freshness.behind().as_secs()));
        assert_eq!(lives(&freshness), [true, false]);
        assert!(!freshness.followed(Duration::from_secs(58), Duration::ZERO), "who was told lately knows");
        assert!(freshness.followed(Duration::ZERO, Duration::ZERO));
        assert!(!freshness.followed(Duration::from_secs(61), Duration::ZERO));
        assert_eq!(lives(&freshness), [false, false]);
    }

    #[test]
    fn what_was_said_of_a_stream_before_the_last_word_on_it_changes_nothing() {
        let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
        let lifetimes = Lifetimes {
            with_events: hour,
            without_events: second,
            live_window: hour,
            graces: Graces::default(),
        };
        let mut freshness = Freshness::new(lifetimes, [], None);
        freshness.begin -= hour;
        assert!(freshness.followed(second, second));
        assert!(!freshness.followed(59 * second, 30 * second));
        assert!(freshness.behind() < 10 * second, "it was said earlier");
        freshness.followed(59 * second, Duration::ZERO);
        assert!(freshness.behind() >= 59 * second, "it has fallen back since");
        freshness.followed(Duration::ZERO, second);
        assert!(freshness.behind() >= 59 * second, "nobody says so any more");
    }

    #[test]
    fn what_was_cached_before_a_source_was_live_does_not_live_longer_for_it() {
        let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
        let (minutes, seconds) = (Duration::from_secs(300), Duration::from_secs(10));
        let lifetimes = Lifetimes {
            with_events: minutes,
            without_events: seconds,
            live_window: minutes * 12,
            graces: Graces::default(),
        };
        let mut freshness = Freshness::new(lifetimes, [account.clone()], None);
        let lifetime = |freshness: &Freshness| freshness.ages(&account, ApiVersion::V1).fresh();
        freshness.delivered(&account, ApiVersion::V1, Duration::ZERO);
        assert_eq!(lifetime(&freshness), seconds);
        freshness.begin -= Duration::from_secs(100);
        assert!(
            (100..110).contains(&lifetime(&freshness).as_secs()),
            "what was loaded since then is kept true"
        );
        freshness.begin -= Duration::from_secs(1000);
        assert_eq!(lifetime(&freshness), minutes);

        // After a silence it begins anew.
        freshness.begin -= minutes * 13;
        assert_eq!(lifetime(&freshness), seconds);
        freshness.delivered(&account, ApiVersion::V1, Duration::ZERO);
        assert_eq!(lifetime(&freshness), seconds);
    }

    #[test]
    fn however_often_deliveries_come_the_other_replicas_are_told_in_time() {
        let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
        let window = Duration::from_secs(3600);
        let lifetimes = Lifetimes {
            with_events: window,
            without_events: Duration::ZERO,
            live_window: window,
            graces: Graces::default(),
        };
        let mut freshness = Freshness::new(lifetimes, [account.clone()], None);
        let mut told = Vec::new();
        for minute in 0..120 {
            if freshness.delivered(&account, ApiVersion::V1, Duration::ZERO) {
                told.push(minute);
            }
            freshness.begin -= Duration::from_secs(60);
        }
        assert_eq!(told[0], 0);
        assert!(
            told.windows(2).all(|two| (7..10).contains(&(two[1] - two[0]))) && told.len() > 10,
            "{told:?}"
        );
    }

    #[test]
    fn a_delivery_before_this_process_began_is_as_old_as_it_is() {
        let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
        let hour = Duration::from_secs(3600);
        let lifetimes = Lifetimes {
            with_events: hour,
            without_events: Duration::ZERO,
            live_window: hour,
            graces: Graces::default(),
        };
        let mut freshness = Freshness::new(lifetimes, [account.clone()], None);
        freshness.delivered(&account, ApiVersion::V1, Duration::from_secs(3540));
        assert!(freshness.is_live(&account, ApiVersion::V1));
        freshness.begin -= Duration::from_secs(61);
        assert!(!freshness.is_live(&account, ApiVersion::V1));
    }
}
