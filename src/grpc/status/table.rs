//! The error table: what can happen, and what the caller is told. Twilio's code decides before the HTTP status does.

use tonic::Code;

use crate::twilio::{Operation, Problem, THROTTLED};

/// `google.rpc.ErrorInfo.reason`: what a program may branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field of the request is wrong; `BadRequest` lists all that are.
    InvalidRequest,
    /// The page token is damaged or another list's.
    InvalidPageToken,
    /// The caller has not proven who it is.
    Unauthenticated,
    /// The caller may not do this.
    NotAllowed,
    /// The gateway has no such account.
    AccountUnknown,
    /// The API version has no such operation.
    OperationNotSupportedByUpstream,
    /// Twilio refused a parameter.
    UpstreamRejectedArgument,
    /// The conversation or the account is in no state for it.
    UpstreamState,
    /// There is no such participant.
    ParticipantNotFound,
    /// There is no such conversation.
    ConversationNotFound,
    /// The participant, or one with its address, is already there.
    ParticipantExists,
    /// Another change was under way.
    Conflict,
    /// The participant is no longer what the caller's etag tells.
    EtagMismatch,
    /// A watcher reads too slowly.
    WatchLagged,
    /// Events after the resume token are gone.
    ResumeTokenExpired,
    /// Twilio limits the rate of requests.
    UpstreamThrottled,
    /// A limit of Twilio's on how many there may be.
    UpstreamLimit,
    /// Twilio refused the gateway's credentials.
    UpstreamCredentialsRejected,
    /// The gateway's credentials may not do this.
    UpstreamForbidden,
    /// Twilio could not be reached, or failed.
    UpstreamUnavailable,
    /// Twilio fails, and the gateway leaves it alone for now.
    CircuitOpen,
    /// The gateway, or one account of it, has as many calls as it can have.
    LocalConcurrency,
    /// A write may or may not have taken effect.
    WriteOutcomeUnknown,
    /// The caller's deadline passed.
    Deadline,
    /// Twilio's answer is not what its contract says.
    UpstreamContractBroken,
    /// The gateway is stopping.
    ShuttingDown,
    /// A bug of the gateway.
    Internal,
}

