//! What can go wrong with a request to Twilio: a cause per reaction, without a word of Twilio's own text.

mod problem;

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::StatusCode;

pub use problem::{Problem, Subject, THROTTLED};
pub(super) use problem::{concurrent_requests, request_id};

use crate::ids::{ApiVersion, Violation};

/// One of the six requests that Twilio knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// GET of one participant.
    Fetch,
    /// GET of a page.
    List,
    /// POST of a new one.
    Create,
    /// v1: POST; v2: PUT.
    Update,
    /// DELETE.
    Delete,
    /// GET of a page of a person's conversations.
    ListConversations,
}

impl Operation {
    /// Whether a request that may have arrived can be sent again. v2's PUT is left out: a second one could undo what
    /// another writer did in between.
    pub fn is_repeatable(self) -> bool {
        match self {
            Self::Fetch | Self::List | Self::Delete | Self::ListConversations => true,
            Self::Create | Self::Update => false,
        }
    }
}

/// A request to Twilio that failed.
#[derive(Debug)]
pub struct Error {
    /// What was asked.
    pub operation: Operation,
    /// Which API was asked.
    pub version: ApiVersion,
    /// Why it failed.
    pub cause: Cause,
}

/// Why a request failed; a variant per reaction.
#[derive(Debug)]
pub enum Cause {
    /// Twilio answered with an error.
    Answered(Box<Problem>),
    /// The request never left, because the account has no OAuth access token.
    NoToken(NoToken),
    /// The request never left: nobody waits for what it writes any more.
    GivenUp,
    /// The request never left: Twilio fails, and is left alone until it is tried again, after this time.
    CircuitOpen(Duration),
    /// The request never left: the account has enough of them under way; a place may be free after this time.
    Overloaded(Duration),
    /// The request never left: connection refused, name not resolved, TLS failed.
    NotSent(reqwest::Error),
    /// The connection broke after the request was, or may have been, sent.
    Cut(reqwest::Error),
    /// The gateway's own time limit ran out after the request was, or may have been, sent.
    TimedOut,
    /// Twilio's answer is not what its contract says.
    Broken(Broken),
    /// Twilio's API cannot make this change; nothing was sent.
    Unsupported(Vec<Violation>),
}

/// Why an account has no access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// Its token endpoint refused the client, with this status.
    Refused(StatusCode),
    /// Its token endpoint could not be reached, or failed; a word out of a closed set says how.
    Unavailable(&'static str),
}

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => write!(f, "the token endpoint answered HTTP {}", status.as_u16()),
            Self::Unavailable(why) => write!(f, "the token endpoint cannot be used: {why}"),
        }
    }
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The HTTP status.
    pub status: StatusCode,
    /// The key that cannot be decoded, such as `participants[3].date_created`, or what else is wrong. Never a value.
    pub what: String,
    /// The header `Twilio-Request-Id`.
    pub request_id: Option<String>,
}

impl Error {
    /// An answer to a read before a write that tells no id, or another participant's.
    pub fn without_id(version: ApiVersion) -> Self {
        let what = match version {
            ApiVersion::V1 => "sid",
            ApiVersion::V2 => "id",
        };
        let broken = Broken { status: StatusCode::OK, what: what.into(), request_id: None };
        Self { operation: Operation::Fetch, version, cause: Cause::Broken(broken) }
    }

