//! Which events are told: each id once, and none that would bring back who was removed.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use prost_types::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Event, Published};
use crate::proto::{Participant, ParticipantEventType};

/// So many ids, and so many removals, are remembered; the oldest leaves first.
const WINDOW: usize = 100_000;

/// What was told lately.
#[derive(Default)]
pub(super) struct Order {
    ids: Window<Key, ()>,
    removals: Window<Key, Timestamp>,
}

/// The SHA-256 of account, version and id: an id may be as long as a delivery, and many are kept.
type Key = [u8; 32];

impl Order {
    /// Notes the event, and tells what is to become of it.
    pub(super) fn judge(&mut self, event: &Event) -> Published {
        let Event { account, version, event } = event;
        let participant = event.participant.as_ref().map(|participant: &Participant| &participant.id);
        // Neither an account nor a version has a colon.
        let key_of = |id: &str| Key::from(Sha256::digest(format!("{account}:{version}:{id}")));
        // What has no id cannot be told from another.
        if !event.id.is_empty() && self.ids.insert(key_of(&event.id), ()).is_some() {
            return Published::Repeated;
        }
        let Some((participant, at)) = participant.zip(event.event_time.or(event.remove_time)) else {
            return Published::Told;
        };
        let key = key_of(participant);
        if event.r#type() == ParticipantEventType::Removed {
            // Of two removals the later one counts, whichever comes first.
            if self.removals.get(&key).is_none_or(|removed| is_before(*removed, at)) {
                self.removals.insert(key, at);
            }
            return Published::Told;
        }
        match self.removals.get(&key) {
            Some(removed) if is_before(at, *removed) => Published::Outdated,
            _ => Published::Told,
        }
    }
}

fn is_before(one: Timestamp, other: Timestamp) -> bool {
    (one.seconds, one.nanos) < (other.seconds, other.nanos)
}

/// A map that holds so many entries at most, the oldest leaving first.
struct Window<K, V> {
    entries: HashMap<K, V>,
    arrivals: VecDeque<K>,
}

impl<K, V> Default for Window<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), arrivals: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Window<K, V> {
    /// What stood there before.
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = self.entries.insert(key.clone(), value);
        if before.is_none() {
            self.arrivals.push_back(key);
        }
        while self.arrivals.len() > WINDOW {
            if let Some(oldest) = self.arrivals.pop_front() {
                self.entries.remove(&oldest);
            }
        }
        before
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }
}
