//! What holds of every request: it becomes an intent that the version can carry, or violations that repeat nothing of it.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use prost_types::{FieldMask, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::ids::{AccountId, MAX_ID_CHARS, Violation};
use crate::proto::{Address, Channel, Message as _, Participant};

/// Stands in every text that a caller sends.
const PLANTED: &str = "№";

fn accounts() -> Accounts {
    Accounts::new(AccountId::parse(&format!("AC{}", "0".repeat(32))).unwrap(), [])
}

fn version() -> impl Strategy<Value = ApiVersion> {
    select(vec![ApiVersion::V1, ApiVersion::V2])
}

fn text() -> impl Strategy<Value = String> {
    let any = vec(prop_oneof![3 => prop::char::range(' ', '~'), 1 => any::<char>()], 0..12);
    let long = select(vec![253_usize, 254, 255, 256, 257]).prop_map(|chars| "é".repeat(chars));
    let known =
        ["", "null", "whatsapp:+1555", "rcs:x", "a@b.c", "SMS", "CHAT", "pigeon", "{}"].map(str::to_owned);
    prop_oneof![
        3 => select(known.to_vec()),
        3 => any.prop_map(|text| format!("{PLANTED}{}", String::from_iter(text))),
        1 => long,
    ]
}

fn address() -> impl Strategy<Value = Address> {
    let channel = prop_oneof![4 => 0..9_i32, 1 => any::<i32>()];
    let rare = || prop_oneof![4 => Just(String::new()), 1 => text()];
    (channel, rare(), text(), rare(), rare(), rare(), rare(), rare()).prop_map(
        |(
            channel,
            upstream_channel,
            address,
            channel_id,
            proxy_address,
            projected_address,
            level,
            display_name,
        )| {
            Address {
                channel,
                upstream_channel,
                address,
                channel_id,
                proxy_address,
                projected_address,
                level,
                display_name,
            }
        },
    )
}

fn time() -> impl Strategy<Value = Timestamp> {
    let seconds = prop_oneof![0_i64..4_000_000_000, any::<i64>()];
    let nanos = prop_oneof![0..1_000_000_000, any::<i32>()];
    (seconds, nanos).prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
}

fn any_participant() -> impl Strategy<Value = Participant> {
    let rare = || prop_oneof![2 => Just(String::new()), 1 => text()];
    let texts = (rare(), rare(), rare(), rare(), rare(), rare());
    let times = (option::of(time()), option::of(time()), option::of(time()));
    let kind = prop_oneof![4 => 0..7_i32, 1 => any::<i32>()];
    (texts, times, kind, vec(address(), 0..3), option::of(any::<i64>())).prop_map(
        |(
            (display_name, upstream_type, profile_id, attributes, role_id, id),
            (last_read_time, create_time, update_time),
            r#type,
            addresses,
            last_read_message_index,
        )| Participant {
            id,
            display_name,
            r#type,
            upstream_type,
            profile_id,
            addresses,
            attributes,
            role_id,
            last_read_message_index,
            last_read_time,
            create_time,
            update_time,
            ..Participant::default()
        },
    )
}

/// One that could be written: what the version carries, with legal values.
fn legal_participant(version: ApiVersion) -> BoxedStrategy<Participant> {
    let legal_json = any_json().prop_map(|value| value.to_string());
    let legal_json = legal_json.prop_filter("within Twilio's bound", |json| json.len() <= 4096);
    let attributes = prop_oneof![Just(String::new()), legal_json];
    let role = prop_oneof![Just(String::new()), "RL[0-9a-f]{32}"];
    let index = option::of(0..i64::MAX);
    let v1 = (v1_addresses(), attributes, role, index).prop_map(
        |(addresses, attributes, role_id, last_read_message_index)| Participant {
            addresses,
            attributes,
            role_id,
            last_read_message_index,
            ..Participant::default()
        },
    );
    let v2 = (v2_addresses(), "[ -~é]{0,256}", "[A-Za-z0-9_-]{0,128}", 0..6_i32).prop_map(
        |(addresses, display_name, profile_id, r#type)| Participant {
            addresses,
            display_name,
            profile_id,
            r#type,
            ..Participant::default()
        },
    );
    if version == ApiVersion::V1 { v1.boxed() } else { v2.boxed() }
}

