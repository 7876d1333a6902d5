//! A read-through store: single-flight loads that outlive their callers, and generations, so that what was forgotten can
//! neither come back nor be joined.
//!
//! moka alone keeps a stale value when an entry is invalidated while its load is under way. So the key that is looked up
//! carries the generation of its conversation, and to forget is to count it up: an older load ends under a key that
//! nobody asks for again. Old entries leave by their lifetime and by weight.

mod aliases;
mod generations;
mod outcomes;

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use moka::Expiry;
use moka::future::Cache as Moka;
use moka::policy::EvictionPolicy;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

pub use aliases::Aliases;
pub use outcomes::{Claim, Kept, Outcomes, Settled, Slot};

use crate::ids::{AccountId, Conversation, Person, PersonKey, Segment};
use crate::proto::CacheStatus;
use crate::telemetry::{Metrics, Origin};
use generations::Generations;

/// moka drops expired entries when it is used; an idle cache would hold PII past its lifetime.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Bounds of the store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lifetime of what was found; also the largest `max_age` that means anything.
    pub ttl: Duration,
    /// Lifetime of "there is none".
    pub negative_ttl: Duration,
    /// The store's whole weight, in bytes by estimate.
    pub max_bytes: u64,
}

/// What the store has to know of its values.
#[derive(Debug)]
pub struct Traits<V> {
    /// Bytes, by estimate.
    pub weight: fn(&V) -> u32,
    /// Whether the value says that there is none.
    pub is_negative: fn(&V) -> bool,
}

/// What is looked up. A struct and no joined text, so that no two ids can collide, and with the account in it, so that
/// nothing of one account is served to another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    scope: Scope,
    item: Item,
    generation: u64,
}

/// What an item belongs to, and is forgotten with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A conversation: its participants and their pages.
    Conversation(Conversation),
    /// A person: the pages of their conversations.
    Person(PersonKey),
}

/// What of a scope is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A participant by its id, or by the identity that stands in its place.
    Participant(Segment),
    /// A page by its size and where it begins.
    Page {
        /// At most so many items.
        size: u32,
        /// The upstream's own page number and token.
        cursor: (String, String),
    },
}

#[derive(Clone)]
struct Stored<V> {
    value: V,
    since: Instant,
    fetched: SystemTime,
    /// The span of its load.
    origin: Origin,
}

/// A value, and how it came.
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    /// The value.
    pub value: V,
    /// How the store served it.
    pub status: CacheStatus,
    /// When its load began: the value is not older than that.
    pub fetched: SystemTime,
}

impl<V> Stored<V> {
    fn with(self, status: CacheStatus) -> Loaded<V> {
        Loaded { value: self.value, status, fetched: self.fetched }
    }
}

/// What a caller takes for young enough.
#[derive(Clone, Copy)]
struct Young {
    asked: Instant,
    max_age: Duration,
}

impl Young {
    fn is<V>(self, stored: &Stored<V>) -> bool {
        self.asked.saturating_duration_since(stored.since) <= self.max_age
    }
}

/// Why there is no value.
#[derive(Debug)]
pub enum LoadError<E> {
    /// The load failed; all who waited for it share the error, and nothing is stored.
    Failed(Arc<E>),
    /// The load panicked.
    Panicked,
}

/// The store.
#[derive(Clone)]
pub struct Cache<V> {
    entries: Moka<Key, Stored<V>>,
    /// The loads under way: values pass through on their way to all who wait, and do not stay.
    flights: Moka<Key, Stored<V>>,
    generations: Arc<Generations>,
    ttl: Duration,
    tasks: TaskTracker,
    metrics: Metrics,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// An empty store; `tasks` owns its loads.
    pub fn new(settings: &Settings, traits: &Traits<V>, tasks: TaskTracker, metrics: Metrics) -> Self {
        let Traits { weight, is_negative } = *traits;
        let lifetimes = Lifetimes { ttl: settings.ttl, negative_ttl: settings.negative_ttl, is_negative };
        let entries = Moka::builder()
            .max_capacity(settings.max_bytes)
            .weigher(move |key: &Key, stored: &Stored<V>| key.weight().saturating_add(weight(&stored.value)))
            // The default policy may refuse new entries while it is full, which would make fresh reads miss.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(lifetimes)
            .build();
        let flights = Moka::builder().max_capacity(0).build();
        let size = entries.clone();
        metrics.observe_cache(move || (size.entry_count(), size.weighted_size()));
        Self { entries, flights, generations: Arc::default(), ttl: settings.ttl, tasks, metrics }
    }

