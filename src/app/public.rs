//! Serves HTTP/1 to whoever finds it: nobody can hold more than a share of the process's files, or keep others out.
//!
//! When all connections are taken, the one gives way whose last answer is the longest ago. Those who never speak go first,
//! and those who deliver stay; what is cut in the middle is delivered again.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::accept::Acceptor;
use super::stream::Stream;
use crate::tls::Tls;

/// What a peer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    /// From connecting to the end of the handshake of TLS. Only then does `silence` begin.
    pub(super) handshake: Duration,
    /// From connecting, or from an answer, to the end of the next request's headers.
    pub(super) silence: Duration,
}

impl Default for Limits {
    /// A quarter of the files that a process is usually given. Proxies close idle connections after 60 seconds, and should
    /// be the first: a request could else meet the closing.
    fn default() -> Self {
        Self { connections: 256, handshake: Duration::from_secs(5), silence: Duration::from_secs(75) }
    }
}

/// hyper's own bound would let headers take 400 KiB of each connection.
const READ_BUFFER: usize = 64 * 1024;

struct Connection {
    task: AbortHandle,
    last_answer: LastAnswer,
}

/// When a connection was answered last, or accepted.
#[derive(Clone)]
struct LastAnswer(Arc<Mutex<Instant>>);

impl LastAnswer {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the token is cancelled, and then what is in flight.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    routes: Router,
    limits: Limits,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let (mut acceptor, mut tasks, graceful) =
        (Acceptor::new(listener, "events"), JoinSet::new(), GracefulShutdown::new());
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let stream = tokio::select! {
            () = end.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    error!("a connection to the events listener panicked");
                }
                continue;
            }
            (stream, _) = acceptor.accept() => stream,
        };
        make_room(&mut connections, limits.connections);
        let last_answer = LastAnswer::now();
        let stream = shake_hands(stream, tls.clone(), limits.handshake, end.child_token());
        let serving = answer(stream, routes.clone(), limits.silence, last_answer.clone(), graceful.watcher());
        connections.push(Connection { task: tasks.spawn(serving), last_answer });
    }
    // At once, so that nobody else connects.
    drop(acceptor);
    graceful.shutdown().await;
    Ok(())
}

fn make_room(connections: &mut Vec<Connection>, most: usize) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < most {
        return;
    }
    let longest_ago = connections.iter().enumerate().min_by_key(|(_, one)| one.last_answer.get());
    if let Some((at, _)) = longest_ago {
        connections.swap_remove(at).task.abort();
    }
}

/// A stream to answer on; `None` where none comes of it, or not in time, or not before the end.
async fn shake_hands(
    stream: TcpStream,
    tls: Option<Tls>,
    limit: Duration,
    end: CancellationToken,
) -> Option<Stream<TcpStream>> {
    let accepting = timeout(limit, Stream::accept(stream, tls.as_ref()));
    match end.run_until_cancelled(accepting).await? {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            debug!("a connection to the events listener has not got through the handshake of TLS: {error}");
            None
        }
        Err(_) => None,
    }
}

async fn answer(
    stream: impl Future<Output = Option<Stream<TcpStream>>>,
    routes: Router,
    silence: Duration,
    last_answer: LastAnswer,
    watcher: Watcher,
) {
    let Some(stream) = stream.await else { return };
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request| {
        let (answering, last_answer) = (routes.call(request), last_answer.clone());
        async move { answering.await.inspect(|_| last_answer.set()) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(silence).max_buf_size(READ_BUFFER);
    let serving = watcher.watch(http.serve_connection(TokioIo::new(stream), service));
    if let Err(error) = serving.await {
        debug!("a connection to the events listener ended early: {error}");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::sync::DropGuard;

    use super::*;
    use crate::tls::{Files, Listener};

    const PATIENCE: Duration = Duration::from_secs(20);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    struct Server {
        address: std::net::SocketAddr,
        _end: DropGuard,
    }

    impl Server {
        async fn with(limits: Limits) -> Self {
            Self::by(None, limits).await
        }

        async fn by(tls: Option<Tls>, limits: Limits) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, end) = (listener.local_addr().unwrap(), CancellationToken::new());
            let routes = Router::new().route("/", get(|| async { "here" }));
            tokio::spawn(serve(listener, tls, routes, limits, end.clone()));
            Self { address, _end: end.drop_guard() }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }
    }

    /// All that comes until the connection is closed, or reset.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it is closed");
        String::from_utf8(bytes).unwrap()
    }

    async fn is_answered(stream: &mut TcpStream) {
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let read =
                timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("it is answered").unwrap();
            assert_ne!(read, 0, "it stays open");
        }
    }

    #[tokio::test]
    async fn who_does_not_end_its_headers_is_cut_off() {
        let server = Server::with(Limits { silence: Duration::from_millis(200), ..Limits::default() }).await;
        let (mut silent, mut slow, mut idle) =
            (server.connect().await, server.connect().await, server.connect().await);
        slow.write_all(&REQUEST[..20]).await.unwrap();
        is_answered(&mut idle).await;
        assert_eq!(rest(&mut silent).await, "");
        assert_eq!(rest(&mut slow).await, "");
        assert_eq!(rest(&mut idle).await, "");
    }

    #[tokio::test]
    async fn who_was_answered_longest_ago_gives_way() {
        let server = Server::with(Limits { connections: 3, ..Limits::default() }).await;
        let mut used = server.connect().await;
        is_answered(&mut used).await;
        let mut silent = server.connect().await;
        let mut slow = server.connect().await;
        slow.write_all(&REQUEST[..20]).await.unwrap();
        is_answered(&mut used).await;
        let mut fourth = server.connect().await;
        assert_eq!(rest(&mut silent).await, "");
        is_answered(&mut fourth).await;
        let mut fifth = server.connect().await;
        assert_eq!(rest(&mut slow).await, "");
        is_answered(&mut fifth).await;
        is_answered(&mut used).await;
    }

    #[tokio::test]
    async fn who_stalls_in_the_handshake_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.path().join(name));
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&certificate, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        let tls = Tls::read(Listener::Events, Files { certificate, key, clients: None }).unwrap();
        let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
        let server = Server::by(Some(tls), limits).await;
        let (mut silent, mut slow) = (server.connect().await, server.connect().await);
        // The head of a record that never comes.
        slow.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        assert_eq!(rest(&mut silent).await, "");
        assert_eq!(rest(&mut slow).await, "");
    }
}
