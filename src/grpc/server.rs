//! The contract's service. `GetParticipant` is answered with what the cache holds as it is, which is encoded; to take it apart
//! only to write it anew would be the largest part of what the gateway itself does for a hit.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Body;
use tonic::server::Grpc;
use tower::service_fn;

use super::{MAX_REQUEST_BYTES, Service};
use crate::proto::ParticipantCodec;
use crate::proto::participant_service_server::ParticipantServiceServer;

const GET_PARTICIPANT: &str = "/participant.v1.ParticipantService/GetParticipant";

/// The contract's service.
#[derive(Clone)]
pub struct Server {
    service: Arc<Service>,
    generated: ParticipantServiceServer<Service>,
}

impl Server {
    pub(super) fn new(service: Service) -> Self {
        let service = Arc::new(service);
        // Of what is written there is no bound: an answer is as large as what Twilio answered, which
        // `upstream.max_response_bytes` bounds, and a caller that has set its own bound higher than 4 MiB shall have it.
        let generated = ParticipantServiceServer::from_arc(service.clone());
        Self { service, generated: generated.max_decoding_message_size(MAX_REQUEST_BYTES) }
    }
}

impl<B> tower::Service<http::Request<B>> for Server
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != GET_PARTICIPANT {
            return self.generated.call(request);
        }
        let service = self.service.clone();
        let get = service_fn(move |request| {
            let service = service.clone();
            async move { service.get(request).await }
        });
        Box::pin(async move {
            let mut grpc = Grpc::new(ParticipantCodec::default())
                .apply_max_message_size_config(Some(MAX_REQUEST_BYTES), None);
            Ok(grpc.unary(get, request).await)
        })
    }
}
