//! What holds of every answer of Twilio, of every id in a path and of every time: `.ci/fuzz` tries a million.

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestCaseError;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::drift::Drift;
use super::http::Response;
use super::*;
use crate::ids::{is_public, is_v2_id};
use crate::proto::{self, Address, Channel, ConversationState, Message as _, ParticipantType};
use crate::wire;

/// Stands in every text that an answer holds, and nowhere in the gateway's own words. It is no part of a plain name.
const PLANTED: &str = "№";
const PLANTED_NUMBER: i64 = 5_550_100_001;

fn drift() -> Drift {
    Drift::new(Metrics::new(None).unwrap())
}

// === What Twilio may send

fn text() -> impl Strategy<Value = String> {
    let texts =
        ["", "null", "NULL", ".", "..", "{}", "alice", "+15550100001", "whatsapp:+1555", "\"\\\"", "\u{0}"];
    let any = vec(prop_oneof![2 => prop::char::range(' ', '~'), 1 => any::<char>()], 0..24);
    prop_oneof![1 => select(texts.to_vec()).prop_map(str::to_owned), 4 => any.prop_map(String::from_iter)]
}

fn moment() -> impl Strategy<Value = Timestamp> {
    let nanos = prop_oneof![Just(0), (0..1000).prop_map(|millis| millis * 1_000_000), 0..1_000_000_000];
    (-62_135_596_800_i64..=253_402_300_799, nanos).prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
}

/// Every key that one of the decoders looks at, and some that none does.
const KEYS: &[&str] = &[
    "account_sid",
    "conversation_sid",
    "chat_service_sid",
    "sid",
    "identity",
    "attributes",
    "messaging_binding",
    "type",
    "address",
    "proxy_address",
    "projected_address",
    "level",
    "name",
    "role_sid",
    "date_created",
    "date_updated",
    "url",
    "last_read_message_index",
    "last_read_timestamp",
    "participants",
    "conversations",
    "participant_messaging_binding",
    "conversation_attributes",
    "conversation_state",
    "conversation_timers",
    "date_inactive",
    "conversation_date_created",
    "meta",
    "page",
    "page_size",
    "first_page_url",
    "previous_page_url",
    "next_page_url",
    "key",
    "id",
    "conversationId",
    "accountId",
    "profileId",
    "addresses",
    "channel",
    "channelId",
    "createdAt",
    "updatedAt",
    "pageSize",
    "nextToken",
    "previousToken",
    "code",
    "message",
    "status",
    "errors",
    "new_key",
    "№",
    "+1 (555) №",
    "",
];

/// JSON of any shape, in which every text and every large number is planted.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_i64..9).prop_map(Value::from),
        Just(Value::from(PLANTED_NUMBER)),
        Just(json!(0.5)),
        text().prop_map(|text| Value::from(format!("{PLANTED}{text}"))),
        Just(Value::from("2015-12-16T22:18:37Z")),
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

/// Bytes: of JSON, of JSON with some of them changed, cut off or put in, and any.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let json = any_json().prop_map(|value| value.to_string().into_bytes());
    let damage = vec((any::<Index>(), 0_usize..6, vec(any::<u8>(), 0..3)), 1..3);
    let damaged = (any_json(), damage).prop_map(|(value, damages)| {
        let mut bytes = value.to_string().into_bytes();
        for (at, drop, put) in damages {
            let at = at.index(bytes.len() + 1);
            bytes.splice(at..(at + drop).min(bytes.len()), put);
        }
        bytes
    });
    prop_oneof![4 => json, 4 => damaged, 1 => vec(any::<u8>(), 0..60)]
}

/// The text of an object: absent pairs are left out, the order of the others is any, and so is the space between tokens.
fn object(pairs: Vec<(&str, Option<String>)>) -> impl Strategy<Value = String> + use<> {
    let pairs: Vec<_> =
        pairs.into_iter().filter_map(|(key, value)| Some(format!("\"{key}\" : {}", value?))).collect();
    (Just(pairs).prop_shuffle(), select(vec![",", " , ", ",\n\t"]))
        .prop_map(|(pairs, comma)| format!(" {{ {} }} ", pairs.join(comma)))
}

