//! What became of a write whose answer was lost: one look at Twilio, before the caller is told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tracing::info;

use super::fields::{is_as_asked, is_same_channel, is_set};
use super::{Error, Participants};
use crate::ids::{Conversation, Field, ParticipantKey, Segment};
use crate::proto::{Address, ApiVersion, Channel, Participant};
use crate::twilio::{self, Budget, Cursor, Update, max_page_size};

/// v1's largest conversation has ten pages; v2's get as many.
const MAX_PAGES: usize = 10;
/// Twilio tells its clock, and v1 the time of a creation, to the second.
const TOLERANCE: Duration = Duration::from_secs(2);

/// What a look at a conversation has found.
enum Look {
    /// Who was added, or another in that place.
    Found(Box<Participant>, Whose),
    /// The conversation was read to its end, or is not there.
    Nobody,
    /// It has more pages than a look reads.
    Unfinished,
}

/// Who stands in the place of a create.
#[derive(Clone, Copy, PartialEq)]
enum Whose {
    Created,
    Others,
}

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
        match self.as_soon_as_it_is_sent(|budget| self.look_for(conversation, asked, sent, budget)).await {
            Ok(Look::Found(there, Whose::Created)) => {
                info!("the answer to a create was lost, and a list tells that it took effect");
                Ok(*there)
            }
            Ok(Look::Found(there, Whose::Others)) => {
                Err(Error::Exists { id: Segment::parse(&there.id).ok() })
            }
            // That nobody is there is what a 404 says, too.
            Ok(Look::Nobody) => Err(open.into()),
            Err(error) if error.is_not_found() => Err(open.into()),
            Ok(Look::Unfinished) | Err(_) => Err(Error::OutcomeUnknown(Some(Arc::new(open)))),
        }
    }

    /// A look that the gateway itself holds back is taken later: it is the only one, and no deadline bounds it.
    async fn as_soon_as_it_is_sent<T, F>(&self, look: impl Fn(Budget) -> F) -> Result<T, twilio::Error>
    where
        F: Future<Output = Result<T, twilio::Error>>,
    {
        let budget = self.twilio.full_budget();
        loop {
            let error = match look(budget).await {
                Err(error) if error.is_held_back() => error,
                other => return other,
            };
            match error.retry_after() {
                Some(wait) if Instant::now() + wait < budget.until => sleep(wait).await,
                _ => return Err(error),
            }
        }
    }

    /// Looks for participants with the natural key of `asked`.
    async fn look_for(
        &self,
        conversation: &Conversation,
        asked: &Participant,
        sent: Instant,
        budget: Budget,
    ) -> Result<Look, twilio::Error> {
        let size = max_page_size(conversation.version);
        let mut next = Some(Cursor::default());
        let mut other = None;
        for _ in 0..MAX_PAGES {
            let Some(cursor) = next.take() else {
                break;
            };
            let page = self.twilio.list(conversation, size, &cursor, budget).await?;
            // By Twilio's clock alone: the gateway's may be another.
            let sent_at = page.answered_at.checked_sub(sent.elapsed() + TOLERANCE);
            for there in page.items.into_iter().filter(|there| has_key_of(asked, there)) {
                if is_of_this_create(asked, &there, sent_at) {
                    return Ok(Look::Found(Box::new(there), Whose::Created));
                }
                other = Some(there);
            }
            next = page.next;
        }
        Ok(match other {
            Some(other) => Look::Found(Box::new(other), Whose::Others),
            None if next.is_none() => Look::Nobody,
            None => Look::Unfinished,
        })
    }

    /// Reads the participant once: an update whose fields are all as asked took effect, or did not need to.
    pub(super) async fn find_updated(
        &self,
        key: &ParticipantKey,
        update: &Update,
        open: twilio::Error,
    ) -> Result<Participant, Error> {
        match self.as_soon_as_it_is_sent(|budget| self.twilio.fetch(key, budget)).await {
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

/// Whether it stands in the place of `asked`: v1's identity in a conversation, else address and proxy address; on v2 a channel
/// and address, of which Twilio's 409 says that they conflict.
fn has_key_of(asked: &Participant, there: &Participant) -> bool {
    let is_chat = |address: &&Address| address.channel() == Channel::Chat;
    let is_taken = |asked: &Address| {
        there.addresses.iter().any(|there| {
            is_same_channel(asked, there)
                && asked.address == there.address
                && asked.proxy_address == there.proxy_address
        })
    };
    match asked.addresses.iter().find(is_chat) {
        Some(identity) if there.api_version() == ApiVersion::V1 => is_taken(identity),
        _ => asked.addresses.iter().any(is_taken),
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
