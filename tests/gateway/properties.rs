//! What holds for every answer of Twilio and for every participant, not only for those that somebody thought of.

use std::sync::{Arc, Mutex, PoisonError};

use participant_gateway::proto::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use prost_types::Timestamp;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::upstream::*;

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        // Every case is a call or a few over sockets: shrinking is bounded like the cases are.
        max_shrink_iters: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

// === Answers

/// A gateway before a peer that answers every request with what was last put here.
struct Told {
    runtime: Runtime,
    answer: Arc<Mutex<Vec<u8>>>,
    gateway: Mutex<Gateway>,
    _upstream: Upstream,
}

impl Told {
    fn start() -> Self {
        let runtime = runtime();
        let answer = Arc::new(Mutex::new(Vec::new()));
        let (gateway, upstream) = runtime.block_on(async {
            let answer = answer.clone();
            let upstream = Upstream::answering(move |_, _| answer.lock().unwrap().clone()).await;
            // By chance many failures come in a row, which the breaker would take for an outage.
            let each_is_sent =
                [("GATEWAY_UPSTREAM_MAX_RETRIES", "0"), ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0")];
            let gateway = gateway_asking(upstream.address, &each_is_sent).await;
            (gateway, upstream)
        });
        Self { runtime, answer, gateway: Mutex::new(gateway), _upstream: upstream }
    }

    /// What each read and write of this version comes to when Twilio answers so.
    fn outcomes(&self, face: Face, status: u16, body: &[u8]) -> Vec<Result<Participant, Status>> {
        *self.answer.lock().unwrap() = http(&format!("{status} X"), "", body);
        let mut gateway = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime.block_on(async {
            let list =
                ListParticipantsRequest { read_options: max_age(std::time::Duration::ZERO), ..face.list() };
            let first =
                |page: ListParticipantsResponse| page.participants.into_iter().next().unwrap_or_default();
            vec![
                gateway.get(face.get_fresh()).await.map(|(participant, _)| participant),
                gateway.list(list).await.map(first),
                gateway.create(face.create(face.newcomer(1))).await,
                gateway.update(face.update(face.marked("x"))).await,
            ]
        })
    }
}

/// Whatever comes, it is an answer of the contract: a participant, or an error that the table knows. INTERNAL is one only
/// with the reason that it is Twilio's answer: a panic has another.
fn check(outcomes: Vec<Result<Participant, Status>>, status: u16) -> Result<(), TestCaseError> {
    for error in outcomes.into_iter().filter_map(Result::err) {
        let info = error.get_details_error_info();
        prop_assert!(info.is_some(), "{error:?}");
        let (code, reason) = told(&error);
        prop_assert_ne!(&reason, "INTERNAL");
        if status < 400 {
            prop_assert_eq!((code, reason.as_str()), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN"));
        } else {
            prop_assert!(code != Code::Ok && code != Code::Cancelled, "{error:?}");
        }
    }
    Ok(())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        select(vec!["null", "2015-12-16T22:18:37Z", "{}", "sms", "https://x/?Page=1&PageToken=a", "CH1"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let key = prop_oneof![select(KEYS.to_vec()).prop_map(str::to_owned), "[a-z_]{1,8}"];
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((key, inner), 0..6).prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// The keys that the gateway looks at.
const KEYS: &[&str] = &[
    "account_sid",
    "conversation_sid",
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
    "meta",
    "page",
    "previous_page_url",
    "next_page_url",
    "id",
    "conversationId",
    "accountId",
    "profileId",
    "addresses",
    "channel",
    "channelId",
    "createdAt",
    "updatedAt",
    "nextToken",
    "previousToken",
    "code",
    "message",
    "status",
    "errors",
];

const SAMPLES: &[&str] = &[
    include_str!("../fixtures/v1/create_sms.json"),
    include_str!("../fixtures/v1/create_chat.json"),
    include_str!("../fixtures/v1/explorer.json"),
    include_str!("../fixtures/v1/list.json"),
    include_str!("../fixtures/v1/error.json"),
    include_str!("../fixtures/v2/create.json"),
    include_str!("../fixtures/v2/list.json"),
    include_str!("../fixtures/v2/error_rfc9457.json"),
];

/// A documented sample with one value somewhere in it replaced, or taken out.
fn mutated_sample() -> impl Strategy<Value = Vec<u8>> {
    (select(SAMPLES.to_vec()), any::<prop::sample::Index>(), proptest::option::of(any_json())).prop_map(
        |(sample, at, with)| {
            let mut sample: Value = serde_json::from_str(sample).unwrap();
            let at = at.index(places(&sample));
            replace(&mut sample, &mut { at }, with.as_ref());
            sample.to_string().into_bytes()
        },
    )
}

/// A documented sample with bytes changed, cut off or put in.
fn damaged_sample() -> impl Strategy<Value = Vec<u8>> {
    let damage = (any::<prop::sample::Index>(), 0_usize..8, vec(any::<u8>(), 0..4));
    (select(SAMPLES.to_vec()), vec(damage, 1..4)).prop_map(|(sample, damages)| {
        let mut bytes = sample.as_bytes().to_vec();
        for (at, drop, put) in damages {
            let at = at.index(bytes.len());
            let end = (at + drop).min(bytes.len());
            bytes.splice(at..end, put);
            if bytes.is_empty() {
                bytes.push(b'{');
            }
        }
        bytes
    })
}

fn places(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(|item| 1 + places(item)).sum(),
        Value::Object(entries) => entries.values().map(|item| 1 + places(item)).sum(),
        _ => 0,
    }
}

fn replace(value: &mut Value, at: &mut usize, with: Option<&Value>) {
    match value {
        Value::Array(items) => {
            for item in items {
                if *at == 0 {
                    *item = with.cloned().unwrap_or_default();
                    *at = usize::MAX;
                    return;
                }
                *at = at.saturating_sub(1);
                replace(item, at, with);
            }
        }
        Value::Object(entries) => {
            let keys: Vec<_> = entries.keys().cloned().collect();
            for key in keys {
                if *at == 0 {
                    match with {
                        Some(with) => drop(entries.insert(key, with.clone())),
                        None => drop(entries.remove(&key)),
                    }
                    *at = usize::MAX;
                    return;
                }
                *at = at.saturating_sub(1);
                if let Some(item) = entries.get_mut(&key) {
                    replace(item, at, with);
                }
            }
        }
        _ => {}
    }
}

fn any_status() -> impl Strategy<Value = u16> {
    prop_oneof![
        3 => select(vec![200_u16, 201]),
        2 => select(vec![400_u16, 401, 403, 404, 405, 408, 409, 412, 415, 418, 429, 499, 500, 503, 599]),
    ]
}

#[test]
fn no_json_breaks_the_gateway() {
    let upstream = Told::start();
    proptest!(cases(150), |(body in any_json(), status in any_status())| {
        let body = body.to_string();
        for face in [Face::V1, Face::V2] {
            check(upstream.outcomes(face, status, body.as_bytes()), status)?;
        }
    });
}

#[test]
fn no_mutation_of_a_sample_breaks_the_gateway() {
    let upstream = Told::start();
    let body = prop_oneof![2 => mutated_sample(), 1 => damaged_sample()];
    proptest!(cases(250), |(body in body, status in any_status())| {
        for face in [Face::V1, Face::V2] {
            check(upstream.outcomes(face, status, &body), status)?;
        }
    });
}

#[test]
fn no_bytes_break_the_gateway() {
    let upstream = Told::start();
    let body =
        prop_oneof![vec(any::<u8>(), 0..300), "[\\[\\]{}\",:0-9a-z\\\\ ]{0,80}".prop_map(String::into_bytes)];
    proptest!(cases(150), |(body in body, status in any_status())| {
        for face in [Face::V1, Face::V2] {
            check(upstream.outcomes(face, status, &body), status)?;
        }
    });
}

#[test]
fn nesting_without_end_breaks_nothing() {
    let upstream = Told::start();
    for depth in [127, 128, 100_000] {
        for (open, close) in
            [("[", "]"), (r#"{"attributes":"#, "}"), (r#"{"meta":"#, "}"), (r#"{"x":["#, "]}")]
        {
            let whole = format!(r#"{{"participants":{}1{}}}"#, open.repeat(depth), close.repeat(depth));
            let cut = open.repeat(depth);
            for body in [whole, cut] {
                for face in [Face::V1, Face::V2] {
                    for status in [200, 404] {
                        check(upstream.outcomes(face, status, body.as_bytes()), status).unwrap();
                    }
                }
            }
        }
    }
}

// === Round trips: what is written is stored, and read back

/// Text without control characters, white space and prefixes included.
fn text(most: usize) -> impl Strategy<Value = String> {
    let character = any::<char>().prop_filter("no control characters", |c| !c.is_control());
    vec(prop_oneof![3 => prop::char::range(' ', '~'), 1 => character], 1..most)
        .prop_map(|characters| characters.into_iter().collect())
}

fn json_text() -> impl Strategy<Value = String> {
    let depth = any_json().prop_filter("within Twilio's bound", |value| value.to_string().len() <= 4096);
    // As it is written, white space included.
    (depth, any::<bool>()).prop_map(
        |(value, pretty)| {
            if pretty { format!(" {value} ") } else { value.to_string() }
        },
    )
}

/// Within what the sandbox can store: whole seconds after 1970.
fn moment() -> impl Strategy<Value = Option<Timestamp>> {
    let seconds = 0_i64..4_000_000_000;
    proptest::option::of(seconds.prop_map(|seconds| Timestamp { seconds, nanos: 0 }))
}

fn identity() -> impl Strategy<Value = Vec<Address>> {
    let identity = text(256).prop_filter("`null` is no identity", |identity| identity != "null");
    let projected = proptest::option::of("\\+1555[0-9]{7}");
    (identity, projected).prop_map(|(address, projected)| {
        let chat = Address { channel: Channel::Chat.into(), address, ..Default::default() };
        let mask = projected.map(|projected_address| Address {
            channel: Channel::Sms.into(),
            projected_address,
            ..Default::default()
        });
        [chat].into_iter().chain(mask).collect()
    })
}

fn binding() -> impl Strategy<Value = Vec<Address>> {
    let channels = vec![
        (Channel::Sms, ""),
        (Channel::Whatsapp, "whatsapp:"),
        (Channel::Rcs, "rcs:"),
        (Channel::Messenger, "messenger:"),
    ];
    (select(channels), "\\+1555[0-9]{7}", proptest::option::of("\\+1556[0-9]{7}"), any::<bool>()).prop_map(
        |((channel, prefix), address, proxy, is_told)| {
            vec![Address {
                channel: if is_told { channel } else { Channel::Unspecified }.into(),
                address: format!("{prefix}{address}"),
                proxy_address: proxy.map(|proxy| format!("{prefix}{proxy}")).unwrap_or_default(),
                ..Default::default()
            }]
        },
    )
}

fn role() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "RL[0-9a-fA-F]{32}"]
}

fn v1_participant() -> impl Strategy<Value = Participant> {
    let addresses = prop_oneof![identity(), binding()];
    let attributes = prop_oneof![1 => Just(String::new()), 3 => json_text()];
    (addresses, attributes, role(), moment(), moment()).prop_map(
        |(addresses, attributes, role_id, create_time, update_time)| Participant {
            addresses,
            attributes,
            role_id,
            create_time,
            update_time,
            ..Default::default()
        },
    )
}

fn v1_update() -> impl Strategy<Value = Participant> {
    let index = proptest::option::of(0..=i64::MAX);
    (json_text(), role(), index, moment(), moment(), moment()).prop_map(
        |(attributes, role_id, last_read_message_index, last_read_time, create_time, update_time)| {
            Participant {
                attributes,
                role_id,
                last_read_message_index,
                last_read_time,
                create_time,
                update_time,
                ..Default::default()
            }
        },
    )
}

fn v2_address() -> impl Strategy<Value = Address> {
    let channel = prop_oneof![
        select(vec![
            (Channel::Sms, "SMS"),
            (Channel::Voice, "VOICE"),
            (Channel::Email, "EMAIL"),
            (Channel::Whatsapp, "WHATSAPP"),
            (Channel::Rcs, "RCS"),
            (Channel::Chat, "CHAT"),
            (Channel::Messenger, "MESSENGER"),
        ])
        .prop_map(|(channel, word)| (channel, word.to_owned())),
        "X[A-Z_]{0,20}".prop_map(|word| (Channel::Other, word)),
    ];
    (channel, text(254), prop_oneof![Just(String::new()), text(60)]).prop_map(
        |((channel, upstream_channel), address, channel_id)| Address {
            channel: channel.into(),
            upstream_channel,
            address,
            channel_id,
            ..Default::default()
        },
    )
}

fn v2_participant() -> impl Strategy<Value = Participant> {
    let kind = prop_oneof![
        Just((ParticipantType::Unspecified, String::new())),
        select(vec![
            (ParticipantType::HumanAgent, "HUMAN_AGENT"),
            (ParticipantType::Customer, "CUSTOMER"),
            (ParticipantType::AiAgent, "AI_AGENT"),
            (ParticipantType::Agent, "AGENT"),
            (ParticipantType::Unknown, "UNKNOWN"),
        ])
        .prop_map(|(kind, word)| (kind, word.to_owned())),
        "X[A-Z_]{0,20}".prop_map(|word| (ParticipantType::Other, word)),
    ];
    let name = prop_oneof![Just(String::new()), text(256)];
    let profile_id = prop_oneof![Just(String::new()), "[A-Za-z0-9_-]{1,128}"];
    // An address is there once.
    let addresses = vec(v2_address(), 1..5).prop_map(|mut addresses| {
        addresses.sort_by(|a, b| (&a.upstream_channel, &a.address).cmp(&(&b.upstream_channel, &b.address)));
        addresses.dedup_by(|a, b| (&a.upstream_channel, &a.address) == (&b.upstream_channel, &b.address));
        addresses
    });
    (kind, name, profile_id, addresses).prop_map(|((kind, word), display_name, profile_id, addresses)| {
        Participant {
            display_name,
            r#type: kind.into(),
            upstream_type: word,
            profile_id,
            addresses,
            ..Default::default()
        }
    })
}

/// What an answer adds to what was written: ids and the like. Where nothing was written, Twilio's default.
fn stored(written: &Participant, read: &Participant) -> Participant {
    let is_v1 = read.api_version() == ApiVersion::V1;
    let mut addresses = written.addresses.clone();
    for address in &mut addresses {
        if is_v1 && address.channel() != Channel::Chat {
            let (channel, word) = match address.address.split_once(':').map(|(prefix, _)| prefix) {
                Some("whatsapp") => (Channel::Whatsapp, "whatsapp"),
                Some("rcs") => (Channel::Rcs, "rcs"),
                Some("messenger") => (Channel::Messenger, "messenger"),
                _ => (Channel::Sms, "sms"),
            };
            address.channel = channel.into();
            address.upstream_channel = word.into();
        }
    }
    let or = |written: &String, default: &str| {
        if written.is_empty() { default.to_owned() } else { written.clone() }
    };
    Participant {
        id: read.id.clone(),
        conversation_id: read.conversation_id.clone(),
        account_id: read.account_id.clone(),
        api_version: read.api_version,
        url: read.url.clone(),
        etag: read.etag.clone(),
        addresses,
        attributes: if is_v1 { or(&written.attributes, "{}") } else { String::new() },
        role_id: if is_v1 {
            or(&written.role_id, "RL00000000000000000000000000000001")
        } else {
            String::new()
        },
        create_time: written.create_time.or(read.create_time),
        update_time: written.update_time.or(read.update_time),
        ..written.clone()
    }
}

fn by_id(face: Face, id: &str) -> GetParticipantRequest {
    GetParticipantRequest { participant_id: id.into(), ..face.get_fresh() }
}

/// A gateway whose sandbox can start over, so that no two cases meet.
struct Fresh {
    runtime: Runtime,
    gateway: Mutex<Gateway>,
    // Made once: it takes longer than a case.
    http: reqwest::Client,
}

impl Fresh {
    fn start() -> Self {
        let runtime = runtime();
        Self {
            gateway: Mutex::new(runtime.block_on(Gateway::start())),
            http: reqwest::Client::new(),
            runtime,
        }
    }

    /// One case, with what the sandbox starts with.
    fn run(
        &self,
        case: impl AsyncFnOnce(&mut Gateway) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        // A case that failed has poisoned it; the next one starts over.
        let mut gateway = self.gateway.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime.block_on(async {
            let url = format!("http://{}/_sandbox/reset", gateway.addresses.sandbox.unwrap());
            self.http.post(url).send().await.unwrap().error_for_status().unwrap();
            case(&mut gateway).await
        })
    }
}

fn created_is_read_back(face: Face, participants: impl Strategy<Value = Participant>) {
    let fresh = Fresh::start();
    proptest!(cases(100), |(participant in participants)| {
        fresh.run(async |gateway| {
            let created = gateway.create(face.create(participant.clone())).await.unwrap();
            prop_assert_eq!(&created, &stored(&participant, &created));
            let (read, _) = gateway.get(by_id(face, &created.id)).await.unwrap();
            prop_assert_eq!(&read, &created);
            prop_assert!(!read.etag.is_empty() && read.create_time.is_some() && read.update_time.is_some());
            let page = gateway.list(face.list()).await.unwrap().participants;
            prop_assert_eq!(page.iter().filter(|listed| **listed == created).count(), 1);
            Ok(())
        })?;
    });
}

#[test]
fn what_a_v1_create_sends_is_read_back() {
    created_is_read_back(Face::V1, v1_participant());
}

#[test]
fn what_a_v2_create_sends_is_read_back() {
    created_is_read_back(Face::V2, v2_participant());
}

#[test]
fn what_a_v1_update_sends_is_read_back_and_nothing_else_changes() {
    let fresh = Fresh::start();
    proptest!(cases(100), |(new in v1_update())| {
        fresh.run(async |gateway| {
            let (before, _) = gateway.get(Face::V1.get_fresh()).await.unwrap();
            let set = [
                ("attributes", true),
                ("role_id", !new.role_id.is_empty()),
                ("last_read_message_index", new.last_read_message_index.is_some()),
                ("last_read_time", new.last_read_time.is_some()),
                ("create_time", new.create_time.is_some()),
                ("update_time", new.update_time.is_some()),
            ];
            let paths: Vec<_> = set.iter().filter(|(_, is_set)| *is_set).map(|(path, _)| *path).collect();
            let update = UpdateParticipantRequest { update_mask: mask(&paths), ..Face::V1.update(new.clone()) };
            let after = gateway.update(update).await.unwrap();
            let or = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
            let expected = Participant {
                attributes: new.attributes.clone(),
                role_id: or(&new.role_id, &before.role_id),
                last_read_message_index: new.last_read_message_index,
                last_read_time: new.last_read_time,
                create_time: new.create_time.or(before.create_time),
                // Twilio's clock, where it is not written.
                update_time: new.update_time.or(after.update_time),
                etag: after.etag.clone(),
                ..before.clone()
            };
            prop_assert_eq!(&after, &expected);
            prop_assert_eq!(&gateway.get(Face::V1.get_fresh()).await.unwrap().0, &after);
            Ok(())
        })?;
    });
}

#[test]
fn what_a_v2_update_masks_is_changed_and_the_rest_stays() {
    let fresh = Fresh::start();
    let fields = prop::sample::subsequence(vec!["display_name", "type", "profile_id", "addresses"], 1..=4);
    proptest!(cases(100), |(old in v2_participant(), new in v2_participant(), paths in fields)| {
        fresh.run(async |gateway| {
            let before = gateway.create(Face::V2.create(old)).await.unwrap();
            let update = UpdateParticipantRequest {
                participant_id: before.id.clone(),
                update_mask: mask(&paths),
                ..Face::V2.update(new.clone())
            };
            let after = gateway.update(update).await.unwrap();
            let mut expected = Participant {
                update_time: after.update_time,
                etag: after.etag.clone(),
                ..before
            };
            for path in paths {
                match path {
                    "display_name" => expected.display_name.clone_from(&new.display_name),
                    "type" => {
                        expected.r#type = new.r#type;
                        expected.upstream_type.clone_from(&new.upstream_type);
                    }
                    "profile_id" => expected.profile_id.clone_from(&new.profile_id),
                    _ => expected.addresses.clone_from(&new.addresses),
                }
            }
            prop_assert_eq!(&after, &expected);
            prop_assert_eq!(&gateway.get(by_id(Face::V2, &after.id)).await.unwrap().0, &after);
            Ok(())
        })?;
    });
}

#[test]
fn a_page_walk_of_any_size_reads_everybody_once() {
    let runtime = runtime();
    let mut gateway = runtime.block_on(Gateway::start());
    runtime.block_on(async {
        for face in [Face::V1, Face::V2] {
            gateway.sandbox.populate(&face.conversation(), 40).await;
        }
    });
    let gateway = Mutex::new(&mut gateway);
    proptest!(cases(20), |(sizes in vec(1_i32..30, 1..6), is_v1 in any::<bool>())| {
        let mut gateway = gateway.lock().unwrap_or_else(PoisonError::into_inner);
        let face = if is_v1 { Face::V1 } else { Face::V2 };
        runtime.block_on(async {
            let (mut token, mut forward, mut tokens) = (String::new(), Vec::new(), Vec::new());
            // The size may change from page to page.
            for size in sizes.iter().cycle() {
                let list = ListParticipantsRequest { page_size: *size, page_token: token, ..face.list() };
                let page = gateway.list(list).await.unwrap();
                prop_assert!(page.participants.len() <= usize::try_from(*size).unwrap());
                prop_assert_eq!(page.previous_page_token.is_empty(), forward.is_empty());
                forward.extend(page.participants.into_iter().map(|participant| participant.id));
                tokens.push(page.previous_page_token);
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
            let stream = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: sizes[0] };
            let (streamed, end) = gateway.stream(stream).await;
            prop_assert!(end.is_ok());
            let streamed: Vec<_> = streamed.into_iter().map(|participant| participant.id).collect();
            prop_assert_eq!(streamed.len(), 43);
            prop_assert_eq!(forward, streamed);
            Ok(())
        })?;
    });
}

#[test]
fn what_the_strategies_make_is_json() {
    // Or the properties above would hold of nothing.
    let sample: Value = serde_json::from_str(SAMPLES[0]).unwrap();
    assert_eq!(places(&sample), 16);
    let mut changed = sample.clone();
    replace(&mut changed, &mut 0, Some(&json!(17)));
    assert_ne!(changed, sample);
}