impl Reason {
    /// As `ErrorInfo` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::InvalidPageToken => "INVALID_PAGE_TOKEN",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::AccountUnknown => "ACCOUNT_UNKNOWN",
            Self::OperationNotSupportedByUpstream => "OPERATION_NOT_SUPPORTED_BY_UPSTREAM",
            Self::UpstreamRejectedArgument => "UPSTREAM_REJECTED_ARGUMENT",
            Self::UpstreamState => "UPSTREAM_STATE",
            Self::ParticipantNotFound => "PARTICIPANT_NOT_FOUND",
            Self::ConversationNotFound => "CONVERSATION_NOT_FOUND",
            Self::ParticipantExists => "PARTICIPANT_EXISTS",
            Self::Conflict => "CONFLICT",
            Self::EtagMismatch => "ETAG_MISMATCH",
            Self::WatchLagged => "WATCH_LAGGED",
            Self::ResumeTokenExpired => "RESUME_TOKEN_EXPIRED",
            Self::UpstreamThrottled => "UPSTREAM_THROTTLED",
            Self::UpstreamLimit => "UPSTREAM_LIMIT",
            Self::UpstreamCredentialsRejected => "UPSTREAM_CREDENTIALS_REJECTED",
            Self::UpstreamForbidden => "UPSTREAM_FORBIDDEN",
            Self::UpstreamUnavailable => "UPSTREAM_UNAVAILABLE",
            Self::CircuitOpen => "CIRCUIT_OPEN",
            Self::LocalConcurrency => "LOCAL_CONCURRENCY",
            Self::WriteOutcomeUnknown => "WRITE_OUTCOME_UNKNOWN",
            Self::Deadline => "DEADLINE",
            Self::UpstreamContractBroken => "UPSTREAM_CONTRACT_BROKEN",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::Internal => "INTERNAL",
        }
    }

    /// What the error tells clients and meshes about repeating the call.
    pub fn retry(self) -> Retry {
        match self {
            Self::UpstreamThrottled | Self::CircuitOpen | Self::LocalConcurrency => Retry::Wait,
            Self::UpstreamUnavailable => Retry::WaitIfAsked,
            // A bug: a write may have been sent, and no repetition mends it.
            Self::WriteOutcomeUnknown | Self::Internal => Retry::Never,
            Self::Deadline | Self::UpstreamContractBroken => Retry::NeverOnceSent,
            Self::InvalidRequest
            | Self::InvalidPageToken
            | Self::Unauthenticated
            | Self::NotAllowed
            | Self::AccountUnknown
            | Self::OperationNotSupportedByUpstream
            | Self::UpstreamRejectedArgument
            | Self::UpstreamState
            | Self::ParticipantNotFound
            | Self::ConversationNotFound
            | Self::ParticipantExists
            | Self::Conflict
            | Self::EtagMismatch
            | Self::WatchLagged
            | Self::ResumeTokenExpired
            | Self::UpstreamLimit
            | Self::UpstreamCredentialsRejected
            | Self::UpstreamForbidden
            | Self::ShuttingDown => Retry::Untold,
        }
    }

    /// What a caller, or who is on call, does about it; a cell of `docs/errors.md`.
    pub fn what_to_do(self) -> &'static str {
        match self {
            Self::InvalidRequest => "correct the fields that `BadRequest` lists",
            Self::InvalidPageToken => "begin the list again; a token belongs to one list of one account",
            Self::Unauthenticated => {
                "prove who you are in a way that `auth.mode` names; on-call: the reason is in the log, at the level debug"
            }
            Self::NotAllowed => "ask for a rule in the policy that allows it",
            Self::AccountUnknown => "configure the account, or leave `account_id` empty",
            Self::OperationNotSupportedByUpstream => "this API version cannot do it",
            Self::UpstreamRejectedArgument => "read the page that `Help` links",
            Self::UpstreamState => "the conversation is closed, or the like: see `twilio_code`",
            Self::UpstreamCredentialsRejected => "on-call: replace the account's credentials",
            Self::UpstreamForbidden => "on-call: the credentials lack a permission",
            Self::ParticipantNotFound | Self::ConversationNotFound => {
                "`ResourceInfo` says which is missing; remembered for `cache.negative_ttl` (5 s)"
            }
            Self::ParticipantExists => "`ResourceInfo` names the other where Twilio tells it",
            Self::Conflict => "read again, then repeat",
            Self::EtagMismatch => "read again, decide anew, then repeat with the new etag",
            Self::WatchLagged => "watch again from `resume_token` of the metadata, and read faster",
            Self::ResumeTokenExpired => "read what you hold anew, then watch without a token",
            Self::UpstreamThrottled => "wait as long as `RetryInfo` says",
            Self::UpstreamLimit => "a limit on how many there may be; waiting does not help",
            Self::UpstreamUnavailable => "repeat, with backoff; look at Twilio's status",
            Self::CircuitOpen => {
                "nothing was sent; wait as long as `RetryInfo` says; on-call: look at Twilio's status"
            }
            Self::LocalConcurrency => {
                "nothing was sent; wait as long as `RetryInfo` says, and ask less at once"
            }
            Self::ShuttingDown => "repeat: another replica answers",
            Self::WriteOutcomeUnknown => {
                "the gateway has looked and could not tell: read before repeating, the write may still take effect"
            }
            Self::Deadline => {
                "a longer deadline, or a look at the latency; the message says if a write was sent"
            }
            Self::UpstreamContractBroken => {
                "the message names the key that Twilio sent otherwise than documented: report it"
            }
            Self::Internal => "a bug here: report it with the log line",
        }
    }
}

/// What an error tells clients and meshes about repeating the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Nothing.
    Untold,
    /// `RetryInfo`: the wait that Twilio asks for, or the gateway, or a second.
    Wait,
    /// `RetryInfo` where Twilio asks for a wait.
    WaitIfAsked,
    /// `grpc-retry-pushback-ms: -1`: not by themselves.
    Never,
    /// As `Never` where a write was sent.
    NeverOnceSent,
}

/// Which requests to Twilio a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// All of them.
    Any,
    /// A create.
    Create,
    /// A list or a create: what is missing is the conversation, or the service.
    Collection,
    /// A create or an update: repeating it may do it twice.
    Write,
}

impl On {
    /// Whether the row is about this request.
    pub fn includes(self, operation: Operation) -> bool {
        match self {
            Self::Any => true,
            Self::Create => operation == Operation::Create,
            Self::Collection => {
                matches!(operation, Operation::List | Operation::Create | Operation::ListConversations)
            }
            Self::Write => !operation.is_repeatable(),
        }
    }
}

