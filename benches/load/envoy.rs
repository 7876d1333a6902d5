//! Envoy with `grpc_json_reverse_transcoder`: what else turns a gRPC call into a request for Twilio's JSON.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::client::{Call, ask};
use crate::gateway::TIMEOUT;
use crate::process::Process;

const GET: &str = "/benchmark.Conversations/GetParticipant";

/// `twilio.proto`'s, as far as it is needed here.
#[derive(Message)]
struct GetParticipantRequest {
    #[prost(string, tag = "1")]
    conversation_sid: String,
    #[prost(string, tag = "2")]
    participant_sid: String,
}

/// `twilio.proto`'s, as far as it is needed here.
#[derive(Message)]
struct Participant {
    #[prost(string, tag = "3")]
    sid: String,
    #[prost(string, tag = "5")]
    attributes: String,
}

/// The call, once it was answered as it should.
pub(crate) async fn checked(envoy: &Process, conversation: &str, participant: &str) -> Call {
    let request =
        GetParticipantRequest { conversation_sid: conversation.into(), participant_sid: participant.into() };
    let call =
        Call { path: GET, request: request.encode_to_vec().into(), answer: Bytes::new(), timeout: TIMEOUT };
    let answer = ask(envoy.address, &call).await;
    let decoded = Participant::decode(answer.clone()).expect("a message");
    assert_eq!(decoded.sid, participant);
    assert!(decoded.attributes.starts_with('{'), "attributes are a string of JSON");
    Call { answer, ..call }
}

/// The descriptors that the transcoder reads.
pub(crate) fn descriptors() -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load");
    let mut compiler = protox::Compiler::new([folder]).expect("a folder");
    compiler.include_imports(true).open_file("twilio.proto").expect("it compiles");
    compiler.encode_file_descriptor_set()
}

/// One listener, one upstream, and of the filters only those that are needed.
pub(crate) fn config(listen: SocketAddr, upstream: SocketAddr, descriptors: &Path) -> Value {
    let socket = |address: SocketAddr| json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } });
    let filter = |name: &str, kind: &str, mut config: Value| {
        config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"));
        json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": config })
    };
    let transcoder = json!({ "descriptor_path": descriptors });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "benchmark",
        "codec_type": "HTTP2",
        "generate_request_id": false,
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "twilio" } }],
        }] },
        "http_filters": [
            filter(
                "grpc_json_reverse_transcoder",
                "grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
                transcoder,
            ),
            filter("router", "router.v3.Router", json!({})),
        ],
    });
    json!({ "static_resources": {
        "listeners": [{
            "name": "grpc", "address": socket(listen),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
            }] }],
        }],
        "clusters": [{
            "name": "twilio", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": { "cluster_name": "twilio", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": socket(upstream) } },
            ] }] },
        }],
    } })
}
