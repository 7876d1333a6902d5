//! How Event Streams tells a change of a v1 participant: the data of schema version 2 of `ParticipantAdded`,
//! `ParticipantUpdated` and `ParticipantRemoved` (<https://www.twilio.com/docs/events/event-types>).

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use super::participant::Binding;
use super::view::sid;
use crate::sandbox::dates;
use crate::sandbox::events::{Change, Kind};
use crate::sandbox::store::Tenant;

/// No key of the schema is null: what is not known is left out.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Data<'a> {
    account_sid: &'a str,
    participant_sid: String,
    conversation_sid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<&'a str>,
    role_sid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<BTreeMap<String, String>>,
    date_created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    date_updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    date_removed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messaging_binding: Option<BindingData<'a>>,
}

/// Level and Name, which the schema has too, belong to e-mail.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BindingData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projected_address: Option<&'a str>,
    /// In capitals, as in Twilio's samples of events; the REST face has small letters.
    #[serde(rename = "Type")]
    kind: String,
}

impl<'a> BindingData<'a> {
    fn of(binding: &'a Binding) -> BindingData<'a> {
        BindingData {
            address: binding.address.as_deref(),
            proxy_address: binding.proxy.as_deref(),
            projected_address: binding.projected.as_deref(),
            kind: binding.channel().to_ascii_uppercase(),
        }
    }
}

impl Tenant {
    /// Notes a change of this participant, which is told as it is now. Where there is none, nothing happened.
    pub(super) fn note_classic(&mut self, kind: Kind, index: usize, serial: u64, now: SystemTime) {
        let conversation = &self.classic[index];
        let Some(participant) = conversation.roster.get(serial) else { return };
        let data = Data {
            account_sid: &self.account_sid,
            participant_sid: sid(serial),
            conversation_sid: &conversation.sid,
            identity: participant.identity.as_deref(),
            role_sid: &participant.role_sid,
            attributes: strings(&participant.attributes),
            date_created: dates::millis(participant.created),
            date_updated: (kind != Kind::Added).then(|| dates::millis(participant.updated)),
            date_removed: (kind == Kind::Removed).then(|| dates::millis(now)),
            messaging_binding: participant.binding.as_ref().map(BindingData::of),
        };
        let change = Change::CloudEvent {
            kind: format!("com.twilio.conversations.participant.{}", kind.word().to_ascii_lowercase()),
            source: format!(
                "/v1/Conversations/{}/Participants/{}",
                data.conversation_sid, data.participant_sid
            ),
            schema: format!("Conversations.Participant{}/2", kind.word()),
            data: json!(data),
        };
        self.changes.push(change);
    }
}

/// The schema has an object of strings. Other values become their JSON text; attributes that are no object
/// have no place in it.
fn strings(attributes: &str) -> Option<BTreeMap<String, String>> {
    let values: BTreeMap<String, Value> = serde_json::from_str(attributes).ok()?;
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Some(values.into_iter().map(|(key, value)| (key, text(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_told_as_strings() {
        let told = strings(r#"{"a": "b", "n": 1, "o": {"p": null}}"#).unwrap();
        assert_eq!(json!(told), json!({"a": "b", "n": "1", "o": r#"{"p":null}"#}));
        assert_eq!(strings("[1]"), None);
    }
}