    /// How long Twilio asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.cause {
            Cause::Answered(problem) => problem.retry_after,
            Cause::CircuitOpen(wait) | Cause::Overloaded(wait) => Some(*wait),
            Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::NotSent(_)
            | Cause::Cut(_)
            | Cause::TimedOut
            | Cause::Broken(_)
            | Cause::Unsupported(_) => None,
        }
    }

    /// Whether the same request can be sent again: for every method what was never processed, for reads and deletes also
    /// what may have been.
    pub fn is_retryable(&self) -> bool {
        match &self.cause {
            Cause::NotSent(_) | Cause::NoToken(NoToken::Unavailable(_)) => true,
            Cause::Answered(problem) if problem.is_unprocessed() => true,
            Cause::Answered(_) | Cause::Cut(_) | Cause::TimedOut => {
                self.may_have_been_processed() && self.operation.is_repeatable()
            }
            Cause::NoToken(NoToken::Refused(_))
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_)
            | Cause::Broken(_)
            | Cause::Unsupported(_) => false,
        }
    }

    /// Whether Twilio may have done what was asked although it did not say so.
    pub fn may_have_been_processed(&self) -> bool {
        match &self.cause {
            Cause::Answered(problem) => problem.status.is_server_error() && !problem.is_unprocessed(),
            // The answer may be broken, but it is one.
            Cause::Cut(_) | Cause::TimedOut | Cause::Broken(_) => true,
            Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_)
            | Cause::NotSent(_)
            | Cause::Unsupported(_) => false,
        }
    }

    /// Whether only a read can tell what became of a write: it may have been processed, or it is v1's 404 on a create, which
    /// Twilio also answers where it did add a participant who had been removed before (support article 50009103572635).
    pub fn leaves_the_outcome_open(&self) -> bool {
        match &self.cause {
            Cause::Answered(problem) if problem.code == Some(20404) => {
                self.operation == Operation::Create && self.version == ApiVersion::V1
            }
            Cause::Answered(_) | Cause::Cut(_) | Cause::TimedOut => {
                self.may_have_been_processed() && !self.operation.is_repeatable()
            }
            // Of a broken answer only its text is in doubt.
            Cause::Broken(_)
            | Cause::NotSent(_)
            | Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_)
            | Cause::Unsupported(_) => false,
        }
    }

    /// Whether Twilio is sure to have done nothing, for a reason that passes: a write with a request id can be repeated with it.
    pub fn nothing_was_done(&self) -> bool {
        match &self.cause {
            Cause::Answered(problem) => {
                let is_refused_login =
                    matches!(problem.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                problem.is_unprocessed() || is_refused_login
            }
            Cause::Unsupported(_) => false,
            _ => self.was_never_sent(),
        }
    }

    /// Whether Twilio never saw what was asked, or refused an earlier attempt of it unseen, for a reason that passes: it says
    /// nothing of what is there.
    pub fn was_never_sent(&self) -> bool {
        match &self.cause {
            Cause::NotSent(_)
            | Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_) => true,
            Cause::Answered(_)
            | Cause::Cut(_)
            | Cause::TimedOut
            | Cause::Broken(_)
            | Cause::Unsupported(_) => false,
        }
    }

    /// Whether Twilio refused the credentials, before it did anything else.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(&self.cause, Cause::Answered(problem) if problem.status == StatusCode::UNAUTHORIZED)
    }

    /// Whether there was no answer to what was asked: Twilio, or the way to it, is away, fails, or has enough to do.
    pub fn is_away(&self) -> bool {
        match &self.cause {
            Cause::Answered(problem) => problem.status.is_server_error() || problem.is_unprocessed(),
            // Of a read, whose time was over before its turn came.
            Cause::GivenUp
            | Cause::NoToken(NoToken::Unavailable(_))
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_)
            | Cause::NotSent(_)
            | Cause::Cut(_)
            | Cause::TimedOut => true,
            Cause::NoToken(NoToken::Refused(_)) | Cause::Broken(_) | Cause::Unsupported(_) => false,
        }
    }

    /// Whether the gateway did not send it, and would after a while.
    pub fn is_held_back(&self) -> bool {
        matches!(self.cause, Cause::CircuitOpen(_) | Cause::Overloaded(_))
    }

    /// Whether it was not sent for want of time or of a place, which another caller may have.
    pub fn is_impatience(&self) -> bool {
        matches!(self.cause, Cause::GivenUp | Cause::Overloaded(_))
    }

    /// Whether the account has too many requests under way at Twilio.
    pub(super) fn is_one_too_many(&self) -> bool {
        matches!(&self.cause, Cause::Answered(problem) if problem.is_one_too_many())
    }

    /// Whether the participant or the conversation is not there.
    pub fn is_not_found(&self) -> bool {
        match &self.cause {
            Cause::Answered(problem) => problem.is_not_found(),
            Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_)
            | Cause::NotSent(_)
            | Cause::Cut(_)
            | Cause::TimedOut
            | Cause::Broken(_)
            | Cause::Unsupported(_) => false,
        }
    }

    /// A short word for logs and metrics, out of a closed set.
    pub fn kind(&self) -> &'static str {
        self.cause.kind()
    }
}

impl Cause {
    /// See [`Error::kind`].
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Answered(_) => "answered",
            Self::NoToken(_) => "no_token",
            Self::GivenUp => "given_up",
            Self::CircuitOpen(_) => "circuit_open",
            Self::Overloaded(_) => "overloaded",
            Self::NotSent(_) => "not_sent",
            Self::Cut(_) => "cut",
            Self::TimedOut => "timed_out",
            Self::Broken(_) => "broken_answer",
            Self::Unsupported(_) => "unsupported",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, version, cause } = self;
        write!(f, "{operation:?} on {version}: ")?;
        match cause {
            Cause::Answered(problem) => {
                write!(f, "Twilio answered HTTP {}", problem.status.as_u16())?;
                problem.code.map_or(Ok(()), |code| write!(f, " with code {code}"))
            }
            Cause::NoToken(why) => write!(f, "no access token: {why}"),
            Cause::GivenUp => f.write_str("nobody waits for it any more"),
            Cause::CircuitOpen(_) => f.write_str("Twilio fails, and is left alone for now"),
            Cause::Overloaded(_) => f.write_str("the account has too many requests under way"),
            Cause::NotSent(_) => f.write_str("no connection"),
            Cause::Cut(_) => f.write_str("the connection broke"),
            Cause::TimedOut => f.write_str("no answer in time"),
            Cause::Broken(broken) => write!(f, "answer not understood: {}", broken.what),
            Cause::Unsupported(_) => f.write_str("the change is not possible"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.cause {
            Cause::NotSent(source) | Cause::Cut(source) => Some(source),
            Cause::Answered(_)
            | Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_)
            | Cause::TimedOut
            | Cause::Broken(_)
            | Cause::Unsupported(_) => None,
        }
    }
}
