//! Reads: through the cache by SID, past it by a unique name whose SID no answer has told yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::timeout_at;

use super::cached::{Cached, missing};
use super::page_token::Listed;
use super::{Error, Page, PageTokens, Participants, Read};
use crate::cache::{self, Item, LoadError, Loaded, Scope};
use crate::ids::{ApiVersion, Call, Conversation, ParticipantKey, PersonKey, Segment};
use crate::proto::{Participant, ParticipantConversation};
use crate::twilio::{self, Cursor};

/// So many participants of a batch are read at the same time.
const BATCH_CONCURRENCY: usize = 10;

impl Participants {
    /// One participant, at most `max_age` old.
    pub async fn get(
        &self,
        key: ParticipantKey,
        max_age: Option<Duration>,
        call: Call,
    ) -> Result<Read<Arc<Participant>>, Error> {
        let item = Item::Participant(key.id.clone());
        let load = |conversation: Conversation| {
            let (participants, key) = (self.clone(), ParticipantKey { conversation, id: key.id.clone() });
            async move {
                let budget = participants.twilio.budget(call);
                let found = participants.twilio.fetch(&key, budget).await;
                found.map(|participant| Cached::Participant(Arc::new(participant))).or_else(missing)
            }
        };
        let read = self.read(&key.conversation, item, max_age, call, load).await?;
        match read.value {
            Cached::Participant(value) => Ok(Read { value, status: read.status, fetched: read.fetched }),
            Cached::Missing(error) => Err(Error::Upstream(error)),
            Cached::Page(_) | Cached::Conversations(_) => Err(Error::Bug),
        }
    }

    /// Participants in the order of `ids`, each at most `max_age` old; one that is named twice is read once. Unless the caller
    /// takes a `partial` answer, the first failure is the last entry, and no further read begins after it.
    pub async fn batch_get(
        &self,
        conversation: &Conversation,
        ids: &[Segment],
        partial: bool,
        max_age: Option<Duration>,
        call: Call,
    ) -> Vec<Result<Read<Arc<Participant>>, Error>> {
        let mut places = HashMap::new();
        let mut distinct = Vec::new();
        for id in ids {
            places.entry(id).or_insert_with(|| {
                distinct.push(ParticipantKey { conversation: conversation.clone(), id: id.clone() });
                distinct.len() - 1
            });
        }
        let mut reads =
            stream::iter(distinct).map(|key| self.get(key, max_age, call)).buffered(BATCH_CONCURRENCY);
        let mut results = Vec::new();
        while let Some(result) = reads.next().await {
            let is_last = result.is_err() && !partial;
            results.push(result);
            if is_last {
                break;
            }
        }
        // Those before a failure are all there: ids were read in the order in which they first come.
        ids.iter().map_while(|id| results.get(places[id]).cloned()).collect()
    }

    /// What seals and opens the tokens of this gateway's pages.
    pub fn page_tokens(&self) -> &PageTokens {
        &self.page_tokens
    }

    /// The page at `cursor`, of at most `size` participants, at most `max_age` old.
    pub async fn list(
        &self,
        conversation: &Conversation,
        size: u32,
        cursor: &Cursor,
        max_age: Option<Duration>,
        call: Call,
    ) -> Result<Read<Page<Participant>>, Error> {
        let item = Item::Page { size, cursor: (cursor.page.clone(), cursor.token.clone()) };
        let load = |conversation: Conversation| {
            let (participants, cursor) = (self.clone(), cursor.clone());
            async move {
                let budget = participants.twilio.budget(call);
                let page = participants.twilio.list(&conversation, size, &cursor, budget).await;
                page.map(|page| Cached::Page(Arc::new(page))).or_else(missing)
            }
        };
        let read = self.read(conversation, item, max_age, call, load).await?;
        match read.value {
            Cached::Page(content) => {
                let next = self.seal(conversation, content.next.as_ref());
                let previous = self.seal(conversation, content.previous.as_ref());
                let value = Page { content, next, previous };
                Ok(Read { value, status: read.status, fetched: read.fetched })
            }
            Cached::Missing(error) => Err(Error::Upstream(error)),
            Cached::Participant(_) | Cached::Conversations(_) => Err(Error::Bug),
        }
    }

