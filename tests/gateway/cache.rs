//! What the cache promises a caller.

use std::time::{Duration, Instant};

use participant_gateway::proto::*;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::*;
use crate::on_both_versions;

on_both_versions! {
    async fn a_second_get_is_a_hit_and_costs_no_request(face) {
        let mut gateway = Gateway::start().await;
        let (first, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!(status, CacheStatus::Miss);
        let (second, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!((status, gateway.sandbox.count().await), (CacheStatus::Hit, 1));
        assert_eq!(first, second);
    }

    async fn a_thousand_concurrent_gets_cost_one_request(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let mut calls = JoinSet::new();
        // The server takes 100 streams a connection; more wait in the client.
        for _ in 0..10 {
            let client = connect(gateway.addresses.grpc).await;
            for _ in 0..100 {
                let mut client = client.clone();
                calls.spawn(async move { client.get_participant(face.get()).await.unwrap().into_inner() });
            }
        }
        gateway.sandbox.held(1).await;
        gateway.sandbox.release().await;
        let answers = calls.join_all().await;
        assert_eq!((answers.len(), gateway.sandbox.count().await), (1000, 1));
        let first = &answers[0].participant;
        assert!(first.is_some() && answers.iter().all(|answer| answer.participant == *first));
        let misses = answers.iter().filter(|answer| {
            answer.read_info.as_ref().unwrap().cache_status() == CacheStatus::Miss
        });
        assert_eq!(misses.count(), 1);
    }

    async fn a_write_during_a_slow_load_wins(face) {
        let mut gateway = Gateway::start().await;
        // The load has read the old value at Twilio, and is on its way back while the write goes through.
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true, "after": true, "times": 1 })).await;
        let mut client = gateway.client.clone();
        let load = tokio::spawn(async move { client.get_participant(face.get()).await.unwrap().into_inner() });
        gateway.sandbox.held(1).await;
        gateway.update(face.update(face.marked("new"))).await.unwrap();

        let (during, _) = gateway.get(face.get()).await.unwrap();
        assert_eq!(face.mark(&during), "new");
        gateway.sandbox.release().await;
        let old = load.await.unwrap();
        assert_ne!(face.mark(&old.participant.unwrap()), "new");
        let (after, _) = gateway.get(face.get()).await.unwrap();
        assert_eq!(face.mark(&after), "new");
    }

    async fn every_write_forgets_participants_and_pages(face) {
        let mut gateway = Gateway::start().await;
        gateway.get(face.get()).await.unwrap();
        let before = gateway.list(face.list()).await.unwrap().participants.len();

        gateway.update(face.update(face.marked("changed"))).await.unwrap();
        let (changed, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!((face.mark(&changed).as_str(), status), ("changed", CacheStatus::Miss));
        let page = gateway.list(face.list()).await.unwrap();
        assert!(page.participants.contains(&changed));

        gateway.create(face.create(face.newcomer(1))).await.unwrap();
        assert_eq!(gateway.list(face.list()).await.unwrap().participants.len(), before + 1);
    }

    async fn a_write_whose_outcome_is_unknown_forgets_too(face) {
        let mut gateway = Gateway::start().await;
        gateway.get(face.get()).await.unwrap();
        let method = if face == Face::V1 { "POST" } else { "PUT" };
        let cut = json!({ "match": { "method": method }, "after": true, "hold": true, "cut": "before", "times": 1 });
        gateway.sandbox.fault(cut).await;
        let mut client = gateway.client.clone();
        let updating = tokio::spawn(async move { client.update_participant(face.update(face.marked("arrived"))).await });
        gateway.sandbox.held(1).await;
        // Nor can a read tell what became of it.
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "status": 404 })).await;
        gateway.sandbox.release().await;
        let error = updating.await.unwrap().unwrap_err();
        assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
        assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        gateway.sandbox.clear_faults().await;
        let (read, _) = gateway.get(face.get()).await.unwrap();
        assert_eq!(face.mark(&read), "arrived");
    }

    async fn that_there_is_none_is_remembered_for_a_while(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_CACHE_NEGATIVE_TTL", "60s")]).await;
        let missing = GetParticipantRequest { participant_id: face.missing_participant().into(), ..face.get() };
        for _ in 0..3 {
            let error = gateway.get(missing.clone()).await.unwrap_err();
            assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
        }
        let list = ListParticipantsRequest { conversation: Some(face.missing_conversation()), ..face.list() };
        for _ in 0..3 {
            let error = gateway.list(list.clone()).await.unwrap_err();
            assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
        }
        assert_eq!(gateway.sandbox.count().await, 2);
    }

    async fn a_failure_is_not_remembered(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        gateway.sandbox.fault(json!({ "status": 503, "times": 1 })).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Miss);
    }

    async fn max_age_zero_goes_to_twilio_and_refreshes_the_cache(face) {
        let mut gateway = Gateway::start().await;
        gateway.get(face.get()).await.unwrap();
        // A change that the gateway does not see.
        Gateway::beside(&gateway).await.update(face.update(face.marked("elsewhere"))).await.unwrap();
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
        let (fresh, status) = gateway.get(face.get_fresh()).await.unwrap();
        assert_eq!((face.mark(&fresh).as_str(), status), ("elsewhere", CacheStatus::Bypass));
        let (cached, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!((status, cached), (CacheStatus::Hit, fresh));
    }

    async fn what_the_sandbox_tells_is_forgotten(face) {
        let mut gateway = Gateway::told(&[]).await;
        gateway.get(face.get()).await.unwrap();
        Gateway::beside(&gateway).await.update(face.update(face.marked("elsewhere"))).await.unwrap();
        let told = gateway.sandbox.events_told().await;
        assert_eq!((&told["emitted"], &told["delivered"]), (&json!(1), &json!(1)));
        let (read, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!((face.mark(&read).as_str(), status), ("elsewhere", CacheStatus::Miss));
    }

    async fn an_answer_older_than_max_age_is_loaded_again(face) {
        let mut gateway = Gateway::start().await;
        gateway.get(face.get()).await.unwrap();
        let within = |age| GetParticipantRequest { read_options: max_age(age), ..face.get() };
        assert_eq!(gateway.get(within(Duration::from_secs(3600))).await.unwrap().1, CacheStatus::Hit);
        assert_eq!(gateway.get(within(Duration::from_nanos(1))).await.unwrap().1, CacheStatus::Miss);
    }

    async fn an_entry_ends_with_its_lifetime(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_CACHE_TTL", "100ms")]).await;
        gateway.get(face.get()).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        while gateway.get(face.get()).await.unwrap().1 == CacheStatus::Hit {
            assert!(Instant::now() < deadline, "it never expired");
        }
    }

    async fn a_load_goes_on_when_its_caller_has_given_up(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let mut impatient = tonic::Request::new(face.get());
        impatient.set_timeout(Duration::from_millis(200));
        let error = gateway.client.get_participant(impatient).await.unwrap_err();
        // Whose timer fires first, the gateway's or the client's own, is a matter of load.
        assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error:?}");
        gateway.sandbox.release().await;
        // Coalesced or hit, but not loaded a second time.
        gateway.get(face.get()).await.unwrap();
        assert_eq!(gateway.sandbox.count().await, 1);
    }

    async fn pages_are_cached_by_size_and_token(face) {
        let mut gateway = Gateway::start().await;
        let page = |size: i32, token: &str| ListParticipantsRequest {
            page_size: size,
            page_token: token.into(),
            ..face.list()
        };
        let first = gateway.list(page(2, "")).await.unwrap();
        for (size, token, requests) in [(2, "", 1), (1, "", 2), (2, &*first.next_page_token, 3), (2, "", 3)] {
            gateway.list(page(size, token)).await.unwrap();
            assert_eq!(gateway.sandbox.count().await, requests, "{size} {token:?}");
        }
    }

    async fn nothing_of_one_account_is_served_to_another(face) {
        let mut gateway = Gateway::with_accounts(&['1', '2'], &[]).await;
        let of = |digit| {
            let conversation = ConversationRef { account_id: account_id(digit), ..face.conversation() };
            GetParticipantRequest { conversation: Some(conversation), ..face.get() }
        };
        for digit in ['1', '2'] {
            let (participant, status) = gateway.get(of(digit)).await.unwrap();
            assert_eq!((participant.account_id, status), (account_id(digit), CacheStatus::Miss));
        }
        let asked: Vec<_> = gateway.sandbox.requests().await.into_iter().map(|request| request.account).collect();
        assert_eq!(asked, [account_id('1'), account_id('2')]);
        // The default account is the first, and shares its entry with those who name it.
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
        // One account's write makes only its own entry go.
        gateway.update(face.update(face.marked("changed"))).await.unwrap();
        assert_eq!(gateway.get(of('2')).await.unwrap().1, CacheStatus::Hit);
        assert_eq!(gateway.get(of('1')).await.unwrap().1, CacheStatus::Miss);
    }
}

