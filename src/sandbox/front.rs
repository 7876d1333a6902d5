//! The way of a request through the sandbox: logged, struck by a fault or not, answered by its face.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::call::Call;
use super::credentials::Credentials;
use super::events::Events;
use super::faults::Faults;
use super::journal::Journal;
use super::route::{Route, Target};
use super::seed::{ACCOUNT_SID, AUTH_TOKEN};
use super::store::{Store, Tenant};
use super::{Account, Api, Cut, Fault, cut, oauth, v1, v2};

const MOST_BODY_BYTES: usize = 256 * 1024;

/// What all connections share.
pub(super) struct Shared {
    pub(super) accounts: Vec<Account>,
    first_faults: Vec<Fault>,
    credentials: Mutex<Credentials>,
    store: Mutex<Store>,
    journal: Mutex<Journal>,
    pub(super) faults: Faults,
    pub(super) events: Events,
    in_flight: InFlight,
    requests: AtomicU64,
}

impl Shared {
    pub(super) fn new(mut accounts: Vec<Account>, faults: Vec<Fault>) -> Shared {
        accounts.insert(0, Account { sid: ACCOUNT_SID.to_owned(), auth_token: AUTH_TOKEN.to_owned() });
        Shared {
            credentials: Mutex::new(Credentials::new(&accounts)),
            store: Mutex::new(Store::seeded(accounts.iter().map(|account| account.sid.as_str()))),
            journal: Mutex::default(),
            faults: Faults::new(faults.clone()),
            events: Events::new(),
            in_flight: InFlight::default(),
            requests: AtomicU64::new(0),
            first_faults: faults,
            accounts,
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn credentials(&self) -> MutexGuard<'_, Credentials> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Back to the start.
    pub(super) fn reset(&self) {
        *self.store() = Store::seeded(self.accounts.iter().map(|account| account.sid.as_str()));
        self.credentials().reset(&self.accounts);
        self.journal().clear();
        self.faults.replace(self.first_faults.clone());
        self.events.reset();
    }
}

/// Answers what is not a control request.
pub(super) async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let started = Instant::now();
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MOST_BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let route = Route::parse(head.uri.path());
    let account = match route.target {
        Some(Target::Token) => oauth::account(&shared.credentials(), &body),
        _ => shared.credentials().account(&head.headers, SystemTime::now()),
    };
    let in_flight = shared.in_flight.enter(account.as_ref());
    let call = Call {
        route,
        account,
        concurrent: in_flight.count,
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    shared.journal().record(&call);
    let mut response = match shared.faults.strike(&call) {
        Some(fault) => faulty_answer(&shared, &call, &fault).await,
        None => answer(&shared, &call),
    };
    // Named in https://www.twilio.com/docs/api/errors/45780 and /20429.
    let number = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
    for (name, value) in [
        ("twilio-request-id", format!("RQ{number:032x}")),
        ("twilio-request-duration", format!("{:.3}", started.elapsed().as_secs_f64())),
        ("twilio-concurrent-requests", in_flight.count.to_string()),
    ] {
        set_header(response.headers_mut(), name, &value, Precedence::Theirs);
    }
    response
}

fn answer(shared: &Shared, call: &Call) -> Response {
    if let Some(Target::Token) = call.route.target {
        return oauth::answer(&mut shared.credentials(), call).unwrap_or_else(|| unauthorized(call));
    }
    let mut store = shared.store();
    match call.account.as_ref().and_then(|account| store.tenant(account)) {
        None => unauthorized(call),
        Some(tenant) => {
            let response = face(tenant, call);
            // Before the store is let go, so that changes are told in the order they were made.
            shared.events.tell(tenant);
            response
        }
    }
}

fn face(tenant: &mut Tenant, call: &Call) -> Response {
    match call.route.api {
        Some(Api::V2) => v2::answer(tenant, call),
        Some(Api::V1) | None => v1::answer(tenant, call),
    }
}

fn unauthorized(call: &Call) -> Response {
    let mut response = error_of_face(call, StatusCode::UNAUTHORIZED, 20003, "Authenticate");
    let challenge = HeaderValue::from_static("Basic realm=\"Twilio API\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn error_of_face(call: &Call, status: StatusCode, code: u32, message: &str) -> Response {
    match call.route.api {
        Some(Api::V2) => v2::problem::response(status, code, message, &call.path, &[]),
        Some(Api::V1) | None => v1::refusal::response(status, code, message),
    }
}

async fn faulty_answer(shared: &Shared, call: &Call, fault: &Fault) -> Response {
    let mut response = if fault.after {
        let real = answer(shared, call);
        shared.faults.wait(fault).await;
        if fault.replaces() { replacement(call, fault) } else { real }
    } else {
        shared.faults.wait(fault).await;
        // A cut alone is an answer too, if one that nobody gets to see: the request takes no effect.
        if fault.replaces() || fault.cut.is_some() { replacement(call, fault) } else { answer(shared, call) }
    };
    if let Some(text) = &fault.retry_after {
        set_header(response.headers_mut(), "retry-after", text, Precedence::Ours);
    }
    for (name, value) in &fault.headers {
        set_header(response.headers_mut(), name, value, Precedence::Ours);
    }
    match fault.cut {
        Some(Cut::Before) => cut::before(),
        Some(Cut::Mid) => cut::mid(response).await,
        None => response,
    }
}

fn replacement(call: &Call, fault: &Fault) -> Response {
    let status = fault.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    if let Some(body) = &fault.body {
        let content_type = fault.content_type.as_deref().unwrap_or("application/json");
        let mut response = (status, Body::from(body.clone())).into_response();
        set_header(response.headers_mut(), "content-type", content_type, Precedence::Ours);
        return response;
    }
    if let Some(code) = fault.code {
        let reason = status.canonical_reason().unwrap_or("Fault");
        return error_of_face(call, status, code, fault.message.as_deref().unwrap_or(reason));
    }
    match fault.cut {
        // Something to break in the middle of.
        Some(Cut::Mid) => (status, r#"{"meta":{"key":"participants"},"participants":[]}"#).into_response(),
        Some(Cut::Before) | None => status.into_response(),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Precedence {
    Ours,
    Theirs,
}

/// What is no header (a fault was checked for that when it came in) is left out.
fn set_header(headers: &mut HeaderMap, name: &str, value: &str, precedence: Precedence) {
    let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
    else {
        return;
    };
    if precedence == Precedence::Ours || !headers.contains_key(&name) {
        headers.insert(name, value);
    }
}

/// The requests under way, by account: those without one count together.
#[derive(Default)]
struct InFlight(Mutex<HashMap<Option<String>, usize>>);

impl InFlight {
    fn enter(&self, account: Option<&String>) -> UnderWay<'_> {
        let mut accounts = self.accounts();
        let count = accounts.entry(account.cloned()).or_default();
        *count += 1;
        UnderWay { all: self, account: account.cloned(), count: *count }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Option<String>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct UnderWay<'a> {
    all: &'a InFlight,
    account: Option<String>,
    /// Of its account, including this one, when it came in.
    count: usize,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.all.accounts().get_mut(&self.account) {
            *count -= 1;
        }
    }
}
