//! What Twilio's end of the wire can do to a call: docs/faults.md tells what the gateway makes of each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use participant_gateway::twilio::Operation;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;
use tonic::{Code, Status};

use crate::errors::*;
use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;
use crate::outcomes::{posts, there, with_id};
use crate::raw::*;
use crate::upstream::*;

const GIBIBYTE: usize = 1 << 30;
/// More than both sockets of a connection hold between them.
const BUFFERED: usize = 24 << 20;

const SHORT_CONNECT: (&str, &str) = ("GATEWAY_UPSTREAM_CONNECT_TIMEOUT", "200ms");
const SHORT_ATTEMPT: (&str, &str) = ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "300ms");

fn unavailable() -> (Code, String) {
    (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into())
}

fn broken() -> (Code, String) {
    (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into())
}

fn unknown() -> (Code, String) {
    (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into())
}

/// It was never sent: unavailable, and nothing forbids to repeat it.
fn assert_never_sent(error: &Status) {
    assert_eq!(told(error), unavailable(), "{error:?}");
    assert_eq!(error.metadata().get("grpc-retry-pushback-ms"), None);
}

async fn retries(gateway: &Gateway) -> f64 {
    Scrape::of(gateway).await.sum("participant_upstream_retries_total", &[])
}

/// How many attempts ended with this error.
async fn attempts(gateway: &Gateway, error: &str) -> f64 {
    let labels = [("error_type", error)];
    Scrape::of(gateway).await.sum("http_client_request_duration_seconds_count", &labels)
}

/// A gateway whose variable is this URL, and which has the sandbox's account.
async fn gateway_at(variable: &str, url: &str, env: &[(&str, &str)], sandbox: SocketAddr) -> Gateway {
    let account = [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)];
    let fallback = format!("http://{sandbox}");
    let url = [("GATEWAY_UPSTREAM_URL", fallback.as_str()), (variable, url)];
    let env: Vec<_> = account.iter().chain(&url).chain(env).copied().collect();
    Gateway::launch(&[], &env, Some((sandbox, None))).await
}

// === Connecting

/// A listener with a full backlog, so that whoever connects now waits; and the connections that fill it.
async fn full() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let (address, mut inside) = (listener.local_addr().unwrap(), Vec::new());
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        inside.push(connected.unwrap());
    }
    (listener, inside)
}

/// A gateway whose default account's upstream is `broken`, and whose other account's is the sandbox.
async fn beside_a_good_account(broken: SocketAddr, connect_timeout: &str) -> (Gateway, String) {
    let sid = account_id('1');
    let other = sandbox::Account { sid: sid.clone(), auth_token: "other".into() };
    let settings = sandbox::Settings { accounts: vec![other], ..Default::default() };
    let gateway = Gateway::configured(settings, |url| {
        format!(
            "upstream.url = \"http://{broken}\"\nupstream.connect_timeout = \"{connect_timeout}\"\n\
             [[accounts]]\naccount_sid = {:?}\nauth_token = \"sandbox\"\n\
             [[accounts]]\naccount_sid = {sid:?}\nauth_token = \"other\"\nurl = \"{url}\"\n",
            sandbox::ACCOUNT_SID,
        )
    });
    (gateway.await, sid)
}

fn get_of(face: Face, account_id: &str) -> GetParticipantRequest {
    let conversation = ConversationRef { account_id: account_id.into(), ..face.conversation() };
    GetParticipantRequest { conversation: Some(conversation), ..face.get_fresh() }
}

