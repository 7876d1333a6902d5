//! Writes whose answer is lost, and writes that are repeated: one participant, and a true answer.

use std::collections::BTreeMap;
use std::time::Duration;

use participant_gateway::app::Stop;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::on_both_versions;

pub const ID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
const OTHER_ID: &str = "00000000-0000-4000-8000-000000000001";

pub fn with_id(face: Face, newcomer: u16) -> CreateParticipantRequest {
    CreateParticipantRequest { request_id: ID.into(), ..face.create(face.newcomer(newcomer)) }
}

fn update_method(face: Face) -> &'static str {
    if face == Face::V1 { "POST" } else { "PUT" }
}

/// How many requests of each method Twilio got.
async fn sent(gateway: &Gateway) -> BTreeMap<String, usize> {
    let mut sent = BTreeMap::new();
    for request in gateway.sandbox.requests().await {
        *sent.entry(request.method).or_default() += 1;
    }
    sent
}

pub async fn posts(gateway: &Gateway) -> usize {
    sent(gateway).await.get("POST").copied().unwrap_or_default()
}

/// How many participants have the newcomer's address.
pub async fn there(gateway: &mut Gateway, face: Face, newcomer: u16) -> usize {
    let address = face.newcomer(newcomer).addresses[0].address.clone();
    let fresh =
        ListParticipantsRequest { read_options: max_age(Duration::ZERO), page_size: 100, ..face.list() };
    let participants = gateway.list(fresh).await.unwrap().participants;
    participants.iter().filter(|participant| participant.addresses[0].address == address).count()
}