    /// The key of an item now. Take it before its load begins: a change after this moment makes it a key of the past.
    pub fn key(&self, scope: Scope, item: Item) -> Key {
        let generation = self.generations.of(&scope);
        Key { scope, item, generation }
    }

    /// Whether a caller with this `max_age` can only be served by a load of its own.
    pub fn never_serves(&self, max_age: Option<Duration>) -> bool {
        max_age.unwrap_or(self.ttl).min(self.ttl).is_zero()
    }

    /// The value from the store where it is young enough, else from `load`, which runs to its end whatever becomes of the
    /// callers that wait for it. Callers at the same time share one load.
    pub async fn get_or_load<E, F>(
        &self,
        key: Key,
        max_age: Option<Duration>,
        load: impl Fn() -> F,
    ) -> Result<Loaded<V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let young = Young { asked: Instant::now(), max_age: max_age.unwrap_or(self.ttl) };
        if let Some(stored) = self.entries.get(&key).await.filter(|stored| young.is(stored)) {
            self.metrics.cache_hit(stored.since.elapsed());
            return Ok(stored.with(CacheStatus::Hit));
        }
        let loaded = self.load_shared(key, young, load).await;
        self.metrics.cache_looked_up(match &loaded {
            Ok(loaded) => outcome(loaded.status),
            Err(_) => "failed",
        });
        loaded
    }

    async fn load_shared<E, F>(
        &self,
        key: Key,
        young: Young,
        load: impl Fn() -> F,
    ) -> Result<Loaded<V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        loop {
            // A task of its own: were it the caller's future, the load would end with the caller's patience, and a cache
            // whose callers are less patient than its upstream would never fill.
            let leads = Arc::new(AtomicBool::new(false));
            let flight = self.clone().fly(key.clone(), young, leads.clone(), timed(load()));
            let flight = self.tasks.spawn(flight.in_current_span());
            let _caller = Caller { flight: flight.abort_handle(), leads };
            let (stored, status) = match flight.await {
                Ok(flown) => flown.map_err(LoadError::Failed)?,
                Err(_) => return Err(LoadError::Panicked),
            };
            // A load that had begun too long before this call will not do: join, or begin, the next one.
            if status == CacheStatus::Miss || young.is(&stored) {
                return Ok(stored.with(status));
            }
        }
    }

    /// Runs the load, or joins the one that is under way.
    async fn fly<E>(
        self,
        key: Key,
        young: Young,
        leads: Arc<AtomicBool>,
        load: impl Future<Output = Result<Stored<V>, E>>,
    ) -> Result<(Stored<V>, CacheStatus), Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        // Whoever shares a failure learns whose it was.
        let load = async {
            let origin = Origin::current();
            load.await.map_err(|error| (Arc::new(error), origin))
        };
        let mut status = CacheStatus::Coalesced;
        let flight = self.flights.entry(key.clone()).or_try_insert_with::<_, (Arc<E>, Origin)>(async {
            // Another load may have ended between the caller's look and now.
            if let Some(stored) = self.entries.get(&key).await.filter(|stored| young.is(stored)) {
                status = CacheStatus::Hit;
                return Ok(stored);
            }
            status = CacheStatus::Miss;
            leads.store(true, Ordering::Relaxed);
            let stored = load.instrument(info_span!("cache.load", otel.name = "cache load")).await?;
            self.put(key.clone(), stored.clone()).await;
            Ok(stored)
        });
        // Where a call's time went that shared a load is told by another call's trace.
        let (stored, origin) = match flight.await {
            Ok(entry) => {
                let stored = entry.into_value();
                let origin = stored.origin.clone();
                (Ok(stored), origin)
            }
            Err(failure) => (Err(failure.0.clone()), failure.1.clone()),
        };
        if status == CacheStatus::Coalesced {
            origin.link();
        }
        // It stays in `entries` only; whoever comes next must not take it for a load that is under way.
        self.flights.invalidate(&key).await;
        stored.map(|stored| (stored, status))
    }

    /// The value from `load` without a look into the store, which then holds it for others.
    pub async fn load<E, F>(&self, key: Key, load: F) -> Result<Loaded<V>, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        let stored = self.loaded_past(load).await?;
        self.put(key, stored.clone()).await;
        Ok(stored.with(CacheStatus::Bypass))
    }

    /// The value from `load`, where the conversation that it belongs to is known only by the answer: `item_of` tells it.
    /// It is stored unless anything was forgotten meanwhile, because nobody could tell whether that concerned it.
    pub async fn load_unkeyed<E, F>(
        &self,
        load: F,
        item_of: impl FnOnce(&V) -> Option<(Conversation, Item)>,
    ) -> Result<Loaded<V>, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        let before = self.generations.all();
        let stored = self.loaded_past(load).await?;
        if let Some((conversation, item)) = item_of(&stored.value) {
            // The order matters: the key first, then the comparison. See `Generations::forget`.
            let key = self.key(Scope::Conversation(conversation), item);
            if self.generations.all() == before {
                self.put(key, stored.clone()).await;
            }
        }
        Ok(stored.with(CacheStatus::Bypass))
    }

    /// A load that did not ask the store.
    async fn loaded_past<E>(&self, load: impl Future<Output = Result<V, E>>) -> Result<Stored<V>, E> {
        let stored = timed(load).await;
        self.metrics.cache_looked_up(if stored.is_ok() { "bypass" } else { "failed" });
        stored
    }

    /// A slower load must not replace what a later one brought.
    async fn put(&self, key: Key, new: Stored<V>) {
        let newer = |there: Option<moka::Entry<Key, Stored<V>>>| {
            let there = there.map(moka::Entry::into_value).filter(|there| there.since > new.since);
            std::future::ready(there.unwrap_or(new))
        };
        self.entries.entry(key).and_upsert_with(newer).await;
    }

    /// Forgets all of a conversation: who asks from now on gets what is loaded from now on.
    pub fn forget(&self, account: &AccountId, conversation_id: &Segment) {
        self.generations.forget(account, conversation_id);
    }

    /// Forgets in which conversations a person is.
    pub fn forget_person(&self, account: &AccountId, person: &Person) {
        self.generations.forget_person(account, person);
    }

    /// Forgets that of every person of an account, for a change that does not tell whom it is about.
    pub fn forget_people(&self, account: &AccountId) {
        self.generations.forget_people(account);
    }

    /// Forgets everything, for a change of a conversation whose id is not known.
    pub fn forget_all(&self) {
        self.generations.forget_all();
    }

    /// Drops what has expired, until the token is cancelled.
    pub async fn upkeep(&self, end: CancellationToken) {
        tokio::join!(tidy(&self.entries, end.clone()), tidy(&self.flights, end));
    }
}

