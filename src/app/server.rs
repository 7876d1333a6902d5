//! The gRPC server: its limits, its layers and its services, in one list.

use std::time::Duration;

use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::{Builder, Error};
use tower::layer::util::{Identity, Stack};

use crate::grpc::{CallLayer, Service};
use crate::proto;
use crate::proto::participant_service_server::ParticipantServiceServer;

/// The server with everything but its listener.
pub(super) type Router = tonic::transport::server::Router<Stack<CallLayer, Identity>>;

pub(super) fn router(
    calls: CallLayer,
    service: ParticipantServiceServer<Service>,
    health: HealthServer<impl Health>,
) -> Result<Router, Error> {
    // grpcurl before 1.8.7 asks for v1alpha only, newer tools for v1 first.
    let (reflection, reflection_alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    Ok(Server::builder()
        // Without it one connection may open streams without bound, which costs gigabytes.
        .max_concurrent_streams(100)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .http2_max_header_list_size(16 * 1024)
        // tonic's own timeout and concurrency limits sit outside this layer, which would not see what they refuse.
        .layer(calls)
        .add_service(service)
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha))
}

/// With the descriptors of the error details: without them grpcurl cannot print an error's details.
fn reflection<'a>() -> Builder<'a> {
    Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
