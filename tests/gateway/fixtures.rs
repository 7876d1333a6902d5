//! Every documented answer of Twilio, and every variant that was seen, read through the gateway and compared whole.
//!
//! The files below tests/fixtures hold the samples of Twilio's documentation as they stand there, and the variants.

use std::collections::BTreeSet;

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::*;

macro_rules! fixture {
    ($path:expr) => {
        include_str!(concat!("../fixtures/", $path))
    };
}

const SID_DIGITS: &str = "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX";
const URL: &str = "https://conversations.twilio.com/v1/Conversations/CHXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX/Participants/MBXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX";

/// 2015-12-16T22:18:37Z, 2016-03-24T21:05:50Z and 2009-07-06T20:30:00Z: the times of the documented samples.
const IN_2015: i64 = 1_450_304_317;
const IN_2016: i64 = 1_458_853_550;
const IN_2009: i64 = 1_246_912_200;

fn at(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

/// What the classic samples have in common.
fn classic(addresses: Vec<Address>) -> Participant {
    Participant {
        id: format!("MB{SID_DIGITS}"),
        conversation_id: format!("CH{SID_DIGITS}"),
        account_id: format!("AC{SID_DIGITS}"),
        api_version: ApiVersion::V1.into(),
        addresses,
        attributes: r#"{"role":"driver"}"#.into(),
        role_id: format!("RL{SID_DIGITS}"),
        create_time: at(IN_2016, 0),
        update_time: at(IN_2016, 0),
        url: URL.into(),
        ..Default::default()
    }
}

/// The same where nobody cared for the attributes.
fn plain(addresses: Vec<Address>) -> Participant {
    Participant { attributes: "{}".into(), ..classic(addresses) }
}

fn identity(identity: &str) -> Address {
    Address { channel: Channel::Chat.into(), address: identity.into(), ..Default::default() }
}

fn binding(channel: Channel, word: &str, address: &str, proxy_address: &str) -> Address {
    Address {
        channel: channel.into(),
        upstream_channel: word.into(),
        address: address.into(),
        proxy_address: proxy_address.into(),
        ..Default::default()
    }
}

fn sms() -> Address {
    binding(Channel::Sms, "sms", "+15558675310", "+15017122661")
}

/// The samples of the API explorer.
fn explorer(attributes: &str, seconds: i64) -> Participant {
    Participant {
        id: "string".into(),
        conversation_id: "string".into(),
        account_id: "string".into(),
        api_version: ApiVersion::V1.into(),
        addresses: vec![identity("string")],
        attributes: attributes.into(),
        role_id: "string".into(),
        last_read_message_index: Some(42),
        create_time: at(seconds, 0),
        update_time: at(seconds, 0),
        url: "https://example.com".into(),
        ..Default::default()
    }
}

/// What the samples of v2 have in common.
fn orchestrated(addresses: Vec<Address>) -> Participant {
    Participant {
        id: "id".into(),
        conversation_id: "conversationId".into(),
        account_id: "ZGkrHSypTsudrGkmdpJJ".into(),
        api_version: ApiVersion::V2.into(),
        display_name: "Miss Christine Morgan".into(),
        r#type: ParticipantType::Customer.into(),
        upstream_type: "CUSTOMER".into(),
        profile_id: "profileId".into(),
        addresses,
        create_time: at(IN_2009, 0),
        update_time: at(IN_2009, 0),
        ..Default::default()
    }
}

fn reached(channel: Channel, word: &str, address: &str, channel_id: &str) -> Address {
    Address {
        channel: channel.into(),
        upstream_channel: word.into(),
        address: address.into(),
        channel_id: channel_id.into(),
        ..Default::default()
    }
}

fn sample_address(channel: Channel, word: &str) -> Address {
    reached(channel, word, "address", "channelId")
}

/// Every answer that holds one participant.
fn v1_participants() -> Vec<(&'static str, &'static str, Participant)> {
    let in_2015 = |participant| Participant {
        create_time: at(IN_2015, 0),
        update_time: at(IN_2015 + 1, 0),
        ..participant
    };
    macro_rules! rows {
        ($($name:literal => $expected:expr),* $(,)?) => {
            vec![$(($name, fixture!(concat!("v1/", $name, ".json")), $expected)),*]
        };
    }
    rows! {
        "create_sms" => in_2015(classic(vec![sms()])),
        "create_chat" => in_2015(classic(vec![identity("<Chat User Identity>")])),
        "fetch_by_sid" => classic(vec![sms()]),
        // As documented: somebody who chats and has a binding all the same.
        "fetch_by_identity" => classic(vec![identity("alice"), sms()]),
        "update_date" => Participant {
            create_time: at(IN_2015, 0),
            update_time: at(1_557_927_455, 0),
            ..classic(vec![sms()])
        },
        "update_attributes" => in_2015(classic(vec![sms()])),
        // `string` is no JSON, and `last_read_timestamp` is no date.
        "explorer" => explorer("string", 1_683_193_320),
        "explorer_null_attributes" => explorer("", 1_746_351_720),
        "attributes_string" => Participant {
            attributes: r#"{ "role": "driver" }"#.into(),
            ..classic(vec![sms()])
        },
        // Compact, with the order of the keys and every digit kept.
        "attributes_object" => Participant {
            attributes: r#"{"z":12345678901234567890,"a b":[1.50,"x  y",null],"é":{"\u0061":true}}"#.into(),
            ..classic(vec![sms()])
        },
        "attributes_absent" => Participant {
            attributes: String::new(),
            ..classic(vec![sms()])
        },
        "binding_absent" => classic(vec![identity("alice")]),
        "binding_all_nulls" => classic(vec![identity("alice")]),
        "binding_with_nulls" => classic(vec![sms()]),
        "group_mms_chat_member" => classic(vec![
            identity("alice"),
            Address {
                projected_address: "+15017122661".into(),
                ..binding(Channel::Sms, "sms", "", "")
            },
        ]),
        "group_mms_address" => classic(vec![binding(Channel::Sms, "sms", "+15558675310", "")]),
        "email" => classic(vec![Address {
            level: "cc".into(),
            display_name: "Dana".into(),
            ..binding(Channel::Email, "email", "dana@example.com", "support@example.com")
        }]),
        "capitals" => Participant {
            create_time: at(1_735_689_600, 0),
            update_time: at(1_735_689_600, 250_000_000),
            ..classic(vec![
                identity("FX0000000000000000000000000000001"),
                Address {
                    projected_address: "[whatsapp:+12345678901]".into(),
                    level: "cc".into(),
                    display_name: "John Doe".into(),
                    ..binding(Channel::Sms, "SMS", "whatsapp:+14567890123", "whatsapp:+11234567890")
                },
            ])
        },
        "rcs_fallen_back_to_sms" => plain(vec![sms()]),
        "rcs" => plain(vec![binding(Channel::Rcs, "rcs", "rcs:+15558675310", "rcs:brand_acme_agent")]),
        "whatsapp" => plain(vec![binding(
            Channel::Whatsapp,
            "whatsapp",
            "whatsapp:+15558675310",
            "whatsapp:+15017122661",
        )]),
        "messenger" => plain(vec![binding(
            Channel::Messenger,
            "messenger",
            "messenger:1234567890",
            "messenger:9876543210",
        )]),
        "unknown_type" => plain(vec![binding(Channel::Other, "gbm", "gbm:conversation", "gbm:agent")]),
        "identity_text_null" => Participant {
            service_id: format!("IS{SID_DIGITS}"),
            ..plain(vec![sms()])
        },
        "dates_with_fractions" => Participant {
            create_time: at(IN_2015, 500_000_000),
            update_time: at(IN_2015, 123_456_789),
            last_read_message_index: Some(0),
            last_read_time: at(1_450_304_318, 250_000_000),
            ..plain(vec![identity("alice")])
        },
        "role_and_conversation_null" => Participant {
            role_id: String::new(),
            conversation_id: String::new(),
            ..plain(vec![identity("alice")])
        },
        // Twilio's own examples hold SIDs that are a character short.
        "short_sids" => Participant {
            id: "AC1".into(),
            account_id: "ACe95cfd541a925a3337fec19a0200009".into(),
            role_id: "RLe95cfd541a925a3337fec19a0200009".into(),
            ..plain(vec![identity("alice")])
        },
        "all_null" => Participant { api_version: ApiVersion::V1.into(), ..Default::default() },
        "nothing" => Participant { api_version: ApiVersion::V1.into(), ..Default::default() },
        "unknown_keys" => plain(vec![
            identity("alice"),
            Address {
                projected_address: "+15017122661".into(),
                ..binding(Channel::Sms, "sms", "", "")
            },
        ]),
    }
}

fn v2_participants() -> Vec<(&'static str, &'static str, Participant)> {
    let of_type = |kind: ParticipantType, word: &str| Participant {
        r#type: kind.into(),
        upstream_type: word.into(),
        ..orchestrated(Vec::new())
    };
    macro_rules! rows {
        ($($name:literal => $expected:expr),* $(,)?) => {
            vec![$(($name, fixture!(concat!("v2/", $name, ".json")), $expected)),*]
        };
    }
    rows! {
        "create" => orchestrated(vec![sample_address(Channel::Voice, "VOICE")]),
        "fetch" => orchestrated(vec![sample_address(Channel::Sms, "SMS")]),
        "update" => orchestrated(vec![sample_address(Channel::Sms, "SMS")]),
        "schema_examples" => Participant {
            id: "conv_participant_01k1etx3jbfx88476ccja0889c".into(),
            conversation_id: "conv_conversation_01k1etk2y5f1y9fpe2epfdtvv2".into(),
            account_id: "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into(),
            display_name: "Dana S.".into(),
            profile_id: "mem_profile_00000000000000000000000000".into(),
            create_time: at(1_688_212_800, 0),
            update_time: at(1_688_212_800, 0),
            ..orchestrated(vec![
                reached(Channel::Sms, "SMS", "+18005550100", ""),
                reached(Channel::Voice, "VOICE", "+18005550100", ""),
                reached(Channel::Email, "EMAIL", "user@example.com", ""),
                reached(Channel::Whatsapp, "WHATSAPP", "whatsapp:+18005550100", ""),
                reached(Channel::Rcs, "RCS", "rcs:brand_acme_agent", ""),
                reached(Channel::Rcs, "RCS", "rcs:+18005550100", ""),
                reached(Channel::Chat, "CHAT", "chosen by the customer", "CH00000000000000000000000000000009"),
            ])
        },
        "all_null" => Participant { api_version: ApiVersion::V2.into(), ..Default::default() },
        "nothing" => Participant { api_version: ApiVersion::V2.into(), ..Default::default() },
        "nulls_within_addresses" => Participant {
            profile_id: String::new(),
            ..orchestrated(vec![reached(Channel::Sms, "SMS", "+18005550100", ""), Address::default()])
        },
        "unknown_words" => Participant {
            r#type: ParticipantType::Other.into(),
            upstream_type: "SUPERVISOR".into(),
            ..orchestrated(vec![
                sample_address(Channel::Other, "API"),
                sample_address(Channel::Other, "SYSTEM"),
                sample_address(Channel::Other, "carrier pigeon"),
                sample_address(Channel::Other, "OTHER"),
            ])
        },
        "type_unknown" => of_type(ParticipantType::Unknown, "UNKNOWN"),
        "type_agent" => of_type(ParticipantType::Agent, "AGENT"),
        "type_human_agent" => of_type(ParticipantType::HumanAgent, "HUMAN_AGENT"),
        "type_ai_agent" => of_type(ParticipantType::AiAgent, "AI_AGENT"),
        "nanoseconds" => Participant {
            id: "comms_participant_01k1etx3jbfx88476ccja0889c".into(),
            create_time: at(1_754_006_400, 123_456_789),
            update_time: at(1_754_006_400, 500_000_000),
            ..orchestrated(Vec::new())
        },
        "unknown_keys" => orchestrated(vec![sample_address(Channel::Sms, "SMS")]),
    }
}

/// The etag is checked apart: it is there, and it follows the content.
fn without_etag(mut participant: Participant) -> Participant {
    assert!(!std::mem::take(&mut participant.etag).is_empty());
    participant
}

async fn served(gateway: &Gateway, face: Face, body: &str) {
    let fault = json!({ "match": { "api": face.api(), "method": "GET" }, "times": 1, "body": body });
    gateway.sandbox.fault(fault).await;
}

async fn every_participant_reads_as_expected(
    face: Face,
    rows: Vec<(&'static str, &'static str, Participant)>,
) {
    let mut gateway = Gateway::start().await;
    let mut seen: Vec<(Participant, String)> = Vec::new();
    for (name, body, expected) in rows {
        served(&gateway, face, body).await;
        let (alone, _) = gateway.get(face.get_fresh()).await.unwrap();
        // The same in a page.
        served(&gateway, face, &format!(r#"{{"meta":{{}},"participants":[{body}]}}"#)).await;
        let page = gateway.list(fresh_list(face)).await.unwrap();
        assert_eq!(page.participants, std::slice::from_ref(&alone), "{name}");
        let etag = alone.etag.clone();
        assert_eq!(without_etag(alone), expected, "{name}");
        for (other, others) in &seen {
            let same = content(other) == content(&expected);
            assert_eq!(*others == etag, same, "the etag of {name}");
        }
        seen.push((expected, etag));
    }
}

/// What the etag is of: the way to a participant is no part of it.
fn content(participant: &Participant) -> Participant {
    Participant { service_id: String::new(), url: String::new(), ..participant.clone() }
}

fn fresh_list(face: Face) -> ListParticipantsRequest {
    ListParticipantsRequest { read_options: max_age(std::time::Duration::ZERO), ..face.list() }
}

#[tokio::test]
async fn every_v1_participant_reads_as_expected() {
    every_participant_reads_as_expected(Face::V1, v1_participants()).await;
}

#[tokio::test]
async fn every_v2_participant_reads_as_expected() {
    every_participant_reads_as_expected(Face::V2, v2_participants()).await;
}

#[tokio::test]
async fn the_samples_of_writes_are_answers_to_writes() {
    let mut gateway = Gateway::start().await;
    for (face, method, status, rows, names) in [
        (Face::V1, "POST", 201, v1_participants(), ["create_sms", "create_chat"].as_slice()),
        (Face::V1, "POST", 200, v1_participants(), &["update_date", "update_attributes"]),
        (Face::V2, "POST", 201, v2_participants(), &["create"]),
        (Face::V2, "PUT", 200, v2_participants(), &["update"]),
    ] {
        for (name, body, expected) in rows.into_iter().filter(|(name, ..)| names.contains(name)) {
            let fault = json!({ "match": { "method": method }, "times": 1, "status": status, "body": body });
            gateway.sandbox.fault(fault).await;
            let answer = if status == 201 {
                gateway.create(face.create(face.newcomer(1))).await.unwrap()
            } else {
                gateway.update(face.update(face.marked("x"))).await.unwrap()
            };
            assert_eq!(without_etag(answer), expected, "{name}");
        }
    }
}

// === Pages

#[tokio::test]
async fn the_documented_v1_page_reads_as_expected() {
    let mut gateway = Gateway::start().await;
    served(&gateway, Face::V1, fixture!("v1/list.json")).await;
    let page = gateway.list(Face::V1.list()).await.unwrap();
    // Its first page has a link to a previous one, which is none.
    assert_eq!(page.previous_page_token, "");
    let participants: Vec<_> = page.participants.into_iter().map(without_etag).collect();
    assert_eq!(participants, [classic(vec![sms()]), classic(vec![identity("IDENTITY")])]);

    // Its link to the next page has no token: what it has is what is sent.
    served(&gateway, Face::V1, fixture!("v1/list_empty.json")).await;
    let next = ListParticipantsRequest { page_token: page.next_page_token, ..Face::V1.list() };
    gateway.list(next).await.unwrap();
    assert_eq!(gateway.sandbox.requests().await.last().unwrap().query, "PageSize=50&Page=1");
}

#[tokio::test]
async fn a_v1_page_in_the_middle_leads_both_ways() {
    let mut gateway = Gateway::start().await;
    served(&gateway, Face::V1, fixture!("v1/list_middle.json")).await;
    let page = gateway.list(Face::V1.list()).await.unwrap();
    for (token, query) in [
        (page.next_page_token, format!("PageSize=50&Page=2&PageToken=PAMB{SID_DIGITS}")),
        (page.previous_page_token, format!("PageSize=50&Page=0&PageToken=PBMB{SID_DIGITS}")),
    ] {
        served(&gateway, Face::V1, fixture!("v1/list_empty.json")).await;
        let request = ListParticipantsRequest { page_token: token, ..Face::V1.list() };
        gateway.list(request).await.unwrap();
        assert_eq!(gateway.sandbox.requests().await.last().unwrap().query, query);
    }
}

#[tokio::test]
async fn the_last_v1_page_leads_nowhere() {
    let mut gateway = Gateway::start().await;
    for (body, count) in [(fixture!("v1/list_only_page.json"), 1), (fixture!("v1/list_empty.json"), 0)] {
        served(&gateway, Face::V1, body).await;
        let page = gateway.list(fresh_list(Face::V1)).await.unwrap();
        assert_eq!((page.next_page_token.as_str(), page.previous_page_token.as_str()), ("", ""));
        assert_eq!(page.participants.len(), count);
    }
}

#[tokio::test]
async fn the_documented_v2_page_reads_as_expected() {
    let mut gateway = Gateway::start().await;
    served(&gateway, Face::V2, fixture!("v2/list.json")).await;
    let page = gateway.list(Face::V2.list()).await.unwrap();
    let expected = Participant {
        account_id: "accountId".into(),
        display_name: "name".into(),
        ..orchestrated(vec![sample_address(Channel::Sms, "SMS")])
    };
    let participants: Vec<_> = page.participants.into_iter().map(without_etag).collect();
    assert_eq!(participants, [expected]);
    for (token, query) in [
        (page.next_page_token, "pageSize=50&pageToken=nextToken"),
        (page.previous_page_token, "pageSize=50&pageToken=previousToken"),
    ] {
        served(&gateway, Face::V2, fixture!("v2/list_token_null.json")).await;
        let request = ListParticipantsRequest { page_token: token, ..Face::V2.list() };
        gateway.list(request).await.unwrap();
        assert_eq!(gateway.sandbox.requests().await.last().unwrap().query, query);
    }
}

#[tokio::test]
async fn a_v2_page_ends_the_list_in_every_way_it_can() {
    let mut gateway = Gateway::start().await;
    let partial = Participant {
        id: "conv_participant_1".into(),
        api_version: ApiVersion::V2.into(),
        r#type: ParticipantType::HumanAgent.into(),
        upstream_type: "HUMAN_AGENT".into(),
        ..Default::default()
    };
    for (body, expected) in [
        (fixture!("v2/list_token_null.json"), vec![partial.clone()]),
        (fixture!("v2/list_token_absent.json"), vec![partial.clone()]),
        (fixture!("v2/list_token_empty.json"), vec![partial.clone()]),
        (fixture!("v2/list_no_meta.json"), vec![partial]),
        (fixture!("v2/list_all_null.json"), vec![]),
        (fixture!("v2/nothing.json"), vec![]),
    ] {
        served(&gateway, Face::V2, body).await;
        let page = gateway.list(fresh_list(Face::V2)).await.unwrap();
        assert_eq!((page.next_page_token.as_str(), page.previous_page_token.as_str()), ("", ""), "{body}");
        let participants: Vec<_> = page.participants.into_iter().map(without_etag).collect();
        assert_eq!(participants, expected, "{body}");
    }
}

// === Errors

struct ErrorSample {
    face: Face,
    body: &'static str,
    content_type: &'static str,
    status: u16,
    code: Code,
    reason: &'static str,
    twilio_code: Option<&'static str>,
}

fn error_samples() -> Vec<ErrorSample> {
    let row = |face, body, status, code, reason, twilio_code| ErrorSample {
        face,
        body,
        content_type: "application/json",
        status,
        code,
        reason,
        twilio_code,
    };
    vec![
        row(
            Face::V1,
            fixture!("v1/error.json"),
            409,
            Code::AlreadyExists,
            "PARTICIPANT_EXISTS",
            Some("50433"),
        ),
        row(
            Face::V1,
            fixture!("v1/error_with_details.json"),
            429,
            Code::ResourceExhausted,
            "UPSTREAM_THROTTLED",
            Some("20429"),
        ),
        row(
            Face::V1,
            fixture!("v1/error_names_conversation.json"),
            400,
            Code::AlreadyExists,
            "PARTICIPANT_EXISTS",
            Some("50416"),
        ),
        // Its codes stand in a list.
        row(
            Face::V1,
            fixture!("v1/error_bulk.json"),
            400,
            Code::InvalidArgument,
            "UPSTREAM_REJECTED_ARGUMENT",
            Some("20001"),
        ),
        ErrorSample {
            content_type: "text/html",
            ..row(Face::V1, fixture!("v1/error.html"), 502, Code::Unknown, "WRITE_OUTCOME_UNKNOWN", None)
        },
        row(Face::V1, fixture!("v1/error_empty.txt"), 404, Code::NotFound, "CONVERSATION_NOT_FOUND", None),
        ErrorSample {
            content_type: "application/problem+json",
            ..row(
                Face::V2,
                fixture!("v2/error_rfc9457.json"),
                409,
                Code::AlreadyExists,
                "PARTICIPANT_EXISTS",
                Some("520046"),
            )
        },
        row(
            Face::V2,
            fixture!("v2/error_iam.json"),
            400,
            Code::InvalidArgument,
            "UPSTREAM_REJECTED_ARGUMENT",
            Some("20001"),
        ),
        row(
            Face::V2,
            fixture!("v2/error_classic.json"),
            404,
            Code::NotFound,
            "CONVERSATION_NOT_FOUND",
            Some("20404"),
        ),
        row(
            Face::V2,
            fixture!("v2/error_operation.json"),
            404,
            Code::NotFound,
            "CONVERSATION_NOT_FOUND",
            None,
        ),
    ]
}

/// Nothing of what Twilio wrote for people reaches the caller.
fn tells_nobody(status: &Status) {
    let told = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
    for private in ["dana", "example.com", "html"] {
        assert!(!told.contains(private), "{told}");
    }
}

#[tokio::test]
async fn every_error_body_is_understood_and_none_is_handed_on() {
    let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
    for sample in error_samples() {
        let fault = json!({
            "match": { "method": "POST" },
            "times": 1,
            "status": sample.status,
            "body": sample.body,
            "content_type": sample.content_type,
        });
        gateway.sandbox.fault(fault).await;
        let newcomer = sample.face.newcomer(1);
        let error = gateway.create(sample.face.create(newcomer)).await.unwrap_err();
        assert_eq!(told(&error), (sample.code, sample.reason.into()), "{}", sample.body);
        let about = error.get_details_error_info().unwrap().metadata;
        assert_eq!(about.get("twilio_code").map(String::as_str), sample.twilio_code, "{}", sample.body);
        assert_eq!(about["http_status"], sample.status.to_string());
        tells_nobody(&error);
    }
}

#[tokio::test]
async fn the_conversation_that_a_taken_pair_names_is_told() {
    let mut gateway = Gateway::start().await;
    let body = fixture!("v1/error_names_conversation.json");
    gateway.sandbox.fault(json!({ "times": 1, "status": 400, "body": body })).await;
    let error = gateway.create(Face::V1.create(Face::V1.newcomer(1))).await.unwrap_err();
    let resource = error.get_details_resource_info().unwrap();
    assert_eq!(resource.resource_type, "participant.v1.Conversation");
    assert_eq!(resource.resource_name, "CH0123456789abcdef0123456789abcdef");
}

// === The sandbox's own answers have the documented keys

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What the sandbox answers to who asks it directly.
async fn asked(
    gateway: &Gateway,
    request: impl FnOnce(reqwest::Client, String) -> reqwest::RequestBuilder,
) -> Value {
    let base = format!("http://{}", gateway.addresses.sandbox.unwrap());
    let answer = request(reqwest::Client::new(), base)
        .basic_auth(sandbox::ACCOUNT_SID, Some(sandbox::AUTH_TOKEN))
        .send()
        .await
        .unwrap();
    answer.json().await.unwrap()
}

#[tokio::test]
async fn the_sandboxs_v1_answers_have_the_documented_keys() {
    let gateway = Gateway::start().await;
    let path = format!("/v1/Conversations/{}/Participants", sandbox::V1_CONVERSATION);
    let (chat, sms, page) = (
        parsed(fixture!("v1/create_chat.json")),
        parsed(fixture!("v1/create_sms.json")),
        parsed(fixture!("v1/list.json")),
    );
    let list = asked(&gateway, |http, base| http.get(format!("{base}{path}?PageSize=2"))).await;
    assert_eq!(keys(&list), keys(&page));
    assert_eq!(keys(&list["meta"]), keys(&page["meta"]));
    assert_eq!(list["meta"]["key"], page["meta"]["key"]);
    for item in list["participants"].as_array().unwrap() {
        assert_eq!(keys(item), keys(&chat));
        assert!(item["messaging_binding"].is_null());
    }
    let by_sms =
        asked(&gateway, |http, base| http.get(format!("{base}{path}/MB00000000000000000000000000000003")))
            .await;
    assert_eq!(keys(&by_sms), keys(&sms));
    assert_eq!(keys(&by_sms["messaging_binding"]), keys(&sms["messaging_binding"]));

    let created = asked(&gateway, |http, base| {
        http.post(format!("{base}{path}"))
            .form(&[("Identity", "eve"), ("MessagingBinding.ProjectedAddress", "+15550109007")])
    })
    .await;
    let member = parsed(fixture!("v1/group_mms_chat_member.json"));
    assert_eq!(keys(&created), keys(&member));
    assert_eq!(keys(&created["messaging_binding"]), keys(&member["messaging_binding"]));
    let created = asked(&gateway, |http, base| {
        http.post(format!("{base}{path}")).form(&[("MessagingBinding.Address", "+15550100077")])
    })
    .await;
    let alone = parsed(fixture!("v1/group_mms_address.json"));
    assert_eq!(keys(&created["messaging_binding"]), keys(&alone["messaging_binding"]));

    let on_service = asked(&gateway, |http, base| {
        let rest = path.trim_start_matches("/v1/");
        http.get(format!("{base}/v1/Services/{}/{rest}/alice", sandbox::SERVICE_SID))
    })
    .await;
    assert_eq!(keys(&on_service), keys(&parsed(fixture!("v1/identity_text_null.json"))));

    let error = asked(&gateway, |http, base| http.get(format!("{base}{path}/nobody"))).await;
    assert_eq!(keys(&error), keys(&parsed(fixture!("v1/error.json"))));
}

#[tokio::test]
async fn the_sandboxs_v2_answers_have_the_documented_keys() {
    let gateway = Gateway::start().await;
    let path = format!("/v2/Conversations/{}/Participants", sandbox::V2_CONVERSATION);
    let (fetch, page) = (parsed(fixture!("v2/fetch.json")), parsed(fixture!("v2/list.json")));
    let list = asked(&gateway, |http, base| http.get(format!("{base}{path}?pageSize=2"))).await;
    assert_eq!(keys(&list), keys(&page));
    assert_eq!(keys(&list["meta"]), keys(&page["meta"]));
    for item in list["participants"].as_array().unwrap() {
        assert_eq!(keys(item), keys(&page["participants"][0]));
    }
    let id = Face::V2.participant();
    let one = asked(&gateway, |http, base| http.get(format!("{base}{path}/{id}"))).await;
    assert_eq!(keys(&one), keys(&fetch));
    assert_eq!(keys(&one["addresses"][0]), keys(&fetch["addresses"][0]));
    let created = asked(&gateway, |http, base| {
        let body = json!({ "addresses": [{ "channel": "CHAT", "address": "eve" }] });
        http.post(format!("{base}{path}")).json(&body)
    })
    .await;
    assert_eq!(keys(&created), keys(&parsed(fixture!("v2/create.json"))));

    let documented = parsed(fixture!("v2/error_rfc9457.json"));
    let refused = asked(&gateway, |http, base| http.post(format!("{base}{path}")).json(&json!({}))).await;
    assert_eq!(keys(&refused), keys(&documented));
    assert_eq!(keys(&refused["errors"][0]), keys(&documented["errors"][0]));
    let missing = asked(&gateway, |http, base| http.get(format!("{base}{path}/nobody"))).await;
    let mut without_errors = keys(&documented);
    without_errors.remove("errors");
    assert_eq!(keys(&missing), without_errors);
}
