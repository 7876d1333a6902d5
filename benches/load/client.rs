//! A client that costs little, because it shares the machine: h2, and the bytes of the request and of the answer as they are.
//! Of each answer it reads `grpc-status`, and compares the bytes with those that were decoded and checked before.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

pub(crate) const CONNECTIONS: usize = 8;
pub(crate) const STREAMS: usize = 32;
/// Compressed or not, and the length of the message.
const FRAME_HEAD: usize = 5;

/// A call and what has to come of it.
#[derive(Clone)]
pub(crate) struct Call {
    /// `/package.Service/Method`.
    pub(crate) path: &'static str,
    /// The encoded request.
    pub(crate) request: Bytes,
    /// How the encoded answer begins.
    pub(crate) answer: Bytes,
}

/// What became of some calls.
pub(crate) struct Load {
    pub(crate) calls: u64,
    pub(crate) seconds: f64,
    pub(crate) latency: Latency,
}

/// How long they took.
#[derive(Clone)]
pub(crate) struct Latency(Arc<Mutex<Histogram<u64>>>);

/// One that knows a server.
pub(crate) struct Client {
    connections: Vec<SendRequest<Bytes>>,
    request: Arc<Request<()>>,
    frame: Bytes,
    answer: Bytes,
    /// End with the client.
    _drivers: JoinSet<()>,
}

impl Client {
    pub(crate) async fn connect(server: SocketAddr, call: &Call, connections: usize) -> Self {
        let (mut senders, mut drivers) = (Vec::new(), JoinSet::new());
        for _ in 0..connections {
            let stream = TcpStream::connect(server).await.expect("it listens");
            stream.set_nodelay(true).expect("a socket");
            let (sender, connection) = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 20)
                .handshake(stream)
                .await
                .expect("it speaks HTTP/2");
            drivers.spawn(async move { connection.await.expect("it stays") });
            senders.push(sender);
        }
        let request = Request::post(format!("http://{server}{}", call.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (request, answer) = (Arc::new(request), call.answer.clone());
        Self { connections: senders, request, frame: framed(&call.request), answer, _drivers: drivers }
    }

    /// Many at a time, as fast as they are answered.
    pub(crate) async fn saturate(&self, length: Duration) -> Load {
        self.closed_loop(length, STREAMS).await
    }

    /// So many streams on each connection, each of which calls when it has its answer.
    async fn closed_loop(&self, length: Duration, streams: usize) -> Load {
        let (latency, calls) = (Latency::none(), Arc::new(AtomicU64::new(0)));
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for connection in self.connections.iter().flat_map(|one| std::iter::repeat_n(one, streams)) {
            let (caller, latency, calls) = (self.caller(connection), latency.clone(), calls.clone());
            callers.spawn(async move {
                while began.elapsed() < length {
                    let began = Instant::now();
                    caller.call().await;
                    latency.add(began.elapsed());
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        callers.join_all().await;
        Load { calls: calls.load(Ordering::Relaxed), seconds: began.elapsed().as_secs_f64(), latency }
    }

    /// One after the other on one connection.
    pub(crate) async fn alone(&self, length: Duration) -> Load {
        let caller = self.caller(&self.connections[0]);
        let (latency, mut calls, began) = (Latency::none(), 0, Instant::now());
        while began.elapsed() < length {
            let began = Instant::now();
            caller.call().await;
            latency.add(began.elapsed());
            calls += 1;
        }
        Load { calls, seconds: began.elapsed().as_secs_f64(), latency }
    }

    /// At this many calls a second, whether or not they are answered. The time of a call counts from when it was due.
    pub(crate) async fn at_rate(&self, rate: f64, length: Duration) -> Load {
        let callers: Vec<_> = self.connections.iter().map(|one| Arc::new(self.caller(one))).collect();
        let (latency, began) = (Latency::none(), Instant::now());
        let (all, mut begun, mut running) = ((rate * length.as_secs_f64()) as u64, 0, JoinSet::new());
        while begun < all {
            let due = began + Duration::from_secs_f64(begun as f64 / rate);
            if Instant::now() < due {
                // Timers are too coarse: this spins, lets others on this core go first, and looks at the sockets.
                std::thread::yield_now();
                tokio::task::yield_now().await;
                while running.try_join_next().is_some() {}
                continue;
            }
            let (caller, latency) = (callers[begun as usize % callers.len()].clone(), latency.clone());
            running.spawn(async move {
                caller.call().await;
                latency.add(due.elapsed());
            });
            begun += 1;
        }
        running.join_all().await;
        Load { calls: all, seconds: began.elapsed().as_secs_f64(), latency }
    }

    fn caller(&self, connection: &SendRequest<Bytes>) -> Caller {
        Caller {
            connection: connection.clone(),
            request: self.request.clone(),
            frame: self.frame.clone(),
            answer: self.answer.clone(),
        }
    }
}

struct Caller {
    connection: SendRequest<Bytes>,
    request: Arc<Request<()>>,
    frame: Bytes,
    answer: Bytes,
}

impl Caller {
    /// What is not answered as it should ends the benchmark: there would be nothing to compare.
    async fn call(&self) {
        let answer = self.try_call().await.unwrap_or_else(|status| panic!("grpc-status {status}"));
        assert!(answer.starts_with(&self.answer), "another answer than the one that was checked");
    }

    /// The encoded answer, or the status in its place.
    async fn try_call(&self) -> Result<Bytes, String> {
        let mut connection = self.connection.clone().ready().await.expect("the connection stays");
        let (response, mut body) = connection.send_request((*self.request).clone(), false).expect("a stream");
        body.send_data(self.frame.clone(), true).expect("a stream");
        let (head, mut body) = response.await.expect("an answer").into_parts();
        let mut message = Bytes::new();
        while let Some(data) = body.data().await {
            let data = data.expect("the stream stays");
            body.flow_control().release_capacity(data.len()).expect("it was used");
            message = if message.is_empty() { data } else { [message, data].concat().into() };
        }
        let trailers = body.trailers().await.expect("the stream stays");
        match status(trailers.as_ref().unwrap_or(&head.headers)) {
            "0" => {
                message.advance(FRAME_HEAD);
                Ok(message)
            }
            other => Err(other.to_owned()),
        }
    }
}

/// The encoded answer to one call, whatever it is.
pub(crate) async fn ask(server: SocketAddr, call: &Call) -> Bytes {
    let client = Client::connect(server, call, 1).await;
    let caller = client.caller(&client.connections[0]);
    caller.try_call().await.unwrap_or_else(|status| panic!("grpc-status {status}"))
}

fn status(headers: &HeaderMap) -> &str {
    headers.get("grpc-status").and_then(|value| value.to_str().ok()).unwrap_or("missing")
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a short message");
    [&[0], length.to_be_bytes().as_slice(), message].concat().into()
}

impl Latency {
    fn none() -> Self {
        let histogram = Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("legal bounds");
        Self(Arc::new(Mutex::new(histogram)))
    }

    fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.lock().expect("nobody panics").saturating_record(nanos);
    }

    /// Of so many of a hundred, in microseconds.
    pub(crate) fn micros(&self, percentile: f64) -> f64 {
        self.0.lock().expect("nobody panics").value_at_percentile(percentile) as f64 / 1000.0
    }
}
