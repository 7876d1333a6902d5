//! The heart: get, list, stream, create, update, delete. Here, and nowhere else, the cache and Twilio meet: reads go
//! through the cache, and every write forgets its conversation there.

mod agreement;
mod cached;
mod page_token;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, warn};

pub use page_token::{InvalidPageToken, PageTokens};
pub use stream::Streamed;

pub use crate::cache::Settings as CacheSettings;
use crate::cache::{self, Aliases, Cache, Item, LoadError, Loaded};
use crate::ids::{ApiVersion, Conversation, ParticipantKey, Segment};
use crate::proto::{CacheStatus, Participant};
use crate::telemetry::Metrics;
use crate::twilio::{self, Prepared, Twilio};
pub use crate::twilio::{Create, Cursor, Update, max_page_size};
use agreement::{Agreement, Caller};
use cached::{Cached, missing, sid_of};

/// Why a call failed.
#[derive(Debug)]
pub enum Error {
    /// Twilio's answer, or that there was none. Shared by all calls that waited for the same request.
    Upstream(Arc<twilio::Error>),
    /// The caller's deadline passed; a write that was `sent` goes on and may take effect.
    Deadline {
        /// Whether a write was handed to the upstream client.
        sent: bool,
    },
    /// The API version has no such operation.
    NotSupported,
    /// Twilio's pages do not end.
    EndlessPages,
    /// A bug of the gateway, such as a task that panicked.
    Bug,
}

impl From<twilio::Error> for Error {
    fn from(error: twilio::Error) -> Self {
        Self::Upstream(Arc::new(error))
    }
}

/// A value that was read, and where it came from.
#[derive(Clone, Debug)]
pub struct Read<T> {
    /// The value.
    pub value: T,
    /// How the cache served it.
    pub status: CacheStatus,
    /// When the request to Twilio began that brought it.
    pub fetched: SystemTime,
}

/// A page with sealed tokens; an empty token is no page.
#[derive(Clone, Debug)]
pub struct Page {
    /// As Twilio answered it.
    pub content: Arc<twilio::Page>,
    /// The page after this one.
    pub next: String,
    /// The page before this one.
    pub previous: String,
}

/// The participants of all configured accounts.
#[derive(Clone)]
pub struct Participants {
    twilio: Arc<Twilio>,
    cache: Cache<Cached>,
    aliases: Aliases,
    page_tokens: PageTokens,
    tasks: TaskTracker,
}

impl Participants {
    /// `tasks` owns loads and writes that outlive their callers.
    pub fn new(
        twilio: Twilio,
        cache: &CacheSettings,
        page_tokens: PageTokens,
        tasks: TaskTracker,
        metrics: Metrics,
    ) -> Self {
        let traits = cache::Traits { weight: Cached::weight, is_negative: Cached::is_negative };
        Self {
            twilio: Arc::new(twilio),
            aliases: Aliases::new(cache.ttl),
            cache: Cache::new(cache, &traits, tasks.clone(), metrics),
            page_tokens,
            tasks,
        }
    }

    /// Keeps the cache within its bounds, and what the accounts sign in with up to date, until the token is cancelled.
    pub async fn upkeep(&self, end: CancellationToken) {
        tokio::join!(self.cache.upkeep(end.clone()), self.twilio.upkeep(end));
    }

    // === Reads

    /// One participant, at most `max_age` old.
    pub async fn get(
        &self,
        key: ParticipantKey,
        max_age: Option<Duration>,
        deadline: Instant,
    ) -> Result<Read<Arc<Participant>>, Error> {
        let item = Item::Participant(key.id.clone());
        let load = |conversation: Conversation| {
            let (participants, key) = (self.clone(), ParticipantKey { conversation, id: key.id.clone() });
            async move {
                let budget = participants.twilio.budget(deadline);
                let found = participants.twilio.fetch(&key, budget).await;
                found.map(|participant| Cached::Participant(Arc::new(participant))).or_else(missing)
            }
        };
        let read = self.read(&key.conversation, item, max_age, deadline, load).await?;
        match read.value {
            Cached::Participant(value) => Ok(Read { value, status: read.status, fetched: read.fetched }),
            Cached::Missing(error) => Err(Error::Upstream(error)),
            Cached::Page(_) => Err(Error::Bug),
        }
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
        deadline: Instant,
    ) -> Result<Read<Page>, Error> {
        let item = Item::Page { size, cursor: (cursor.page.clone(), cursor.token.clone()) };
        let load = |conversation: Conversation| {
            let (participants, cursor) = (self.clone(), cursor.clone());
            async move {
                let budget = participants.twilio.budget(deadline);
                let page = participants.twilio.list(&conversation, size, &cursor, budget).await;
                page.map(|page| Cached::Page(Arc::new(page))).or_else(missing)
            }
        };
        let read = self.read(conversation, item, max_age, deadline, load).await?;
        match read.value {
            Cached::Page(content) => {
                let seal = |cursor: &Option<Cursor>| {
                    cursor
                        .as_ref()
                        .map(|cursor| self.page_tokens.seal(conversation, cursor))
                        .unwrap_or_default()
                };
                let (next, previous) = (seal(&content.next), seal(&content.previous));
                let value = Page { content, next, previous };
                Ok(Read { value, status: read.status, fetched: read.fetched })
            }
            Cached::Missing(error) => Err(Error::Upstream(error)),
            Cached::Participant(_) => Err(Error::Bug),
        }
    }

