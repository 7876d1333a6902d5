//! A request, as every part of the sandbox sees it.

use axum::body::Bytes;
use axum::http::{HeaderMap, Method};

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
}
