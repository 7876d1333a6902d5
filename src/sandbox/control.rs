//! The control routes, below `/_sandbox/`. They ask for no credentials and are in no log.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use url::form_urlencoded;

use super::arrange::{ArrangeError, Arrangement};
use super::credentials::ChangeError;
use super::events::SettingsError;
use super::front::Shared;
use super::seed::{ACCOUNT_SID, PopulateError};
use super::{Fault, FaultError};

type Sandbox = State<Arc<Shared>>;

/// A control request that cannot be done.
#[derive(Debug, Error)]
enum Refused {
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Fault(#[from] FaultError),
    #[error("there are too many faults already")]
    TooManyFaults,
    #[error(transparent)]
    Populate(#[from] PopulateError),
    #[error(transparent)]
    Credentials(#[from] ChangeError),
    #[error(transparent)]
    Arrange(#[from] ArrangeError),
    #[error(transparent)]
    Events(#[from] SettingsError),
    #[error("no events of account {0} go anywhere: PUT events with a `url` first")]
    EventsOff(String),
    #[error("`participant`: there is no {participant} in the v2 conversation {conversation}")]
    NoParticipant { conversation: String, participant: String },
    #[error("at_least={0} is no number")]
    AtLeast(String),
    #[error("idle={0} is neither true nor false")]
    Idle(String),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, Json(json!({"error": self.to_string()}))).into_response()
    }
}

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/faults", post(add_fault).get(list_faults).delete(clear_faults))
        .route("/held", get(held))
        .route("/release", post(release))
        .route("/requests", get(requests).delete(forget_requests))
        .route("/populate", post(populate))
        .route("/conversations", post(arrange))
        .route("/credentials", put(change_credentials))
        .route("/remove", post(remove))
        .route("/events", put(change_events).get(events))
        .route("/events/test", post(test_events))
        .route("/events/flush", post(flush_events))
        .route("/reset", post(reset))
        .fallback(no_such_route)
}

async fn add_fault(State(shared): Sandbox, body: Bytes) -> Result<Response, Refused> {
    let fault = Fault::from_json(serde_json::from_slice(&body)?)?;
    let answer = (StatusCode::CREATED, Json(&fault)).into_response();
    if shared.faults.add(fault) { Ok(answer) } else { Err(Refused::TooManyFaults) }
}

async fn list_faults(State(shared): Sandbox) -> Json<Value> {
    Json(json!({"faults": shared.faults.list()}))
}

async fn clear_faults(State(shared): Sandbox) -> StatusCode {
    shared.faults.replace(Vec::new());
    StatusCode::NO_CONTENT
}

/// With `?at_least=2` it answers once that many are held, so that a test need not ask again and again.
async fn held(State(shared): Sandbox, RawQuery(query): RawQuery) -> Result<Json<Value>, Refused> {
    let at_least = match parameter(query, "at_least") {
        Some(text) => text.parse().map_err(|_| Refused::AtLeast(text))?,
        None => 0,
    };
    Ok(Json(json!({"held": shared.faults.held(at_least).await})))
}

async fn release(State(shared): Sandbox) -> Json<Value> {
    Json(json!({"released": shared.faults.release()}))
}

async fn requests(State(shared): Sandbox) -> Json<Value> {
    Json(shared.journal().report())
}

async fn forget_requests(State(shared): Sandbox) -> StatusCode {
    shared.journal().clear();
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Populate {
    account: Option<String>,
    conversation: String,
    count: usize,
}

async fn populate(State(shared): Sandbox, body: Bytes) -> Result<Json<Value>, Refused> {
    let Populate { account, conversation, count } = serde_json::from_slice(&body)?;
    let account = account.unwrap_or_else(|| ACCOUNT_SID.to_owned());
    let mut store = shared.store();
    let tenant = store.tenant(&account).ok_or_else(|| PopulateError::NoAccount(account.clone()))?;
    tenant.populate(&conversation, count)?;
    Ok(Json(json!({"added": count})))
}

async fn arrange(State(shared): Sandbox, body: Bytes) -> Result<Response, Refused> {
    let wanted: Arrangement = serde_json::from_slice(&body)?;
    let account = wanted.account.as_deref().unwrap_or(ACCOUNT_SID);
    let mut store = shared.store();
    let tenant = store.tenant(account).ok_or_else(|| PopulateError::NoAccount(account.to_owned()))?;
    let conversations = tenant.arrange(&wanted)?;
    Ok((StatusCode::CREATED, Json(json!({"conversations": conversations}))).into_response())
}

async fn change_credentials(State(shared): Sandbox, body: Bytes) -> Result<StatusCode, Refused> {
    shared.credentials().change(serde_json::from_slice(&body)?)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    account: Option<String>,
    conversation: String,
    participant: String,
}

async fn remove(State(shared): Sandbox, body: Bytes) -> Result<StatusCode, Refused> {
    let Removal { account, conversation, participant } = serde_json::from_slice(&body)?;
    let account = account.unwrap_or_else(|| ACCOUNT_SID.to_owned());
    let mut store = shared.store();
    let tenant = store.tenant(&account).ok_or(PopulateError::NoAccount(account))?;
    if tenant.remove_orchestrated(&conversation, &participant).is_err() {
        return Err(Refused::NoParticipant { conversation, participant });
    }
    shared.events.tell(tenant);
    Ok(StatusCode::NO_CONTENT)
}

/// Answers the settings that are in force now.
async fn change_events(State(shared): Sandbox, body: Bytes) -> Result<Response, Refused> {
    let settings = shared.events.settings().with(serde_json::from_slice(&body)?)?;
    settings.check(&shared.accounts)?;
    shared.events.change_settings(settings.clone());
    Ok(Json(settings).into_response())
}

/// With `?idle=true` it answers once nothing is pending.
async fn events(State(shared): Sandbox, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let counts = match parameter(query, "idle").as_deref() {
        Some("true") => shared.events.idle().await,
        Some("false") | None => shared.events.counts(),
        Some(other) => return Err(Refused::Idle(other.to_owned())),
    };
    Ok(Json(counts).into_response())
}

async fn test_events(State(shared): Sandbox) -> Result<Json<Value>, Refused> {
    let account = shared.events.settings().account.unwrap_or_else(|| ACCOUNT_SID.to_owned());
    let test_id = shared.events.test(&account).ok_or(Refused::EventsOff(account))?;
    Ok(Json(json!({"test_id": test_id})))
}

/// Sends what waits at once, and answers when nothing is pending.
async fn flush_events(State(shared): Sandbox) -> Response {
    shared.events.hurry();
    Json(shared.events.idle().await).into_response()
}

async fn reset(State(shared): Sandbox) -> StatusCode {
    shared.reset();
    StatusCode::NO_CONTENT
}

async fn no_such_route() -> Response {
    (StatusCode::NOT_FOUND, Json(json!({"error": "no such control route"}))).into_response()
}

fn parameter(query: Option<String>, name: &str) -> Option<String> {
    let query = query.unwrap_or_default();
    let found = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned())
}
