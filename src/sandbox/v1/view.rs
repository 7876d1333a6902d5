//! How v1 shows its resources: the documented keys in the documented order.

use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::conversation::Conversation;
use super::participant::{Binding, Participant};
use super::refusal::Refusal;
use crate::sandbox::call::Call;
use crate::sandbox::dates;
use crate::sandbox::store::Tenant;

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
    pub(super) fn of(call: &'a Call, service: Option<&'a str>) -> View<'a> {
        View { host: host(&call.headers), service }
    }

    pub(super) fn root(&self) -> String {
        let service = self.service.map(|service| format!("/Services/{service}")).unwrap_or_default();
        format!("http://{}/v1{service}", self.host)
    }

    pub(super) fn conversation(&self, conversation: &Conversation) -> String {
        format!("{}/Conversations/{}", self.root(), conversation.sid)
    }

    pub(super) fn collection(&self, conversation: &Conversation) -> String {
        format!("{}/Participants", self.conversation(conversation))
    }

    pub(super) fn resource<'b>(
        &'b self,
        tenant: &'b Tenant,
        conversation: &'b Conversation,
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

    pub(super) fn participant(
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

pub(super) fn sid(serial: u64) -> String {
    format!("MB{serial:032}")
}

pub(super) fn serial_of(text: &str) -> Option<u64> {
    let serial = text.strip_prefix("MB")?.parse().ok()?;
    (sid(serial) == text).then_some(serial)
}
