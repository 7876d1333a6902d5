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
    /// Those that failed among them.
    calls: u64,
    pub(crate) failed: u64,
    pub(crate) seconds: f64,
    times: Histogram<u64>,
}

/// Collects what became of calls.
#[derive(Clone)]
struct Notes {
    began: Instant,
    expected: Bytes,
    failed: Arc<AtomicU64>,
    times: Arc<Mutex<Histogram<u64>>>,
}

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
        let (notes, mut streams) = (self.notes(), JoinSet::new());
        for caller in self.callers.iter().flat_map(|caller| std::iter::repeat_n(caller, STREAMS)) {
            let (caller, notes, frame) = (caller.clone(), notes.clone(), self.frame.clone());
            streams.spawn(async move {
                while notes.began.elapsed() < length {
                    let began = Instant::now();
                    notes.add(caller.call(&frame).await, began.elapsed());
                }
            });
        }
        streams.join_all().await;
        notes.load()
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
        let notes = self.notes();
        while notes.began.elapsed() < length {
            let began = Instant::now();
            notes.add(self.callers[0].call(&self.frame).await, began.elapsed());
        }
        notes.load()
    }

    /// At this many calls a second, whether or not they are answered.
    pub(crate) async fn at_rate(&self, rate: f64, length: Duration) -> Load {
        let (notes, frame) = (self.notes(), self.frame.clone());
        let kept = notes.clone();
        let note = move |_, answer, took| kept.add(answer, took);
        let sent = self.open_loop(rate, length, move |_| frame.clone(), note).await;
        let load = notes.load();
        assert_eq!(load.calls, sent, "each call is noted once");
        load
    }

    fn notes(&self) -> Notes {
        Notes {
            began: Instant::now(),
            expected: self.answer.clone(),
            failed: Arc::default(),
            times: Arc::new(Mutex::new(
                Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("legal bounds"),
            )),
        }
    }

    /// Calls when they are due, by their numbers: how many. Of each it notes the number, the answer, and the time since it was
    /// due.
    pub(crate) async fn open_loop(
        &self,
        rate: f64,
        length: Duration,
        frame: impl Fn(u64) -> Bytes,
        note: impl Fn(u64, Answer, Duration) + Clone + Send + 'static,
    ) -> u64 {
        let began = Instant::now();
        let (all, mut next, mut running) = ((rate * length.as_secs_f64()) as u64, 0, JoinSet::new());
        while next < all {
            let due = began + Duration::from_secs_f64(next as f64 / rate);
            while let Some(done) = running.try_join_next() {
                done.expect("every call is as it should be");
            }
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
        all
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

/// Whether the call failed. A wrong answer ends the benchmark: there would be nothing to compare.
fn has_failed(answer: Answer, expected: &[u8]) -> bool {
    answer.map_or(true, |answer| {
        assert!(answer.starts_with(expected), "another answer than the one that was checked");
        false
    })
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

impl Notes {
    fn add(&self, answer: Answer, took: Duration) {
        self.failed.fetch_add(has_failed(answer, &self.expected).into(), Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.times.lock().expect("nobody panics").saturating_record(nanos);
    }

    fn load(&self) -> Load {
        let times = self.times.lock().expect("nobody panics").clone();
        let failed = self.failed.load(Ordering::Relaxed);
        Load { calls: times.len(), failed, seconds: self.began.elapsed().as_secs_f64(), times }
    }
}

impl Load {
    /// How many were answered as they should.
    pub(crate) fn good(&self) -> u64 {
        self.calls - self.failed
    }

    /// Of so many of a hundred, in microseconds.
    pub(crate) fn micros(&self, percentile: f64) -> f64 {
        self.times.value_at_percentile(percentile) as f64 / 1000.0
    }
}
