//! What a client learns of the service without a proto file at hand, and what the proto files promise.

use participant_gateway::app::SERVICE_NAME;
use participant_gateway::proto::{FILE_DESCRIPTOR_SET, Message as _};
use prost_reflect::{DescriptorPool, Value};
use prost_types::FileDescriptorSet;
use prost_types::method_options::IdempotencyLevel;
use tonic::Request;
use tonic::transport::Endpoint;
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::*;

#[tokio::test]
async fn reflection_answers_in_both_of_its_versions() {
    let gateway = Gateway::start().await;
    let channel =
        Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc)).unwrap().connect().await.unwrap();

    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers =
        client.server_reflection_info(Request::new(tokio_stream::once(request))).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(
        names.iter().any(|name| name == SERVICE_NAME)
            && names.iter().any(|name| name == "grpc.health.v1.Health")
    );

    let symbol = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
        "google.rpc.ErrorInfo".into(),
    );
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers =
        client.server_reflection_info(Request::new(tokio_stream::once(request))).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) =
        answer.message_response
    else {
        panic!("{answer:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[test]
fn every_method_tells_whether_it_may_be_repeated() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let service =
        set.file.iter().flat_map(|file| &file.service).find(|service| service.name() == "ParticipantService");
    let levels: Vec<_> = service
        .unwrap()
        .method
        .iter()
        .map(|method| (method.name(), method.options.clone().unwrap_or_default().idempotency_level()))
        .collect();
    let expected = [
        ("GetParticipant", IdempotencyLevel::NoSideEffects),
        ("ListParticipants", IdempotencyLevel::NoSideEffects),
        ("StreamParticipants", IdempotencyLevel::NoSideEffects),
        ("BatchGetParticipants", IdempotencyLevel::NoSideEffects),
        ("CreateParticipant", IdempotencyLevel::IdempotencyUnknown),
        ("UpdateParticipant", IdempotencyLevel::Idempotent),
        ("DeleteParticipant", IdempotencyLevel::Idempotent),
        ("WatchParticipants", IdempotencyLevel::NoSideEffects),
        ("ListParticipantConversations", IdempotencyLevel::NoSideEffects),
    ];
    assert_eq!(levels, expected);
}

#[test]
fn every_field_that_can_hold_pii_is_marked() {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut marked: Vec<String> = Vec::new();
    for message in pool.all_messages().filter(|message| message.package_name() == "participant.v1") {
        for field in message.fields() {
            let options = field.options();
            if options.get_field_by_name("debug_redact").is_some_and(|value| *value == Value::Bool(true)) {
                marked.push(format!("{}.{}", message.name(), field.name()));
            }
        }
    }
    marked.sort();
    let expected = [
        "Address.address",
        "Address.display_name",
        "Address.projected_address",
        "Address.proxy_address",
        "BatchGetParticipantsRequest.participant_ids",
        "DeleteParticipantRequest.participant_id",
        "GetParticipantRequest.participant_id",
        "ListParticipantConversationsRequest.address",
        "ListParticipantConversationsRequest.identity",
        "Participant.addresses",
        "Participant.attributes",
        "Participant.display_name",
        "ParticipantConversation.addresses",
        "ParticipantConversation.attributes",
        "ParticipantConversation.created_by",
        "ParticipantConversation.friendly_name",
        "ParticipantConversation.unique_name",
        "UpdateParticipantRequest.participant_id",
    ];
    assert_eq!(marked, expected);
}