/// Every request to Twilio, and what its call is named after.
pub(super) const REQUESTS: [(Operation, &str); 6] = [
    (Operation::Fetch, "get"),
    (Operation::List, "list"),
    (Operation::Create, "create"),
    (Operation::Update, "update"),
    (Operation::Delete, "delete"),
    (Operation::ListConversations, "list conversations"),
];

/// One row: what happened, and what the caller is told.
#[derive(Debug)]
pub struct Row {
    /// What the caller is told, for programs.
    pub reason: Reason,
    /// The gRPC code.
    pub code: Code,
    /// What the caller is told, for people.
    pub message: &'static str,
    /// Which requests to Twilio it is about.
    pub on: On,
    /// Twilio's error codes that mean it.
    pub twilio_codes: &'static [i64],
    /// The HTTP statuses that mean it where Twilio's code does not decide, first and last.
    pub statuses: &'static [(u16, u16)],
}

const EXISTS: &[i64] = &[20409, 50416, 50425, 50433, 50437, 50438];

const fn ours(reason: Reason, code: Code, message: &'static str) -> Row {
    Row { reason, code, message, on: On::Any, twilio_codes: &[], statuses: &[] }
}

/// All rows. Of two that fit, the first holds: what is about fewer requests stands before what is about more.
pub const TABLE: &[Row] = &[
    ours(Reason::InvalidRequest, Code::InvalidArgument, "the request is not valid"),
    ours(Reason::InvalidPageToken, Code::InvalidArgument, "the page token is not one of this list"),
    ours(Reason::Unauthenticated, Code::Unauthenticated, "the caller has not proven who it is"),
    ours(Reason::NotAllowed, Code::PermissionDenied, "the caller may not do this"),
    ours(Reason::AccountUnknown, Code::InvalidArgument, "the gateway is not configured for this account"),
    ours(
        Reason::OperationNotSupportedByUpstream,
        Code::FailedPrecondition,
        "this version of Twilio's API has no such operation",
    ),
    ours(
        Reason::EtagMismatch,
        Code::Aborted,
        "the participant is no longer what the etag tells; read it again",
    ),
    ours(
        Reason::WatchLagged,
        Code::Aborted,
        "the watcher reads too slowly; watch again from the resume token",
    ),
    ours(
        Reason::ResumeTokenExpired,
        Code::OutOfRange,
        "events after the resume token are gone; read what you hold anew, then watch without a token",
    ),
    Row {
        reason: Reason::UpstreamCredentialsRejected,
        code: Code::FailedPrecondition,
        message: "Twilio rejected the gateway's credentials; its operator has to replace them",
        on: On::Any,
        twilio_codes: &[20003],
        statuses: &[(401, 401)],
    },
    Row {
        reason: Reason::UpstreamForbidden,
        code: Code::FailedPrecondition,
        message: "Twilio does not let the gateway's credentials do this",
        on: On::Any,
        twilio_codes: &[20005, 20006, 20403, 50107, 50430],
        statuses: &[(403, 403)],
    },
    Row {
        reason: Reason::UpstreamThrottled,
        code: Code::ResourceExhausted,
        message: "Twilio limits the rate of requests",
        on: On::Any,
        twilio_codes: THROTTLED,
        statuses: &[(429, 429)],
    },
    Row {
        reason: Reason::UpstreamLimit,
        code: Code::ResourceExhausted,
        message: "a limit of Twilio's is reached",
        on: On::Any,
        twilio_codes: &[50208, 50214, 50417, 50418, 50422, 50426, 50436],
        statuses: &[],
    },
    Row {
        reason: Reason::ConversationNotFound,
        code: Code::NotFound,
        message: "there is no such conversation",
        on: On::Any,
        twilio_codes: &[50350],
        statuses: &[],
    },
    Row {
        reason: Reason::ParticipantNotFound,
        code: Code::NotFound,
        message: "there is no such participant",
        on: On::Any,
        twilio_codes: &[50432],
        statuses: &[],
    },
    Row {
        reason: Reason::ConversationNotFound,
        code: Code::NotFound,
        message: "there is no such conversation",
        on: On::Collection,
        twilio_codes: &[20404],
        statuses: &[(404, 404)],
    },
    Row {
        reason: Reason::ParticipantNotFound,
        code: Code::NotFound,
        message: "there is no such participant",
        on: On::Any,
        twilio_codes: &[20404],
        statuses: &[(404, 404)],
    },
    Row {
        reason: Reason::ParticipantExists,
        code: Code::AlreadyExists,
        message: "the participant, or another with its address, already exists",
        on: On::Create,
        twilio_codes: EXISTS,
        statuses: &[(409, 409)],
    },
    Row {
        reason: Reason::Conflict,
        code: Code::Aborted,
        message: "another change is in the way; read again before you repeat it",
        on: On::Any,
        twilio_codes: EXISTS,
        statuses: &[(409, 409)],
    },
    Row {
        reason: Reason::Conflict,
        code: Code::Aborted,
        message: "another change was under way at the same time; repeat it",
        on: On::Any,
        twilio_codes: &[50213, 50391, 50419, 50449],
        statuses: &[],
    },
    Row {
        reason: Reason::UpstreamState,
        code: Code::FailedPrecondition,
        message: "the conversation, the participant or the account is in no state for it",
        on: On::Any,
        twilio_codes: &[
            50377, 50385, 50413, 50415, 50427, 50435, 50439, 50440, 50441, 50442, 50443, 50444, 50452, 50453,
        ],
        statuses: &[(412, 412)],
    },
    Row {
        reason: Reason::UpstreamContractBroken,
        code: Code::Internal,
        message: "Twilio's answer is not what its contract says",
        on: On::Any,
        // The method or the media type is the gateway's choice, not the caller's.
        twilio_codes: &[20004],
        statuses: &[(405, 406), (415, 415)],
    },
    Row {
        reason: Reason::UpstreamRejectedArgument,
        code: Code::InvalidArgument,
        message: "Twilio rejected a parameter",
        on: On::Any,
        twilio_codes: &[
            20001, 20422, 50100, 50109, 50200, 50203, 50204, 50206, 50207, 50211, 50303, 50304, 50308, 50309,
            50407, 50408, 50409, 50411, 50412, 50414, 50420, 50421, 50424, 50431, 50434, 50451,
        ],
        statuses: &[(400, 400), (402, 402), (407, 407), (410, 411), (413, 414), (416, 428), (430, 499)],
    },
    Row {
        reason: Reason::WriteOutcomeUnknown,
        code: Code::Unknown,
        message: "the write may or may not have taken effect; read before you repeat it",
        on: On::Write,
        twilio_codes: &[],
        statuses: &[(500, 599)],
    },
    Row {
        reason: Reason::UpstreamUnavailable,
        code: Code::Unavailable,
        message: "Twilio cannot be reached or fails",
        on: On::Any,
        // 408: the request did not arrive whole, so nothing was done.
        twilio_codes: &[],
        statuses: &[(408, 408), (500, 599)],
    },
    ours(
        Reason::CircuitOpen,
        Code::Unavailable,
        "Twilio fails and is left alone for now; nothing was sent, call again later",
    ),
    ours(
        Reason::LocalConcurrency,
        Code::ResourceExhausted,
        "the gateway has as many calls under way as it can have; nothing was sent, call again later",
    ),
    ours(Reason::Deadline, Code::DeadlineExceeded, "the call's deadline passed"),
    ours(Reason::ShuttingDown, Code::Unavailable, "the gateway is stopping; call again"),
    ours(Reason::Internal, Code::Internal, "the gateway failed; its log says more"),
];

