//! Who keeps to all rules: so many calls a second, whatever becomes of those before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::{ConversationRef, GetParticipantRequest, ReadOptions};
use participant_gateway::sandbox::{V1_CONVERSATION, V2_CONVERSATION};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::{Channel, Endpoint};

/// A call each so often.
const EACH: Duration = Duration::from_millis(10);
/// A call that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(1);

/// Seeded ones of v1 and v2.
const WHO: [(&str, &str); 2] =
    [(V1_CONVERSATION, "alice"), (V2_CONVERSATION, "conv_participant_00000000000000000000000001")];

/// What became of the calls of a phase.
#[derive(Default)]
pub(crate) struct Calls {
    latencies: Vec<Duration>,
    failed: BTreeMap<String, usize>,
}

impl Calls {
    pub(crate) fn count(&self) -> usize {
        self.latencies.len() + self.failures()
    }

    pub(crate) fn failures(&self) -> usize {
        self.failed.values().sum()
    }

    pub(crate) fn percent(&self) -> f64 {
        100.0 * self.latencies.len() as f64 / self.count().max(1) as f64
    }

    /// Of those that succeeded, in milliseconds: so many of a thousand are not slower.
    pub(crate) fn quantile(&mut self, thousandth: usize) -> f64 {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() * thousandth / 1000).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
    }

    pub(crate) fn why_failed(&self) -> String {
        let each: Vec<String> = self.failed.iter().map(|(why, count)| format!("{count} × {why}")).collect();
        each.join(", ")
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies.extend(&other.latencies);
        for (why, count) in &other.failed {
            *self.failed.entry(why.clone()).or_default() += count;
        }
    }
}

pub(crate) struct Good {
    client: ParticipantServiceClient<Channel>,
    made: usize,
}

impl Good {
    pub(crate) fn new(address: std::net::SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self { client: ParticipantServiceClient::new(endpoint.connect_lazy()), made: 0 }
    }

    /// All calls of so long, timed from the moment at which each was due.
    pub(crate) async fn calls_for(&mut self, time: Duration) -> Calls {
        let (ended, mut outcomes) = mpsc::unbounded_channel();
        let mut due = interval(EACH);
        // A call that is late is made all the same, and its wait counts.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + time;
        loop {
            let due = due.tick().await.into_std();
            if due >= end {
                break;
            }
            let (mut client, request, ended) = (self.client.clone(), self.next(), ended.clone());
            tokio::spawn(async move {
                let wanted = request.participant_id.clone();
                let mut request = tonic::Request::new(request);
                request.set_timeout(DEADLINE);
                let outcome = match timeout(DEADLINE, client.get_participant(request)).await {
                    Err(_) => Err("no answer in a second".to_owned()),
                    Ok(Err(status)) => Err(format!("{:?}", status.code())),
                    Ok(Ok(answer)) => is_it(&wanted, answer.into_inner().participant),
                };
                // Nobody listens any more where the whole run has ended.
                let _ = ended.send(outcome.map(|()| due.elapsed()));
            });
        }
        drop(ended);
        let mut calls = Calls::default();
        while let Some(outcome) = outcomes.recv().await {
            match outcome {
                Ok(latency) => calls.latencies.push(latency),
                Err(why) => *calls.failed.entry(why).or_default() += 1,
            }
        }
        calls
    }

    /// Of v1 and v2 by turns; each second one is from the cache.
    fn next(&mut self) -> GetParticipantRequest {
        self.made += 1;
        let (conversation_id, participant_id) = WHO[self.made % 2];
        let conversation =
            Some(ConversationRef { conversation_id: conversation_id.into(), ..Default::default() });
        let fresh = ReadOptions { max_age: Some(prost_types::Duration::default()), ..Default::default() };
        let read_options = (self.made % 4 < 2).then_some(fresh);
        GetParticipantRequest { conversation, participant_id: participant_id.into(), read_options }
    }
}

/// An answer about somebody else is none.
fn is_it(wanted: &str, told: Option<participant_gateway::proto::Participant>) -> Result<(), String> {
    let is_it = told.is_some_and(|participant| {
        participant.id == wanted || participant.addresses.iter().any(|address| address.address == wanted)
    });
    if is_it { Ok(()) } else { Err("another's answer".to_owned()) }
}
