//! What an upstream can do to a gateway below HTTP or beyond it: rows of docs/faults.md that the sandbox cannot play.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use participant_gateway::sandbox;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::harness::*;
use crate::on_both_versions;
use crate::upstream::*;

const NO_RETRIES: (&str, &str) = ("GATEWAY_UPSTREAM_MAX_RETRIES", "0");
const SHORT_ATTEMPT: (&str, &str) = ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "300ms");

fn unavailable() -> (Code, String) {
    (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into())
}

fn unknown() -> (Code, String) {
    (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into())
}

fn pushback(status: &Status) -> Option<&str> {
    status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap())
}

/// A listener whose connections follow a script, each by its number. An error is the client's hanging up.
async fn scripted<F>(
    script: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> (SocketAddr, AbortOnDropHandle<()>)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0.. {
            let Ok((connection, _)) = listener.accept().await else { return };
            connections.spawn(script(number, connection));
        }
    };
    (address, AbortOnDropHandle::new(tokio::spawn(serving)))
}

/// Reads one request, which has to be small, and tells its first line.
async fn request_line(connection: &mut TcpStream) -> std::io::Result<String> {
    let mut received = Vec::new();
    while !received.windows(4).any(|four| four == b"\r\n\r\n") {
        if connection.read_buf(&mut received).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(String::from_utf8_lossy(&received).lines().next().unwrap_or_default().to_owned())
}

/// Ends a connection by RST and not by FIN.
fn reset(connection: TcpStream) -> std::io::Result<()> {
    connection.set_zero_linger()?;
    drop(connection);
    Ok(())
}

/// A listener whose queue is full, so that the system drops what else would connect.
async fn full() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
    }
    (address, (listener, waiting))
}

/// A gateway whose upstream is this URL, which need not be on loopback.
async fn gateway_at(url: &str, env: &[(&str, &str)]) -> Gateway {
    let account = [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)];
    let env: Vec<_> = account.iter().chain(env).copied().collect();
    let nowhere = "127.0.0.1:1".parse().unwrap();
    Gateway::launch(&["--upstream-url", url, "--allow-insecure-upstream"], &env, Some((nowhere, None))).await
}