/// The first row with this reason. A test holds that each reason has one.
pub(super) fn row(reason: Reason) -> &'static Row {
    TABLE.iter().find(|row| row.reason == reason).expect("a test holds that every reason has a row")
}

pub(super) fn answered(operation: Operation, problem: &Problem) -> &'static Row {
    let status = problem.status.as_u16();
    // The two statuses that hold whatever the code: it is the gateway's credentials.
    match status {
        401 => return row(Reason::UpstreamCredentialsRejected),
        403 => return row(Reason::UpstreamForbidden),
        _ => {}
    }
    let by_status = |row: &&Row| row.statuses.iter().any(|(first, last)| (*first..=*last).contains(&status));
    let known = problem.code.and_then(|code| by_code(operation, code));
    known.or_else(|| about(operation).find(by_status)).unwrap_or(row(Reason::UpstreamContractBroken))
}

/// The row that Twilio's code decides on, if one does.
pub(super) fn by_code(operation: Operation, code: i64) -> Option<&'static Row> {
    about(operation).find(|row| row.twilio_codes.contains(&code))
}

fn about(operation: Operation) -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(move |row| row.on.includes(operation))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::twilio::Subject;

    fn told(operation: Operation, status: u16, code: Option<i64>) -> (Code, &'static str) {
        let status = StatusCode::from_u16(status).unwrap();
        let problem = Problem {
            status,
            code,
            subject: Subject::default(),
            request_id: None,
            retry_after: None,
            conflicting_id: None,
        };
        let row = answered(operation, &problem);
        (row.code, row.reason.as_str())
    }

    #[test]
    fn every_reason_has_a_row_and_every_row_stays_small() {
        for reason in [
            Reason::InvalidRequest,
            Reason::InvalidPageToken,
            Reason::Unauthenticated,
            Reason::NotAllowed,
            Reason::AccountUnknown,
            Reason::OperationNotSupportedByUpstream,
            Reason::UpstreamRejectedArgument,
            Reason::UpstreamState,
            Reason::ParticipantNotFound,
            Reason::ConversationNotFound,
            Reason::ParticipantExists,
            Reason::Conflict,
            Reason::EtagMismatch,
            Reason::WatchLagged,
            Reason::ResumeTokenExpired,
            Reason::UpstreamThrottled,
            Reason::UpstreamLimit,
            Reason::UpstreamCredentialsRejected,
            Reason::UpstreamForbidden,
            Reason::UpstreamUnavailable,
            Reason::CircuitOpen,
            Reason::LocalConcurrency,
            Reason::WriteOutcomeUnknown,
            Reason::Deadline,
            Reason::UpstreamContractBroken,
            Reason::ShuttingDown,
            Reason::Internal,
        ] {
            assert_eq!(row(reason).reason, reason);
        }
    }

    #[test]
    fn every_error_status_is_told_as_an_error_of_its_own_row() {
        for (operation, _) in REQUESTS {
            for status in 400..600 {
                let (code, reason) = told(operation, status, None);
                let unforeseen = reason == "UPSTREAM_CONTRACT_BROKEN";
                assert_eq!(unforeseen, matches!(status, 405 | 406 | 415), "{operation:?} {status} {code:?}");
            }
        }
    }

    #[test]
    fn twilios_code_decides_before_the_status() {
        assert_eq!(told(Operation::Create, 400, Some(50433)), (Code::AlreadyExists, "PARTICIPANT_EXISTS"));
        assert_eq!(told(Operation::Update, 400, Some(50433)), (Code::Aborted, "CONFLICT"));
        assert_eq!(told(Operation::Create, 404, Some(50100)).1, "UPSTREAM_REJECTED_ARGUMENT");
        assert_eq!(told(Operation::Fetch, 400, Some(20429)).1, "UPSTREAM_THROTTLED");
        // But for the credentials, which are nobody's fault but the gateway's.
        assert_eq!(told(Operation::Create, 403, Some(50433)).1, "UPSTREAM_FORBIDDEN");
    }

    #[test]
    fn what_is_missing_depends_on_what_was_asked() {
        for (operation, reason) in [
            (Operation::Fetch, "PARTICIPANT_NOT_FOUND"),
            (Operation::Update, "PARTICIPANT_NOT_FOUND"),
            (Operation::Delete, "PARTICIPANT_NOT_FOUND"),
            (Operation::List, "CONVERSATION_NOT_FOUND"),
            (Operation::Create, "CONVERSATION_NOT_FOUND"),
            (Operation::ListConversations, "CONVERSATION_NOT_FOUND"),
        ] {
            assert_eq!(told(operation, 404, None), (Code::NotFound, reason));
            assert_eq!(told(operation, 404, Some(20404)), (Code::NotFound, reason));
            assert_eq!(told(operation, 404, Some(50350)).1, "CONVERSATION_NOT_FOUND");
        }
    }

    #[test]
    fn only_a_write_that_may_repeat_has_an_unknown_outcome() {
        for (operation, _) in REQUESTS {
            let expected = match operation {
                Operation::Create | Operation::Update => (Code::Unknown, "WRITE_OUTCOME_UNKNOWN"),
                Operation::Fetch | Operation::List | Operation::Delete | Operation::ListConversations => {
                    (Code::Unavailable, "UPSTREAM_UNAVAILABLE")
                }
            };
            for status in [500, 502, 503, 504, 599] {
                assert_eq!(told(operation, status, None), expected);
            }
        }
    }
}