/// Drops what has expired, again and again, until the token is cancelled.
async fn tidy<K, V>(entries: &Moka<K, V>, end: CancellationToken)
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
    while end.run_until_cancelled(interval.tick()).await.is_some() {
        entries.run_pending_tasks().await;
    }
}

fn outcome(status: CacheStatus) -> &'static str {
    match status {
        CacheStatus::Hit => "hit",
        CacheStatus::Miss => "miss",
        CacheStatus::Coalesced => "coalesced",
        CacheStatus::Bypass | CacheStatus::Unspecified => "bypass",
    }
}

/// Dropped, it ends a flight that only waits for another's load: callers that come and go while one load hangs would leave
/// one each.
struct Caller {
    flight: AbortHandle,
    leads: Arc<AtomicBool>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if !self.leads.load(Ordering::Relaxed) {
            self.flight.abort();
        }
    }
}

/// Notes the time before the load, so that the value is never taken for younger than it is.
async fn timed<V, E>(load: impl Future<Output = Result<V, E>>) -> Result<Stored<V>, E> {
    let (since, fetched, origin) = (Instant::now(), SystemTime::now(), Origin::current());
    load.await.map(|value| Stored { value, since, fetched, origin })
}

impl Key {
    fn weight(&self) -> u32 {
        let item = match &self.item {
            Item::Participant(id) => id.as_str().len(),
            Item::Page { cursor: (page, token), .. } => page.len() + token.len(),
        };
        let scope = match &self.scope {
            Scope::Conversation(conversation) => conversation.id.as_str().len(),
            Scope::Person(PersonKey { person: Person::Identity(text) | Person::Address(text), .. }) => {
                text.len()
            }
        };
        // moka's own share of an entry, measured with empty values, and the texts of the key.
        let bytes = 300 + scope + item;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

struct Lifetimes<V> {
    ttl: Duration,
    negative_ttl: Duration,
    is_negative: fn(&V) -> bool,
}

impl<V> Expiry<Key, Stored<V>> for Lifetimes<V> {
    fn expire_after_create(&self, _: &Key, stored: &Stored<V>, now: Instant) -> Option<Duration> {
        let lifetime = if (self.is_negative)(&stored.value) { self.negative_ttl } else { self.ttl };
        // The lifetime counts from the load's begin.
        Some(lifetime.saturating_sub(now.saturating_duration_since(stored.since)))
    }

    fn expire_after_update(
        &self,
        key: &Key,
        stored: &Stored<V>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, stored, now)
    }
}

#[cfg(test)]
mod tests;
