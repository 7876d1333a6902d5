//! A peer in Twilio's place that answers raw bytes: what the sandbox, which speaks HTTP, cannot say.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use participant_gateway::sandbox;

use crate::harness::Gateway;

/// A listener that hands each of its connections, numbered, to `serve`. Dropped, all of them end.
pub struct Peer {
    pub address: SocketAddr,
    _end: DropGuard,
}

impl Peer {
    pub async fn serving<S>(serve: impl Fn(usize, TcpStream) -> S + Send + 'static) -> Self
    where
        S: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), serve)
    }

    pub fn on<S>(listener: TcpListener, serve: impl Fn(usize, TcpStream) -> S + Send + 'static) -> Self
    where
        S: Future<Output = io::Result<()>> + Send + 'static,
    {
        let (address, end) = (listener.local_addr().unwrap(), CancellationToken::new());
        let accepting = async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                // An error is the client's hanging up.
                connections.spawn(serve(connections.len(), connection));
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(accepting));
        Self { address, _end: end.drop_guard() }
    }
}

/// A request or an answer, as far as its head tells its length.
pub struct Message {
    pub head: String,
    pub bytes: Vec<u8>,
}

/// The next message of a connection, unless it ends before; `received` keeps what came after the message.
pub async fn message(connection: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<Message>> {
    let end = loop {
        if let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if connection.read_buf(received).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())
        .unwrap_or(0);
    while received.len() < end + length {
        if connection.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
    let bytes = received.drain(..end + length).collect();
    Ok(Some(Message { head, bytes }))
}

type Answer = Arc<dyn Fn(usize, &str) -> Vec<u8> + Send + Sync>;

/// A peer that answers each request with what `answer` makes of the request's number and head.
pub struct Upstream {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    _peer: Peer,
}

impl Upstream {
    pub async fn answering(answer: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, answer)
    }

    pub async fn always(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::answering(move |_, _| bytes.clone()).await
    }

    pub fn on(
        listener: TcpListener,
        answer: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let (answer, requests): (Answer, _) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let counted = requests.clone();
        let peer =
            Peer::on(listener, move |_, connection| converse(connection, answer.clone(), counted.clone()));
        Self { address: peer.address, requests, _peer: peer }
    }

    /// How many requests came in.
    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn converse(mut connection: TcpStream, answer: Answer, requests: Arc<AtomicUsize>) -> io::Result<()> {
    let mut received = Vec::new();
    while let Some(request) = message(&mut connection, &mut received).await? {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let bytes = answer(number, &request.head);
        connection.write_all(&bytes).await?;
        // Without a length, or with a wrong one, only the end of the connection ends the answer.
        if head_of(&bytes).contains("connection: close") {
            return connection.shutdown().await;
        }
    }
    Ok(())
}

fn head_of(bytes: &[u8]) -> String {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase()
}

/// A whole HTTP answer; `headers` end with a line break each.
pub fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut answer = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}

pub fn ok(body: &str) -> Vec<u8> {
    http("200 OK", "content-type: application/json\r\n", body.as_bytes())
}

/// A socket that holds a free port and refuses connections until it listens.
pub fn refusing() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// A gateway that asks this address.
pub async fn gateway_asking(address: SocketAddr, env: &[(&str, &str)]) -> Gateway {
    let url = format!("http://{address}");
    let account = [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)];
    let env: Vec<_> = account.iter().chain(env).copied().collect();
    Gateway::launch(&["--upstream-url", &url], &env, Some((address, None))).await
}
