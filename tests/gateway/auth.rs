//! Who a caller is, by each way to prove it, and that nothing else proves it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use participant_gateway::proto::{Participant, WatchParticipantsRequest};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::*;
use crate::on_both_versions;

const TOKEN: &str = "nD1Kk0u2m7wXv3o8yTq5rZ4sB6hJ9cFa";
const OTHER: &str = "pL8eW2gR5tY1uI7oA3sD6fG9hJ4kZ0xC";

fn hash(token: &str) -> String {
    let hash = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{hash}")
}

/// A folder for the files that say who may call.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// As a mount does it: never half.
    fn write(&self, name: &str, text: &str) -> String {
        let (new, path) = (self.0.path().join("new"), self.0.path().join(name));
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn tokens() -> String {
    format!("ci = \"{}\"\n\"team-a.batch\" = [\"{}\"]\n", hash(TOKEN), hash(OTHER))
}

/// A call with these headers.
async fn call(
    gateway: &Gateway,
    face: Face,
    headers: &[(&'static str, &str)],
) -> Result<Participant, Status> {
    let mut request = Request::new(face.get());
    for (name, value) in headers {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    let answer = gateway.client.clone().get_participant(request).await?;
    Ok(answer.into_inner().participant.unwrap())
}

async fn bearing(gateway: &Gateway, face: Face, token: &str) -> Result<Participant, Status> {
    call(gateway, face, &[("authorization", &format!("Bearer {token}"))]).await
}

/// Everybody who is refused is told the same.
#[track_caller]
fn assert_refused(answer: Result<Participant, Status>) {
    let status = answer.expect_err("the call is refused");
    assert_eq!(told(&status), (Code::Unauthenticated, "UNAUTHENTICATED".into()));
    assert_eq!(status.message(), "the caller has not proven who it is");
}

/// Until the gateway has read a file again.
async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it becomes so");
}

on_both_versions! {
    async fn a_token_of_the_file_lets_in_and_nothing_else_does(face) {
        let files = Files::new();
        let path = files.write("tokens.toml", &tokens());
        let env = [("GATEWAY_AUTH_MODE", "tokens"), ("GATEWAY_AUTH_TOKENS_FILE", path.as_str())];
        let gateway = Gateway::with(&env).await;
        gateway.sandbox.forget_requests().await;
        let (cut, long) = (&TOKEN[1..], format!("Bearer {}", "a".repeat(9000)));
        let (with_hash, basic, both) =
            (format!("Bearer {}", hash(TOKEN)), format!("Basic {TOKEN}"), format!("Bearer {TOKEN} {TOKEN}"));
        for value in ["", "Bearer", "Bearer ", TOKEN, &basic, &with_hash, &both, &long, &format!("Bearer {cut}")] {
            assert_refused(call(&gateway, face, &[("authorization", value)]).await);
        }
        assert_refused(call(&gateway, face, &[]).await);
        assert_refused(call(&gateway, face, &[("x-authorization", &format!("Bearer {TOKEN}"))]).await);
        let bearer = format!("Bearer {TOKEN}");
        assert_refused(call(&gateway, face, &[("authorization", &bearer), ("authorization", &bearer)]).await);
        assert_eq!(gateway.sandbox.count().await, 0, "nothing was asked for those");
        for token in [TOKEN, OTHER] {
            bearing(&gateway, face, token).await.unwrap();
        }
        call(&gateway, face, &[("authorization", &format!("bearer {TOKEN}"))]).await.unwrap();
        let requests = gateway.sandbox.requests().await;
        assert!(!requests.is_empty());
        for request in requests {
            let sent = format!("{request:?}");
            assert!(!sent.contains(TOKEN) && !sent.contains(OTHER), "{sent}");
        }
    }

    async fn a_changed_token_file_is_taken_over_and_a_bad_one_is_not(face) {
        let files = Files::new();
        let path = files.write("tokens.toml", &tokens());
        let env = [
            ("GATEWAY_AUTH_MODE", "tokens"),
            ("GATEWAY_AUTH_TOKENS_FILE", path.as_str()),
            ("GATEWAY_SECRETS_RELOAD_INTERVAL", "20ms"),
        ];
        let gateway = Gateway::with(&env).await;
        let metrics = || async { scrape(&gateway).await };
        files.write("tokens.toml", "ci = \"not a hash\"\n");
        until(|| async { metrics().await.contains("participant_secrets_bad_files 1") }).await;
        bearing(&gateway, face, TOKEN).await.unwrap();
        files.write("tokens.toml", &format!("ci = \"{}\"\n", hash("another-token")));
        until(|| async { bearing(&gateway, face, "another-token").await.is_ok() }).await;
        assert_refused(bearing(&gateway, face, TOKEN).await);
        fs::remove_file(files.path().join("tokens.toml")).unwrap();
        until(|| async { metrics().await.contains("participant_secrets_bad_files 1") }).await;
        bearing(&gateway, face, "another-token").await.unwrap();
    }
}

async fn scrape(gateway: &Gateway) -> String {
    let url = format!("http://{}/metrics", gateway.addresses.admin);
    reqwest::get(url).await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn health_needs_no_proof() {
    let files = Files::new();
    let path = files.write("tokens.toml", &tokens());
    let env = [("GATEWAY_AUTH_MODE", "tokens"), ("GATEWAY_AUTH_TOKENS_FILE", path.as_str())];
    let gateway = Gateway::with(&env).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc));
    let mut health = HealthClient::new(endpoint.unwrap().connect().await.unwrap());
    health.check(HealthCheckRequest::default()).await.unwrap();
    assert_refused(call(&gateway, Face::V1, &[]).await);
    let metrics = scrape(&gateway).await;
    let refused = "participant_auth_calls_total{participant_auth_outcome=\"refused\",participant_auth_proof=\"none\"} 1";
    assert!(metrics.contains(refused), "{metrics}");
}

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "participant-gateway";

/// A key of an issuer's, with its name.
struct Key {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let key = EncodingKey::from_ec_der(&rcgen::KeyPair::generate().unwrap().serialize_der());
        Self { id, algorithm: Algorithm::ES256, key }
    }

    fn rsa(id: &'static str) -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        // PKCS #1 is what stands in PKCS #8 behind its head.
        let key = EncodingKey::from_rsa_der(&key.serialize_der()[26..]);
        Self { id, algorithm: Algorithm::RS256, key }
    }

    fn public(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.into());
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(Some(self.id), claims)
    }

    fn sign_as(&self, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

fn key_set(keys: &[&Key]) -> String {
    serde_json::to_string(&JwkSet { keys: keys.iter().map(|key| key.public()).collect() }).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Those of a good token, but for the changes.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "exp": now() + 600, "sub": "caller" });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

/// A gateway that takes the tokens of an issuer.
async fn taking(keys: (&str, &str), env: &[(&str, &str)]) -> Gateway {
    let jwt = [
        ("GATEWAY_AUTH_MODE", "jwt"),
        ("GATEWAY_AUTH_JWT_ISSUER", ISSUER),
        ("GATEWAY_AUTH_JWT_AUDIENCE", AUDIENCE),
        keys,
    ];
    Gateway::with(&[&jwt, env].concat()).await
}

/// Tells an issuer's keys, whatever they are at the moment.
#[derive(Clone)]
struct Issuer {
    answer: Arc<Mutex<(StatusCode, String)>>,
    requests: Arc<AtomicU64>,
    url: String,
}

impl Issuer {
    async fn telling(keys: &[&Key]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = Self { answer: Arc::default(), requests: Arc::default(), url };
        issuer.tell(StatusCode::OK, key_set(keys));
        let (told, elsewhere) = (issuer.clone(), key_set(keys));
        let answer = move || async move {
            told.requests.fetch_add(1, Ordering::SeqCst);
            let (status, body) = told.answer.lock().unwrap().clone();
            (status, [(header::LOCATION, "/elsewhere")], body)
        };
        let routes =
            Router::new().route("/keys", get(answer)).route("/elsewhere", get(|| async { elsewhere }));
        tokio::spawn(async { axum::serve(listener, routes).await });
        issuer
    }

    fn tell(&self, status: StatusCode, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    fn keys_url(&self) -> String {
        format!("{}/keys", self.url)
    }
}

on_both_versions! {
    async fn a_good_jwt_lets_in_and_whoever_brings_a_bad_one_is_told_the_same(face) {
        let (files, one, rsa, stranger) = (Files::new(), Key::new("one"), Key::rsa("rsa"), Key::new("one"));
        let path = files.write("keys.json", &key_set(&[&one, &rsa]));
        let gateway = taking(("GATEWAY_AUTH_JWT_JWKS_FILE", &path), &[]).await;
        let good = claims(&json!({}));
        for token in [
            one.sign(&good),
            rsa.sign(&good),
            // There is one key only for the algorithm.
            one.sign_as(None, &good),
            one.sign(&claims(&json!({ "aud": ["another", AUDIENCE] }))),
            one.sign(&claims(&json!({ "exp": now() - 30, "nbf": now() + 30 }))),
        ] {
            bearing(&gateway, face, &token).await.unwrap();
        }
        gateway.sandbox.forget_requests().await;
        let signature = one.sign(&good).rsplit_once('.').unwrap().1.to_owned();
        let unsigned = |header: Value, signature: &str| {
            format!("{}.{}.{signature}", BASE64.encode(header.to_string()), BASE64.encode(good.to_string()))
        };
        let symmetric = |key: &[u8], header: Header| {
            jsonwebtoken::encode(&header, &good, &EncodingKey::from_secret(key)).unwrap()
        };
        let hs256 = Header { kid: Some("rsa".into()), ..Header::new(Algorithm::HS256) };
        let public = serde_json::to_string(&rsa.public()).unwrap();
        let critical = Header { crit: Some(vec!["b64".into()]), kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        let embedded = Header { jwk: Some(stranger.public()), kid: Some("two".into()), ..Header::new(Algorithm::ES256) };
        for token in [
            one.sign(&claims(&json!({ "exp": now() - 90 }))),
            one.sign(&claims(&json!({ "exp": null }))),
            one.sign(&claims(&json!({ "exp": "never" }))),
            one.sign(&claims(&json!({ "nbf": now() + 90 }))),
            one.sign(&claims(&json!({ "nbf": "now" }))),
            one.sign(&claims(&json!({ "iss": "https://another.example" }))),
            one.sign(&claims(&json!({ "iss": null }))),
            one.sign(&claims(&json!({ "aud": "another" }))),
            one.sign(&claims(&json!({ "aud": [] }))),
            one.sign(&claims(&json!({ "aud": null }))),
            one.sign(&claims(&json!({ "sub": null }))),
            one.sign(&claims(&json!({ "sub": "" }))),
            one.sign(&claims(&json!({ "sub": "a\u{0}b" }))),
            one.sign(&claims(&json!({ "sub": "a".repeat(257) }))),
            one.sign(&claims(&json!({ "sub": "a".repeat(9000) }))),
            one.sign_as(Some("../../x"), &good),
            one.sign_as(Some("rsa"), &good),
            stranger.sign(&good),
            unsigned(json!({ "alg": "none" }), ""),
            unsigned(json!({ "alg": "none", "kid": "one" }), &signature),
            unsigned(json!({ "alg": "ES256", "kid": "one" }), ""),
            unsigned(json!({ "kid": "one" }), &signature),
            symmetric(public.as_bytes(), hs256.clone()),
            symmetric(b"", hs256),
            jsonwebtoken::encode(&critical, &good, &one.key).unwrap(),
            jsonwebtoken::encode(&embedded, &good, &stranger.key).unwrap(),
            "a.b.c".into(),
            "..".into(),
            TOKEN.into(),
        ] {
            assert_refused(bearing(&gateway, face, &token).await);
        }
        assert_eq!(gateway.sandbox.count().await, 0, "nothing was asked for those");
    }

    async fn a_key_that_is_new_is_fetched_once_and_one_that_is_made_up_is_not(face) {
        let (one, two, made_up) = (Key::new("one"), Key::new("two"), Key::new("../../x"));
        let issuer = Issuer::telling(&[&one]).await;
        let gateway = taking(("GATEWAY_AUTH_JWT_JWKS_URL", &issuer.keys_url()), &[]).await;
        bearing(&gateway, face, &one.sign(&claims(&json!({})))).await.unwrap();
        assert_eq!(issuer.requests(), 1);
        issuer.tell(StatusCode::OK, key_set(&[&one, &two]));
        for key in [&made_up, &two, &made_up] {
            assert_refused(bearing(&gateway, face, &key.sign(&claims(&json!({})))).await);
        }
        assert_eq!(issuer.requests(), 1, "the last request was a moment ago");
        jump(Duration::from_secs(11));
        let token = two.sign(&claims(&json!({})));
        let calls = (0..20).map(|_| bearing(&gateway, face, &token));
        for answer in futures_util::future::join_all(calls).await {
            answer.unwrap();
        }
        assert_eq!(issuer.requests(), 2, "all wait for one request");
        assert_refused(bearing(&gateway, face, &made_up.sign(&claims(&json!({})))).await);
        assert_eq!(issuer.requests(), 2);
    }

    async fn the_last_good_keys_stay_while_there_are_no_new_ones(face) {
        let (one, two) = (Key::new("one"), Key::new("two"));
        let issuer = Issuer::telling(&[&one]).await;
        let url = issuer.keys_url();
        let env = [("GATEWAY_AUTH_JWT_JWKS_REFRESH", "20ms")];
        let gateway = taking(("GATEWAY_AUTH_JWT_JWKS_URL", &url), &env).await;
        let token = one.sign(&claims(&json!({})));
        for (status, body) in [
            (StatusCode::INTERNAL_SERVER_ERROR, key_set(&[&two])),
            // Whoever answers so would have the gateway take another's keys.
            (StatusCode::FOUND, String::new()),
            (StatusCode::OK, "{\"keys\":[]}".into()),
            (StatusCode::OK, format!("{{\"keys\":[{{\"kty\":\"oct\",\"kid\":\"one\",\"k\":\"{}\"}}]}}", BASE64.encode("secret"))),
            (StatusCode::OK, " ".repeat(2 << 20) + &key_set(&[&two])),
        ] {
            issuer.tell(status, body);
            let asked = issuer.requests();
            // The second of them began after the change.
            until(|| async { issuer.requests() > asked + 2 }).await;
            bearing(&gateway, face, &token).await.unwrap();
            assert_refused(bearing(&gateway, face, &two.sign(&claims(&json!({})))).await);
        }
        let metrics = scrape(&gateway).await;
        for outcome in ["ok", "failed"] {
            let series = format!("participant_jwks_refreshes_total{{participant_jwks_outcome=\"{outcome}\"}}");
            assert!(metrics.contains(&series), "{metrics}");
        }
        issuer.tell(StatusCode::OK, key_set(&[&two]));
        until(|| async { bearing(&gateway, face, &two.sign(&claims(&json!({})))).await.is_ok() }).await;
        assert_refused(bearing(&gateway, face, &token).await);
    }

    async fn a_token_is_judged_by_its_shape_where_both_kinds_are_taken(face) {
        let (files, one) = (Files::new(), Key::new("one"));
        let keys = files.write("keys.json", &key_set(&[&one]));
        let path = files.write("tokens.toml", &tokens());
        let env = [("GATEWAY_AUTH_MODE", "tokens, jwt"), ("GATEWAY_AUTH_TOKENS_FILE", path.as_str())];
        let gateway = taking(("GATEWAY_AUTH_JWT_JWKS_FILE", &keys), &env).await;
        bearing(&gateway, face, TOKEN).await.unwrap();
        bearing(&gateway, face, &one.sign(&claims(&json!({})))).await.unwrap();
        for token in ["a.b.c", "a.b", "abc"] {
            assert_refused(bearing(&gateway, face, token).await);
        }
        assert_refused(call(&gateway, face, &[]).await);
    }

    async fn a_mesh_is_believed_where_it_is_and_nowhere_else(face) {
        let (envoy, linkerd) = ("x-forwarded-client-cert", "l5d-client-id");
        let identity = "By=spiffe://mesh.example/gateway;Hash=ab;URI=spiffe://mesh.example/caller";
        let name = "caller.ns.serviceaccount.identity.linkerd.cluster.local";
        let required = [("GATEWAY_AUTH_MODE", "mesh"), ("GATEWAY_AUTH_MESH_REQUIRE_IDENTITY", "true")];
        let gateway = Gateway::with(&required).await;
        gateway.sandbox.forget_requests().await;
        for headers in [
            &[][..],
            &[(envoy, "")],
            &[(envoy, "By=spiffe://mesh.example/gateway;Hash=ab")],
            &[(envoy, "URI=spiffe://mesh.example/a;URI=spiffe://mesh.example/b")],
            &[(envoy, identity), (envoy, "URI=")],
            &[(envoy, &format!("{identity},\"")), (envoy, identity)],
            // Envoy hands it on as the caller has written it.
            &[(linkerd, name)],
            &[("x-forwarded-for", "127.0.0.1"), ("forwarded", identity)],
        ] {
            assert_refused(call(&gateway, face, headers).await);
        }
        assert_eq!(gateway.sandbox.count().await, 0, "nothing was asked for those");
        call(&gateway, face, &[(envoy, identity)]).await.unwrap();
        let requests = format!("{:?}", gateway.sandbox.requests().await);
        assert!(!requests.contains("mesh.example"), "{requests}");

        let by_linkerd = [&required[..], &[("GATEWAY_AUTH_MESH_HEADER", linkerd)]].concat();
        let gateway = Gateway::with(&by_linkerd).await;
        assert_refused(call(&gateway, face, &[(envoy, identity)]).await);
        call(&gateway, face, &[(linkerd, name)]).await.unwrap();

        let elsewhere = [&required[..], &[("GATEWAY_AUTH_MESH_TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8")]].concat();
        let gateway = Gateway::with(&elsewhere).await;
        assert_refused(call(&gateway, face, &[(envoy, identity)]).await);

        let gateway = Gateway::with(&required[..1]).await;
        call(&gateway, face, &[]).await.unwrap();
        assert_refused(call(&gateway, face, &[(envoy, "URI=")]).await);
    }

    async fn a_stream_ends_with_its_token(face) {
        let (files, one) = (Files::new(), Key::new("one"));
        let path = files.write("keys.json", &key_set(&[&one]));
        let gateway = taking(("GATEWAY_AUTH_JWT_JWKS_FILE", &path), &[("GATEWAY_WATCH_HEARTBEAT", "1h")]).await;
        let conversations = vec![face.conversation()];
        let mut request = Request::new(WatchParticipantsRequest { conversations, ..Default::default() });
        let token = format!("Bearer {}", one.sign(&claims(&json!({ "exp": now() - 50 }))));
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        let mut watch = gateway.client.clone().watch_participants(request).await.unwrap().into_inner();
        watch.message().await.unwrap();
        // Past the leeway.
        jump(Duration::from_secs(11));
        let end = watch.message().await.unwrap_err();
        assert_eq!(told(&end), (Code::Unauthenticated, "UNAUTHENTICATED".into()));
    }
}

#[tokio::test]
async fn the_gateway_is_ready_once_it_has_the_keys() {
    let one = Key::new("one");
    let issuer = Issuer::telling(&[&one]).await;
    issuer.tell(StatusCode::SERVICE_UNAVAILABLE, String::new());
    let env = [("GATEWAY_AUTH_JWT_JWKS_REFRESH", "20ms")];
    let gateway = taking(("GATEWAY_AUTH_JWT_JWKS_URL", &issuer.keys_url()), &env).await;
    let url = format!("http://{}/readyz", gateway.addresses.admin);
    let is_ready = || async { reqwest::get(&url).await.unwrap().status() == 200 };
    until(|| async { issuer.requests() > 2 }).await;
    assert!(!is_ready().await);
    assert_refused(bearing(&gateway, Face::V1, &one.sign(&claims(&json!({})))).await);
    issuer.tell(StatusCode::OK, key_set(&[&one]));
    until(is_ready).await;
    bearing(&gateway, Face::V1, &one.sign(&claims(&json!({})))).await.unwrap();
}
