//! What a connection may do to the gateway, and what the others see of it: nothing. The rows 34 to 43 of its faults.

use std::future::Future;
use std::time::{Duration, Instant};

use participant_gateway::proto::*;
use serde_json::json;
use tokio::time::timeout;
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
const LIST: &str = "/participant.v1.ParticipantService/ListParticipants";
const STREAM: &str = "/participant.v1.ParticipantService/StreamParticipants";
const INITIAL_WINDOW: u16 = 4;

fn get_body() -> Vec<u8> {
    raw::frame(&Face::V1.get())
}

fn stream(face: Face) -> StreamParticipantsRequest {
    StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 0 }
}

/// Nothing here takes long, or it does not end at all.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Waits until a metric has this value.
async fn until(gateway: &Gateway, name: &str, labels: &[(&str, &str)], value: f64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let sum = Scrape::of(gateway).await.sum(name, labels);
        if sum == value {
            return;
        }
        assert!(Instant::now() < end, "{name} {labels:?} is {sum} and not {value}");
        tokio::task::yield_now().await;
    }
}

/// That somebody else's call is answered.
async fn others_are_answered(gateway: &mut Gateway) {
    soon(gateway.get(Face::V1.get_fresh())).await.unwrap();
}

/// Sends these again and again, until the gateway says GOAWAY, while somebody else calls: the error that it gives.
async fn flooded(gateway: &mut Gateway, first: Vec<u8>, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
    let Wire { mut reader, mut writer } = Wire::open(gateway.addresses.grpc, &[]).await;
    let writing = async {
        let mut sent = writer.send(&first).await;
        let mut round = 0;
        while sent.is_ok() {
            let batch: Vec<u8> = (0..50)
                .flat_map(|_| {
                    round += 1;
                    next(round)
                })
                .collect();
            sent = writer.send(&batch).await;
        }
        std::future::pending::<()>().await;
    };
    let calling = async {
        loop {
            others_are_answered(gateway).await;
        }
    };
    let goaway = soon(async {
        tokio::select! {
            goaway = reader.next_of(GOAWAY) => goaway,
            () = writing => None,
            () = calling => None,
        }
    });
    let goaway = goaway.await;
    others_are_answered(gateway).await;
    goaway.map(|frame| frame.error())
}

// === Floods

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let mut gateway = Gateway::start().await;
    let told = flooded(&mut gateway, Vec::new(), |round| {
        let stream = 2 * round - 1;
        [call(stream, GET, &get_body()), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
    });
    assert_eq!(told.await, Some(ENHANCE_YOUR_CALM));
    until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn headers_without_an_end_end_the_connection() {
    let mut gateway = Gateway::start().await;
    let mut more = Vec::new();
    header(&mut more, "x-more", &"m".repeat(100));
    let begin = frame(HEADERS, 0, 1, &call_headers(GET));
    let told = flooded(&mut gateway, begin, |_| frame(CONTINUATION, 0, 1, &more));
    assert_eq!(told.await, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn data_in_crumbs_ends_the_connection() {
    for crumb in [&[][..], &[0]] {
        let mut gateway = Gateway::start().await;
        // A message that is announced as the largest that is taken.
        let begin = [call_without_body(1, GET), frame(DATA, 0, 1, &[0, 0, 0x1f, 0, 0])].concat();
        let told = flooded(&mut gateway, begin, |_| frame(DATA, 0, 1, crumb));
        assert_eq!(told.await, Some(ENHANCE_YOUR_CALM), "{crumb:?}");
        until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
    }
}

#[tokio::test]
async fn who_only_pings_keeps_nobody_from_being_answered() {
    const FRAMES: usize = 20_000;
    let (ping, settings) = (frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]));
    let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]);
    for flood in [ping, settings, priority] {
        let mut gateway = Gateway::start().await;
        let Wire { mut reader, mut writer } = Wire::open(gateway.addresses.grpc, &[]).await;
        let batch = flood.repeat(100);
        let flooding = async {
            for _ in 0..FRAMES / 100 {
                writer.send(&batch).await?;
            }
            // After all of it, to learn when it was read.
            writer.send(&frame(PING, 0, 0, b"the last")).await
        };
        let reading = async {
            while let Some(frame) = reader.next().await {
                if frame.kind == GOAWAY || frame.payload == b"the last" {
                    break;
                }
            }
        };
        let calling = async {
            for _ in 0..20 {
                others_are_answered(&mut gateway).await;
            }
        };
        // It is served, or closed.
        let (_, (), ()) = soon(async { tokio::join!(flooding, reading, calling) }).await;
        others_are_answered(&mut gateway).await;
    }
}

