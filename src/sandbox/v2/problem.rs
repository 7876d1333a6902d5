//! What v2 refuses, and how it says so: problem details after RFC 9457, which Twilio's newer SDKs read.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A request that v2 does not fulfil.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum Problem {
    Invalid(Vec<Invalid>),
    NotFound,
    MethodNotAllowed,
    UnsupportedMediaType,
    /// With the id of the participant that is in the way.
    Conflict(String),
}

/// One thing that is wrong with a request.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(in crate::sandbox) struct Invalid {
    pub(in crate::sandbox) detail: String,
    /// Into the body; `#/` and the name for a query parameter too.
    pub(in crate::sandbox) pointer: String,
}

impl Invalid {
    pub(in crate::sandbox) fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Invalid {
        Invalid { detail: detail.into(), pointer: pointer.into() }
    }
}

impl Problem {
    /// `path` is what was asked for.
    pub(in crate::sandbox) fn into_response(self, path: &str) -> Response {
        match self {
            Problem::Invalid(errors) => {
                response(StatusCode::BAD_REQUEST, 20001, "The request is not valid", path, &errors)
            }
            Problem::NotFound => {
                let detail = format!("The requested resource {path} was not found");
                response(StatusCode::NOT_FOUND, 20404, &detail, path, &[])
            }
            Problem::MethodNotAllowed => {
                response(StatusCode::METHOD_NOT_ALLOWED, 20004, "Method not allowed", path, &[])
            }
            Problem::UnsupportedMediaType => {
                let detail = "The body must be application/json";
                response(StatusCode::UNSUPPORTED_MEDIA_TYPE, 20001, detail, path, &[])
            }
            Problem::Conflict(id) => {
                let detail = format!("The address belongs to participant {id}");
                let mut response = response(StatusCode::CONFLICT, 20409, &detail, path, &[]);
                if let Ok(id) = HeaderValue::from_str(&id) {
                    response.headers_mut().insert(HeaderName::from_static("x-conflicting-resource-id"), id);
                }
                response
            }
        }
    }
}

/// The problem's body, for any code.
pub(in crate::sandbox) fn response(
    status: StatusCode,
    code: u32,
    detail: &str,
    path: &str,
    errors: &[Invalid],
) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(rename = "type")]
        kind: String,
        title: &'a str,
        status: u16,
        code: u32,
        detail: &'a str,
        instance: &'a str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        errors: &'a [Invalid],
    }
    let body = Body {
        kind: format!("https://www.twilio.com/docs/api/errors/{code}"),
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        code,
        detail,
        instance: path,
        errors,
    };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
}
