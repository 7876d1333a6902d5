//! The conversations of a person: `ParticipantConversations`, below the account's default service or one that is named.

use serde::Deserialize;

use super::read::{Binding, Meta, addresses, page_of};
use crate::ids::{Person, PersonKey};
use crate::proto::{self, ConversationState};
use crate::twilio::error::Error;
use crate::twilio::http::Response;
use crate::twilio::{Page, Route};
use crate::wire::{Unread, attributes, conversation_state, optional_timestamp};

const COLLECTION: &str = "/v1/ParticipantConversations";
const SERVICE_COLLECTION: &str = "/v1/Services/{ChatServiceSid}/ParticipantConversations";

pub(in crate::twilio) fn conversations_route(person: &PersonKey) -> Route<'_> {
    match &person.service {
        None => Route { segments: vec!["v1", "ParticipantConversations"], template: COLLECTION },
        Some(service) => Route {
            segments: vec!["v1", "Services", service.as_str(), "ParticipantConversations"],
            template: SERVICE_COLLECTION,
        },
    }
}

/// Exactly one of the two, as Twilio wants it (50451).
pub(in crate::twilio) fn person_query(person: &Person) -> (&'static str, String) {
    match person {
        Person::Identity(identity) => ("Identity", identity.as_ref().to_owned()),
        Person::Address(address) => ("Address", address.as_ref().to_owned()),
    }
}

#[derive(Deserialize)]
struct Envelope {
    conversations: Option<Vec<Conversation>>,
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Conversation {
    account_sid: Option<String>,
    chat_service_sid: Option<String>,
    participant_sid: Option<String>,
    participant_user_sid: Option<String>,
    participant_identity: Option<String>,
    participant_messaging_binding: Option<Binding>,
    conversation_sid: Option<String>,
    conversation_unique_name: Option<String>,
    conversation_friendly_name: Option<String>,
    #[serde(default, deserialize_with = "attributes")]
    conversation_attributes: String,
    #[serde(default, deserialize_with = "optional_timestamp")]
    conversation_date_created: Option<prost_types::Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    conversation_date_updated: Option<prost_types::Timestamp>,
    conversation_created_by: Option<String>,
    conversation_state: Option<String>,
    conversation_timers: Option<Timers>,
    /// URLs of what the SIDs tell.
    #[serde(rename = "links")]
    _links: Option<Unread>,
}

#[derive(Default, Deserialize)]
struct Timers {
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_inactive: Option<prost_types::Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_closed: Option<prost_types::Timestamp>,
}

pub(in crate::twilio) fn conversations(
    response: &Response,
) -> Result<Page<proto::ParticipantConversation>, Error> {
    let Envelope { conversations, meta } = response.json()?;
    page_of(response, ("conversations", conversations), meta, |one| one.into_proto(response))
}

impl Conversation {
    fn into_proto(self, response: &Response) -> proto::ParticipantConversation {
        // No `..`: a key that is read and not carried over must not compile.
        let Self {
            account_sid,
            chat_service_sid,
            participant_sid,
            participant_user_sid,
            participant_identity,
            participant_messaging_binding,
            conversation_sid,
            conversation_unique_name,
            conversation_friendly_name,
            conversation_attributes,
            conversation_date_created,
            conversation_date_updated,
            conversation_created_by,
            conversation_state: word,
            conversation_timers,
            _links: _,
        } = self;
        let Timers { date_inactive, date_closed } = conversation_timers.unwrap_or_default();
        let state = conversation_state(word.as_deref());
        if state == ConversationState::Other {
            response.unknown_value("conversation_state");
        }
        let addresses = addresses(participant_identity, participant_messaging_binding, || {
            response.unknown_value("participant_messaging_binding.type");
        });
        proto::ParticipantConversation {
            account_id: account_sid.unwrap_or_default(),
            service_id: chat_service_sid.unwrap_or_default(),
            participant_id: participant_sid.unwrap_or_default(),
            user_id: participant_user_sid.unwrap_or_default(),
            addresses,
            conversation_id: conversation_sid.unwrap_or_default(),
            unique_name: conversation_unique_name.unwrap_or_default(),
            friendly_name: conversation_friendly_name.unwrap_or_default(),
            attributes: conversation_attributes,
            state: state.into(),
            upstream_state: word.unwrap_or_default(),
            inactive_time: date_inactive,
            close_time: date_closed,
            create_time: conversation_date_created,
            update_time: conversation_date_updated,
            created_by: conversation_created_by.unwrap_or_default(),
        }
    }
}
