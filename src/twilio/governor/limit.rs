//! How many requests may be under way at once: too many for Twilio lower it, answers raise it again (AIMD).

use std::time::Duration;

use tokio::time::Instant;

/// Nothing lowers it further: with one place, a request that Twilio does not answer would stop the account.
const FEWEST: usize = 2;
const DECREASE: f64 = 0.7;
/// So long it is remembered at how many Twilio said that they are too many. Then that is found out anew.
const MEMORY: Duration = Duration::from_secs(60);

/// An account's limit.
pub(super) struct Limit {
    allowed: f64,
    most: usize,
    decreased: Option<Instant>,
    too_many: Option<u64>,
}

impl Limit {
    /// Begins at the most: Twilio documents no number, so only its answers can tell that it is too high.
    pub(super) fn new(most: usize) -> Self {
        Self { allowed: most as f64, most, decreased: None, too_many: None }
    }

    pub(super) fn get(&self) -> usize {
        // It was made of numbers from 1 to `most`.
        self.allowed as usize
    }

    /// Twilio took a request while `taken` of the places were; `total` is what the account had under way there, whoever asked.
    pub(super) fn answered(&mut self, taken: usize, total: Option<u64>, now: Instant) {
        let is_old = self.decreased.is_none_or(|at| now >= at + MEMORY);
        // Twilio takes as many now as it said were too many.
        let is_disproved = total.zip(self.too_many).is_some_and(|(total, too_many)| total >= too_many);
        if is_old || is_disproved {
            self.too_many = None;
        }
        let is_in_use = taken >= self.get();
        // Twilio told the total when the request came in; since then more may have been sent.
        let at_least = total.unwrap_or_default().max(taken as u64);
        let has_room = self.too_many.is_none_or(|too_many| at_least + 1 < too_many);
        if is_in_use && has_room {
            self.allowed = (self.allowed + 1.0 / self.allowed).min(self.most as f64);
        }
    }

    /// Twilio says that a request, which was sent at `began`, was one too many.
    pub(super) fn exceeded(&mut self, began: Instant, taken: usize, total: Option<u64>, now: Instant) {
        // What was sent under the old limit says nothing about the new one: a burst of refusals counts once.
        if self.decreased.is_some_and(|at| began <= at) {
            return;
        }
        let fewest = FEWEST.min(self.most) as f64;
        // Where fewer were under way than allowed, that many were too many.
        let lower = self.allowed.min(taken as f64) * DECREASE;
        self.allowed = self.allowed.min(lower.max(fewest));
        self.decreased = Some(now);
        self.too_many = total;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Enough answers to raise a limit from nothing to `most`.
    fn answers(limit: &mut Limit, many: usize, total: Option<u64>, now: Instant) {
        for _ in 0..many {
            limit.answered(limit.get(), total, now);
        }
    }

    #[test]
    fn a_burst_of_refusals_counts_once() {
        let (mut limit, began) = (Limit::new(100), Instant::now());
        let now = began + Duration::from_millis(50);
        for taken in (1..=100).rev() {
            limit.exceeded(began, taken, None, now);
        }
        assert_eq!(limit.get(), 70);
        let (began, now) = (now + Duration::from_millis(1), now + Duration::from_millis(2));
        limit.exceeded(began, 70, None, now);
        assert_eq!(limit.get(), 49);
    }

    #[test]
    fn it_falls_from_what_was_under_way() {
        let (mut limit, now) = (Limit::new(100), Instant::now());
        limit.exceeded(now, 10, None, now);
        assert_eq!(limit.get(), 7);
    }

    #[test]
    fn answers_raise_it_by_one_a_round_while_it_is_in_use() {
        let (mut limit, now) = (Limit::new(100), Instant::now());
        limit.exceeded(now, 100, None, now);
        limit.answered(69, None, now);
        let idle = limit.get();
        answers(&mut limit, 72, None, now);
        assert_eq!((idle, limit.get()), (70, 71));
        answers(&mut limit, 10_000, None, now);
        assert_eq!(limit.get(), 100);
    }

    #[test]
    fn it_stays_below_the_total_that_was_too_many_for_a_minute() {
        let (mut limit, now) = (Limit::new(100), Instant::now());
        limit.exceeded(now, 50, Some(80), now);
        let lowered = limit.get();
        // Others have taken what this gateway gave up.
        answers(&mut limit, 1000, Some(79), now);
        assert_eq!(limit.get(), lowered);
        answers(&mut limit, 50, Some(78), now);
        assert_eq!(limit.get(), lowered + 1);
        answers(&mut limit, 50, Some(79), now + MEMORY);
        assert_eq!(limit.get(), lowered + 2);
    }

    #[test]
    fn a_total_that_twilio_takes_is_not_too_many() {
        let (mut limit, now) = (Limit::new(100), Instant::now());
        limit.exceeded(now, 50, Some(1), now);
        let lowered = limit.get();
        answers(&mut limit, 50, Some(1), now);
        assert_eq!(limit.get(), lowered + 1);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_moves_in_small_steps(
            most in 1..200_usize,
            steps in vec((any::<bool>(), 1..300_usize, proptest::option::of(0..300_u64), 0..3_u64), 0..300),
        ) {
            let (mut limit, mut now) = (Limit::new(most), Instant::now());
            for (is_refused, taken, total, seconds) in steps {
                let (before, began) = (limit.get(), now);
                now += Duration::from_secs(seconds);
                if is_refused {
                    limit.exceeded(began, taken, total, now);
                    prop_assert!(limit.get() <= before);
                } else {
                    limit.answered(taken, total, now);
                    prop_assert!(limit.get() == before || limit.get() == before + 1 && taken >= before);
                }
                prop_assert!((FEWEST.min(most)..=most).contains(&limit.get()));
            }
        }
    }
}