fn participant() -> impl Strategy<Value = Participant> {
    prop_oneof![
        2 => any_participant(),
        1 => legal_participant(ApiVersion::V1),
        1 => legal_participant(ApiVersion::V2),
    ]
}

fn conversation() -> impl Strategy<Value = ConversationRef> {
    let id = prop_oneof![
        2 => "CH[0-9a-f]{32}",
        2 => "conv_conversation_[0-9a-z]{26}",
        1 => text(),
    ];
    let rare = || prop_oneof![9 => Just(String::new()), 1 => text()];
    let api_version = prop_oneof![4 => Just(0), 1 => 0..4_i32];
    (id, rare(), rare(), api_version).prop_map(|(conversation_id, service_id, account_id, api_version)| {
        ConversationRef { conversation_id, service_id, account_id, api_version }
    })
}

fn is_silent(violations: &[Violation]) -> bool {
    !violations.iter().any(|violation| format!("{violation:?}").contains(PLANTED))
}

// === Masks

/// The contract's writable fields, and which versions carry them, spelled from the contract.
const WRITABLE: [(&str, bool, bool); 11] = [
    ("display_name", false, true),
    ("type", false, true),
    ("upstream_type", false, true),
    ("profile_id", false, true),
    ("addresses", true, true),
    ("attributes", true, false),
    ("role_id", true, false),
    ("last_read_message_index", true, false),
    ("last_read_time", true, false),
    ("create_time", true, false),
    ("update_time", true, false),
];

fn is_carried(path: &str, version: ApiVersion) -> bool {
    let row = WRITABLE.iter().find(|(name, ..)| *name == path);
    row.is_some_and(|(_, v1, v2)| if version == ApiVersion::V1 { *v1 } else { *v2 })
}

fn path() -> impl Strategy<Value = String> {
    let other = ["*", "id", "etag", "url", "", "addresses.address", "Attributes", "participant.type"]
        .map(str::to_owned);
    prop_oneof![
        8 => select(WRITABLE.map(|(name, ..)| name.to_owned()).to_vec()),
        1 => select(other.to_vec()),
        1 => text(),
    ]
}

proptest! {
    #[test]
    fn a_mask_is_fields_that_the_version_carries_or_violations(
        paths in vec(path(), 0..6), participant in participant(), version in version(),
    ) {
        let mut check = Check::default();
        let mask = Mask::parse(&mut check, Some(&FieldMask { paths: paths.clone() }));
        let fields = mask.fields(&mut check, &participant, version);
        let violations = check.into_violations();
        prop_assert!(is_silent(&violations), "{:?}", violations);
        let is_named = !paths.is_empty() && paths != ["*"];
        if violations.is_empty() {
            prop_assert!(!fields.is_empty());
            prop_assert!(fields.iter().all(|field| is_carried(field.name(), version)), "{:?}", fields);
            let names: BTreeSet<_> = fields.iter().map(|field| field.name()).collect();
            let named = paths.iter().map(|path| if path == "upstream_type" { "type" } else { path });
            prop_assert!(!is_named || named.collect::<BTreeSet<_>>() == names, "{:?}", names);
        }
        let refused = |path: &String| !is_carried(path, version);
        if is_named && paths.iter().any(refused) {
            prop_assert!(!violations.is_empty());
        }
    }
}

// === Whole requests

fn repeats_nothing(refused: Refused) -> Result<(), TestCaseError> {
    let status = tonic::Status::from(refused);
    prop_assert_eq!(status.code(), tonic::Code::InvalidArgument);
    prop_assert!(!format!("{status:?}").contains(PLANTED), "{:?}", status);
    prop_assert!(!String::from_utf8_lossy(status.details()).contains(PLANTED), "{:?}", status);
    Ok(())
}

