//! `participant-gateway probe`: what a gateway looks like to its callers, step by step, for images that hold no other tool.
//!
//! It is a client like any other: of the health protocol, of reflection, and of one read that goes to Twilio. What it sees
//! of participants is their number.

use std::fmt;
use std::time::Duration;

use futures_util::stream;
use http::uri::Authority;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{self, Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt as _;

use crate::grpc::{DOMAIN, Reason, TABLE, code_name};
use crate::proto::participant_service_client::ParticipantServiceClient;
use crate::proto::participant_service_server::SERVICE_NAME;
use crate::proto::{ConversationRef, ListParticipantsRequest, ReadOptions};

/// What is probed, and how.
#[derive(Debug)]
pub struct Settings {
    /// The gateway's gRPC listener.
    pub address: Authority,
    /// All steps together may take so long.
    pub timeout: Duration,
    /// What is read, if anything is.
    pub read: Option<Read>,
}

/// The read that ends a probe.
#[derive(Debug)]
pub struct Read {
    /// The conversation whose participants are listed.
    pub conversation: ConversationRef,
    /// Twilio is to say that there is none: that proves credentials and egress, too.
    pub expects_not_found: bool,
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
#[error("FAILED  {step}: {cause} ({took})\n        next: {}", cause.what_to_do())]
pub struct Failed {
    step: String,
    cause: Cause,
    took: Millis,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("no connection: {}", root(.0))]
    Unreachable(transport::Error),
    #[error("no answer in time")]
    Late,
    #[error("{}", told(.0))]
    Call(Box<Status>),
    #[error("{}", .0.as_str_name())]
    NotServing(ServingStatus),
    #[error("{SERVICE_NAME} is not among the services")]
    NotListed,
    #[error("the conversation exists")]
    Found,
}

impl From<Status> for Cause {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl Cause {
    fn what_to_do(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => {
                "look whether it runs, at the address, and at what may block the way: endpoints, network policies"
            }
            Self::Late => "read the log of the gateway; if it is only slow, raise --timeout",
            Self::NotServing(_) => "it starts or drains: try again, or another replica",
            Self::NotListed => "another server answers there: look at the address",
            Self::Found => "leave --expect-not-found out",
            Self::Call(status) => match (reason(status), status.code()) {
                (Some(reason), _) => reason.what_to_do(),
                (None, Code::Unimplemented | Code::NotFound) => {
                    "another server answers there: look at the address"
                }
                (None, Code::Unauthenticated | Code::PermissionDenied) => {
                    "something on the way refuses this caller: look at the mesh's policies"
                }
                (None, _) => "read the logs of the gateway and of what stands before it",
            },
        }
    }
}

/// The gateway's own reason for an error; `None` where another has made it.
fn reason(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    TABLE.iter().map(|row| row.reason).find(|reason| reason.as_str() == info.reason)
}

fn told(status: &Status) -> String {
    let reason = reason(status).map(|reason| format!(", {}", reason.as_str())).unwrap_or_default();
    // Another server may have written it: a terminal is not to obey it.
    let message = status.message().replace(char::is_control, " ");
    format!("{}{reason}: {message}", code_name(status.code()))
}

/// The innermost cause: those around it say only that a connection failed.
fn root(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, root)
}

#[derive(Clone, Copy, Debug)]
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", self.0.as_secs_f64() * 1000.0)
    }
}

/// Takes the steps one after another, up to the first that fails; `say` gets a line for each that passes.
pub async fn run(settings: Settings, say: impl Fn(String)) -> Result<(), Failed> {
    let Settings { address, timeout, read } = settings;
    let steps = Steps { deadline: Instant::now() + timeout, say };
    let channel = steps.take("connection", connect(&address)).await?;
    for service in ["", SERVICE_NAME] {
        steps.take(&format!("health of {service:?}"), health(channel.clone(), service)).await?;
    }
    steps.take("reflection", reflection(channel.clone())).await?;
    if let Some(read) = read {
        steps.take("ListParticipants", list(channel, read)).await?;
    }
    Ok(())
}

struct Steps<S> {
    deadline: Instant,
    say: S,
}

impl<S: Fn(String)> Steps<S> {
    /// Beside its result, a step tells what it has seen.
    async fn take<T>(
        &self,
        step: &str,
        work: impl Future<Output = Result<(T, String), Cause>>,
    ) -> Result<T, Failed> {
        let began = Instant::now();
        let result = timeout_at(self.deadline, work).await.unwrap_or(Err(Cause::Late));
        let took = Millis(began.elapsed());
        let (result, seen) = result.map_err(|cause| Failed { step: step.to_owned(), cause, took })?;
        (self.say)(format!("ok      {step}: {seen} ({took})"));
        Ok(result)
    }
}

async fn connect(address: &Authority) -> Result<(Channel, String), Cause> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(Cause::Unreachable)?;
    let channel = endpoint.connect().await.map_err(Cause::Unreachable)?;
    Ok((channel, address.to_string()))
}

async fn health(channel: Channel, service: &str) -> Result<((), String), Cause> {
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await?.into_inner().status() {
        ServingStatus::Serving => Ok(((), ServingStatus::Serving.as_str_name().to_owned())),
        status => Err(Cause::NotServing(status)),
    }
}

async fn reflection(channel: Channel) -> Result<((), String), Cause> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(stream::iter([request])).await?.into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    match answer {
        Some(MessageResponse::ListServicesResponse(list))
            if list.service.iter().any(|service| service.name == SERVICE_NAME) =>
        {
            Ok(((), format!("lists {SERVICE_NAME}")))
        }
        _ => Err(Cause::NotListed),
    }
}

async fn list(channel: Channel, read: Read) -> Result<((), String), Cause> {
    let request = ListParticipantsRequest {
        conversation: Some(read.conversation),
        page_size: 1,
        // An answer from the cache would prove neither credentials nor egress.
        read_options: Some(ReadOptions {
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        }),
        ..ListParticipantsRequest::default()
    };
    let answer = ParticipantServiceClient::new(channel).list_participants(request).await;
    match answer {
        Ok(_) if read.expects_not_found => Err(Cause::Found),
        Ok(answer) => {
            let list = answer.into_inner();
            let rest = if list.next_page_token.is_empty() { "" } else { ", and there are more" };
            Ok(((), format!("{} from Twilio{rest}", list.participants.len())))
        }
        Err(status) if read.expects_not_found && reason(&status) == Some(Reason::ConversationNotFound) => {
            Ok(((), "Twilio knows no such conversation, as expected".to_owned()))
        }
        Err(status) => Err(status.into()),
    }
}
