//! Reads past an entry's lifetime: told while they are renewed, or where Twilio cannot be read, and never beyond a change
//! that is known.

use std::time::{Duration, Instant};

use participant_gateway::proto::*;
use prost_types::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

/// Every answer is past its lifetime soon, and nothing is sent twice.
const SHORT: &[(&str, &str)] = &[
    ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "50ms"),
    ("GATEWAY_CACHE_STALE_WHILE_REVALIDATE", "0s"),
    ("GATEWAY_UPSTREAM_MAX_RETRIES", "0"),
    ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0"),
];

/// Answers are fresh for longer than a test takes.
const LONG: &[(&str, &str)] = &[
    ("GATEWAY_CACHE_TTL", "1h"),
    ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "1h"),
    ("GATEWAY_UPSTREAM_MAX_RETRIES", "0"),
    ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0"),
];

/// An answer is renewed from the second second of its life, and told until the third.
const REVALIDATING: &[(&str, &str)] = &[
    ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "2s"),
    ("GATEWAY_CACHE_STALE_WHILE_REVALIDATE", "1h"),
    ("GATEWAY_CACHE_ALLOW_STALE_ON_ERROR", "false"),
    ("GATEWAY_UPSTREAM_MAX_RETRIES", "0"),
    ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0"),
];

fn options(max_age: Option<Duration>, allow_stale_on_error: Option<bool>) -> Option<ReadOptions> {
    let max_age = max_age.map(|age| age.try_into().unwrap());
    Some(ReadOptions { max_age, allow_stale_on_error })
}

/// Fresh from Twilio, or else anything that there is.
fn fresh_or_stale() -> Option<ReadOptions> {
    options(Some(Duration::ZERO), Some(true))
}

fn down() -> Value {
    json!({ "match": { "method": "GET" }, "status": 503 })
}

/// A read's answer: the participant, how it came, and as of when.
async fn read(
    gateway: &Gateway,
    face: Face,
    read_options: Option<ReadOptions>,
) -> Result<(Participant, CacheStatus, Timestamp), Status> {
    let request = GetParticipantRequest { read_options, ..face.get() };
    let answer = gateway.client.clone().get_participant(request).await?.into_inner();
    let info = answer.read_info.unwrap();
    Ok((answer.participant.unwrap(), info.cache_status(), info.fetch_time.unwrap()))
}

/// Reads until the cache alone does not serve.
async fn past_its_lifetime(
    gateway: &Gateway,
    face: Face,
    read_options: Option<ReadOptions>,
) -> Result<(Participant, CacheStatus, Timestamp), Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match read(gateway, face, read_options).await {
            Ok((_, CacheStatus::Hit, _)) => assert!(Instant::now() < deadline, "it is fresh for ever"),
            other => return other,
        }
    }
}

async fn elsewhere(gateway: &Gateway, face: Face, mark: &str) {
    Gateway::beside(gateway).await.update(face.update(face.marked(mark))).await.unwrap();
}

