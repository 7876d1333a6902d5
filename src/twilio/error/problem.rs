//! An error that Twilio answered, without a word of its text.
//!
//! Twilio's `message` and `detail` may hold an identity or an address, so they are dropped here, where the body is parsed.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::ids::{Segment, is_public, is_sid};

/// Twilio's codes for "too many requests": never processed, so any method may be repeated (docs/api/errors/20429).
pub const THROTTLED: &[i64] = &[20429, 50063, 50074];
/// Those of them that tell of one conversation or service with too many changes a second, not of the whole account.
const THROTTLED_IN_PART: &[i64] = &[50063, 50074];
/// Twilio's codes for a participant or a conversation that is not there.
const NOT_FOUND: &[i64] = &[20404, 50350, 50432];

/// What a request was about, by the ids that Twilio made; empty for an identity or a unique name, which may be PII.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The conversation.
    pub conversation_id: String,
    /// The participant, where the request was about one.
    pub participant_id: String,
}

impl Subject {
    pub(in crate::twilio) fn new(conversation: &Segment, participant: Option<&Segment>) -> Self {
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

    pub(in crate::twilio) fn serialize<S: Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(status.as_u16())
    }

    pub(in crate::twilio) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl Problem {
    /// Reads an error answer: Twilio's classic body, an RFC 9457 body, or anything else.
    pub(in crate::twilio) fn read(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        subject: Subject,
    ) -> Self {
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
    pub(in crate::twilio) fn is_unprocessed(&self) -> bool {
        match self.code {
            Some(code) if THROTTLED.contains(&code) => true,
            _ => matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT),
        }
    }

    pub(super) fn is_one_too_many(&self) -> bool {
        match self.code {
            Some(code) if THROTTLED_IN_PART.contains(&code) => false,
            Some(code) if THROTTLED.contains(&code) => true,
            _ => self.status == StatusCode::TOO_MANY_REQUESTS,
        }
    }

    pub(super) fn is_not_found(&self) -> bool {
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
pub(in crate::twilio) fn request_id(headers: &HeaderMap) -> Option<String> {
    header(headers, "twilio-request-id").filter(|id| is_plain(id))
}

/// The header `Twilio-Concurrent-Requests`: how many the account has under way.
pub(in crate::twilio) fn concurrent_requests(headers: &HeaderMap) -> Option<u64> {
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
