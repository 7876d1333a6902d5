//! What Twilio's wires share, those of its answers and those of its events: its words, its times, its JSON within JSON, and
//! the hash of the content.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::proto::{Address, Channel, ConversationState, Message as _, Participant, ParticipantType};

/// The value of a key that Twilio documents and that nothing here needs. Declared, it is not taken for drift.
pub(crate) struct Unread;

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `IgnoredAny`, which is how an unknown key is told from a known one.
        Box::<RawValue>::deserialize(deserializer).map(|_| Self)
    }
}

/// The contract's word for Twilio's: the same with the prefix, in either case. No word is UNSPECIFIED, one that is not known
/// OTHER.
fn enum_of<E>(word: Option<&str>, prefix: &str, from_name: fn(&str) -> Option<E>) -> Option<E> {
    let word = word.unwrap_or_default().to_ascii_uppercase();
    let word = match word.as_str() {
        "" => "UNSPECIFIED",
        "OTHER" | "UNSPECIFIED" => "OTHER",
        word => word,
    };
    from_name(&format!("{prefix}_{word}"))
}

pub(crate) fn channel(word: Option<&str>) -> Channel {
    enum_of(word, "CHANNEL", Channel::from_str_name).unwrap_or(Channel::Other)
}

pub(crate) fn participant_type(word: Option<&str>) -> ParticipantType {
    enum_of(word, "PARTICIPANT_TYPE", ParticipantType::from_str_name).unwrap_or(ParticipantType::Other)
}

pub(crate) fn conversation_state(word: Option<&str>) -> ConversationState {
    enum_of(word, "CONVERSATION_STATE", ConversationState::from_str_name).unwrap_or(ConversationState::Other)
}

/// v1's identity as the address that it is here; its samples also spell none as the text `null`.
pub(crate) fn chat(identity: Option<String>) -> Option<Address> {
    let identity = identity.filter(|identity| !identity.is_empty() && identity != "null");
    identity.map(|address| Address { channel: Channel::Chat.into(), address, ..Address::default() })
}

/// A hash of the content. `service_id` and `url` are left out: they tell the way to the participant, and the same
/// participant read on another way has the same etag.
pub(crate) fn with_etag(participant: Participant) -> Participant {
    let Participant { service_id, url, .. } = participant.clone();
    let content = Participant { service_id: String::new(), url: String::new(), ..participant };
    let digest = Sha256::digest(content.encode_to_vec());
    let etag = BASE64_URL_SAFE_NO_PAD.encode(&digest[..16]);
    Participant { service_id, url, etag, ..content }
}

/// RFC 3339, as both APIs spell time: `Z` or an offset, with up to nine digits of fraction.
pub(crate) fn timestamp(text: &str) -> Option<prost_types::Timestamp> {
    // A date alone parses too, and so does a time without an offset; which moment they mean would be a guess.
    let sign = text.len().checked_sub(6).and_then(|at| text.as_bytes().get(at));
    let has_offset = text.ends_with(['Z', 'z']) || matches!(sign, Some(b'+' | b'-'));
    let timestamp: prost_types::Timestamp = text.parse().ok()?;
    (text.contains(':') && has_offset && is_in_range(&timestamp)).then_some(timestamp)
}

/// The years 1 to 9999, which is what `google.protobuf.Timestamp` may hold.
fn is_in_range(timestamp: &prost_types::Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&timestamp.seconds)
        && (0..1_000_000_000).contains(&timestamp.nanos)
}

pub(crate) fn optional_timestamp<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<prost_types::Timestamp>, D::Error> {
    let text: Option<String> = Deserialize::deserialize(deserializer)?;
    let parse =
        |text: String| timestamp(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"));
    text.map(parse).transpose()
}

/// Text as it is; an object, as Twilio's older samples show it, as compact JSON.
pub(crate) fn attributes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let Some(raw) = Option::<Box<RawValue>>::deserialize(deserializer)? else {
        return Ok(String::new());
    };
    match raw.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw.get()).map_err(serde::de::Error::custom),
        Some(b'{') => Ok(compact(raw.get())),
        _ => Err(serde::de::Error::custom("neither text nor an object")),
    }
}

/// Valid JSON without the white space between its tokens. The tokens stay as they are: to parse them would lose the order
/// of keys and the digits of large numbers.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            if in_string {
                in_string = escaped || c != '"';
                escaped = !escaped && c == '\\';
                return true;
            }
            in_string = c == '"';
            !c.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_every_token() {
        let spaced = "{ \"a b\" : [ 1e400 , \"\\\" { \\\\\" ] ,\n\t\"z\" : 12345678901234567890 }";
        assert_eq!(compact(spaced), r#"{"a b":[1e400,"\" { \\"],"z":12345678901234567890}"#);
    }
}