#[tokio::test]
async fn an_identity_and_a_sid_are_both_cached_and_both_forgotten() {
    let mut gateway = Gateway::start().await;
    let by = |id: &str| GetParticipantRequest { participant_id: id.into(), ..Face::V1.get() };
    for id in ["alice", Face::V1.participant(), "alice", Face::V1.participant()] {
        gateway.get(by(id)).await.unwrap();
    }
    assert_eq!(gateway.sandbox.count().await, 2);
    gateway.update(Face::V1.update(Face::V1.marked("changed"))).await.unwrap();
    for id in ["alice", Face::V1.participant()] {
        let (participant, status) = gateway.get(by(id)).await.unwrap();
        assert_eq!((Face::V1.mark(&participant).as_str(), status), ("changed", CacheStatus::Miss));
    }
}

#[tokio::test]
async fn a_delete_then_get_is_not_found() {
    let mut gateway = Gateway::start().await;
    gateway.get(Face::V1.get()).await.unwrap();
    gateway.delete(Face::V1.delete()).await.unwrap();
    let error = gateway.get(Face::V1.get()).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
}

#[tokio::test]
async fn a_service_path_is_cached_apart_and_forgotten_together() {
    let mut gateway = Gateway::start().await;
    let service_id = participant_gateway::sandbox::SERVICE_SID.to_owned();
    let conversation = ConversationRef { service_id, ..Face::V1.conversation() };
    let get = GetParticipantRequest { conversation: Some(conversation), ..Face::V1.get() };
    let (on_service, status) = gateway.get(get.clone()).await.unwrap();
    assert_eq!(
        (on_service.service_id.as_str(), status),
        (participant_gateway::sandbox::SERVICE_SID, CacheStatus::Miss)
    );
    let (plain, status) = gateway.get(Face::V1.get()).await.unwrap();
    assert_eq!((plain.service_id.as_str(), status, &plain.etag), ("", CacheStatus::Miss, &on_service.etag));
    gateway.update(Face::V1.update(Face::V1.marked("changed"))).await.unwrap();
    assert_eq!(Face::V1.mark(&gateway.get(get).await.unwrap().0), "changed");
}

