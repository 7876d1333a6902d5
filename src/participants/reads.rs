//! Reads: through the cache by SID, past it by a unique name whose SID no answer has told yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::timeout_at;

use super::cached::{Cached, Encoded, missing};
use super::freshness::Ages;
use super::page_token::Listed;
use super::{Error, Page, PageTokens, Participants, Read};
use crate::cache::{self, Item, LoadError, Loaded, Scope, Wanted};
use crate::ids::{AccountId, ApiVersion, Call, Conversation, ParticipantKey, PersonKey, Segment};
use crate::proto::{Participant, ParticipantConversation};
use crate::twilio::{self, Cursor};

/// So many participants of a batch are read at the same time.
const BATCH_CONCURRENCY: usize = 10;

/// How old an answer may be, as its caller says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tolerance {
    /// The largest age; `None`: the lifetime.
    pub max_age: Option<Duration>,
    /// Whether an older answer will do where Twilio cannot be read.
    pub stale_on_error: Option<bool>,
}

/// What a read asks of the cache, and by when.
#[derive(Clone, Copy)]
struct Terms<'a> {
    account: &'a AccountId,
    version: ApiVersion,
    ages: Ages<'a>,
    tolerance: Tolerance,
    call: Call,
}

impl Terms<'_> {
    /// The caller's own `max_age` is a promise to it: nothing older is told while it is read anew.
    fn wanted(self) -> Wanted {
        let lifetime = self.ages.fresh();
        match self.tolerance.max_age {
            Some(max_age) => Wanted::Within(max_age.min(lifetime)),
            None => Wanted::Usual { lifetime, while_refreshed: self.ages.while_revalidating() },
        }
    }
}

impl Participants {
    /// One participant, as old as its caller tolerates.
    pub async fn get(
        &self,
        key: ParticipantKey,
        tolerance: Tolerance,
        call: Call,
    ) -> Result<Read<Encoded>, Error> {
        let item = Item::Participant(key.id.clone());
        let load = |conversation: Conversation| {
            let (participants, key) = (self.clone(), ParticipantKey { conversation, id: key.id.clone() });
            async move {
                let budget = participants.twilio.budget(call);
                // Not behind a pointer, as the pages are: what is kept of it would take its place in the heap as soon as it is
                // done, and the next would need another, which makes 5 KB of each participant.
                let found = participants.twilio.fetch(&key, budget).await;
                found.map(|participant| Cached::Participant(Encoded::new(&participant))).or_else(missing)
            }
        };
        let read = self.read(&key.conversation, item, tolerance, call, load).await?;
        match read.value {
            Cached::Participant(value) => Ok(Read { value, status: read.status, fetched: read.fetched }),
            Cached::Missing(error) => Err(Error::Upstream(error)),
            Cached::Page(_) | Cached::Conversations(_) => Err(Error::Bug),
        }
    }

