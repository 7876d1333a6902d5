//! The writable fields of a participant: which are set, and whether what is there is what was asked for.

use prost_types::Timestamp;
use serde_json::Value;

use crate::ids::Field;
use crate::proto::{Address, Channel, Participant, ParticipantType};

/// Whether the participant sets the field.
pub fn is_set(field: Field, participant: &Participant) -> bool {
    // No `..`: a field of the contract that is neither written nor output only must not compile.
    let Participant {
        id: _,
        conversation_id: _,
        account_id: _,
        service_id: _,
        api_version: _,
        url: _,
        etag: _,
        display_name,
        r#type,
        upstream_type,
        profile_id,
        addresses,
        attributes,
        role_id,
        last_read_message_index,
        last_read_time,
        create_time,
        update_time,
    } = participant;
    match field {
        Field::DisplayName => !display_name.is_empty(),
        Field::Type => *r#type != 0 || !upstream_type.is_empty(),
        Field::ProfileId => !profile_id.is_empty(),
        Field::Addresses => !addresses.is_empty(),
        Field::Attributes => !attributes.is_empty(),
        Field::RoleId => !role_id.is_empty(),
        Field::LastReadMessageIndex => last_read_message_index.is_some(),
        Field::LastReadTime => last_read_time.is_some(),
        Field::CreateTime => create_time.is_some(),
        Field::UpdateTime => update_time.is_some(),
    }
}

/// Whether the field is, at Twilio, what a write asked for.
pub(super) fn is_as_asked(field: Field, asked: &Participant, there: &Participant) -> bool {
    match field {
        Field::DisplayName => asked.display_name == there.display_name,
        Field::Type => {
            asked.r#type == there.r#type
                && (asked.r#type() != ParticipantType::Other || asked.upstream_type == there.upstream_type)
        }
        Field::ProfileId => asked.profile_id == there.profile_id,
        Field::Addresses => {
            asked.addresses.len() == there.addresses.len()
                && asked.addresses.iter().all(|asked| there.addresses.iter().any(|one| is_same(asked, one)))
        }
        Field::Attributes => is_same_json(&asked.attributes, &there.attributes),
        Field::RoleId => asked.role_id == there.role_id,
        Field::LastReadMessageIndex => asked.last_read_message_index == there.last_read_message_index,
        Field::LastReadTime => is_same_time(asked.last_read_time, there.last_read_time),
        Field::CreateTime => is_same_time(asked.create_time, there.create_time),
        Field::UpdateTime => is_same_time(asked.update_time, there.update_time),
    }
}

/// v1 tells whole seconds.
fn is_same_time(asked: Option<Timestamp>, there: Option<Timestamp>) -> bool {
    asked.map(|time| time.seconds) == there.map(|time| time.seconds)
}

/// A channel that is not said is told by the address. OTHER stands for many, which Twilio's word tells apart.
pub(super) fn is_same_channel(asked: &Address, there: &Address) -> bool {
    match asked.channel() {
        Channel::Unspecified => there.channel() != Channel::Chat,
        Channel::Other => asked.upstream_channel.eq_ignore_ascii_case(&there.upstream_channel),
        channel => channel == there.channel(),
    }
}

/// The channel, and all that can be written.
fn is_same(asked: &Address, there: &Address) -> bool {
    is_same_channel(asked, there)
        && asked.address == there.address
        && asked.channel_id == there.channel_id
        && asked.proxy_address == there.proxy_address
        && asked.projected_address == there.projected_address
}

/// Attributes that are cleared read as `{}`, and Twilio may space what it was sent in its own way.
fn is_same_json(asked: &str, there: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(if text.is_empty() { "{}" } else { text }).ok();
    value(asked) == value(there)
}
