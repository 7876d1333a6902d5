//! What Twilio's events told, in one order: kept for a while, so that a watcher that comes back misses nothing.
//!
//! The feed is a ring, and a watcher is a place in it. Nothing is copied for a watcher and nothing queues up behind a slow
//! one: it is told that it lags while what it missed is still there to be resumed from, or that it is gone.
//!
//! Alone, a process fills its ring itself. With `redis`, all replicas fill theirs from one stream, in its order: an event
//! has the same place everywhere, and a watcher can resume at any replica.

mod order;
mod position;
mod redis;
mod ring;
mod sleepers;
mod subscription;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::redis::Redis;
pub use self::redis::{
    BadRedisUrl, IdentifiedRequest, Lease, LeaseError, RedisSettings, RedisUrl, RedisUrlSource, RequestClaim,
    RequestTicket,
};
use crate::ids::{AccountId, ApiVersion, Segment};
use crate::proto::ParticipantEvent;
use crate::telemetry::Metrics;
use order::Order;
use position::now;
pub use position::{NoPosition, Position};
pub use ring::Capacity;
use ring::Ring;
use sleepers::Sleepers;
pub use subscription::Subscription;

/// A conversation by its id, in an account and an API.
pub type Topic = (AccountId, ApiVersion, String);

/// An event of Twilio about one participant.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The account that it is of.
    pub account: AccountId,
    /// The API that told it.
    pub version: ApiVersion,
    /// What it tells; the participant is always there.
    pub event: ParticipantEvent,
}

/// What a replica lets the others know beside events. It names no person: what is only forgotten need not go to Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A conversation was written to.
    Written {
        /// Of this account.
        account: AccountId,
        /// Twilio's id of it.
        conversation: Segment,
        /// Whether it changed, too, in which conversations somebody is.
        people: bool,
    },
    /// Events of the account arrive.
    Delivered {
        /// Of this account.
        account: AccountId,
        /// From this API.
        version: ApiVersion,
    },
    /// One replica reads the events of v1, of all accounts, for all replicas.
    Followed {
        /// It has handed on all that are older.
        behind: Duration,
    },
    /// Something was written to, and nobody can tell what.
    Everything,
}

/// What stands in the stream that replicas share.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// An event, from this replica or another. Watchers are told after this.
    Event(&'a Event),
    /// What another replica lets this one know.
    Notice(&'a Notice),
}

/// An event, and its place.
#[derive(Clone, Debug)]
pub struct Told {
    /// Where a watcher resumes that was told this one.
    pub position: Position,
    /// The event.
    pub event: Arc<Event>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Watchers are told.
    Told,
    /// It came before, and is not told again.
    Repeated,
    /// It is older than the removal of its participant, and would bring it back.
    Outdated,
}

/// The event could not be handed on, for a reason that passes: it has to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPublished;

/// Events after the place are gone, or it is none of this feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired;

/// A watcher misses events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// It is too far behind; its place can still be resumed from.
    Lagged,
    /// What came after its place is gone: it did not ask for more until then.
    Gone,
}

/// The events of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The place of the last event: watchers of everything wait for it to change.
    latest: watch::Sender<Position>,
    redis: Option<Redis>,
}

struct State {
    ring: Ring,
    latest: Position,
    /// Where a watcher begins that came before anything was known of Redis's stream.
    begin: Position,
    /// When the first of them came, in milliseconds of the system's clock.
    awaited_since: Option<u64>,
    order: Order,
    sleepers: Sleepers,
}

/// How far a clock may be ahead of another.
const CLOCK_SKEW: u64 = 60_000;

impl Feed {
    /// A feed of this process alone, which keeps so much.
    pub fn local(capacity: Capacity) -> Self {
        Self::new(capacity, Position { epoch: now(), number: 0 }, None)
    }

    /// A feed that this process shares with others. It is empty until [`follow`](Self::follow) runs.
    pub fn shared(capacity: Capacity, settings: RedisSettings, metrics: Metrics) -> Self {
        Self::new(capacity, Position::default(), Some(Redis::new(settings, metrics)))
    }

    fn new(capacity: Capacity, begin: Position, redis: Option<Redis>) -> Self {
        let ring = Ring::new(capacity, begin);
        let (order, sleepers) = (Order::default(), Sleepers::default());
        let state = State { ring, latest: begin, begin, awaited_since: None, order, sleepers };
        let (state, latest) = (Mutex::new(state), watch::Sender::new(begin));
        Self { shared: Arc::new(Shared { state, latest, redis }) }
    }