/// Of calls that do not end by themselves.
async fn all_but_a_hundred_are_refused(settings: &[(u16, u32)], call: impl Fn(u32) -> Vec<u8>) {
    let mut gateway = Gateway::start().await;
    let mut wire = Wire::open(gateway.addresses.grpc, settings).await;
    let calls: Vec<u8> = (0..150).flat_map(|number| call(2 * number + 1)).collect();
    wire.writer.send(&calls).await.unwrap();
    for _ in 0..50 {
        let refused = soon(wire.reader.next_of(RST_STREAM)).await.expect("the connection stays");
        assert_eq!(refused.error(), REFUSED_STREAM, "{refused:?}");
        assert!(refused.stream > 200, "{refused:?}");
    }
    others_are_answered(&mut gateway).await;
    drop(wire);
    until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn more_calls_without_a_body_than_a_connection_may_have_are_refused() {
    all_but_a_hundred_are_refused(&[], |stream| call_without_body(stream, GET)).await;
}

#[tokio::test]
async fn more_unread_answers_than_a_connection_may_have_are_refused() {
    all_but_a_hundred_are_refused(&[(INITIAL_WINDOW, 0)], |stream| call(stream, GET, &get_body())).await;
}

// === Slowness

#[tokio::test]
async fn a_body_that_does_not_come_ends_with_the_calls_time() {
    let mut gateway = Gateway::with(&[("GATEWAY_LIMITS_CALL_TIMEOUT", "300ms")]).await;
    let mut wire = Wire::open(gateway.addresses.grpc, &[]).await;
    wire.writer.send(&call_without_body(1, GET)).await.unwrap();
    let answer = soon(wire.reader.next_of(HEADERS)).await.unwrap();
    assert_eq!((answer.stream, answer.flags & END_STREAM), (1, END_STREAM));
    let calls = "rpc_server_call_duration_seconds_count";
    until(&gateway, calls, &[("rpc_response_status_code", "DEADLINE_EXCEEDED")], 1.0).await;
    until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
    others_are_answered(&mut gateway).await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let get = (GET, get_body(), Duration::from_millis(300));
    let stream = (STREAM, raw::frame(&stream(Face::V1)), Duration::from_secs(1));
    for (path, body, patience) in [get, stream] {
        let limits = [("GATEWAY_LIMITS_CALL_TIMEOUT", "300ms"), ("GATEWAY_LIMITS_STREAM_STALL", "1s")];
        let mut gateway = Gateway::with(&limits).await;
        let mut wire = Wire::open(gateway.addresses.grpc, &[(INITIAL_WINDOW, 0)]).await;
        let began = Instant::now();
        wire.writer.send(&call(1, path, &body)).await.unwrap();
        let answer = soon(wire.reader.next_of(HEADERS)).await.unwrap();
        assert_eq!((answer.stream, answer.flags & END_STREAM), (1, 0));
        let reset = soon(wire.reader.next_of(RST_STREAM)).await.unwrap();
        assert_eq!((reset.stream, reset.error()), (1, CANCEL), "{path}");
        assert!(began.elapsed() >= patience, "{path}: {:?}", began.elapsed());
        until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
        // The connection is still good.
        wire.writer.send(&frame(PING, 0, 0, b"is there")).await.unwrap();
        assert_eq!(soon(wire.reader.next_of(PING)).await.unwrap().payload, b"is there");
        others_are_answered(&mut gateway).await;
    }
}

/// A gateway, and a call that it answers with tens of kilobytes.
async fn with_a_long_list(env: &[(&str, &str)]) -> (Gateway, Vec<u8>) {
    let gateway = Gateway::with(env).await;
    gateway.sandbox.populate(&Face::V1.conversation(), 100).await;
    let list = ListParticipantsRequest { page_size: 100, ..Face::V1.list() };
    (gateway, raw::frame(&list))
}

#[tokio::test]
async fn an_answer_of_which_a_byte_is_read_is_given_up() {
    let (mut gateway, list) = with_a_long_list(&[("GATEWAY_LIMITS_CALL_TIMEOUT", "1s")]).await;
    let mut wire = Wire::open(gateway.addresses.grpc, &[(INITIAL_WINDOW, 1)]).await;
    wire.writer.send(&call(1, LIST, &list)).await.unwrap();
    assert_eq!(soon(wire.reader.next_of(DATA)).await.unwrap().payload.len(), 1);
    let reset = soon(wire.reader.next_of(RST_STREAM)).await.unwrap();
    assert_eq!((reset.stream, reset.error()), (1, CANCEL));
    let calls = "rpc_server_call_duration_seconds_count";
    until(&gateway, calls, &[("rpc_response_status_code", "CANCELLED")], 1.0).await;
    until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
    others_are_answered(&mut gateway).await;
}

#[tokio::test]
async fn a_watcher_that_waits_is_not_given_up() {
    let mut gateway =
        Gateway::with(&[("GATEWAY_LIMITS_CALL_TIMEOUT", "200ms"), ("GATEWAY_WATCH_HEARTBEAT", "700ms")])
            .await;
    let mut stream = gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap();
    for _ in 0..3 {
        assert!(soon(stream.get_mut().message()).await.unwrap().is_some());
    }
}

// === Silence

#[tokio::test]
async fn who_does_not_begin_to_speak_is_hung_up_on() {
    let mut gateway = Gateway::with(&[("GATEWAY_CONNECTIONS_HANDSHAKE_TIMEOUT", "200ms")]).await;
    for (number, said) in [&[][..], &PREFACE[..10], &PREFACE[..23]].iter().enumerate() {
        let mut wire = Wire::connect(gateway.addresses.grpc).await;
        wire.writer.send(said).await.unwrap();
        soon(wire.reader.rest()).await;
        let silent = [("participant_connections_reason", "silent")];
        let count = u32::try_from(number).unwrap() + 1;
        until(&gateway, "participant_connections_refused_total", &silent, count.into()).await;
    }
    // Who has spoken may be silent after that: this one is as old.
    others_are_answered(&mut gateway).await;
    until(&gateway, "participant_connections_open", &[], 1.0).await;
}

#[tokio::test]
async fn a_peer_that_is_not_there_any_more_is_found_out() {
    let mut gateway = Gateway::with(&[
        ("GATEWAY_CONNECTIONS_KEEPALIVE_INTERVAL", "200ms"),
        ("GATEWAY_CONNECTIONS_KEEPALIVE_TIMEOUT", "200ms"),
    ])
    .await;
    // Neither answers what it is asked; the second has a call that would last.
    let mut preface_only = Wire::connect(gateway.addresses.grpc).await;
    preface_only.writer.send(PREFACE).await.unwrap();
    let mut half_open = Wire::open(gateway.addresses.grpc, &[]).await;
    half_open.writer.send(&call_without_body(1, GET)).await.unwrap();
    for wire in [&mut preface_only, &mut half_open] {
        let frames = soon(wire.reader.rest()).await;
        assert!(frames.iter().any(|frame| frame.kind == PING && frame.flags != ACK), "{frames:?}");
    }
    until(&gateway, "participant_connections_open", &[], 1.0).await;
    until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
    others_are_answered(&mut gateway).await;
}

#[tokio::test]
async fn a_peer_that_takes_no_byte_any_more_is_hung_up_on() {
    let (mut gateway, list) = with_a_long_list(&[
        ("GATEWAY_CONNECTIONS_KEEPALIVE_INTERVAL", "1s"),
        ("GATEWAY_CONNECTIONS_KEEPALIVE_TIMEOUT", "1s"),
    ])
    .await;
    const WINDOW: u32 = 1 << 30;
    let wire = Wire::connect_narrow(gateway.addresses.grpc).await;
    let mut wire = wire.greet(&[(INITIAL_WINDOW, WINDOW)]).await;
    soon(wire.reader.next_of(SETTINGS)).await.expect("it is served");
    let mut calls = frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
    // More than the sockets hold; from here on nothing is read.
    for number in 0..100 {
        calls.extend(call(2 * number + 1, LIST, &list));
    }
    wire.writer.send(&calls).await.unwrap();
    until(&gateway, "participant_connections_open", &[], 1.0).await;
    until(&gateway, "participant_calls_in_flight", &[], 0.0).await;
    others_are_answered(&mut gateway).await;
    drop(wire);
}

// === How many, and how old

#[tokio::test]
async fn no_more_connections_are_held_than_there_may_be() {
    let mut gateway = Gateway::with(&[("GATEWAY_CONNECTIONS_MAX", "3")]).await;
    others_are_answered(&mut gateway).await;
    let address = gateway.addresses.grpc;
    let mut held = [Wire::open(address, &[]).await, Wire::open(address, &[]).await];
    for wire in &mut held {
        soon(wire.reader.next_of(SETTINGS)).await.expect("it is served");
    }
    let refusals = 5;
    for _ in 0..refusals {
        let frames = soon(Wire::connect(address).await.reader.rest()).await;
        assert!(frames.is_empty(), "{frames:?}");
    }
    let total = [("participant_connections_reason", "total")];
    until(&gateway, "participant_connections_refused_total", &total, refusals.into()).await;
    others_are_answered(&mut gateway).await;
    // Where one goes, there is room at once.
    let [one, _other] = held;
    drop(one);
    until(&gateway, "participant_connections_open", &[], 2.0).await;
    soon(connect(address)).await.get_participant(Face::V1.get()).await.unwrap();
}

#[tokio::test]
async fn no_peer_has_more_connections_than_its_share() {
    let gateway = Gateway::with(&[("GATEWAY_CONNECTIONS_MAX_PER_PEER", "2")]).await;
    let (address, neighbour) = (gateway.addresses.grpc, [127, 0, 0, 2].into());
    let mut first = Wire::open(address, &[]).await;
    soon(first.reader.next_of(SETTINGS)).await.expect("it is served");
    let frames = soon(Wire::connect(address).await.reader.rest()).await;
    assert!(frames.is_empty(), "{frames:?}");
    let peer = [("participant_connections_reason", "peer")];
    until(&gateway, "participant_connections_refused_total", &peer, 1.0).await;
    let mut others = Wire::connect_from(neighbour, address).await;
    others.writer.send(PREFACE).await.unwrap();
    soon(others.reader.next_of(SETTINGS)).await.expect("another peer is served");
}

#[tokio::test]
async fn an_old_connection_is_asked_to_end_and_its_calls_are_answered() {
    let gateway = Gateway::with(&[("GATEWAY_CONNECTIONS_MAX_AGE", "300ms")]).await;
    gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
    let began = Instant::now();
    let mut wire = Wire::open(gateway.addresses.grpc, &[]).await;
    wire.writer.send(&call(1, GET, &get_body())).await.unwrap();
    gateway.sandbox.held(1).await;
    let goaway = soon(wire.reader.next_of(GOAWAY)).await.expect("it says so");
    assert_eq!(goaway.error(), 0);
    assert!(began.elapsed() >= Duration::from_millis(270), "{:?}", began.elapsed());
    gateway.sandbox.release().await;
    let answer = soon(wire.reader.next_of(HEADERS)).await.expect("the call goes on");
    assert_eq!((answer.stream, answer.flags & END_STREAM), (1, 0));
    let end = soon(wire.reader.next_of(HEADERS)).await.expect("it is answered whole");
    assert_eq!((end.stream, end.flags & END_STREAM), (1, END_STREAM));
}

// === Calls

#[tokio::test]
async fn no_caller_has_more_calls_than_there_are_places_left() {
    let gateway = Gateway::with(&[("GATEWAY_LIMITS_CALLS_IN_FLIGHT", "4")]).await;
    let (address, neighbour) = (gateway.addresses.grpc, [127, 0, 0, 2].into());
    // Of two connections; a call whose body does not come is in flight.
    let mut wires = [Wire::open(address, &[]).await, Wire::open(address, &[]).await];
    for (wire, in_flight) in wires.iter_mut().zip([1.0, 2.0]) {
        wire.writer.send(&call_without_body(1, GET)).await.unwrap();
        until(&gateway, "participant_calls_in_flight", &[], in_flight).await;
    }
    for wire in &mut wires {
        wire.writer.send(&call(3, GET, &get_body())).await.unwrap();
        let refused = soon(wire.reader.next_of(HEADERS)).await.unwrap();
        assert_eq!((refused.stream, refused.flags & END_STREAM), (3, END_STREAM));
    }
    let mut other = Wire::connect_from(neighbour, address).await.greet(&[]).await;
    other.writer.send(&call(1, GET, &get_body())).await.unwrap();
    let answer = soon(other.reader.next_of(HEADERS)).await.unwrap();
    assert_eq!((answer.stream, answer.flags & END_STREAM), (1, 0));
    let [(label, method)] = shed("GetParticipant");
    assert_eq!(Scrape::of(&gateway).await.sum("participant_calls_shed_total", &[(label, &method)]), 2.0);
}

fn overloaded(status: &Status) {
    assert_eq!(told(status), (Code::ResourceExhausted, "LOCAL_CONCURRENCY".into()));
    let wait = status.get_details_retry_info().expect("it says when to come again").retry_delay;
    assert_eq!(wait, Some(Duration::from_secs(1)));
}

fn shed(method: &str) -> [(&'static str, String); 1] {
    [("rpc_method", format!("participant.v1.ParticipantService/{method}"))]
}

on_both_versions! {
    async fn a_call_too_many_is_refused_at_once(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_LIMITS_CALLS_IN_FLIGHT", "1")]).await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let held = {
            let mut client = gateway.client.clone();
            tokio::spawn(async move { client.get_participant(face.get()).await })
        };
        gateway.sandbox.held(1).await;
        gateway.sandbox.forget_requests().await;
        overloaded(&gateway.get(face.get()).await.unwrap_err());
        overloaded(&gateway.create(face.create(face.newcomer(1))).await.unwrap_err());
        let (participants, end) = gateway.stream(stream(face)).await;
        assert!(participants.is_empty());
        overloaded(&end.unwrap_err());
        assert_eq!(gateway.sandbox.count().await, 0);

        // Those who watch, and those who ask how the gateway is, have another bound, or none.
        gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap();
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc));
        let mut health = HealthClient::new(channel.unwrap().connect().await.unwrap());
        health.check(HealthCheckRequest::default()).await.unwrap();

        gateway.sandbox.release().await;
        held.await.unwrap().unwrap();
        gateway.get(face.get()).await.unwrap();
        let scrape = Scrape::of(&gateway).await;
        for method in ["GetParticipant", "CreateParticipant", "StreamParticipants"] {
            let [(label, method)] = shed(method);
            assert_eq!(scrape.sum("participant_calls_shed_total", &[(label, &method)]), 1.0, "{method}");
            let refused = [(label, method.as_str()), ("rpc_response_status_code", "RESOURCE_EXHAUSTED")];
            assert_eq!(scrape.sum("rpc_server_call_duration_seconds_count", &refused), 1.0, "{method}");
        }
    }

    async fn a_watcher_too_many_is_refused_at_once(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_LIMITS_WATCHERS", "1")]).await;
        let first = gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap();
        let refused = gateway.client.watch_participants(WatchParticipantsRequest::default()).await;
        overloaded(&refused.unwrap_err());
        gateway.get(face.get()).await.unwrap();
        drop(first);
        let [(label, method)] = shed("WatchParticipants");
        until(&gateway, "participant_calls_in_flight", &[(label, &method)], 0.0).await;
        gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap();
    }
}
