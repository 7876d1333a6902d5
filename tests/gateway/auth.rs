//! Who a caller is, by each way to prove it, and that nothing else proves it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use participant_gateway::proto::Participant;
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
