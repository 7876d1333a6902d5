//! The v1 face: Conversations (classic), forms in and JSON out.

use std::time::SystemTime;

use axum::Json;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use url::form_urlencoded;

use super::dates;
use super::front::Call;
use super::route::Target;
use super::seed::SERVICE_SID;
use super::store::{ClassicConversation, Tenant};
use super::v1_list::list;
use super::v1_participant::{Binding, Fields, Participant};
use super::v1_refusal::Refusal;

pub(super) fn answer(tenant: &mut Tenant, call: &Call) -> Response {
    fulfil(tenant, call).unwrap_or_else(IntoResponse::into_response)
}

fn fulfil(tenant: &mut Tenant, call: &Call) -> Result<Response, Refusal> {
    let not_found = || Refusal::NotFound(call.path.clone());
    let target = call.route.target.as_ref().ok_or_else(not_found)?;
    if target.service.as_ref().is_some_and(|service| service != SERVICE_SID) {
        return Err(not_found());
    }
    let index = tenant.classic_index(&target.conversation).ok_or_else(not_found)?;
    let view = View::of(call, target);
    match (&call.method, &target.participant) {
        (&Method::GET, None) => list(tenant, index, call, &view),
        (&Method::POST, None) => {
            let serial = tenant.create_classic(index, &form(call)?, SystemTime::now())?;
            view.participant(tenant, index, serial, StatusCode::CREATED)
        }
        (&Method::GET, Some(key)) => {
            let serial = serial_by_sid_or_identity(&tenant.classic[index], key)?;
            view.participant(tenant, index, serial, StatusCode::OK)
        }
        (&Method::POST, Some(sid)) => {
            let serial = serial_by_sid(&tenant.classic[index], sid)?;
            tenant.update_classic(index, serial, &form(call)?, SystemTime::now())?;
            view.participant(tenant, index, serial, StatusCode::OK)
        }
        (&Method::DELETE, Some(sid)) => {
            let serial = serial_by_sid(&tenant.classic[index], sid)?;
            tenant.classic[index].roster.remove(serial);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Refusal::MethodNotAllowed),
    }
}

pub(super) fn sid(serial: u64) -> String {
    format!("MB{serial:032}")
}

pub(super) fn serial_of(text: &str) -> Option<u64> {
    let serial = text.strip_prefix("MB")?.parse().ok()?;
    (sid(serial) == text).then_some(serial)
}

fn serial_by_sid(conversation: &ClassicConversation, text: &str) -> Result<u64, Refusal> {
    serial_of(text)
        .filter(|serial| conversation.roster.get(*serial).is_some())
        .ok_or_else(|| Refusal::NoParticipant(text.to_owned()))
}

/// The documentation allows an identity in place of the SID where one participant is fetched, and nowhere
/// else.
fn serial_by_sid_or_identity(conversation: &ClassicConversation, key: &str) -> Result<u64, Refusal> {
    serial_by_sid(conversation, key).or_else(|refusal| {
        let mut participants = conversation.roster.iter();
        let found = participants.find(|(_, participant)| participant.identity.as_deref() == Some(key));
        found.map(|(serial, _)| serial).ok_or(refusal)
    })
}

/// Names that it does not know are ignored, as with the real service.
fn form(call: &Call) -> Result<Fields, Refusal> {
    let content_type = call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(Refusal::BadParameter(format!("Content-Type {essence:?} is not supported")));
    }
    let mut fields = Fields::default();
    for (name, value) in form_urlencoded::parse(&call.body) {
        let field = match name.as_ref() {
            "Identity" => &mut fields.identity,
            "MessagingBinding.Address" => &mut fields.address,
            "MessagingBinding.ProxyAddress" => &mut fields.proxy,
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

/// How the caller sees things: under which host, and through which of the two paths.
pub(super) struct View<'a> {
    host: &'a str,
    service: Option<&'a str>,
}

/// In the order of the documented samples.
#[derive(Serialize)]
pub(super) struct Resource<'a> {
    account_sid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_service_sid: Option<&'a str>,
    conversation_sid: &'a str,
    sid: String,
    identity: Option<&'a str>,
    attributes: &'a str,
    messaging_binding: Option<BindingResource<'a>>,
    role_sid: &'a str,
    date_created: String,
    date_updated: String,
    url: String,
    last_read_message_index: Option<i64>,
    last_read_timestamp: Option<&'a str>,
}

#[derive(Serialize)]
struct BindingResource<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projected_address: Option<&'a str>,
}

impl<'a> BindingResource<'a> {
    fn of(binding: &'a Binding) -> BindingResource<'a> {
        BindingResource {
            kind: binding.channel(),
            address: binding.address.as_deref(),
            proxy_address: binding.proxy.as_deref(),
            projected_address: binding.projected.as_deref(),
        }
    }
}

impl<'a> View<'a> {
    fn of(call: &'a Call, target: &'a Target) -> View<'a> {
        View { host: host(&call.headers), service: target.service.as_deref() }
    }

    pub(super) fn collection(&self, conversation: &ClassicConversation) -> String {
        let service = self.service.map(|service| format!("/Services/{service}")).unwrap_or_default();
        format!("http://{}/v1{service}/Conversations/{}/Participants", self.host, conversation.sid)
    }

    pub(super) fn resource<'b>(
        &'b self,
        tenant: &'b Tenant,
        conversation: &'b ClassicConversation,
        serial: u64,
        participant: &'b Participant,
    ) -> Resource<'b> {
        let sid = sid(serial);
        Resource {
            account_sid: &tenant.account_sid,
            chat_service_sid: self.service,
            conversation_sid: &conversation.sid,
            identity: participant.identity.as_deref(),
            attributes: &participant.attributes,
            messaging_binding: participant.binding.as_ref().map(BindingResource::of),
            role_sid: &participant.role_sid,
            date_created: dates::seconds(participant.created),
            date_updated: dates::seconds(participant.updated),
            url: format!("{}/{sid}", self.collection(conversation)),
            last_read_message_index: participant.last_read_index,
            last_read_timestamp: participant.last_read_timestamp.as_deref(),
            sid,
        }
    }

    fn participant(
        &self,
        tenant: &Tenant,
        index: usize,
        serial: u64,
        status: StatusCode,
    ) -> Result<Response, Refusal> {
        let conversation = &tenant.classic[index];
        let participant =
            conversation.roster.get(serial).ok_or_else(|| Refusal::NoParticipant(sid(serial)))?;
        Ok((status, Json(self.resource(tenant, conversation, serial, participant))).into_response())
    }
}

fn host(headers: &HeaderMap) -> &str {
    headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost")
}
