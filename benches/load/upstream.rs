//! A v1 of Twilio's to read from: HTTP/1.1 with keep-alive, and whatever participant is asked for. How it behaves can be
//! changed while it runs.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use participant_gateway::sandbox;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

const BEHAVIOUR: &str = "/behaviour";
const REQUESTS: &str = "/requests";

/// What happens to requests.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Behaviour {
    /// Each answer comes so many milliseconds late.
    pub(crate) delay_ms: u64,
    /// So many of a hundred are answered with 503, by chance.
    pub(crate) failing: u32,
    /// Beyond so many at a time it answers 429, at once.
    pub(crate) capacity: usize,
}

impl Behaviour {
    pub(crate) fn healthy(delay: Duration) -> Self {
        let delay_ms = u64::try_from(delay.as_millis()).expect("a short delay");
        Self { delay_ms, failing: 0, capacity: usize::MAX }
    }
}

struct Twilio {
    behaviour: Mutex<Behaviour>,
    requests: AtomicU64,
    running: AtomicUsize,
}

/// Serves until its process ends. Each answer comes so many milliseconds late.
pub(crate) async fn run(delay_ms: u64) {
    let listener = crate::listen().await;
    let twilio = Arc::new(Twilio {
        behaviour: Mutex::new(Behaviour::healthy(Duration::from_millis(delay_ms))),
        requests: AtomicU64::new(0),
        running: AtomicUsize::new(0),
    });
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let twilio = twilio.clone();
        let service = service_fn(move |request| {
            let twilio = twilio.clone();
            async move { Ok::<_, Infallible>(twilio.answer(request).await) }
        });
        let server =
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        connections.spawn(server);
        while connections.try_join_next().is_some() {}
    }
}

impl Twilio {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            BEHAVIOUR => {
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let behaviour = serde_json::from_slice(&body).expect("a behaviour");
                *self.behaviour.lock().expect("nobody panics") = behaviour;
                response(StatusCode::OK, String::new())
            }
            REQUESTS => response(StatusCode::OK, self.requests.load(Ordering::SeqCst).to_string()),
            path => {
                let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
                let answer = self.participant(path, running).await;
                self.running.fetch_sub(1, Ordering::SeqCst);
                answer
            }
        }
    }

    async fn participant(&self, path: &str, running: usize) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let behaviour = *self.behaviour.lock().expect("nobody panics");
        if running > behaviour.capacity {
            return problem(StatusCode::TOO_MANY_REQUESTS, 20429);
        }
        if behaviour.delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
        }
        if behaviour.failing > 0 && fastrand::u32(..100) < behaviour.failing {
            return problem(StatusCode::SERVICE_UNAVAILABLE, 20503);
        }
        let ids = path.strip_prefix("/v1/Conversations/").and_then(|ids| ids.split_once("/Participants/"));
        match ids {
            Some((conversation, participant)) => response(StatusCode::OK, json(conversation, participant)),
            None => problem(StatusCode::NOT_FOUND, 20404),
        }
    }
}

fn problem(status: StatusCode, code: u32) -> Response<Full<Bytes>> {
    let number = status.as_u16();
    response(status, format!(r#"{{"code":{code},"message":"No.","more_info":"","status":{number}}}"#))
}

fn response(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let builder = Response::builder().status(status).header("content-type", "application/json");
    builder.body(Full::from(body)).expect("a response")
}

/// As in Twilio's documentation.
fn json(conversation: &str, participant: &str) -> String {
    let account = sandbox::ACCOUNT_SID;
    format!(
        r#"{{"account_sid":"{account}","conversation_sid":"{conversation}","sid":"{participant}","identity":null,"attributes":"{{\"role\":\"driver\"}}","messaging_binding":{{"type":"sms","address":"+15558675310","proxy_address":"+15017122661","projected_address":null}},"role_sid":"RL00000000000000000000000000000001","date_created":"2026-01-05T09:00:00Z","date_updated":"2026-01-05T09:00:00Z","url":"https://conversations.twilio.com/v1/Conversations/{conversation}/Participants/{participant}","last_read_message_index":null,"last_read_timestamp":null}}"#
    )
}

/// Makes the upstream at this address behave so from now on.
pub(crate) async fn behave(upstream: SocketAddr, behaviour: Behaviour) {
    let request = reqwest::Client::new().put(format!("http://{upstream}{BEHAVIOUR}")).json(&behaviour);
    request.send().await.and_then(reqwest::Response::error_for_status).expect("it is told");
}

/// How many requests for participants it has had.
pub(crate) async fn requests(upstream: SocketAddr) -> u64 {
    let answer = reqwest::get(format!("http://{upstream}{REQUESTS}")).await.expect("an answer");
    answer.text().await.expect("a text").parse().expect("a number")
}
