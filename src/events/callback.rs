//! A status callback of v2. Twilio documents its envelope only; its data is read as the participant that v2's API answers.

use prost_types::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Incoming, Undecodable, data, object};
use crate::proto::{self, ParticipantEvent, ParticipantEventType};
use crate::wire::{channel, optional_timestamp, participant_type, timestamp};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    event_type: Option<String>,
    timestamp: Option<String>,
    data: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    id: Option<String>,
    conversation_id: Option<String>,
    account_id: Option<String>,
    name: Option<String>,
    r#type: Option<String>,
    profile_id: Option<String>,
    addresses: Option<Vec<Address>>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    updated_at: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    channel: Option<String>,
    address: Option<String>,
    channel_id: Option<String>,
}

/// Reads one callback, which goes by this id.
pub(super) fn decode(json: &str, id: &str) -> Incoming {
    read(json, id).unwrap_or_else(Incoming::Undecodable)
}

fn read(json: &str, id: &str) -> Result<Incoming, Undecodable> {
    let Envelope { event_type, timestamp: time, data: raw } = object("", json)?;
    let kind = match event_type.as_deref() {
        None => return Err(Undecodable("eventType".into())),
        Some("PARTICIPANT_ADDED") => ParticipantEventType::Added,
        Some("PARTICIPANT_UPDATED") => ParticipantEventType::Updated,
        Some("PARTICIPANT_REMOVED") => ParticipantEventType::Removed,
        Some(_) => return Ok(Incoming::UnknownType),
    };
    let data: Data = data(raw.as_deref())?;
    let event = ParticipantEvent {
        id: id.to_owned(),
        r#type: kind.into(),
        // What is no date says nothing.
        event_time: time.as_deref().and_then(timestamp).or(data.updated_at).or(data.created_at),
        remove_time: None,
        participant: Some(data.into_proto()),
    };
    Ok(Incoming::told(event))
}

impl Data {
    fn into_proto(self) -> proto::Participant {
        // No `..`: a key that is read and not carried over must not compile.
        let Self {
            id,
            conversation_id,
            account_id,
            name,
            r#type,
            profile_id,
            addresses,
            created_at,
            updated_at,
        } = self;
        proto::Participant {
            id: id.unwrap_or_default(),
            conversation_id: conversation_id.unwrap_or_default(),
            account_id: account_id.unwrap_or_default(),
            api_version: proto::ApiVersion::V2.into(),
            display_name: name.unwrap_or_default(),
            r#type: participant_type(r#type.as_deref()).into(),
            upstream_type: r#type.unwrap_or_default(),
            profile_id: profile_id.unwrap_or_default(),
            addresses: addresses.unwrap_or_default().into_iter().map(Address::into_proto).collect(),
            create_time: created_at,
            update_time: updated_at,
            service_id: String::new(),
            attributes: String::new(),
            role_id: String::new(),
            last_read_message_index: None,
            last_read_time: None,
            url: String::new(),
            etag: String::new(),
        }
    }
}

impl Address {
    fn into_proto(self) -> proto::Address {
        let Self { channel: word, address, channel_id } = self;
        proto::Address {
            channel: channel(word.as_deref()).into(),
            upstream_channel: word.unwrap_or_default(),
            address: address.unwrap_or_default(),
            channel_id: channel_id.unwrap_or_default(),
            ..proto::Address::default()
        }
    }
}
