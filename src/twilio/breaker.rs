//! A circuit breaker for each account and API version: while Twilio does not answer, calls fail at once instead of waiting
//! for it, and it is left alone but for a probe now and then.
//!
//! A request asks twice: before it queues for anything, and when nothing is left but to send it, because those that are
//! queued when the circuit opens must not go out one after the other.

mod circuit;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;
use tower::util::rng::{HasherRng, Rng as _};
use tracing::{debug, info, warn};

pub use circuit::BreakerSettings;

use super::error::{Cause, Error};
use crate::ids::{AccountId, ApiVersion};
use crate::telemetry::{CircuitState, Metrics};
use circuit::{Circuit, Outcome, Ticket};

/// The breaker of one account and API version.
pub(super) struct Breaker {
    account: AccountId,
    version: ApiVersion,
    circuit: Mutex<Circuit>,
    metrics: Metrics,
}

/// The right to send one request. One that is dropped before it has an answer tells nothing.
pub(super) struct Pass {
    breaker: Arc<Breaker>,
    ticket: Option<Ticket>,
}

impl Breaker {
    pub(super) fn new(
        account: AccountId,
        version: ApiVersion,
        settings: BreakerSettings,
        metrics: Metrics,
    ) -> Self {
        metrics.circuit_made(account.as_str(), version.as_str());
        Self { account, version, circuit: Mutex::new(Circuit::new(settings)), metrics }
    }

    /// Whether Twilio has failed, and no probe has succeeded since.
    pub(super) fn is_sick(&self) -> bool {
        self.circuit().phase() != CircuitState::Closed
    }

    /// Called before a request queues for anything.
    pub(super) fn check(&self) -> Result<(), Cause> {
        let checked = self.circuit().check(Instant::now());
        checked.map_err(|wait| self.refuse(wait))
    }

    /// Called when nothing is left to wait for.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Pass, Cause> {
        let ticket = self.change("probe", Circuit::enter);
        ticket.map(|ticket| self.pass(ticket)).map_err(|wait| self.refuse(wait))
    }

    /// Called before a request waits for a place: where only probes are sent, that it is one; `None` where all are sent.
    pub(super) fn probe(self: &Arc<Self>) -> Result<Option<Pass>, Cause> {
        let ticket = self.change("probe", Circuit::probe);
        ticket.map(|ticket| ticket.map(|ticket| self.pass(ticket))).map_err(|wait| self.refuse(wait))
    }

    fn pass(self: &Arc<Self>, ticket: Ticket) -> Pass {
        Pass { breaker: self.clone(), ticket: Some(ticket) }
    }

    fn refuse(&self, wait: Duration) -> Cause {
        self.metrics.circuit_refused(self.account.as_str(), self.version.as_str());
        Cause::CircuitOpen(wait)
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the circuit, and tells where that has turned it.
    fn change<T>(&self, why: &'static str, change: impl FnOnce(&mut Circuit, Instant, f64) -> T) -> T {
        let mut circuit = self.circuit();
        let before = circuit.phase();
        let result = change(&mut circuit, Instant::now(), HasherRng::new().next_f64());
        let after = circuit.phase();
        if before != after {
            // Within the lock, so that the gauge ends at the last turn; a log line can block.
            self.metrics.circuit_turned(self.account.as_str(), self.version.as_str(), after);
            drop(circuit);
            self.log(after, why);
        }
        result
    }

    fn log(&self, phase: CircuitState, why: &'static str) {
        let (account, version) = (self.account.as_str(), self.version.as_str());
        match phase {
            CircuitState::Closed => info!(account, api.version = version, why, "Twilio answers again"),
            // Every few seconds of an outage.
            CircuitState::HalfOpen => {
                debug!(account, api.version = version, why, "tries whether Twilio answers");
            }
            CircuitState::Open => {
                warn!(account, api.version = version, why, "Twilio fails, and is left alone for now");
            }
        }
    }
}

impl Pass {
    /// The request has ended. `had_its_time`: it was given as long as any attempt is, so that running out of it tells
    /// something of Twilio.
    pub(super) fn ended<T>(mut self, result: &Result<T, Error>, had_its_time: bool) {
        self.leave(judge(result, had_its_time), result.as_ref().err().map_or("answered", Error::kind));
    }

    fn leave(&mut self, outcome: Outcome, why: &'static str) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.change(why, |circuit, now, random| circuit.leave(ticket, outcome, now, random));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.leave(Outcome::Silent, "given_up");
    }
}

/// What a request tells of whether Twilio works. An answer that makes no sense is one: it may be about one participant alone.
fn judge<T>(result: &Result<T, Error>, had_its_time: bool) -> Outcome {
    let Err(error) = result else {
        return Outcome::Good;
    };
    match &error.cause {
        Cause::Answered(problem) if problem.status == StatusCode::UNAUTHORIZED => Outcome::Refused,
        // Twilio throttles before it does anything else; how many requests it takes is the governor's.
        Cause::Answered(problem) if problem.is_unprocessed() => Outcome::Refused,
        Cause::Answered(problem) if problem.status.is_server_error() => Outcome::Bad,
        Cause::Answered(_) | Cause::Broken(_) => Outcome::Good,
        Cause::NotSent(_) | Cause::Cut(_) => Outcome::Bad,
        Cause::TimedOut if had_its_time => Outcome::Bad,
        Cause::TimedOut
        | Cause::NoToken(_)
        | Cause::GivenUp
        | Cause::CircuitOpen(_)
        | Cause::Overloaded(_)
        | Cause::Unsupported(_) => Outcome::Silent,
    }
}
