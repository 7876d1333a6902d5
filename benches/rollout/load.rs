//! The calls, and what came of them. A failure is told by its grpc-status, and so is an answer that is not alice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{
    ConversationRef, GetParticipantRequest, Participant, ReadOptions, UpdateParticipantRequest,
};
use participant_gateway::sandbox::V1_CONVERSATION;
use tonic::transport::Channel;
use tonic::{Code, Status};

const ALICE: &str = "MB00000000000000000000000000000001";

pub(crate) type Client = ParticipantServiceClient<Channel>;

/// What the callers see.
#[derive(Default)]
pub(crate) struct Load {
    answered: AtomicU64,
    longest_us: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures().values().sum()
    }

    /// The longest call.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.load(Ordering::Relaxed))
    }

    /// Which failures, and how often.
    pub(crate) fn failures(&self) -> BTreeMap<String, u64> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A quarter of the numbers write, a quarter read past the cache, the others from it. Says whether it was answered.
    pub(crate) async fn call(&self, number: u64, client: Option<Client>) -> bool {
        let began = Instant::now();
        let result = match (client, number % 4) {
            (None, _) => Err(Status::unavailable("no replica is ready")),
            (Some(client), 0) => update(client, number).await,
            (Some(client), 1) => get(client, true).await,
            (Some(client), _) => get(client, false).await,
        };
        self.longest_us.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        let Err(status) = result else {
            self.answered.fetch_add(1, Ordering::SeqCst);
            return true;
        };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1;
        false
    }
}

fn conversation() -> Option<ConversationRef> {
    Some(ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() })
}

async fn get(mut client: Client, is_fresh: bool) -> Result<(), Status> {
    let max_age = is_fresh.then(prost_types::Duration::default);
    let request = GetParticipantRequest {
        conversation: conversation(),
        participant_id: "alice".into(),
        read_options: Some(ReadOptions { max_age, ..Default::default() }),
    };
    let answer = client.get_participant(request).await?.into_inner();
    is_alice(answer.participant)
}

async fn update(mut client: Client, number: u64) -> Result<(), Status> {
    let attributes = format!("{{\"by\":{number}}}");
    let request = UpdateParticipantRequest {
        conversation: conversation(),
        participant_id: ALICE.into(),
        participant: Some(Participant { attributes, ..Default::default() }),
        ..Default::default()
    };
    let answer = client.update_participant(request).await?.into_inner();
    is_alice(answer.participant)
}

fn is_alice(participant: Option<Participant>) -> Result<(), Status> {
    let is_alice = participant.is_some_and(|participant| participant.id == ALICE);
    is_alice.then_some(()).ok_or_else(|| Status::new(Code::DataLoss, "another participant was answered"))
}
