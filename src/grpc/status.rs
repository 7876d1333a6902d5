//! What a failure is for the caller: the only place that makes a status, by the rows of one table.

pub mod catalogue;
mod table;

use std::collections::HashMap;
use std::time::Duration;

use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::ids::{self, ApiVersion, Segment, Violation};
use crate::participants;
use crate::proto::RequestFailure;
use crate::twilio::{self, Broken, Cause, NoToken, Operation, Problem};

pub use table::{On, Reason, Retry, Row, TABLE};
use table::{answered, row};

/// `google.rpc.ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "participant-gateway";

/// Details and message travel in HTTP/2 headers, and a client drops the stream where those pass 16 KiB.
const MAX_MESSAGE_BYTES: usize = 1024;
const MAX_VIOLATION_BYTES: usize = 3000;

/// A wait that Twilio asks for is handed on, but not for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Where Twilio throttles and does not say for how long, and where the gateway itself has too many calls.
const DEFAULT_WAIT: Duration = Duration::from_secs(1);

/// A request that the gateway itself refuses, with all that is wrong with it.
pub(super) fn refused(reason: Reason, violations: &[Violation], version: Option<ApiVersion>) -> Status {
    let mut failure = Failure::new(row(reason));
    failure.violations(violations);
    failure.about("api_version", version);
    failure.into_status()
}

/// An error with no details but its reason.
pub(super) fn plain(reason: Reason) -> Status {
    Failure::new(row(reason)).into_status()
}

/// There are as many calls as there may be, or the caller has as many as it may. Nobody knows when one ends; when a caller
/// may call again by its rate is known.
pub(super) fn shed(wait: Option<Duration>) -> Status {
    Failure::waiting(row(Reason::LocalConcurrency), wait.unwrap_or(DEFAULT_WAIT)).into_status()
}

/// The status of a failed call about a conversation of this version.
pub(super) fn of(error: &participants::Error, version: ApiVersion) -> Status {
    failure(error, version).into_status()
}

/// The status of a failed call that is about no one version.
pub(super) fn of_watch(error: &participants::Error) -> Status {
    failure_of(error).into_status()
}

/// The status of a batch that ends with the failure of its part at `index`.
pub(super) fn of_batch(error: &participants::Error, version: ApiVersion, index: i32) -> Status {
    let mut failure = failure(error, version);
    failure.message.push_str(&format!("; it is participant_ids[{index}]"));
    failure.about("index", Some(index));
    failure.into_status()
}

/// The same failure as a part of the batch's answer.
pub(super) fn of_part(error: &participants::Error, version: ApiVersion) -> RequestFailure {
    let Failure { row, message, details, .. } = failure(error, version);
    let delay = details.retry_info().and_then(|info| info.retry_delay);
    RequestFailure {
        code: row.code.into(),
        reason: row.reason.as_str().to_owned(),
        message: bounded(message),
        // A wait is at most an hour.
        retry_delay: delay.and_then(|delay| delay.try_into().ok()),
    }
}

fn failure(error: &participants::Error, version: ApiVersion) -> Failure {
    let mut failure = failure_of(error);
    failure.about("api_version", Some(version));
    failure
}