/// What an optional value looks like in JSON: a value, null, or no key at all.
fn told<T: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = T>,
    json: impl Fn(&T) -> Value,
) -> impl Strategy<Value = (Option<T>, Option<String>)> {
    (option::of(value), any::<bool>()).prop_map(move |(value, is_null)| {
        let json = value.as_ref().map(&json).or_else(|| is_null.then_some(Value::Null));
        (value, json.map(|json| json.to_string()))
    })
}

fn told_text() -> impl Strategy<Value = (String, Option<String>)> {
    told(text(), |text| json!(text)).prop_map(|(text, json)| (text.unwrap_or_default(), json))
}

fn told_time() -> impl Strategy<Value = (Option<Timestamp>, Option<String>)> {
    told(moment(), |time| json!(time.to_string()))
}

// === Answers that Twilio documents are told as they are

const V1_WORDS: [(&str, Channel); 9] = [
    ("", Channel::Unspecified),
    ("sms", Channel::Sms),
    ("SMS", Channel::Sms),
    ("whatsapp", Channel::Whatsapp),
    ("rcs", Channel::Rcs),
    ("email", Channel::Email),
    ("messenger", Channel::Messenger),
    ("gbm", Channel::Other),
    ("other", Channel::Other),
];

fn v1_binding() -> impl Strategy<Value = (Option<Address>, String)> {
    let word = told(select(V1_WORDS.to_vec()), |(word, _)| json!(word));
    let texts = (told_text(), told_text(), told_text(), told_text(), told_text());
    (word, texts).prop_flat_map(|((word, type_json), (address, proxy, projected, level, name))| {
        let (upstream_channel, channel) = word.unwrap_or_default();
        let pairs = vec![
            ("type", type_json),
            ("address", address.1),
            ("proxy_address", proxy.1),
            ("projected_address", projected.1),
            ("level", level.1),
            ("name", name.1),
        ];
        let address = Address {
            channel: channel.into(),
            upstream_channel: upstream_channel.to_owned(),
            address: address.0,
            channel_id: String::new(),
            proxy_address: proxy.0,
            projected_address: projected.0,
            level: level.0,
            display_name: name.0,
        };
        (Just((address != Address::default()).then_some(address)), object(pairs))
    })
}

/// JSON text with space between its tokens, and the same without.
fn spaced_json(value: &Value, spaced: &mut String, compact: &mut String) {
    let mut both = |text: &str| {
        spaced.push_str(text);
        spaced.push_str(" \n");
        compact.push_str(text);
    };
    match value {
        Value::Object(entries) => {
            both("{");
            for (at, (key, value)) in entries.iter().enumerate() {
                if at > 0 {
                    spaced.push_str(", ");
                    compact.push(',');
                }
                let key = Value::from(key.as_str()).to_string();
                spaced.push_str(&format!("{key}\t:\r"));
                compact.push_str(&format!("{key}:"));
                spaced_json(value, spaced, compact);
            }
            spaced.push('}');
            compact.push('}');
        }
        Value::Array(items) => {
            both("[");
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    spaced.push_str(" ,");
                    compact.push(',');
                }
                spaced_json(item, spaced, compact);
            }
            spaced.push(']');
            compact.push(']');
        }
        scalar => both(&scalar.to_string()),
    }
}

/// As text it stays as it is, byte for byte; as an object it loses the space between its tokens and nothing else.
fn v1_attributes() -> impl Strategy<Value = (String, Option<String>)> {
    let entries = vec((text(), any_json()), 0..4);
    let object = entries.prop_map(|entries| {
        let (mut spaced, mut compact) = (String::new(), String::new());
        spaced_json(&Value::Object(entries.into_iter().collect::<Map<_, _>>()), &mut spaced, &mut compact);
        (compact, Some(spaced))
    });
    prop_oneof![told_text(), object]
}