/// Bytes: of a request, with some of them changed, cut off or put in, and any.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let legal = (conversation(), text(), participant(), vec(path(), 0..3)).prop_map(
        |(conversation, id, participant, paths)| {
            let request = proto::UpdateParticipantRequest {
                conversation: Some(conversation),
                participant_id: id,
                participant: Some(participant),
                update_mask: Some(FieldMask { paths }),
                ..Default::default()
            };
            request.encode_to_vec()
        },
    );
    let mutated = (legal, vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 0..6)).prop_map(
        |(mut bytes, changes)| {
            for (at, byte, how) in changes {
                let at = at.index(bytes.len() + 1);
                match how {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, byte),
                    _ => bytes.iter_mut().skip(at).take(1).for_each(|old| *old = byte),
                }
            }
            bytes
        },
    );
    prop_oneof![3 => mutated, 1 => vec(any::<u8>(), 0..200)]
}

proptest! {
    /// One message's bytes are read as every other's, too: their fields have the same numbers.
    #[test]
    fn any_bytes_are_no_message_or_a_request_that_is_answered(bytes in any_message()) {
        let (accounts, tokens) = (accounts(), PageTokens::new([]));
        macro_rules! refusal {
            ($message:ident, $read:expr) => {
                proto::$message::decode(&*bytes).ok().and_then(|message| $read(message).err())
            };
        }
        let refusals = [
            refusal!(GetParticipantRequest, |message| super::get(message, &accounts)),
            refusal!(BatchGetParticipantsRequest, |message| super::batch_get(message, &accounts)),
            refusal!(ListParticipantsRequest, |message| super::list(message, &accounts, &tokens)),
            refusal!(CreateParticipantRequest, |message| super::create(message, &accounts)),
            refusal!(UpdateParticipantRequest, |message| super::update(message, &accounts)),
            refusal!(DeleteParticipantRequest, |message| super::delete(message, &accounts)),
            refusal!(WatchParticipantsRequest, |message| super::watch(message, &accounts)),
            refusal!(ListParticipantConversationsRequest, |message| super::list_conversations(message, &accounts, &tokens)),
        ];
        for refused in refusals.into_iter().flatten() {
            let status = tonic::Status::from(refused);
            prop_assert!(status.message().len() <= 1024 && status.details().len() <= 4096);
        }
    }

    #[test]
    fn an_update_is_one_that_the_version_carries_or_is_refused_without_repeating_it(
        conversation in conversation(), participant_id in text(), participant in option::of(participant()),
        paths in vec(path(), 0..4), webhook_enabled in option::of(any::<bool>()),
    ) {
        let request = proto::UpdateParticipantRequest {
            conversation: Some(conversation),
            participant_id,
            participant,
            update_mask: Some(FieldMask { paths }),
            webhook_enabled,
            validate_only: false,
        };
        match update(request, &accounts()) {
            Ok(Updated { key, update, .. }) => {
                let version = key.conversation.version;
                prop_assert!(update.fields.iter().all(|field| is_carried(field.name(), version)), "{:?}", update.fields);
                prop_assert!(webhook_enabled.is_none() || version == ApiVersion::V1);
            }
            Err(refused) => repeats_nothing(refused)?,
        }
    }

    #[test]
    fn a_create_is_one_that_the_version_carries_or_is_refused_without_repeating_it(
        conversation in conversation(), participant in option::of(participant()),
    ) {
        let request = proto::CreateParticipantRequest {
            conversation: Some(conversation),
            participant,
            ..proto::CreateParticipantRequest::default()
        };
        match create(request, &accounts()) {
            Ok(Created { conversation, create, .. }) => {
                let set = Field::ALL.into_iter().filter(|field| is_set(*field, &create.participant));
                for field in set {
                    prop_assert!(is_carried(field.name(), conversation.version), "{:?}", field);
                    prop_assert!(!["last_read_message_index", "last_read_time"].contains(&field.name()));
                }
                prop_assert!(!create.participant.addresses.is_empty());
            }
            Err(refused) => repeats_nothing(refused)?,
        }
    }

    #[test]
    fn a_read_is_an_intent_or_is_refused_without_repeating_it(
        conversation in option::of(conversation()), ids in vec(text(), 0..4), words in (text(), text(), text(), text()),
        numbers in (any::<i32>(), any::<i32>()), age in option::of((any::<i64>(), any::<i32>())),
    ) {
        let (accounts, tokens) = (accounts(), PageTokens::new([]));
        let (page_token, service_id, identity, address) = words;
        let (page_size, api_version) = numbers;
        let max_age = age.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
        let read_options = Some(ReadOptions { max_age, ..Default::default() });
        let participant_id = ids.first().cloned().unwrap_or_default();
        let get = proto::GetParticipantRequest {
            conversation: conversation.clone(), participant_id: participant_id.clone(), read_options,
        };
        let batch = proto::BatchGetParticipantsRequest {
            conversation: conversation.clone(), participant_ids: ids, read_options, return_partial_success: true,
        };
        let delete = proto::DeleteParticipantRequest { conversation: conversation.clone(), participant_id, webhook_enabled: None };
        let find = proto::ListParticipantConversationsRequest {
            service_id, api_version, identity, address, page_size, read_options, ..Default::default()
        };
        let create = proto::CreateParticipantRequest { conversation, request_id: page_token, ..Default::default() };
        let refusals = [
            super::get(get, &accounts).err(),
            super::batch_get(batch, &accounts).err(),
            super::delete(delete, &accounts).err(),
            super::list_conversations(find, &accounts, &tokens).err(),
            super::create(create, &accounts).err(),
        ];
        for refused in refusals.into_iter().flatten() {
            repeats_nothing(refused)?;
        }
    }

    #[test]
    fn what_the_version_carries_is_accepted(
        (version, participant) in version().prop_flat_map(|version| (Just(version), legal_participant(version))),
    ) {
        let conversation_id = if version == ApiVersion::V1 { "CH1" } else { "conversation_1" }.to_owned();
        let api_version = if version == ApiVersion::V1 { 1 } else { 2 };
        let conversation = Some(ConversationRef { conversation_id, api_version, ..ConversationRef::default() });
        let is_set = |field: &Field| is_set(*field, &participant);
        let set: BTreeSet<_> = Field::ALL.into_iter().filter(is_set).collect();
        let request = proto::UpdateParticipantRequest {
            conversation: conversation.clone(),
            participant_id: "alice".into(),
            participant: Some(participant.clone()),
            ..proto::UpdateParticipantRequest::default()
        };
        match update(request, &accounts()) {
            Ok(updated) => prop_assert_eq!(updated.update.fields, set),
            Err(refused) => prop_assert!(set.is_empty(), "{:?}", refused),
        }
        let participant = Participant { last_read_message_index: None, ..participant };
        let has_addresses = !participant.addresses.is_empty();
        let request = proto::CreateParticipantRequest {
            conversation,
            participant: Some(participant.clone()),
            ..proto::CreateParticipantRequest::default()
        };
        match create(request, &accounts()) {
            Ok(created) => prop_assert!(has_addresses && created.create.participant == participant),
            Err(refused) => prop_assert!(!has_addresses, "{:?}", refused),
        }
    }

    #[test]
    fn a_page_size_is_one_that_twilio_takes(size in any::<i32>(), conversation_id in text(), version in version()) {
        let api_version = if version == ApiVersion::V1 { proto::ApiVersion::V1 } else { proto::ApiVersion::V2 }.into();
        let conversation = Some(ConversationRef { conversation_id, api_version, ..ConversationRef::default() });
        if let Ok(request) = stream(proto::StreamParticipantsRequest { conversation, page_size: size }, &accounts()) {
            let most = if version == ApiVersion::V1 { 100 } else { 1000 };
            let expected = if size == 0 { 50 } else { u32::try_from(size).unwrap().min(most) };
            prop_assert_eq!(request.size, expected);
            let chars = request.conversation.id.as_str().chars().count();
            prop_assert!((1..=MAX_ID_CHARS).contains(&chars));
        }
    }
}

