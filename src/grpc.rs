//! The tonic service: decode, call `participants`, encode. No decision about participants is made here.

mod audit;
mod call;
mod deadline;
mod pace;
mod permit;
mod request;
mod server;
mod status;
mod stopping;
mod watch;

use std::pin::Pin;
use std::sync::Arc;
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

use crate::access::Sight;
use crate::ids::{Accounts, ApiVersion, Call};
use crate::participants::{Encoded, Error, Participants, Read, Streamed, Witness};
use crate::proto::participant_service_server::{ParticipantService, ParticipantServiceServer};
use crate::proto::{self, CacheStatus, Message as _, ReadInfo};
use call::Caller;
use deadline::Deadline;
use permit::{shown, shown_conversations};

/// The largest request. Legal ones are far smaller; up to here a caller is told which field is too long.
const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;

/// Names the service in paths.
const SERVICE_NAME: &str = <ParticipantServiceServer<Service> as tonic::server::NamedService>::NAME;

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
        let (opened, sight, request) = self.permitted(request)?;
        let request::Get { key, tolerance } = request::get(request, &self.accounts)?;
        let told = told(key.conversation.version);
        let read = self.participants.get(key, tolerance, opened.unary()).await.map_err(&told)?;
        let read_info = Some(read_info(&read));
        let participant = Some(match sight {
            Sight::Whole => read.value.bytes(),
            Sight::Masked => shown(read.value.decode().map_err(told)?, sight).encode_to_vec().into(),
        });
        Ok(Response::new(proto::EncodedGetParticipantResponse { participant, read_info }))
    }
}

impl Service {
    async fn create(
        &self,
        opened: &Opened,
        request: proto::CreateParticipantRequest,
        witness: Witness,
    ) -> Result<proto::Participant, Status> {
        let request::Created { conversation, create, request_id } = request::create(request, &self.accounts)?;
        let told = told(conversation.version);
        let created = self.participants.create(conversation, create, request_id, opened.unary(), witness);
        created.await.map_err(told)
    }

    fn preview_create(
        &self,
        request: proto::CreateParticipantRequest,
    ) -> Result<Option<proto::UpstreamRequest>, Status> {
        let request::Created { conversation, create, .. } = request::create(request, &self.accounts)?;
        let told = told(conversation.version);
        self.participants.preview_create(&conversation, &create).map_err(told)
    }

    async fn update(
        &self,
        opened: &Opened,
        request: proto::UpdateParticipantRequest,
        witness: Witness,
    ) -> Result<proto::Participant, Status> {
        let request::Updated { key, update } = request::update(request, &self.accounts)?;
        let told = told(key.conversation.version);
        self.participants.update(key, update, opened.unary(), witness).await.map_err(told)
    }

    async fn preview_update(
        &self,
        opened: &Opened,
        request: proto::UpdateParticipantRequest,
    ) -> Result<Option<proto::UpstreamRequest>, Status> {
        let request::Updated { key, update } = request::update(request, &self.accounts)?;
        let told = told(key.conversation.version);
        self.participants.preview_update(key, &update, opened.unary()).await.map_err(told)
    }

    async fn delete(
        &self,
        opened: &Opened,
        request: proto::DeleteParticipantRequest,
        witness: Witness,
    ) -> Result<(), Status> {
        let request::Delete { key, webhook_enabled } = request::delete(request, &self.accounts)?;
        let told = told(key.conversation.version);
        self.participants.delete(key, webhook_enabled, opened.unary(), witness).await.map_err(told)
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
        let (opened, sight, request) = self.permitted(request)?;
        let request::List { conversation, size, cursor, tolerance } =
            request::list(request, &self.accounts, self.participants.page_tokens())?;
        let read = self.participants.list(&conversation, size, &cursor, tolerance, opened.unary());
        let read = read.await.map_err(told(conversation.version))?;
        let read_info = Some(read_info(&read));
        Ok(Response::new(proto::ListParticipantsResponse {
            participants: read.value.content.items.iter().map(|one| shown(one.clone(), sight)).collect(),
            next_page_token: read.value.next,
            previous_page_token: read.value.previous,
            read_info,
        }))
    }