/// A v1 participant as the contract tells it, and Twilio's text of it.
fn v1_participant() -> impl Strategy<Value = (proto::Participant, String)> {
    let ids = (told_text(), told_text(), told_text(), told_text(), told_text(), told_text());
    let times = (told_time(), told_time(), told_time(), told(any::<i64>(), |index| json!(index)));
    let binding = prop_oneof![
        v1_binding().prop_map(|(address, json)| (address, Some(json))),
        select(vec![None, Some("null".to_owned())]).prop_map(|json| (None, json)),
    ];
    (ids, times, told_text(), binding, v1_attributes(), any_json()).prop_flat_map(
        |(
            (account, conversation, service, id, role, url),
            (created, updated, read, index),
            identity,
            binding,
            attributes,
            unknown,
        )| {
            let pairs = vec![
                ("account_sid", account.1),
                ("conversation_sid", conversation.1),
                ("chat_service_sid", service.1),
                ("sid", id.1),
                ("identity", identity.1),
                ("attributes", attributes.1),
                ("messaging_binding", binding.1),
                ("role_sid", role.1),
                ("date_created", created.1),
                ("date_updated", updated.1),
                ("url", url.1),
                ("last_read_message_index", index.1),
                ("last_read_timestamp", read.1),
                ("new_key", Some(unknown.to_string())),
            ];
            let chat = Some(identity.0).filter(|identity| !["", "null"].contains(&identity.as_str()));
            let chat =
                chat.map(|address| Address { channel: Channel::Chat.into(), address, ..Address::default() });
            let participant = proto::Participant {
                id: id.0,
                conversation_id: conversation.0,
                account_id: account.0,
                service_id: service.0,
                api_version: proto::ApiVersion::V1.into(),
                addresses: chat.into_iter().chain(binding.0).collect(),
                attributes: attributes.0,
                role_id: role.0,
                last_read_message_index: index.0,
                last_read_time: read.0,
                create_time: created.0,
                update_time: updated.0,
                url: url.0,
                ..proto::Participant::default()
            };
            (Just(participant), object(pairs))
        },
    )
}

const V2_CHANNELS: [(&str, Channel); 9] = [
    ("", Channel::Unspecified),
    ("VOICE", Channel::Voice),
    ("SMS", Channel::Sms),
    ("RCS", Channel::Rcs),
    ("WHATSAPP", Channel::Whatsapp),
    ("CHAT", Channel::Chat),
    ("EMAIL", Channel::Email),
    ("SYSTEM", Channel::Other),
    ("OTHER", Channel::Other),
];
const V2_TYPES: [(&str, ParticipantType); 8] = [
    ("", ParticipantType::Unspecified),
    ("HUMAN_AGENT", ParticipantType::HumanAgent),
    ("CUSTOMER", ParticipantType::Customer),
    ("AI_AGENT", ParticipantType::AiAgent),
    ("AGENT", ParticipantType::Agent),
    ("UNKNOWN", ParticipantType::Unknown),
    ("PIGEON", ParticipantType::Other),
    ("OTHER", ParticipantType::Other),
];

fn v2_address() -> impl Strategy<Value = (Address, String)> {
    let channel = told(select(V2_CHANNELS.to_vec()), |(word, _)| json!(word));
    (channel, told_text(), told_text()).prop_flat_map(|((word, word_json), address, channel_id)| {
        let (upstream_channel, channel) = word.unwrap_or_default();
        let pairs = vec![("channel", word_json), ("address", address.1), ("channelId", channel_id.1)];
        let address = Address {
            channel: channel.into(),
            upstream_channel: upstream_channel.to_owned(),
            address: address.0,
            channel_id: channel_id.0,
            ..Address::default()
        };
        (Just(address), object(pairs))
    })
}

