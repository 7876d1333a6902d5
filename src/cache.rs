//! A read-through store: single-flight loads that outlive their callers, and generations, so that what was forgotten can
//! neither come back nor be joined. What is past its lifetime is kept for a while, to be served while it is refreshed, or
//! where no load can serve.
//!
//! moka alone keeps a stale value when an entry is invalidated while its load is under way. So the key that is looked up
//! carries the generation of its conversation, and to forget is to count it up: an older load ends under a key that
//! nobody asks for again. Old entries leave by their lifetime and by weight.

mod aliases;
mod generations;
mod key;
mod outcomes;
mod refresh;
mod staleness;

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use moka::future::Cache as Moka;
use moka::policy::EvictionPolicy;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

pub use aliases::Aliases;
pub use key::{Item, Key, Scope};
pub use outcomes::{Claim, Kept, Outcomes, Settled, Slot};
pub use staleness::Wanted;

use crate::ids::{AccountId, Conversation, Person, Segment};
use crate::proto::CacheStatus;
use crate::telemetry::{Metrics, Origin, in_current_trace};
use generations::Generations;
use refresh::Refreshes;
use staleness::{Asked, Stored, Verdict, timed};

/// moka drops expired entries when it is used; an idle cache would hold PII past its lifetime.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Bounds of the store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lifetime of what was found; zero turns the cache off.
    pub ttl: Duration,
    /// For so long after it, what was found is kept to be served stale.
    pub grace: Duration,
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

/// Why there is no value.
#[derive(Debug)]
pub enum LoadError<E> {
    /// The load failed; all who waited for it share the error, and nothing is stored.
    Failed(Arc<E>),
    /// The load panicked.
    Panicked,
}

/// What the store has to know of a load's error.
pub trait Failure {
    /// Whether it tells of the call whose load it was, more than of what was loaded: another's load may go well.
    fn is_the_leaders(&self) -> bool;
}

/// The store.
#[derive(Clone)]
pub struct Cache<V> {
    entries: Moka<Key, Stored<V>>,
    /// The loads under way: values pass through on their way to all who wait, and do not stay.
    flights: Moka<Key, Stored<V>>,
    refreshes: Refreshes,
    generations: Arc<Generations>,
    is_negative: fn(&V) -> bool,
    tasks: TaskTracker,
    metrics: Metrics,
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// An empty store; `tasks` owns its loads.
    pub fn new(settings: &Settings, traits: &Traits<V>, tasks: TaskTracker, metrics: Metrics) -> Self {
        let Traits { weight, is_negative } = *traits;
        let Settings { ttl, grace, negative_ttl, max_bytes } = *settings;
        // Where the cache is off, nothing is kept either.
        let found = if ttl.is_zero() { ttl } else { ttl.saturating_add(grace) };
        let kept = staleness::Kept { found, negative: negative_ttl, is_negative };
        let entries = Moka::builder()
            .max_capacity(max_bytes)
            .weigher(move |key: &Key, stored: &Stored<V>| key.weight().saturating_add(weight(&stored.value)))
            // The default policy may refuse new entries while it is full, which would make fresh reads miss.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(kept)
            .build();
        let flights = Moka::builder().max_capacity(0).build();
        let size = entries.clone();
        metrics.observe_cache(move || (size.entry_count(), size.weighted_size()));
        let (refreshes, generations) = (Refreshes::new(), Arc::default());
        Self { entries, flights, refreshes, generations, is_negative, tasks, metrics }
    }

    /// The key of an item now. Take it before its load begins: a change after this moment makes it a key of the past.
    pub fn key(&self, scope: Scope, item: Item) -> Key {
        let generation = self.generations.of(&scope);
        Key { scope, item, generation }
    }

