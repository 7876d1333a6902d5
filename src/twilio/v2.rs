//! Conversations v2 (Conversation Orchestrator): camelCase JSON both ways, PUT as update, no delete.

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::http::{Body, Response};
use super::prepared::MASKED;
use super::{Cursor, Page, Route, Update};
use crate::ids::{Conversation, Field, Segment, Violation};
use crate::proto::{self, Channel, ParticipantType};
use crate::wire::{Unread, channel, optional_timestamp, participant_type, with_etag};

const ITEM: &str = "/v2/Conversations/{conversationId}/Participants/{id}";
const COLLECTION: &str = "/v2/Conversations/{conversationId}/Participants";

pub(super) fn route<'a>(conversation: &'a Conversation, participant: Option<&'a Segment>) -> Route<'a> {
    let mut segments = vec!["v2", "Conversations", conversation.id.as_str(), "Participants"];
    segments.extend(participant.map(Segment::as_str));
    Route { segments, template: if participant.is_some() { ITEM } else { COLLECTION } }
}

pub(super) fn page_query(size: u32, cursor: &Cursor) -> Vec<(&'static str, String)> {
    let mut query = vec![("pageSize", size.to_string())];
    if !cursor.token.is_empty() {
        query.push(("pageToken", cursor.token.clone()));
    }
    query
}

// === Reading

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Participant {
    id: Option<String>,
    conversation_id: Option<String>,
    account_id: Option<String>,
    name: Option<String>,
    r#type: Option<String>,
    profile_id: Option<String>,
    addresses: Option<Vec<Address>>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    created_at: Option<prost_types::Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    updated_at: Option<prost_types::Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Address {
    channel: Option<String>,
    address: Option<String>,
    channel_id: Option<String>,
}

/// Twilio documents both keys as optional.
#[derive(Deserialize)]
struct Envelope {
    participants: Option<Vec<Participant>>,
    meta: Option<Meta>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    previous_token: Option<String>,
    next_token: Option<String>,
    #[serde(rename = "key")]
    _key: Option<Unread>,
    #[serde(rename = "pageSize")]
    _page_size: Option<Unread>,
}

pub(super) fn participant(response: &Response) -> Result<proto::Participant, Error> {
    response.json().map(|participant: Participant| participant.into_proto(response))
}

pub(super) fn page(response: &Response) -> Result<Page<proto::Participant>, Error> {
    let Envelope { participants, meta } = response.json()?;
    let Meta { previous_token, next_token, _key, _page_size } = meta.unwrap_or_default();
    let cursor = |token: Option<String>| {
        token.filter(|token| !token.is_empty()).map(|token| Cursor { page: String::new(), token })
    };
    let participants = participants.unwrap_or_default().into_iter();
    Ok(Page {
        items: participants.map(|participant| participant.into_proto(response)).collect(),
        next: cursor(next_token),
        previous: cursor(previous_token),
        answered_at: response.answered_at(),
    })
}

impl Participant {
    fn into_proto(self, response: &Response) -> proto::Participant {
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
        let kind = participant_type(r#type.as_deref());
        if kind == ParticipantType::Other {
            response.unknown_value("type");
        }
        let addresses = addresses.unwrap_or_default().into_iter();
        with_etag(proto::Participant {
            id: id.unwrap_or_default(),
            conversation_id: conversation_id.unwrap_or_default(),
            account_id: account_id.unwrap_or_default(),
            api_version: proto::ApiVersion::V2.into(),
            display_name: name.unwrap_or_default(),
            r#type: kind.into(),
            upstream_type: r#type.unwrap_or_default(),
            profile_id: profile_id.unwrap_or_default(),
            addresses: addresses.map(|address| address.into_proto(response)).collect(),
            create_time: created_at,
            update_time: updated_at,
            service_id: String::new(),
            attributes: String::new(),
            role_id: String::new(),
            last_read_message_index: None,
            last_read_time: None,
            url: String::new(),
            etag: String::new(),
        })
    }
}

impl Address {
    fn into_proto(self, response: &Response) -> proto::Address {
        let Self { channel: word, address, channel_id } = self;
        let channel = channel(word.as_deref());
        if channel == Channel::Other {
            response.unknown_value("addresses.channel");
        }
        proto::Address {
            channel: channel.into(),
            upstream_channel: word.unwrap_or_default(),
            address: address.unwrap_or_default(),
            channel_id: channel_id.unwrap_or_default(),
            ..proto::Address::default()
        }
    }
}

// === Writing

/// What a create and an update send. In a PUT, what is left out is cleared; whether Twilio takes an explicit null is not
/// documented, so none is sent.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    r#type: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    profile_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<WrittenAddress<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenAddress<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    channel: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    address: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    channel_id: &'a str,
}

pub(super) fn create_body(participant: &proto::Participant) -> Body {
    body(participant, true)
}

/// `with_addresses`: an empty list is sent as one only where the caller asked for it.
fn body(participant: &proto::Participant, with_addresses: bool) -> Body {
    Body {
        content_type: "application/json",
        bytes: json(participant, with_addresses).into(),
        shown: json(&masked(participant), with_addresses).into(),
    }
}

fn json(participant: &proto::Participant, with_addresses: bool) -> String {
    let written = Written {
        name: &participant.display_name,
        r#type: match participant.r#type() {
            ParticipantType::Unspecified => "",
            ParticipantType::Other => &participant.upstream_type,
            known => word(known.as_str_name(), "PARTICIPANT_TYPE_"),
        },
        profile_id: &participant.profile_id,
        addresses: (with_addresses || !participant.addresses.is_empty())
            .then(|| participant.addresses.iter().map(written_address).collect()),
    };
    // Strings and lists only: there is nothing in it that JSON could not hold.
    serde_json::to_string(&written).unwrap_or_default()
}