on_both_versions! {
    async fn a_name_that_is_not_there_is_unavailable_and_nothing_is_sent(face) {
        let mut gateway = gateway_at("http://nowhere.invalid", &[NO_RETRIES]).await;
        let get = gateway.get(face.get()).await.unwrap_err();
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        for error in [get, create] {
            assert_eq!((told(&error), pushback(&error)), (unavailable(), None));
        }
    }

    async fn a_connection_that_never_comes_about_is_unavailable_and_nothing_is_sent(face) {
        let (address, _full) = full().await;
        let connect = ("GATEWAY_UPSTREAM_CONNECT_TIMEOUT", "100ms");
        let mut gateway = gateway_asking(address, &[connect]).await;
        let get = gateway.get(face.get()).await.unwrap_err();
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        for error in [get, create] {
            assert_eq!((told(&error), pushback(&error)), (unavailable(), None));
        }
        // An attempt, and two more: a connection that failed is tried again for every method.
        let began = Instant::now();
        gateway.create(face.create(face.newcomer(2))).await.unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    }

    async fn a_write_that_is_reset_after_it_was_read_is_unknown_after_a_look_and_sent_once(face) {
        let (seen, mut requests) = mpsc::unbounded_channel();
        let (address, _serving) = scripted(move |_, mut connection| {
            let seen = seen.clone();
            async move {
                loop {
                    let line = request_line(&mut connection).await?;
                    let _ = seen.send(line.clone());
                    if !line.starts_with("GET") {
                        return reset(connection);
                    }
                    // The participant before an update, and a page without anybody.
                    let answer = format!(r#"{{"sid":"{0}","id":"{0}","participants":[],"meta":{{}}}}"#, face.participant());
                    connection.write_all(&ok(&answer)).await?;
                }
            }
        })
        .await;
        let mut gateway = gateway_asking(address, &[]).await;
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        let update = gateway.update(face.update(face.marked("new"))).await.unwrap_err();
        for error in [create, update] {
            assert_eq!((told(&error), pushback(&error)), (unknown(), Some("-1")));
        }
        let methods: Vec<_> = std::iter::from_fn(|| requests.try_recv().ok())
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        let expected: &[&str] =
            if face == Face::V1 { &["POST", "GET", "POST", "GET"] } else { &["POST", "GET", "GET", "PUT", "GET"] };
        assert_eq!(methods, expected);
    }

    async fn a_read_that_is_reset_is_repeated_whenever_that_happens(face) {
        let (address, _serving) = scripted(move |number, mut connection| async move {
            match number {
                0 => reset(connection),
                1 => {
                    request_line(&mut connection).await?;
                    reset(connection)
                }
                _ => {
                    request_line(&mut connection).await?;
                    connection.write_all(&ok("{}")).await
                }
            }
        })
        .await;
        gateway_asking(address, &[]).await.get(face.get()).await.unwrap();
    }

    async fn a_body_of_a_gibibyte_is_cut_at_the_bound(face) {
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let (address, _serving) = scripted(move |_, mut connection| {
            let written = count.clone();
            async move {
                request_line(&mut connection).await?;
                connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n").await?;
                let chunk = vec![b' '; 1 << 16];
                for _ in 0..1 << 14 {
                    connection.write_all(&chunk).await?;
                    written.fetch_add(chunk.len(), Ordering::SeqCst);
                }
                Ok(())
            }
        })
        .await;
        let mut gateway = gateway_asking(address, &[]).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
        // The bound is 4 MiB; the rest is the system's buffers.
        let written = written.load(Ordering::SeqCst);
        assert!(written < 64 << 20, "{written} bytes were taken");
    }

    async fn a_body_that_drips_ends_with_the_attempt(face) {
        let (address, _serving) = scripted(|_, mut connection| async move {
            request_line(&mut connection).await?;
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{").await?;
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                connection.write_all(b" ").await?;
            }
        })
        .await;
        let mut gateway = gateway_asking(address, &[NO_RETRIES, SHORT_ATTEMPT]).await;
        assert_eq!(told(&gateway.get(face.get()).await.unwrap_err()), unavailable());
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), unknown());
    }

    async fn interim_answers_without_end_end_with_the_attempt(face) {
        let (address, _serving) = scripted(|_, mut connection| async move {
            request_line(&mut connection).await?;
            loop {
                connection.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await?;
                tokio::task::yield_now().await;
            }
        })
        .await;
        let mut gateway = gateway_asking(address, &[NO_RETRIES, SHORT_ATTEMPT]).await;
        assert_eq!(told(&gateway.get(face.get()).await.unwrap_err()), unavailable());
    }

    /// One that is for the cache goes on: `cache::a_load_goes_on_when_its_caller_has_given_up`.
    async fn a_read_past_the_cache_ends_with_its_caller(face) {
        let (hung_up, mut hangups) = mpsc::unbounded_channel();
        let (address, _serving) = scripted(move |_, mut connection| {
            let hung_up = hung_up.clone();
            async move {
                request_line(&mut connection).await?;
                let read = connection.read(&mut [0]).await;
                let _ = hung_up.send(read.is_ok_and(|read| read == 0));
                Ok(())
            }
        })
        .await;
        let mut gateway = gateway_asking(address, &[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "1h"), ("GATEWAY_UPSTREAM_TOTAL_TIMEOUT", "1h")]).await;
        let mut request = tonic::Request::new(face.get_fresh());
        request.set_timeout(Duration::from_millis(200));
        gateway.client.get_participant(request).await.unwrap_err();
        assert!(hangups.recv().await.unwrap());
    }

    async fn a_connection_that_is_closed_while_idle_costs_nobody_anything(face) {
        let (closed, mut closings) = mpsc::unbounded_channel();
        let (address, _serving) = scripted(move |_, mut connection| {
            let closed = closed.clone();
            async move {
                request_line(&mut connection).await?;
                // It promises to stay, and does not.
                connection.write_all(&ok(r#"{"sid":"MB1","id":"MB1"}"#)).await?;
                connection.shutdown().await?;
                let _ = closed.send(());
                Ok(())
            }
        })
        .await;
        let mut gateway = gateway_asking(address, &[NO_RETRIES]).await;
        for number in 0..20 {
            gateway.create(face.create(face.newcomer(number))).await.unwrap();
            closings.recv().await.unwrap();
        }
    }
}
