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
/// How exact tokio's timers are.
const TIMERS: Duration = Duration::from_millis(1);
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
    /// As `grpc-timeout` tells it.
    pub(crate) timeout: &'static str,
}

/// The encoded answer, or the `grpc-status` in its place.
pub(crate) type Answer = Result<Bytes, Status>;

/// A gRPC code that is not OK, by its number, or that there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    Code(u8),
    /// The stream or its connection was cut.
    Cut,
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
    callers: Vec<Caller>,
    frame: Bytes,
    answer: Bytes,
    /// End with the client.
    _drivers: JoinSet<()>,
}

/// One connection.
#[derive(Clone)]
struct Caller {
    connection: SendRequest<Bytes>,
    request: Arc<Request<()>>,
}

impl Client {
    pub(crate) async fn connect(server: SocketAddr, call: &Call, connections: usize) -> Self {
        let request = Request::post(format!("http://{server}{}", call.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", call.timeout)
            .body(())
            .expect("a request");
        let (request, mut callers, mut drivers) = (Arc::new(request), Vec::new(), JoinSet::new());
        for _ in 0..connections {
            let stream = TcpStream::connect(server).await.expect("it listens");
            stream.set_nodelay(true).expect("a socket");
            let (connection, driver) = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 20)
                .handshake(stream)
                .await
                .expect("it speaks HTTP/2");
            // How it ends is told to the calls.
            drivers.spawn(async move { drop(driver.await) });
            callers.push(Caller { connection, request: request.clone() });
        }
        Self { callers, frame: framed(&call.request), answer: call.answer.clone(), _drivers: drivers }
    }

    /// On all streams of all connections, each of which calls again when it has its answer.
    pub(crate) async fn saturate(&self, length: Duration) -> Load {
        let (latency, began) = (Latency::none(), Instant::now());
        let mut streams = JoinSet::new();
        for caller in self.callers.iter().flat_map(|caller| std::iter::repeat_n(caller, STREAMS)) {
            let (caller, latency) = (caller.clone(), latency.clone());
            let (frame, expected) = (self.frame.clone(), self.answer.clone());
            streams.spawn(async move {
                while began.elapsed() < length {
                    let began = Instant::now();
                    check(caller.call(&frame).await, &expected);
                    latency.add(began.elapsed());
                }
            });
        }
        streams.join_all().await;
        Load { calls: latency.count(), seconds: began.elapsed().as_secs_f64(), latency }
    }

    /// Each of so many calls once, by their numbers, as fast as they are answered. Of each it notes the number and the answer.
    pub(crate) async fn each(
        &self,
        all: u64,
        frame: impl Fn(u64) -> Bytes + Clone + Send + 'static,
        note: impl Fn(u64, Answer) + Clone + Send + Sync + 'static,
    ) {
        let (next, mut streams) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        for caller in self.callers.iter().flat_map(|caller| std::iter::repeat_n(caller, STREAMS)) {
            let (caller, next, frame, note) = (caller.clone(), next.clone(), frame.clone(), note.clone());
            streams.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= all {
                        return;
                    }
                    note(number, caller.call(&frame(number)).await);
                }
            });
        }
        streams.join_all().await;
    }

    /// One after the other on one connection.
    pub(crate) async fn alone(&self, length: Duration) -> Load {
        let (latency, began) = (Latency::none(), Instant::now());
        while began.elapsed() < length {
            let began = Instant::now();
            check(self.callers[0].call(&self.frame).await, &self.answer);
            latency.add(began.elapsed());
        }
        Load { calls: latency.count(), seconds: began.elapsed().as_secs_f64(), latency }
    }

    /// At this many calls a second, whether or not they are answered.
    pub(crate) async fn at_rate(&self, rate: f64, length: Duration) -> Load {
        let (latency, began) = (Latency::none(), Instant::now());
        let (kept, frame, expected) = (latency.clone(), self.frame.clone(), self.answer.clone());
        let question = move |_| frame.clone();
        let note = move |_, answer, took| {
            check(answer, &expected);
            kept.add(took);
        };
        self.open_loop(rate, length, question, note).await;
        Load { calls: latency.count(), seconds: began.elapsed().as_secs_f64(), latency }
    }

    /// Calls when they are due, by their numbers. Of each it notes the number, the answer, and the time since it was due.
    pub(crate) async fn open_loop(
        &self,
        rate: f64,
        length: Duration,
        frame: impl Fn(u64) -> Bytes,
        note: impl Fn(u64, Answer, Duration) + Clone + Send + 'static,
    ) {
        let began = Instant::now();
        let (all, mut next, mut running) = ((rate * length.as_secs_f64()) as u64, 0, JoinSet::new());
        while next < all {
            let due = began + Duration::from_secs_f64(next as f64 / rate);
            while running.try_join_next().is_some() {}
            let early = due.saturating_duration_since(Instant::now());
            if early > 2 * TIMERS {
                tokio::time::sleep(early - TIMERS).await;
                continue;
            }
            if !early.is_zero() {
                // Spins, lets others on this core go first, and looks at the sockets.
                std::thread::yield_now();
                tokio::task::yield_now().await;
                continue;
            }
            let caller = self.callers[next as usize % self.callers.len()].clone();
            let (number, frame, note) = (next, frame(next), note.clone());
            running.spawn(async move {
                let answer = caller.call(&frame).await;
                note(number, answer, due.elapsed());
            });
            next += 1;
        }
        running.join_all().await;
    }
}

impl Caller {
    async fn call(&self, frame: &Bytes) -> Answer {
        self.exchange(frame).await.unwrap_or(Err(Status::Cut))
    }

    async fn exchange(&self, frame: &Bytes) -> Result<Answer, h2::Error> {
        let mut connection = self.connection.clone().ready().await?;
        let (response, mut request) = connection.send_request((*self.request).clone(), false)?;
        request.send_data(frame.clone(), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut message = Bytes::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            message = if message.is_empty() { data } else { [message, data].concat().into() };
        }
        let trailers = body.trailers().await?;
        Ok(match status(trailers.as_ref().unwrap_or(&head.headers)) {
            Some(0) if message.len() >= FRAME_HEAD => {
                message.advance(FRAME_HEAD);
                Ok(message)
            }
            Some(code) => Err(Status::Code(code)),
            None => Err(Status::Cut),
        })
    }
}

/// What is not answered as it should ends the benchmark: there would be nothing to compare.
fn check(answer: Answer, expected: &[u8]) {
    let answer = answer.unwrap_or_else(|status| panic!("a call failed: {status:?}"));
    assert!(answer.starts_with(expected), "another answer than the one that was checked");
}

/// The encoded answer to one call on a connection of its own.
pub(crate) async fn ask(server: SocketAddr, call: &Call) -> Bytes {
    let client = Client::connect(server, call, 1).await;
    let answer = client.callers[0].call(&client.frame).await;
    answer.unwrap_or_else(|status| panic!("a call failed: {status:?}"))
}

fn status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// As gRPC sends it.
pub(crate) fn framed(message: &[u8]) -> Bytes {
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

    fn count(&self) -> u64 {
        self.0.lock().expect("nobody panics").len()
    }

    /// Of so many of a hundred, in microseconds.
    pub(crate) fn micros(&self, percentile: f64) -> f64 {
        self.0.lock().expect("nobody panics").value_at_percentile(percentile) as f64 / 1000.0
    }
}
