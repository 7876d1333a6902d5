//! When a request is sent again: what is safe to repeat, within the caller's deadline, within a budget of its account.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};
use tower::retry::Policy;
use tower::retry::budget::{Budget as _, TpsBudget};
use tower::util::rng::{HasherRng, Rng as _};

use super::request::SHORTEST_ANSWER;
use super::{Request, Response};
use crate::telemetry::Metrics;
use crate::twilio::drift::Drift;
use crate::twilio::error::{Cause, Error, Operation};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// How many retries an account may have: two for ten requests that succeed, and beyond those two a second, for a quiet
/// process. Not more: with ten a second, a hundred calls a second of which every other fails would be 1.2 requests each, and
/// more in the first seconds of an outage.
pub(in crate::twilio) struct RetryBudget(TpsBudget);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(TpsBudget::new(Duration::from_secs(10), 2, 0.2))
    }
}

#[derive(Clone)]
pub(super) struct RetryPolicy {
    max_resends: u32,
    metrics: Metrics,
    drift: Drift,
    /// That of the last attempt which may have been processed. Each request has a policy of its own, so nobody shares it.
    unclear: Option<Arc<Error>>,
}

impl RetryPolicy {
    pub(super) fn new(max_resends: u32, metrics: Metrics, drift: Drift) -> Self {
        Self { max_resends, metrics, drift, unclear: None }
    }

    /// The last attempt at a delete has failed. That this one did nothing is not what became of an earlier one, whose error
    /// is told then.
    fn ends(&mut self, request: &Request, result: &mut Result<Response, Error>) {
        let did_nothing = result.as_ref().is_err_and(Error::nothing_was_done);
        if request.operation == Operation::Delete
            && did_nothing
            && let Some(unclear) = self.unclear.take().and_then(Arc::into_inner)
        {
            *result = Err(unclear);
        }
    }

    /// Whether the request is sent once more after this, but for its account's budget.
    fn may_repeat(&self, request: &Request, error: &Error, delay: Duration) -> bool {
        let then = Instant::now().checked_add(delay.saturating_add(SHORTEST_ANSWER));
        error.is_retryable()
            && request.history.resends < self.max_resends
            // Two places that repeat would multiply.
            && !request.budget.is_repetition
            && then.is_some_and(|then| then <= request.budget.retry_until)
            // It would be refused, which tells less than this error does.
            && !request.peer.breaker.is_sick()
    }
}

impl Policy<Request, Response, Error> for RetryPolicy {
    type Future = Sleep;

    fn retry(&mut self, request: &mut Request, result: &mut Result<Response, Error>) -> Option<Sleep> {
        let Err(error) = result else {
            request.peer.retries.0.deposit();
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
        // Those that were told to wait equally long had better not come back together, either.
        let backoff = backoff(request.history.resends);
        let delay = error.retry_after().map_or(backoff, |wait| wait.saturating_add(backoff));
        if !self.may_repeat(request, error, delay) || !request.peer.retries.0.withdraw() {
            self.ends(request, result);
            return None;
        }
        self.metrics.request_retried(request.method.as_str(), request.template);
        request.history.resends += 1;
        if error.may_have_been_processed() {
            request.history.may_have_been_processed = true;
            // tower drops the result of an attempt that another follows.
            let error = std::mem::replace(error, request.error(Cause::GivenUp));
            self.unclear = Some(Arc::new(error));
        }
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
