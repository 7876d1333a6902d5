//! Who watches which conversation: a watcher of a few sleeps through the events of all others.
//!
//! Of each it is noted where the first event is that it has to look at. While there is none it has missed nothing,
//! however much came meanwhile, and its place moves on with the feed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::Notify;

use super::{Event, Position, Told, Topic};

#[derive(Default)]
pub(super) struct Sleepers {
    sleepers: HashMap<u64, Sleeper>,
    by_topic: HashMap<Topic, HashSet<u64>>,
    next_id: u64,
}

struct Sleeper {
    first: Option<Position>,
    wake: Arc<Notify>,
}

impl Sleepers {
    pub(super) fn add(&mut self, topics: &HashSet<Topic>, first: Option<Position>) -> (u64, Arc<Notify>) {
        let (id, wake) = (self.next_id, Arc::new(Notify::new()));
        self.next_id += 1;
        self.sleepers.insert(id, Sleeper { first, wake: wake.clone() });
        for topic in topics {
            self.by_topic.entry(topic.clone()).or_default().insert(id);
        }
        (id, wake)
    }

    pub(super) fn remove(&mut self, id: u64, topics: &HashSet<Topic>) {
        self.sleepers.remove(&id);
        for topic in topics {
            if let Some(ids) = self.by_topic.get_mut(topic) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
    }

    /// Wakes those that the event concerns.
    pub(super) fn tell(&mut self, told: &Told) {
        if self.sleepers.is_empty() {
            return;
        }
        let ids = topic(&told.event).and_then(|topic| self.by_topic.get(&topic));
        for id in ids.into_iter().flatten() {
            if let Some(sleeper) = self.sleepers.get_mut(id) {
                sleeper.look_from(told.position);
            }
        }
    }

    /// Wakes all: what comes there concerns everybody.
    pub(super) fn tell_all(&mut self, position: Position) {
        self.sleepers.values_mut().for_each(|sleeper| sleeper.look_from(position));
    }

    /// The first place that the sleeper has to look at.
    pub(super) fn first(&self, id: u64) -> Option<Position> {
        self.sleepers.get(&id).and_then(|sleeper| sleeper.first)
    }

    /// It has looked at all before.
    pub(super) fn looked(&mut self, id: u64, first: Option<Position>) {
        if let Some(sleeper) = self.sleepers.get_mut(&id) {
            sleeper.first = first;
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sleepers.is_empty() && self.by_topic.is_empty()
    }
}

impl Sleeper {
    fn look_from(&mut self, position: Position) {
        self.first.get_or_insert(position);
        self.wake.notify_one();
    }
}

pub(super) fn topic(Event { account, version, event }: &Event) -> Option<Topic> {
    let participant = event.participant.as_ref()?;
    Some((account.clone(), *version, participant.conversation_id.clone()))
}