// === Addresses

/// What v1 takes, as the contract tells it.
fn v1_addresses() -> impl Strategy<Value = Vec<Address>> {
    let words = [
        ("", Channel::Sms),
        ("whatsapp:", Channel::Whatsapp),
        ("rcs:", Channel::Rcs),
        ("messenger:", Channel::Messenger),
    ];
    let binding = (select(words.to_vec()), "\\+1555[0-9]{7}", any::<bool>()).prop_map(
        |((prefix, channel), number, is_told)| {
            let channel = if is_told { channel } else { Channel::Unspecified };
            let (address, proxy_address) = (format!("{prefix}{number}"), format!("{prefix}{number}"));
            Address { channel: channel.into(), address, proxy_address, ..Address::default() }
        },
    );
    let identity = "[a-z@. é]{1,256}".prop_filter("null is none", |identity| identity != "null");
    let chat =
        identity.prop_map(|address| Address { channel: Channel::Chat.into(), address, ..Address::default() });
    (option::of(chat), option::of(binding))
        .prop_map(|(chat, binding)| chat.into_iter().chain(binding).collect())
}

fn v2_addresses() -> impl Strategy<Value = Vec<Address>> {
    let known = (1..8_i32).prop_map(|channel| (channel, String::new()));
    let other = "[A-Z_]{1,64}".prop_map(|word| (Channel::Other.into(), word));
    let address = (prop_oneof![known, other], "[ -~é]{1,254}", "[ -~é]{0,254}");
    let address = address.prop_map(|((channel, upstream_channel), address, channel_id)| Address {
        channel,
        upstream_channel,
        address,
        channel_id,
        ..Address::default()
    });
    vec(address, 0..4)
}

