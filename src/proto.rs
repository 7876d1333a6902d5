//! The generated contract `participant.v1`: messages, service, client, descriptor set, a `Debug` that shows no PII, and
//! what masks it.
//!
//! The proto files are the documentation; nothing is added here. These messages are also the gateway's internal model.

mod codec;
mod encoded;

use std::fmt;

// The generated client names no transport, and prost writes the comments of the proto files as they are.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod generated {
    tonic::include_proto!("participant.v1");
    use super::{MASKED, MASKED_JSON, Redacted};
    include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
}

pub use codec::ParticipantCodec;
pub use encoded::EncodedGetParticipantResponse;
pub use generated::*;
/// Encoding and decoding of the messages.
pub use prost::Message;

/// The descriptors of `participant.v1` and all that it imports, comments included, encoded for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));

/// Stands where a caller may not see an identity, a name, an address or the like.
pub const MASKED: &str = "***";

/// The same where the text is JSON.
pub const MASKED_JSON: &str = "\"***\"";

/// Stands in a `Debug` where a field marked `debug_redact` would stand.
struct Redacted {
    empty: bool,
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.empty { "(empty)" } else { "***" })
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

    use super::*;

    fn is_redacted(field: &FieldDescriptor) -> bool {
        field.options().get_field_by_name("debug_redact").is_some_and(|value| *value == Value::Bool(true))
    }

    /// With this in each field that is marked, and in no other.
    fn planted(message: &MessageDescriptor) -> DynamicMessage {
        let mut full = DynamicMessage::new(message.clone());
        for field in message.fields().filter(is_redacted) {
            let value = match field.kind() {
                Kind::Message(inner) => Value::List(vec![Value::Message(planted(&inner))]),
                _ => Value::String("planted".into()),
            };
            full.set_field(&field, value);
        }
        full
    }

    #[test]
    fn whatever_is_marked_is_masked() {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let full = |name: &str| planted(&pool.get_message_by_name(name).unwrap()).encode_to_vec();
        let (person, place) =
            (full("participant.v1.Participant"), full("participant.v1.ParticipantConversation"));
        let mut participant = Participant::decode(person.as_slice()).unwrap();
        let mut conversation = ParticipantConversation::decode(place.as_slice()).unwrap();
        participant.mask();
        conversation.mask();
        for (before, after) in [(person, participant.encode_to_vec()), (place, conversation.encode_to_vec())]
        {
            let [before, after] = [before, after].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            assert!(!after.contains("planted"));
            assert_eq!(after.matches("***").count(), before.matches("planted").count(), "none is forgotten");
        }
        let (mut empty, never_set) = (Participant::default(), Participant::default());
        empty.mask();
        assert_eq!(empty, never_set);
    }

    /// Whoever adds an answer that tells of people has to mask it where it is told, in `grpc`, and then here.
    #[test]
    fn the_answers_that_are_masked_are_all_that_hold_pii() {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let ours = pool.all_messages().filter(|message| message.package_name() == "participant.v1");
        let tells = |message: &MessageDescriptor| {
            message.fields().any(|field| match field.kind() {
                Kind::Message(inner) => {
                    ["Participant", "ParticipantConversation", "Address"].contains(&inner.name())
                }
                _ => is_redacted(&field),
            })
        };
        let telling: Vec<_> = ours.filter(tells).map(|message| message.name().to_owned()).collect();
        let mut answers: Vec<_> = telling.iter().filter(|name| !name.ends_with("Request")).collect();
        answers.sort_unstable();
        let masked = [
            "Address",
            "BatchGetParticipantsResponse",
            "CreateParticipantResponse",
            "GetParticipantResponse",
            "ListParticipantConversationsResponse",
            "ListParticipantsResponse",
            "Participant",
            "ParticipantConversation",
            "ParticipantEvent",
            "StreamParticipantsResponse",
            "UpdateParticipantResponse",
        ];
        assert_eq!(answers, masked);
    }

    #[test]
    fn debug_shows_that_a_redacted_field_is_set_and_never_its_value() {
        let participant = Participant {
            id: "MB1".into(),
            display_name: "Dana".into(),
            addresses: vec![Address { address: "+15550100001".into(), ..Address::default() }],
            attributes: "{\"secret\":1}".into(),
            ..Participant::default()
        };
        let request = UpdateParticipantRequest {
            participant_id: "alice".into(),
            participant: Some(participant),
            ..UpdateParticipantRequest::default()
        };

        let text = format!("{request:?}");

        assert!(text.contains("MB1") && text.contains("display_name: ***"), "{text}");
        for secret in ["Dana", "+1555", "secret", "alice"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        let address = format!("{:?}", Address { proxy_address: "+15550109001".into(), ..Address::default() });
        assert!(address.contains("proxy_address: ***") && address.contains("level: \"\""), "{address}");
    }
}