/// A v2 participant as the contract tells it, and Twilio's text of it.
fn v2_participant() -> impl Strategy<Value = (proto::Participant, String)> {
    let kind = told(select(V2_TYPES.to_vec()), |(word, _)| json!(word));
    let texts = (told_text(), told_text(), told_text(), told_text(), told_text());
    let addresses = option::of(vec(v2_address(), 0..4));
    (kind, texts, addresses, told_time(), told_time(), any_json()).prop_flat_map(
        |(
            (kind, kind_json),
            (id, conversation, account, name, profile),
            addresses,
            created,
            updated,
            unknown,
        )| {
            let (addresses, texts): (Vec<_>, Vec<_>) = match addresses {
                None => (Vec::new(), vec!["null".to_owned()]),
                Some(addresses) => {
                    let (addresses, texts): (Vec<_>, Vec<_>) = addresses.into_iter().unzip();
                    (addresses, vec![format!("[{}]", texts.join(","))])
                }
            };
            let pairs = vec![
                ("id", id.1),
                ("conversationId", conversation.1),
                ("accountId", account.1),
                ("name", name.1),
                ("type", kind_json),
                ("profileId", profile.1),
                ("addresses", texts.into_iter().next()),
                ("createdAt", created.1),
                ("updatedAt", updated.1),
                ("newKey", Some(unknown.to_string())),
            ];
            let (upstream_type, kind) = kind.unwrap_or_default();
            let participant = proto::Participant {
                id: id.0,
                conversation_id: conversation.0,
                account_id: account.0,
                api_version: proto::ApiVersion::V2.into(),
                display_name: name.0,
                r#type: kind.into(),
                upstream_type: upstream_type.to_owned(),
                profile_id: profile.0,
                addresses,
                create_time: created.0,
                update_time: updated.0,
                ..proto::Participant::default()
            };
            (Just(participant), object(pairs))
        },
    )
}

/// What was decoded is what was meant. The hash of the content is not computed a second time.
fn check_participant(decoded: &proto::Participant, meant: proto::Participant) -> Result<(), TestCaseError> {
    prop_assert!(!decoded.etag.is_empty());
    let meant = proto::Participant { etag: decoded.etag.clone(), ..meant };
    // By their bytes: the messages' own text shows no PII, which here is what matters.
    prop_assert_eq!(decoded.encode_to_vec(), meant.encode_to_vec());
    Ok(())
}

#[test]
fn a_v1_participant_is_told_as_twilio_told_it() {
    let drift = drift();
    proptest!(|((meant, body) in v1_participant())| {
        let decoded = v1::participant(&Response::of(ApiVersion::V1, body, &drift));
        prop_assert!(decoded.is_ok(), "{decoded:?}");
        check_participant(&decoded.unwrap(), meant)?;
    });
}

#[test]
fn a_v2_participant_is_told_as_twilio_told_it() {
    let drift = drift();
    proptest!(|((meant, body) in v2_participant())| {
        let decoded = v2::participant(&Response::of(ApiVersion::V2, body, &drift));
        prop_assert!(decoded.is_ok(), "{decoded:?}");
        check_participant(&decoded.unwrap(), meant)?;
    });
}

