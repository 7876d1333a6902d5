//! Every participant of a conversation, page after page, past the cache.

use std::collections::VecDeque;
use std::time::SystemTime;

use futures_util::stream::{self, Stream};
use tokio::time::{Instant, timeout_at};

use super::{Error, Participants};
use crate::ids::Conversation;
use crate::proto::Participant;
use crate::twilio::Cursor;

/// Twilio's largest conversation has 1000 participants; far more pages than that do not end.
const MAX_PAGES: u32 = 10_000;

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
    deadline: Instant,
    page: VecDeque<Participant>,
    fetched: SystemTime,
    next: Option<Cursor>,
    pages: u32,
}

impl Participants {
    /// The participants in Twilio's order. The stream ends with its first error, the deadline's or Twilio's.
    pub fn stream(
        &self,
        conversation: Conversation,
        size: u32,
        deadline: Instant,
    ) -> impl Stream<Item = Result<Streamed, Error>> + Send + 'static {
        let walk = Walk {
            participants: self.clone(),
            conversation,
            size,
            deadline,
            page: VecDeque::new(),
            fetched: SystemTime::now(),
            next: Some(Cursor::default()),
            pages: 0,
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
        self.pages += 1;
        self.fetched = SystemTime::now();
        let twilio = &self.participants.twilio;
        let page = twilio.list(&self.conversation, self.size, &cursor, twilio.budget(self.deadline));
        let page = timeout_at(self.deadline, page).await.map_err(|_| Error::Deadline { sent: false })??;
        // A page that names itself as the next would never end.
        if self.pages >= MAX_PAGES || page.next.as_ref() == Some(&cursor) {
            return Err(Error::EndlessPages(self.conversation.version));
        }
        self.page = page.participants.into();
        self.next = page.next;
        Ok(())
    }
}