    /// Follows the stream that is shared, until the token is cancelled. `hear` is told first, and how old it is; watchers
    /// are told when it returns.
    pub async fn follow(&self, hear: impl Fn(Heard<'_>, Duration) + Send + Sync, end: CancellationToken) {
        match &self.shared.redis {
            Some(redis) => redis::follow(self, redis, hear, end).await,
            None => end.cancelled().await,
        }
    }

    /// Since when all is known that other replicas were told, in milliseconds of the system's clock, 0 where it is not;
    /// `None` where there are none.
    pub fn current_since(&self) -> Option<Arc<AtomicU64>> {
        self.shared.redis.as_ref().map(Redis::current_since)
    }

    /// Hands the event on to the watchers of all replicas, unless it was told before. Alone, one that is outdated is not
    /// told either; else that is for each replica's reader to find, all by the one order.
    pub async fn publish(&self, event: Event) -> Result<Published, NotPublished> {
        if let Some(redis) = &self.shared.redis {
            return redis.publish(&event).await;
        }
        Ok(self.tell(Position::default(), Arc::new(event)))
    }

    /// Lets the other replicas know, as soon as Redis is there.
    pub fn notify(&self, notice: Notice) {
        if let Some(redis) = &self.shared.redis {
            redis.notify(notice);
        }
    }

    /// Lets the other replicas know now, or tells that it could not.
    pub async fn announce(&self, notice: &Notice) -> Result<(), NotPublished> {
        match &self.shared.redis {
            Some(redis) => redis.announce(notice).await,
            None => Ok(()),
        }
    }

    /// Ends the watchers of all replicas, and forgets everything there: events are lost that should stand here.
    pub async fn lose(&self) -> Result<(), NotPublished> {
        if let Some(redis) = &self.shared.redis {
            return redis.lose().await;
        }
        let mut state = self.state();
        let after = state.latest.next();
        state.restart(after, Vec::new());
        self.shared.latest.send_replace(after);
        Ok(())
    }

    /// Waits for what other replicas are to be let know, a second at most.
    pub async fn flush(&self) {
        if let Some(redis) = &self.shared.redis {
            redis.flush().await;
        }
    }

    /// Asks whether this replica is the first of all with the request. Without a bus it is, and while Redis is away.
    pub async fn claim(&self, request: IdentifiedRequest) -> RequestClaim {
        match &self.shared.redis {
            Some(redis) => redis.claim(request).await,
            None => RequestClaim::First(RequestTicket::of_one_process()),
        }
    }

    /// The lease of this name, for so long, unless another replica holds it: that is `Lost`. Without a bus it is always
    /// there.
    pub async fn lease(&self, name: &str, time: Duration) -> Result<Lease, LeaseError> {
        match &self.shared.redis {
            Some(redis) => redis.lease(name, time).await,
            None => Ok(Lease::of_one_process()),
        }
    }

    /// What [`Lease::save`] saved last for the source of this name.
    pub async fn saved(&self, source: &str) -> Result<Option<String>, LeaseError> {
        match &self.shared.redis {
            Some(redis) => redis.saved(source).await,
            None => Ok(None),
        }
    }

    /// Tells the watchers, unless it was told before or is outdated.
    fn tell(&self, position: Position, event: Arc<Event>) -> Published {
        let mut state = self.state();
        let published = state.tell(position, event);
        // Within the lock, so that no watcher sees an older place after a newer one.
        self.shared.latest.send_replace(state.latest);
        published
    }

    /// Begins anew with these events: nothing from before the place can be resumed from.
    fn restart(&self, after: Position, events: Vec<(Position, Arc<Event>)>) {
        let mut state = self.state();
        state.restart(after, events);
        self.shared.latest.send_replace(state.latest);
    }

    fn capacity(&self) -> Capacity {
        self.state().ring.capacity()
    }

    /// A watcher of all that comes after the place, or from now on.
    pub fn subscribe(&self, after: Option<Position>) -> Result<Subscription, Expired> {
        self.subscribe_to(HashSet::new(), after)
    }

    /// A watcher of these conversations only, unless there are none.
    pub fn subscribe_to(
        &self,
        topics: HashSet<Topic>,
        after: Option<Position>,
    ) -> Result<Subscription, Expired> {
        let mut state = self.state();
        if state.latest == Position::default() {
            state.awaited_since.get_or_insert_with(now);
        }
        let place = after.unwrap_or(state.latest);
        // Another replica may have been told more by now. What nobody can have been told is none of this feed's.
        let ahead = if self.shared.redis.is_some() {
            Position { epoch: now() + CLOCK_SKEW, number: 0 }
        } else {
            state.latest
        };
        // A replica that has not read the stream yet gives a place that is none.
        let is_nowhere = after == Some(Position::default());
        if is_nowhere || place < state.ring.floor() || place > ahead.max(state.latest) {
            return Err(Expired);
        }
        Ok(Subscription::new(self, &mut state, topics, place))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic leaves behind is whole.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn restart(&mut self, after: Position, events: Vec<(Position, Arc<Event>)>) {
        // Whoever sleeps may have missed something there.
        self.sleepers.tell_all(self.latest.next());
        self.latest = after.max(self.latest);
        let floor = self.latest;
        self.ring.clear(floor);
        for (position, event) in events {
            self.tell(position, event);
        }
        if self.begin == Position::default() {
            self.begin = self.promised_since(floor);
        }
    }

    /// Where the first of those begins that came before anything was known: what others were told since was promised to them.
    /// Places are by Redis's clock, so what came a little before is told, too, rather than anything missed.
    fn promised_since(&self, floor: Position) -> Position {
        let place = |epoch| Position { epoch, number: 0 };
        match self.awaited_since {
            Some(came) if floor < self.latest && floor <= place(came) => {
                place(came.saturating_sub(CLOCK_SKEW)).max(floor).min(self.latest)
            }
            // What it waited for is gone.
            Some(came) if floor < self.latest => place(came),
            _ => self.latest,
        }
    }

    fn tell(&mut self, position: Position, event: Arc<Event>) -> Published {
        let published = self.order.judge(&event);
        if published == Published::Told {
            // Places only rise, also where Redis has lost its data and its clock was set back.
            let position = position.max(self.latest.next());
            let told = Told { position, event };
            self.latest = position;
            self.sleepers.tell(&told);
            self.ring.push(told);
        }
        published
    }
}

#[cfg(test)]
mod tests;