/// Where a page begins, and v1's link to it.
fn v1_link() -> impl Strategy<Value = (Option<Cursor>, Value)> {
    let hosts =
        ["https://conversations.twilio.com", "http://evil", "//evil", "", "https://user:password@evil:1"];
    let linked = ("[0-9]{0,10}", text(), select(hosts.to_vec())).prop_map(|(page, token, host)| {
        let mut query = form_urlencoded::Serializer::new(format!("{host}/v1/x?PageSize=50&"));
        for (name, value) in [("Page", &page), ("PageToken", &token)] {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        (Some(Cursor { page, token }), Value::from(query.finish()))
    });
    let linked = linked.prop_filter("it leads somewhere", |(cursor, _)| *cursor != Some(Cursor::default()));
    prop_oneof![2 => linked, 1 => select(vec![Value::Null, json!("")]).prop_map(|none| (None, none))]
}

#[test]
fn a_v1_page_is_told_as_twilio_told_it() {
    let drift = drift();
    let participants = vec(v1_participant(), 0..3);
    proptest!(|(participants in participants, next in v1_link(), previous in v1_link(), page in 0_u32..3)| {
        let (meant, texts): (Vec<_>, Vec<_>) = participants.into_iter().unzip();
        let meta = json!({ "page": page, "next_page_url": next.1, "previous_page_url": previous.1, "key": "participants" });
        let body = format!(r#"{{"meta":{meta},"participants":[{}]}}"#, texts.join(","));
        let decoded = v1::page(&Response::of(ApiVersion::V1, body, &drift));
        prop_assert!(decoded.is_ok(), "{decoded:?}");
        let decoded = decoded.unwrap();
        prop_assert_eq!(decoded.next, next.0);
        prop_assert_eq!(decoded.previous, previous.0.filter(|_| page > 0));
        prop_assert_eq!(decoded.items.len(), meant.len());
        for (decoded, meant) in decoded.items.iter().zip(meant) {
            check_participant(decoded, meant)?;
        }
    });
}

#[test]
fn a_v2_page_is_told_as_twilio_told_it() {
    let drift = drift();
    let participants = vec(v2_participant(), 0..3);
    proptest!(|(participants in participants, next in told_text(), previous in told_text())| {
        let (meant, texts): (Vec<_>, Vec<_>) = participants.into_iter().unzip();
        let null = || "null".to_owned();
        let (next_json, previous_json) = (next.1.unwrap_or_else(null), previous.1.unwrap_or_else(null));
        let meta = format!(r#"{{"nextToken":{next_json},"previousToken":{previous_json},"pageSize":50}}"#);
        let body = format!(r#"{{"meta":{meta},"participants":[{}]}}"#, texts.join(","));
        let decoded = v2::page(&Response::of(ApiVersion::V2, body, &drift));
        prop_assert!(decoded.is_ok(), "{decoded:?}");
        let decoded = decoded.unwrap();
        let cursor = |token: String| (!token.is_empty()).then(|| Cursor { page: String::new(), token });
        prop_assert_eq!(decoded.next, cursor(next.0));
        prop_assert_eq!(decoded.previous, cursor(previous.0));
        prop_assert_eq!(decoded.items.len(), meant.len());
        for (decoded, meant) in decoded.items.iter().zip(meant) {
            check_participant(decoded, meant)?;
        }
    });
}

const STATES: [(&str, ConversationState); 6] = [
    ("", ConversationState::Unspecified),
    ("active", ConversationState::Active),
    ("inactive", ConversationState::Inactive),
    ("CLOSED", ConversationState::Closed),
    ("initializing", ConversationState::Initializing),
    ("archived", ConversationState::Other),
];

fn v1_conversation() -> impl Strategy<Value = (proto::ParticipantConversation, String)> {
    let texts = (told_text(), told_text(), told_text(), told_text(), told_text(), told_text());
    let times = (told_time(), told_time(), told_time(), told_time());
    let state = told(select(STATES.to_vec()), |(word, _)| json!(word));
    let about = (option::of(v1_binding()), v1_attributes(), state, any::<bool>());
    (texts, times, about).prop_flat_map(|(texts, times, (binding, attributes, state, has_timers))| {
        let (participant, user, conversation, unique, friendly, created_by) = texts;
        let (created, updated, inactive, closed) = times;
        let (binding, binding_json) = binding.unwrap_or((None, "null".into()));
        let (word, state_code) = state.0.unwrap_or_default();
        let timers = [("date_inactive", &inactive.1), ("date_closed", &closed.1)];
        let timers = timers.map(|(key, time)| format!("\"{key}\":{}", time.as_deref().unwrap_or("null")));
        let pairs = vec![
            ("participant_sid", participant.1),
            ("participant_user_sid", user.1),
            ("participant_messaging_binding", Some(binding_json)),
            ("conversation_sid", conversation.1),
            ("conversation_unique_name", unique.1),
            ("conversation_friendly_name", friendly.1),
            ("conversation_attributes", attributes.1),
            ("conversation_date_created", created.1),
            ("conversation_date_updated", updated.1),
            ("conversation_created_by", created_by.1),
            ("conversation_state", state.1),
            ("conversation_timers", has_timers.then(|| format!("{{{}}}", timers.join(",")))),
            ("links", Some("{}".into())),
        ];
        let meant = proto::ParticipantConversation {
            participant_id: participant.0,
            user_id: user.0,
            addresses: binding.into_iter().collect(),
            conversation_id: conversation.0,
            unique_name: unique.0,
            friendly_name: friendly.0,
            attributes: attributes.0,
            state: state_code.into(),
            upstream_state: word.to_owned(),
            inactive_time: inactive.0.filter(|_| has_timers),
            close_time: closed.0.filter(|_| has_timers),
            create_time: created.0,
            update_time: updated.0,
            created_by: created_by.0,
            ..proto::ParticipantConversation::default()
        };
        (Just(meant), object(pairs))
    })
}

#[test]
fn a_persons_conversations_are_told_as_twilio_told_them() {
    let drift = drift();
    proptest!(|(conversations in vec(v1_conversation(), 0..3), next in v1_link())| {
        let (meant, texts): (Vec<_>, Vec<_>) = conversations.into_iter().unzip();
        let meta = json!({ "page": 0, "next_page_url": next.1, "key": "conversations" });
        let body = format!(r#"{{"meta":{meta},"conversations":[{}]}}"#, texts.join(","));
        let decoded = v1::conversations(&Response::of(ApiVersion::V1, body, &drift));
        prop_assert!(decoded.is_ok(), "{decoded:?}");
        let decoded = decoded.unwrap();
        prop_assert_eq!((decoded.items, decoded.next), (meant, next.0));
    });
}

// === Any answer is one of the contract, or an error that names a key and nothing else

fn check_answer<T>(result: Result<T, Error>) -> Result<(), TestCaseError> {
    let Err(error) = result else { return Ok(()) };
    let told = format!("{error} {error:?}");
    prop_assert!(!told.contains(PLANTED) && !told.contains(&PLANTED_NUMBER.to_string()), "{told}");
    let Cause::Broken(broken) = error.cause else {
        return Err(TestCaseError::fail(told));
    };
    prop_assert!((1..=200).contains(&broken.what.len()), "{told}");
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "_.[] ".contains(c);
    prop_assert!(broken.what.chars().all(is_of_a_name), "{told}");
    Ok(())
}

#[test]
fn any_body_is_a_v1_answer_or_an_error_that_names_a_key() {
    let drift = drift();
    proptest!(|(body in any_body())| {
        let response = Response::of(ApiVersion::V1, body, &drift);
        check_answer(v1::participant(&response))?;
        check_answer(v1::page(&response))?;
        check_answer(v1::conversations(&response))?;
    });
}

#[test]
fn any_body_is_a_v2_answer_or_an_error_that_names_a_key() {
    let drift = drift();
    proptest!(|(body in any_body())| {
        let response = Response::of(ApiVersion::V2, body, &drift);
        check_answer(v2::participant(&response))?;
        check_answer(v2::page(&response))?;
    });
}

// === Error bodies

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let names =
        ["retry-after", "twilio-request-id", "x-conflicting-resource-id", "twilio-concurrent-requests"];
    let value = prop_oneof![
        vec(any::<u8>(), 0..20),
        "[0-9]{1,22}".prop_map(String::into_bytes),
        "(CH|MB)[0-9a-f]{32}".prop_map(String::into_bytes),
    ];
    vec((select(names.to_vec()), value), 0..4).prop_map(|headers| {
        let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).ok();
        let named =
            headers.iter().filter_map(|(name, bytes)| Some((HeaderName::from_static(name), value(bytes)?)));
        named.collect()
    })
}

fn any_status() -> impl Strategy<Value = StatusCode> {
    (400_u16..600).prop_map(|status| StatusCode::from_u16(status).unwrap())
}

proptest! {
    #[test]
    fn any_error_answer_tells_a_code_and_ids_and_none_of_its_text(
        status in any_status(), headers in any_headers(), body in any_body(),
    ) {
        let problem = Problem::read(status, &headers, &body, Subject::default());
        prop_assert_eq!(problem.status, status);
        prop_assert!(problem.conflicting_id.as_deref().is_none_or(is_public), "{:?}", problem);
        prop_assert!(problem.request_id.as_deref().is_none_or(is_v2_id), "{:?}", problem);
        let told = format!("{problem:?}");
        prop_assert!(!told.contains(PLANTED), "{}", told);
    }

    #[test]
    fn an_error_body_tells_its_code_in_whichever_form(code in any::<i64>(), word in text(), form in 0..4) {
        let body = match form {
            0 => json!({ "code": code, "message": word, "more_info": word, "status": 400, "details": { "x": word } }),
            1 => json!({ "type": word, "title": word, "status": 400, "code": code, "errors": [{ "detail": word }] }),
            2 => json!({ "code": code, "message": word, "params": [word], "moreInfo": word, "status": 400 }),
            _ => json!({ "errors": [{ "code": code, "message": word }, { "code": 1 }] }),
        };
        let body = body.to_string();
        let problem = Problem::read(StatusCode::BAD_REQUEST, &HeaderMap::new(), body.as_bytes(), Subject::default());
        prop_assert_eq!(problem.code, Some(code));
    }

    #[test]
    fn a_wait_is_the_seconds_that_are_told(seconds in any::<u64>()) {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("retry-after"), HeaderValue::from(seconds))]);
        let problem = Problem::read(StatusCode::TOO_MANY_REQUESTS, &headers, b"", Subject::default());
        prop_assert_eq!(problem.retry_after, Some(Duration::from_secs(seconds)));
    }
}