on_both_versions! {
    async fn while_twilio_is_away_what_was_read_last_is_told_with_its_age(face) {
        let gateway = Gateway::with(SHORT).await;
        let (first, _, fetched) = read(&gateway, face, None).await.unwrap();
        for away in [
            json!({ "status": 500 }),
            json!({ "status": 503 }),
            json!({ "status": 429 }),
            json!({ "status": 400, "code": 20429 }),
            json!({ "cut": "before" }),
            json!({ "cut": "mid" }),
        ] {
            gateway.sandbox.fault(away.clone()).await;
            let stale = past_its_lifetime(&gateway, face, None).await.unwrap();
            assert_eq!(stale, (first.clone(), CacheStatus::StaleOnError, fetched), "{away}");
            gateway.sandbox.clear_faults().await;
        }
        let (_, status, later) = read(&gateway, face, None).await.unwrap();
        assert_eq!(status, CacheStatus::Miss);
        assert!((later.seconds, later.nanos) > (fetched.seconds, fetched.nanos));
    }

    async fn what_twilio_answers_is_told_whatever_is_cached(face) {
        let gateway = Gateway::with(LONG).await;
        read(&gateway, face, None).await.unwrap();
        for (answer, code) in [
            (json!({ "status": 400 }), Code::InvalidArgument),
            (json!({ "status": 401 }), Code::FailedPrecondition),
            (json!({ "status": 403 }), Code::FailedPrecondition),
            (json!({ "body": "{" }), Code::Internal),
            (json!({ "status": 404 }), Code::NotFound),
        ] {
            gateway.sandbox.fault(answer.clone()).await;
            let error = read(&gateway, face, fresh_or_stale()).await.unwrap_err();
            assert_eq!(error.code(), code, "{answer}");
            gateway.sandbox.clear_faults().await;
        }
        // That it is gone is known now.
        gateway.sandbox.fault(down()).await;
        let error = read(&gateway, face, fresh_or_stale()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
    }

    async fn a_caller_decides_what_may_be_stale(face) {
        let gateway = Gateway::with(LONG).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.fault(down()).await;
        // An age of its own is a promise to the caller, unless it says otherwise.
        for max_age in [Duration::ZERO, Duration::from_nanos(1)] {
            for allowed in [None, Some(false)] {
                let error = read(&gateway, face, options(Some(max_age), allowed)).await.unwrap_err();
                assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
            }
            let (_, status, _) = read(&gateway, face, options(Some(max_age), Some(true))).await.unwrap();
            assert_eq!(status, CacheStatus::StaleOnError);
        }
        let (_, status, _) = read(&gateway, face, options(None, Some(false))).await.unwrap();
        assert_eq!(status, CacheStatus::Hit, "that is not stale");
    }

    async fn who_wants_nothing_stale_is_told_the_error(face) {
        let gateway = Gateway::with(SHORT).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.fault(down()).await;
        let error = past_its_lifetime(&gateway, face, options(None, Some(false))).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(read(&gateway, face, None).await.unwrap().1, CacheStatus::StaleOnError);
    }

    async fn the_default_is_the_configurations(face) {
        let off = [SHORT, &[("GATEWAY_CACHE_ALLOW_STALE_ON_ERROR", "false")]].concat();
        let gateway = Gateway::with(&off).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.fault(down()).await;
        let error = past_its_lifetime(&gateway, face, None).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(read(&gateway, face, options(None, Some(true))).await.unwrap().1, CacheStatus::StaleOnError);
    }

    async fn the_grace_ends(face) {
        // While Twilio is otherwise well, the short one counts, although the entry is kept for the long one.
        let short = [SHORT, &[("GATEWAY_CACHE_STALE_ON_ERROR", "300ms"), ("GATEWAY_CACHE_STALE_ON_OUTAGE", "1h")]].concat();
        let none = [SHORT, &[("GATEWAY_CACHE_STALE_ON_ERROR", "0s"), ("GATEWAY_CACHE_STALE_ON_OUTAGE", "0s")]].concat();
        for env in [short, none] {
            let gateway = Gateway::with(&env).await;
            read(&gateway, face, None).await.unwrap();
            gateway.sandbox.fault(down()).await;
            let deadline = Instant::now() + PATIENCE;
            while let Ok((_, status, _)) = read(&gateway, face, options(None, Some(true))).await {
                // The lifetime is a little shorter for some entries: in what is left of it they are told without a grace.
                let is_legal = matches!(status, CacheStatus::Hit | CacheStatus::StaleOnError);
                assert!(is_legal && Instant::now() < deadline, "{status:?}");
            }
        }
    }

    async fn during_an_outage_the_grace_is_longer(face) {
        let breaking = [
            &[("GATEWAY_CACHE_STALE_ON_ERROR", "0s"), ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "3")],
            &SHORT[..3],
        ];
        let gateway = Gateway::with(&breaking.concat()).await;
        let (first, _, fetched) = read(&gateway, face, None).await.unwrap();
        let began = Instant::now();
        gateway.sandbox.fault(down()).await;
        let deadline = began + PATIENCE;
        let mut failures = 0;
        let stale = loop {
            match past_its_lifetime(&gateway, face, None).await {
                // Some lifetimes are a little shorter: in what is left of them no grace is needed.
                Ok(_) if began.elapsed() < Duration::from_millis(50) => {}
                Ok(stale) => break stale,
                Err(error) => {
                    assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
                    failures += 1;
                }
            }
            assert!(Instant::now() < deadline, "it is never told");
        };
        assert_eq!(stale, (first, CacheStatus::StaleOnError, fetched));
        assert!(failures <= 2, "the third failure opens the circuit: {failures}");
        // Twilio is well again: that is found out by a probe, and told at once.
        gateway.sandbox.clear_faults().await;
        while read(&gateway, face, None).await.unwrap().1 == CacheStatus::StaleOnError {
            assert!(Instant::now() < deadline, "the outage never ends");
        }
    }

    async fn whose_deadline_passes_is_told_what_is_there(face) {
        let patient = [SHORT, &[("GATEWAY_LIMITS_CALL_TIMEOUT", "600ms")]].concat();
        let gateway = Gateway::with(&patient).await;
        let (first, _, fetched) = read(&gateway, face, None).await.unwrap();
        elsewhere(&gateway, face, "new").await;
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true, "times": 1 })).await;
        let stale = past_its_lifetime(&gateway, face, None).await.unwrap();
        assert_eq!(stale, (first, CacheStatus::StaleOnError, fetched));
        // The load that it waited for goes on, and nobody is told the old answer any more.
        gateway.sandbox.release().await;
        let deadline = Instant::now() + PATIENCE;
        while face.mark(&read(&gateway, face, None).await.unwrap().0) != "new" {
            assert!(Instant::now() < deadline, "the load has ended with its caller");
        }

        // Where nothing is there, the deadline is told.
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true })).await;
        let error = gateway.client.clone().list_participants(face.list()).await.unwrap_err();
        assert_eq!(told(&error), (Code::DeadlineExceeded, "DEADLINE".into()));
    }

    async fn a_hundred_readers_are_served_while_one_request_renews(face) {
        let gateway = Gateway::with(REVALIDATING).await;
        let (first, _, fetched) = read(&gateway, face, None).await.unwrap();
        elsewhere(&gateway, face, "new").await;
        gateway.sandbox.forget_requests().await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let stale = (first.clone(), CacheStatus::StaleRevalidating, fetched);
        assert_eq!(past_its_lifetime(&gateway, face, None).await.unwrap(), stale);
        gateway.sandbox.held(1).await;
        let mut readers = JoinSet::new();
        for _ in 0..100 {
            let mut client = gateway.client.clone();
            readers.spawn(async move { client.get_participant(face.get()).await.unwrap().into_inner() });
        }
        for answer in readers.join_all().await {
            let info = answer.read_info.unwrap();
            assert_eq!((info.cache_status(), info.fetch_time), (CacheStatus::StaleRevalidating, Some(fetched)));
        }
        assert_eq!(gateway.sandbox.count().await, 1);

        gateway.sandbox.release().await;
        let deadline = Instant::now() + PATIENCE;
        while read(&gateway, face, None).await.unwrap().0 == first {
            assert!(Instant::now() < deadline, "it was never renewed");
        }
        let (renewed, status, _) = read(&gateway, face, None).await.unwrap();
        assert_eq!((face.mark(&renewed).as_str(), status), ("new", CacheStatus::Hit));
        assert_eq!(gateway.sandbox.count().await, 1);
        let scrape = Scrape::of(&gateway).await;
        assert_eq!(scrape.sum("participant_cache_lookups_total", &[("participant_cache_outcome", "stale_revalidating")]), 101.0);
        let renewed = [("participant_cache_refresh_outcome", "renewed")];
        assert_eq!(scrape.sum("participant_cache_refreshes_total", &renewed), 1.0);
    }

    async fn an_age_of_the_callers_own_is_kept_while_another_is_told_the_old(face) {
        let gateway = Gateway::with(REVALIDATING).await;
        read(&gateway, face, None).await.unwrap();
        elsewhere(&gateway, face, "new").await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let (old, status, _) = past_its_lifetime(&gateway, face, None).await.unwrap();
        assert_eq!((face.mark(&old) == "new", status), (false, CacheStatus::StaleRevalidating));
        gateway.sandbox.held(1).await;
        let exact = GetParticipantRequest { read_options: max_age(Duration::from_secs(1)), ..face.get() };
        let mut client = gateway.client.clone();
        let exact = tokio::spawn(async move { client.get_participant(exact).await.unwrap().into_inner() });
        gateway.sandbox.release().await;
        let exact = exact.await.unwrap();
        assert_eq!(face.mark(&exact.participant.unwrap()), "new");
    }

    async fn a_renewal_that_fails_is_nobodys_failure_and_is_not_tried_by_every_reader(face) {
        let gateway = Gateway::with(REVALIDATING).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.forget_requests().await;
        gateway.sandbox.fault(down()).await;
        let failed = [("participant_cache_refresh_outcome", "failed")];
        let deadline = Instant::now() + PATIENCE;
        while Scrape::of(&gateway).await.sum("participant_cache_refreshes_total", &failed) == 0.0 {
            read(&gateway, face, None).await.unwrap();
            assert!(Instant::now() < deadline, "it was never tried");
        }
        for _ in 0..20 {
            assert_eq!(read(&gateway, face, None).await.unwrap().1, CacheStatus::StaleRevalidating);
        }
        assert_eq!(gateway.sandbox.count().await, 1);
    }

    async fn a_renewal_that_finds_it_gone_is_the_last_word(face) {
        let gateway = Gateway::with(REVALIDATING).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "status": 404 })).await;
        let deadline = Instant::now() + PATIENCE;
        let error = loop {
            match read(&gateway, face, None).await {
                Ok(_) => assert!(Instant::now() < deadline, "it is there for ever"),
                Err(error) => break error,
            }
        };
        assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
        gateway.sandbox.clear_faults().await;
        gateway.sandbox.fault(down()).await;
        let error = read(&gateway, face, fresh_or_stale()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
    }

    async fn what_a_write_has_changed_is_never_told_again(face) {
        let mut gateway = Gateway::with(LONG).await;
        let page = ListParticipantsRequest { read_options: fresh_or_stale(), ..face.list() };
        let write = if face == Face::V1 { "POST" } else { "PUT" };
        // The second write reports a failure, and may have taken effect.
        for (mark, after) in [("changed", None), ("perhaps", Some(json!({ "match": { "method": write }, "cut": "before" })))] {
            read(&gateway, face, None).await.unwrap();
            gateway.list(face.list()).await.unwrap();
            if let Some(fault) = after {
                gateway.sandbox.fault(fault).await;
            }
            let _ = gateway.update(face.update(face.marked(mark))).await;
            gateway.sandbox.clear_faults().await;
            gateway.sandbox.fault(down()).await;
            for options in [None, fresh_or_stale()] {
                let error = read(&gateway, face, options).await.unwrap_err();
                assert_eq!(error.code(), Code::Unavailable, "{mark}");
            }
            let error = gateway.list(page.clone()).await.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable, "{mark}");
            gateway.sandbox.clear_faults().await;
        }
    }

    async fn what_an_event_tells_is_never_told_as_it_was(face) {
        let gateway = Gateway::told(LONG).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.fault(down()).await;
        assert_eq!(read(&gateway, face, fresh_or_stale()).await.unwrap().1, CacheStatus::StaleOnError);
        gateway.sandbox.clear_faults().await;
        elsewhere(&gateway, face, "elsewhere").await;
        assert_eq!(gateway.sandbox.events_told().await["delivered"], json!(1));
        gateway.sandbox.fault(down()).await;
        let error = read(&gateway, face, fresh_or_stale()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
    }

    async fn pages_and_parts_of_a_batch_are_told_one_by_one(face) {
        let mut gateway = Gateway::with(LONG).await;
        read(&gateway, face, None).await.unwrap();
        let page = gateway.list(face.list()).await.unwrap();
        gateway.sandbox.fault(down()).await;

        let stale = gateway.list(ListParticipantsRequest { read_options: fresh_or_stale(), ..face.list() }).await.unwrap();
        let (then, now) = (page.read_info.unwrap(), stale.read_info.unwrap());
        assert_eq!((now.cache_status(), now.fetch_time), (CacheStatus::StaleOnError, then.fetch_time));
        assert_eq!(stale.participants, page.participants);

        let unread = page.participants[1].id.clone();
        let batch = BatchGetParticipantsRequest {
            conversation: Some(face.conversation()),
            participant_ids: vec![face.participant().into(), unread],
            read_options: fresh_or_stale(),
            return_partial_success: true,
        };
        let answer = gateway.client.batch_get_participants(batch).await.unwrap().into_inner();
        let statuses: Vec<_> = answer.read_info.iter().map(ReadInfo::cache_status).collect();
        assert_eq!(statuses, [CacheStatus::StaleOnError]);
        assert_eq!(answer.failed_requests[&1].reason, "UPSTREAM_UNAVAILABLE");
    }

    async fn each_read_is_counted_once(face) {
        let gateway = Gateway::with(LONG).await;
        read(&gateway, face, None).await.unwrap();
        gateway.sandbox.fault(down()).await;
        read(&gateway, face, fresh_or_stale()).await.unwrap();
        read(&gateway, face, max_age(Duration::ZERO)).await.unwrap_err();
        let scrape = Scrape::of(&gateway).await;
        let lookups = |outcome| scrape.sum("participant_cache_lookups_total", &[("participant_cache_outcome", outcome)]);
        assert_eq!(["miss", "stale_on_error", "failed"].map(lookups), [1.0, 1.0, 1.0]);
        assert_eq!(scrape.sum("participant_cache_lookups_total", &[]), 3.0);
    }
}

