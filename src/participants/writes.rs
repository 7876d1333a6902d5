//! Writes: each in a task of its own, and whatever becomes of it, what it touches is forgotten. Creates stand in `creates`.

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::cached::sid_of;
use super::{Error, Participants, Witness};
use crate::feed::Notice;
use crate::ids::{ApiVersion, Call, Conversation, ParticipantKey, Person, Segment};
use crate::proto::{Address, Channel, Participant, UpstreamRequest};
use crate::telemetry;
use crate::twilio::{self, Agreement, Caller, Prepared, Twilio, Update};

impl Participants {
    /// What an update would send; `None` where nothing differs. It reads what the update would read.
    pub async fn preview_update(
        &self,
        key: ParticipantKey,
        update: &Update,
        call: Call,
    ) -> Result<Option<UpstreamRequest>, Error> {
        let prepared = async {
            let (key, current) = self.current(key, update, call).await?;
            Ok(self.twilio.prepare_update(&key, update, current.as_ref(), self.twilio.full_budget())?)
        };
        let prepared =
            timeout_at(call.deadline, prepared).await.unwrap_or(Err(Error::Deadline { sent: false }));
        Ok(prepared?.shown())
    }

    /// Changes a participant.
    pub async fn update(
        &self,
        key: ParticipantKey,
        update: Update,
        call: Call,
        witness: Witness,
    ) -> Result<Participant, Error> {
        let participants = self.clone();
        let write = move |agreement: Agreement| async move {
            let result = participants.update_in_turn(key, update, call, agreement).await;
            witness.saw(result.as_ref().map(Some));
            result
        };
        self.detached(call, write).await
    }

    async fn update_in_turn(
        &self,
        key: ParticipantKey,
        update: Update,
        call: Call,
        agreement: Agreement,
    ) -> Result<Participant, Error> {
        let _turn = match key.conversation.version {
            ApiVersion::V1 => None,
            ApiVersion::V2 => self.turns.take(&key).await,
        };
        if agreement.is_given_up() {
            return Err(Error::Deadline { sent: false });
        }
        let (key, current) = self.current(key, &update, call).await?;
        let budget = self.twilio.budget(call);
        let prepared = self.twilio.prepare_update(&key, &update, current.as_ref(), budget)?;
        match current {
            Some(current) if prepared.is_no_change() => {
                let result = Ok(current);
                self.forget(&key.conversation, &[result.as_ref().ok()], &[], &result).await;
                result
            }
            current => self.send_update(key, update, current, prepared, &agreement).await,
        }
    }

    /// The key by Twilio's id, and what is there now, where the update has to know it. An etag that no longer fits ends it.
    async fn current(
        &self,
        key: ParticipantKey,
        update: &Update,
        call: Call,
    ) -> Result<(ParticipantKey, Option<Participant>), Error> {
        let etag = &update.participant.etag;
        let needs_current = Twilio::needs_current(key.conversation.version, update);
        if !needs_current && !key.is_identity() && etag.is_empty() {
            return Ok((key, None));
        }
        let current = self.twilio.fetch(&key, self.twilio.budget(call)).await?;
        let key = by_id(key, Some(&current))?;
        if etag.is_empty() || *etag == current.etag {
            Ok((key, Some(current)))
        } else {
            // What the cache holds may be just what the etag is of, and the caller is to read again.
            let result = Err(Error::EtagMismatch);
            self.forget(&key.conversation, &[Some(&current)], &[], &result).await;
            result
        }
    }

    async fn send_update(
        &self,
        key: ParticipantKey,
        update: Update,
        current: Option<Participant>,
        prepared: Prepared,
        agreement: &Agreement,
    ) -> Result<Participant, Error> {
        let result = match self.twilio.write(prepared, agreement).await {
            Ok(updated) => updated.ok_or(Error::Bug),
            Err(error) if error.leaves_the_outcome_open() => self.find_updated(&key, &update, error).await,
            Err(error) => Err(error.into()),
        };
        let told = [current.as_ref(), result.as_ref().ok()];
        self.forget(&key.conversation, &told, &update.participant.addresses, &result).await;
        result
    }

    /// Removes a participant.
    pub async fn delete(
        &self,
        key: ParticipantKey,
        webhook_enabled: Option<bool>,
        call: Call,
        witness: Witness,
    ) -> Result<(), Error> {
        if key.conversation.version == ApiVersion::V2 {
            return Err(Error::NotSupported);
        }
        let participants = self.clone();
        let write = move |agreement: Agreement| async move {
            let result = participants.delete_by_id(key, webhook_enabled, call, agreement).await;
            witness.saw(result.as_ref().map(|()| None));
            result
        };
        self.detached(call, write).await
    }

