//! Twilio left alone while it fails, and how often it is asked while some of its answers are errors.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;
use crate::upstream::*;

const NO_RETRIES: (&str, &str) = ("GATEWAY_UPSTREAM_MAX_RETRIES", "0");
const FIVE_FAILURES: (&str, &str) = ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "5");
/// Longer than the longest pause between two probes.
const A_PAUSE: Duration = Duration::from_secs(2);

fn circuit_open() -> (Code, String) {
    (Code::Unavailable, "CIRCUIT_OPEN".into())
}

/// A gateway whose circuit five failures open, and which sends nothing twice.
async fn start() -> Gateway {
    Gateway::with(&[NO_RETRIES, FIVE_FAILURES]).await
}

/// Reads past the cache until the circuit is open, and tells the last error.
async fn open(gateway: &mut Gateway, request: GetParticipantRequest) -> Status {
    for _ in 0..5 {
        let error = gateway.get(request.clone()).await.unwrap_err();
        assert_ne!(told(&error), circuit_open());
    }
    gateway.get(request).await.unwrap_err()
}

fn of_account(request: GetParticipantRequest, digit: char) -> GetParticipantRequest {
    let conversation =
        ConversationRef { account_id: account_id(digit), ..request.conversation.unwrap_or_default() };
    GetParticipantRequest { conversation: Some(conversation), ..request }
}

/// How many requests come in while so many calls are made, twenty at a time; `is_failure` tells by the request's number.
async fn requests_of(
    calls: usize,
    face: Face,
    env: &[(&str, &str)],
    is_failure: fn(usize) -> bool,
) -> (usize, usize) {
    let upstream = Upstream::answering(move |number, _| match is_failure(number) {
        true => http("503 Service Unavailable", "", b""),
        false => ok("{}"),
    })
    .await;
    let gateway = gateway_asking(upstream.address, env).await;
    let call = |_| {
        let mut client = gateway.client.clone();
        async move { usize::from(client.get_participant(face.get_fresh()).await.is_ok()) }
    };
    let succeeded =
        stream::iter(0..calls).map(call).buffer_unordered(20).fold(0, async |sum, n| sum + n).await;
    (upstream.count(), succeeded)
}

