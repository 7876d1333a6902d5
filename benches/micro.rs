//! The parts of a read, one by one: where its time goes.
//!
//! `cargo bench --bench micro`; a word behind `--` names the benchmarks that it begins with. What decodes Twilio's answers is not
//! public, so it is measured within reads over loopback: what a page of a hundred participants takes longer than one
//! participant is theirs.

#[path = "load/bare.rs"]
mod bare;

use std::convert::Infallible;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use participant_gateway::access::{Access, Jwt, JwtSettings, Keys, Peer, Tokens, Way};
use participant_gateway::config::{self, Command, Config, Upstream};
use participant_gateway::grpc::{self, CallLimits, Calls, Services};
use participant_gateway::ids::{
    Accounts, ApiVersion, Call, CallerId, Conversation, ParticipantKey, Segment, route,
};
use participant_gateway::participants::{Cursor, Feed, Freshness, PageTokens, Participants, Tolerance};
use participant_gateway::proto::{
    CacheStatus, ConversationRef, GetParticipantRequest, GetParticipantResponse, ReadInfo,
};
use participant_gateway::sandbox;
use participant_gateway::telemetry::Metrics;
use participant_gateway::twilio::{Account, Twilio};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

const CONVERSATION: &str = "CH00000000000000000000000000000001";
const PARTICIPANT: &str = "MB00000000000000000000000000000001";
const V2_CONVERSATION: &str = "conv_conversation_00000000000000000000000001";
const PAGE: usize = 100;

fn routing(criterion: &mut Criterion) {
    for (name, id) in [("v1", CONVERSATION), ("v2", V2_CONVERSATION), ("unique name", "support-7")] {
        criterion.bench_function(&format!("route/{name}"), |bencher| bencher.iter(|| route(black_box(id))));
    }
}

fn page_tokens(criterion: &mut Criterion) {
    let (_, account) = configured("http://127.0.0.1:1");
    let tokens = PageTokens::new([(account.id.clone(), account.credentials.secrets().to_vec())]);
    let conversation = conversation(&account);
    let cursor = Cursor { page: "1".into(), token: format!("PA{PARTICIPANT}") };
    let token = tokens.seal(&conversation, &cursor);
    criterion.bench_function("page token/seal", |bencher| {
        bencher.iter(|| tokens.seal(&conversation, black_box(&cursor)));
    });
    criterion.bench_function("page token/open", |bencher| {
        bencher.iter(|| tokens.open(&conversation, black_box(&token)));
    });
}

fn messages(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (config, account) = configured(&twilio());
    let answer = runtime.block_on(answer(&config, &account));
    let request = request().encode_to_vec();
    let mut buffer = BytesMut::with_capacity(answer.encoded_len());
    criterion.bench_function("encode/answer", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            black_box(&answer).encode(&mut buffer).expect("room");
        });
    });
    criterion.bench_function("encode/answer, cloned before", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            black_box(&answer).clone().encode(&mut buffer).expect("room");
        });
    });
    criterion.bench_function("decode/request", |bencher| {
        bencher.iter(|| GetParticipantRequest::decode(black_box(request.as_slice())));
    });
}

/// A read that the cache answers: by the participants alone, and as a whole call but for HTTP/2.
fn hits(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (config, account) = configured(&twilio());
    let participants = runtime.block_on(async { participants(&config, &account) });
    let (key, call) = (key(&account), call());
    criterion.bench_function("cache hit/participants", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            participants.get(key.clone(), Tolerance::default(), call).await.expect("a participant")
        });
    });
    let (metrics, end) = (Metrics::new(None).expect("metrics"), CancellationToken::new());
    let limits = CallLimits {
        longest: config.call_timeout,
        stall: config.stream_stall,
        in_flight: usize::MAX,
        watchers: usize::MAX,
        per_caller: config.per_caller,
    };
    let calls = Calls::new(limits, Access::open(), end, &metrics, config.log.calls);
    let accounts = Accounts::new(account.id.clone(), []);
    let service = grpc::service(participants, accounts, config.watch.heartbeat);
    let service = Services::new(calls, service, Routes::default());
    let service = service.called_by(Peer { address: [127, 0, 0, 1].into(), certificate: None });
    whole_call(criterion, "cache hit/call", &runtime, |request| service.call(request));
}

