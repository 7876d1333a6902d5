//! What Twilio's events told, in one order: kept for a while, so that a watcher that comes back misses nothing.
//!
//! The feed is a ring, and a watcher is a place in it. Nothing is copied for a watcher and nothing queues up behind a slow
//! one: it is told that it lags while what it missed is still there to be resumed from.

mod order;

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::ids::{AccountId, ApiVersion};
use crate::proto::ParticipantEvent;
use order::Order;

/// So many events a watcher is given at once.
const BATCH: usize = 256;

/// An event of Twilio about one participant.
#[derive(Clone, Debug)]
pub struct Event {
    /// The account that it is of.
    pub account: AccountId,
    /// The API that told it.
    pub version: ApiVersion,
    /// What it tells; the participant is always there.
    pub event: ParticipantEvent,
}

/// A place in the order of events. Later ones are greater, also those of a process that began later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    epoch: u64,
    number: u64,
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

/// The watcher is too far behind; its place can still be resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagged;

/// The events of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The place of the last event: watchers wait for it to change.
    latest: watch::Sender<Position>,
    capacity: usize,
}

struct State {
    ring: VecDeque<Told>,
    /// The place of the last event that has left the ring: who was told it has missed nothing.
    floor: Position,
    latest: Position,
    order: Order,
}

impl Feed {
    /// A feed of this process alone, which keeps so many events.
    pub fn local(capacity: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let begin = Position { epoch: u64::try_from(now).unwrap_or_default(), number: 0 };
        let state = State { ring: VecDeque::new(), floor: begin, latest: begin, order: Order::default() };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                latest: watch::Sender::new(begin),
                capacity,
            }),
        }
    }

    /// Tells the watchers, unless it was told before or is outdated.
    // It waits for nothing yet: a bus between replicas will.
    #[allow(clippy::unused_async)]
    pub async fn publish(&self, event: Event) -> Result<Published, NotPublished> {
        let mut state = self.state();
        let published = state.order.judge(&event);
        if published == Published::Told {
            let position = Position { number: state.latest.number + 1, ..state.latest };
            state.push(Told { position, event: Arc::new(event) }, self.shared.capacity);
            // Within the lock, so that no watcher sees an older place after a newer one.
            self.shared.latest.send_replace(position);
        }
        Ok(published)
    }

    /// A watcher of what comes after the place, or from now on.
    pub fn subscribe(&self, after: Option<Position>) -> Result<Subscription, Expired> {
        let state = self.state();
        let place = after.unwrap_or(state.latest);
        if place < state.floor || place > state.latest {
            return Err(Expired);
        }
        let latest = self.shared.latest.subscribe();
        Ok(Subscription { feed: self.clone(), place, caught_up_at: state.latest, latest })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic leaves behind is whole.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, told: Told, capacity: usize) {
        self.latest = told.position;
        self.ring.push_back(told);
        while self.ring.len() > capacity {
            if let Some(gone) = self.ring.pop_front() {
                self.floor = gone.position;
            }
        }
    }

    /// The events after the place, oldest first, and how many there are in all.
    fn after(&self, place: Position) -> (Vec<Told>, usize) {
        let from = self.ring.partition_point(|told| told.position <= place);
        let batch = self.ring.range(from..).take(BATCH).cloned().collect();
        (batch, self.ring.len() - from)
    }
}

/// A watcher's place in the feed. Dropped, nothing of it is left.
pub struct Subscription {
    feed: Feed,
    place: Position,
    /// What was there when it began: to be far behind that is no lag.
    caught_up_at: Position,
    latest: watch::Receiver<Position>,
}

impl Subscription {
    /// Where it stands: all events up to here were given.
    pub fn place(&self) -> Position {
        self.place
    }

    /// Waits for events, and gives those that are there, in order. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Told>, Lagged> {
        loop {
            let latest = *self.latest.borrow_and_update();
            if latest > self.place {
                return self.take();
            }
            // It fails only without a sender, and that one lives in the feed.
            let _ = self.latest.changed().await;
        }
    }

    fn take(&mut self) -> Result<Vec<Told>, Lagged> {
        let state = self.feed.state();
        let (batch, behind) = state.after(self.place);
        let is_catching_up = self.place < self.caught_up_at;
        // Half of the ring: as long as it takes to fill the other half, the place can be resumed from.
        let lags = behind > self.feed.shared.capacity / 2 && !is_catching_up;
        if lags || self.place < state.floor {
            return Err(Lagged);
        }
        drop(state);
        if let Some(last) = batch.last() {
            self.place = last.position;
        }
        Ok(batch)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

/// The text is none of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (epoch, number) = text.split_once('-').ok_or(NoPosition)?;
        let parse = |digits: &str| {
            let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|_| is_plain).ok_or(NoPosition)
        };
        Ok(Self { epoch: parse(epoch)?, number: parse(number)? })
    }
}

#[cfg(test)]
mod tests;
