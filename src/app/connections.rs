//! The gRPC listener's connections: how many there may be, how long they may be silent, and how they end.
//!
//! tonic's own server lets a connection that never speaks stay for ever, accepts any number of them, and has no end of a
//! drain; its limits would stand outside of what counts the calls.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::accept::Acceptor;
use super::stream::{Socket, Stream};
use crate::access::Peer;
use crate::config::Connections;
use crate::grpc::{Services, paced};
use crate::telemetry::{ConnectionRefused, Metrics};
use crate::tls::Tls;

/// What every client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who has just connected when the drain begins gets so long to say so, and is told to go elsewhere.
const LAST_WORD: Duration = Duration::from_millis(500);

/// After so long without a refusal the next is told again.
const QUIET: Duration = Duration::from_secs(60);

/// What serves a connection.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) services: Services,
    pub(super) tls: Option<Tls>,
    pub(super) limits: Connections,
    pub(super) metrics: Metrics,
}

impl Front {
    /// Serves until the token is cancelled, and then until every connection has ended. Dropped, it cuts them.
    pub(super) async fn serve(
        self,
        listener: TcpListener,
        goaway: CancellationToken,
    ) -> Result<(), Infallible> {
        let (mut acceptor, mut open) = (Acceptor::new(listener, "gRPC"), Open::default());
        loop {
            let (stream, peer) = tokio::select! {
                // Whose connection has ended finds its place free.
                biased;
                () = goaway.cancelled() => break,
                Some(()) = open.one_ended(&self.metrics) => continue,
                accepted = acceptor.accept() => accepted,
            };
            let peer = peer.ip().to_canonical();
            if let Err(why) = open.has_room(peer, &self.limits) {
                self.metrics.connection_refused(why);
                open.tell_of_refusal(peer, why);
                continue;
            }
            self.metrics.connection_opened();
            // A token of its own: at each of its turns a connection takes the lock of the one that it looks at.
            open.spawn(peer, self.clone().connection(stream, peer, goaway.child_token()));
        }
        // At once, so that nobody else connects.
        drop(acceptor);
        while open.one_ended(&self.metrics).await.is_some() {}
        Ok(())
    }

    async fn connection(self, stream: TcpStream, peer: IpAddr, goaway: CancellationToken) {
        // From here on, and not only once hands are shaken.
        let mut silence = pin!(async {
            tokio::select! {
                () = sleep(self.limits.handshake_timeout) => {}
                () = async { goaway.cancelled().await; sleep(LAST_WORD).await } => {}
            }
        });
        let socket = Socket::new(stream, self.limits.keepalive_interval + self.limits.keepalive_timeout);
        let accepted = tokio::select! {
            accepted = Stream::accept(socket, self.tls.as_ref()) => accepted,
            () = silence.as_mut() => return self.metrics.connection_refused(ConnectionRefused::Silent),
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%peer, "a connection has not got through the handshake of TLS: {error}");
                return self.metrics.connection_refused(ConnectionRefused::Tls);
            }
        };
        let service = self.services.called_by(Peer { address: peer, certificate: stream.certificate() });
        let service = service_fn(move |request| service.call(request));
        let (stream, spoken) = Watched::new(stream);
        let mut connection = pin!(self.http().serve_connection(TokioIo::new(stream), service));
        let is_silent = async {
            tokio::select! {
                _ = spoken => false,
                () = silence => true,
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return note(ended),
            is_silent = is_silent => if is_silent {
                return self.metrics.connection_refused(ConnectionRefused::Silent);
            }
        }
        tokio::select! {
            biased;
            ended = connection.as_mut() => return note(ended),
            () = goaway.cancelled() => {}
            () = age(self.limits.max_age) => {}
        }
        // GOAWAY: the caller opens no more streams here, and those that it has are answered.
        connection.as_mut().graceful_shutdown();
        note(connection.await);
    }

    /// The protocol's limits. Where no reason stands beside one, it is hyper's default, written down because hyper does not
    /// promise to keep its own.
    fn http(&self) -> Builder<Streams> {
        let mut http = Builder::new(Streams);
        http.timer(TokioTimer::new())
            // Envoy's value for an edge. Without a bound one connection takes gigabytes.
            .max_concurrent_streams(100)
            // Requests are small. What a connection may leave unread: 1 MiB.
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            // When so much of a stream waits, no further part of its answer is asked for; a part is taken whole.
            .max_send_buf_size(64 * 1024)
            // Finds out peers that have gone without a word.
            .keep_alive_interval(self.limits.keepalive_interval)
            .keep_alive_timeout(self.limits.keepalive_timeout)
            .max_header_list_size(16 * 1024)
            // Who opens streams and resets them at once is cut off after so many: CVE-2023-44487, and MadeYouReset.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(1024)
            // gRPC has no use for it.
            .auto_date_header(false);
        http
    }
}