on_both_versions! {
    // === Writes whose answer is lost

    async fn a_create_that_took_effect_is_told_whatever_became_of_its_answer(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "500ms")]).await;
        let lost = [
            json!({ "cut": "before" }),
            json!({ "cut": "mid" }),
            json!({ "status": 503 }),
            json!({ "status": 500, "code": 20500 }),
            json!({ "latency_ms": 60_000 }),
        ];
        for (newcomer, mut lost) in (1..).zip(lost) {
            lost["match"] = json!({ "method": "POST" });
            lost["after"] = json!(true);
            lost["times"] = json!(1);
            gateway.sandbox.fault(lost.clone()).await;
            gateway.sandbox.forget_requests().await;
            let created = gateway.create(face.create(face.newcomer(newcomer))).await.unwrap();
            assert_eq!(created.addresses[0].address, face.newcomer(newcomer).addresses[0].address, "{lost}");
            assert_eq!(sent(&gateway).await, [("GET".to_owned(), 1), ("POST".to_owned(), 1)].into(), "{lost}");
            assert_eq!(there(&mut gateway, face, newcomer).await, 1, "{lost}");
        }
    }

    async fn a_create_that_did_not_arrive_stays_unknown_after_one_look(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "cut": "before", "times": 1 })).await;
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
        assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        assert_eq!(sent(&gateway).await, [("GET".to_owned(), 1), ("POST".to_owned(), 1)].into());
        assert_eq!(there(&mut gateway, face, 1).await, 0);
    }

    async fn a_look_that_fails_leaves_it_unknown(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
        gateway.sandbox.fault(lost).await;
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "status": 503, "times": 1 })).await;
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
        assert_eq!(there(&mut gateway, face, 1).await, 1);
    }

    /// The lost answer is the last failure that it takes.
    async fn a_look_waits_until_the_circuit_lets_it_through(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_BREAKER_FAILURES", "1")]).await;
        let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
        gateway.sandbox.fault(lost).await;
        let created = gateway.create(face.create(face.newcomer(1))).await.unwrap();
        assert_eq!(created.addresses[0].address, face.newcomer(1).addresses[0].address);

        let mut lost = json!({ "after": true, "cut": "before", "times": 1 });
        lost["match"] = json!({ "method": update_method(face) });
        gateway.sandbox.fault(lost).await;
        gateway.update(face.update(face.marked("found"))).await.unwrap();
    }

    async fn whoever_was_there_before_is_in_the_way_and_not_the_answer(face) {
        let mut gateway = Gateway::start().await;
        // The seeds are far older than this create.
        let there = gateway.get(face.get()).await.unwrap().0;
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 })).await;
        let again = Participant { addresses: there.addresses.clone(), ..Default::default() };
        let error = gateway.create(face.create(again)).await.unwrap_err();
        assert_eq!(told(&error), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        let resource = error.get_details_resource_info().unwrap();
        assert_eq!((resource.resource_type.as_str(), resource.resource_name), ("participant.v1.Participant", there.id));
    }

    async fn another_who_came_at_the_same_moment_is_not_the_answer_either(face) {
        let mut gateway = Gateway::start().await;
        let other = face.marked("the other's");
        let other = Participant { addresses: face.newcomer(1).addresses, ..other };
        let other = gateway.create(face.create(other)).await.unwrap();
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "cut": "before", "times": 1 })).await;
        let ours = Participant { addresses: face.newcomer(1).addresses, ..face.marked("ours") };
        let error = gateway.create(face.create(ours)).await.unwrap_err();
        assert_eq!(told(&error), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        assert_eq!(error.get_details_resource_info().unwrap().resource_name, other.id);
    }

    async fn the_look_goes_through_pages_and_ends(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.populate(&face.conversation(), if face == Face::V1 { 900 } else { 2500 }).await;
        let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
        gateway.sandbox.fault(lost).await;
        gateway.sandbox.forget_requests().await;
        gateway.create(face.create(face.newcomer(1))).await.unwrap();
        // 904 by 100, and 2504 by 1000.
        let pages = if face == Face::V1 { 10 } else { 3 };
        assert_eq!(sent(&gateway).await, [("GET".to_owned(), pages), ("POST".to_owned(), 1)].into());
    }

    async fn an_update_that_took_effect_is_told_whatever_became_of_its_answer(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "500ms")]).await;
        for (number, mut lost) in [json!({ "cut": "mid" }), json!({ "status": 502 }), json!({ "latency_ms": 60_000 })]
            .into_iter()
            .enumerate()
        {
            lost["match"] = json!({ "method": update_method(face) });
            lost["after"] = json!(true);
            lost["times"] = json!(1);
            gateway.sandbox.fault(lost.clone()).await;
            gateway.sandbox.forget_requests().await;
            let mark = format!("mark {number}");
            let updated = gateway.update(face.update(face.marked(&mark))).await.unwrap();
            assert_eq!(face.mark(&updated), mark, "{lost}");
            assert_eq!(sent(&gateway).await[update_method(face)], 1, "{lost}");
        }
    }

    // === Request ids

    async fn the_same_request_id_answers_the_first_outcome_and_sends_nothing(face) {
        let mut gateway = Gateway::start().await;
        let created = gateway.create(with_id(face, 1)).await.unwrap();
        gateway.sandbox.forget_requests().await;
        for id in [ID.to_owned(), ID.to_ascii_uppercase()] {
            let again = CreateParticipantRequest { request_id: id, ..with_id(face, 1) };
            assert_eq!(gateway.create(again).await.unwrap(), created);
        }
        assert_eq!(gateway.sandbox.count().await, 0);
        assert_eq!(there(&mut gateway, face, 1).await, 1);
    }

    async fn calls_at_the_same_time_with_one_request_id_create_once(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true })).await;
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let mut client = gateway.client.clone();
                tokio::spawn(async move { client.create_participant(with_id(face, 1)).await })
            })
            .collect();
        gateway.sandbox.held(1).await;
        gateway.sandbox.clear_faults().await;
        let mut ids = Vec::new();
        for call in calls {
            ids.push(call.await.unwrap().unwrap().into_inner().participant.unwrap().id);
        }
        assert_eq!(ids.len(), 20);
        ids.dedup();
        assert_eq!((ids.len(), posts(&gateway).await), (1, 1));
    }

    async fn a_request_id_that_comes_with_another_request_is_refused(face) {
        let mut gateway = Gateway::start().await;
        gateway.create(with_id(face, 1)).await.unwrap();
        gateway.sandbox.forget_requests().await;
        let error = gateway.create(with_id(face, 2)).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["request_id"]);
        assert_eq!(gateway.sandbox.count().await, 0);
        let other = CreateParticipantRequest { request_id: OTHER_ID.into(), ..with_id(face, 2) };
        gateway.create(other).await.unwrap();
    }

    async fn what_is_no_uuid_is_refused(face) {
        let mut gateway = Gateway::start().await;
        for id in ["1", "00000000-0000-0000-0000-000000000000", "{7c9e6679-7425-40de-944b-e07fc1f90ae7}", "é"] {
            let error = gateway.create(CreateParticipantRequest { request_id: id.into(), ..with_id(face, 1) }).await;
            assert_eq!(refused_fields(&error.unwrap_err()), ["request_id"], "{id}");
        }
        assert_eq!(gateway.sandbox.count().await, 0);
    }

    async fn a_refusal_of_twilios_is_an_outcome(face) {
        let mut gateway = Gateway::start().await;
        let there = gateway.get(face.get()).await.unwrap().0;
        let taken = Participant { addresses: there.addresses, ..Default::default() };
        let request = CreateParticipantRequest { request_id: ID.into(), ..face.create(taken) };
        let first = gateway.create(request.clone()).await.unwrap_err();
        gateway.sandbox.forget_requests().await;
        let again = gateway.create(request).await.unwrap_err();
        assert_eq!(told(&first), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        assert_eq!((told(&again), again.message()), (told(&first), first.message()));
        assert_eq!(gateway.sandbox.count().await, 0);
    }

    async fn an_unknown_outcome_is_an_outcome(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "status": 503, "times": 1 })).await;
        let first = gateway.create(with_id(face, 1)).await.unwrap_err();
        gateway.sandbox.forget_requests().await;
        let again = gateway.create(with_id(face, 1)).await.unwrap_err();
        assert_eq!(told(&first), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
        assert_eq!(told(&again), told(&first));
        assert_eq!(gateway.sandbox.count().await, 0);
    }

    async fn what_was_never_processed_leaves_the_request_id_free(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        for (status, reason) in [(429, "UPSTREAM_THROTTLED"), (401, "UPSTREAM_CREDENTIALS_REJECTED")] {
            gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "status": status, "times": 2 })).await;
            let error = gateway.create(with_id(face, 1)).await.unwrap_err();
            assert_eq!(told(&error).1, reason);
            gateway.sandbox.clear_faults().await;
        }
        gateway.create(with_id(face, 1)).await.unwrap();
        assert_eq!(there(&mut gateway, face, 1).await, 1);
    }

    async fn an_outcome_that_comes_after_the_deadline_is_told_to_who_asks_again(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true, "times": 1 })).await;
        let mut impatient = Request::new(with_id(face, 1));
        impatient.set_timeout(Duration::from_millis(500));
        let error = gateway.client.create_participant(impatient).await.unwrap_err();
        // A tonic client's own timer may come first.
        assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error:?}");
        gateway.sandbox.held(1).await;
        let mut client = gateway.client.clone();
        let again = tokio::spawn(async move { client.create_participant(with_id(face, 1)).await });
        gateway.sandbox.release().await;
        again.await.unwrap().unwrap();
        assert_eq!(posts(&gateway).await, 1);
        assert_eq!(there(&mut gateway, face, 1).await, 1);
    }

    async fn a_request_id_is_known_to_its_process_and_its_account_only(face) {
        let mut gateway = Gateway::with_accounts(&['1', '2'], &[]).await;
        gateway.create(with_id(face, 1)).await.unwrap();
        let elsewhere = ConversationRef { account_id: account_id('2'), ..face.conversation() };
        let other = CreateParticipantRequest { conversation: Some(elsewhere), ..with_id(face, 2) };
        gateway.create(other).await.unwrap();
        assert_eq!(posts(&gateway).await, 2);
    }
}

