//! What can go wrong with a request to Twilio: a cause per reaction, without a word of Twilio's own text.
//!
//! Twilio's `message` and `detail` may hold an identity or an address, so they are dropped here, where the body is parsed.

use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::ids::{ApiVersion, Segment, Violation, is_public, is_sid};

/// Twilio's codes for "too many requests": never processed, so any method may be repeated (docs/api/errors/20429).
pub const THROTTLED: &[i64] = &[20429, 50063, 50074];
/// Those of them that tell of one conversation or service with too many changes a second, not of the whole account.
const THROTTLED_IN_PART: &[i64] = &[50063, 50074];
/// Twilio's codes for a participant or a conversation that is not there.
const NOT_FOUND: &[i64] = &[20404, 50350, 50432];

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

/// What a request was about, by the ids that Twilio made; empty for an identity or a unique name, which may be PII.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The conversation.
    pub conversation_id: String,
    /// The participant, where the request was about one.
    pub participant_id: String,
}

impl Subject {
    pub(super) fn new(conversation: &Segment, participant: Option<&Segment>) -> Self {
        let public =
            |id: &Segment| if is_public(id.as_str()) { id.as_str().to_owned() } else { String::new() };
        Self {
            conversation_id: public(conversation),
            participant_id: participant.map(public).unwrap_or_default(),
        }
    }
}

/// An error that Twilio answered. Serialized it goes to other replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status.
    #[serde(with = "status_code")]
    pub status: StatusCode,
    /// Twilio's error code, of five or six digits.
    pub code: Option<i64>,
    /// What was asked for.
    pub subject: Subject,
    /// The header `Twilio-Request-Id`.
    pub request_id: Option<String>,
    /// The header `Retry-After`.
    pub retry_after: Option<Duration>,
    /// What is in the way: the header `X-Conflicting-Resource-Id`, or the conversation that the text of 50416 names.
    pub conflicting_id: Option<String>,
}

mod status_code {
    use http::StatusCode;
    use serde::de::{Deserialize as _, Error as _};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(status.as_u16())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(from)?).map_err(D::Error::custom)
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
            Cause::NotSent(_)
            | Cause::NoToken(_)
            | Cause::GivenUp
            | Cause::CircuitOpen(_)
            | Cause::Overloaded(_) => true,
            Cause::Answered(problem) => {
                let is_refused_login =
                    matches!(problem.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                problem.is_unprocessed() || is_refused_login
            }
            Cause::Cut(_) | Cause::TimedOut | Cause::Broken(_) | Cause::Unsupported(_) => false,
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

impl Problem {
    /// Reads an error answer: Twilio's classic body, an RFC 9457 body, or anything else.
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, body: &[u8], subject: Subject) -> Self {
        // serde would take an array for a struct, by position.
        let is_object = body.trim_ascii_start().starts_with(b"{");
        let body: ErrorBody =
            if is_object { serde_json::from_slice(body).unwrap_or_default() } else { ErrorBody::default() };
        let conflicting_id = header(headers, "x-conflicting-resource-id")
            .filter(|id| is_public(id))
            .or_else(|| body.code().filter(|code| *code == 50416).and_then(|_| body.named_conversation()));
        Self {
            status,
            code: body.code(),
            subject,
            request_id: request_id(headers),
            retry_after: header(headers, "retry-after").and_then(|text| retry_after(&text)),
            conflicting_id,
        }
    }

    /// Whether Twilio says that it did nothing: too many requests, or the request did not arrive whole.
    pub(super) fn is_unprocessed(&self) -> bool {
        match self.code {
            Some(code) if THROTTLED.contains(&code) => true,
            _ => matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT),
        }
    }

    fn is_one_too_many(&self) -> bool {
        match self.code {
            Some(code) if THROTTLED_IN_PART.contains(&code) => false,
            Some(code) if THROTTLED.contains(&code) => true,
            _ => self.status == StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn is_not_found(&self) -> bool {
        match self.code {
            Some(code) if NOT_FOUND.contains(&code) => true,
            // Another code decides before the status does: 404 is the status of an unknown role, too.
            Some(_) => false,
            None => self.status == StatusCode::NOT_FOUND,
        }
    }
}

/// The keys that matter in Twilio's error bodies, which all spell `code` and differ in the rest. A body that is no JSON
/// object, or has a code of another type, tells nothing.
#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default, deserialize_with = "integer_or_none")]
    code: Option<i64>,
    #[serde(default)]
    message: serde_json::Value,
    #[serde(default)]
    errors: serde_json::Value,
}