    /// The value from the store where it is young enough, else from `load`, which runs to its end whatever becomes of the
    /// callers that wait for it. Callers at the same time share one load.
    pub async fn get_or_load<E, F>(
        &self,
        key: &Key,
        wanted: Wanted,
        load: impl Fn() -> F,
    ) -> Result<Loaded<V>, LoadError<E>>
    where
        E: Failure + Send + Sync + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let asked = Asked { at: Instant::now(), wanted };
        if let Some(stored) = self.entries.get(key).await {
            match asked.judge(&stored) {
                Verdict::Fresh => {
                    self.metrics.cache_hit(asked.age(&stored));
                    return Ok(stored.with(CacheStatus::Hit));
                }
                Verdict::Stale if !(self.is_negative)(&stored.value) => {
                    Box::pin(self.refresh(key, asked, load)).await;
                    return Ok(self.served(stored, CacheStatus::StaleRevalidating));
                }
                Verdict::Stale | Verdict::TooOld => {}
            }
        }
        // Behind a pointer, as all that is no hit: it has room for a load, which a hit would carry about.
        let (stored, status) = Box::pin(self.load_shared(key, asked, load)).await?;
        Ok(self.served(stored, status))
    }

    /// What there is now, at most so old, for a caller whom no load could serve. That there is none is not told so late.
    pub async fn stale(&self, key: &Key, oldest: Duration) -> Option<Loaded<V>> {
        // By the generation of now: what has been forgotten since the caller took its key is not served.
        let key = self.key(key.scope.clone(), key.item.clone());
        let stored = self.entries.get(&key).await?;
        let will_do = !(self.is_negative)(&stored.value) && stored.since.elapsed() <= oldest;
        will_do.then(|| self.served(stored, CacheStatus::StaleOnError))
    }

    /// Somebody was told that there is none of it: where the store tells otherwise, all that belongs with it is forgotten.
    pub async fn gone(&self, key: &Key) {
        if self.entries.get(key).await.is_some_and(|stored| !(self.is_negative)(&stored.value)) {
            self.generations.forget_scope(&key.scope);
        }
    }

    /// A caller was served nothing: counted by who knows that nothing else would do.
    pub fn count_failed(&self) {
        self.metrics.cache_looked_up("failed");
    }

    fn served(&self, stored: Stored<V>, status: CacheStatus) -> Loaded<V> {
        self.metrics.cache_looked_up(outcome(status));
        stored.with(status)
    }

    async fn load_shared<E, F>(
        &self,
        key: &Key,
        asked: Asked,
        load: impl Fn() -> F,
    ) -> Result<(Stored<V>, CacheStatus), LoadError<E>>
    where
        E: Failure + Send + Sync + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let mut is_first = true;
        loop {
            // A task of its own: were it the caller's future, the load would end with the caller's patience, and a cache
            // whose callers are less patient than its upstream would never fill.
            let leads = Arc::new(AtomicBool::new(false));
            let flight = self.clone().fly(key.clone(), asked, leads.clone(), timed(load()));
            let flight = self.tasks.spawn(in_current_trace(flight));
            let _caller = Caller { flight: flight.abort_handle(), leads };
            let (stored, status) = match flight.await {
                Ok((Ok(stored), status)) => (stored, status),
                // Once more, and not again: where many fail they wait for two loads, not for one each.
                Ok((Err(error), CacheStatus::Coalesced)) if is_first && error.is_the_leaders() => {
                    is_first = false;
                    continue;
                }
                Ok((Err(error), _)) => return Err(LoadError::Failed(error)),
                Err(_) => return Err(LoadError::Panicked),
            };
            // A load that had begun too long before this call will not do: join, or begin, the next one.
            if status == CacheStatus::Miss || asked.is_fresh(&stored) {
                return Ok((stored, status));
            }
        }
    }

    /// Runs the load, or joins the one that is under way.
    async fn fly<E>(
        self,
        key: Key,
        asked: Asked,
        leads: Arc<AtomicBool>,
        load: impl Future<Output = Result<Stored<V>, E>>,
    ) -> (Result<Stored<V>, Arc<E>>, CacheStatus)
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
            if let Some(stored) = self.entries.get(&key).await.filter(|stored| asked.is_fresh(stored)) {
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
        (stored, status)
    }

    /// The value from `load` without a look into the store, which then holds it for others.
    pub async fn load<E, F>(&self, key: &Key, load: F) -> Result<Loaded<V>, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        let stored = timed(load).await?;
        self.put(key.clone(), stored.clone()).await;
        Ok(self.served(stored, CacheStatus::Bypass))
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
        let stored = timed(load).await?;
        if let Some((conversation, item)) = item_of(&stored.value) {
            // The order matters: the key first, then the comparison. See `Generations::forget`.
            let key = self.key(Scope::Conversation(conversation), item);
            if self.generations.all() == before {
                self.put(key, stored.clone()).await;
            }
        }
        Ok(self.served(stored, CacheStatus::Bypass))
    }

    /// A slower load must not replace what a later one brought. Where it brought that something is gone, other entries may
    /// tell of it, by another name or on a page: they are forgotten with it.
    async fn put(&self, key: Key, new: Stored<V>) {
        let is_negative = self.is_negative;
        let (scope, mut is_gone) = (key.scope.clone(), false);
        let newer = |there: Option<moka::Entry<Key, Stored<V>>>| {
            let there = there.map(moka::Entry::into_value);
            let stays = there.as_ref().is_some_and(|there| there.since > new.since);
            is_gone =
                !stays && is_negative(&new.value) && there.as_ref().is_some_and(|it| !is_negative(&it.value));
            std::future::ready(there.filter(|_| stays).unwrap_or(new))
        };
        self.entries.entry(key).and_upsert_with(newer).await;
        if is_gone {
            self.generations.forget_scope(&scope);
        }
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
        let refreshes = self.refreshes.upkeep(end.clone());
        tokio::join!(tidy(&self.entries, end.clone()), tidy(&self.flights, end), refreshes);
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
        CacheStatus::StaleRevalidating => "stale_revalidating",
        CacheStatus::StaleOnError => "stale_on_error",
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

#[cfg(test)]
mod tests;
