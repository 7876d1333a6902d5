//! When a call ends although Twilio has not answered, and what becomes of what it asked for.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use participant_gateway::app::Stop;
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_util::sync::DropGuard;
use tonic::{Code, Status};

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

/// A connection that leaves deadlines to the server. tonic's own channel ends a call by itself at its `grpc-timeout`,
/// and a test would see the client's answer in place of the gateway's.
#[derive(Clone)]
struct Patient(SendRequest<tonic::body::Body>);

impl tower::Service<Request<tonic::body::Body>> for Patient {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

struct PatientClient {
    client: ParticipantServiceClient<Patient>,
    connection: AbortHandle,
}

impl PatientClient {
    async fn connect(address: SocketAddr) -> Self {
        let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let origin = format!("http://{address}").parse().unwrap();
        Self {
            client: ParticipantServiceClient::with_origin(Patient(sender), origin),
            connection: connection.abort_handle(),
        }
    }

    async fn get(&mut self, request: tonic::Request<GetParticipantRequest>) -> Result<(), Status> {
        self.client.get_participant(request).await.map(|_| ())
    }
}

impl Drop for PatientClient {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The request with this `grpc-timeout`, as it stands.
fn within<T>(timeout: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

fn deadline() -> (Code, String) {
    (Code::DeadlineExceeded, "DEADLINE".into())
}

/// -1 where the call must not be repeated.
fn pushback(status: &Status) -> Option<&str> {
    status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap())
}

/// A gateway before a sandbox that outlives it, so that it can be asked what came in until the very end.
async fn before_a_lasting_sandbox(env: &[(&str, &str)]) -> (Gateway, DropGuard) {
    let env = [&[("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)], env].concat();
    lasting(sandbox::Settings::default(), &env).await
}

/// The same with such a sandbox, and with credentials in the variables.
async fn lasting(settings: sandbox::Settings, env: &[(&str, &str)]) -> (Gateway, DropGuard) {
    let (fake, end) = sandbox(settings).await;
    let (url, token_url) = (format!("http://{fake}"), format!("http://{fake}/v2/token"));
    let fixed = [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("GATEWAY_UPSTREAM_TOKEN_URL", &token_url)];
    let env = [&fixed[..], env].concat();
    (Gateway::launch(&["--upstream-url", &url], &env, Some((fake, None))).await, end)
}

/// With an OAuth client whose first token is held back until the sandbox releases it.
async fn without_a_token() -> (Gateway, DropGuard) {
    let matches = sandbox::FaultMatch { path_contains: Some("/v2/token".into()), ..Default::default() };
    let held = sandbox::Fault { matches, hold: true, times: Some(1), ..Default::default() };
    let settings = sandbox::Settings { faults: vec![held], ..Default::default() };
    let client = [("TWILIO_CLIENT_ID", sandbox::OAUTH_CLIENT_ID), ("TWILIO_CLIENT_SECRET", "sandbox")];
    let (gateway, end) = lasting(settings, &client).await;
    gateway.sandbox.held(1).await;
    (gateway, end)
}

/// Stops the gateway, which waits for every write that is under way, and tells the requests that came in by then.
async fn all_requests(mut gateway: Gateway) -> Vec<Received> {
    let sandbox = gateway.sandbox.clone();
    gateway.stop(Stop::Promptly);
    gateway.ended().await.unwrap();
    sandbox.requests().await
}

fn writes(requests: &[Received]) -> usize {
    let is_write = |request: &&Received| request.method != "GET" && request.path != "/v2/token";
    requests.iter().filter(is_write).count()
}

/// With a request id, that of no other.
fn create_once(face: Face, number: u16) -> CreateParticipantRequest {
    let request_id = "7c9e6679-7425-40de-944b-e07fc1f90ae7".into();
    CreateParticipantRequest { request_id, ..face.create(face.newcomer(number)) }
}

/// How the update of [`Face::update`] is sent.
fn update_method(face: Face) -> &'static str {
    if face == Face::V1 { "POST" } else { "PUT" }
}

/// An update that has to read the participant before it can be sent: v1 by identity, v2 always.
fn reading_update(face: Face) -> UpdateParticipantRequest {
    let update = face.update(face.marked("late"));
    match face {
        Face::V1 => UpdateParticipantRequest { participant_id: "alice".into(), ..update },
        Face::V2 => update,
    }
}

/// Reads until the participant bears the mark: the cache has forgotten, and Twilio has it.
async fn until_marked(gateway: &mut Gateway, face: Face, mark: &str) {
    let patience = Instant::now() + PATIENCE;
    while face.mark(&gateway.get(face.get()).await.unwrap().0) != mark {
        assert!(Instant::now() < patience, "the write never shows");
        tokio::task::yield_now().await;
    }
}

on_both_versions! {
    async fn no_time_at_all_is_a_deadline_and_never_a_cancellation(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "latency_ms": 20 })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        for timeout in ["0n", "1n", "1u", "1m", "0H"] {
            for _ in 0..20 {
                let error = caller.get(within(timeout, face.get_fresh())).await.unwrap_err();
                assert_eq!(told(&error), deadline(), "{timeout}");
            }
        }
        let error = caller.client.list_participants(within("0n", face.list())).await.unwrap_err();
        assert_eq!(told(&error), deadline());
        let create = within("0n", face.create(face.newcomer(1)));
        let error = caller.client.create_participant(create).await.unwrap_err();
        assert_eq!(told(&error), deadline());
    }

    async fn a_read_that_is_held_ends_by_its_deadline(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let began = Instant::now();
        let error = caller.get(within("200m", face.get())).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), None));
        assert!(began.elapsed() >= Duration::from_millis(150), "it ended after {:?}", began.elapsed());
        let error = caller.client.list_participants(within("200m", face.list())).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), None));
        gateway.sandbox.clear_faults().await;
        caller.get(within("10S", face.get())).await.unwrap();
    }

    async fn a_stream_ends_by_its_deadline_wherever_it_is(face) {
        let gateway = Gateway::start().await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        // The first page's request is struck by a fault that changes nothing; the second page is held.
        gateway.sandbox.fault(json!({ "headers": { "x-page": "first" }, "times": 1 })).await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 1 };
        let mut stream = caller.client.stream_participants(within("500m", request.clone())).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        assert_eq!(told(&stream.message().await.unwrap_err()), deadline());
        // And in its first page.
        let mut stream = caller.client.stream_participants(within("200m", request)).await.unwrap().into_inner();
        assert_eq!(told(&stream.message().await.unwrap_err()), deadline());
    }

    async fn an_update_whose_read_outlasts_the_deadline_is_never_sent(face) {
        let (gateway, _sandbox) = before_a_lasting_sandbox(&[]).await;
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true, "times": 1 })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let error = caller.client.update_participant(within("200m", reading_update(face))).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), None));
        gateway.sandbox.held(1).await;
        gateway.sandbox.release().await;
        let requests = all_requests(gateway).await;
        assert_eq!((requests.len(), writes(&requests)), (1, 0), "{requests:?}");
    }

    async fn an_update_whose_caller_goes_away_during_its_read_is_never_sent(face) {
        let (gateway, _sandbox) = before_a_lasting_sandbox(&[]).await;
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true, "times": 1 })).await;
        let mut client = gateway.client.clone();
        let call = tokio::spawn(async move { client.update_participant(reading_update(face)).await });
        gateway.sandbox.held(1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        // The same connection carries the reset first: whoever answers this has seen it.
        let other = GetParticipantRequest { participant_id: face.missing_participant().into(), ..face.get() };
        for _ in 0..3 {
            gateway.client.clone().get_participant(other.clone()).await.unwrap_err();
        }
        gateway.sandbox.release().await;
        assert_eq!(writes(&all_requests(gateway).await), 0);
    }

    async fn an_update_that_was_sent_takes_effect_after_the_deadline_and_is_not_to_be_repeated(face) {
        let mut gateway = Gateway::start().await;
        gateway.get(face.get()).await.unwrap();
        gateway.sandbox.fault(json!({ "match": { "method": update_method(face) }, "hold": true, "times": 1 })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let update = within("300m", face.update(face.marked("late")));
        let error = caller.client.update_participant(update).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), Some("-1")));
        gateway.sandbox.held(1).await;
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
        gateway.sandbox.release().await;
        until_marked(&mut gateway, face, "late").await;
    }

    async fn a_create_that_was_sent_takes_effect_after_the_deadline_and_is_not_to_be_repeated(face) {
        let mut gateway = Gateway::start().await;
        let before = gateway.list(face.list()).await.unwrap().participants.len();
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true, "times": 1 })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let create = within("300m", face.create(face.newcomer(1)));
        let error = caller.client.create_participant(create).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), Some("-1")));
        gateway.sandbox.held(1).await;
        gateway.sandbox.release().await;
        let patience = Instant::now() + PATIENCE;
        while gateway.list(face.list()).await.unwrap().participants.len() == before {
            assert!(Instant::now() < patience, "the create never shows");
            tokio::task::yield_now().await;
        }
    }

    async fn a_create_that_waits_for_a_token_is_given_up_with_its_deadline_and_never_sent(face) {
        let (mut gateway, _sandbox) = without_a_token().await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let create = within("200m", create_once(face, 1));
        let error = caller.client.create_participant(create).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), None));
        gateway.sandbox.release().await;
        // It left no outcome behind, so that even another create may bear its id.
        gateway.create(create_once(face, 2)).await.unwrap();
        let requests = all_requests(gateway).await;
        assert_eq!(writes(&requests), 1, "{requests:?}");
    }

    async fn an_update_that_waits_for_a_token_is_given_up_with_its_deadline_and_never_sent(face) {
        let (gateway, _sandbox) = without_a_token().await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let update = within("200m", face.update(face.marked("late")));
        let error = caller.client.update_participant(update).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), None));
        gateway.sandbox.release().await;
        assert_eq!(writes(&all_requests(gateway).await), 0);
    }

    async fn a_write_that_waits_for_a_token_is_given_up_with_its_caller(face) {
        let (gateway, _sandbox) = without_a_token().await;
        let mut client = gateway.client.clone();
        let call = tokio::spawn(async move { client.create_participant(create_once(face, 1)).await });
        let labels = [("rpc_method", "participant.v1.ParticipantService/CreateParticipant")];
        let in_flight = async || Scrape::of(&gateway).await.sum("participant_calls_in_flight", &labels);
        let patience = Instant::now() + PATIENCE;
        while in_flight().await < 1.0 {
            assert!(Instant::now() < patience, "the call does not come in");
        }
        call.abort();
        while in_flight().await > 0.0 {
            assert!(Instant::now() < patience, "the call does not end");
        }
        gateway.sandbox.release().await;
        assert_eq!(writes(&all_requests(gateway).await), 0);
    }

    /// A request that Twilio answered with 401 was not processed: while it waits for other credentials, nothing is sent.
    async fn a_write_that_was_refused_and_waits_for_a_file_counts_as_not_sent(face) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "wrong").unwrap();
        let path = file.path().to_str().unwrap();
        let (mut gateway, _sandbox) =
            lasting(sandbox::Settings::default(), &[("TWILIO_AUTH_TOKEN_FILE", path)]).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let create = within("300m", create_once(face, 1));
        let error = caller.client.create_participant(create).await.unwrap_err();
        assert_eq!((told(&error), pushback(&error)), (deadline(), None));
        std::fs::write(file.path(), sandbox::AUTH_TOKEN).unwrap();
        gateway.create(create_once(face, 2)).await.unwrap();
        assert_eq!(gateway.list(face.list()).await.unwrap().participants.len(), 4);
    }

    async fn what_is_no_grpc_timeout_is_no_deadline(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "latency_ms": 20 })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        for garbage in ["-5x", "5x", "", "m", "999999999S", "1.5S", "5 S", "-1S", "0x1S"] {
            caller.get(within(garbage, face.get_fresh())).await.unwrap_or_else(|error| panic!("{garbage:?}: {error}"));
        }
    }

    async fn the_gateway_bounds_a_call_whose_caller_does_not(face) {
        let gateway = Gateway::with(&[("GATEWAY_LIMITS_CALL_TIMEOUT", "200ms")]).await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let error = caller.get(tonic::Request::new(face.get())).await.unwrap_err();
        assert_eq!(told(&error), deadline());
        for timeout in ["99999999H", "-5x"] {
            let error = caller.get(within(timeout, face.get())).await.unwrap_err();
            assert_eq!(told(&error), deadline(), "{timeout}");
        }
    }

    async fn a_stream_outlasts_the_bound_of_unary_calls(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_LIMITS_CALL_TIMEOUT", "200ms")]).await;
        gateway.sandbox.fault(json!({ "headers": { "x-page": "first" }, "times": 1 })).await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 1 };
        let mut stream = gateway.client.stream_participants(request).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        gateway.sandbox.held(1).await;
        // Two calls, which end by the bound, one after the other: the stream is older than that.
        for _ in 0..2 {
            assert_eq!(told(&gateway.get(face.get()).await.unwrap_err()), deadline());
        }
        gateway.sandbox.clear_faults().await;
        let mut rest = 0;
        while stream.message().await.unwrap().is_some() {
            rest += 1;
        }
        assert_eq!(rest, 2);
    }

    async fn a_write_whose_caller_goes_away_takes_effect_once(face) {
        let (mut gateway, _sandbox) = before_a_lasting_sandbox(&[]).await;
        gateway.get(face.get()).await.unwrap();
        gateway.sandbox.fault(json!({ "match": { "method": update_method(face) }, "hold": true, "times": 1 })).await;
        let mut client = gateway.client.clone();
        let call = tokio::spawn(async move { client.update_participant(face.update(face.marked("orphan"))).await });
        gateway.sandbox.held(1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        // The same connection carries the reset first: whoever answers this has seen it.
        for _ in 0..3 {
            assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
        }
        gateway.sandbox.release().await;
        until_marked(&mut gateway, face, "orphan").await;
        assert_eq!(writes(&all_requests(gateway).await), 1);
    }

    async fn a_write_whose_connection_is_lost_takes_effect_once(face) {
        let (mut gateway, _sandbox) = before_a_lasting_sandbox(&[]).await;
        gateway.sandbox.fault(json!({ "match": { "method": update_method(face) }, "hold": true, "times": 1 })).await;
        let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
        let call = async { caller.client.update_participant(face.update(face.marked("orphan"))).await.map(|_| ()) };
        tokio::select! {
            answer = call => panic!("it is held: {answer:?}"),
            () = gateway.sandbox.held(1) => {}
        }
        drop(caller);
        gateway.sandbox.release().await;
        until_marked(&mut gateway, face, "orphan").await;
        assert_eq!(writes(&all_requests(gateway).await), 1);
    }

    async fn a_stop_ends_a_stream_with_a_reason(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "headers": { "x-page": "first" }, "times": 1 })).await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 1 };
        let mut stream = gateway.client.stream_participants(request).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        gateway.sandbox.held(1).await;
        gateway.stop(Stop::Promptly);
        let error = stream.message().await.unwrap_err();
        assert_eq!(told(&error), (Code::Unavailable, "SHUTTING_DOWN".into()));
        gateway.ended().await.unwrap();
    }

    async fn an_attempt_that_takes_too_long_is_repeated_for_a_read(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "300ms")]).await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Miss);
        assert!(gateway.sandbox.count().await >= 2);
    }

    async fn a_read_that_always_takes_too_long_is_unavailable(face) {
        let attempt = ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "100ms");
        let mut gateway = Gateway::with(&[attempt, ("GATEWAY_UPSTREAM_MAX_RETRIES", "1")]).await;
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        assert_eq!(gateway.sandbox.count().await, 2);
    }

    async fn a_write_that_takes_too_long_is_unknown_and_sent_once(face) {
        let (mut gateway, _sandbox) = before_a_lasting_sandbox(&[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "300ms")]).await;
        for method in ["POST", "PUT"] {
            gateway.sandbox.fault(json!({ "match": { "method": method }, "hold": true })).await;
        }
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        let update = gateway.update(face.update(face.marked("lost"))).await.unwrap_err();
        for error in [create, update] {
            assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
            assert_eq!(pushback(&error), Some("-1"));
        }
        assert_eq!(writes(&all_requests(gateway).await), 2);
    }
}

#[tokio::test]
async fn a_delete_that_takes_too_long_is_repeated_and_what_is_gone_then_was_deleted() {
    let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "300ms")]).await;
    gateway
        .sandbox
        .fault(json!({ "match": { "method": "DELETE" }, "hold": true, "after": true, "times": 1 }))
        .await;
    gateway.delete(Face::V1.delete()).await.unwrap();
    assert_eq!(gateway.get(Face::V1.get()).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_delete_that_waits_for_a_token_is_given_up_with_its_deadline_and_never_sent() {
    let (gateway, _sandbox) = without_a_token().await;
    let mut caller = PatientClient::connect(gateway.addresses.grpc).await;
    let error = caller.client.delete_participant(within("200m", Face::V1.delete())).await.unwrap_err();
    assert_eq!((told(&error), pushback(&error)), (deadline(), None));
    gateway.sandbox.release().await;
    assert_eq!(writes(&all_requests(gateway).await), 0);
}
