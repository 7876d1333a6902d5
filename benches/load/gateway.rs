//! What is asked of the gateway, and with which settings it runs.

use bytes::Bytes;
use participant_gateway::proto::{
    ConversationRef, GetParticipantRequest, GetParticipantResponse, ReadOptions,
};
use prost::Message as _;

use crate::client::{Call, ask};
use crate::process::Process;

pub(crate) const CONVERSATION: &str = "CH00000000000000000000000000000001";
/// For any call, as `grpc-timeout` tells it.
pub(crate) const TIMEOUT: &str = "10S";
const GET: &str = "/participant.v1.ParticipantService/GetParticipant";

/// A cache that keeps what it has for longer than the benchmark takes, and as many requests under way as Envoy allows.
pub(crate) const CACHED: [(&str, &str); 3] = [
    ("GATEWAY_CACHE_TTL", "5h"),
    ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "5h"),
    ("GATEWAY_UPSTREAM_MAX_CONCURRENCY", "1024"),
];

/// Where an answer may come from.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Read {
    Cached,
    PastTheCache,
}

/// The SID of the participant of this number.
pub(crate) fn participant(number: u64) -> String {
    format!("MB{number:032}")
}

/// To get the participant of this number; any answer will do.
pub(crate) fn call(number: u64, read: Read) -> Call {
    let past_the_cache =
        ReadOptions { max_age: Some(prost_types::Duration::default()), allow_stale_on_error: None };
    let request = GetParticipantRequest {
        conversation: Some(ConversationRef { conversation_id: CONVERSATION.into(), ..Default::default() }),
        participant_id: participant(number),
        read_options: (read == Read::PastTheCache).then_some(past_the_cache),
    };
    Call { path: GET, request: request.encode_to_vec().into(), answer: Bytes::new(), timeout: TIMEOUT }
}

/// To get the first participant, with the answer that has to come, and the whole answer that came once.
pub(crate) async fn checked(gateway: &Process, read: Read) -> (Call, Bytes) {
    let mut call = call(1, read);
    // The first fills the cache.
    ask(gateway.address, &call).await;
    let answer = ask(gateway.address, &call).await;
    let decoded = GetParticipantResponse::decode(answer.clone()).expect("a message");
    let got = decoded.participant.as_ref().expect("a participant");
    assert_eq!((got.id.as_str(), got.conversation_id.as_str()), (participant(1).as_str(), CONVERSATION));
    assert!(got.encoded_len() > 300, "the answer is not the one that is meant");
    // What is told beside the participant differs from call to call.
    call.answer = GetParticipantResponse { read_info: None, ..decoded }.encode_to_vec().into();
    (call, answer)
}

/// Traces of 1 %, and metrics beside them, to this collector.
pub(crate) fn telemetry(collector: &str) -> [(&str, &str); 5] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
    ]
}