    /// Participants in the order of `ids`, each read by itself; one that is named twice is read once. Unless the caller takes a
    /// `partial` answer, the first failure is the last entry, and no further read begins after it.
    pub async fn batch_get(
        &self,
        conversation: &Conversation,
        ids: &[Segment],
        partial: bool,
        tolerance: Tolerance,
        call: Call,
    ) -> Vec<Result<Read<Encoded>, Error>> {
        let mut places = HashMap::new();
        let mut distinct = Vec::new();
        for id in ids {
            places.entry(id).or_insert_with(|| {
                distinct.push(ParticipantKey { conversation: conversation.clone(), id: id.clone() });
                distinct.len() - 1
            });
        }
        let mut reads =
            stream::iter(distinct).map(|key| self.get(key, tolerance, call)).buffered(BATCH_CONCURRENCY);
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

    /// The page at `cursor`, of at most `size` participants.
    pub async fn list(
        &self,
        conversation: &Conversation,
        size: u32,
        cursor: &Cursor,
        tolerance: Tolerance,
        call: Call,
    ) -> Result<Read<Page<Participant>>, Error> {
        let item = Item::Page { size, cursor: Box::new((cursor.page.clone(), cursor.token.clone())) };
        let load = |conversation: Conversation| {
            let (participants, cursor) = (self.clone(), cursor.clone());
            async move {
                let budget = participants.twilio.budget(call);
                // Behind a pointer: who joins another's load carries room for its own about as long as it waits.
                let page = Box::pin(participants.twilio.list(&conversation, size, &cursor, budget)).await;
                page.map(|page| Cached::Page(Arc::new(page))).or_else(missing)
            }
        };
        let read = self.read(conversation, item, tolerance, call, load).await?;
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

    /// The page at `cursor`, of at most `size` of the person's conversations.
    pub async fn list_conversations(
        &self,
        (version, person): (ApiVersion, &PersonKey),
        size: u32,
        cursor: &Cursor,
        tolerance: Tolerance,
        call: Call,
    ) -> Result<Read<Page<ParticipantConversation>>, Error> {
        if version == ApiVersion::V2 {
            return Err(Error::NotSupported);
        }
        let item = Item::Page { size, cursor: Box::new((cursor.page.clone(), cursor.token.clone())) };
        let load = || {
            let (participants, person, cursor) = (self.clone(), person.clone(), cursor.clone());
            async move {
                let budget = participants.twilio.budget(call);
                let list = participants.twilio.list_conversations(&person, size, &cursor, budget);
                let page = Box::pin(list).await;
                page.map(|page| Cached::Conversations(Arc::new(page))).or_else(missing)
            }
        };
        // Events tell who joins and who leaves, not what else is told here: names, states, timers.
        let ages = self.freshness.ages_without_events();
        let terms = Terms { account: &person.account, version, ages, tolerance, call };
        let key = self.cache.key(Scope::Person(person.clone()), item);
        let read = self.through_the_cache(&key, terms, load).await?;
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

    /// One way to read for all: by SID through the cache; by unique name through it as soon as the SID is known.
    async fn read<F>(
        &self,
        conversation: &Conversation,
        item: Item,
        tolerance: Tolerance,
        call: Call,
        load: impl Fn(Conversation) -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>> + Send + 'static,
    {
        let Conversation { account, version, .. } = conversation;
        let ages = self.freshness.ages(account, *version);
        let terms = Terms { account, version: *version, ages, tolerance, call };
        let by_sid = match conversation.is_unique_name() {
            // What goes to Twilio asks for the name, which may be another conversation's by now.
            true if terms.wanted().is_nothing() => None,
            true => self.aliases.resolve(conversation).await,
            false => Some(conversation.clone()),
        };
        let Some(by_sid) = by_sid else {
            return Box::pin(self.by_name(conversation, item, terms, load)).await;
        };
        let key = self.cache.key(Scope::Conversation(by_sid.clone()), item);
        self.through_the_cache(&key, terms, || load(by_sid.clone())).await
    }

    async fn through_the_cache<F>(
        &self,
        key: &cache::Key,
        terms: Terms<'_>,
        load: impl Fn() -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>> + Send + 'static,
    {
        let wanted = terms.wanted();
        let read = in_time(terms.call, async {
            if wanted.is_nothing() {
                return Ok(Box::pin(self.cache.load(key, load())).await?);
            }
            let loaded = self.cache.get_or_load(key, wanted, load).await;
            loaded.map_err(|error| match error {
                LoadError::Failed(error) => Error::Upstream(error),
                LoadError::Panicked => Error::Bug,
            })
        })
        .await;
        match read {
            Ok(loaded) => Ok(loaded),
            Err(error) => {
                let stale = match self.oldest_in_place_of(&error, terms) {
                    Some(oldest) => self.cache.stale(key, oldest).await,
                    None => None,
                };
                stale.ok_or_else(|| self.failed(error))
            }
        }
    }

    /// How old an answer may be that is told in place of this error; `None`: the error is told.
    fn oldest_in_place_of(&self, error: &Error, terms: Terms<'_>) -> Option<Duration> {
        let Terms { account, version, ages, tolerance: Tolerance { max_age, stale_on_error }, .. } = terms;
        let default = self.freshness.graces().is_on_error_default && max_age.is_none();
        let is_allowed = stale_on_error.unwrap_or(default) && error.is_twilio_away();
        is_allowed.then(|| ages.on_error(self.twilio.is_sick(account, version)))
    }

    fn failed(&self, error: Error) -> Error {
        self.cache.count_failed();
        error
    }

    /// The conversation by the id that the cache knows it by; `None` for a unique name whose SID no answer has told.
    pub(super) async fn by_sid(&self, conversation: &Conversation) -> Option<Conversation> {
        if conversation.is_unique_name() {
            self.aliases.resolve(conversation).await
        } else {
            Some(conversation.clone())
        }
    }

    /// A read whose conversation the cache does not know by this name.
    async fn by_name<F>(
        &self,
        named: &Conversation,
        item: Item,
        terms: Terms<'_>,
        load: impl Fn(Conversation) -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>>,
    {
        let item_of = |value: &Cached| {
            let id = value.conversation_id()?;
            Some((Conversation { id, ..named.clone() }, item.clone()))
        };
        let reading = async { Ok(self.cache.load_unkeyed(load(named.clone()), item_of).await?) };
        match in_time(terms.call, reading).await {
            Ok(loaded) => {
                if let Some(sid) = loaded.value.conversation_id() {
                    self.aliases.learn(named, sid).await;
                } else if loaded.value.is_negative() {
                    self.gone_by_name(named, item).await;
                }
                Ok(loaded)
            }
            Err(error) => {
                // No event tells that a name means another conversation.
                let terms = Terms { ages: self.freshness.ages_without_events(), ..terms };
                let stale = match self.oldest_in_place_of(&error, terms) {
                    Some(oldest) => self.stale_by_name(named, item, oldest).await,
                    None => None,
                };
                stale.ok_or_else(|| self.failed(error))
            }
        }
    }

    /// That there is none was told for a name, and may concern what is cached by SID, or that the name means another
    /// conversation by now.
    async fn gone_by_name(&self, named: &Conversation, item: Item) {
        let by_sid = self.aliases.resolve_stale(named, Duration::MAX).await;
        self.aliases.forget(named).await;
        if let Some(by_sid) = by_sid {
            self.cache.gone(&self.cache.key(Scope::Conversation(by_sid), item)).await;
        }
    }

    async fn stale_by_name(
        &self,
        named: &Conversation,
        item: Item,
        oldest: Duration,
    ) -> Option<Loaded<Cached>> {
        let by_sid = self.aliases.resolve_stale(named, oldest).await?;
        self.cache.stale(&self.cache.key(Scope::Conversation(by_sid), item), oldest).await
    }
}

/// The deadline bounds the waiting, not the load. No `async fn`, which would keep the space of `reading` twice.
fn in_time<T>(
    call: Call,
    reading: impl Future<Output = Result<T, Error>>,
) -> impl Future<Output = Result<T, Error>> {
    timeout_at(call.deadline, reading).map(|in_time| in_time.unwrap_or(Err(Error::Deadline { sent: false })))
}