/// Support article 50009103572635: a participant who is added again after a removal can be answered so.
#[tokio::test]
async fn a_false_404_of_v1_is_found_out() {
    let mut gateway = Gateway::start().await;
    let face = Face::V1;
    let lie =
        json!({ "match": { "method": "POST" }, "after": true, "status": 404, "code": 20404, "times": 1 });
    gateway.sandbox.fault(lie).await;
    let created = gateway.create(face.create(face.newcomer(1))).await.unwrap();
    assert_eq!(created.addresses, face.newcomer(1).addresses);
    assert_eq!(sent(&gateway).await, [("GET".to_owned(), 1), ("POST".to_owned(), 1)].into());
}

/// A 404 that may be false, and a look that fails: nobody can tell, and the id must not pin a wrong answer.
#[tokio::test]
async fn a_404_of_v1_whose_look_fails_is_unknown() {
    let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
    let face = Face::V1;
    let lie =
        json!({ "match": { "method": "POST" }, "after": true, "status": 404, "code": 20404, "times": 1 });
    gateway.sandbox.fault(lie).await;
    gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "status": 503, "times": 1 })).await;
    let error = gateway.create(with_id(face, 1)).await.unwrap_err();
    assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
    assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    assert_eq!(error.get_details_error_info().unwrap().metadata["twilio_code"], "20404");
    assert_eq!(there(&mut gateway, face, 1).await, 1);
}

