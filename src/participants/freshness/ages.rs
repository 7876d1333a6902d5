//! How old an answer may be, by what tells of changes in it.

use std::time::Duration;

/// How old a cached answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Where events tell of changes.
    pub with_events: Duration,
    /// Where none do.
    pub without_events: Duration,
    /// So long after a delivery its source counts as live.
    pub live_window: Duration,
    /// For how long an answer may be told after that.
    pub graces: Graces,
}

/// For how long an answer that is past its lifetime may be told all the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Graces {
    /// While it is read anew.
    pub while_revalidating: Duration,
    /// Where Twilio cannot be read.
    pub on_error: Duration,
    /// The same while Twilio fails altogether.
    pub on_outage: Duration,
    /// Whether a caller who does not say is told such an answer where Twilio cannot be read.
    pub is_on_error_default: bool,
}

impl Graces {
    /// The longest of them.
    pub fn longest(&self) -> Duration {
        self.while_revalidating.max(self.on_error).max(self.on_outage)
    }
}

/// How old an answer may be, by what tells of changes in it.
#[derive(Clone, Copy, Debug)]
pub(in crate::participants) struct Ages<'a> {
    /// For how long events have been known to tell of them, where they do.
    told_for: Option<Duration>,
    lifetimes: &'a Lifetimes,
}

impl<'a> Ages<'a> {
    pub(super) fn new(told_for: Option<Duration>, lifetimes: &'a Lifetimes) -> Self {
        Self { told_for, lifetimes }
    }

    /// Up to this age it is as good as new.
    pub(in crate::participants) fn fresh(self) -> Duration {
        self.with(|_| Duration::ZERO)
    }

    /// Up to this age it is told while it is read anew. The grace is at most half the lifetime: without events a change made
    /// elsewhere is to be seen soon, however long the grace for where they arrive.
    pub(in crate::participants) fn while_revalidating(self) -> Duration {
        self.with(|lifetime| self.lifetimes.graces.while_revalidating.min(lifetime / 2))
    }

    /// Up to this age it is told where Twilio cannot be read, or fails altogether.
    pub(in crate::participants) fn on_error(self, is_outage: bool) -> Duration {
        let Graces { on_error, on_outage, .. } = self.lifetimes.graces;
        let grace = if is_outage { on_error.max(on_outage) } else { on_error };
        self.with(|_| grace)
    }

    /// What was cached before its events were known to arrive is no younger for it, and has the lifetime and the grace of a
    /// time without: a change of that time was told to nobody.
    fn with(self, grace: impl Fn(Duration) -> Duration) -> Duration {
        let Lifetimes { with_events, without_events, .. } = *self.lifetimes;
        let [without, with] = [without_events, with_events].map(|lifetime| lifetime + grace(lifetime));
        self.told_for.map_or(without, |told_for| told_for.clamp(without, with))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graces_lengthen_lifetimes_but_not_what_was_cached_before_events_arrived() {
        let seconds = Duration::from_secs;
        let graces = Graces {
            while_revalidating: seconds(30),
            on_error: seconds(60),
            on_outage: seconds(3600),
            is_on_error_default: true,
        };
        let lifetimes = Lifetimes {
            with_events: seconds(300),
            without_events: seconds(10),
            live_window: seconds(3600),
            graces,
        };
        let ages = |told_for: Option<u64>| {
            let ages = Ages::new(told_for.map(seconds), &lifetimes);
            let all = [ages.fresh(), ages.while_revalidating(), ages.on_error(false), ages.on_error(true)];
            all.map(|age| age.as_secs())
        };
        // Half the short lifetime is less than the grace.
        assert_eq!(ages(None), [10, 15, 70, 3610]);
        assert_eq!(ages(Some(0)), [10, 15, 70, 3610]);
        // What is older than that was cached when nobody told of changes.
        assert_eq!(ages(Some(30)), [30, 30, 70, 3610]);
        assert_eq!(ages(Some(320)), [300, 320, 320, 3610]);
        assert_eq!(ages(Some(10_000)), [300, 330, 360, 3900]);
    }
}
