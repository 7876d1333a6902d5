use prost_types::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::proto::{Address, Channel, Participant, ParticipantEventType, ParticipantType};

const ACCOUNT: &str = "AC00000000000000000000000000000000";
const REMOVED: &str = include_str!("../../tests/fixtures/events/removed.json");

fn decode(json: &Value) -> Incoming {
    let mut events = Delivery::decode(json.to_string().as_bytes(), "token-1").events;
    assert_eq!(events.len(), 1);
    events.remove(0)
}

fn event(json: &Value) -> (Option<AccountId>, ParticipantEvent) {
    match decode(json) {
        Incoming::Participant { account, event } => (account, *event),
        other => panic!("{other:?}"),
    }
}

fn undecodable(json: &Value) -> String {
    match decode(json) {
        Incoming::Undecodable(Undecodable(key)) => key,
        other => panic!("{other:?}"),
    }
}

fn cloud_event(data: &Value) -> Value {
    json!({
        "specversion": "1.0", "type": "com.twilio.conversations.participant.updated", "source": "/v1",
        "id": "EZ1", "time": "2025-01-02T00:00:00.123Z", "datacontenttype": "application/json",
        "dataschema": "https://events-schemas.twilio.com/Conversations.ParticipantUpdated/1.json", "data": data,
    })
}

fn callback(data: &Value) -> Value {
    json!({ "eventType": "PARTICIPANT_UPDATED", "timestamp": "2025-01-02T00:00:00.123456789Z", "data": data })
}

