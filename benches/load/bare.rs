//! The ceiling that users of tonic know: a server that has the answer ready, and clones and encodes it for each call.

use std::pin::Pin;

use futures_util::Stream;
use participant_gateway::proto::participant_service_server::{ParticipantService, ParticipantServiceServer};
use participant_gateway::proto::*;
use tonic::{Request, Response, Status};

pub(crate) struct Bare {
    answer: GetParticipantResponse,
}

pub(crate) fn service(answer: GetParticipantResponse) -> ParticipantServiceServer<Bare> {
    ParticipantServiceServer::new(Bare { answer })
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("the bare server only gets"))
}

#[tonic::async_trait]
impl ParticipantService for Bare {
    type StreamParticipantsStream = Answers<StreamParticipantsResponse>;
    type WatchParticipantsStream = Answers<WatchParticipantsResponse>;

    async fn get_participant(&self, _: Request<GetParticipantRequest>) -> Answer<GetParticipantResponse> {
        Ok(Response::new(self.answer.clone()))
    }

    async fn list_participants(
        &self,
        _: Request<ListParticipantsRequest>,
    ) -> Answer<ListParticipantsResponse> {
        none()
    }

    async fn stream_participants(
        &self,
        _: Request<StreamParticipantsRequest>,
    ) -> Answer<Self::StreamParticipantsStream> {
        none()
    }

    async fn batch_get_participants(
        &self,
        _: Request<BatchGetParticipantsRequest>,
    ) -> Answer<BatchGetParticipantsResponse> {
        none()
    }

    async fn create_participant(
        &self,
        _: Request<CreateParticipantRequest>,
    ) -> Answer<CreateParticipantResponse> {
        none()
    }

    async fn update_participant(
        &self,
        _: Request<UpdateParticipantRequest>,
    ) -> Answer<UpdateParticipantResponse> {
        none()
    }

    async fn delete_participant(
        &self,
        _: Request<DeleteParticipantRequest>,
    ) -> Answer<DeleteParticipantResponse> {
        none()
    }

    async fn watch_participants(
        &self,
        _: Request<WatchParticipantsRequest>,
    ) -> Answer<Self::WatchParticipantsStream> {
        none()
    }

    async fn list_participant_conversations(
        &self,
        _: Request<ListParticipantConversationsRequest>,
    ) -> Answer<ListParticipantConversationsResponse> {
        none()
    }
}