// === Ids in a path

fn segment() -> impl Strategy<Value = Segment> {
    let nasty =
        ["%2e%2e", "..%2f", "...", "a/b", "\\..\\", "?x#y;z", "//evil", "%", "%25", "+", " ", "@:", "é😀"];
    let text = prop_oneof![1 => select(nasty.to_vec()).prop_map(str::to_owned), 3 => text()];
    text.prop_filter_map("an id", |text| Segment::parse(&text).ok())
}

proptest! {
    #[test]
    fn the_path_has_one_segment_for_each_id_and_each_decodes_to_it(
        conversation in segment(), participant in option::of(segment()), is_v1 in any::<bool>(), is_below in any::<bool>(),
    ) {
        let version = if is_v1 { ApiVersion::V1 } else { ApiVersion::V2 };
        let account = AccountId::parse(&format!("AC{}", "0".repeat(32))).unwrap();
        let conversation = Conversation { account, service: None, version, id: conversation };
        let route = if is_v1 { v1::route } else { v2::route };
        let base = Url::parse(if is_below { "https://h:1/base/" } else { "https://h:1" }).unwrap();
        let url = http::url(&base, &route(&conversation, participant.as_ref()).segments).unwrap();
        let mut expected = vec![version.as_str(), "Conversations", conversation.id.as_str(), "Participants"];
        expected.extend(participant.as_ref().map(Segment::as_str));
        // As whoever receives it reads it.
        let received = Url::parse(url.as_str()).unwrap();
        let segments = received.path_segments().unwrap().skip(usize::from(is_below));
        let decoded: Vec<_> = segments.map(|segment| percent_decode_str(segment).decode_utf8().unwrap()).collect();
        prop_assert_eq!(decoded, expected);
        prop_assert_eq!((received.host_str(), received.port()), (Some("h"), Some(1)));
        prop_assert_eq!((received.query(), received.fragment(), received.username()), (None, None, ""));
    }
}