    /// One way to read for all: by SID through the cache; by unique name through it as soon as the SID is known. The
    /// deadline bounds the waiting, not the load.
    async fn read<F>(
        &self,
        conversation: &Conversation,
        item: Item,
        max_age: Option<Duration>,
        deadline: Instant,
        load: impl Fn(Conversation) -> F,
    ) -> Result<Loaded<Cached>, Error>
    where
        F: Future<Output = Result<Cached, twilio::Error>> + Send + 'static,
    {
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
            let key = self.cache.key(&by_sid, item);
            if !is_cached {
                return Ok(self.cache.load(key, load(by_sid)).await?);
            }
            let loaded = self.cache.get_or_load(key, max_age, || load(by_sid.clone())).await;
            loaded.map_err(|error| match error {
                LoadError::Failed(error) => Error::Upstream(error),
                LoadError::Panicked => Error::Bug,
            })
        };
        timeout_at(deadline, reading).await.unwrap_or(Err(Error::Deadline { sent: false }))
    }

    /// The conversation by the id that the cache knows it by; `None` for a unique name whose SID no answer has told.
    async fn by_sid(&self, conversation: &Conversation) -> Option<Conversation> {
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

    // === Writes

    /// Adds a participant.
    pub async fn create(
        &self,
        conversation: Conversation,
        create: Create,
        deadline: Instant,
    ) -> Result<Participant, Error> {
        let participants = self.clone();
        let write = move |agreement: Agreement| async move {
            let budget = participants.twilio.budget(deadline);
            agreement.send()?;
            let result = participants.twilio.create(&conversation, &create, budget).await;
            participants.forget(&conversation, result.as_ref().ok(), result.as_ref().err()).await;
            Ok(result?)
        };
        self.detached(deadline, write).await
    }

    /// Changes a participant.
    pub async fn update(
        &self,
        key: ParticipantKey,
        update: Update,
        deadline: Instant,
    ) -> Result<Participant, Error> {
        let participants = self.clone();
        let write = move |agreement: Agreement| async move {
            let twilio = &participants.twilio;
            let needs_current = Twilio::needs_current(key.conversation.version, &update);
            let current = if needs_current || key.is_identity() {
                Some(twilio.fetch(&key, twilio.budget(deadline)).await?)
            } else {
                None
            };
            let key = by_id(key, current.as_ref())?;
            let prepared = twilio.prepare(&key, &update, current.as_ref())?;
            match current {
                Some(current) if prepared.is_no_change() => Ok(current),
                _ => participants.send_update(key, prepared, deadline, agreement).await,
            }
        };
        self.detached(deadline, write).await
    }

    async fn send_update(
        &self,
        key: ParticipantKey,
        prepared: Prepared,
        deadline: Instant,
        agreement: Agreement,
    ) -> Result<Participant, Error> {
        agreement.send()?;
        let result = self.twilio.update(&key, prepared, self.twilio.budget(deadline)).await;
        self.forget(&key.conversation, result.as_ref().ok(), result.as_ref().err()).await;
        Ok(result?)
    }

    /// Removes a participant.
    pub async fn delete(
        &self,
        key: ParticipantKey,
        webhook_enabled: Option<bool>,
        deadline: Instant,
    ) -> Result<(), Error> {
        if key.conversation.version == ApiVersion::V2 {
            return Err(Error::NotSupported);
        }
        let participants = self.clone();
        let write = move |agreement: Agreement| async move {
            let twilio = &participants.twilio;
            let current = if key.is_identity() {
                Some(twilio.fetch(&key, twilio.budget(deadline)).await?)
            } else {
                None
            };
            let key = by_id(key, current.as_ref())?;
            agreement.send()?;
            let result = twilio.delete(&key, webhook_enabled, twilio.budget(deadline)).await;
            participants.forget(&key.conversation, current.as_ref(), result.as_ref().err()).await;
            Ok(result?)
        };
        self.detached(deadline, write).await
    }

    /// Runs a write in a task of its own: once it was sent, neither a caller that goes away nor its deadline may cut it,
    /// and the cache has to forget when it ends. Before that, the deadline ends it.
    async fn detached<T, F>(&self, deadline: Instant, write: impl FnOnce(Agreement) -> F) -> Result<T, Error>
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
        let task = self.tasks.spawn(task.in_current_span());
        let caller = Caller(agreement);
        match timeout_at(deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Bug),
            Err(_) => Err(Error::Deadline { sent: caller.0.give_up() }),
        }
    }

    /// Forgets the conversation after a write. Where its SID is not known and the write may have been processed, nobody
    /// can tell what it changed, and everything is forgotten.
    async fn forget(
        &self,
        conversation: &Conversation,
        told: Option<&Participant>,
        failure: Option<&twilio::Error>,
    ) {
        let sid = match told.and_then(sid_of) {
            Some(sid) if conversation.is_unique_name() => Some(sid),
            _ => self.by_sid(conversation).await.map(|conversation| conversation.id),
        };
        match sid {
            // Even a write that was refused is a sign that what is cached is no longer true.
            Some(sid) => self.cache.forget(&conversation.account, &sid),
            None if failure.is_none_or(twilio::Error::may_have_been_processed) => self.cache.forget_all(),
            None => {}
        }
    }
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