/// Twilio says that there is none, and a list of the whole conversation agrees.
#[tokio::test]
async fn a_404_of_v1_that_the_list_confirms_stays_one() {
    let mut gateway = Gateway::start().await;
    let lie = json!({ "match": { "method": "POST" }, "status": 404, "code": 20404, "times": 1 });
    gateway.sandbox.fault(lie).await;
    let error = gateway.create(Face::V1.create(Face::V1.newcomer(1))).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
    assert_eq!(sent(&gateway).await, [("GET".to_owned(), 1), ("POST".to_owned(), 1)].into());
}

/// v1 tells whole seconds.
#[tokio::test]
async fn a_time_with_a_fraction_is_found_again() {
    let mut gateway = Gateway::start().await;
    let face = Face::V1;
    let at = "2026-01-02T03:04:05.25Z".parse().ok();
    let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
    gateway.sandbox.fault(lost.clone()).await;
    let dated = Participant { create_time: at, update_time: at, ..face.newcomer(1) };
    let created = gateway.create(face.create(dated)).await.unwrap();
    assert_eq!(created.create_time.unwrap().seconds, at.unwrap().seconds);

    gateway.sandbox.fault(lost).await;
    let read = Participant { last_read_time: at, ..Default::default() };
    gateway.update(face.update(read)).await.unwrap();
}

/// On v2 the channel is a part of the address: the same number on another one is somebody else's.
#[tokio::test]
async fn the_same_number_on_another_channel_is_somebody_else() {
    let mut gateway = Gateway::start().await;
    let face = Face::V2;
    let participants = gateway.list(face.list()).await.unwrap().participants;
    let voice = participants.iter().find(|one| one.addresses[0].channel() == Channel::Voice).unwrap();
    let address = Address {
        channel: Channel::Sms.into(),
        upstream_channel: String::new(),
        ..voice.addresses[0].clone()
    };
    let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
    gateway.sandbox.fault(lost).await;
    let sms = Participant { addresses: vec![address], ..Default::default() };
    let created = gateway.create(face.create(sms)).await.unwrap();
    assert_ne!(created.id, voice.id);
    assert_eq!(created.addresses[0].channel(), Channel::Sms);
}

/// Twilio tells no more than a create's second, so that only a wait of seconds can tell them apart.
#[tokio::test]
async fn another_who_came_while_the_create_waited_to_be_sent_is_not_the_answer() {
    let settings = [("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "15s")];
    let (mut gateway, face) = (Gateway::with(&settings).await, Face::V1);
    let busy = json!({ "match": { "method": "POST" }, "hold": true, "status": 429, "times": 1 });
    gateway.sandbox.fault(busy).await;
    let mut client = gateway.client.clone();
    let ours = tokio::spawn(async move { client.create_participant(face.create(face.newcomer(1))).await });
    gateway.sandbox.held(1).await;
    let four_seconds_ago = std::time::SystemTime::now() - Duration::from_secs(4);
    let other = Participant { create_time: Some(four_seconds_ago.into()), ..face.newcomer(1) };
    let other = gateway.create(face.create(other)).await.unwrap();
    jump(Duration::from_secs(5));
    gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "cut": "before", "times": 1 })).await;
    gateway.sandbox.release().await;
    let error = ours.await.unwrap().unwrap_err();
    assert_eq!(told(&error), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
    assert_eq!(error.get_details_resource_info().unwrap().resource_name, other.id);
}