impl ErrorBody {
    /// Twilio's bulk APIs have a list of errors, each with its code: the first one tells.
    fn code(&self) -> Option<i64> {
        self.code.or_else(|| self.errors.get(0)?.get("code")?.as_i64())
    }

    /// The SID in the text of 50416, which is the only place where Twilio tells it.
    fn named_conversation(&self) -> Option<String> {
        let words = self.message.as_str()?.split(|c: char| !c.is_ascii_alphanumeric());
        words.into_iter().find(|word| is_sid("CH", word)).map(Into::into)
    }
}

fn integer_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(serde_json::Value::deserialize(deserializer)?.as_i64())
}

/// The header `Twilio-Request-Id`, where it looks like one.
pub(super) fn request_id(headers: &HeaderMap) -> Option<String> {
    header(headers, "twilio-request-id").filter(|id| is_plain(id))
}

/// The header `Twilio-Concurrent-Requests`: how many the account has under way.
pub(super) fn concurrent_requests(headers: &HeaderMap) -> Option<u64> {
    header(headers, "twilio-concurrent-requests")?.parse().ok()
}

/// Letters, digits, `_` and `-`: text from outside that may stand in an error or a log.
fn is_plain(text: &str) -> bool {
    crate::ids::is_v2_id(text)
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(Into::into)
}

/// Seconds or an HTTP date. A date in the past and 0 mean now; what is neither, a negative number included, tells nothing.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, headers: &[(&'static str, &str)], body: &str) -> Problem {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        Problem::read(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), Subject::default())
    }

    #[test]
    fn both_of_twilios_error_bodies_tell_their_code() {
        let classic = r#"{"code":50433,"message":"Participant already exists","more_info":"https://www.twilio.com/docs/errors/50433","status":409}"#;
        let rfc9457 = r#"{"type":"https://www.twilio.com/docs/errors/520046","title":"Conflict","status":409,"code":520046,"detail":"taken","instance":"/x","errors":[{"detail":"d","pointer":"/addresses/0"}]}"#;
        assert_eq!(read(409, &[], classic).code, Some(50433));
        assert_eq!(read(409, &[], rfc9457).code, Some(520_046));
    }

    #[test]
    fn a_body_that_is_neither_tells_nothing_and_breaks_nothing() {
        for body in
            ["", "<html>", "[1]", "{", "null", r#"{"code":"x"}"#, r#"{"code":1.5}"#, r#"{"code":null}"#]
        {
            let problem = read(503, &[], body);
            assert_eq!((problem.code, problem.status.as_u16()), (None, 503), "{body}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wait = |text| read(429, &[("retry-after", text)], "").retry_after;
        assert_eq!(wait("1"), Some(Duration::from_secs(1)));
        assert_eq!(wait("1000000000"), Some(Duration::from_secs(1_000_000_000)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("-5"), None);
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn what_is_in_the_way_is_named_without_the_text_around_it() {
        let other = "CH0123456789abcdef0123456789abcdef";
        let body = format!(r#"{{"code":50416,"message":"+15550100001 is bound in Conversation {other}."}}"#);
        assert_eq!(read(409, &[], &body).conflicting_id.as_deref(), Some(other));
        let header = [("x-conflicting-resource-id", "conv_participant_1")];
        assert_eq!(read(409, &header, "").conflicting_id.as_deref(), Some("conv_participant_1"));
        assert_eq!(read(409, &[("x-conflicting-resource-id", "+1 555")], "").conflicting_id, None);
    }
}