#[tokio::test]
async fn who_was_removed_is_told_to_nobody() {
    let mut gateway = Gateway::with(LONG).await;
    let alice = GetParticipantRequest {
        participant_id: "alice".into(),
        read_options: fresh_or_stale(),
        ..Face::V1.get()
    };
    gateway.get(alice.clone()).await.unwrap();
    read(&gateway, Face::V1, None).await.unwrap();
    gateway.delete(Face::V1.delete()).await.unwrap();
    gateway.sandbox.fault(down()).await;
    for request in [alice, GetParticipantRequest { read_options: fresh_or_stale(), ..Face::V1.get() }] {
        assert_eq!(gateway.get(request).await.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn who_was_found_to_be_gone_by_a_unique_name_is_told_to_nobody() {
    let mut gateway = Gateway::with(LONG).await;
    let named = ConversationRef {
        conversation_id: "sandbox".into(),
        api_version: ApiVersion::V1.into(),
        ..Default::default()
    };
    let by_sid = GetParticipantRequest { read_options: fresh_or_stale(), ..Face::V1.get() };
    let by_name = GetParticipantRequest { conversation: Some(named), ..by_sid.clone() };
    gateway.get(by_name.clone()).await.unwrap();
    gateway.sandbox.fault(down()).await;
    for request in [&by_name, &by_sid] {
        assert_eq!(gateway.get(request.clone()).await.unwrap().1, CacheStatus::StaleOnError);
    }
    gateway.sandbox.clear_faults().await;
    gateway.sandbox.fault(json!({ "status": 404, "times": 1 })).await;
    assert_eq!(gateway.get(by_name.clone()).await.unwrap_err().code(), Code::NotFound);
    gateway.sandbox.fault(down()).await;
    for request in [by_name, by_sid] {
        assert_eq!(gateway.get(request).await.unwrap_err().code(), Code::Unavailable);
    }
}

/// By identity, by unique name, and in the list of a person's conversations.
#[tokio::test]
async fn what_v1_alone_can_ask_is_told_stale_too() {
    let mut gateway = Gateway::with(SHORT).await;
    let named = ConversationRef {
        conversation_id: "sandbox".into(),
        api_version: ApiVersion::V1.into(),
        ..Default::default()
    };
    let alice = GetParticipantRequest { participant_id: "alice".into(), ..Face::V1.get() };
    let by_name = GetParticipantRequest { conversation: Some(named), ..alice.clone() };
    let conversations =
        ListParticipantConversationsRequest { identity: "alice".into(), ..Default::default() };
    let (first, _) = gateway.get(by_name.clone()).await.unwrap();
    let list =
        gateway.client.list_participant_conversations(conversations.clone()).await.unwrap().into_inner();

    gateway.sandbox.fault(down()).await;
    let deadline = Instant::now() + PATIENCE;
    for request in [alice, by_name] {
        loop {
            let (stale, status) = gateway.get(request.clone()).await.unwrap();
            assert!(stale == first && Instant::now() < deadline, "{status:?}");
            if status == CacheStatus::StaleOnError {
                break;
            }
        }
    }
    loop {
        let stale = gateway.client.list_participant_conversations(conversations.clone()).await.unwrap();
        let stale = stale.into_inner();
        assert!(stale.conversations == list.conversations && Instant::now() < deadline);
        if stale.read_info.unwrap().cache_status() == CacheStatus::StaleOnError {
            break;
        }
    }
}
