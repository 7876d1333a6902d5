//! How many requests of an account are under way at once, who waits for whom, and who is refused.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::*;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

type Calls = JoinSet<Result<(), Status>>;

/// With so many places for an account's requests.
async fn with_places(places: &str) -> Gateway {
    Gateway::with(&[("GATEWAY_UPSTREAM_MAX_CONCURRENCY", places)]).await
}

/// With a single place, which a read has that the sandbox holds.
async fn with_a_busy_place(face: Face, calls: &mut Calls) -> Gateway {
    let gateway = with_places("1").await;
    gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
    let mut client = gateway.client.clone();
    calls.spawn(async move { client.get_participant(face.get_fresh()).await.map(|_| ()) });
    gateway.sandbox.held(1).await;
    gateway
}

/// A connection from 127.0.0.`host`: a caller of its own.
async fn caller(gateway: &Gateway, host: u8) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc)).unwrap();
    let local = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
    ParticipantServiceClient::new(endpoint.local_address(Some(local)).connect().await.unwrap())
}

/// A list that no other call asks for, told apart by its size.
fn list(face: Face, page_size: i32) -> ListParticipantsRequest {
    ListParticipantsRequest { page_size, ..face.list() }
}

fn spawn_list(calls: &mut Calls, client: &Client, face: Face, page_size: i32) {
    let mut client = client.clone();
    calls.spawn(async move { client.list_participants(list(face, page_size)).await.map(|_| ()) });
}

fn spawn_create(calls: &mut Calls, client: &Client, face: Face, number: u16) {
    let (mut client, create) = (client.clone(), face.create(face.newcomer(number)));
    calls.spawn(async move { client.create_participant(create).await.map(|_| ()) });
}

async fn gauge(gateway: &Gateway, name: &str, labels: &[(&str, &str)]) -> f64 {
    Scrape::of(gateway).await.sum(&format!("participant_upstream_{name}"), labels)
}

/// Waits until so many requests of this kind are queued.
async fn until_queued(gateway: &Gateway, kind: &str, expected: usize) {
    let deadline = Instant::now() + PATIENCE;
    while gauge(gateway, "queued", &[("participant_upstream_kind", kind)]).await != expected as f64 {
        assert!(Instant::now() < deadline, "there are never {expected} in the queue");
    }
}

async fn all_succeed(calls: Calls) {
    for result in calls.join_all().await {
        result.unwrap();
    }
}

/// The sizes of the pages that were asked for, in order; 0 for anything else.
async fn sizes(gateway: &Gateway) -> Vec<i32> {
    let requests = gateway.sandbox.requests().await;
    let size = |request: &Received| {
        let pairs = url::form_urlencoded::parse(request.query.as_bytes());
        let mut sizes = pairs.filter(|(key, _)| key.eq_ignore_ascii_case("pagesize"));
        sizes.next().map_or(0, |(_, size)| size.parse().unwrap())
    };
    requests.iter().map(size).collect()
}

fn local_concurrency() -> (Code, String) {
    (Code::ResourceExhausted, "LOCAL_CONCURRENCY".into())
}

fn wait_of(status: &Status) -> Duration {
    status.get_details_retry_info().unwrap().retry_delay.unwrap()
}

