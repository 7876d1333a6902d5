//! One call of any kind: how long its caller waits, and how it ended.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{Participant, ReadInfo};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::model::{Before, Conversation, Told};
use crate::processes::Twilio;
use crate::tally::{Failure, Tally};

pub(crate) type Client = ParticipantServiceClient<Channel>;

/// Longer than `upstream.total_timeout`.
const PATIENCE: Duration = Duration::from_secs(20);
const FEWEST: usize = 15;
const MOST: usize = 60;

/// Somebody who calls.
pub(crate) struct Caller<'a> {
    pub(crate) client: Client,
    /// Its connection may break at any time.
    pub(crate) is_fragile: bool,
    pub(crate) conversation: &'a Conversation,
    pub(crate) tally: &'a Tally,
    pub(crate) twilio: &'a Twilio,
}

/// A method, as it is counted.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) is_write: bool,
    /// A failure that is an answer, which the caller judges.
    pub(crate) judged: Option<Code>,
}

/// How long a caller waits.
#[derive(Clone, Copy, PartialEq)]
enum Patience {
    Long,
    Deadline(Duration),
    /// Cancels the call then.
    Leaves(Duration),
}

impl Patience {
    fn any() -> Self {
        match fastrand::u64(..20) {
            0 => Self::Deadline(Duration::from_millis(fastrand::u64(1..300))),
            1 => Self::Leaves(Duration::from_millis(fastrand::u64(..50))),
            _ => Self::Long,
        }
    }
}

impl Caller<'_> {
    /// One call of any kind.
    pub(crate) async fn call(self) {
        let there = self.conversation.size();
        // Where writes are rare, too, most reads find something cached.
        let most = if self.conversation.is_quiet && fastrand::u8(..10) > 0 { 83 } else { 100 };
        match fastrand::u32(..most) {
            _ if there < FEWEST => self.create().await,
            0..40 => self.get(false, true).await,
            40..50 => self.get(true, true).await,
            50..55 => self.get(false, false).await,
            55..60 => self.get_by_identity().await,
            60..70 => self.list().await,
            70..78 => self.batch().await,
            78..80 => self.stream().await,
            80..83 => self.conversations().await,
            83..87 if there < MOST => self.create().await,
            87..91 if there > MOST / 2 => self.remove().await,
            _ => self.update().await,
        }
    }

    /// Counts how it ended, unless it ended well.
    pub(crate) async fn send<M, T, F>(
        &self,
        method: &Method,
        message: M,
        call: impl FnOnce(Client, Request<M>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (patience, is_calm) = (Patience::any(), self.tally.is_calm());
        let mut request = Request::new(message);
        request.set_timeout(match patience {
            Patience::Deadline(deadline) => deadline,
            Patience::Long | Patience::Leaves(_) => PATIENCE,
        });
        let call = call(self.client.clone(), request);
        let result = match patience {
            Patience::Leaves(after) => tokio::time::timeout(after, call).await,
            Patience::Long | Patience::Deadline(_) => Ok(call.await),
        };
        let failure = match result {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => Failure::from(status),
            Err(_) => Failure::LEFT,
        };
        self.tally.count(method.name, &failure.label());
        if failure.code.is_some() && failure.code == method.judged {
            return Err(failure);
        }
        let is_own_fault = self.is_fragile || patience != Patience::Long;
        if !failure.is_expected(method.is_write, is_own_fault) {
            self.tally.wrong(method.name, &failure.label());
        } else if is_calm && self.tally.is_calm() && !is_own_fault {
            self.tally.with(|counts| {
                *counts.failed_in_calm.entry((method.name, failure.label())).or_default() += 1;
            });
        }
        Err(failure)
    }

    pub(crate) fn count(&self, method: &Method, outcome: &str) {
        self.tally.count(method.name, outcome);
    }

    pub(crate) fn count_read(&self, method: &Method, info: Option<&ReadInfo>) {
        let status = info.map(|info| info.cache_status().as_str_name()).unwrap_or_default();
        self.count(method, &format!("OK {}", status.trim_start_matches("CACHE_STATUS_")));
    }

    pub(crate) fn check(&self, method: &Method, judged: Result<(), String>) {
        self.tally.check(method.name, judged);
    }

    /// What it tells of a participant; nothing where that is wrong in itself.
    pub(crate) fn told(&self, method: &Method, participant: Option<&Participant>) -> Option<Told> {
        let read = participant.ok_or_else(|| "no participant".to_owned());
        let conversation = self.conversation;
        let told = read.and_then(|participant| Told::read(conversation.face, &conversation.id, participant));
        told.map_err(|what| self.tally.wrong(method.name, &what)).ok()
    }

    pub(crate) fn judge_all(
        &self,
        method: &Method,
        before: &HashMap<String, Before>,
        participants: &[Participant],
    ) -> Vec<Told> {
        let told = participants.iter().filter_map(|participant| self.told(method, Some(participant)));
        let told: Vec<Told> = told.collect();
        for one in &told {
            self.check(method, self.conversation.judge(before, one));
        }
        told
    }
}
