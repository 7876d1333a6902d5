//! A CloudEvent of Twilio's Event Streams. Its schema is documented, its samples keep to it loosely: SIDs of odd lengths, a
//! date for a content type, no time.

use prost_types::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Incoming, Undecodable, data, object};
use crate::proto::{self, Address, ParticipantEvent, ParticipantEventType};
use crate::wire::{attributes, channel, chat, optional_timestamp, timestamp};

const ADDED: &str = "com.twilio.conversations.participant.added";
const UPDATED: &str = "com.twilio.conversations.participant.updated";
const REMOVED: &str = "com.twilio.conversations.participant.removed";
const TEST: &str = "com.twilio.eventstreams.test-event";

#[derive(Deserialize)]
struct Envelope {
    r#type: Option<String>,
    id: Option<String>,
    time: Option<String>,
    data: Option<Box<RawValue>>,
}

/// Of both versions of the schema, which differ in nothing that is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    account_sid: Option<String>,
    participant_sid: Option<String>,
    conversation_sid: Option<String>,
    identity: Option<String>,
    role_sid: Option<String>,
    #[serde(default, deserialize_with = "attributes")]
    attributes: String,
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_created: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_updated: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_removed: Option<Timestamp>,
    messaging_binding: Option<Binding>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    r#type: Option<String>,
    address: Option<String>,
    proxy_address: Option<String>,
    projected_address: Option<String>,
    level: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct TestData {
    test_id: Option<String>,
}

/// Reads one event.
pub(super) fn decode(json: &str) -> Incoming {
    read(json).unwrap_or_else(Incoming::Undecodable)
}

fn read(json: &str) -> Result<Incoming, Undecodable> {
    let Envelope { r#type, id, time, data: raw } = object("", json)?;
    let kind = match r#type.as_deref() {
        None => return Err(Undecodable("type".into())),
        Some(ADDED) => ParticipantEventType::Added,
        Some(UPDATED) => ParticipantEventType::Updated,
        Some(REMOVED) => ParticipantEventType::Removed,
        Some(TEST) => return Ok(Incoming::Test { id: test_id(raw.as_deref()) }),
        Some(_) => return Ok(Incoming::UnknownType),
    };
    let data: Data = data(raw.as_deref())?;
    let remove_time = data.date_removed.filter(|_| kind == ParticipantEventType::Removed);
    let in_data = remove_time.or(data.date_updated).or(data.date_created);
    let event = ParticipantEvent {
        id: id.unwrap_or_default(),
        r#type: kind.into(),
        // What is no date says nothing.
        event_time: time.as_deref().and_then(timestamp).or(in_data),
        remove_time,
        participant: Some(data.into_proto()),
    };
    Ok(Incoming::told(event))
}

fn test_id(raw: Option<&RawValue>) -> Option<Uuid> {
    let TestData { test_id } = data(raw).ok()?;
    test_id.and_then(|id| Uuid::try_parse(&id).ok())
}

impl Data {
    fn into_proto(self) -> proto::Participant {
        // No `..`: a key that is read and not carried over must not compile.
        let Self {
            account_sid,
            participant_sid,
            conversation_sid,
            identity,
            role_sid,
            attributes,
            date_created,
            date_updated,
            date_removed: _,
            messaging_binding,
        } = self;
        let binding = messaging_binding.and_then(Binding::into_proto);
        proto::Participant {
            id: participant_sid.unwrap_or_default(),
            conversation_id: conversation_sid.unwrap_or_default(),
            account_id: account_sid.unwrap_or_default(),
            api_version: proto::ApiVersion::V1.into(),
            addresses: chat(identity).into_iter().chain(binding).collect(),
            attributes,
            role_id: role_sid.unwrap_or_default(),
            create_time: date_created,
            update_time: date_updated,
            service_id: String::new(),
            display_name: String::new(),
            r#type: 0,
            upstream_type: String::new(),
            profile_id: String::new(),
            last_read_message_index: None,
            last_read_time: None,
            url: String::new(),
            // An event is no whole participant.
            etag: String::new(),
        }
    }
}

impl Binding {
    /// `None` for a binding that says nothing.
    fn into_proto(self) -> Option<Address> {
        let Self { r#type: word, address, proxy_address, projected_address, level, name } = self;
        let address = Address {
            channel: channel(word.as_deref()).into(),
            upstream_channel: word.unwrap_or_default(),
            address: address.unwrap_or_default(),
            channel_id: String::new(),
            proxy_address: proxy_address.unwrap_or_default(),
            projected_address: projected_address.map(bare).unwrap_or_default(),
            level: level.unwrap_or_default(),
            display_name: name.unwrap_or_default(),
        };
        (address != Address::default()).then_some(address)
    }
}

/// Twilio's samples have the projected address in square brackets, as a list of one prints.
fn bare(address: String) -> String {
    let inside = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match inside {
        Some(inside) if !inside.contains(['[', ']', ',']) => inside.to_owned(),
        _ => address,
    }
}