on_both_versions! {
    async fn no_more_requests_are_under_way_than_the_limit(face) {
        let (gateway, mut calls) = (with_places("3").await, Calls::new());
        gateway.sandbox.fault(json!({ "hold": true })).await;
        gateway.sandbox.fault(json!({ "match": { "concurrent_above": 3 }, "status": 500 })).await;
        for size in 1..=10 {
            spawn_list(&mut calls, &gateway.client, face, size);
        }
        gateway.sandbox.held(3).await;
        until_queued(&gateway, "read", 7).await;
        assert_eq!(gateway.sandbox.count().await, 3);
        assert_eq!(gauge(&gateway, "in_flight", &[]).await, 3.0);
        gateway.sandbox.clear_faults().await;
        all_succeed(calls).await;
        let scrape = Scrape::of(&gateway).await;
        assert_eq!(scrape.sum("participant_upstream_queue_wait_seconds_count", &[]), 7.0);
        assert_eq!(scrape.sum("participant_upstream_in_flight", &[]), 0.0);
        assert_eq!(gateway.sandbox.count().await, 10);
    }

    async fn a_write_overtakes_the_reads_that_wait(face) {
        let mut calls = Calls::new();
        let gateway = with_a_busy_place(face, &mut calls).await;
        for size in 1..=5 {
            spawn_list(&mut calls, &gateway.client, face, size);
        }
        until_queued(&gateway, "read", 5).await;
        spawn_create(&mut calls, &gateway.client, face, 1);
        until_queued(&gateway, "write", 1).await;
        gateway.sandbox.release().await;
        all_succeed(calls).await;
        let methods: Vec<_> = gateway.sandbox.requests().await.into_iter().map(|request| request.method).collect();
        assert_eq!(methods, ["GET", "POST", "GET", "GET", "GET", "GET", "GET"]);
    }

    async fn a_caller_with_one_call_does_not_wait_for_all_of_anothers(face) {
        let mut calls = Calls::new();
        let gateway = with_a_busy_place(face, &mut calls).await;
        let [busy, quiet] = [caller(&gateway, 2).await, caller(&gateway, 3).await];
        for size in 1..=20 {
            spawn_list(&mut calls, &busy, face, size);
        }
        until_queued(&gateway, "read", 20).await;
        spawn_list(&mut calls, &quiet, face, 50);
        until_queued(&gateway, "read", 21).await;
        gateway.sandbox.release().await;
        all_succeed(calls).await;
        let sizes = sizes(&gateway).await;
        assert_eq!(sizes.iter().position(|size| *size == 50), Some(2), "{sizes:?}");
    }

    async fn a_caller_has_a_share_of_the_queue_and_leaves_room_for_others(face) {
        let env = [("GATEWAY_UPSTREAM_MAX_CONCURRENCY", "1"), ("GATEWAY_UPSTREAM_MAX_QUEUE", "4")];
        let (gateway, mut calls) = (Gateway::with(&env).await, Calls::new());
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let [mut busy, quiet] = [caller(&gateway, 2).await, caller(&gateway, 3).await];
        for size in 1..=3 {
            spawn_list(&mut calls, &busy, face, size);
        }
        gateway.sandbox.held(1).await;
        until_queued(&gateway, "read", 2).await;
        let refused = busy.list_participants(list(face, 4)).await.unwrap_err();
        assert_eq!(told(&refused), local_concurrency());
        assert!((Duration::from_millis(100)..=Duration::from_secs(10)).contains(&wait_of(&refused)));
        spawn_list(&mut calls, &quiet, face, 50);
        until_queued(&gateway, "read", 3).await;
        gateway.sandbox.release().await;
        all_succeed(calls).await;
        let labels = [("participant_upstream_reason", "queue_full")];
        assert_eq!(gauge(&gateway, "refusals_total", &labels).await, 1.0);
    }

    async fn a_call_whose_turn_would_come_too_late_is_refused_at_once_and_never_sent(face) {
        let mut gateway = with_places("1").await;
        gateway.sandbox.fault(json!({ "latency_ms": 400, "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap();
        let mut calls = Calls::new();
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        spawn_list(&mut calls, &gateway.client, face, 1);
        gateway.sandbox.held(1).await;
        let within = |message| {
            let mut request = tonic::Request::new(message);
            request.set_timeout(Duration::from_millis(700));
            request
        };
        // 400 ms for the turn, and as long again for the answer.
        let refused = gateway.client.list_participants(within(list(face, 2))).await.unwrap_err();
        assert_eq!(told(&refused), local_concurrency());
        assert!((Duration::from_millis(400)..=Duration::from_secs(10)).contains(&wait_of(&refused)));
        let request_id = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        let create = |number| CreateParticipantRequest {
            request_id: request_id.into(),
            ..face.create(face.newcomer(number))
        };
        let mut short = tonic::Request::new(create(1));
        short.set_timeout(Duration::from_millis(700));
        let refused = gateway.client.create_participant(short).await.unwrap_err();
        assert_eq!(told(&refused), local_concurrency());
        assert!(refused.metadata().get("grpc-retry-pushback-ms").is_none());
        assert_eq!(gateway.sandbox.count().await, 2);
        gateway.sandbox.release().await;
        all_succeed(calls).await;
        // Nothing was done, so even another create may bear the id.
        gateway.create(create(2)).await.unwrap();
        assert_eq!(gauge(&gateway, "refusals_total", &[("participant_upstream_reason", "no_time")]).await, 2.0);
    }

    async fn too_many_requests_lower_the_limit_and_answers_raise_it(face) {
        let mut gateway = with_places("8").await;
        let limit = async |gateway: &Gateway| gauge(gateway, "concurrency_limit", &[]).await;
        assert_eq!(limit(&gateway).await, 8.0);
        // This is about one conversation, whatever else the account does.
        gateway.sandbox.fault(json!({ "status": 429, "code": 50063, "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap();
        assert_eq!(limit(&gateway).await, 8.0);
        gateway.sandbox.fault(json!({ "status": 429, "code": 20429, "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap();
        assert_eq!(limit(&gateway).await, 2.0);
        let mut calls = Calls::new();
        for _ in 0..100 {
            let mut client = gateway.client.clone();
            calls.spawn(async move { client.get_participant(face.get_fresh()).await.map(|_| ()) });
        }
        all_succeed(calls).await;
        assert_eq!(limit(&gateway).await, 8.0);
    }

    async fn the_limit_settles_below_what_twilio_takes(face) {
        let env = [("GATEWAY_UPSTREAM_MAX_CONCURRENCY", "20"), ("GATEWAY_UPSTREAM_MAX_RETRIES", "0")];
        let gateway = Gateway::with(&env).await;
        let throttled = json!({ "match": { "concurrent_above": 6 }, "status": 429, "code": 20429 });
        gateway.sandbox.fault(throttled).await;
        gateway.sandbox.fault(json!({ "latency_ms": 5 })).await;
        let (mut calls, mut refused) = (Calls::new(), Vec::new());
        for round in 0..10 {
            for _ in 0..20 {
                let mut client = gateway.client.clone();
                calls.spawn(async move { client.get_participant(face.get_fresh()).await.map(|_| ()) });
            }
            while let Some(result) = calls.join_next().await {
                if let Err(status) = result.unwrap() {
                    assert_eq!(told(&status), (Code::ResourceExhausted, "UPSTREAM_THROTTLED".into()));
                    refused.push(round);
                }
            }
        }
        let limit = gauge(&gateway, "concurrency_limit", &[]).await;
        assert!((2.0..=6.0).contains(&limit), "{limit}");
        // Once it is known, nothing runs into it again.
        assert!(refused.contains(&0) && refused.iter().all(|round| *round < 5), "{refused:?}");
    }

    async fn another_account_does_not_wait(face) {
        let env = [("GATEWAY_UPSTREAM_MAX_CONCURRENCY", "1")];
        let (mut gateway, mut calls) = (Gateway::with_accounts(&['1', '2'], &env).await, Calls::new());
        let held = json!({ "match": { "account": account_id('1') }, "hold": true });
        gateway.sandbox.fault(held).await;
        for size in 1..=5 {
            spawn_list(&mut calls, &gateway.client, face, size);
        }
        gateway.sandbox.held(1).await;
        until_queued(&gateway, "read", 4).await;
        let conversation = Some(ConversationRef { account_id: account_id('2'), ..face.conversation() });
        gateway.list(ListParticipantsRequest { conversation, ..face.list() }).await.unwrap();
        let account = account_id('2');
        assert_eq!(gauge(&gateway, "queued", &[("participant_account", account.as_str())]).await, 0.0);
        gateway.sandbox.clear_faults().await;
        all_succeed(calls).await;
    }

    async fn who_goes_away_leaves_the_queue_and_is_never_sent(face) {
        let mut calls = Calls::new();
        let gateway = with_a_busy_place(face, &mut calls).await;
        let mut left = Calls::new();
        spawn_create(&mut left, &gateway.client, face, 1);
        let mut client = gateway.client.clone();
        left.spawn(async move { client.get_participant(face.get_fresh()).await.map(|_| ()) });
        until_queued(&gateway, "read", 1).await;
        until_queued(&gateway, "write", 1).await;
        left.shutdown().await;
        until_queued(&gateway, "read", 0).await;
        until_queued(&gateway, "write", 0).await;
        assert_eq!(gauge(&gateway, "in_flight", &[]).await, 1.0);
        gateway.sandbox.release().await;
        all_succeed(calls).await;
        let mut calls = Calls::new();
        spawn_list(&mut calls, &gateway.client, face, 1);
        all_succeed(calls).await;
        assert_eq!(sizes(&gateway).await, [0, 1]);
    }

    /// A load is nobody's in particular, but the call that began it bounds how long it waits for its turn.
    async fn a_load_leaves_the_queue_by_its_callers_deadline(face) {
        let mut calls = Calls::new();
        let mut gateway = with_a_busy_place(face, &mut calls).await;
        let mut short = tonic::Request::new(list(face, 1));
        short.set_timeout(Duration::from_secs(2));
        gateway.client.list_participants(short).await.unwrap_err();
        until_queued(&gateway, "read", 0).await;
        gateway.sandbox.release().await;
        all_succeed(calls).await;
        assert_eq!(gateway.sandbox.count().await, 1);
    }

    async fn a_request_that_failed_gives_its_place_back(face) {
        let mut gateway = with_places("1").await;
        for fault in [json!({ "status": 503 }), json!({ "cut": "before" }), json!({ "cut": "mid" })] {
            gateway.sandbox.fault(fault).await;
            gateway.get(face.get_fresh()).await.unwrap_err();
            gateway.sandbox.clear_faults().await;
            assert_eq!(gauge(&gateway, "in_flight", &[]).await, 0.0);
        }
        gateway.get(face.get_fresh()).await.unwrap();
        assert_eq!(gauge(&gateway, "concurrency_limit", &[]).await, 1.0);
    }
}
