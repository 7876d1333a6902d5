//! The tonic service: decode, call `participants`, encode. No decision about participants is made here.

mod call;
mod deadline;
mod pace;
mod request;
mod server;
mod status;
mod stopping;
mod watch;

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _};
use http::HeaderMap;
use prost_types::Timestamp;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

pub use call::{Answer, CallLimits, CallService, Calls, Services, code_name};
pub use pace::paced;
pub use server::Server;
pub use status::{DOMAIN, On, Reason, Retry, Row, TABLE, catalogue};

use crate::ids::{Accounts, ApiVersion, Call, CallerId};
use crate::participants::{Encoded, Error, Participants, Read, Streamed};
use crate::proto::participant_service_server::ParticipantService;
use crate::proto::{self, CacheStatus, ReadInfo};
use deadline::Deadline;

/// The largest request. Legal ones are far smaller; up to here a caller is told which field is too long.
const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;

/// `participant.v1.ParticipantService` over the participants of these accounts. It expects [`CallService`] around it.
/// `heartbeat` is how long a watcher hears nothing at most.
pub fn service(participants: Participants, accounts: Accounts, heartbeat: Duration) -> Server {
    Server::new(Service { participants, accounts, heartbeat })
}

/// The service's methods.
pub struct Service {
    participants: Participants,
    accounts: Accounts,
    heartbeat: Duration,
}

impl Service {
    async fn get(
        &self,
        request: Request<proto::GetParticipantRequest>,
    ) -> Result<Response<proto::EncodedGetParticipantResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::Get { key, tolerance } = request::get(request, &self.accounts)?;
        let told = told(key.conversation.version);
        let read = self.participants.get(key, tolerance, opened.unary()).await.map_err(told)?;
        let read_info = Some(read_info(&read));
        let participant = Some(read.value.bytes());
        Ok(Response::new(proto::EncodedGetParticipantResponse { participant, read_info }))
    }
}

#[tonic::async_trait]
impl ParticipantService for Service {
    async fn get_participant(
        &self,
        request: Request<proto::GetParticipantRequest>,
    ) -> Result<Response<proto::GetParticipantResponse>, Status> {
        // `Server` answers without this; the contract is whole all the same.
        let proto::EncodedGetParticipantResponse { participant, read_info } =
            self.get(request).await?.into_inner();
        let participant = participant.map(|bytes| Encoded::from(bytes).decode()).transpose();
        let participant = participant.map_err(|_| status::plain(Reason::Internal))?;
        Ok(Response::new(proto::GetParticipantResponse { participant, read_info }))
    }

