//! The v2 face: Conversation Orchestrator, JSON both ways.

pub(super) mod participant;
pub(super) mod problem;

use std::time::SystemTime;

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::json;
use url::form_urlencoded;

use super::call::Call;
use super::dates;
use super::events::{Change, Kind};
use super::route::Target;
use super::store::{Cursor, OrchestratedConversation, Tenant};
use participant::{Address, Draft, Participant, id, serial_of};
use problem::{Invalid, Problem};

const MOST_PER_PAGE: usize = 1000;

pub(super) fn answer(tenant: &mut Tenant, call: &Call) -> Response {
    fulfil(tenant, call).unwrap_or_else(|problem| problem.into_response(&call.path))
}

fn fulfil(tenant: &mut Tenant, call: &Call) -> Result<Response, Problem> {
    let Some(Target::Participants(target)) = &call.route.target else {
        return Err(Problem::NotFound);
    };
    let conversation = &target.conversation;
    tenant.orchestrated(conversation).ok_or(Problem::NotFound)?;
    let now = SystemTime::now();
    match (&call.method, &target.participant) {
        (&Method::GET, None) => list(tenant, conversation, &call.query),
        (&Method::POST, None) => {
            check_json(call)?;
            let draft = Draft::read(&call.body, true)?;
            let serial = tenant.create_orchestrated(conversation, draft, now)?;
            tenant.note_orchestrated(Kind::Added, conversation, serial, now)?;
            participant(tenant, conversation, serial, StatusCode::CREATED)
        }
        (&Method::GET, Some(id)) => {
            participant(tenant, conversation, serial_of(id).ok_or(Problem::NotFound)?, StatusCode::OK)
        }
        (&Method::PUT, Some(id)) => {
            let serial = serial_of(id).ok_or(Problem::NotFound)?;
            check_json(call)?;
            let draft = Draft::read(&call.body, false)?;
            tenant.replace_orchestrated(conversation, serial, draft, now)?;
            tenant.note_orchestrated(Kind::Updated, conversation, serial, now)?;
            participant(tenant, conversation, serial, StatusCode::OK)
        }
        _ => Err(Problem::MethodNotAllowed),
    }
}

fn check_json(call: &Call) -> Result<(), Problem> {
    match call.has_content_type("application/json") {
        true => Ok(()),
        false => Err(Problem::UnsupportedMediaType),
    }
}

/// In the order of the documented schema. What is not known is null, as Twilio's own client has seen it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource<'a> {
    id: String,
    conversation_id: &'a str,
    account_id: &'a str,
    name: Option<&'a str>,
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    profile_id: Option<&'a str>,
    addresses: &'a [Address],
    created_at: String,
    updated_at: String,
}

fn resource<'a>(
    tenant: &'a Tenant,
    conversation: &'a OrchestratedConversation,
    serial: u64,
    participant: &'a Participant,
) -> Resource<'a> {
    Resource {
        id: id(serial),
        conversation_id: &conversation.id,
        account_id: &tenant.account_sid,
        name: participant.name.as_deref(),
        kind: participant.kind.as_deref(),
        profile_id: participant.profile_id.as_deref(),
        addresses: &participant.addresses,
        created_at: dates::nanos(participant.created),
        updated_at: dates::nanos(participant.updated),
    }
}

fn participant(
    tenant: &Tenant,
    conversation: &str,
    serial: u64,
    status: StatusCode,
) -> Result<Response, Problem> {
    let conversation = tenant.orchestrated(conversation).ok_or(Problem::NotFound)?;
    let participant = conversation.roster.get(serial).ok_or(Problem::NotFound)?;
    Ok((status, Json(resource(tenant, conversation, serial, participant))).into_response())
}

impl Tenant {
    /// Notes a change of this participant, which is told as it is now.
    pub(super) fn note_orchestrated(
        &mut self,
        kind: Kind,
        conversation: &str,
        serial: u64,
        now: SystemTime,
    ) -> Result<(), Problem> {
        let conversation = self.orchestrated(conversation).ok_or(Problem::NotFound)?;
        let participant = conversation.roster.get(serial).ok_or(Problem::NotFound)?;
        let body = json!({
            "eventType": format!("PARTICIPANT_{}", kind.word().to_ascii_uppercase()),
            "timestamp": dates::nanos(now),
            "data": resource(self, conversation, serial, participant),
        });
        self.changes.push(Change::StatusCallback(body));
        Ok(())
    }

    /// No request of the face's own does this: it is Twilio that removes v2 participants.
    pub(super) fn remove_orchestrated(
        &mut self,
        conversation: &str,
        participant: &str,
    ) -> Result<(), Problem> {
        let serial = serial_of(participant).ok_or(Problem::NotFound)?;
        self.note_orchestrated(Kind::Removed, conversation, serial, SystemTime::now())?;
        self.orchestrated_roster(conversation)?.remove(serial);
        Ok(())
    }
}

#[derive(Serialize)]
struct Listing<'a> {
    meta: Meta,
    participants: Vec<Resource<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    key: &'static str,
    page_size: usize,
    previous_token: Option<String>,
    next_token: Option<String>,
}

fn list(tenant: &Tenant, conversation: &str, query: &str) -> Result<Response, Problem> {
    let conversation = tenant.orchestrated(conversation).ok_or(Problem::NotFound)?;
    let (page_size, cursor) = page_query(query)?;
    let page = conversation.roster.page(cursor, page_size);
    let (first, last) = (page.items.first(), page.items.last());
    let meta = Meta {
        key: "participants",
        page_size,
        previous_token: first.filter(|_| page.more_before).map(|(serial, _)| token("before", *serial)),
        next_token: last.filter(|_| page.more_after).map(|(serial, _)| token("after", *serial)),
    };
    let participants =
        page.items.iter().map(|(serial, one)| resource(tenant, conversation, *serial, one)).collect();
    Ok(Json(Listing { meta, participants }).into_response())
}

/// PascalCase is not documented, but Twilio's Python SDK sends it where it is asked for headers as well
/// (`page_with_http_info`).
fn page_query(query: &str) -> Result<(usize, Cursor), Problem> {
    let (mut size, mut start) = (50, Cursor::Start);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let bad =
            || Problem::Invalid(vec![Invalid::at(format!("#/{name}"), format!("{value:?} is not valid"))]);
        match name.as_ref() {
            "pageSize" | "PageSize" => {
                let legal = |size: &usize| (1..=MOST_PER_PAGE).contains(size);
                size = value.parse().ok().filter(legal).ok_or_else(bad)?;
            }
            "pageToken" | "PageToken" => start = cursor(&value).ok_or_else(bad)?,
            _ => {}
        }
    }
    Ok((size, start))
}

fn token(side: &str, serial: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("{side} {serial}"))
}

fn cursor(token: &str) -> Option<Cursor> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    match text.split_once(' ')? {
        ("after", serial) => serial.parse().ok().map(Cursor::After),
        ("before", serial) => serial.parse().ok().map(Cursor::Before),
        _ => None,
    }
}