fn masked(participant: &proto::Participant) -> proto::Participant {
    let mask = |text: &String| if text.is_empty() { String::new() } else { MASKED.to_owned() };
    let addresses = participant.addresses.iter();
    proto::Participant {
        display_name: mask(&participant.display_name),
        addresses: addresses
            .map(|address| proto::Address { address: mask(&address.address), ..address.clone() })
            .collect(),
        ..participant.clone()
    }
}

fn written_address(address: &proto::Address) -> WrittenAddress<'_> {
    WrittenAddress {
        channel: match address.channel() {
            // An address that was read without a channel goes back as it came.
            Channel::Unspecified | Channel::Other => &address.upstream_channel,
            known => word(known.as_str_name(), "CHANNEL_"),
        },
        address: &address.address,
        channel_id: &address.channel_id,
    }
}

/// Twilio's words are the contract's without the prefix.
fn word(name: &'static str, prefix: &str) -> &'static str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// The whole participant as it is to be: `current`, with the masked fields replaced; `None` where nothing differs.
pub(super) fn update_body(
    update: &Update,
    current: Option<&proto::Participant>,
) -> Result<Option<Body>, Vec<Violation>> {
    let mut merged = current.cloned().unwrap_or_default();
    let new = &update.participant;
    for field in &update.fields {
        match field {
            Field::DisplayName => merged.display_name.clone_from(&new.display_name),
            Field::Type => {
                merged.r#type = new.r#type;
                merged.upstream_type.clone_from(&new.upstream_type);
            }
            Field::ProfileId => merged.profile_id.clone_from(&new.profile_id),
            Field::Addresses => merged.addresses.clone_from(&new.addresses),
            // v1's; the request was checked against the version.
            Field::Attributes
            | Field::RoleId
            | Field::LastReadMessageIndex
            | Field::LastReadTime
            | Field::CreateTime
            | Field::UpdateTime => {}
        }
    }
    let with_addresses = update.fields.contains(&Field::Addresses);
    let (there, new) = (current.map(|current| body(current, with_addresses)), body(&merged, with_addresses));
    Ok(there.is_none_or(|there| there.bytes != new.bytes).then_some(new))
}
