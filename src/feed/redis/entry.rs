//! What stands in the stream. An event as it is told, PII included; of a write only where it was.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::redis::streams::StreamId;
use ::redis::{ErrorKind, FromRedisValue as _, RedisError, Value};

use crate::feed::{Event, Notice, Position};
use crate::ids::{AccountId, ApiVersion, Segment};
use crate::proto::{Message as _, ParticipantEvent};

/// An entry of the stream.
#[derive(Debug, PartialEq)]
pub(super) enum Entry {
    Event(Arc<Event>),
    Notice {
        /// The replica that sent it.
        from: String,
        notice: Notice,
    },
    /// What came before it was lost: in Redis, where the reader's script adds it, or at a source of events.
    Gap,
    /// What this build cannot read, such as an entry of a later one.
    Unknown,
}

type Fields = Vec<(&'static str, Vec<u8>)>;

pub(super) fn of_event(event: &Event) -> Fields {
    let Event { account, version, event } = event;
    vec![
        ("kind", "event".into()),
        ("account", account.as_str().into()),
        ("version", version.to_string().into()),
        ("event", event.encode_to_vec()),
    ]
}

pub(super) fn of_notice(from: &str, notice: &Notice) -> Fields {
    let mut fields: Fields = vec![("from", from.into())];
    match notice {
        Notice::Written { account, conversation, people } => {
            fields.push(("kind", "written".into()));
            fields.push(("account", account.as_str().into()));
            fields.push(("conversation", conversation.as_str().into()));
            fields.push(("people", people.to_string().into()));
        }
        Notice::Delivered { account, version } => {
            fields.push(("kind", "delivered".into()));
            fields.push(("account", account.as_str().into()));
            fields.push(("version", version.to_string().into()));
        }
        Notice::Followed { behind } => {
            fields.push(("kind", "followed".into()));
            fields.push(("behind", behind.as_millis().to_string().into()));
        }
        Notice::Everything => fields.push(("kind", "everything".into())),
    }
    fields
}

pub(super) fn of_gap() -> Fields {
    vec![("kind", "gap".into())]
}

impl Entry {
    pub(super) fn decode(fields: &HashMap<String, Value>) -> Self {
        Self::known(fields).unwrap_or(Self::Unknown)
    }

    fn known(fields: &HashMap<String, Value>) -> Option<Self> {
        let bytes = |name: &str| Vec::<u8>::from_redis_value(fields.get(name)?.clone()).ok();
        let text = |name: &str| String::from_utf8(bytes(name)?).ok();
        let account = || AccountId::parse(&text("account")?);
        let version = || match text("version")?.as_str() {
            "v1" => Some(ApiVersion::V1),
            "v2" => Some(ApiVersion::V2),
            _ => None,
        };
        let notice = match text("kind")?.as_str() {
            "event" => {
                let event = ParticipantEvent::decode(bytes("event")?.as_slice()).ok()?;
                let event = Event { account: account()?, version: version()?, event };
                return Some(Self::Event(Arc::new(event)));
            }
            "gap" => return Some(Self::Gap),
            "written" => Notice::Written {
                account: account()?,
                conversation: Segment::parse(&text("conversation")?).ok()?,
                people: text("people")?.parse().ok()?,
            },
            "delivered" => Notice::Delivered { account: account()?, version: version()? },
            "followed" => Notice::Followed { behind: Duration::from_millis(text("behind")?.parse().ok()?) },
            "everything" => Notice::Everything,
            _ => return None,
        };
        Some(Self::Notice { from: text("from")?, notice })
    }
}

/// The place and the content of an entry.
pub(super) fn read(entry: &StreamId) -> Result<(Position, Entry), RedisError> {
    Ok((position(&entry.id)?, Entry::decode(&entry.map)))
}

/// Bytes of its values.
pub(super) fn size(entry: &StreamId) -> usize {
    let size = |value: &Value| match value {
        Value::BulkString(bytes) => bytes.len(),
        _ => 0,
    };
    entry.map.values().map(size).sum()
}

pub(super) fn position(id: &str) -> Result<Position, RedisError> {
    id.parse().map_err(|_| (ErrorKind::UnexpectedReturnType, "no id of an entry").into())
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::Participant;

    fn stored(fields: Fields) -> HashMap<String, Value> {
        fields.into_iter().map(|(name, value)| (name.to_owned(), Value::BulkString(value))).collect()
    }

    fn account() -> AccountId {
        AccountId::parse("AC00000000000000000000000000000000").unwrap()
    }

    fn version() -> impl Strategy<Value = ApiVersion> {
        prop_oneof![Just(ApiVersion::V1), Just(ApiVersion::V2)]
    }

    fn notice() -> impl Strategy<Value = Notice> {
        let written = (any::<bool>(), "[a-z0-9]{1,40}").prop_map(|(people, id)| Notice::Written {
            account: account(),
            conversation: Segment::parse(&id).unwrap(),
            people,
        });
        let delivered = version().prop_map(|version| Notice::Delivered { account: account(), version });
        let followed =
            any::<u64>().prop_map(|millis| Notice::Followed { behind: Duration::from_millis(millis) });
        prop_oneof![written, delivered, followed, Just(Notice::Everything)]
    }

    proptest! {
        #[test]
        fn an_event_is_read_as_it_was_written(
            (id, name, kind, version) in (".*", ".*", 0..5i32, version()),
        ) {
            let participant = Participant { display_name: name, ..Participant::default() };
            let event = ParticipantEvent { id, r#type: kind, participant: Some(participant), ..Default::default() };
            let event = Event { account: account(), version, event };
            prop_assert_eq!(Entry::decode(&stored(of_event(&event))), Entry::Event(Arc::new(event)));
        }

        #[test]
        fn a_notice_is_read_as_it_was_written((from, notice) in ("[a-z]*", notice())) {
            let entry = Entry::Notice { from: from.clone(), notice: notice.clone() };
            prop_assert_eq!(Entry::decode(&stored(of_notice(&from, &notice))), entry);
        }

        #[test]
        fn what_is_cut_or_altered_is_read_as_another_or_not_at_all(
            (notice, at, value) in (notice(), any::<prop::sample::Index>(), any::<Vec<u8>>()),
        ) {
            let mut fields = of_notice("x", &notice);
            let at = at.index(fields.len());
            fields[at].1 = value;
            Entry::decode(&stored(fields.clone()));
            fields.remove(at);
            prop_assert_eq!(Entry::decode(&stored(fields)), Entry::Unknown);
        }
    }

    #[test]
    fn a_gap_is_read_as_one() {
        assert_eq!(Entry::decode(&stored(of_gap())), Entry::Gap);
    }
}