fn failure_of(error: &participants::Error) -> Failure {
    match error {
        participants::Error::Upstream(error) => of_upstream(error),
        participants::Error::Deadline { sent } => {
            let mut failure = Failure::new(row(Reason::Deadline));
            if *sent {
                failure.message.push_str("; the write was sent and may still take effect");
                failure.no_retry();
            }
            failure
        }
        participants::Error::NotSupported => Failure::new(row(Reason::OperationNotSupportedByUpstream)),
        participants::Error::EndlessPages => {
            let mut failure = Failure::new(row(Reason::UpstreamContractBroken));
            failure.message.push_str(": its pages do not end");
            failure
        }
        participants::Error::ResumeTokenExpired => Failure::new(row(Reason::ResumeTokenExpired)),
        participants::Error::WatchLagged { resume } => {
            let mut failure = Failure::new(row(Reason::WatchLagged));
            failure.about("resume_token", Some(resume));
            failure
        }
        participants::Error::EtagMismatch => Failure::new(row(Reason::EtagMismatch)),
        participants::Error::RequestIdReused => {
            let mut failure = Failure::new(row(Reason::InvalidRequest));
            let text =
                "came with another request within the last 10 minutes: every create needs an id of its own";
            failure.violations(&[Violation::new("request_id", text)]);
            failure
        }
        participants::Error::Exists { id } => {
            let mut failure = Failure::new(row(Reason::ParticipantExists));
            let id = id.as_ref().map(Segment::as_str).unwrap_or_default();
            failure.conflict(if ids::is_public(id) { id } else { "" });
            failure
        }
        participants::Error::OutcomeUnknown(error) => {
            let mut failure = Failure::new(row(Reason::WriteOutcomeUnknown));
            if let Some(Cause::Answered(problem)) = error.as_ref().map(|error| &error.cause) {
                failure.answered(problem);
            }
            failure
        }
        participants::Error::Bug => Failure::new(row(Reason::Internal)),
    }
}

fn of_upstream(error: &twilio::Error) -> Failure {
    match &error.cause {
        Cause::Answered(problem) => of_problem(error.operation, problem),
        Cause::NotSent(_) | Cause::NoToken(NoToken::Unavailable(_)) => {
            Failure::new(row(Reason::UpstreamUnavailable))
        }
        Cause::GivenUp => Failure::new(row(Reason::Deadline)),
        Cause::CircuitOpen(wait) => Failure::waiting(row(Reason::CircuitOpen), *wait),
        Cause::Overloaded(wait) => Failure::waiting(row(Reason::LocalConcurrency), *wait),
        Cause::NoToken(NoToken::Refused(status)) => {
            let mut failure = Failure::new(row(Reason::UpstreamCredentialsRejected));
            failure.about("http_status", Some(status.as_u16()));
            failure
        }
        Cause::Cut(_) | Cause::TimedOut if On::Write.includes(error.operation) => {
            Failure::new(row(Reason::WriteOutcomeUnknown))
        }
        Cause::Cut(_) | Cause::TimedOut => Failure::new(row(Reason::UpstreamUnavailable)),
        Cause::Broken(Broken { status, what, request_id }) => {
            let mut failure = Failure::new(row(Reason::UpstreamContractBroken));
            failure.message.push_str(": ");
            failure.message.push_str(what);
            failure.about("http_status", Some(status.as_u16()));
            failure.about("twilio_request_id", request_id.as_ref());
            if On::Write.includes(error.operation) {
                // Twilio took it, and only its answer is broken.
                failure.no_retry();
            }
            failure
        }
        Cause::Unsupported(violations) => {
            let mut failure = Failure::new(row(Reason::InvalidRequest));
            failure.violations(violations);
            failure
        }
    }
}

fn of_problem(operation: Operation, problem: &Problem) -> Failure {
    let row = answered(operation, problem);
    let mut failure = Failure::new(row);
    failure.answered(problem);
    match row.reason {
        Reason::ParticipantNotFound => failure.resource("Participant", &problem.subject.participant_id),
        Reason::ConversationNotFound => failure.resource("Conversation", &problem.subject.conversation_id),
        Reason::ParticipantExists => failure.conflict(problem.conflicting_id.as_deref().unwrap_or_default()),
        _ => {}
    }
    match (row.reason.retry(), problem.retry_after) {
        (Retry::Wait, wait) => failure.wait(wait.unwrap_or(DEFAULT_WAIT)),
        (Retry::WaitIfAsked, Some(wait)) => failure.wait(wait),
        (Retry::WaitIfAsked, None) | (Retry::Untold | Retry::Never | Retry::NeverOnceSent, _) => {}
    }
    failure
}