// === Times

proptest! {
    #[test]
    fn a_time_is_the_moment_that_its_text_means(time in moment(), minutes in -1439_i32..1440) {
        prop_assert_eq!(wire::timestamp(&time.to_string()), Some(time));
        // The same moment on another clock.
        let there = Timestamp { seconds: time.seconds + i64::from(minutes) * 60, ..time };
        prop_assume!((-62_135_596_800..=253_402_300_799).contains(&there.seconds));
        let sign = if minutes < 0 { '-' } else { '+' };
        let offset = format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60);
        let text = there.to_string().replace('Z', &offset);
        prop_assert_eq!(wire::timestamp(&text), Some(time), "{}", text);
    }

    #[test]
    fn any_text_is_a_time_of_the_contract_or_none(
        text in prop_oneof![text(), "[0-9]{1,5}-[0-9]{1,2}-[0-9]{1,3}[Tt ]?[0-9:.,+Zz-]{0,24}",
            // The first and the last moments, which an offset can move out of range.
            "(-0001|0000|0001|9999|10000|292277026596)-(01-01|12-31)T(00|23):59:59(Z|[+-](00|23):59)", "[-+0-9TtZz:. ]{0,40}"],
    ) {
        if let Some(time) = wire::timestamp(&text) {
            prop_assert!((-62_135_596_800..=253_402_300_799).contains(&time.seconds), "{}", text);
            prop_assert!((0..1_000_000_000).contains(&time.nanos), "{}", text);
            prop_assert_eq!(wire::timestamp(&time.to_string()), Some(time));
        }
    }
}
