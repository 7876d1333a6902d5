//! Who did what: one record a write and one a call that was denied, of the log's target `audit`. No PII: ids of Twilio's making
//! only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tracing::info;

use super::call::code_name;
use super::permit::Subject;
use super::status::{self, Reason};
use crate::access::Identity;
use crate::ids::{CallerId, is_public};
use crate::participants::Witness;
use crate::proto::Participant;
use crate::telemetry::{self, AUDIT};

/// So many denied calls of one caller have a record within a second, and so many of all.
const OF_ONE: u32 = 10;
const OF_ALL: u32 = 100;

/// What is known of a call before it is answered.
#[derive(Clone)]
pub(super) struct Entry {
    id: CallerId,
    caller: String,
    method: Arc<str>,
    began: Instant,
    trace_id: Option<String>,
    account: String,
    conversation: String,
    participant: String,
}

impl Entry {
    /// Of a call of which nothing is known but whose it is. To be made within the call's span.
    pub(super) fn new(identity: &Identity, method: &Arc<str>, began: Instant) -> Self {
        Self {
            id: identity.id(),
            caller: identity.to_string(),
            method: method.clone(),
            began,
            trace_id: telemetry::trace_id(),
            account: String::new(),
            conversation: String::new(),
            participant: String::new(),
        }
    }

    /// With what the call is about, as far as that is no PII.
    pub(super) fn about(self, subject: &Subject<'_>) -> Self {
        let [account, conversation, participant] =
            [subject.account, subject.conversation, subject.participant].map(public);
        Self { account, conversation, participant, ..self }
    }

    fn tell(&self, what: &'static str, code: Code, reason: Option<&str>, left_out: Option<u64>) {
        let set = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
        info!(
            target: AUDIT,
            caller = self.caller,
            rpc.method = &*self.method,
            account = set(&self.account),
            conversation = set(&self.conversation),
            participant = set(&self.participant),
            rpc.response.status_code = code_name(code),
            error.r#type = reason,
            trace_id = self.trace_id,
            duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            left_out,
            "{what}"
        );
    }
}

fn public(id: &str) -> String {
    if is_public(id) { id.to_owned() } else { String::new() }
}

/// The records of denied calls, of which there may be thousands a second. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Audit(Arc<Mutex<Option<Second>>>);

/// What was recorded within one second.
struct Second {
    began: Instant,
    all: u32,
    of: HashMap<CallerId, u32>,
    /// Since the last record.
    left_out: u64,
}

impl Audit {
    /// Records a call that was denied, or counts it for the next record where there are too many.
    pub(super) fn denied(&self, entry: &Entry, why: Reason) {
        if let Some(left_out) = self.takes(entry.id) {
            let code = status::plain(why).code();
            entry.tell("denied", code, Some(why.as_str()), (left_out > 0).then_some(left_out));
        }
    }

    /// How many were left out before this one; `None` where it is left out, too.
    fn takes(&self, caller: CallerId) -> Option<u64> {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |left_out| Second { began: Instant::now(), all: 0, of: HashMap::new(), left_out };
        let second = second.get_or_insert_with(|| fresh(0));
        if second.began.elapsed() >= Duration::from_secs(1) {
            *second = fresh(second.left_out);
        }
        let own = second.of.get(&caller).copied().unwrap_or_default();
        if own >= OF_ONE || second.all >= OF_ALL {
            second.left_out += 1;
            return None;
        }
        second.of.insert(caller, own + 1);
        second.all += 1;
        Some(std::mem::take(&mut second.left_out))
    }
}

/// The record of a write, told when nobody can add to it any more: the call, or the write that goes on without it.
#[derive(Clone)]
pub(super) struct Record(Arc<Write>);

struct Write {
    entry: Entry,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// How the write ended.
    ended: Option<Outcome>,
    /// What its caller was told, which may be that nobody knows.
    answered: Option<Outcome>,
    /// By Twilio's answer.
    conversation: String,
    participant: String,
}

type Outcome = (Code, Option<String>);

impl Record {
    pub(super) fn new(entry: Entry) -> Self {
        Self(Arc::new(Write { entry, told: Mutex::default() }))
    }

    /// Adds how the write ends.
    pub(super) fn witness(&self) -> Witness {
        let record = self.clone();
        Witness::new(move |outcome| {
            let status = outcome.as_ref().map_or_else(|error| status::of_watch(error), |_| Status::ok(""));
            let mut told = record.told();
            told.ended = Some(self::outcome(&status));
            if let Ok(Some(Participant { id, conversation_id, .. })) = outcome {
                (told.conversation, told.participant) = (public(conversation_id), public(id));
            }
        })
    }

    /// Adds what the caller is told.
    pub(super) fn answered<T>(&self, answer: &Result<T, Status>) {
        self.told().answered = Some(answer.as_ref().map_or_else(outcome, |_| (Code::Ok, None)));
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outcome(status: &Status) -> Outcome {
    (status.code(), status.get_details_error_info().map(|info| info.reason))
}

impl Drop for Write {
    fn drop(&mut self) {
        let told = std::mem::take(self.told.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (code, reason) = told.ended.or(told.answered).unwrap_or((Code::Cancelled, None));
        for (known, by_answer) in [
            (&mut self.entry.conversation, told.conversation),
            (&mut self.entry.participant, told.participant),
        ] {
            if known.is_empty() {
                *known = by_answer;
            }
        }
        self.entry.tell("write", code, reason.as_deref(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_denied_calls_is_recorded_in_part_and_counted() {
        let (audit, mut left_out) = (Audit::default(), 0);
        let mut taken = |caller: u128, calls: u32| {
            let caller = CallerId::Named(caller.to_be_bytes());
            let taken: Vec<_> = (0..calls).filter_map(|_| audit.takes(caller)).collect();
            left_out += taken.iter().sum::<u64>();
            u32::try_from(taken.len()).unwrap()
        };
        assert_eq!(taken(1, 1000), OF_ONE);
        // Others are heard beside it, and all together are bounded, too.
        assert_eq!((2..1000).map(|caller| taken(caller, 5)).sum::<u32>(), OF_ALL - OF_ONE);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(1, 2), 2);
        assert_eq!(left_out, 1000 + 998 * 5 - u64::from(OF_ALL), "each is counted once");
    }
}
