//! A successful answer of Twilio, and how its JSON is decoded.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::DATE;
use http::{HeaderMap, StatusCode};
use serde_path_to_error::Segment;

use super::Request;
use crate::ids::ApiVersion;
use crate::twilio::drift::{self, Drift};
use crate::twilio::error::{self, Broken, Cause, Error, Operation};

const NOT_JSON: &str = "the body is not the documented JSON object";

/// A successful answer, read to its end.
pub(in crate::twilio) struct Response {
    pub(super) operation: Operation,
    pub(in crate::twilio) version: ApiVersion,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) drift: Drift,
}

impl Response {
    /// Decodes the JSON body; an error names the key and nothing else, because a value may be PII.
    pub(in crate::twilio) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        // serde would take an array for a struct, by position: a guess.
        if !self.body.trim_ascii_start().starts_with(b"{") {
            return Err(self.broken(NOT_JSON.into()));
        }
        let mut json = serde_json::Deserializer::from_slice(&self.body);
        let mut unknown = |path: serde_ignored::Path<'_>| self.drift.unknown_key(self.version, &path);
        let counting = serde_ignored::Deserializer::new(&mut json, &mut unknown);
        let decoded = serde_path_to_error::deserialize(counting).map_err(|error| key(error.path()));
        let rest = |value| json.end().map(|()| value).map_err(|_| "text follows the JSON body".into());
        decoded.and_then(rest).map_err(|what| self.broken(what))
    }

    /// When Twilio answered, by its own clock where it tells that, to the second.
    pub(in crate::twilio) fn answered_at(&self) -> SystemTime {
        let date = self.headers.get(DATE).and_then(|date| date.to_str().ok());
        date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now)
    }

    /// This key of the answer has a word, or the like, that this build does not know.
    pub(in crate::twilio) fn unknown_value(&self, key: &'static str) {
        self.drift.unknown_value(self.version, key);
    }

    /// As if the delete whose answer was lost had been answered.
    pub(super) fn deleted(request: &Request, drift: Drift) -> Self {
        Self {
            operation: request.operation,
            version: request.version,
            status: StatusCode::NO_CONTENT,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            drift,
        }
    }

    /// An answer with this body.
    #[cfg(test)]
    pub(in crate::twilio) fn of(version: ApiVersion, body: impl Into<Bytes>, drift: &Drift) -> Self {
        let (status, headers) = (StatusCode::OK, HeaderMap::new());
        Self {
            operation: Operation::Fetch,
            version,
            status,
            headers,
            body: body.into(),
            drift: drift.clone(),
        }
    }

    /// The answer is not what Twilio's contract says; `what` names a key.
    pub(in crate::twilio) fn broken(&self, what: String) -> Error {
        let broken = Broken { status: self.status, what, request_id: error::request_id(&self.headers) };
        Error { operation: self.operation, version: self.version, cause: Cause::Broken(broken) }
    }
}

/// The key that an error is about. It may be one that is not known, and then only a plain name is told.
fn key(path: &serde_path_to_error::Path) -> String {
    let is_plain = |segment: &Segment| match segment {
        Segment::Map { key } => drift::is_plain(key),
        Segment::Seq { .. } => true,
        Segment::Enum { .. } | Segment::Unknown => false,
    };
    if path.iter().len() > 0 && path.iter().all(is_plain) { path.to_string() } else { NOT_JSON.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;
    use crate::twilio::v1;

    #[test]
    fn an_error_names_a_key_of_the_answer_only_where_that_is_a_plain_name() {
        let drift = Drift::new(Metrics::new(None).unwrap());
        let long = format!(r#"{{"{}":x}}"#, "a".repeat(65));
        for (body, what) in [
            (r#"{"new_key":x}"#, "new_key"),
            (r#"{"dana@example.com":x}"#, NOT_JSON),
            (r#"{"+15550100001":x}"#, NOT_JSON),
            (&long, NOT_JSON),
            // A key that cannot be read, which the path would show as `?`.
            (r#"{"sid":"MB1","ty\x":1}"#, NOT_JSON),
        ] {
            let response = Response::of(ApiVersion::V1, body.to_owned(), &drift);
            let Err(Error { cause: Cause::Broken(broken), .. }) = v1::participant(&response) else {
                panic!("{body}");
            };
            assert_eq!(broken.what, what, "{body}");
        }
    }
}