/// A status on its way: the row's code and reason, and what is added to them.
struct Failure {
    row: &'static Row,
    message: String,
    about: HashMap<String, String>,
    details: ErrorDetails,
    metadata: MetadataMap,
}

impl Failure {
    fn new(row: &'static Row) -> Self {
        let mut failure = Self {
            row,
            message: row.message.to_owned(),
            about: HashMap::new(),
            details: ErrorDetails::new(),
            metadata: MetadataMap::new(),
        };
        if row.reason.retry() == Retry::Never {
            failure.no_retry();
        }
        failure
    }

    fn waiting(row: &'static Row, wait: Duration) -> Self {
        let mut failure = Self::new(row);
        failure.wait(wait);
        failure
    }

    fn about(&mut self, key: &str, value: Option<impl ToString>) {
        self.about.extend(value.map(|value| (key.to_owned(), value.to_string())));
    }

    /// What Twilio answered, without a word of its text.
    fn answered(&mut self, problem: &Problem) {
        let status = problem.status.as_u16();
        match problem.code {
            Some(code) => {
                self.message.push_str(&format!(" (Twilio error {code}, HTTP {status})"));
                self.details.add_help_link(
                    "Twilio's description of the error",
                    format!("https://www.twilio.com/docs/api/errors/{code}"),
                );
            }
            None => self.message.push_str(&format!(" (HTTP {status})")),
        }
        self.about("twilio_code", problem.code);
        self.about("http_status", Some(status));
        self.about("twilio_request_id", problem.request_id.as_ref());
    }

    /// `id` is empty where it may be PII.
    fn resource(&mut self, kind: &str, id: &str) {
        self.details.set_resource_info(format!("participant.v1.{kind}"), id, "", self.row.message);
    }

    /// What is in the way: mostly a participant, for 50416 the conversation that has one with the same addresses.
    fn conflict(&mut self, id: &str) {
        let is_conversation = ids::route(id).is_some();
        self.resource(if is_conversation { "Conversation" } else { "Participant" }, id);
    }

    fn wait(&mut self, wait: Duration) {
        self.details.set_retry_info(Some(wait.min(LONGEST_WAIT)));
    }

    /// Tells gRPC clients and meshes that have a retry policy to leave this one alone.
    fn no_retry(&mut self) {
        self.metadata.insert("grpc-retry-pushback-ms", MetadataValue::from_static("-1"));
    }

    fn violations(&mut self, violations: &[Violation]) {
        let mut bytes = 0;
        for (at, violation) in violations.iter().enumerate() {
            bytes += violation.field.len() + violation.description.len() + 8;
            if bytes > MAX_VIOLATION_BYTES {
                let rest = format!("and {} more violations", violations.len() - at);
                self.details.add_bad_request_violation("…", rest);
                break;
            }
            if at == 0 {
                self.message.push_str(&format!(": {} {}", violation.field, violation.description));
            }
            self.details.add_bad_request_violation(&violation.field, &violation.description);
        }
        if violations.len() > 1 {
            self.message
                .push_str(&format!(" (and {} more; the details list what fits)", violations.len() - 1));
        }
    }

    fn into_status(self) -> Status {
        let Self { row, message, about, mut details, metadata } = self;
        let message = bounded(message);
        details.set_error_info(row.reason.as_str(), DOMAIN, about);
        Status::with_error_details_and_metadata(row.code, message, details, metadata)
    }
}

fn bounded(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_fits_into_the_headers_whatever_it_lists() {
        let many: Vec<_> = (0..500)
            .map(|at| Violation::new(format!("participant.addresses[{at}].channel"), "x".repeat(300)))
            .collect();
        let status = refused(Reason::InvalidRequest, &many, None);
        assert!(status.message().len() <= MAX_MESSAGE_BYTES);
        assert!(status.details().len() <= 4096, "{}", status.details().len());
        assert!(status.get_details_bad_request().unwrap().field_violations.len() > 5);
    }
}