    async fn batch_get_participants(
        &self,
        request: Request<proto::BatchGetParticipantsRequest>,
    ) -> Result<Response<proto::BatchGetParticipantsResponse>, Status> {
        let (opened, sight, request) = self.permitted(request)?;
        let request::BatchGet { conversation, ids, tolerance, partial } =
            request::batch_get(request, &self.accounts)?;
        let version = conversation.version;
        let reads = self.participants.batch_get(&conversation, &ids, partial, tolerance, opened.unary());
        let mut answer = proto::BatchGetParticipantsResponse::default();
        for (index, read) in (0..).zip(reads.await) {
            match read {
                Ok(read) => {
                    answer.read_info.push(read_info(&read));
                    answer.participants.push(shown(read.value.decode().map_err(told(version))?, sight));
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
        let (opened, _, request) = self.permitted(request)?;
        let permit = self.permit(&opened, &request);
        let request::Stream { conversation, size } = request::stream(request, &self.accounts)?;
        let told = told(conversation.version);
        let stream = self.participants.stream(conversation, size, opened.stream());
        let answers = stream.map(move |item| {
            let Streamed { participant, fetched } = item.map_err(&told)?;
            Ok(proto::StreamParticipantsResponse {
                participant: Some(shown(participant, permit.now()?)),
                read_info: Some(info(CacheStatus::Bypass, fetched)),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn create_participant(
        &self,
        request: Request<proto::CreateParticipantRequest>,
    ) -> Result<Response<proto::CreateParticipantResponse>, Status> {
        let (opened, sight, request) = self.permitted(request)?;
        let mut answer = proto::CreateParticipantResponse::default();
        if request.validate_only {
            answer.upstream_request = self.preview_create(request)?;
            return Ok(Response::new(answer));
        }
        let record = self.record(&opened, &request);
        let created = self.create(&opened, request, record.witness()).await;
        record.answered(&created);
        answer.participant = Some(shown(created?, sight));
        Ok(Response::new(answer))
    }

    async fn update_participant(
        &self,
        request: Request<proto::UpdateParticipantRequest>,
    ) -> Result<Response<proto::UpdateParticipantResponse>, Status> {
        let (opened, sight, request) = self.permitted(request)?;
        let mut answer = proto::UpdateParticipantResponse::default();
        if request.validate_only {
            answer.upstream_request = self.preview_update(&opened, request).await?;
            return Ok(Response::new(answer));
        }
        let record = self.record(&opened, &request);
        let updated = self.update(&opened, request, record.witness()).await;
        record.answered(&updated);
        answer.participant = Some(shown(updated?, sight));
        Ok(Response::new(answer))
    }

    async fn delete_participant(
        &self,
        request: Request<proto::DeleteParticipantRequest>,
    ) -> Result<Response<proto::DeleteParticipantResponse>, Status> {
        let (opened, _, request) = self.permitted(request)?;
        let record = self.record(&opened, &request);
        let deleted = self.delete(&opened, request, record.witness()).await;
        record.answered(&deleted);
        deleted.map(|()| Response::new(proto::DeleteParticipantResponse {}))
    }

    type WatchParticipantsStream =
        Pin<Box<dyn Stream<Item = Result<proto::WatchParticipantsResponse, Status>> + Send>>;

    async fn watch_participants(
        &self,
        request: Request<proto::WatchParticipantsRequest>,
    ) -> Result<Response<Self::WatchParticipantsStream>, Status> {
        let (opened, watched, request) = self.permitted_watch(request)?;
        let request::Watch { filter, after } = request::watch(request, &self.accounts)?;
        let watch = self.participants.watch(filter, after).map_err(|error| status::of_watch(&error))?;
        let deadline = opened.stream().deadline;
        Ok(Response::new(Box::pin(watch::answers(watch, watched, self.heartbeat, deadline))))
    }

    async fn list_participant_conversations(
        &self,
        request: Request<proto::ListParticipantConversationsRequest>,
    ) -> Result<Response<proto::ListParticipantConversationsResponse>, Status> {
        let (opened, _, request) = self.permitted(request)?;
        let request::ListConversations { version, person, size, cursor, tolerance } =
            request::list_conversations(request, &self.accounts, self.participants.page_tokens())?;
        let of = (version, &person);
        let read = self.participants.list_conversations(of, size, &cursor, tolerance, opened.unary());
        let read = read.await.map_err(told(version))?;
        let read_info = Some(read_info(&read));
        Ok(Response::new(proto::ListParticipantConversationsResponse {
            conversations: shown_conversations(&read.value.content.items, &person.account, &opened),
            next_page_token: read.value.next,
            read_info,
        }))
    }
}

/// What a request's headers and its connection say about its call; in the extensions of every request.
#[derive(Clone)]
struct Opened {
    deadline: Deadline,
    caller: Arc<Caller>,
    began: Instant,
    is_repetition: bool,
}

impl Opened {
    fn new(deadline: Deadline, caller: Arc<Caller>, began: Instant, headers: &HeaderMap) -> Self {
        // gRFC A6: clients and meshes that repeat a call count how often they did.
        let attempts = headers.get("grpc-previous-rpc-attempts");
        Self { deadline, caller, began, is_repetition: attempts.is_some_and(|attempts| attempts != "0") }
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
        Call { deadline, caller: self.caller.identity.id(), is_repetition: self.is_repetition }
    }
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