/// Polls the connection when everything that could run before has run. tokio would have it run right after each stream that
/// has an answer for it, and so write each answer by itself.
fn last_in_line<F: Future>(connection: F) -> impl Future<Output = F::Output> {
    let (mut connection, mut is_its_turn) = (Box::pin(connection), true);
    poll_fn(move |context| {
        is_its_turn = !is_its_turn;
        if is_its_turn {
            return connection.as_mut().poll(context);
        }
        // Who wakes itself while it runs goes to the end of the queue.
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        debug!("a gRPC connection ended early: {error}");
    }
}

/// Ends when a connection is too old; each at another time, so that those that were opened together do not all come back
/// together (gRFC A9).
async fn age(max: Option<Duration>) {
    match max {
        Some(max) => sleep(max.mul_f64(0.9 + 0.2 * fastrand::f64())).await,
        None => std::future::pending().await,
    }
}

/// So many connections the process's files are enough for: half of them, because a call may need one to Twilio, and the
/// other listeners and Redis need some. `None` where nobody says how many there are.
pub(super) fn files_allow() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let soft =
        limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    Some(soft.parse::<usize>().ok()? / 2)
}

/// Runs the streams of a connection, which end with it: hyper tells them when it is dropped.
#[derive(Clone)]
struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(paced(stream));
    }
}

/// The connections that are open.
#[derive(Default)]
struct Open {
    tasks: JoinSet<IpAddr>,
    of: HashMap<IpAddr, usize>,
    refused: Option<Instant>,
}

impl Open {
    /// Whoever comes is refused rather than somebody else cut off: those who are here have calls in flight.
    fn has_room(&self, peer: IpAddr, limits: &Connections) -> Result<(), ConnectionRefused> {
        if self.tasks.len() >= limits.max {
            return Err(ConnectionRefused::Total);
        }
        let is_full = self.of.get(&peer).is_some_and(|count| *count >= limits.max_per_peer);
        if is_full { Err(ConnectionRefused::Peer) } else { Ok(()) }
    }

    /// A line for each time that it begins: with the first refusal after a while without.
    fn tell_of_refusal(&mut self, peer: IpAddr, why: ConnectionRefused) {
        let before = self.refused.replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < QUIET) {
            return;
        }
        let open = self.tasks.len();
        match why {
            ConnectionRefused::Peer => {
                warn!(%peer, open, "connections are refused: the peer has connections.max_per_peer of them");
            }
            _ => warn!(open, "connections are refused: connections.max are open"),
        }
    }

    fn spawn(&mut self, peer: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        *self.of.entry(peer).or_default() += 1;
        self.tasks.spawn(async move {
            // Whatever happens to it, it is not counted any more.
            if AssertUnwindSafe(last_in_line(connection)).catch_unwind().await.is_err() {
                error!("a gRPC connection panicked");
            }
            peer
        });
    }

    /// Waits until one has ended; `None` where there is none.
    async fn one_ended(&mut self, metrics: &Metrics) -> Option<()> {
        let peer = self.tasks.join_next().await?.ok()?;
        metrics.connection_closed();
        if let Some(count) = self.of.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.of.remove(&peer);
            }
        }
        Some(())
    }
}

/// A connection that tells once when as much was read as the preface has bytes. What they are, hyper looks at.
struct Watched {
    stream: Stream<Socket>,
    missing: usize,
    spoken: Option<oneshot::Sender<()>>,
}

impl Watched {
    fn new(stream: Stream<Socket>) -> (Self, oneshot::Receiver<()>) {
        let (spoken, heard) = oneshot::channel();
        (Self { stream, missing: PREFACE.len(), spoken: Some(spoken) }, heard)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            if self.missing == 0 {
                // Nobody listens where the connection has just been given up.
                let _ = self.spoken.take().map(|spoken| spoken.send(()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

// No vectored writes: with them h2 would end each write at an answer of 256 bytes or more. So it copies those below 1 KiB, and
// writes many at a time.
impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_connection_has_its_turn_after_all_that_was_ready() {
        let turns = Mutex::new(Vec::new());
        let take = |name| turns.lock().unwrap().push(name);
        tokio::join!(last_in_line(async { take("connection") }), async { take("stream") });
        assert_eq!(*turns.lock().unwrap(), ["stream", "connection"]);
    }
}
