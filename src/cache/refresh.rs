//! Loads ahead of need: whoever finds a value a little past its lifetime is served, and one load renews it for the next.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache as Moka;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use super::staleness::{Asked, timed};
use super::{Cache, Key};
use crate::proto::CacheStatus;
use crate::telemetry::Origin;

/// After a refresh that failed, the next reader in so long begins none.
const PAUSE: Duration = Duration::from_secs(5);

/// Where one is missing for want of room, a refresh too many joins the load that is under way.
const MAX_REFRESHES: u64 = 100_000;

/// What is being refreshed, and what could not be lately.
#[derive(Clone)]
pub(super) struct Refreshes {
    begun: Moka<Key, ()>,
}

impl Refreshes {
    pub(super) fn new() -> Self {
        Self::with_pause(PAUSE)
    }

    pub(super) fn with_pause(pause: Duration) -> Self {
        Self { begun: Moka::builder().max_capacity(MAX_REFRESHES).time_to_live(pause).build() }
    }

    /// Whether the caller is the one to refresh it. One that takes longer than the pause is joined by the next.
    async fn begin(&self, key: &Key) -> bool {
        self.begun.entry_by_ref(key).or_insert(()).await.is_fresh()
    }

    async fn succeeded(&self, key: &Key) {
        self.begun.invalidate(key).await;
    }

    /// The pause begins now.
    async fn failed(&self, key: Key) {
        self.begun.insert(key, ()).await;
    }

    /// Drops what has expired, until the token is cancelled.
    pub(super) async fn upkeep(&self, end: CancellationToken) {
        super::tidy(&self.begun, end).await;
    }
}

impl<V: Clone + Send + Sync + 'static> Cache<V> {
    /// Loads what is stored under the key anew, unless that is being done. Nobody waits for it, so its end is counted and
    /// not told.
    pub(super) async fn refresh<E, F>(&self, key: &Key, asked: Asked, load: impl Fn() -> F)
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        if !self.refreshes.begin(key).await {
            return;
        }
        let (cache, key, origin) = (self.clone(), key.clone(), Origin::current());
        let flight = self.clone().fly(key.clone(), asked, Arc::default(), timed(load()));
        let refresh = async move {
            origin.link();
            // A task within the task: a panic is an outcome, too.
            let flown = cache.tasks.spawn(flight.in_current_span()).await;
            let outcome = match &flown {
                Ok((Ok(_), CacheStatus::Miss)) => "renewed",
                // Somebody who could not be served had begun to load it.
                Ok((Ok(_), _)) => "joined",
                Ok((Err(_), _)) => "failed",
                Err(_) => "panicked",
            };
            if matches!(flown, Ok((Ok(_), _))) {
                cache.refreshes.succeeded(&key).await;
            } else {
                cache.refreshes.failed(key).await;
            }
            cache.metrics.cache_refreshed(outcome);
        };
        // A trace of its own: the call's ends with the call.
        let span = info_span!(parent: None, "cache.refresh", otel.name = "cache refresh");
        self.tasks.spawn(refresh.instrument(span));
    }
}
