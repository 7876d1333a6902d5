//! Creates: with a request id each is done once, however often and at whichever replica it is asked for.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::cached::bytes;
use super::{Error, Participants, Witness, outcome};
use crate::cache::{Claim, Kept, Settled, Slot};
use crate::feed::{IdentifiedRequest, RequestClaim};
use crate::ids::{Call, Conversation, RequestId};
use crate::proto::{Participant, UpstreamRequest};
use crate::twilio::{Agreement, Create, Prepared};

/// The contract's promise for request ids. Outcomes are of the size of a participant, 1 to 6 KiB.
pub(super) const KEPT_OUTCOMES: Kept<Result<Participant, Error>> =
    Kept { lifetime: Duration::from_secs(600), max_bytes: 64 * 1024 * 1024, weight };

/// How often a replica asks what became of a request that another one does.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

fn weight(outcome: &Result<Participant, Error>) -> u32 {
    let bytes = outcome.as_ref().map_or(0, bytes);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Participants {
    /// What a create would send.
    pub fn preview_create(
        &self,
        conversation: &Conversation,
        create: &Create,
    ) -> Result<Option<UpstreamRequest>, Error> {
        Ok(self.twilio.prepare_create(conversation, create, self.twilio.full_budget())?.shown())
    }

    /// Adds a participant. With a request id, once: who comes again with the same id and the same request is answered the
    /// first outcome.
    pub async fn create(
        &self,
        conversation: Conversation,
        create: Create,
        request_id: Option<RequestId>,
        call: Call,
        witness: Witness,
    ) -> Result<Participant, Error> {
        if let Some(id) = request_id {
            return self.create_with_id(&conversation, &create, id, call, &witness).await;
        }
        let prepared = self.twilio.prepare_create(&conversation, &create, self.twilio.budget(call))?;
        let participants = self.clone();
        let write = move |agreement: Agreement| async move {
            let result = participants.send_create(&conversation, &create, prepared, &agreement).await;
            witness.saw(result.as_ref().map(Some));
            result
        };
        self.detached(call, write).await
    }

    /// Asks this process first, and then the other replicas, until one has done it.
    async fn create_with_id(
        &self,
        conversation: &Conversation,
        create: &Create,
        id: RequestId,
        call: Call,
        witness: &Witness,
    ) -> Result<Participant, Error> {
        let (mut pause, mut is_sent_elsewhere) = (SHORTEST_PAUSE, false);
        loop {
            let prepared = self.twilio.prepare_create(conversation, create, self.twilio.budget(call))?;
            match self.outcomes.claim(conversation.account.clone(), id, prepared.fingerprint()).await {
                Claim::First(slot) => {
                    let first = (id, slot, witness.clone());
                    match self.create_as_first(conversation, create, prepared, first, call).await {
                        Ok(Some(created)) => return Ok(created),
                        Ok(None) => is_sent_elsewhere = true,
                        Err(Error::Deadline { sent }) => {
                            return Err(Error::Deadline { sent: sent || is_sent_elsewhere });
                        }
                        Err(error) => return Err(error),
                    }
                    timeout_at(call.deadline, sleep(pause))
                        .await
                        .map_err(|_| Error::Deadline { sent: true })?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Claim::OtherRequest => return Err(Error::RequestIdReused),
                Claim::Repeated(earlier) => match timeout_at(call.deadline, earlier.settled()).await {
                    Ok(Settled::Outcome(outcome)) => return outcome,
                    Ok(Settled::Nothing) => {}
                    Ok(Settled::Lost) => return Err(Error::OutcomeUnknown(None)),
                    Err(_) => return Err(Error::Deadline { sent: true }),
                },
            }
        }
    }

    /// Does the create unless another replica came first; `None` while that one is at work.
    async fn create_as_first(
        &self,
        conversation: &Conversation,
        create: &Create,
        prepared: Prepared,
        (id, slot, witness): (RequestId, Slot<Result<Participant, Error>>, Witness),
        call: Call,
    ) -> Result<Option<Participant>, Error> {
        let request = self.identified(conversation, &prepared, id);
        let (participants, conversation, create) = (self.clone(), conversation.clone(), create.clone());
        let write = move |agreement: Agreement| async move {
            // Where it ends early the slot is dropped, and the id is free in this process.
            let ticket = match participants.feed.claim(request).await {
                RequestClaim::First(ticket) => ticket,
                RequestClaim::UnderWay => return Ok(None),
                RequestClaim::OtherRequest => return Err(Error::RequestIdReused),
                RequestClaim::Lost => return Err(Error::OutcomeUnknown(None)),
                RequestClaim::Settled(told) => {
                    let outcome = outcome::decode(&told, conversation.version);
                    return participants.take_over(&conversation, &create, outcome, slot).await.map(Some);
                }
            };
            slot.begin();
            let result = participants.send_create(&conversation, &create, prepared, &agreement).await;
            witness.saw(result.as_ref().map(Some));
            // The order matters: who waits here for the id to be free asks the other replicas next.
            if result.as_ref().is_err_and(Error::nothing_was_done) {
                ticket.release().await;
                slot.release().await;
            } else {
                ticket.settle(&outcome::encode(&result)).await;
                slot.settle(result.clone()).await;
            }
            result.map(Some)
        };
        self.detached(call, write).await
    }

    /// Answers what became of the create at another replica, whose notice of it may come later than its caller.
    async fn take_over(
        &self,
        conversation: &Conversation,
        create: &Create,
        outcome: Result<Participant, Error>,
        slot: Slot<Result<Participant, Error>>,
    ) -> Result<Participant, Error> {
        self.forget(conversation, &[outcome.as_ref().ok()], &create.participant.addresses, &outcome).await;
        slot.settle(outcome.clone()).await;
        outcome
    }

    /// The create as other replicas know it: one is at work on it for a write and a look.
    fn identified(
        &self,
        conversation: &Conversation,
        prepared: &Prepared,
        id: RequestId,
    ) -> IdentifiedRequest {
        let budget = self.twilio.full_budget().until.saturating_duration_since(Instant::now());
        IdentifiedRequest {
            account: conversation.account.clone(),
            id,
            fingerprint: prepared.fingerprint(),
            at_work: 2 * budget,
            kept: KEPT_OUTCOMES.lifetime,
        }
    }

    async fn send_create(
        &self,
        conversation: &Conversation,
        create: &Create,
        prepared: Prepared,
        agreement: &Agreement,
    ) -> Result<Participant, Error> {
        let began = Instant::now();
        let result = match self.twilio.write(prepared, agreement).await {
            Ok(created) => created.ok_or(Error::Bug),
            Err(error) if error.leaves_the_outcome_open() => {
                // Not when it began to wait for credentials, or for Twilio to have time for it: who came meanwhile is another.
                let sent = agreement.sent_at().unwrap_or(began);
                self.find_created(conversation, &create.participant, sent, error).await
            }
            Err(error) => Err(error.into()),
        };
        self.forget(conversation, &[result.as_ref().ok()], &create.participant.addresses, &result).await;
        result
    }
}