on_both_versions! {
    async fn a_refused_connection_is_retried_and_counts_as_never_sent(face) {
        let (address, socket) = refusing();
        let mut gateway = gateway_asking(address, &[]).await;
        assert_never_sent(&gateway.create(with_id(face, 1)).await.unwrap_err());
        assert_eq!((attempts(&gateway, "not_sent").await, retries(&gateway).await), (3.0, 2.0));
        let upstream = Upstream::on(socket.listen(16).unwrap(), |_, _| ok(r#"{"sid":"MB1","id":"MB1"}"#));
        // The request id is free, even for another request.
        gateway.create(with_id(face, 2)).await.unwrap();
        assert_eq!(upstream.count(), 1);
    }

    async fn a_name_that_does_not_resolve_is_unavailable_and_the_other_api_is_not(face) {
        let (fake, _end) = sandbox(sandbox::Settings::default()).await;
        let (variable, other) = match face {
            Face::V1 => ("GATEWAY_UPSTREAM_V1_URL", Face::V2),
            Face::V2 => ("GATEWAY_UPSTREAM_V2_URL", Face::V1),
        };
        // RFC 6761: such a name exists nowhere.
        let mut gateway = gateway_at(variable, "https://twilio.invalid", &[], fake).await;
        for operation in operations(face) {
            assert_never_sent(&call(&mut gateway, face, operation).await.unwrap_err());
        }
        assert_eq!(gateway.sandbox.count().await, 0);
        gateway.get(other.get()).await.unwrap();
    }

    /// The name's addresses are asked for with each connection: neither they nor a failure is kept.
    async fn a_name_is_resolved_for_each_connection(face) {
        let (address, held) = refusing();
        let named = format!("http://localhost:{}", address.port());
        let mut gateway = gateway_at("GATEWAY_UPSTREAM_URL", &named, &[NO_RETRIES], address).await;
        drop(held);
        let addresses: Vec<_> = tokio::net::lookup_host(("localhost", address.port())).await.unwrap().collect();
        for address in addresses.repeat(2) {
            assert_never_sent(&gateway.get(face.get_fresh()).await.unwrap_err());
            let listener = TcpListener::bind(address).await.unwrap();
            let closing = http("200 OK", "connection: close\r\n", b"{}");
            let upstream = Upstream::on(listener, move |_, _| closing.clone());
            gateway.get(face.get_fresh()).await.unwrap();
            assert_eq!(upstream.count(), 1, "{address}");
        }
    }

    async fn a_connection_that_nobody_takes_up_was_never_sent(face) {
        let (listener, _inside) = full().await;
        let env = [SHORT_CONNECT, NO_RETRIES];
        let mut gateway = gateway_asking(listener.local_addr().unwrap(), &env).await;
        for operation in operations(face) {
            assert_never_sent(&call(&mut gateway, face, operation).await.unwrap_err());
        }
        assert_eq!(attempts(&gateway, "not_sent").await, operations(face).len() as f64);
        // The caller's deadline comes first where it is the shorter one.
        let raw = Raw::connect(&gateway).await;
        let get = raw.call("GetParticipant", &[("grpc-timeout", "50m")], &frame(&face.get_fresh())).await;
        assert_eq!(told(get.status()), (Code::DeadlineExceeded, "DEADLINE".into()));
        // And it is over as soon as somebody accepts.
        let _upstream = Upstream::on(listener, |_, _| ok("{}"));
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn connections_that_hang_hold_up_no_other_account(face) {
        let (listener, _inside) = full().await;
        let (mut gateway, other) = beside_a_good_account(listener.local_addr().unwrap(), "10s").await;
        let hanging: Vec<_> = (0..64)
            .map(|number| {
                let mut client = gateway.client.clone();
                let participant_id = format!("{}{number:02}", &face.participant()[..face.participant().len() - 2]);
                let get = GetParticipantRequest { participant_id, ..face.get_fresh() };
                tokio::spawn(async move { client.get_participant(get).await })
            })
            .collect();
        for _ in 0..10 {
            gateway.get(get_of(face, &other)).await.unwrap();
        }
        for call in hanging {
            assert!(!call.is_finished(), "{:?}", call.await);
            call.abort();
        }
    }

    async fn a_handshake_that_nobody_answers_was_never_sent(face) {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let url = format!("https://{address}");
        let env = [SHORT_CONNECT, NO_RETRIES];
        let mut gateway = gateway_at("GATEWAY_UPSTREAM_URL", &url, &env, address).await;
        for operation in operations(face) {
            assert_never_sent(&call(&mut gateway, face, operation).await.unwrap_err());
        }
        assert_eq!(attempts(&gateway, "not_sent").await, operations(face).len() as f64);
    }
}

// === Connections that break

/// What becomes of a request on its way to the sandbox.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    /// The connection is reset in place of the answer.
    Unanswered,
    /// The request is answered, and its connection closed, which no header has announced.
    LastOfItsConnection,
}

type Decide = Arc<dyn Fn(usize, &str) -> Fate + Send + Sync>;

/// The wire between gateway and sandbox.
struct Wire {
    connections: Arc<AtomicUsize>,
    /// A permit for each connection that the gateway has closed, too.
    closed: Arc<Semaphore>,
    _peer: Peer,
    _sandbox: DropGuard,
}

impl Wire {
    /// A gateway before such a wire; `decide` is told the request's number and head.
    async fn with(
        env: &[(&str, &str)],
        decide: impl Fn(usize, &str) -> Fate + Send + Sync + 'static,
    ) -> (Gateway, Self) {
        let (fake, end) = sandbox(sandbox::Settings::default()).await;
        let (connections, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (decide, numbers): (Decide, _) = (Arc::new(decide), Arc::new(AtomicUsize::new(0)));
        let (counted, closing) = (connections.clone(), closed.clone());
        let peer = Peer::serving(move |_, connection| {
            counted.fetch_add(1, Ordering::SeqCst);
            carry(connection, fake, numbers.clone(), decide.clone(), closing.clone())
        })
        .await;
        let url = format!("http://{}", peer.address);
        let gateway = gateway_at("GATEWAY_UPSTREAM_URL", &url, env, fake).await;
        (gateway, Self { connections, closed, _peer: peer, _sandbox: end })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until one more connection is closed at both ends.
    async fn until_closed(&self) {
        self.closed.acquire().await.unwrap().forget();
    }
}

async fn carry(
    mut near: TcpStream,
    sandbox: SocketAddr,
    numbers: Arc<AtomicUsize>,
    decide: Decide,
    closed: Arc<Semaphore>,
) -> io::Result<()> {
    let mut far = TcpStream::connect(sandbox).await?;
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    while let Some(request) = message(&mut near, &mut asked).await? {
        let fate = decide(numbers.fetch_add(1, Ordering::SeqCst), &request.head);
        far.write_all(&request.bytes).await?;
        let answer = message(&mut far, &mut answered).await?.expect("the sandbox answers");
        if fate == Fate::Unanswered {
            return near.set_zero_linger();
        }
        near.write_all(&answer.bytes).await?;
        if fate == Fate::LastOfItsConnection {
            near.shutdown().await?;
            let rest = message(&mut near, &mut asked).await;
            closed.add_permits(1);
            return rest.map(drop);
        }
    }
    Ok(())
}

fn is_write(head: &str) -> bool {
    !head.starts_with("GET")
}

on_both_versions! {
    /// Whether the client sees the reset before it writes is a matter of moments: nobody reads the request in either case.
    async fn a_connection_that_is_reset_at_once_loses_a_read_nothing_and_doubles_no_write(face) {
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = writes.clone();
        let peer = Peer::serving(move |number, mut connection| {
            let counted = counted.clone();
            async move {
                if number % 2 == 0 {
                    return connection.set_zero_linger();
                }
                let Some(request) = message(&mut connection, &mut Vec::new()).await? else { return Ok(()) };
                counted.fetch_add(usize::from(is_write(&request.head)), Ordering::SeqCst);
                // A participant, and a page of none.
                let body = br#"{"sid":"MB1","id":"MB1","participants":[],"meta":{}}"#;
                connection.write_all(&http("200 OK", "connection: close\r\n", body)).await?;
                connection.shutdown().await
            }
        })
        .await;
        let mut gateway = gateway_asking(peer.address, &[]).await;
        for _ in 0..10 {
            gateway.get(face.get_fresh()).await.unwrap();
        }
        for number in 1..10 {
            let before = writes.load(Ordering::SeqCst);
            let created = gateway.create(face.create(face.newcomer(number))).await;
            let sent = writes.load(Ordering::SeqCst) - before;
            match created {
                Ok(_) => assert_eq!(sent, 1),
                Err(error) => assert_eq!((told(&error), sent), (unknown(), 0)),
            }
        }
    }

    async fn a_read_whose_answer_is_reset_is_repeated(face) {
        for operation in [Operation::Fetch, Operation::List] {
            let reset = |number, _: &str| if number == 0 { Fate::Unanswered } else { Fate::Answered };
            let (mut gateway, wire) = Wire::with(&[], reset).await;
            call(&mut gateway, face, operation).await.unwrap();
            assert_eq!((gateway.sandbox.count().await, wire.connections()), (2, 2));
            assert_eq!((attempts(&gateway, "cut").await, retries(&gateway).await), (1.0, 1.0));
        }
    }

    /// On a fresh connection, and on one that has carried a request: there, some clients would send it again.
    async fn a_write_whose_answer_is_reset_is_sent_once_and_looked_for(face) {
        let reset = |_, head: &str| if is_write(head) { Fate::Unanswered } else { Fate::Answered };
        for warm in [false, true] {
            let (mut gateway, _wire) = Wire::with(&[], reset).await;
            if warm {
                gateway.get(face.get_fresh()).await.unwrap();
            }
            gateway.create(with_id(face, 1)).await.unwrap();
            assert_eq!(posts(&gateway).await, 1, "{warm}");
            assert_eq!(there(&mut gateway, face, 1).await, 1, "{warm}");
            gateway.sandbox.forget_requests().await;
            gateway.update(face.update(face.marked("reset"))).await.unwrap();
            assert_eq!(requests(&gateway, method(face, Operation::Update)).await, 1, "{warm}");
            assert_eq!(retries(&gateway).await, 0.0);
        }
    }

    async fn a_pooled_connection_that_was_closed_is_nobodys_concern(face) {
        // v2's update reads before it writes, and both belong to one call: the fourth request's connection stays.
        let stays = if face == Face::V2 { 3 } else { usize::MAX };
        let last = move |number, _: &str| if number == stays { Fate::Answered } else { Fate::LastOfItsConnection };
        let (mut gateway, wire) = Wire::with(&[], last).await;
        for operation in operations(face) {
            call(&mut gateway, face, operation).await.unwrap();
            wire.until_closed().await;
        }
        let count = operations(face).len() + usize::from(face == Face::V2);
        assert_eq!(gateway.sandbox.count().await, count as u64);
        assert_eq!((wire.connections(), retries(&gateway).await), (operations(face).len(), 0.0));
    }

    /// The next request may already be on its way when the end of the connection comes.
    async fn a_pooled_connection_that_is_closed_under_a_request_loses_no_read_and_doubles_no_write(face) {
        let (mut gateway, _wire) = Wire::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "5")], |_, _| Fate::LastOfItsConnection).await;
        for _ in 0..30 {
            gateway.get(face.get_fresh()).await.unwrap();
        }
        for number in 1..=30 {
            gateway.sandbox.forget_requests().await;
            let created = gateway.create(face.create(face.newcomer(number))).await;
            let sent = posts(&gateway).await;
            match created {
                Ok(_) => assert_eq!(sent, 1),
                Err(error) => assert_eq!((told(&error), sent), (unknown(), 0)),
            }
        }
    }
}

// === Answers without measure

/// A peer that reads a request, begins its answer with `first` and goes on with `block`, again and again, up to a
/// gibibyte. It tells how many bytes it got rid of before the gateway hung up.
async fn flood(first: &'static str, block: Vec<u8>) -> (Peer, mpsc::UnboundedReceiver<usize>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let block: Arc<[u8]> = block.into();
    let peer = Peer::serving(move |_, mut connection| {
        let (sender, block) = (sender.clone(), block.clone());
        async move {
            message(&mut connection, &mut Vec::new()).await?;
            connection.write_all(first.as_bytes()).await?;
            let mut written = 0;
            while written < GIBIBYTE && connection.write_all(&block).await.is_ok() {
                written += block.len();
            }
            // The test may have failed by now.
            let _ = sender.send(written);
            Ok(())
        }
    });
    (peer.await, receiver)
}

on_both_versions! {
    async fn a_gibibyte_of_body_is_cut_at_the_bound(face) {
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
        for (first, block) in [(length, vec![b' '; 0x10000]), (chunked, chunk)] {
            let (peer, mut written) = flood(first, block).await;
            let mut gateway = gateway_asking(peer.address, &[]).await;
            let error = gateway.get(face.get_fresh()).await.unwrap_err();
            assert_eq!(told(&error), broken());
            let written = written.recv().await.unwrap();
            assert!(written < (4 << 20) + BUFFERED, "{written}");
            assert_eq!((attempts(&gateway, "broken_answer").await, retries(&gateway).await), (1.0, 0.0));
        }
    }

    async fn a_head_without_end_is_a_connection_that_broke(face) {
        let line = format!("x-one: {}\r\n", "1".repeat(1000)).into_bytes();
        for block in [line, vec![b'1'; 1000]] {
            let (peer, mut written) = flood("HTTP/1.1 200 OK\r\nx-zero: ", block).await;
            let mut gateway = gateway_asking(peer.address, &[NO_RETRIES]).await;
            let error = gateway.get(face.get_fresh()).await.unwrap_err();
            assert_eq!(told(&error), unavailable());
            let written = written.recv().await.unwrap();
            assert!(written < BUFFERED, "{written}");
        }
    }

    async fn a_body_that_trickles_ends_with_the_attempt(face) {
        let peer = Peer::serving(|_, mut connection| async move {
            message(&mut connection, &mut Vec::new()).await?;
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await?;
            let mut beat = tokio::time::interval(Duration::from_millis(20));
            loop {
                beat.tick().await;
                connection.write_all(b" ").await?;
            }
        })
        .await;
        let mut gateway = gateway_asking(peer.address, &[SHORT_ATTEMPT, NO_RETRIES]).await;
        let error = gateway.get(face.get_fresh()).await.unwrap_err();
        assert_eq!(told(&error), unavailable());
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), unknown());
        assert!(attempts(&gateway, "timed_out").await >= 2.0);
        let raw = Raw::connect(&gateway).await;
        let get = raw.call("GetParticipant", &[("grpc-timeout", "100m")], &frame(&face.get_fresh())).await;
        assert_eq!(told(get.status()), (Code::DeadlineExceeded, "DEADLINE".into()));
    }

    /// One that is for the cache goes on: `cache::a_load_goes_on_when_its_caller_has_given_up`.
    async fn a_read_past_the_cache_ends_with_its_caller(face) {
        let (hung_up, mut hangups) = mpsc::unbounded_channel();
        let peer = Peer::serving(move |_, mut connection| {
            let hung_up = hung_up.clone();
            async move {
                let mut received = Vec::new();
                message(&mut connection, &mut received).await?;
                // No answer: the next that comes is the end.
                let _ = hung_up.send(message(&mut connection, &mut received).await.is_ok_and(|next| next.is_none()));
                Ok(())
            }
        })
        .await;
        let patient = [("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "1h"), ("GATEWAY_UPSTREAM_TOTAL_TIMEOUT", "1h")];
        let mut gateway = gateway_asking(peer.address, &patient).await;
        let mut request = tonic::Request::new(face.get_fresh());
        request.set_timeout(Duration::from_millis(200));
        gateway.client.get_participant(request).await.unwrap_err();
        assert!(hangups.recv().await.unwrap());
    }

    async fn interim_answers_without_end_end_with_the_attempt(face) {
        let block = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(100);
        let (peer, mut written) = flood("", block).await;
        let mut gateway = gateway_asking(peer.address, &[SHORT_ATTEMPT, NO_RETRIES]).await;
        let error = gateway.get(face.get_fresh()).await.unwrap_err();
        assert_eq!(told(&error), unavailable());
        assert!(written.recv().await.unwrap() < GIBIBYTE);
    }

    async fn another_protocol_that_nobody_asked_for_is_a_broken_contract(face) {
        let switching = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
        let upstream = Upstream::always(switching).await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        assert_eq!(told(&gateway.get(face.get_fresh()).await.unwrap_err()), broken());
        assert_eq!(upstream.count(), 1);
    }

    /// Its text is the good answer `{}`: unpacked, it would be taken.
    async fn a_packed_answer_is_neither_asked_for_nor_unpacked(face) {
        let packed = [
            0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, // gzip's head
            1, 2, 0, 0xfd, 0xff, b'{', b'}', // the last block, of two bytes as they are
            0x43, 0xbf, 0xa6, 0xa3, 2, 0, 0, 0, // checksum and length
        ];
        let (sender, mut heads) = mpsc::unbounded_channel();
        let upstream = Upstream::answering(move |_, head| {
            sender.send(head.to_ascii_lowercase()).unwrap();
            http("200 OK", "content-encoding: gzip\r\n", &packed)
        })
        .await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        assert_eq!(told(&gateway.get(face.get_fresh()).await.unwrap_err()), broken());
        let head = heads.recv().await.unwrap();
        assert!(head.starts_with("get /") && !head.contains("accept-encoding"), "{head}");
    }
}

/// A token of v2 is a value of the query, whatever it looks like.
#[tokio::test]
async fn a_token_that_looks_like_a_link_stays_a_value() {
    let face = Face::V2;
    let evil = Upstream::always(ok("{}")).await;
    for token in [
        format!("http://{}/v2/Conversations", evil.address),
        format!("//{}", evil.address),
        "../../v2/Services".into(),
        "x&pageSize=7#y".into(),
        "%2e%2e/\\\\evil".into(),
    ] {
        let (sender, mut heads) = mpsc::unbounded_channel();
        let page = serde_json::json!({ "participants": [], "meta": { "nextToken": token } }).to_string();
        let upstream = Upstream::answering(move |_, head| {
            sender.send(head.to_owned()).unwrap();
            ok(&page)
        })
        .await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        let page = gateway.list(face.list()).await.unwrap();
        gateway
            .list(ListParticipantsRequest { page_token: page.next_page_token, ..face.list() })
            .await
            .unwrap();
        let _first = heads.recv().await.unwrap();
        let second = heads.recv().await.unwrap();
        let path = second.split(' ').nth(1).unwrap();
        let url = url::Url::parse("http://twilio").unwrap().join(path).unwrap();
        let conversation = face.conversation().conversation_id;
        assert_eq!(url.path(), format!("/v2/Conversations/{conversation}/Participants"));
        let query: Vec<_> = url.query_pairs().into_owned().collect();
        assert_eq!(query, [("pageSize".into(), "50".into()), ("pageToken".into(), token)]);
    }
    assert_eq!(evil.count(), 0);
}
