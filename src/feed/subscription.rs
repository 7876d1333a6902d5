//! Watchers: each a place in the feed, and what wakes it.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::{Feed, Missed, Position, State, Told, Topic, sleepers};

/// A watcher's place in the feed. Dropped, nothing of it is left.
pub struct Subscription {
    feed: Feed,
    /// Empty: all.
    topics: HashSet<Topic>,
    place: Position,
    /// What was there when it began: to be far behind that is no lag.
    caught_up_at: Position,
    wake: Wake,
}

enum Wake {
    ByAll(watch::Receiver<Position>),
    ByTopics { id: u64, wake: Arc<Notify> },
}

impl Subscription {
    /// Within the feed's lock, so that nothing is told between the place and the waking.
    pub(super) fn new(feed: &Feed, state: &mut State, topics: HashSet<Topic>, place: Position) -> Self {
        let caught_up_at = state.latest;
        let wake = if topics.is_empty() {
            Wake::ByAll(feed.shared.latest.subscribe())
        } else {
            let first = (place < caught_up_at).then(|| place.next());
            let (id, wake) = state.sleepers.add(&topics, first);
            Wake::ByTopics { id, wake }
        };
        Self { feed: feed.clone(), topics, place, caught_up_at, wake }
    }

    /// Where it stands: all events up to here that concern it were given.
    pub fn place(&self) -> Position {
        self.reached(&self.feed.state())
    }

    /// Waits for events, and gives those that are there, in order: none where all concern others. Cancelling it loses
    /// nothing.
    pub async fn next(&mut self) -> Result<Vec<Told>, Missed> {
        while !self.is_due() {
            match &mut self.wake {
                Wake::ByAll(latest) => {
                    // It fails only without a sender, and that one lives in the feed.
                    let _ = latest.changed().await;
                }
                Wake::ByTopics { wake, .. } => wake.notified().await,
            }
        }
        self.take()
    }

    fn is_due(&mut self) -> bool {
        match &mut self.wake {
            Wake::ByAll(latest) => *latest.borrow_and_update() > self.place,
            Wake::ByTopics { id, .. } => self.feed.state().sleepers.first(*id).is_some(),
        }
    }

    fn reached(&self, state: &State) -> Position {
        let place = if self.place == Position::default() { state.begin } else { self.place };
        match self.wake {
            Wake::ByAll(_) => place,
            Wake::ByTopics { id, .. } => {
                place.max(state.sleepers.first(id).map_or(state.latest, Position::before))
            }
        }
    }

    fn take(&mut self) -> Result<Vec<Told>, Missed> {
        let mut state = self.feed.state();
        self.place = self.reached(&state);
        if self.place < state.ring.floor() {
            return Err(Missed::Gone);
        }
        let (mut batch, is_far_behind) = state.ring.after(self.place);
        let is_catching_up = self.place < self.caught_up_at;
        if is_far_behind && !is_catching_up {
            return Err(Missed::Lagged);
        }
        self.place = batch.last().map_or(self.place, |last| last.position);
        if let Wake::ByTopics { id, .. } = self.wake {
            let rest = (self.place < state.latest).then(|| self.place.next());
            state.sleepers.looked(id, rest);
        }
        drop(state);
        if !self.topics.is_empty() {
            batch.retain(|told| {
                sleepers::topic(&told.event).is_some_and(|topic| self.topics.contains(&topic))
            });
        }
        Ok(batch)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Wake::ByTopics { id, .. } = self.wake {
            self.feed.state().sleepers.remove(id, &self.topics);
        }
    }
}
