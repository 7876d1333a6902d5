//! A fault: which requests it strikes, and what happens to them.

mod form;

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Api;

const TEXT_KEYS: [&str; 14] = [
    "api",
    "method",
    "path",
    "account",
    "concurrent-above",
    "times",
    "latency",
    "hold",
    "after",
    "status",
    "code",
    "retry-after",
    "body",
    "cut",
];

/// Something that goes wrong with the requests it matches.
///
/// What is left at its default plays no part. Written as JSON (the control routes) with these field names,
/// or as text (the command line), see its `FromStr`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Fault {
    /// The requests it strikes.
    #[serde(rename = "match")]
    pub matches: FaultMatch,
    /// How many requests it strikes before it is used up; without, any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// The request waits for so long.
    pub latency_ms: u64,
    /// The request waits until it is released.
    pub hold: bool,
    /// The request takes effect first, and the fault strikes its answer. Otherwise the fault strikes first,
    /// and a request that it answers takes no effect.
    pub after: bool,
    /// The answer has this status, and no body unless `code` or `body` give one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The answer is an error of this code, in the form of the face that was asked. Needs `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// The error's text. Needs `code`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The answer has this `Retry-After`, as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<String>,
    /// The answer has these headers, in place of its own of the same names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The answer has this body, and status 200 unless `status` gives another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The type of `body`; `application/json` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The connection is closed before the answer is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
}

/// The requests a fault strikes: those for which all that is given here holds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FaultMatch {
    /// The face that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// The method, in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// A part of the raw path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_contains: Option<String>,
    /// The SID of the account that the request logged in to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// So many requests of its account are under way already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_above: Option<usize>,
}

/// Where an answer breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// Without a byte of it.
    Before,
    /// After the head, which announces the whole length, and half of the body.
    Mid,
}

/// Why a fault is refused.
#[derive(Debug, Error)]
pub enum FaultError {
    /// It is not a JSON object.
    #[error("a fault is a JSON object")]
    NotAnObject,
    /// The text has a part that is no pair.
    #[error("`{0}` is not key=value; the keys are {keys}", keys = TEXT_KEYS.join(", "))]
    NotAPair(String),
    /// No such key.
    #[error("unknown key `{key}`; the keys are {legal}")]
    UnknownKey {
        /// As it was given.
        key: String,
        /// What it could have been.
        legal: String,
    },
    /// The value cannot be read.
    #[error("key `{key}` cannot be `{value}`: {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// The value, as JSON.
        value: String,
        /// What it should have been.
        expected: String,
    },
    /// The key says nothing without another one.
    #[error("key `{key}` needs `{needs}`")]
    Needs {
        /// The key.
        key: &'static str,
        /// The missing one.
        needs: &'static str,
    },
    /// Nothing would happen.
    #[error("the fault does nothing: give one of latency_ms, hold, status, retry_after, headers, body, cut")]
    NoEffect,
}

impl Fault {
    /// What no type can say about the fields.
    pub(super) fn check(&self) -> Result<(), FaultError> {
        let legal = |key: &str, value: &dyn ToString, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(bad_value(key, value, expected)) }
        };
        if let Some(method) = &self.matches.method {
            legal("method", method, Method::from_bytes(method.as_bytes()).is_ok(), "a method")?;
        }
        if let Some(times) = self.times {
            legal("times", &times, times > 0, "at least 1")?;
        }
        if let Some(status) = self.status {
            let ok = status >= 200 && StatusCode::from_u16(status).is_ok();
            legal("status", &status, ok, "a status that ends an exchange: 200 to 999")?;
        }
        if let Some(text) = &self.retry_after {
            legal("retry_after", text, HeaderValue::from_str(text).is_ok(), "a header value")?;
        }
        if let Some(text) = &self.content_type {
            legal("content_type", text, HeaderValue::from_str(text).is_ok(), "a header value")?;
        }
        for (name, value) in &self.headers {
            let ok = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
            legal("headers", name, ok, "names and values of headers")?;
        }
        let needs = |key, given: bool, needs, there: bool| {
            if given && !there { Err(FaultError::Needs { key, needs }) } else { Ok(()) }
        };
        needs("code", self.code.is_some(), "status", self.status.is_some())?;
        needs("message", self.message.is_some(), "code", self.code.is_some())?;
        needs("content_type", self.content_type.is_some(), "body", self.body.is_some())?;
        let waits = self.hold || self.latency_ms > 0;
        let decorates = self.retry_after.is_some() || !self.headers.is_empty();
        if waits || decorates || self.replaces() || self.cut.is_some() {
            return Ok(());
        }
        Err(FaultError::NoEffect)
    }

    /// Whether it has an answer of its own.
    pub(super) fn replaces(&self) -> bool {
        self.status.is_some() || self.body.is_some()
    }
}

pub(super) fn bad_value(key: &str, value: &dyn ToString, expected: &str) -> FaultError {
    FaultError::BadValue { key: key.to_owned(), value: value.to_string(), expected: expected.to_owned() }
}
