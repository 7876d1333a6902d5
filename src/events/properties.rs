//! What holds of every delivery: `.ci/fuzz` tries a million.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::*;

/// Stands in every text that a delivery holds, and nowhere in the gateway's own words.
const PLANTED: &str = "№";

/// Every key that one of the decoders looks at, and some that none does.
const KEYS: &[&str] = &[
    "type",
    "id",
    "time",
    "data",
    "test_id",
    "AccountSid",
    "ParticipantSid",
    "ConversationSid",
    "Identity",
    "RoleSid",
    "Attributes",
    "DateCreated",
    "DateRemoved",
    "MessagingBinding",
    "Type",
    "ProjectedAddress",
    "eventType",
    "timestamp",
    "conversationId",
    "accountId",
    "addresses",
    "channel",
    "createdAt",
    "№",
    "",
];

const TYPES: &[&str] = &[
    "com.twilio.conversations.participant.added",
    "com.twilio.conversations.participant.updated",
    "com.twilio.conversations.participant.removed",
    "com.twilio.eventstreams.test-event",
    "PARTICIPANT_ADDED",
    "PARTICIPANT_REMOVED",
    "2015-12-16T22:18:37Z",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        Just(json!(0.5)),
        "\\PC{0,8}".prop_map(|text| Value::from(format!("{PLANTED}{text}"))),
        select(TYPES.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        let entries = vec((select(KEYS.to_vec()), inner.clone()), 0..6);
        prop_oneof![
            1 => vec(inner, 0..4).prop_map(Value::from),
            3 => entries.prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

/// An event of one of the types, with any data.
fn any_event() -> impl Strategy<Value = Value> {
    (select(TYPES.to_vec()), any_json(), any::<bool>()).prop_map(|(kind, data, is_text)| {
        let data = if is_text { Value::from(data.to_string()) } else { data };
        let key = if kind.starts_with("com") { "type" } else { "eventType" };
        Value::Object(Map::from_iter([(key.to_owned(), kind.into()), ("data".to_owned(), data)]))
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let json = prop_oneof![any_json(), any_event(), vec(any_event(), 0..4).prop_map(Value::from)];
    let bytes = (json, any::<prop::sample::Index>(), vec(any::<u8>(), 0..3), any::<bool>()).prop_map(
        |(json, at, put, is_damaged)| {
            let mut bytes = json.to_string().into_bytes();
            if is_damaged {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, put);
            }
            bytes
        },
    );
    prop_oneof![9 => bytes, 1 => vec(any::<u8>(), 0..64)]
}

fn text() -> impl Strategy<Value = Option<String>> {
    option::of("\\PC{0,12}")
}

fn moment() -> impl Strategy<Value = Option<Timestamp>> {
    let moment = (-62_135_596_800_i64..=253_402_300_799, 0..1_000_000_000);
    option::of(moment.prop_map(|(seconds, nanos)| Timestamp { seconds, nanos }))
}

fn spelled(time: Option<Timestamp>) -> Value {
    time.map_or(Value::Null, |time| time.to_string().into())
}

fn read(json: &Value, is_data_text: bool) -> ParticipantEvent {
    let mut json = json.clone();
    if is_data_text {
        json["data"] = json["data"].to_string().into();
    }
    match Delivery::decode(json.to_string().as_bytes(), "id").events.remove(0) {
        Incoming::Participant { event, .. } => *event,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn no_body_is_a_panic_or_in_the_name_of_what_is_wrong(body in any_body()) {
        for event in Delivery::decode(&body, "").events {
            if let Incoming::Undecodable(Undecodable(key)) = event {
                prop_assert!(!key.contains(PLANTED) && key.len() < 64, "{}", key);
            }
        }
    }

    #[test]
    fn a_cloud_event_is_told_as_it_is(
        (id, account, conversation, participant, role) in (text(), text(), text(), text(), text()),
        (time, created, updated) in (moment(), moment(), moment()),
        (address, proxy) in ("[^\\[]{1,12}", text()),
        is_data_text: bool,
    ) {
        let json = json!({
            "type": "com.twilio.conversations.participant.updated", "id": id, "time": spelled(time),
            "data": {
                "AccountSid": account, "ConversationSid": conversation, "ParticipantSid": participant,
                "RoleSid": role, "DateCreated": spelled(created), "DateUpdated": spelled(updated),
                "MessagingBinding": { "Address": address, "ProxyAddress": proxy, "ProjectedAddress": address },
            },
        });
        let event = read(&json, is_data_text);
        let told = event.participant.unwrap();
        prop_assert_eq!(event.id, id.unwrap_or_default());
        prop_assert_eq!(event.event_time, time.or(updated).or(created));
        prop_assert_eq!((told.create_time, told.update_time), (created, updated));
        let ids = [account, conversation, participant, role].map(Option::unwrap_or_default);
        prop_assert_eq!([told.account_id, told.conversation_id, told.id, told.role_id], ids);
        let [binding] = &told.addresses[..] else { panic!("one address") };
        prop_assert_eq!((&binding.address, &binding.projected_address), (&address, &address));
        prop_assert_eq!(&binding.proxy_address, &proxy.unwrap_or_default());
    }

    #[test]
    fn a_callback_is_told_as_it_is(
        (account, conversation, participant, name) in (text(), text(), text(), text()),
        (time, created, updated) in (moment(), moment(), moment()),
        addresses in vec("\\PC{0,12}", 0..4),
        is_data_text: bool,
    ) {
        let json = json!({
            "eventType": "PARTICIPANT_ADDED", "timestamp": spelled(time),
            "data": {
                "accountId": account, "conversationId": conversation, "id": participant, "name": name,
                "createdAt": spelled(created), "updatedAt": spelled(updated),
                "addresses": addresses.iter().map(|address| json!({ "address": address })).collect::<Vec<_>>(),
            },
        });
        let event = read(&json, is_data_text);
        let told = event.participant.unwrap();
        prop_assert_eq!(event.event_time, time.or(updated).or(created));
        prop_assert_eq!((told.create_time, told.update_time), (created, updated));
        let ids = [account, conversation, participant, name].map(Option::unwrap_or_default);
        prop_assert_eq!([told.account_id, told.conversation_id, told.id, told.display_name], ids);
        prop_assert_eq!(told.addresses.into_iter().map(|one| one.address).collect::<Vec<_>>(), addresses);
    }
}
