//! What the cache holds: answers of Twilio, that there is none among them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use crate::cache::Failure;
use crate::ids::{Segment, is_sid};
use crate::proto::{Message, Participant, ParticipantConversation};
use crate::twilio;

impl Failure for twilio::Error {
    fn is_the_leaders(&self) -> bool {
        self.is_impatience()
    }
}

/// What the cache holds.
#[derive(Clone)]
pub(super) enum Cached {
    Participant(Encoded),
    Page(Arc<twilio::Page<Participant>>),
    Conversations(Arc<twilio::Page<ParticipantConversation>>),
    /// Twilio said that there is none.
    Missing(Arc<twilio::Error>),
}

impl Cached {
    pub(super) fn weight(&self) -> u32 {
        let bytes = match self {
            Self::Participant(Encoded(bytes)) => bytes.len(),
            Self::Page(page) => page.items.iter().map(bytes).sum(),
            Self::Conversations(page) => page.items.iter().map(bytes).sum(),
            Self::Missing(_) => size_of::<twilio::Error>(),
        };
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    pub(super) fn is_negative(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// The conversation's SID, where the value tells it.
    pub(super) fn conversation_id(&self) -> Option<Segment> {
        match self {
            Self::Participant(participant) => sid_of(&participant.decode().ok()?),
            Self::Page(page) => sid_of(page.items.first()?),
            Self::Conversations(_) | Self::Missing(_) => None,
        }
    }
}

/// A participant as it is written: most are read far more often than they are looked into, and so they take half the memory.
#[derive(Clone)]
pub struct Encoded(Bytes);

impl Encoded {
    pub(super) fn new(participant: &Participant) -> Self {
        Self(participant.encode_to_vec().into())
    }

    /// The encoded message.
    pub fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The participant.
    pub fn decode(&self) -> Result<Participant, Error> {
        Participant::decode(self.0.clone()).map_err(|_| Error::Bug)
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Encoded {
    /// It is PII.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The encoded size tells the texts; the struct around them is added.
pub(super) fn bytes<M: Message>(message: &M) -> usize {
    message.encoded_len() + size_of::<M>()
}

pub(super) fn sid_of(participant: &Participant) -> Option<Segment> {
    let id = participant.conversation_id.as_str();
    if is_sid("CH", id) { Segment::parse(id).ok() } else { None }
}

/// "There is none" is an answer, and is kept like one; any other failure is not.
pub(super) fn missing(error: twilio::Error) -> Result<Cached, twilio::Error> {
    if error.is_not_found() { Ok(Cached::Missing(Arc::new(error))) } else { Err(error) }
}