    async fn delete_by_id(
        &self,
        key: ParticipantKey,
        webhook_enabled: Option<bool>,
        call: Call,
        agreement: Agreement,
    ) -> Result<(), Error> {
        let twilio = &self.twilio;
        let current =
            if key.is_identity() { Some(twilio.fetch(&key, twilio.budget(call)).await?) } else { None };
        let key = by_id(key, current.as_ref())?;
        let result = twilio.delete(&key, webhook_enabled, twilio.budget(call), &agreement).await;
        let result = result.map_err(Error::from);
        self.forget(&key.conversation, &[current.as_ref()], &[], &result).await;
        result
    }

    /// Runs a write in a task of its own: once it was sent, neither a caller that goes away nor its deadline may cut it,
    /// and the cache has to forget when it ends. Before that, the deadline gives it up.
    pub(super) async fn detached<T, F>(
        &self,
        call: Call,
        write: impl FnOnce(Agreement) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let agreement = Agreement::default();
        let (write, orphan) = (write(agreement.clone()), agreement.clone());
        let task = async move {
            let result = write.await;
            if orphan.is_abandoned() {
                log_orphan(result.as_ref().err());
            }
            result
        };
        let task = self.tasks.spawn(telemetry::in_current_trace(task));
        let caller = Caller(agreement);
        match timeout_at(call.deadline, task).await {
            // A wait for credentials that the deadline ended, too.
            Ok(Ok(Err(error))) if error.nothing_was_done() && Instant::now() >= call.deadline => {
                Err(Error::Deadline { sent: false })
            }
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Bug),
            Err(_) => Err(Error::Deadline { sent: caller.0.give_up() }),
        }
    }

    /// Forgets what a write touched that was sent: the conversation, and in which conversations the people are that it was about. The
    /// other replicas are let know when that is done here.
    pub(super) async fn forget<T>(
        &self,
        conversation: &Conversation,
        told: &[Option<&Participant>],
        asked: &[Address],
        result: &Result<T, Error>,
    ) {
        // In an outage the old answer is the best that there is, and nothing speaks against it.
        if matches!(result, Err(Error::Upstream(error)) if error.was_never_sent()) {
            return;
        }
        let told: Vec<&Participant> = told.iter().copied().flatten().collect();
        let may_have_been_processed = match result {
            Ok(_) => true,
            Err(Error::Upstream(error)) => error.may_have_been_processed(),
            Err(_) => false,
        };
        let people = self.forget_people_of(conversation, &told, asked, may_have_been_processed);
        let sid = match told.iter().find_map(|told| sid_of(told)) {
            Some(sid) if conversation.is_unique_name() => Some(sid),
            _ => self.by_sid(conversation).await.map(|conversation| conversation.id),
        };
        let account = conversation.account.clone();
        match sid {
            // Even a write that was refused is a sign that what is cached is no longer true.
            Some(sid) => {
                self.cache.forget(&account, &sid);
                self.feed.notify(Notice::Written { account, conversation: sid, people });
            }
            // Nobody can tell which conversation it changed.
            None if may_have_been_processed => {
                self.cache.forget_all();
                self.feed.notify(Notice::Everything);
            }
            None => {}
        }
    }

    /// Whether the conversations of anybody were forgotten.
    fn forget_people_of(
        &self,
        conversation: &Conversation,
        told: &[&Participant],
        asked: &[Address],
        may_have_been_processed: bool,
    ) -> bool {
        if conversation.version == ApiVersion::V2 {
            return false;
        }
        let addresses = told.iter().flat_map(|told| &told.addresses).chain(asked);
        let people: Vec<Person> = addresses.flat_map(people).collect();
        if people.is_empty() && may_have_been_processed {
            self.cache.forget_people(&conversation.account);
        }
        for person in &people {
            self.cache.forget_person(&conversation.account, person);
        }
        !people.is_empty() || may_have_been_processed
    }
}

/// Whom v1 finds by this address.
pub(super) fn people(address: &Address) -> Vec<Person> {
    if address.channel() == Channel::Chat {
        return vec![Person::Identity(address.address.as_str().into())];
    }
    let texts = [&address.address, &address.projected_address].into_iter().filter(|text| !text.is_empty());
    texts.map(|text| Person::Address(text.as_str().into())).collect()
}

/// A write whose caller was told that it may still take effect, or went away: only the log learns how it ended.
fn log_orphan(error: Option<&Error>) {
    match error {
        None => info!("a write took effect after its caller had gone"),
        Some(Error::Upstream(error)) => warn!("a write failed after its caller had gone: {error}"),
        Some(error) => warn!("a write failed after its caller had gone: {error:?}"),
    }
}

/// The key by Twilio's id, which `current` tells. An answer that is not about the participant that was asked for is no
/// ground to write on: on v2, what it leaves out would be cleared.
fn by_id(key: ParticipantKey, current: Option<&Participant>) -> Result<ParticipantKey, Error> {
    let Some(current) = current else {
        return Ok(key);
    };
    let id = Segment::parse(&current.id).ok().filter(|id| key.is_identity() || *id == key.id);
    let id = id.ok_or_else(|| twilio::Error::without_id(key.conversation.version))?;
    Ok(ParticipantKey { id, ..key })
}
