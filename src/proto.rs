//! The generated contract `participant.v1`: messages, service, client, descriptor set, and a `Debug` that shows no PII.
//!
//! The proto files are the documentation; nothing is added here. These messages are also the gateway's internal model.

mod codec;
mod encoded;

use std::fmt;

// The generated client names no transport, and prost writes the comments of the proto files as they are.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
mod generated {
    tonic::include_proto!("participant.v1");
    use super::Redacted;
    include!(concat!(env!("OUT_DIR"), "/redacted_debug.rs"));
}

pub use codec::ParticipantCodec;
pub use encoded::EncodedGetParticipantResponse;
pub use generated::*;
/// Encoding and decoding of the messages.
pub use prost::Message;

/// The descriptors of `participant.v1` and all that it imports, comments included, encoded for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));

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
    use super::*;

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
