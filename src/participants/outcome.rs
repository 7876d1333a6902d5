//! What became of a create, as one replica tells the others: who was added, or Twilio's refusal.

use std::sync::Arc;

use super::Error;
use crate::ids::{ApiVersion, Segment};
use crate::proto::{Message as _, Participant};
use crate::twilio::{self, Cause, Operation};

const CREATED: u8 = b'c';
const REFUSED: u8 = b'r';
const EXISTS: u8 = b'e';
const UNKNOWN: u8 = b'u';

/// Anything but an answer of Twilio's is told as an outcome that nobody knows.
pub(super) fn encode(outcome: &Result<Participant, Error>) -> Vec<u8> {
    let (kind, text) = match outcome {
        Ok(participant) => (CREATED, participant.encode_to_vec()),
        Err(Error::Exists { id }) => (EXISTS, id.as_ref().map(Segment::as_str).unwrap_or_default().into()),
        Err(Error::Upstream(error)) => match &error.cause {
            Cause::Answered(problem) => {
                serde_json::to_vec(problem).map_or((UNKNOWN, Vec::new()), |json| (REFUSED, json))
            }
            _ => (UNKNOWN, Vec::new()),
        },
        Err(_) => (UNKNOWN, Vec::new()),
    };
    [vec![kind], text].concat()
}

/// What another build wrote, and this one cannot read, is unknown, too.
pub(super) fn decode(bytes: &[u8], version: ApiVersion) -> Result<Participant, Error> {
    let unknown = Error::OutcomeUnknown(None);
    match bytes.split_first() {
        Some((&CREATED, participant)) => Participant::decode(participant).map_err(|_| unknown),
        Some((&EXISTS, id)) => {
            let id = std::str::from_utf8(id).ok().and_then(|id| Segment::parse(id).ok());
            Err(Error::Exists { id })
        }
        Some((&REFUSED, json)) => Err(serde_json::from_slice(json).map_or(unknown, |problem| {
            let cause = Cause::Answered(Box::new(problem));
            Error::Upstream(Arc::new(twilio::Error { operation: Operation::Create, version, cause }))
        })),
        _ => Err(unknown),
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::twilio::{Problem, Subject};

    fn problem() -> impl Strategy<Value = Problem> {
        let text = || proptest::option::of(".*");
        let refusal = (400..600u16, proptest::option::of(any::<i64>()), any::<u32>());
        (refusal, ".*", text(), text()).prop_map(|((status, code, wait), id, request_id, other)| Problem {
            status: http::StatusCode::from_u16(status).unwrap(),
            code,
            subject: Subject { conversation_id: id, participant_id: String::new() },
            request_id,
            retry_after: Some(std::time::Duration::from_millis(wait.into())),
            conflicting_id: other,
        })
    }

    proptest! {
        #[test]
        fn a_participant_is_read_as_it_was_written((id, name) in (".*", ".*")) {
            let participant = Participant { id, display_name: name, ..Default::default() };
            let read = decode(&encode(&Ok(participant.clone())), ApiVersion::V1);
            prop_assert_eq!(read.unwrap(), participant);
        }

        #[test]
        fn a_refusal_is_read_as_it_was_written(problem in problem()) {
            let cause = Cause::Answered(Box::new(problem.clone()));
            let error = twilio::Error { operation: Operation::Create, version: ApiVersion::V2, cause };
            let Err(Error::Upstream(read)) = decode(&encode(&Err(error.into())), ApiVersion::V2) else {
                panic!("a refusal is read");
            };
            prop_assert_eq!((read.operation, read.version), (Operation::Create, ApiVersion::V2));
            prop_assert!(matches!(&read.cause, Cause::Answered(there) if **there == problem));
        }

        #[test]
        fn what_cannot_be_read_is_unknown_or_another(bytes: Vec<u8>) {
            let is_known = bytes.first().is_some_and(|kind| [CREATED, EXISTS, REFUSED].contains(kind));
            let read = decode(&bytes, ApiVersion::V1);
            prop_assert!(is_known || matches!(read, Err(Error::OutcomeUnknown(None))));
        }
    }

    #[test]
    fn who_is_in_the_way_is_told_and_all_else_is_unknown() {
        let id = Segment::parse("MB1").ok();
        let read = |outcome| decode(&encode(&Err(outcome)), ApiVersion::V1).unwrap_err();
        assert!(matches!(read(Error::Exists { id: id.clone() }), Error::Exists { id: there } if there == id));
        assert!(matches!(read(Error::Exists { id: None }), Error::Exists { id: None }));
        assert!(matches!(read(Error::Bug), Error::OutcomeUnknown(None)));
        let cause = Cause::TimedOut;
        let cut = twilio::Error { operation: Operation::Create, version: ApiVersion::V1, cause };
        assert!(matches!(read(cut.into()), Error::OutcomeUnknown(None)));
    }
}
