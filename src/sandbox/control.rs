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
    #[error("at_least={0} is no number")]
    AtLeast(String),
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
    let query = query.unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let at_least = match pairs.find(|(name, _)| name == "at_least") {
        Some((_, text)) => text.parse().map_err(|_| Refused::AtLeast(text.into_owned()))?,
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

async fn reset(State(shared): Sandbox) -> StatusCode {
    shared.reset();
    StatusCode::NO_CONTENT
}

async fn no_such_route() -> Response {
    (StatusCode::NOT_FOUND, Json(json!({"error": "no such control route"}))).into_response()
}
