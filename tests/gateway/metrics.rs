//! What `/metrics` tells after calls of every kind.

use std::collections::BTreeMap;
use std::time::Instant;

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use participant_gateway::telemetry::metrics::{METRICS, Row};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

use crate::events::{Delivery, Event};
use crate::harness::*;
use crate::on_both_versions;

const KEYS: &str = "participant_upstream_unknown_keys_total";
const VALUES: &str = "participant_upstream_unknown_values_total";

/// A scrape: every line that is a sample.
pub struct Scrape(Vec<String>);

impl Scrape {
    pub async fn of(gateway: &Gateway) -> Self {
        let url = format!("http://{}/metrics", gateway.addresses.admin);
        let answer = reqwest::get(url).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let text = answer.text().await.unwrap();
        Self(text.lines().filter(|line| !line.starts_with('#')).map(Into::into).collect())
    }

    /// The sum of the samples of this name that have all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let is_meant = |line: &&String| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        };
        let value = |line: &String| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        self.0.iter().filter(is_meant).map(value).sum()
    }

    fn lookups(&self, outcome: &str) -> f64 {
        self.sum("participant_cache_lookups_total", &[("participant_cache_outcome", outcome)])
    }

    /// What is counted under this name for this API, by key.
    fn drift(&self, name: &str, face: Face) -> BTreeMap<String, f64> {
        let series = format!("{name}{{");
        let version = format!("participant_api_version=\"{}\"", face.api());
        let lines = self.0.iter().filter(|line| line.starts_with(&series) && line.contains(&version));
        let key = |line: &str| {
            line.split_once("participant_upstream_key=\"").unwrap().1.split_once('"').unwrap().0.to_owned()
        };
        lines.map(|line| (key(line), line.rsplit(' ').next().unwrap().parse().unwrap())).collect()
    }

    fn calls(&self, method: &str, code: &str) -> f64 {
        let method = format!("participant.v1.ParticipantService/{method}");
        let labels = [
            ("rpc_method", method.as_str()),
            ("rpc_response_status_code", code),
            ("rpc_system_name", "grpc"),
        ];
        self.sum("rpc_server_call_duration_seconds_count", &labels)
    }
}