    async fn list_participants(
        &self,
        request: Request<proto::ListParticipantsRequest>,
    ) -> Result<Response<proto::ListParticipantsResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::List { conversation, size, cursor, tolerance } =
            request::list(request, &self.accounts, self.participants.page_tokens())?;
        let read = self.participants.list(&conversation, size, &cursor, tolerance, opened.unary());
        let read = read.await.map_err(told(conversation.version))?;
        let read_info = Some(read_info(&read));
        Ok(Response::new(proto::ListParticipantsResponse {
            participants: read.value.content.items.clone(),
            next_page_token: read.value.next,
            previous_page_token: read.value.previous,
            read_info,
        }))
    }

    async fn batch_get_participants(
        &self,
        request: Request<proto::BatchGetParticipantsRequest>,
    ) -> Result<Response<proto::BatchGetParticipantsResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::BatchGet { conversation, ids, tolerance, partial } =
            request::batch_get(request, &self.accounts)?;
        let version = conversation.version;
        let reads = self.participants.batch_get(&conversation, &ids, partial, tolerance, opened.unary());
        let mut answer = proto::BatchGetParticipantsResponse::default();
        for (index, read) in (0..).zip(reads.await) {
            match read {
                Ok(read) => {
                    answer.read_info.push(read_info(&read));
                    answer.participants.push(read.value.decode().map_err(told(version))?);
                }
                Err(error) if partial => {
                    answer.failed_requests.insert(index, status::of_part(&error, version));
                }
                Err(error) => return Err(status::of_batch(&error, version, index)),
            }
        }
        Ok(Response::new(answer))
    }

    type StreamParticipantsStream =
        Pin<Box<dyn Stream<Item = Result<proto::StreamParticipantsResponse, Status>> + Send>>;

    async fn stream_participants(
        &self,
        request: Request<proto::StreamParticipantsRequest>,
    ) -> Result<Response<Self::StreamParticipantsStream>, Status> {
        let (opened, request) = opened(request)?;
        let request::Stream { conversation, size } = request::stream(request, &self.accounts)?;
        let told = told(conversation.version);
        let stream = self.participants.stream(conversation, size, opened.stream());
        let answers = stream.map(move |item| match item {
            Ok(Streamed { participant, fetched }) => Ok(proto::StreamParticipantsResponse {
                participant: Some(participant),
                read_info: Some(info(CacheStatus::Bypass, fetched)),
            }),
            Err(error) => Err(told(error)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn create_participant(
        &self,
        request: Request<proto::CreateParticipantRequest>,
    ) -> Result<Response<proto::CreateParticipantResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::Created { conversation, create, request_id, validate_only } =
            request::create(request, &self.accounts)?;
        let told = told(conversation.version);
        if validate_only {
            let upstream_request = self.participants.preview_create(&conversation, &create).map_err(told)?;
            return Ok(Response::new(proto::CreateParticipantResponse {
                participant: None,
                upstream_request,
            }));
        }
        let created = self.participants.create(conversation, create, request_id, opened.unary()).await;
        let participant = Some(created.map_err(told)?);
        Ok(Response::new(proto::CreateParticipantResponse { participant, upstream_request: None }))
    }

    async fn update_participant(
        &self,
        request: Request<proto::UpdateParticipantRequest>,
    ) -> Result<Response<proto::UpdateParticipantResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::Updated { key, update, validate_only } = request::update(request, &self.accounts)?;
        let told = told(key.conversation.version);
        if validate_only {
            let shown = self.participants.preview_update(key, &update, opened.unary()).await;
            let upstream_request = shown.map_err(told)?;
            return Ok(Response::new(proto::UpdateParticipantResponse {
                participant: None,
                upstream_request,
            }));
        }
        let updated = self.participants.update(key, update, opened.unary()).await;
        let participant = Some(updated.map_err(told)?);
        Ok(Response::new(proto::UpdateParticipantResponse { participant, upstream_request: None }))
    }

    async fn delete_participant(
        &self,
        request: Request<proto::DeleteParticipantRequest>,
    ) -> Result<Response<proto::DeleteParticipantResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::Delete { key, webhook_enabled } = request::delete(request, &self.accounts)?;
        let told = told(key.conversation.version);
        self.participants.delete(key, webhook_enabled, opened.unary()).await.map_err(told)?;
        Ok(Response::new(proto::DeleteParticipantResponse {}))
    }

    type WatchParticipantsStream =
        Pin<Box<dyn Stream<Item = Result<proto::WatchParticipantsResponse, Status>> + Send>>;

    async fn watch_participants(
        &self,
        request: Request<proto::WatchParticipantsRequest>,
    ) -> Result<Response<Self::WatchParticipantsStream>, Status> {
        let (opened, request) = opened(request)?;
        let request::Watch { filter, after } = request::watch(request, &self.accounts)?;
        let watch = self.participants.watch(filter, after).map_err(|error| status::of_watch(&error))?;
        Ok(Response::new(Box::pin(watch::answers(watch, self.heartbeat, opened.stream().deadline))))
    }

    async fn list_participant_conversations(
        &self,
        request: Request<proto::ListParticipantConversationsRequest>,
    ) -> Result<Response<proto::ListParticipantConversationsResponse>, Status> {
        let (opened, request) = opened(request)?;
        let request::ListConversations { version, person, size, cursor, tolerance } =
            request::list_conversations(request, &self.accounts, self.participants.page_tokens())?;
        let person = (version, &person);
        let read = self.participants.list_conversations(person, size, &cursor, tolerance, opened.unary());
        let read = read.await.map_err(told(version))?;
        let read_info = Some(read_info(&read));
        Ok(Response::new(proto::ListParticipantConversationsResponse {
            conversations: read.value.content.items.clone(),
            next_page_token: read.value.next,
            read_info,
        }))
    }
}

/// What a request's headers and its connection say about its call; in the extensions of every request.
#[derive(Clone, Copy)]
struct Opened {
    deadline: Deadline,
    caller: CallerId,
    is_repetition: bool,
}

impl Opened {
    fn new(deadline: Deadline, caller: CallerId, headers: &HeaderMap) -> Self {
        // gRFC A6: clients and meshes that repeat a call count how often they did.
        let attempts = headers.get("grpc-previous-rpc-attempts");
        Self { deadline, caller, is_repetition: attempts.is_some_and(|attempts| attempts != "0") }
    }

    /// Of a call with one answer.
    fn unary(&self) -> Call {
        self.until(self.deadline.unary())
    }

    /// Of a stream.
    fn stream(&self) -> Call {
        self.until(self.deadline.stream())
    }

    fn until(&self, deadline: Instant) -> Call {
        Call { deadline, caller: self.caller, is_repetition: self.is_repetition }
    }
}

fn opened<T>(request: Request<T>) -> Result<(Opened, T), Status> {
    // Only a service that stands alone has none.
    let opened = request.extensions().get::<Opened>().copied();
    Ok((opened.ok_or_else(|| status::plain(Reason::Internal))?, request.into_inner()))
}

/// What the caller is told of a failure, about a conversation of this version.
fn told(version: ApiVersion) -> impl Fn(Error) -> Status {
    move |error| status::of(&error, version)
}

fn read_info<T>(read: &Read<T>) -> ReadInfo {
    info(read.status, read.fetched)
}

fn info(status: CacheStatus, fetched: SystemTime) -> ReadInfo {
    ReadInfo { cache_status: status.into(), fetch_time: Some(Timestamp::from(fetched)) }
}
