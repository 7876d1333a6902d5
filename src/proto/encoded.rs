//! Messages of the contract with parts that are encoded already.

use std::fmt;

use bytes::Bytes;

use super::ReadInfo;

/// `GetParticipantResponse` as it is written where the participant is encoded already: on the wire a message within a message
/// is its bytes.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct EncodedGetParticipantResponse {
    /// The `Participant`.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub participant: Option<Bytes>,
    /// Where the answer came from.
    #[prost(message, optional, tag = "2")]
    pub read_info: Option<ReadInfo>,
}

impl fmt::Debug for EncodedGetParticipantResponse {
    /// The participant is PII.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedGetParticipantResponse")
            .field("read_info", &self.read_info)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Address, GetParticipantResponse, Message as _, Participant};

    #[test]
    fn it_is_the_same_on_the_wire() {
        let addresses = vec![Address { address: "+15550100001".into(), ..Address::default() }];
        let participant = Participant { id: "MB1".into(), addresses, ..Participant::default() };
        for participant in [participant, Participant::default()] {
            for read_info in [None, Some(ReadInfo { cache_status: 1, fetch_time: None })] {
                let encoded = EncodedGetParticipantResponse {
                    participant: Some(participant.encode_to_vec().into()),
                    read_info,
                };
                let whole = GetParticipantResponse { participant: Some(participant.clone()), read_info };
                let told = GetParticipantResponse::decode(encoded.encode_to_vec().as_slice()).unwrap();
                assert_eq!(told, whole);
                assert!(!format!("{encoded:?}").contains("1555"));
            }
        }
    }
}