on_both_versions! {
    async fn reads_are_counted_by_how_the_cache_served_them(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        gateway.get(face.get()).await.unwrap();
        gateway.get(face.get()).await.unwrap();
        gateway.get(face.get_fresh()).await.unwrap();
        gateway.sandbox.fault(json!({ "status": 503, "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap_err();

        let scrape = Scrape::of(&gateway).await;
        let outcomes = ["miss", "hit", "bypass", "failed", "coalesced"].map(|outcome| scrape.lookups(outcome));
        assert_eq!(outcomes, [1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(scrape.sum("participant_cache_entry_age_seconds_count", &[]), 1.0);
        assert_eq!((scrape.calls("GetParticipant", "OK"), scrape.calls("GetParticipant", "UNAVAILABLE")), (3.0, 1.0));
    }

    async fn failed_calls_are_counted_by_their_reason(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        gateway.get(face.get()).await.unwrap();
        let missing = GetParticipantRequest { participant_id: face.missing_participant().into(), ..face.get() };
        gateway.get(missing.clone()).await.unwrap_err();
        gateway.get(missing).await.unwrap_err();
        gateway.get(GetParticipantRequest { participant_id: "..".into(), ..face.get() }).await.unwrap_err();
        gateway.sandbox.fault(json!({ "status": 503, "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap_err();
        let scrape = Scrape::of(&gateway).await;
        let method = ("rpc_method", "participant.v1.ParticipantService/GetParticipant");
        for (reason, count) in [("PARTICIPANT_NOT_FOUND", 2.0), ("INVALID_REQUEST", 1.0), ("UPSTREAM_UNAVAILABLE", 1.0)] {
            let labels = [method, ("participant_calls_reason", reason)];
            assert_eq!(scrape.sum("participant_calls_failed_total", &labels), count, "{reason}");
        }
        assert_eq!(scrape.sum("participant_calls_failed_total", &[]), 4.0);
    }

    async fn readers_that_share_a_load_are_told_apart(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let get = || {
            let mut client = gateway.client.clone();
            tokio::spawn(async move { client.get_participant(face.get()).await.unwrap() })
        };
        let first = get();
        gateway.sandbox.held(1).await;
        let second = get();
        let in_flight = [("rpc_method", "participant.v1.ParticipantService/GetParticipant")];
        let deadline = Instant::now() + PATIENCE;
        while Scrape::of(&gateway).await.sum("participant_calls_in_flight", &in_flight) < 2.0 {
            assert!(Instant::now() < deadline, "two calls are in flight");
        }
        gateway.sandbox.release().await;
        let statuses = [first.await.unwrap(), second.await.unwrap()]
            .map(|answer| answer.into_inner().read_info.unwrap().cache_status());
        let scrape = Scrape::of(&gateway).await;
        let coalesced = statuses.iter().filter(|status| **status == CacheStatus::Coalesced).count();
        assert_eq!((scrape.lookups("miss"), scrape.lookups("coalesced")), (1.0, coalesced as f64));
        assert_eq!(scrape.sum("participant_calls_in_flight", &in_flight), 0.0);
    }

    async fn requests_to_twilio_and_their_retries_are_counted(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "status": 503, "code": 20503, "times": 1 })).await;
        gateway.sandbox.fault(json!({ "cut": "before", "times": 1 })).await;
        gateway.get(face.get()).await.unwrap();
        let template = match face {
            Face::V1 => "/v1/Conversations/{ConversationSid}/Participants/{Sid}",
            Face::V2 => "/v2/Conversations/{conversationId}/Participants/{id}",
        };
        let scrape = Scrape::of(&gateway).await;
        let requests = |labels: &[(&str, &str)]| {
            let all = [&[("http_request_method", "GET"), ("url_template", template)], labels].concat();
            scrape.sum("http_client_request_duration_seconds_count", &all)
        };
        assert_eq!(requests(&[]), 3.0);
        assert_eq!(requests(&[("http_response_status_code", "200")]), 1.0);
        assert_eq!(requests(&[("http_response_status_code", "503"), ("error_type", "answered")]), 1.0);
        assert_eq!(requests(&[("error_type", "cut")]), 1.0);
        assert_eq!(scrape.sum("participant_upstream_retries_total", &[("url_template", template)]), 2.0);
    }

    async fn keys_that_twilio_has_added_are_counted_by_name_and_ignored(face) {
        let mut gateway = Gateway::start().await;
        let body = match face {
            Face::V1 => json!({ "sid": "MB1", "new_key": 1, "messaging_binding": { "type": "sms", "newer": {} } }),
            Face::V2 => json!({ "id": "p1", "new_key": [1], "addresses": [{ "channel": "SMS", "newer": null }] }),
        };
        gateway.sandbox.fault(json!({ "body": body.to_string(), "times": 2 })).await;
        gateway.get(face.get()).await.unwrap();
        gateway.get(face.get_fresh()).await.unwrap();
        let page = json!({ "meta": { "newest": "alice" }, "participants": [body, body] });
        gateway.sandbox.fault(json!({ "body": page.to_string(), "times": 1 })).await;
        gateway.list(face.list()).await.unwrap();
        let newer = if face == Face::V1 { "messaging_binding.newer" } else { "addresses.newer" };
        let expected = BTreeMap::from([
            ("new_key".to_owned(), 2.0),
            (newer.to_owned(), 2.0),
            ("participants.new_key".to_owned(), 2.0),
            (format!("participants.{newer}"), 2.0),
            ("meta.newest".to_owned(), 1.0),
        ]);
        assert_eq!(Scrape::of(&gateway).await.drift(KEYS, face), expected);
    }

    async fn names_of_keys_swell_nothing_and_hold_no_text(face) {
        let mut gateway = Gateway::start().await;
        let mut body = json!({ "+15550100001": 1, "dana@example.com": 1, "two words": 1, "": 1 });
        body["x".repeat(65)] = json!(1);
        gateway.sandbox.fault(json!({ "body": body.to_string(), "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap();
        for round in ["a", "b"] {
            let body: BTreeMap<_, _> = (0..90).map(|at| (format!("{round}{at}"), 1)).collect();
            gateway.sandbox.fault(json!({ "body": json!(body).to_string(), "times": 1 })).await;
            gateway.get(face.get_fresh()).await.unwrap();
        }
        let counted = Scrape::of(&gateway).await.drift(KEYS, face);
        assert_eq!(counted.len(), 101);
        assert_eq!((counted["(other)"], counted["a7"], counted["(more)"]), (5.0, 1.0, 81.0));
    }

    async fn words_that_twilio_has_added_are_counted_by_key(face) {
        let mut gateway = Gateway::start().await;
        let (body, expected) = match face {
            Face::V1 => (
                json!({ "sid": "MB1", "messaging_binding": { "type": "pigeon" }, "last_read_timestamp": "noon" }),
                ["last_read_timestamp", "messaging_binding.type"],
            ),
            Face::V2 => (
                json!({ "id": "p1", "type": "PIGEON", "addresses": [{ "channel": "SMS" }, { "channel": "AIR" }] }),
                ["addresses.channel", "type"],
            ),
        };
        gateway.sandbox.fault(json!({ "body": body.to_string(), "times": 1 })).await;
        gateway.get(face.get()).await.unwrap();
        let page = json!({ "meta": {}, "participants": [body, body] });
        gateway.sandbox.fault(json!({ "body": page.to_string(), "times": 1 })).await;
        gateway.list(face.list()).await.unwrap();
        let scrape = Scrape::of(&gateway).await;
        assert_eq!(scrape.drift(VALUES, face), expected.map(|key| (key.to_owned(), 3.0)).into());
        assert_eq!(scrape.drift(KEYS, face), BTreeMap::new());
    }

    async fn what_twilio_documents_is_no_drift(face) {
        let mut gateway = Gateway::start().await;
        let (participant, page) = match face {
            Face::V1 => (
                include_str!("../fixtures/v1/binding_all_nulls.json"),
                include_str!("../fixtures/v1/list.json"),
            ),
            Face::V2 => (include_str!("../fixtures/v2/create.json"), include_str!("../fixtures/v2/list.json")),
        };
        // The sandbox's own answers first.
        gateway.get(face.get_fresh()).await.unwrap();
        gateway.list(face.list()).await.unwrap();
        gateway.sandbox.fault(json!({ "body": participant, "times": 1 })).await;
        gateway.get(face.get_fresh()).await.unwrap();
        gateway.sandbox.fault(json!({ "body": page, "times": 1 })).await;
        gateway.list(ListParticipantsRequest { page_size: 7, ..face.list() }).await.unwrap();
        let scrape = Scrape::of(&gateway).await;
        for name in [KEYS, VALUES] {
            assert_eq!(scrape.drift(name, face), BTreeMap::new(), "{name}");
        }
    }

    async fn a_call_that_its_caller_left_is_counted(face) {
        let gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let mut client = gateway.client.clone();
        let call = tokio::spawn(async move { client.get_participant(face.get()).await.map(|_| ()) });
        gateway.sandbox.held(1).await;
        call.abort();
        let deadline = Instant::now() + PATIENCE;
        while Scrape::of(&gateway).await.calls("GetParticipant", "CANCELLED") < 1.0 {
            assert!(Instant::now() < deadline, "it is not counted");
        }
    }

    async fn nothing_of_a_caller_is_in_any_label(face) {
        let mut gateway = Gateway::start().await;
        let get = GetParticipantRequest { participant_id: "planted-identity".into(), ..face.get() };
        gateway.get(get).await.unwrap_err();
        let mut planted = face.newcomer(7);
        planted.addresses[0].address =
            if face == Face::V1 { "planted-identity".into() } else { "+15550117777".into() };
        gateway.create(face.create(planted)).await.unwrap();
        gateway.list(face.list()).await.unwrap();
        let text = Scrape::of(&gateway).await.0.join("\n");
        for secret in ["planted", "+1555", "CH0000", "conv_conversation", "sandbox\""] {
            assert!(!text.contains(secret), "{secret} in\n{text}");
        }
        // A label tells configured accounts apart, in the metrics that have it.
        let with_account = METRICS.iter().filter(|row| row.labels.contains(&"participant.account"));
        let names: Vec<_> = with_account.map(|row| row.prometheus).collect();
        let mut lines = text.lines().filter(|line| !names.iter().any(|name| line.starts_with(name)));
        assert!(lines.all(|line| !line.contains("AC0000")), "{text}");
    }
}

#[tokio::test]
async fn every_metric_of_the_table_is_there_and_no_other() {
    let mut gateway = Gateway::with(&[
        ("GATEWAY_LIMITS_WATCHERS", "1"),
        ("GATEWAY_UPSTREAM_MAX_CONCURRENCY", "1"),
        ("GATEWAY_UPSTREAM_MAX_QUEUE", "2"),
    ])
    .await;
    let _watcher = gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap();
    gateway.client.watch_participants(WatchParticipantsRequest::default()).await.unwrap_err();
    gateway.sandbox.fault(json!({ "status": 503, "times": 1 })).await;
    gateway.sandbox.fault(json!({ "body": r#"{"new":1,"last_read_timestamp":"x"}"#, "times": 1 })).await;
    for _ in 0..2 {
        gateway.get(Face::V1.get()).await.unwrap();
    }
    // One is sent, one waits for its turn, and one finds no room to wait.
    gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
    let mut calls = JoinSet::new();
    for _ in 0..3 {
        let mut client = gateway.client.clone();
        calls.spawn(async move { client.get_participant(Face::V1.get_fresh()).await.map(|_| ()) });
    }
    gateway.sandbox.held(1).await;
    let refused = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(told(&refused), (Code::ResourceExhausted, "LOCAL_CONCURRENCY".into()));
    gateway.sandbox.release().await;
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    let url = format!("http://{}/events", gateway.addresses.events.unwrap());
    let event = Event::new(Face::V1, "E1").json().to_string();
    assert_eq!(Delivery::to(&url, event, sandbox::AUTH_TOKEN).post(&gateway).await, 200);
    let scrape = Scrape::of(&gateway).await;
    // Spans are the process's, and no process of its own is behind this gateway; nor is there a bus, TLS, a
    // stream or a caller who has to prove anything.
    let absent = [".auth.", ".jwks.", ".telemetry.spans", ".bus.", ".tls.", ".kinesis."];
    let is_here = |row: &&Row| !absent.iter().any(|part| row.name.contains(part));
    for row in METRICS.iter().filter(is_here) {
        let series =
            if row.kind == "histogram" { format!("{}_count", row.prometheus) } else { row.prometheus.into() };
        let lines: Vec<_> =
            scrape.0.iter().filter(|line| line.split(['{', ' ']).next() == Some(series.as_str())).collect();
        assert!(!lines.is_empty(), "{series} is missing in\n{}", scrape.0.join("\n"));
        for line in lines {
            let labels = line.split_once('{').map_or("", |(_, labels)| labels.split_once('}').unwrap().0);
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let name = label.split('=').next().unwrap();
                assert!(
                    row.labels.iter().any(|known| known.replace('.', "_") == name),
                    "{name} of {}",
                    row.name
                );
            }
        }
    }
    let is_known = |line: &String| {
        line.starts_with("process_") || METRICS.iter().any(|row| line.starts_with(row.prometheus))
    };
    assert!(scrape.0.iter().all(is_known), "{}", scrape.0.join("\n"));
    assert_eq!(scrape.sum("participant_build_info", &[("service_version", env!("CARGO_PKG_VERSION"))]), 1.0);
}

#[tokio::test]
async fn two_gateways_in_one_process_count_apart() {
    let mut one = Gateway::start().await;
    let other = Gateway::start().await;
    one.get(Face::V1.get()).await.unwrap();
    assert_eq!(Scrape::of(&one).await.lookups("miss"), 1.0);
    assert_eq!(Scrape::of(&other).await.lookups("miss"), 0.0);
}
