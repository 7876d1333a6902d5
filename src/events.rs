//! Twilio's events, however they arrive.

#[cfg(feature = "kinesis")]
pub mod kinesis;

use serde_json::Value;

use crate::ids::{AccountId, ApiVersion};
use crate::participants::Event;
use crate::proto::{Participant, ParticipantEvent, ParticipantEventType};

pub(crate) fn decode(data: &[u8]) -> Result<Option<Event>, String> {
    let event: Value = serde_json::from_slice(data).map_err(|_| "no JSON".to_owned())?;
    let r#type = match event["type"].as_str().ok_or("no type")? {
        "com.twilio.conversations.participant.added" => ParticipantEventType::Added,
        "com.twilio.conversations.participant.updated" => ParticipantEventType::Updated,
        "com.twilio.conversations.participant.removed" => ParticipantEventType::Removed,
        _ => return Ok(None),
    };
    let data = match &event["data"] {
        Value::String(text) => serde_json::from_str(text).map_err(|_| "no JSON in data".to_owned())?,
        data => data.clone(),
    };
    let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    let account = AccountId::parse(&text("AccountSid")).ok_or("no account")?;
    let participant = Participant {
        id: text("ParticipantSid"),
        conversation_id: text("ConversationSid"),
        ..Default::default()
    };
    let event = ParticipantEvent {
        id: event["id"].as_str().unwrap_or_default().to_owned(),
        r#type: r#type.into(),
        participant: Some(participant),
        ..Default::default()
    };
    Ok(Some(Event { account, version: ApiVersion::V1, event }))
}
