//! Who is told events: a server that keeps what it is sent, and answers as it is told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How a request is answered; 200 when nothing is planned.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Status(u16),
    /// Never.
    Hang,
}

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Received {
    url: String,
    pub(crate) headers: HeaderMap,
    body: Bytes,
}

pub(crate) struct Receiver {
    pub(crate) url: String,
    received: mpsc::UnboundedReceiver<Received>,
    plan: Arc<Mutex<VecDeque<Reply>>>,
    _server: JoinSet<()>,
}

#[derive(Clone)]
struct Shared {
    base: String,
    received: mpsc::UnboundedSender<Received>,
    plan: Arc<Mutex<VecDeque<Reply>>>,
}

impl Receiver {
    pub(crate) async fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (sender, received) = mpsc::unbounded_channel();
        let plan = Arc::default();
        let url = format!("{base}/events?for=us");
        let shared = Shared { base, received: sender, plan: Arc::clone(&plan) };
        let router = Router::new().fallback(receive).with_state(shared);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Receiver { url, received, plan, _server: server }
    }

    pub(crate) fn plan(&self, replies: &[Reply]) {
        self.plan.lock().unwrap().extend(replies);
    }

    /// All requests so far.
    pub(crate) fn received(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.received.try_recv().ok()).collect()
    }

    /// The CloudEvents of all requests so far, whose signatures are right.
    pub(crate) fn events(&mut self) -> Vec<Value> {
        let batches = self.received().into_iter().map(|request| request.verified("sandbox"));
        batches.flat_map(|batch| batch.as_array().unwrap().clone()).collect()
    }
}

async fn receive(State(shared): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    let url = format!("{}{uri}", shared.base);
    let reply = shared.plan.lock().unwrap().pop_front();
    shared.received.send(Received { url, headers, body }).unwrap();
    match reply {
        Some(Reply::Status(status)) => StatusCode::from_u16(status).unwrap(),
        Some(Reply::Hang) => std::future::pending().await,
        None => StatusCode::OK,
    }
}

impl Received {
    /// The body, of which signature, hash and type are right.
    #[track_caller]
    pub(crate) fn verified(&self, auth_token: &str) -> Value {
        assert!(self.signed_with(auth_token), "{self:?}");
        let hash: String = Sha256::digest(&self.body).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(self.url.ends_with(&format!("/events?for=us&bodySHA256={hash}")), "{}", self.url);
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn signed_with(&self, auth_token: &str) -> bool {
        let mut mac = Hmac::<Sha1>::new_from_slice(auth_token.as_bytes()).unwrap();
        mac.update(self.url.as_bytes());
        self.headers["x-twilio-signature"] == STANDARD.encode(mac.finalize().into_bytes())
    }
}