/// What tonic takes of such a call: the answer is there.
fn bare_call(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (config, account) = configured(&twilio());
    let answer = runtime.block_on(answer(&config, &account));
    let service = bare::service(answer);
    whole_call(criterion, "bare tonic/call", &runtime, |request| service.clone().call(request));
}

fn whole_call<F, B>(
    criterion: &mut Criterion,
    name: &str,
    runtime: &Runtime,
    call: impl Fn(Request<Body>) -> F,
) where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: http_body::Body<Data: Send, Error: std::fmt::Debug>,
{
    let message = request().encode_to_vec();
    let head = [0, 0, 0, 0, u8::try_from(message.len()).expect("a short message")];
    let frame = Bytes::from([head.as_slice(), &message].concat());
    criterion.bench_function(name, |bencher| {
        bencher.to_async(runtime).iter(|| {
            let request = Request::post("http://gateway/participant.v1.ParticipantService/GetParticipant")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Body::new(Full::new(frame.clone())))
                .expect("a request");
            let answering = call(request);
            async move {
                let response = answering.await.expect("an answer");
                let body = response.into_body().collect().await.expect("a body");
                assert!(body.trailers().is_some_and(|trailers| trailers["grpc-status"] == "0"));
            }
        });
    });
}

/// What it takes to know a caller. The open listener, whose callers need prove nothing, is that of the calls above.
fn callers(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let digits: String = Sha256::digest("token").iter().map(|byte| format!("{byte:02x}")).collect();
    let tokens = Tokens::read(write("tokens.toml", format!("ci = \"sha256:{digits}\""))).expect("tokens");
    bring(criterion, &runtime, "caller/token", Way::Tokens(tokens), "token");
    for (name, algorithm) in [("ES256", Algorithm::ES256), ("RS256", Algorithm::RS256)] {
        let (token, keys) = signed(algorithm);
        let keys = Keys::file(write(name, keys)).expect("keys");
        let (issuer, audience) = ("issuer".to_owned(), "audience".to_owned());
        let algorithms = vec![name.parse().expect("an algorithm")];
        let settings = JwtSettings { issuer, audience, algorithms, leeway: Duration::ZERO, keys };
        bring(criterion, &runtime, &format!("caller/jwt {name}"), Way::Jwt(Jwt::new(settings)), &token);
    }
}

fn bring(criterion: &mut Criterion, runtime: &Runtime, name: &str, way: Way, token: &str) {
    let access = Access::by(vec![way], Metrics::new(None).expect("metrics"));
    let peer = Peer { address: [127, 0, 0, 1].into(), certificate: None };
    let token = format!("Bearer {token}").parse().expect("a header");
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, token)]);
    criterion.bench_function(name, |bencher| {
        bencher.to_async(runtime).iter(|| async { access.of_call(&peer, &headers).await.expect("a caller") });
    });
}

/// A token, and the set of the key that has signed it.
fn signed(algorithm: Algorithm) -> (String, String) {
    let key = match algorithm {
        // PKCS #1 is what stands in PKCS #8 behind its head.
        Algorithm::RS256 => {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
            EncodingKey::from_rsa_der(&key.serialize_der()[26..])
        }
        _ => EncodingKey::from_ec_der(&rcgen::KeyPair::generate().expect("a key").serialize_der()),
    };
    let claims =
        serde_json::json!({ "iss": "issuer", "aud": "audience", "sub": "a", "exp": 99_999_999_999_u64 });
    let token = jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).expect("a token");
    let key = Jwk::from_encoding_key(&key, algorithm).expect("a key");
    (token, serde_json::to_string(&JwkSet { keys: vec![key] }).expect("a set"))
}

fn answers(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (config, account) = configured(&twilio());
    let twilio = runtime.block_on(async {
        Twilio::new(&config.twilio, vec![account.clone()], Metrics::new(None).expect("metrics"))
            .expect("a client")
    });
    let (key, conversation) = (key(&account), conversation(&account));
    criterion.bench_function("twilio/one participant", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| async { twilio.fetch(&key, twilio.full_budget()).await.expect("a participant") });
    });
    criterion.bench_function("twilio/a page of 100", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let page = twilio.list(&conversation, 100, &Cursor::default(), twilio.full_budget()).await;
            assert_eq!(page.expect("a page").items.len(), PAGE);
        });
    });
}