proptest! {
    #[test]
    fn addresses_of_the_contract_are_accepted(v1 in v1_addresses(), v2 in v2_addresses()) {
        prop_assert_eq!(addresses::violations(&v1, ApiVersion::V1), vec![]);
        prop_assert_eq!(addresses::create_violations(&v1, ApiVersion::V1), vec![]);
        prop_assert_eq!(addresses::violations(&v2, ApiVersion::V2), vec![]);
    }

    #[test]
    fn any_addresses_are_within_the_versions_bounds_or_refused(
        addresses in vec(address(), 0..4), version in version(),
    ) {
        let violations = addresses::violations(&addresses, version);
        prop_assert!(is_silent(&violations), "{:?}", violations);
        let is_named = |violation: &Violation| violation.field.starts_with("participant.addresses");
        prop_assert!(violations.iter().all(is_named), "{:?}", violations);
        if !violations.is_empty() {
            return Ok(());
        }
        let chats = addresses.iter().filter(|address| address.channel() == Channel::Chat).count();
        prop_assert!(version == ApiVersion::V2 || chats <= 1 && addresses.len() - chats <= 1);
        let longest = if version == ApiVersion::V1 { 256 } else { 254 };
        for address in &addresses {
            prop_assert!(Channel::try_from(address.channel).is_ok());
            prop_assert!(address.address.chars().count() <= longest && !address.address.contains(char::is_control));
            let Address { proxy_address, projected_address, level, display_name, channel_id, .. } = address;
            prop_assert!(level.is_empty() && display_name.is_empty());
            prop_assert!(version == ApiVersion::V2 || channel_id.is_empty());
            let v1_only = [proxy_address, projected_address];
            prop_assert!(version == ApiVersion::V1 || v1_only.iter().all(|text| text.is_empty()));
            prop_assert!(version == ApiVersion::V1 || !address.address.is_empty());
        }
    }
}

// === Attributes

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300_f64..1e300).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((text(), inner), 0..5).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn json_within_the_bound_is_attributes(value in any_json(), is_pretty in any::<bool>()) {
        let text = if is_pretty { format!("{value:#}") } else { value.to_string() };
        prop_assert_eq!(attributes::check(&text).is_ok(), text.len() <= 4096, "{}", text);
    }

    #[test]
    fn a_key_twice_is_refused_wherever_it_stands(key in text(), value in any_json(), depth in 0..20_usize) {
        let key = json!(key);
        let twice = format!("{{{key}:{value},{key}:1}}");
        let text = format!("{}{twice}{}", "[{\"a\":".repeat(depth), "}]".repeat(depth));
        prop_assert!(attributes::check(&text).is_err(), "{}", text);
    }

    #[test]
    fn any_text_is_json_or_refused_without_repeating_it(
        text in prop_oneof![text(), "[\\[\\]{}\",:0-9a-z\\\\ №.eE+-]{0,40}"],
    ) {
        match attributes::check(&text) {
            Ok(()) => prop_assert!(serde_json::from_str::<Value>(&text).is_ok() && text.len() <= 4096),
            Err(description) => prop_assert!(!description.contains(PLANTED), "{}", description),
        }
    }
}