fn at(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

/// 2025-01-01T00:00:00Z.
const NEW_YEAR: i64 = 1_735_689_600;

#[test]
fn twilios_sample_is_told_though_its_sids_are_short_and_a_date_is_its_content_type() {
    let (account, event) = event(&serde_json::from_str(REMOVED).unwrap());
    assert_eq!(account, None, "the sample's account is a character short");
    let address = |channel: Channel, word: &str, address: &str| Address {
        channel: channel.into(),
        upstream_channel: word.into(),
        address: address.into(),
        ..Address::default()
    };
    let participant = Participant {
        id: "ACe95cfd541a925a3337fec19a0200009".into(),
        conversation_id: "CHee95cfd541a925a3337fec19a0200009".into(),
        account_id: "ACe95cfd541a925a3337fec19a0200009".into(),
        api_version: crate::proto::ApiVersion::V1.into(),
        addresses: vec![
            address(Channel::Chat, "", "FX0000000000000000000000000000001"),
            Address {
                proxy_address: "whatsapp:+11234567890".into(),
                projected_address: "whatsapp:+12345678901".into(),
                level: "cc".into(),
                display_name: "John Doe".into(),
                ..address(Channel::Sms, "SMS", "whatsapp:+14567890123")
            },
        ],
        role_id: "RLe95cfd541a925a3337fec19a0200009".into(),
        create_time: at(NEW_YEAR, 0),
        update_time: at(NEW_YEAR + 1, 0),
        ..Participant::default()
    };
    let expected = ParticipantEvent {
        id: "NO00000000000000000000000001".into(),
        r#type: ParticipantEventType::Removed.into(),
        participant: Some(participant),
        event_time: at(NEW_YEAR + 60, 0),
        remove_time: at(NEW_YEAR + 60, 0),
    };
    assert_eq!(event, expected);
}

#[test]
fn a_cloud_event_is_read_whatever_its_data_looks_like() {
    let data = json!({
        "AccountSid": ACCOUNT, "ParticipantSid": "MB1", "ConversationSid": "CH1", "Identity": "null",
        "RoleSid": null, "Attributes": { "b": "1", "a": "2" }, "DateCreated": "2025-01-01T00:00:00+00:00",
        "MessagingBinding": null, "New": [1],
    });
    let text = Value::from(data.to_string());
    let (account, from_object) = event(&cloud_event(&data));
    assert_eq!(account, AccountId::parse(ACCOUNT));
    assert_eq!(from_object, event(&cloud_event(&text)).1);
    let participant = from_object.participant.unwrap();
    assert_eq!((participant.attributes.as_str(), participant.addresses.len()), (r#"{"a":"2","b":"1"}"#, 0));
    assert_eq!(from_object.event_time, at(NEW_YEAR + 86400, 123_000_000));
    assert_eq!(participant.etag, "");
}

#[test]
fn without_a_time_that_can_be_read_the_data_tells_when_it_happened() {
    let data = json!({ "DateCreated": "2025-01-01T00:00:00Z", "DateUpdated": "2025-01-01T00:00:05Z" });
    for time in [Value::Null, "".into(), "yesterday".into()] {
        let mut json = cloud_event(&data);
        json["time"] = time;
        assert_eq!(event(&json).1.event_time, at(NEW_YEAR + 5, 0));
    }
    let mut json = callback(&json!({ "createdAt": "2025-01-01T00:00:00Z" }));
    json.as_object_mut().unwrap().remove("timestamp");
    assert_eq!(event(&json).1.event_time, at(NEW_YEAR, 0));
}

#[test]
fn a_projected_address_loses_the_brackets_of_a_list_of_one() {
    for (told, read) in [
        ("[whatsapp:+1]", "whatsapp:+1"),
        ("whatsapp:+1", "whatsapp:+1"),
        ("[]", ""),
        ("[+1,+2]", "[+1,+2]"),
        ("[[+1]]", "[[+1]]"),
    ] {
        let data = json!({ "MessagingBinding": { "Type": "sms", "ProjectedAddress": told } });
        let (_, event) = event(&cloud_event(&data));
        assert_eq!(event.participant.unwrap().addresses[0].projected_address, read);
    }
}

#[test]
fn a_callback_is_read_as_v2s_participant() {
    let data = json!({
        "id": "p1", "conversationId": "c1", "accountId": ACCOUNT, "name": "Noor", "type": "ROBOT",
        "profileId": null, "createdAt": "2025-01-01T00:00:00Z", "newer": {},
        "addresses": [{ "channel": "SMS", "address": "+1", "channelId": null }],
    });
    let (account, event) = event(&callback(&data));
    let participant = event.participant.unwrap();
    assert_eq!((account, event.id.as_str()), (AccountId::parse(ACCOUNT), "token-1"));
    assert_eq!(event.event_time, at(NEW_YEAR + 86400, 123_456_789));
    assert_eq!((participant.id.as_str(), participant.display_name.as_str()), ("p1", "Noor"));
    assert_eq!((participant.r#type(), participant.upstream_type.as_str()), (ParticipantType::Other, "ROBOT"));
    assert_eq!(participant.addresses[0].channel(), Channel::Sms);
}

#[test]
fn what_is_about_something_else_is_told_apart() {
    let mut message = cloud_event(&json!({ "Body": "hello" }));
    message["type"] = "com.twilio.conversations.message.added".into();
    assert_eq!(decode(&message), Incoming::UnknownType);
    assert_eq!(decode(&json!({ "eventType": "COMMUNICATION_CREATED", "data": 1 })), Incoming::UnknownType);

    let id = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    let tested = |data: Value| {
        let mut test = cloud_event(&data);
        test["type"] = "com.twilio.eventstreams.test-event".into();
        decode(&test)
    };
    assert_eq!(tested(json!({ "test_id": id })), Incoming::Test { id: id.parse().ok() });
    for data in [json!({ "test_id": "+15550100001" }), json!({ "test_id": 1 }), json!(null)] {
        assert_eq!(tested(data), Incoming::Test { id: None });
    }
}

#[test]
fn what_cannot_be_read_is_told_by_its_key() {
    for (json, key) in [
        (json!(1), "(the event)"),
        (json!({}), "type"),
        (json!({ "type": 1 }), "type"),
        (json!({ "eventType": 1 }), "eventType"),
        (cloud_event(&Value::Null), "data"),
        (cloud_event(&json!([1])), "data"),
        (cloud_event(&json!("no JSON")), "data"),
        (cloud_event(&json!({ "Identity": 5 })), "data.Identity"),
        (cloud_event(&json!({ "Attributes": 5 })), "data.Attributes"),
        (cloud_event(&json!({ "DateUpdated": "+1555" })), "data.DateUpdated"),
        (cloud_event(&json!({ "MessagingBinding": { "Type": {} } })), "data.MessagingBinding.Type"),
        (callback(&json!({ "addresses": [{}, { "channel": 1 }] })), "data.addresses[1].channel"),
    ] {
        assert_eq!(undecodable(&json), key, "{json}");
    }
    for body in ["", "no JSON", "{", "[1", "\u{1}", "[]x"] {
        let delivery = Delivery::decode(body.as_bytes(), "");
        assert!(matches!(delivery.events[..], [Incoming::Undecodable(_)]), "{body:?}");
    }
    assert!(matches!(Delivery::decode(b"[\"\xff\"]", "").events[..], [Incoming::Undecodable(_)]));
}

#[test]
fn a_batch_is_read_one_by_one() {
    let batch =
        json!([cloud_event(&json!({})), 1, cloud_event(&json!({ "Identity": 1 })), cloud_event(&json!({}))]);
    let Delivery { source, events } = Delivery::decode(batch.to_string().as_bytes(), "");
    let readable: Vec<_> = events.iter().map(|event| matches!(event, Incoming::Participant { .. })).collect();
    assert_eq!((source, readable), (Source::Webhook, vec![true, false, false, true]));
    assert!(Delivery::decode(b"[]", "").events.is_empty());
}
