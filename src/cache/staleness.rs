//! How old a value may be when it is served, and how long it is kept.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use moka::Expiry;

use super::{Key, Loaded};
use crate::proto::CacheStatus;
use crate::telemetry::Origin;

/// A value, and since when it is there.
#[derive(Clone)]
pub(super) struct Stored<V> {
    pub(super) value: V,
    pub(super) since: Instant,
    pub(super) fetched: SystemTime,
    /// The span of its load.
    pub(super) origin: Origin,
}

/// How old a value may be.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// At most so old, whatever that costs: the caller's own word.
    Within(Duration),
    /// As old as its lifetime, or a little older while it is refreshed.
    Usual {
        /// Up to this age it is served without more ado.
        lifetime: Duration,
        /// Up to this age while it is refreshed; not below the lifetime.
        while_refreshed: Duration,
    },
}

/// What is to be done about a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Serve it.
    Fresh,
    /// Serve it, and load it anew.
    Stale,
    /// Load it first.
    TooOld,
}

/// What a caller wants, as of its call.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) wanted: Wanted,
}

impl Wanted {
    /// Whether only a load of the caller's own will do.
    pub fn is_nothing(self) -> bool {
        let (Self::Within(age) | Self::Usual { lifetime: age, .. }) = self;
        age.is_zero()
    }
}

impl Asked {
    pub(super) fn age<V>(self, stored: &Stored<V>) -> Duration {
        self.at.saturating_duration_since(stored.since)
    }

    pub(super) fn judge<V>(self, stored: &Stored<V>) -> Verdict {
        let (fresh, usable) = match self.wanted {
            Wanted::Within(age) => (age, age),
            Wanted::Usual { lifetime, while_refreshed } => {
                let cut = stored.cut(lifetime);
                (lifetime.saturating_sub(cut), while_refreshed.saturating_sub(cut))
            }
        };
        match self.age(stored) {
            age if age <= fresh => Verdict::Fresh,
            age if age <= usable => Verdict::Stale,
            _ => Verdict::TooOld,
        }
    }

    pub(super) fn is_fresh<V>(self, stored: &Stored<V>) -> bool {
        self.judge(stored) == Verdict::Fresh
    }
}

impl<V> Stored<V> {
    pub(super) fn with(self, status: CacheStatus) -> Loaded<V> {
        Loaded { value: self.value, status, fetched: self.fetched }
    }

    /// By how much this value's lifetime is shortened: up to a tenth. What was loaded together, as after a start or when
    /// everything was forgotten, would else be refreshed together ever after. The nanoseconds of the load are as good as a
    /// random number, and need no memory.
    fn cut(&self, lifetime: Duration) -> Duration {
        let share = self.fetched.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos() % 256;
        lifetime / 2560 * share
    }
}

/// Notes the time before the load, so that the value is never taken for younger than it is.
pub(super) async fn timed<V, E>(load: impl Future<Output = Result<V, E>>) -> Result<Stored<V>, E> {
    let (since, fetched, origin) = (Instant::now(), SystemTime::now(), Origin::current());
    load.await.map(|value| Stored { value, since, fetched, origin })
}

/// For how long values are kept.
pub(super) struct Kept<V> {
    /// What was found: its lifetime, and for as long after it as it may be served stale.
    pub(super) found: Duration,
    /// "There is none", which is never served stale.
    pub(super) negative: Duration,
    pub(super) is_negative: fn(&V) -> bool,
}

impl<V> Expiry<Key, Stored<V>> for Kept<V> {
    fn expire_after_create(&self, _: &Key, stored: &Stored<V>, now: Instant) -> Option<Duration> {
        let time = if (self.is_negative)(&stored.value) { self.negative } else { self.found };
        // The time counts from the load's begin.
        Some(time.saturating_sub(now.saturating_duration_since(stored.since)))
    }

    fn expire_after_update(
        &self,
        key: &Key,
        stored: &Stored<V>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, stored, now)
    }
}
