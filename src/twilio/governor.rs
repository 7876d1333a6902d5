//! The governor of one account: how many requests it has under way at Twilio, and who is next.
//!
//! Each attempt needs a place. Where none is free it waits in a queue, unless its turn would come too late; then it is refused
//! at once. Accounts share nothing.

mod limit;
mod places;
mod queue;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, info_span};

pub(super) use places::{Ask, Ending};
use places::{Entry, Places, Queued, Refusal};
pub(super) use queue::Kind;
use queue::Spot;

use crate::ids::{AccountId, CallerId};
use crate::telemetry::{GovernorLoad, Metrics};

/// What a refused caller is asked to wait at least, and at most.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// An account's governor.
pub(super) struct Governor {
    account: AccountId,
    /// Held for a few steps only, never across an await.
    places: Mutex<Places>,
    metrics: Metrics,
}

impl Governor {
    /// With at most so many places, and so many who wait.
    pub(super) fn new(
        account: AccountId,
        max_concurrency: usize,
        max_queue: usize,
        metrics: Metrics,
    ) -> Self {
        let places = Places::new(max_concurrency, max_queue, Instant::now());
        Self { account, places: Mutex::new(places), metrics }
    }

    /// A place, as soon as it is the asker's turn; or how long to stay away. Dropped, the future leaves the queue.
    pub(super) async fn enter(self: &Arc<Self>, ask: Ask) -> Result<Permit, Duration> {
        let now = Instant::now();
        let entry = self.places().enter(ask, now);
        match entry {
            Entry::Taken => Ok(self.permit()),
            Entry::Queued(queued) => self.wait(ask, queued, now).await,
            Entry::Refused(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// A place beyond the limit, for one of those few that the breaker counts: probes that hang would have all the places, and
    /// no further one could find out that Twilio is well.
    pub(super) fn enter_beyond(self: &Arc<Self>) -> Permit {
        self.places().enter_beyond(Instant::now());
        self.permit()
    }

    async fn wait(self: &Arc<Self>, ask: Ask, queued: Queued, since: Instant) -> Result<Permit, Duration> {
        let Queued { spot, turn, until } = queued;
        let mut waiting = Waiting { governor: self, spot: Some(spot) };
        let turn =
            timeout_at(until, turn).instrument(info_span!("governor.wait", otel.name = "wait for a turn"));
        if let Ok(Ok(())) = turn.await {
            waiting.spot = None;
            self.metrics.governor_waited(self.account.as_str(), is_write(ask.kind), since.elapsed());
            return Ok(self.permit());
        }
        drop(waiting);
        let wait = self.places().expected_wait(ask, Instant::now());
        Err(self.refuse(Refusal { reason: "waited", wait }))
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit { governor: self.clone(), began: Instant::now(), ending: Ending::Dropped }
    }

    fn refuse(&self, refusal: Refusal) -> Duration {
        self.metrics.governor_refused(self.account.as_str(), refusal.reason);
        refusal.wait.clamp(WAITS.0, WAITS.1)
    }

    /// For the metrics.
    pub(super) fn load(&self) -> GovernorLoad {
        let places::Load { limit, in_flight, queued_reads, queued_writes } = self.places().load();
        let account = self.account.to_string();
        GovernorLoad { account, limit, in_flight, queued_reads, queued_writes }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_write(kind: Kind) -> bool {
    kind == Kind::Write
}

/// Those whose turn it is. One who left meanwhile gives the turn back by itself, so that nobody needs to listen.
fn wake(next: Vec<oneshot::Sender<()>>) {
    for waiter in next {
        let _ = waiter.send(());
    }
}

/// A place, held for as long as this lives.
pub(super) struct Permit {
    governor: Arc<Governor>,
    began: Instant,
    ending: Ending,
}

impl Permit {
    /// Gives the place back.
    pub(super) fn end(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = self.governor.places().end(self.began, self.ending, Instant::now());
        wake(next);
    }
}

/// Somebody in the queue, who leaves it when this is dropped.
struct Waiting<'a> {
    governor: &'a Governor,
    /// `None` once the place is in other hands.
    spot: Option<Spot<CallerId>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(spot) = self.spot {
            let next = self.governor.places().leave(spot, Instant::now());
            wake(next);
        }
    }
}

#[cfg(test)]
mod tests;
