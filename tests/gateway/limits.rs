//! What one caller may take, whatever is left for the others.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use participant_gateway::proto::*;
use serde_json::json;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;
use crate::raw;
use crate::wire::*;

const GET: &str = "/participant.v1.ParticipantService/GetParticipant";
/// Large beside what comes back while a test runs.
const BURST: u32 = 50;
const RATE: [(&str, &str); 2] =
    [("GATEWAY_LIMITS_CALLS_PER_SECOND", "1"), ("GATEWAY_LIMITS_CALLS_BURST", "50")];

/// How long it says that the caller is to wait.
fn wait_of(status: &Status) -> Duration {
    assert_eq!(told(status), (Code::ResourceExhausted, "LOCAL_CONCURRENCY".into()));
    status.get_details_retry_info().and_then(|info| info.retry_delay).expect("it says when to come again")
}

/// Reads until it is refused: how often it was not, and what it was told then.
async fn until_refused(client: &mut Client, face: Face) -> (u32, Status) {
    for passed in 0..3 * BURST {
        if let Err(status) = client.get_participant(face.get()).await {
            return (passed, status);
        }
    }
    panic!("it is never refused");
}

/// Whether a neighbour's call is served.
async fn is_served(gateway: &Gateway, face: Face, neighbour: impl Into<IpAddr>) -> bool {
    let mut wire = Wire::connect_from(neighbour.into(), gateway.addresses.grpc).await.greet(&[]).await;
    wire.writer.send(&call(1, GET, &raw::frame(&face.get()))).await.unwrap();
    let answer = wire.reader.next_of(HEADERS).await.expect("it is answered");
    // A refusal is all in the headers.
    answer.flags & END_STREAM == 0
}

async fn shed(gateway: &Gateway, limit: &str) -> f64 {
    let labels = [("participant_calls_limit", limit)];
    Scrape::of(gateway).await.sum("participant_calls_shed_total", &labels)
}

on_both_versions! {
    async fn who_calls_too_often_is_told_how_long_to_wait(face) {
        let mut gateway = Gateway::with(&RATE).await;
        let (passed, status) = until_refused(&mut gateway.client, face).await;
        assert!(passed >= BURST, "{passed}");
        let wait = wait_of(&status);
        assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
        let mut counts = Vec::new();
        for limit in ["rate", "caller", "share", "total"] {
            counts.push(shed(&gateway, limit).await);
        }
        assert_eq!(counts, [1.0, 0.0, 0.0, 0.0]);

        // Nobody else pays for it, and who asks how the gateway is has no rate.
        assert!(is_served(&gateway, face, [127, 0, 0, 2]).await);
        let channel = Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc));
        let mut health = HealthClient::new(channel.unwrap().connect().await.unwrap());
        for _ in 0..2 * BURST {
            health.check(HealthCheckRequest::default()).await.unwrap();
        }
        jump(wait);
        gateway.get(face.get()).await.unwrap();
    }

    async fn another_connection_is_no_other_caller(face) {
        let began = Instant::now();
        let mut gateway = Gateway::with(&RATE).await;
        until_refused(&mut gateway.client, face).await;
        // Its last connection is gone before the next one comes.
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc));
        gateway.client = Client::new(endpoint.unwrap().connect_lazy());
        let end = Instant::now() + PATIENCE;
        while Scrape::of(&gateway).await.sum("participant_connections_open", &[]) > 0.0 {
            assert!(Instant::now() < end, "the connection stays");
        }
        let (passed, status) = until_refused(&mut gateway.client, face).await;
        wait_of(&status);
        assert!(u64::from(passed) <= began.elapsed().as_secs() + 1, "{passed}");
    }

    async fn a_call_that_is_refused_for_the_rate_sends_nothing(face) {
        let mut gateway = Gateway::with(&RATE).await;
        until_refused(&mut gateway.client, face).await;
        gateway.sandbox.forget_requests().await;
        let began = Instant::now();
        let (mut refused, mut passed) = (0, 0);
        for number in 0..20 {
            match gateway.create(face.create(face.newcomer(number))).await {
                Ok(_) => passed += 1,
                Err(status) => {
                    wait_of(&status);
                    refused += 1;
                }
            }
        }
        assert!(passed <= began.elapsed().as_secs() + 1 && refused > 0, "{passed} of 20");
        assert_eq!(gateway.sandbox.count().await, passed);
    }

    async fn a_caller_has_no_more_calls_in_flight_than_it_may(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_LIMITS_CALLS_IN_FLIGHT_PER_CALLER", "1")]).await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let held = {
            let mut client = gateway.client.clone();
            tokio::spawn(async move { client.get_participant(face.get()).await })
        };
        gateway.sandbox.held(1).await;
        // Nobody knows when the other one ends.
        assert_eq!(wait_of(&gateway.get(face.get_fresh()).await.unwrap_err()), Duration::from_secs(1));
        let mut another = connect(gateway.addresses.grpc).await;
        wait_of(&another.create_participant(face.create(face.newcomer(1))).await.unwrap_err());
        gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap();
        assert_eq!(shed(&gateway, "caller").await, 2.0);
        gateway.sandbox.release().await;
        held.await.unwrap().unwrap();
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn a_caller_has_no_more_watchers_than_it_may(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_LIMITS_WATCHERS_PER_CALLER", "1")]).await;
        let watch = WatchParticipantsRequest { conversations: vec![face.conversation()], ..Default::default() };
        let _first = gateway.client.watch_participants(watch.clone()).await.unwrap();
        wait_of(&gateway.client.watch_participants(watch).await.unwrap_err());
        gateway.get(face.get()).await.unwrap();
        assert!(is_served(&gateway, face, [127, 0, 0, 2]).await);
        assert_eq!(shed(&gateway, "caller").await, 1.0);
    }
}

/// What the gateway says of itself is what it keeps to: `front` shows what becomes of those who do not.
#[tokio::test]
async fn the_bounds_of_a_connection_are_told_at_its_begin() {
    let gateway = Gateway::start().await;
    let mut wire = Wire::open(gateway.addresses.grpc, &[]).await;
    let settings = wire.reader.next_of(SETTINGS).await.unwrap().payload;
    let told = |wanted: u16| {
        let mut pairs = settings.chunks(6).map(|pair| {
            (u16::from_be_bytes([pair[0], pair[1]]), u32::from_be_bytes(pair[2..].try_into().unwrap()))
        });
        pairs.find(|(id, _)| *id == wanted).map(|(_, value)| value)
    };
    let (streams, window, frame_size, headers) = (told(3), told(4), told(5), told(6));
    assert_eq!((streams, headers), (Some(100), Some(16 * 1024)));
    assert_eq!((window.unwrap_or(65_535), frame_size.unwrap_or(16_384)), (64 * 1024, 16_384));
    let more = wire.reader.next_of(WINDOW_UPDATE).await.unwrap();
    let more = u32::from_be_bytes(more.payload.try_into().unwrap());
    assert_eq!(65_535 + more, 1024 * 1024);
}