#[tokio::test]
async fn a_look_takes_the_way_that_the_create_took() {
    let mut gateway = Gateway::start().await;
    let service = ConversationRef { service_id: sandbox::SERVICE_SID.into(), ..Face::V1.conversation() };
    let named = ConversationRef { api_version: ApiVersion::V1.into(), ..Face::named("sandbox") };
    for (newcomer, (conversation, way)) in
        (1..).zip([(service, "/v1/Services/IS"), (named, "/v1/Conversations/sandbox/")])
    {
        let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
        gateway.sandbox.fault(lost).await;
        gateway.sandbox.forget_requests().await;
        let create = CreateParticipantRequest {
            conversation: Some(conversation),
            ..Face::V1.create(Face::V1.newcomer(newcomer))
        };
        gateway.create(create).await.unwrap();
        let paths: Vec<String> = gateway.sandbox.requests().await.into_iter().map(|sent| sent.path).collect();
        assert!(paths.len() == 2 && paths.iter().all(|path| path.starts_with(way)), "{paths:?}");
    }
}

#[tokio::test]
async fn an_honest_404_of_v1_stays_one_after_one_look() {
    let mut gateway = Gateway::start().await;
    let face = Face::V1;
    let missing = CreateParticipantRequest {
        conversation: Some(face.missing_conversation()),
        ..face.create(face.newcomer(1))
    };
    let error = gateway.create(missing).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
    assert_eq!(sent(&gateway).await, [("GET".to_owned(), 1), ("POST".to_owned(), 1)].into());

    // Nor is another code's, or an update's, looked into.
    gateway.sandbox.forget_requests().await;
    let other = json!({ "match": { "method": "POST" }, "status": 404, "code": 50350, "times": 1 });
    gateway.sandbox.fault(other).await;
    gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
    let lie = json!({ "match": { "method": "POST" }, "status": 404, "code": 20404, "times": 1 });
    gateway.sandbox.fault(lie).await;
    let error = gateway.update(face.update(face.marked("x"))).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
    assert_eq!(sent(&gateway).await, [("POST".to_owned(), 2)].into());
}

/// v2 does not document a false 404, so its 404 is believed.
#[tokio::test]
async fn a_404_of_v2_is_believed() {
    let mut gateway = Gateway::start().await;
    let face = Face::V2;
    let missing = CreateParticipantRequest {
        conversation: Some(face.missing_conversation()),
        ..face.create(face.newcomer(1))
    };
    let error = gateway.create(missing).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
    assert_eq!(sent(&gateway).await, [("POST".to_owned(), 1)].into());
}

/// The pair of address and proxy address is v1's other natural key.
#[tokio::test]
async fn an_sms_participant_is_found_by_address_and_proxy() {
    let mut gateway = Gateway::start().await;
    let sms = |proxy: &str| Participant {
        addresses: vec![Address {
            address: "+15550110001".into(),
            proxy_address: proxy.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    gateway.create(Face::V1.create(sms("+15550119001"))).await.unwrap();
    let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
    gateway.sandbox.fault(lost).await;
    let created = gateway.create(Face::V1.create(sms("+15550119002"))).await.unwrap();
    assert_eq!(created.addresses[0].proxy_address, "+15550119002");
}

/// The drain waits for the write and for the look after it.
#[tokio::test]
async fn a_look_under_way_holds_the_drain() {
    let mut gateway = Gateway::start().await;
    let face = Face::V1;
    let lost = json!({ "match": { "method": "POST" }, "after": true, "cut": "before", "times": 1 });
    gateway.sandbox.fault(lost).await;
    gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true, "times": 1 })).await;
    let mut client = gateway.client.clone();
    let creating =
        tokio::spawn(async move { client.create_participant(face.create(face.newcomer(1))).await });
    gateway.sandbox.held(1).await;
    gateway.stop(Stop::Promptly);
    gateway.sandbox.release().await;
    creating.await.unwrap().unwrap();
    gateway.ended().await.unwrap();
}
