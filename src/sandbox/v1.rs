//! The v1 face: Conversations (classic), forms in and JSON out.

pub(super) mod conversation;
pub(super) mod participant;
pub(super) mod refusal;

mod event;
mod list;
mod lookup;
mod membership;
mod view;

use std::time::SystemTime;

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use url::form_urlencoded;

use super::call::Call;
use super::events::Kind;
use super::route::{Participants, Target};
use super::seed::SERVICE_SID;
use super::store::Tenant;
use conversation::Conversation;
use list::list;
use participant::Fields;
use refusal::Refusal;
use view::{View, serial_of};

pub(super) fn answer(tenant: &mut Tenant, call: &Call) -> Response {
    fulfil(tenant, call).unwrap_or_else(IntoResponse::into_response)
}

fn fulfil(tenant: &mut Tenant, call: &Call) -> Result<Response, Refusal> {
    let not_found = || Refusal::NotFound(call.path.clone());
    let target = call.route.target.as_ref().ok_or_else(not_found)?;
    if target.service().is_some_and(|service| service != SERVICE_SID) {
        return Err(not_found());
    }
    let view = View::of(call, target.service());
    match target {
        Target::Participants(target) => participants(tenant, call, target, &view),
        Target::ParticipantConversations { .. } if call.method == Method::GET => {
            lookup::conversations(tenant, call, &view)
        }
        Target::ParticipantConversations { .. } => Err(Refusal::MethodNotAllowed),
        Target::Token => Err(not_found()),
    }
}

fn participants(
    tenant: &mut Tenant,
    call: &Call,
    target: &Participants,
    view: &View<'_>,
) -> Result<Response, Refusal> {
    let index = tenant.classic_index(&target.conversation);
    let index = index.ok_or_else(|| Refusal::NotFound(call.path.clone()))?;
    if matches!(call.method, Method::POST | Method::DELETE) {
        tenant.classic[index].check_open()?;
    }
    let now = SystemTime::now();
    match (&call.method, &target.participant) {
        (&Method::GET, None) => list(tenant, index, call, view),
        (&Method::POST, None) => {
            let serial = tenant.create_classic(index, &form(call)?, now)?;
            tenant.note_classic(Kind::Added, index, serial, now);
            view.participant(tenant, index, serial, StatusCode::CREATED)
        }
        (&Method::GET, Some(key)) => {
            let serial = serial_by_sid_or_identity(&tenant.classic[index], key)?;
            view.participant(tenant, index, serial, StatusCode::OK)
        }
        (&Method::POST, Some(sid)) => {
            let serial = serial_by_sid(&tenant.classic[index], sid)?;
            tenant.update_classic(index, serial, &form(call)?, now)?;
            tenant.note_classic(Kind::Updated, index, serial, now);
            view.participant(tenant, index, serial, StatusCode::OK)
        }
        (&Method::DELETE, Some(sid)) => {
            let serial = serial_by_sid(&tenant.classic[index], sid)?;
            tenant.note_classic(Kind::Removed, index, serial, now);
            tenant.classic[index].roster.remove(serial);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Refusal::MethodNotAllowed),
    }
}

fn serial_by_sid(conversation: &Conversation, text: &str) -> Result<u64, Refusal> {
    serial_of(text)
        .filter(|serial| conversation.roster.get(*serial).is_some())
        .ok_or_else(|| Refusal::NoParticipant(text.to_owned()))
}

/// The documentation allows an identity in place of the SID where one participant is fetched, and nowhere
/// else.
fn serial_by_sid_or_identity(conversation: &Conversation, key: &str) -> Result<u64, Refusal> {
    serial_by_sid(conversation, key).or_else(|refusal| {
        let mut participants = conversation.roster.iter();
        let found = participants.find(|(_, participant)| participant.identity.as_deref() == Some(key));
        found.map(|(serial, _)| serial).ok_or(refusal)
    })
}

/// Names that it does not know are ignored, as with the real service.
fn form(call: &Call) -> Result<Fields, Refusal> {
    if !call.has_content_type("application/x-www-form-urlencoded") {
        let text = format!("Content-Type {:?} is not supported", call.content_type());
        return Err(Refusal::BadParameter(text));
    }
    let mut fields = Fields::default();
    for (name, value) in form_urlencoded::parse(&call.body) {
        let field = match name.as_ref() {
            "Identity" => &mut fields.identity,
            "MessagingBinding.Address" => &mut fields.address,
            "MessagingBinding.ProxyAddress" => &mut fields.proxy,
            // In no list of parameters, but in a sample of Twilio's OpenAPI description.
            "MessagingBinding.ProxyAddressFallback" => &mut fields.proxy_fallback,
            "MessagingBinding.ProjectedAddress" => &mut fields.projected,
            "Attributes" => &mut fields.attributes,
            "RoleSid" => &mut fields.role_sid,
            "DateCreated" => &mut fields.date_created,
            "DateUpdated" => &mut fields.date_updated,
            "LastReadMessageIndex" => &mut fields.last_read_index,
            "LastReadTimestamp" => &mut fields.last_read_timestamp,
            _ => continue,
        };
        *field = Some(value.into_owned());
    }
    Ok(fields)
}