/// As the settings' defaults say, before this Twilio.
fn configured(url: &str) -> (Config, Account) {
    let env = |name: &str| match name {
        "TWILIO_ACCOUNT_SID" => Some(sandbox::ACCOUNT_SID.to_owned()),
        "TWILIO_AUTH_TOKEN" => Some(sandbox::AUTH_TOKEN.to_owned()),
        "GATEWAY_CACHE_TTL" | "GATEWAY_CACHE_TTL_WITHOUT_EVENTS" => Some("5h".to_owned()),
        "GATEWAY_UPSTREAM_URL" => Some(url.to_owned()),
        _ => None,
    };
    let arguments = ["participant-gateway", "serve"].map(Into::into);
    let Ok(Command::Serve(report)) = config::parse(arguments, &env) else { panic!("it serves") };
    let config = report.outcome.unwrap_or_else(|problems| panic!("{}", problems[0]));
    let Upstream::Twilio(accounts) = &config.upstream else { panic!("no sandbox") };
    let account = accounts[0].clone();
    (config, account)
}

fn participants(config: &Config, account: &Account) -> Participants {
    let metrics = Metrics::new(None).expect("metrics");
    let twilio = Twilio::new(&config.twilio, vec![account.clone()], metrics.clone()).expect("a client");
    let feed = Feed::local(config.watch.kept);
    let freshness = Freshness::new(config.lifetimes, [account.id.clone()], feed.current_since());
    let tokens = PageTokens::new([(account.id.clone(), account.credentials.secrets().to_vec())]);
    Participants::new(twilio, &config.cache, tokens, (feed, freshness), TaskTracker::new(), metrics)
}

/// To a read that had to ask Twilio.
async fn answer(config: &Config, account: &Account) -> GetParticipantResponse {
    let participants = participants(config, account);
    let read = participants.get(key(account), Tolerance::default(), call()).await.expect("a participant");
    let read_info =
        ReadInfo { cache_status: CacheStatus::Miss.into(), fetch_time: Some(read.fetched.into()) };
    GetParticipantResponse {
        participant: Some(read.value.decode().expect("a participant")),
        read_info: Some(read_info),
    }
}

fn conversation(account: &Account) -> Conversation {
    Conversation {
        account: account.id.clone(),
        service: None,
        id: Segment::parse(CONVERSATION).expect("a segment"),
        version: ApiVersion::V1,
    }
}

fn key(account: &Account) -> ParticipantKey {
    let id = Segment::parse(PARTICIPANT).expect("a segment");
    ParticipantKey { conversation: conversation(account), id }
}

fn call() -> Call {
    let deadline = Instant::now() + Duration::from_secs(3600);
    Call { deadline, caller: CallerId::Unknown, is_repetition: false }
}

fn request() -> GetParticipantRequest {
    let conversation = ConversationRef { conversation_id: CONVERSATION.into(), ..Default::default() };
    GetParticipantRequest {
        conversation: Some(conversation),
        participant_id: PARTICIPANT.into(),
        read_options: None,
    }
}

/// The URL of a Twilio that answers with the same participant, or with a page of it, and ends with the process.
fn twilio() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.expect("a connection")));
        }
    });
    format!("http://{address}")
}

fn serve(mut stream: TcpStream) {
    let one = format!(
        r#"{{"account_sid":"{}","conversation_sid":"{CONVERSATION}","sid":"{PARTICIPANT}","identity":null,"attributes":"{{\"role\":\"driver\"}}","messaging_binding":{{"type":"sms","address":"+15558675310","proxy_address":"+15017122661","projected_address":null}},"role_sid":"RL00000000000000000000000000000001","date_created":"2026-01-05T09:00:00Z","date_updated":"2026-01-05T09:00:00Z","url":"https://conversations.twilio.com/v1/Conversations/{CONVERSATION}/Participants/{PARTICIPANT}","last_read_message_index":null,"last_read_timestamp":null}}"#,
        sandbox::ACCOUNT_SID
    );
    let page = format!(
        r#"{{"participants":[{}],"meta":{{"page":0,"page_size":{PAGE},"key":"participants","next_page_url":null,"previous_page_url":null,"first_page_url":"","url":""}}}}"#,
        vec![one.as_str(); PAGE].join(",")
    );
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        head.extend_from_slice(&buffer[..length]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let body = if head.windows(PARTICIPANT.len()).any(|part| part == PARTICIPANT.as_bytes()) {
            &one
        } else {
            &page
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
        head.clear();
    }
}

criterion_group!(parts, routing, page_tokens, messages, bare_call, hits, callers, answers);
criterion_main!(parts);