    /// The page at `cursor`, of at most `size` of the person's conversations, at most `max_age` old.
    pub async fn list_conversations(
        &self,
        (version, person): (ApiVersion, &PersonKey),
        size: u32,
        cursor: &Cursor,
        max_age: Option<Duration>,
        call: Call,
    ) -> Result<Read<Page<ParticipantConversation>>, Error> {
        if version == ApiVersion::V2 {
            return Err(Error::NotSupported);
        }
        let item = Item::Page { size, cursor: (cursor.page.clone(), cursor.token.clone()) };
        let load = || {
            let (participants, person, cursor) = (self.clone(), person.clone(), cursor.clone());
            async move {
                let budget = participants.twilio.budget(call);
                let page = participants.twilio.list_conversations(&person, size, &cursor, budget).await;
                page.map(|page| Cached::Conversations(Arc::new(page))).or_else(missing)
            }
        };
        // Events tell who joins and who leaves, not what else is told here: names, states, timers.
        let max_age = at_most(max_age, self.freshness.lifetime_without_events());
        let key = self.cache.key(Scope::Person(person.clone()), item);
        let reading = self.through_the_cache(key, max_age, load);
        let read =
            timeout_at(call.deadline, reading).await.unwrap_or(Err(Error::Deadline { sent: false }))?;
        match read.value {
            Cached::Conversations(content) => {
                let next = self.seal(person, content.next.as_ref());
                let value = Page { content, next, previous: String::new() };
                Ok(Read { value, status: read.status, fetched: read.fetched })
            }
            Cached::Missing(error) => Err(Error::Upstream(error)),
            Cached::Participant(_) | Cached::Page(_) => Err(Error::Bug),
        }
    }

    /// A token for the page; empty where there is none.
    fn seal<'a>(&self, list: impl Into<Listed<'a>>, cursor: Option<&Cursor>) -> String {
        cursor.map(|cursor| self.page_tokens.seal(list, cursor)).unwrap_or_default()
    }

    /// One way to read for all: by SID through the cache; by unique name through it as soon as the SID is known. The
    /// deadline bounds the waiting, not the load.
    async fn read<F>(
        &self,
        conversation: &Conversation,
        item: Item,
        max_age: Option<Duration>,
        call: Call,
        load: impl Fn(Conversation) -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>> + Send + 'static,
    {
        let max_age = at_most(max_age, self.freshness.lifetime(&conversation.account, conversation.version));
        let reading = async {
            let is_cached = !self.cache.never_serves(max_age);
            let by_sid = match conversation.is_unique_name() {
                true if is_cached => self.aliases.resolve(conversation).await,
                // What goes to Twilio asks for the name, which may be another conversation's by now.
                true => None,
                false => Some(conversation.clone()),
            };
            let Some(by_sid) = by_sid else {
                return self.read_named(conversation, item, load).await;
            };
            let key = self.cache.key(Scope::Conversation(by_sid.clone()), item);
            self.through_the_cache(key, max_age, || load(by_sid.clone())).await
        };
        timeout_at(call.deadline, reading).await.unwrap_or(Err(Error::Deadline { sent: false }))
    }

    async fn through_the_cache<F>(
        &self,
        key: cache::Key,
        max_age: Option<Duration>,
        load: impl Fn() -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>> + Send + 'static,
    {
        if self.cache.never_serves(max_age) {
            return Ok(self.cache.load(key, load()).await?);
        }
        let loaded = self.cache.get_or_load(key, max_age, load).await;
        loaded.map_err(|error| match error {
            LoadError::Failed(error) => Error::Upstream(error),
            LoadError::Panicked => Error::Bug,
        })
    }

    /// The conversation by the id that the cache knows it by; `None` for a unique name whose SID no answer has told.
    pub(super) async fn by_sid(&self, conversation: &Conversation) -> Option<Conversation> {
        if conversation.is_unique_name() {
            self.aliases.resolve(conversation).await
        } else {
            Some(conversation.clone())
        }
    }

    async fn read_named<F>(
        &self,
        named: &Conversation,
        item: Item,
        load: impl Fn(Conversation) -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>>,
    {
        let item_of = |value: &Cached| {
            let id = value.conversation_id()?;
            Some((Conversation { id, ..named.clone() }, item))
        };
        let loaded = self.cache.load_unkeyed(load(named.clone()), item_of).await?;
        if let Some(sid) = loaded.value.conversation_id() {
            self.aliases.learn(named, sid).await;
        }
        Ok(loaded)
    }
}

/// How old the answer may be: as the caller asks, within the lifetime.
fn at_most(asked: Option<Duration>, lifetime: Duration) -> Option<Duration> {
    Some(asked.unwrap_or(lifetime).min(lifetime))
}