#[tokio::test]
async fn a_unique_name_is_cached_under_its_sid_as_soon_as_an_answer_tells_it() {
    let mut gateway = Gateway::start().await;
    let named = ConversationRef {
        conversation_id: "sandbox".into(),
        api_version: ApiVersion::V1.into(),
        ..Default::default()
    };
    let get = GetParticipantRequest { conversation: Some(named.clone()), ..Face::V1.get() };
    let statuses = [
        gateway.get(get.clone()).await.unwrap().1,
        gateway.get(get.clone()).await.unwrap().1,
        gateway.get(Face::V1.get()).await.unwrap().1,
    ];
    assert_eq!(statuses, [CacheStatus::Bypass, CacheStatus::Hit, CacheStatus::Hit]);
    // A write by name forgets what is cached by SID.
    let update =
        UpdateParticipantRequest { conversation: Some(named), ..Face::V1.update(Face::V1.marked("by name")) };
    gateway.update(update).await.unwrap();
    assert_eq!(Face::V1.mark(&gateway.get(Face::V1.get()).await.unwrap().0), "by name");
}

#[tokio::test]
async fn a_write_by_a_name_that_no_answer_has_told_forgets_everything() {
    let mut gateway = Gateway::start().await;
    gateway.get(Face::V1.get()).await.unwrap();
    let conversation = ConversationRef {
        conversation_id: "sandbox".into(),
        api_version: ApiVersion::V1.into(),
        ..Default::default()
    };
    gateway
        .delete(DeleteParticipantRequest { conversation: Some(conversation), ..Face::V1.delete() })
        .await
        .unwrap();
    assert_eq!(gateway.get(Face::V1.get()).await.unwrap_err().code(), Code::NotFound);
}

