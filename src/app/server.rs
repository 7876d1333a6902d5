//! What the gRPC listener answers with: the calls' layer around the services, in one list.

use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::{Builder, Error};

use crate::grpc::{Calls, Server, Services};
use crate::proto;

pub(super) fn services(
    calls: Calls,
    service: Server,
    health: HealthServer<impl Health>,
) -> Result<Services, Error> {
    // grpcurl before 1.8.7 asks for v1alpha only, newer tools for v1 first.
    let (reflection, reflection_alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let others = Routes::new(health).add_service(reflection).add_service(reflection_alpha).prepare();
    Ok(Services::new(calls, service, others))
}

/// With the descriptors of the error details: without them grpcurl cannot print an error's details.
fn reflection<'a>() -> Builder<'a> {
    Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