on_both_versions! {
    async fn a_write_that_is_never_sent_takes_no_answer_from_its_readers(face) {
        let mut gateway = start().await;
        gateway.get(face.get()).await.unwrap();
        gateway.sandbox.fault(json!({ "status": 503 })).await;
        let error = open(&mut gateway, face.get_fresh()).await;
        assert_eq!(told(&error), circuit_open());
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), circuit_open());
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
    }

    async fn a_run_of_failures_opens_the_circuit_and_nothing_is_sent(face) {
        for fault in [json!({ "status": 503 }), json!({ "status": 500 }), json!({ "cut": "before" }), json!({ "cut": "mid" })] {
            let mut gateway = start().await;
            gateway.sandbox.fault(fault).await;
            let error = open(&mut gateway, face.get_fresh()).await;
            assert_eq!(told(&error), circuit_open());
            let wait = error.get_details_retry_info().unwrap().retry_delay.unwrap();
            assert!(wait <= Duration::from_millis(250), "{wait:?}");
            assert_eq!(gateway.sandbox.count().await, 5);
        }
    }

    async fn a_write_that_was_not_sent_may_be_repeated(face) {
        let mut gateway = start().await;
        gateway.sandbox.fault(json!({ "status": 503 })).await;
        open(&mut gateway, face.get_fresh()).await;
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        let update = gateway.update(face.update(face.marked("new"))).await.unwrap_err();
        for error in [create, update] {
            assert_eq!(told(&error), circuit_open());
            assert_eq!(error.metadata().get("grpc-retry-pushback-ms"), None);
        }
        assert_eq!(gateway.sandbox.count().await, 5);
    }

    async fn a_create_by_its_request_id_is_free_again(face) {
        let mut gateway = start().await;
        gateway.sandbox.fault(json!({ "status": 503 })).await;
        open(&mut gateway, face.get_fresh()).await;
        let request_id = "7c9e6679-7425-40de-944b-e07fc1f90ae7".into();
        let create = CreateParticipantRequest { request_id, ..face.create(face.newcomer(1)) };
        assert_eq!(told(&gateway.create(create.clone()).await.unwrap_err()), circuit_open());
        gateway.sandbox.clear_faults().await;
        jump(A_PAUSE);
        gateway.create(create).await.unwrap();
    }

    async fn a_refused_connection_opens_it(face) {
        let (address, socket) = refusing();
        let mut gateway = gateway_asking(address, &[NO_RETRIES, FIVE_FAILURES]).await;
        assert_eq!(told(&open(&mut gateway, face.get()).await), circuit_open());
        let upstream = Upstream::on(socket.listen(16).unwrap(), |_, _| ok("{}"));
        jump(A_PAUSE);
        gateway.get(face.get()).await.unwrap();
        assert_eq!(upstream.count(), 1);
    }

    async fn a_probe_that_succeeds_closes_it_and_one_that_fails_does_not(face) {
        let mut gateway = start().await;
        gateway.sandbox.fault(json!({ "status": 503, "times": 6 })).await;
        open(&mut gateway, face.get_fresh()).await;
        jump(A_PAUSE);
        // One request is a probe, and the others wait for what becomes of it no longer than before.
        let error = gateway.get(face.get_fresh()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        assert_eq!(told(&gateway.get(face.get_fresh()).await.unwrap_err()), circuit_open());
        assert_eq!(gateway.sandbox.count().await, 6);
        jump(A_PAUSE);
        for _ in 0..10 {
            gateway.get(face.get_fresh()).await.unwrap();
        }
    }

    /// Such as that the key was revoked meanwhile.
    async fn a_probe_that_is_refused_closes_it_and_the_refusal_is_told(face) {
        for (refusal, reason) in [
            (json!({ "status": 401 }), "UPSTREAM_CREDENTIALS_REJECTED"),
            (json!({ "status": 429, "code": 20429 }), "UPSTREAM_THROTTLED"),
        ] {
            let mut gateway = start().await;
            gateway.sandbox.fault(json!({ "status": 503, "times": 5 })).await;
            open(&mut gateway, face.get_fresh()).await;
            gateway.sandbox.fault(refusal).await;
            jump(A_PAUSE);
            for _ in 0..3 {
                assert_eq!(told(&gateway.get(face.get_fresh()).await.unwrap_err()).1, reason);
            }
        }
    }

    async fn a_probe_that_hangs_does_not_hide_that_twilio_is_well(face) {
        let mut gateway = start().await;
        gateway.sandbox.fault(json!({ "status": 503, "times": 5 })).await;
        open(&mut gateway, face.get_fresh()).await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        jump(A_PAUSE);
        let mut client = gateway.client.clone();
        let hanging = tokio::spawn(async move { client.get_participant(face.get_fresh()).await.map(drop) });
        gateway.sandbox.held(1).await;
        assert_eq!(told(&gateway.get(face.get_fresh()).await.unwrap_err()), circuit_open());
        jump(A_PAUSE);
        gateway.get(face.get_fresh()).await.unwrap();
        gateway.get(face.get_fresh()).await.unwrap();
        hanging.abort();
    }

    async fn probes_that_hang_take_no_place_of_the_next_one(face) {
        let one_place = ("GATEWAY_UPSTREAM_MAX_CONCURRENCY", "1");
        let mut gateway = Gateway::with(&[NO_RETRIES, FIVE_FAILURES, one_place]).await;
        gateway.sandbox.fault(json!({ "status": 503, "times": 5 })).await;
        open(&mut gateway, face.get_fresh()).await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 2 })).await;
        let mut hanging = tokio::task::JoinSet::new();
        for number in 1..=2 {
            jump(A_PAUSE);
            let mut client = gateway.client.clone();
            hanging.spawn(async move { client.get_participant(face.get_fresh()).await.map(drop) });
            gateway.sandbox.held(number).await;
            assert_eq!(told(&gateway.get(face.get_fresh()).await.unwrap_err()), circuit_open());
        }
        jump(A_PAUSE);
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn what_is_no_failure_of_twilios_opens_nothing(face) {
        let mut gateway = start().await;
        for fault in [
            json!({ "status": 429, "code": 20429 }),
            json!({ "status": 400, "code": 50063 }),
            json!({ "status": 503, "code": 20429 }),
            json!({ "status": 401 }),
            json!({ "status": 403 }),
            json!({ "status": 404 }),
            json!({ "status": 409 }),
            json!({ "body": "<html>" }),
            json!({ "status": 302 }),
        ] {
            gateway.sandbox.clear_faults().await;
            gateway.sandbox.fault(fault.clone()).await;
            for _ in 0..12 {
                let error = gateway.get(face.get_fresh()).await.unwrap_err();
                assert_ne!(told(&error), circuit_open(), "{fault}");
            }
        }
        gateway.sandbox.clear_faults().await;
        gateway.get(face.get_fresh()).await.unwrap();
    }

    /// A caller that gives up early says little of Twilio.
    async fn callers_without_patience_open_nothing(face) {
        let mut gateway = start().await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        for _ in 0..10 {
            let mut request = tonic::Request::new(face.get_fresh());
            request.set_timeout(Duration::from_millis(50));
            gateway.client.get_participant(request).await.unwrap_err();
        }
        gateway.sandbox.clear_faults().await;
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn an_upstream_that_is_silent_opens_it_and_another_accounts_is_not_touched(face) {
        let (silent, _accepted) = silent().await;
        let (silent_sid, sid) = (account_id('1'), sandbox::ACCOUNT_SID);
        let mut gateway = Gateway::configured(sandbox::Settings::default(), |url| format!(
            "[upstream]\nurl = {url:?}\nattempt_timeout = \"100ms\"\nmax_retries = 0\nbreaker_failures = 5\n\
             [[accounts]]\naccount_sid = {sid:?}\nauth_token = {:?}\n\
             [[accounts]]\naccount_sid = {silent_sid:?}\nauth_token = \"x\"\nurl = \"http://{silent}\"\n",
            sandbox::AUTH_TOKEN,
        ))
        .await;
        let error = open(&mut gateway, of_account(face.get(), '1')).await;
        assert_eq!(told(&error), circuit_open());
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn silence_opens_it_where_the_total_bounds_an_attempt(face) {
        let total = ("GATEWAY_UPSTREAM_TOTAL_TIMEOUT", "200ms");
        let attempt = ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "200ms");
        let mut gateway = Gateway::with(&[NO_RETRIES, FIVE_FAILURES, total, attempt]).await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        assert_eq!(told(&open(&mut gateway, face.get_fresh()).await), circuit_open());
    }

    async fn the_other_version_is_not_touched(face) {
        let mut gateway = start().await;
        let other = if face == Face::V1 { Face::V2 } else { Face::V1 };
        gateway.sandbox.fault(json!({ "match": { "api": face.api() }, "status": 503 })).await;
        assert_eq!(told(&open(&mut gateway, face.get_fresh()).await), circuit_open());
        gateway.get(other.get_fresh()).await.unwrap();
    }

    async fn it_can_be_turned_off(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES, ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0")]).await;
        gateway.sandbox.fault(json!({ "status": 503 })).await;
        for _ in 0..50 {
            let error = gateway.get(face.get_fresh()).await.unwrap_err();
            assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        }
    }

    async fn where_it_stands_is_told_by_metrics(face) {
        let mut gateway = start().await;
        let labels = [("participant_api_version", face.api()), ("participant_account", sandbox::ACCOUNT_SID)];
        let state = async |gateway: &Gateway| Scrape::of(gateway).await.sum("participant_upstream_circuit", &labels);
        assert_eq!(state(&gateway).await, 0.0);
        gateway.sandbox.fault(json!({ "status": 503 })).await;
        open(&mut gateway, face.get_fresh()).await;
        assert_eq!(state(&gateway).await, 2.0);
        jump(A_PAUSE);
        gateway.get(face.get_fresh()).await.unwrap_err();
        gateway.sandbox.clear_faults().await;
        jump(A_PAUSE);
        gateway.get(face.get_fresh()).await.unwrap();
        let scrape = Scrape::of(&gateway).await;
        for (word, turns) in [("open", 2.0), ("half_open", 2.0), ("closed", 1.0)] {
            let labels = [labels[0], labels[1], ("participant_circuit_state", word)];
            assert_eq!(scrape.sum("participant_upstream_circuit_transitions_total", &labels), turns, "{word}");
        }
        assert_eq!(scrape.sum("participant_upstream_circuit_refusals_total", &labels), 1.0);
        assert_eq!(state(&gateway).await, 0.0);
    }

    // === A brown-out

    /// Every answer is late by more than an attempt waits for it, under load; then Twilio is well again.
    async fn a_brown_out_is_refused_at_once_and_over_at_once(face) {
        let attempt = ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "200ms");
        let gateway = Gateway::with(&[attempt, FIVE_FAILURES]).await;
        gateway.sandbox.fault(json!({ "latency_ms": 30_000 })).await;
        let call = |_| {
            let mut client = gateway.client.clone();
            async move { client.get_participant(face.get_fresh()).await.unwrap_err() }
        };
        let errors: Vec<_> = stream::iter(0..100).map(call).buffer_unordered(20).collect().await;
        let refused = errors.iter().filter(|error| told(error) == circuit_open()).count();
        assert!(refused >= 60, "{refused} of 100 were refused");
        let sent = gateway.sandbox.count().await;
        assert!(sent <= 60, "{sent} requests for 100 calls");
        gateway.sandbox.clear_faults().await;
        // The longest pause and no more, although probes that hang are still under way.
        jump(A_PAUSE);
        for _ in 0..20 {
            gateway.client.clone().get_participant(face.get_fresh()).await.unwrap();
        }
    }

    // === Retries

    async fn a_share_of_failures_costs_a_fifth_more_requests_at_most(face) {
        for (share, is_failure) in [
            (0, (|_| false) as fn(usize) -> bool),
            (10, |number| number % 10 == 0),
            (50, |number| number % 2 == 0),
            (100, |_| true),
        ] {
            let (requests, succeeded) = requests_of(400, face, &[], is_failure).await;
            assert!(requests <= 480, "{requests} requests for 400 calls at {share} %");
            // Unless Twilio is down it goes on being asked.
            let least = [(0, 400), (10, 395), (50, 220), (100, 0)].iter().find(|(of, _)| *of == share).unwrap().1;
            assert!(succeeded >= least, "{succeeded} of 400 succeeded at {share} %");
        }
    }

    async fn the_budget_holds_without_the_breaker_too(face) {
        let off = ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0");
        let (requests, _) = requests_of(400, face, &[off], |_| true).await;
        assert!((401..=480).contains(&requests), "{requests}");
    }

    async fn each_account_has_a_budget_of_its_own(face) {
        let off = ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0");
        let mut gateway = Gateway::with_accounts(&['1', '2'], &[off]).await;
        gateway.sandbox.fault(json!({ "match": { "account": account_id('1') }, "status": 503 })).await;
        let began = Instant::now();
        let mut requests = 0;
        while gateway.sandbox.count().await != requests + 1 {
            assert!(began.elapsed() < PATIENCE, "the budget does not end");
            requests = gateway.sandbox.count().await;
            gateway.get(of_account(face.get_fresh(), '1')).await.unwrap_err();
        }
        gateway.sandbox.fault(json!({ "match": { "account": account_id('2') }, "status": 503, "times": 2 })).await;
        gateway.get(of_account(face.get_fresh(), '2')).await.unwrap();
    }

    async fn a_call_that_is_repeated_by_its_caller_is_not_repeated_here(face) {
        let mut gateway = Gateway::start().await;
        for (attempts, requests) in [("0", 3), ("1", 1), ("2", 1)] {
            for fault in [json!({ "status": 503, "times": 2 }), json!({ "status": 429, "retry_after": "0", "times": 2 })] {
                gateway.sandbox.clear_faults().await;
                gateway.sandbox.forget_requests().await;
                gateway.sandbox.fault(fault).await;
                let mut request = tonic::Request::new(face.get_fresh());
                request.metadata_mut().insert("grpc-previous-rpc-attempts", attempts.parse().unwrap());
                let result = gateway.client.get_participant(request).await;
                assert_eq!(result.is_ok(), requests == 3, "{attempts}");
                assert_eq!(gateway.sandbox.count().await, requests, "{attempts}");
            }
        }
    }

    async fn a_call_whose_time_is_over_sends_nothing(face) {
        let gateway = Gateway::start().await;
        let mut update = tonic::Request::new(face.update(face.marked("late")));
        update.metadata_mut().insert("grpc-timeout", "1m".parse().unwrap());
        let error = gateway.client.clone().update_participant(update).await.unwrap_err();
        assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error:?}");
        let mut get = tonic::Request::new(face.get_fresh());
        get.metadata_mut().insert("grpc-timeout", "1m".parse().unwrap());
        gateway.client.clone().get_participant(get).await.unwrap_err();
        assert_eq!(gateway.sandbox.count().await, 0);
    }
}

/// Twilio looks at the credentials before anything else: the repetition with others is none that the caller could make.
#[tokio::test]
async fn a_repeated_call_still_signs_in_again() {
    let mut gateway = Gateway::configured(sandbox::Settings::default(), |url| {
        let sid = sandbox::ACCOUNT_SID;
        format!(
            "upstream.url = {url:?}\n[[accounts]]\naccount_sid = {sid:?}\n\
             auth_token = \"old\"\nsecondary_auth_token = \"sandbox\"\n"
        )
    })
    .await;
    let mut request = tonic::Request::new(Face::V1.get_fresh());
    request.metadata_mut().insert("grpc-previous-rpc-attempts", "1".parse().unwrap());
    gateway.client.get_participant(request).await.unwrap();
    assert_eq!(gateway.sandbox.count().await, 2);
}

/// A listener whose connections are accepted and never answered, as behind a firewall that drops packets.
async fn silent() -> (SocketAddr, tokio_util::task::AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = async move {
        let mut accepted = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            accepted.push(connection);
        }
    };
    (address, tokio_util::task::AbortOnDropHandle::new(tokio::spawn(accepting)))
}