fn named(id: &str) -> Option<ConversationRef> {
    Some(ConversationRef {
        conversation_id: id.into(),
        api_version: ApiVersion::V1.into(),
        ..Default::default()
    })
}

#[tokio::test]
async fn a_refused_write_by_an_unknown_name_costs_nobody_the_cache() {
    let mut gateway = Gateway::start().await;
    gateway.get(Face::V2.get()).await.unwrap();
    let create = Face::V1.create(Face::V1.newcomer(1));
    let error = gateway
        .create(CreateParticipantRequest { conversation: named("mistyped"), ..create })
        .await
        .unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
    assert_eq!(gateway.get(Face::V2.get()).await.unwrap().1, CacheStatus::Hit);
}

#[tokio::test]
async fn max_age_zero_asks_twilio_for_the_name_and_not_for_what_it_meant() {
    let mut gateway = Gateway::start().await;
    let get = GetParticipantRequest { conversation: named("sandbox"), ..Face::V1.get() };
    gateway.get(get.clone()).await.unwrap();
    gateway.get(GetParticipantRequest { read_options: max_age(Duration::ZERO), ..get }).await.unwrap();
    let paths: Vec<_> = gateway.sandbox.requests().await.into_iter().map(|request| request.path).collect();
    assert!(
        paths.len() == 2 && paths.iter().all(|path| path.contains("/Conversations/sandbox/")),
        "{paths:?}"
    );
}

on_both_versions! {
    async fn a_cache_without_a_lifetime_keeps_nobody_waiting(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_CACHE_TTL", "0s")]).await;
        for requests in 1..=2 {
            assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Bypass);
            assert_eq!(gateway.sandbox.count().await, requests);
        }
    }
}

/// No event tells that a name was given to another conversation.
#[tokio::test]
async fn a_unique_name_that_means_another_conversation_by_now_is_found_out_as_soon_as_without_events() {
    let mut gateway =
        Gateway::with(&[("GATEWAY_CACHE_TTL", "1h"), ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "100ms")]).await;
    let list = ListParticipantsRequest { conversation: named("moving"), ..Face::V1.list() };
    let first = json!({ "unique_name": "moving", "participants": [{ "identity": "erin" }] });
    let first = gateway.sandbox.arrange(first).await.remove(0);
    assert_eq!(gateway.list(list.clone()).await.unwrap().participants[0].conversation_id, first);
    gateway.sandbox.arrange(json!({ "conversation": first, "unique_name": "moved" })).await;
    let second = json!({ "unique_name": "moving", "participants": [{ "identity": "frank" }] });
    let second = gateway.sandbox.arrange(second).await.remove(0);
    let deadline = Instant::now() + PATIENCE;
    while gateway.list(list.clone()).await.unwrap().participants[0].conversation_id != second {
        assert!(Instant::now() < deadline, "the name means what it meant, for an hour");
    }
}

/// The name may be another conversation's by then.
#[tokio::test]
async fn a_unique_name_that_is_not_found_is_asked_for_anew() {
    let mut gateway = Gateway::start().await;
    let named = ConversationRef {
        conversation_id: "sandbox".into(),
        api_version: ApiVersion::V1.into(),
        ..Default::default()
    };
    let by_name = GetParticipantRequest { conversation: Some(named), ..Face::V1.get() };
    gateway.get(by_name.clone()).await.unwrap();
    gateway.sandbox.fault(json!({ "status": 404, "times": 1 })).await;
    let fresh = GetParticipantRequest { read_options: max_age(Duration::ZERO), ..by_name.clone() };
    assert_eq!(gateway.get(fresh).await.unwrap_err().code(), Code::NotFound);
    gateway.sandbox.forget_requests().await;
    gateway.get(by_name).await.unwrap();
    let requests = gateway.sandbox.requests().await;
    assert!(requests[0].path.contains("/Conversations/sandbox/"), "{}", requests[0].path);
}
