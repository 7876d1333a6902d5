//! What v1 refuses, and how it says so.
//!
//! The codes are those of <https://www.twilio.com/docs/api/errors>. The texts are the sandbox's own and
//! repeat what the caller sent, as some of Twilio's do: whoever passes them on passes that on as well.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use thiserror::Error;

/// A request that v1 does not fulfil.
#[derive(Debug, PartialEq, Eq, Error)]
pub(in crate::sandbox) enum Refusal {
    #[error("{0}")]
    BadParameter(String),
    #[error("The requested resource {0} was not found")]
    NotFound(String),
    #[error("Method not allowed")]
    MethodNotAllowed,
    #[error("Participant not found: {0}")]
    NoParticipant(String),
    #[error("Participant already exists: {0}")]
    IdentityTaken(String),
    #[error("A binding for this participant and proxy address already exists in Conversation {0}")]
    PairTaken(String),
    #[error("Group participant already exists: {0}")]
    GroupMemberTaken(String),
    #[error("Identity not provided")]
    NobodyNamed,
    #[error("Identity is too long: {0}")]
    IdentityTooLong(String),
    #[error("Identity {0} is not acceptable for this participant")]
    IdentityNotAcceptable(String),
    #[error("Attributes are too long")]
    AttributesTooLong,
    #[error("Attributes are not valid JSON: {0}")]
    AttributesNotJson(String),
    #[error("DateCreated is not a date: {0}")]
    BadDateCreated(String),
    #[error("DateUpdated is not a date: {0}")]
    BadDateUpdated(String),
    #[error("Messaging binding address is not valid: {0}")]
    BadAddress(String),
    #[error("Messaging binding proxy address is not valid: {0}")]
    BadProxyAddress(String),
    #[error("Messaging binding address and proxy address are the same: {0}")]
    AddressIsProxy(String),
    #[error("Messaging binding address {0} and proxy address {1} are of different channels")]
    ChannelsDiffer(String, String),
    #[error("Participants limit of the conversation is exceeded")]
    TooManyParticipants,
    #[error("Non-chat participants limit of the conversation is exceeded")]
    TooManyNonChat,
    #[error("LastReadMessageIndex is not valid: {0}")]
    BadLastReadIndex(String),
    #[error("Conversation is closed")]
    Closed,
    #[error("Only one identifier allowed for lookup: use either Identity or Address")]
    NotOneLookup,
    #[error("Failed to add proxy address {0}: not a messaging participant")]
    ProxyNotAdded(String),
    #[error("Failed to change proxy address: {0} is the proxy address already")]
    ProxyUnchanged(String),
    #[error("Failed to add projected address {0}: not a chat participant")]
    ProjectedNotAdded(String),
}

impl Refusal {
    fn code(&self) -> u32 {
        match self {
            Refusal::BadParameter(_) => 20001,
            Refusal::MethodNotAllowed => 20004,
            Refusal::NotFound(_) => 20404,
            Refusal::NobodyNamed => 50204,
            Refusal::IdentityTooLong(_) => 50207,
            Refusal::IdentityNotAcceptable(_) => 50211,
            Refusal::AttributesTooLong => 50303,
            Refusal::AttributesNotJson(_) => 50304,
            Refusal::BadDateCreated(_) => 50308,
            Refusal::BadDateUpdated(_) => 50309,
            Refusal::Closed => 50377,
            Refusal::BadAddress(_) => 50407,
            Refusal::BadProxyAddress(_) => 50408,
            Refusal::AddressIsProxy(_) => 50409,
            Refusal::ChannelsDiffer(..) => 50414,
            Refusal::PairTaken(_) => 50416,
            Refusal::TooManyParticipants => 50417,
            Refusal::TooManyNonChat => 50418,
            Refusal::BadLastReadIndex(_) => 50421,
            Refusal::NoParticipant(_) => 50432,
            Refusal::IdentityTaken(_) => 50433,
            Refusal::GroupMemberTaken(_) => 50437,
            Refusal::ProxyNotAdded(_) => 50440,
            Refusal::ProxyUnchanged(_) => 50441,
            Refusal::ProjectedNotAdded(_) => 50442,
            Refusal::NotOneLookup => 50451,
        }
    }

    fn status(&self) -> StatusCode {
        match self.code() {
            20004 => StatusCode::METHOD_NOT_ALLOWED,
            20404 | 50432 => StatusCode::NOT_FOUND,
            // No source shows the status of these; the code is what a client can rely on.
            50416 | 50433 | 50437 => StatusCode::CONFLICT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        response(self.status(), self.code(), &self.to_string())
    }
}

/// The classic error body.
pub(in crate::sandbox) fn response(status: StatusCode, code: u32, message: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        code: u32,
        message: &'a str,
        more_info: String,
        status: u16,
    }
    let more_info = format!("https://www.twilio.com/docs/errors/{code}");
    (status, Json(Body { code, message, more_info, status: status.as_u16() })).into_response()
}
