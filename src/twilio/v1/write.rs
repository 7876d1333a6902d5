//! From the contract's messages to v1's forms.

use url::form_urlencoded;

use super::NULL;
use crate::ids::{Field, Violation};
use crate::proto::{self, Address, Channel};
use crate::twilio::Update;
use crate::twilio::http::Body;
use crate::twilio::prepared::MASKED;

/// Resets the attributes: what Twilio answers where none were ever set.
const NO_ATTRIBUTES: &str = "{}";

type Form = Vec<(&'static str, String)>;

fn form(pairs: &Form) -> Body {
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    let shown: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={}", shown(name, value))).collect();
    Body {
        content_type: "application/x-www-form-urlencoded",
        bytes: encoded.into(),
        shown: shown.join("&").into(),
    }
}

/// What may be shown of a value. What clears a field is no caller's text.
fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    match name {
        "RoleSid" | "DateCreated" | "DateUpdated" | "LastReadMessageIndex" | "LastReadTimestamp" => value,
        _ if value == NULL || value == NO_ATTRIBUTES => value,
        _ => MASKED,
    }
}

/// What only one of the two entries holds that v1 knows: the identity, and the messaging binding.
fn split(addresses: &[Address]) -> (Option<&Address>, Option<&Address>) {
    let is_chat = |address: &&Address| address.channel() == Channel::Chat;
    (addresses.iter().find(is_chat), addresses.iter().find(|address| !is_chat(address)))
}

/// The form of a create: what is set.
pub(in crate::twilio) fn create_body(participant: &proto::Participant) -> Body {
    form(&create_form(participant))
}

fn create_form(participant: &proto::Participant) -> Form {
    let (chat, binding) = split(&participant.addresses);
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let part = |part: fn(&Address) -> &String| binding.map(part).and_then(text);
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(ToString::to_string);
    [
        ("Identity", chat.map(|chat| chat.address.clone())),
        ("MessagingBinding.Address", part(|binding| &binding.address)),
        ("MessagingBinding.ProxyAddress", part(|binding| &binding.proxy_address)),
        ("MessagingBinding.ProjectedAddress", part(|binding| &binding.projected_address)),
        ("Attributes", text(&participant.attributes)),
        ("RoleSid", text(&participant.role_id)),
        ("DateCreated", time(&participant.create_time)),
        ("DateUpdated", time(&participant.update_time)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// The form of an update; `None` where nothing differs.
pub(in crate::twilio) fn update_body(
    update: &Update,
    current: Option<&proto::Participant>,
) -> Result<Option<Body>, Vec<Violation>> {
    let new = &update.participant;
    let mut pairs = Form::new();
    for field in &update.fields {
        match field {
            Field::Addresses => {
                let there = current.map(|current| current.addresses.as_slice()).unwrap_or_default();
                pairs.extend(changed_addresses(there, &new.addresses)?);
            }
            Field::Attributes if new.attributes.is_empty() => {
                pairs.push(("Attributes", NO_ATTRIBUTES.into()));
            }
            Field::Attributes => pairs.push(("Attributes", new.attributes.clone())),
            Field::RoleId => pairs.push(("RoleSid", new.role_id.clone())),
            Field::LastReadMessageIndex => {
                let index =
                    new.last_read_message_index.map_or_else(|| NULL.into(), |index| index.to_string());
                // There is nothing to clear where nothing is set.
                if index != NULL || current.is_none_or(|current| current.last_read_message_index.is_some()) {
                    pairs.push(("LastReadMessageIndex", index));
                }
            }
            Field::LastReadTime => push_time(&mut pairs, "LastReadTimestamp", new.last_read_time.as_ref()),
            Field::CreateTime => push_time(&mut pairs, "DateCreated", new.create_time.as_ref()),
            Field::UpdateTime => push_time(&mut pairs, "DateUpdated", new.update_time.as_ref()),
            // v2's; the request was checked against the version.
            Field::DisplayName | Field::Type | Field::ProfileId => {}
        }
    }
    Ok((!pairs.is_empty()).then(|| form(&pairs)))
}

fn push_time(pairs: &mut Form, name: &'static str, time: Option<&prost_types::Timestamp>) {
    pairs.extend(time.map(|time| (name, time.to_string())));
}

/// A channel that is not said is the one that is there. OTHER stands for many, which Twilio's word tells apart.
fn is_same_channel(there: &Address, new: &Address) -> bool {
    match new.channel() {
        Channel::Unspecified => true,
        Channel::Other => new.upstream_channel.eq_ignore_ascii_case(&there.upstream_channel),
        channel => channel == there.channel(),
    }
}

/// What differs, for Twilio answers 50441 to a proxy address that is sent again unchanged. Entries can be neither added
/// nor removed, and the address of a binding is fixed: v1 has no parameter for these.
fn changed_addresses(current: &[Address], new: &[Address]) -> Result<Form, Vec<Violation>> {
    let (current_chat, current_binding) = split(current);
    let (chat, binding) = split(new);
    let mut violations = Vec::new();
    let mut pairs = Form::new();
    match (current_chat, chat) {
        (Some(there), Some(new)) if there.address != new.address => {
            pairs.push(("Identity", new.address.clone()));
        }
        (Some(_), Some(_)) | (None, None) => {}
        (None, Some(_)) => violations.push("v1 cannot add an identity to a participant without one"),
        (Some(_), None) => violations.push("v1 cannot take the identity from a participant"),
    }
    match (current_binding, binding) {
        (Some(there), Some(new)) => {
            if there.address != new.address {
                violations
                    .push("v1 cannot change the address of a participant: delete it and create another");
            }
            if !is_same_channel(there, new) {
                violations
                    .push("v1 cannot change the channel of a participant: delete it and create another");
            }
            for (name, there, new) in [
                ("MessagingBinding.ProxyAddress", &there.proxy_address, &new.proxy_address),
                ("MessagingBinding.ProjectedAddress", &there.projected_address, &new.projected_address),
            ] {
                if there != new {
                    pairs.push((name, if new.is_empty() { NULL.into() } else { new.clone() }));
                }
            }
        }
        (None, None) => {}
        (None, Some(_)) => violations.push("v1 cannot add a messaging binding to a participant without one"),
        (Some(_), None) => violations.push("v1 cannot take the messaging binding from a participant"),
    }
    if violations.is_empty() {
        Ok(pairs)
    } else {
        Err(violations.into_iter().map(|text| Violation::new("participant.addresses", text)).collect())
    }
}
