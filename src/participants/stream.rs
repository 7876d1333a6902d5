//! Every participant of a conversation, page after page, past the cache.

use std::collections::{HashSet, VecDeque};
use std::time::SystemTime;

use futures_util::stream::{self, Stream};
use tokio::time::timeout_at;
use tracing::debug;

use super::{Error, Participants};
use crate::ids::{Call, Conversation};
use crate::proto::Participant;
use crate::twilio::Cursor;

/// v1's largest conversation has 1000 participants, and v2 documents no bound: more pages than this do not end.
const MAX_PAGES: usize = 10_000;

/// A participant of the stream.
#[derive(Debug)]
pub struct Streamed {
    /// The participant.
    pub participant: Participant,
    /// When the request for its page began.
    pub fetched: SystemTime,
}

/// What is left of the walk: at most one page is held.
struct Walk {
    participants: Participants,
    conversation: Conversation,
    size: u32,
    call: Call,
    page: VecDeque<Participant>,
    fetched: SystemTime,
    next: Option<Cursor>,
    /// The pages that were read: one that comes again would make the list endless.
    seen: HashSet<Cursor>,
}

impl Participants {
    /// The participants in Twilio's order. The stream ends with its first error, the deadline's or Twilio's.
    pub fn stream(
        &self,
        conversation: Conversation,
        size: u32,
        call: Call,
    ) -> impl Stream<Item = Result<Streamed, Error>> + Send + 'static {
        let walk = Walk {
            participants: self.clone(),
            conversation,
            size,
            call,
            page: VecDeque::new(),
            fetched: SystemTime::now(),
            next: Some(Cursor::default()),
            seen: HashSet::new(),
        };
        stream::try_unfold(walk, |mut walk| async move {
            let streamed = walk.next().await?;
            Ok(streamed.map(|streamed| (streamed, walk)))
        })
    }
}

impl Walk {
    async fn next(&mut self) -> Result<Option<Streamed>, Error> {
        loop {
            if let Some(participant) = self.page.pop_front() {
                return Ok(Some(Streamed { participant, fetched: self.fetched }));
            }
            // A page may be empty and yet not the last.
            match self.next.take() {
                None => return Ok(None),
                Some(cursor) => self.load(cursor).await?,
            }
        }
    }

    async fn load(&mut self, cursor: Cursor) -> Result<(), Error> {
        if self.seen.len() >= MAX_PAGES || !self.seen.insert(cursor.clone()) {
            return Err(Error::EndlessPages);
        }
        self.fetched = SystemTime::now();
        let twilio = &self.participants.twilio;
        let page = twilio.list(&self.conversation, self.size, &cursor, twilio.budget(self.call));
        let page =
            timeout_at(self.call.deadline, page).await.map_err(|_| Error::Deadline { sent: false })??;
        // An event of the call's span, below what the log shows.
        debug!(page = self.seen.len(), participants = page.items.len(), "page");
        self.page = page.items.into();
        self.next = page.next;
        Ok(())
    }
}
