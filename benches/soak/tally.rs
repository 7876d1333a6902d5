//! What came of the calls: counts of each outcome, and what was wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// So long after the last fault has gone, a patient call may still fail of it.
const GRACE: Duration = Duration::from_secs(10);
const MOST_KEPT: usize = 50;

#[derive(Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Default)]
pub(crate) struct Counts {
    /// By method and outcome.
    pub(crate) outcomes: BTreeMap<(&'static str, String), u64>,
    pub(crate) calls: u64,
    /// Patient calls that failed although all had been well for a while.
    pub(crate) failed_in_calm: BTreeMap<(&'static str, String), u64>,
    /// Calls that were due, and not made because too many had not ended.
    pub(crate) not_made: u64,
    pub(crate) wrong: u64,
    /// The first of them.
    pub(crate) examples: Vec<String>,
    /// Since when no fault is in force.
    calm_since: Option<Instant>,
}

impl Tally {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Counts) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn count(&self, method: &'static str, outcome: &str) {
        self.with(|counts| {
            counts.calls += 1;
            *counts.outcomes.entry((method, outcome.to_owned())).or_default() += 1;
        });
    }

    pub(crate) fn wrong(&self, method: &str, what: &str) {
        eprintln!("WRONG {method}: {what}");
        self.with(|counts| {
            counts.wrong += 1;
            if counts.examples.len() < MOST_KEPT {
                counts.examples.push(format!("{method}: {what}"));
            }
        });
    }

    pub(crate) fn check(&self, method: &str, judged: Result<(), String>) {
        if let Err(what) = judged {
            self.wrong(method, &what);
        }
    }

    pub(crate) fn set_calm(&self, is_calm: bool) {
        self.with(|counts| counts.calm_since = is_calm.then(Instant::now));
    }

    /// Whether a call has no excuse to fail, if this holds when it begins and when it ends.
    pub(crate) fn is_calm(&self) -> bool {
        self.with(|counts| counts.calm_since.is_some_and(|since| since.elapsed() > GRACE))
    }
}

/// How a call failed.
pub(crate) struct Failure {
    pub(crate) code: Option<Code>,
    /// The gateway's own word; none where it was not the gateway that answered.
    pub(crate) reason: Option<String>,
    message: String,
}

impl Failure {
    pub(crate) const LEFT: Self = Self { code: None, reason: None, message: String::new() };

    pub(crate) fn label(&self) -> String {
        match (&self.code, &self.reason) {
            (None, _) => "left by its caller".to_owned(),
            (Some(code), None) => format!("{code:?}, no reason: {}", self.message),
            (Some(code), Some(reason)) => format!("{code:?} {reason}"),
        }
    }

    /// Says that Twilio never processed the create or update.
    pub(crate) fn is_never_processed(&self) -> bool {
        const NEVER: [&str; 4] =
            ["UPSTREAM_UNAVAILABLE", "CIRCUIT_OPEN", "LOCAL_CONCURRENCY", "UPSTREAM_THROTTLED"];
        self.reason.as_ref().is_some_and(|reason| NEVER.contains(&reason.as_str()))
    }

    /// Whether such an end may come of faults at all.
    pub(crate) fn is_expected(&self, is_write: bool, is_own_fault: bool) -> bool {
        match self.reason.as_deref() {
            Some("WRITE_OUTCOME_UNKNOWN") => is_write,
            Some("DEADLINE") => true,
            Some(_) => self.is_never_processed(),
            None => is_own_fault,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason);
        Self { code: Some(status.code()), reason, message: status.message().to_owned() }
    }
}
