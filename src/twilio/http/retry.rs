//! When a request is sent again: what is safe to repeat, within the caller's deadline, within a budget for all.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};
use tower::retry::Policy;
use tower::retry::budget::{Budget as _, TpsBudget};
use tower::util::rng::{HasherRng, Rng as _};

use super::{Request, Response};
use crate::telemetry::Metrics;
use crate::twilio::drift::Drift;
use crate::twilio::error::{Error, Operation};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct RetryPolicy {
    max_resends: u32,
    budget: Arc<TpsBudget>,
    metrics: Metrics,
    drift: Drift,
}

impl RetryPolicy {
    pub(super) fn new(max_resends: u32, metrics: Metrics, drift: Drift) -> Self {
        // Two retries for ten requests at most, and ten a second for a quiet process.
        let budget = Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 0.2));
        Self { max_resends, budget, metrics, drift }
    }
}

impl Policy<Request, Response, Error> for RetryPolicy {
    type Future = Sleep;

    fn retry(&mut self, request: &mut Request, result: &mut Result<Response, Error>) -> Option<Sleep> {
        let Err(error) = result else {
            self.budget.deposit();
            return None;
        };
        if error.is_not_found()
            && request.operation == Operation::Delete
            && request.history.may_have_been_processed
        {
            // An earlier attempt deleted it, and only its answer was lost.
            *result = Ok(Response::deleted(request, self.drift.clone()));
            return None;
        }
        let backoff = backoff(request.history.resends);
        let delay = error.retry_after().map_or(backoff, |wait| wait.max(backoff));
        let in_time = Instant::now().checked_add(delay).is_some_and(|then| then < request.budget.retry_until);
        if !error.is_retryable()
            || request.history.resends >= self.max_resends
            || !in_time
            || !self.budget.withdraw()
        {
            return None;
        }
        self.metrics.request_retried(request.method.as_str(), request.template);
        request.history.resends += 1;
        request.history.may_have_been_processed |= error.may_have_been_processed();
        Some(sleep(delay))
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Some(request.clone())
    }
}

/// Exponential with full jitter, so that callers that failed together do not come back together.
fn backoff(resends: u32) -> Duration {
    let ceiling = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(resends)).min(LONGEST_BACKOFF);
    ceiling.mul_f64(HasherRng::new().next_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_is_bounded_and_grows() {
        for resends in [0, 1, 5, 40] {
            assert!(backoff(resends) <= LONGEST_BACKOFF);
        }
        assert!(backoff(0) <= FIRST_BACKOFF);
    }
}
