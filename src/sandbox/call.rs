//! A request, as every part of the sandbox sees it.

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, header};

use super::route::Route;

/// A request, read to its end.
pub(super) struct Call {
    pub(super) method: Method,
    /// As it came, still encoded.
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) route: Route,
    /// The account it logged in to; `None` if it did not.
    pub(super) account: Option<String>,
    /// How many requests that account had under way when it came, this one included.
    pub(super) concurrent: usize,
}

impl Call {
    /// Whether the body is of this type, parameters aside.
    pub(super) fn has_content_type(&self, essence: &str) -> bool {
        self.content_type().eq_ignore_ascii_case(essence)
    }

    pub(super) fn content_type(&self) -> &str {
        let whole = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        whole.unwrap_or_default().split(';').next().unwrap_or_default().trim()
    }
}
