//! What became of a write whose answer was lost: one look at Twilio, before the caller is told.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::info;

use super::fields::{is_as_asked, is_set};
use super::{Error, Participants};
use crate::ids::{Conversation, Field, ParticipantKey};
use crate::proto::{Address, Channel, Participant};
use crate::twilio::{self, Cursor, Update, max_page_size};

/// v1's largest conversation has ten pages; v2's get as many.
const MAX_PAGES: usize = 10;
/// Twilio tells its clock, and v1 the time of a creation, to the second.
const TOLERANCE: Duration = Duration::from_secs(2);

impl Participants {
    /// Lists the conversation once and looks for who was to be added at `sent`. Whoever is there in that place but is another,
    /// or was there before, is in the way.
    pub(super) async fn find_created(
        &self,
        conversation: &Conversation,
        asked: &Participant,
        sent: Instant,
        open: twilio::Error,
    ) -> Result<Participant, Error> {
        match self.look_for(conversation, asked).await {
            Ok(Some((there, answered_at))) => {
                // By Twilio's clock alone: the gateway's may be another.
                let sent_at = answered_at.checked_sub(sent.elapsed() + TOLERANCE);
                if is_of_this_create(asked, &there, sent_at) {
                    info!("the answer to a create was lost, and a list tells that it took effect");
                    Ok(there)
                } else {
                    Err(Error::Exists { participant_id: there.id })
                }
            }
            // What cannot be found out stays open.
            Ok(None) | Err(_) => Err(open.into()),
        }
    }

    /// The participant with the natural key of `asked`, and when Twilio told it.
    async fn look_for(
        &self,
        conversation: &Conversation,
        asked: &Participant,
    ) -> Result<Option<(Participant, SystemTime)>, twilio::Error> {
        let (size, budget) = (max_page_size(conversation.version), self.twilio.full_budget());
        let mut next = Some(Cursor::default());
        for _ in 0..MAX_PAGES {
            let Some(cursor) = next.take() else {
                break;
            };
            let page = self.twilio.list(conversation, size, &cursor, budget).await?;
            if let Some(there) = page.items.into_iter().find(|there| has_key_of(asked, there)) {
                return Ok(Some((there, page.answered_at)));
            }
            next = page.next;
        }
        Ok(None)
    }

    /// Reads the participant once: an update whose fields are all as asked took effect, or did not need to.
    pub(super) async fn find_updated(
        &self,
        key: &ParticipantKey,
        update: &Update,
        open: twilio::Error,
    ) -> Result<Participant, Error> {
        match self.twilio.fetch(key, self.twilio.full_budget()).await {
            Ok(there)
                if update.fields.iter().all(|field| is_as_asked(*field, &update.participant, &there)) =>
            {
                info!("the answer to an update was lost, and a read tells that it took effect");
                Ok(there)
            }
            Ok(_) | Err(_) => Err(open.into()),
        }
    }
}

/// Twilio lets nobody else have the same: v1's identity in a conversation, or address and proxy address; v2's addresses.
fn has_key_of(asked: &Participant, there: &Participant) -> bool {
    let is_chat = |address: &&Address| address.channel() == Channel::Chat;
    let is_taken = |asked: &Address| {
        there.addresses.iter().any(|there| {
            asked.address == there.address
                && asked.proxy_address == there.proxy_address
                && (asked.channel() == Channel::Chat) == (there.channel() == Channel::Chat)
        })
    };
    match asked.addresses.iter().find(is_chat) {
        Some(identity) => is_taken(identity),
        None => asked.addresses.iter().any(is_taken),
    }
}

/// Whether this is who the create added: all that it asked for is there, and it was not there before.
fn is_of_this_create(asked: &Participant, there: &Participant, sent_at: Option<SystemTime>) -> bool {
    let mut fields = Field::ALL.into_iter().filter(|field| is_set(*field, asked));
    // v1 lets the caller choose the time of creation, which then tells nothing more.
    let is_new = asked.create_time.is_some()
        || there.create_time.is_none_or(|created| {
            SystemTime::try_from(created).ok().zip(sent_at).is_none_or(|(created, sent)| created >= sent)
        });
    is_new && fields.all(|field| is_as_asked(field, asked, there))
}
