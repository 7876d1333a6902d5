//! The last events, bounded in number and in bytes: an event may be as large as a delivery, and a few thousand of those
//! would be all the memory there is.

use std::collections::VecDeque;

use super::{Event, Position, Told};
use crate::proto::{Address, Message as _};

/// So many events a watcher is given at once.
const BATCH: usize = 256;
/// And so much, if it is more than one: a watcher that stands still holds what the ring has let go.
const BATCH_BYTES: u64 = 1 << 20;

/// How much is kept to be resumed from. The oldest leaves where either is exceeded; the newest always stays.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// So many events.
    pub events: usize,
    /// So many bytes, by estimate.
    pub bytes: u64,
}

pub(super) struct Ring {
    capacity: Capacity,
    entries: VecDeque<Entry>,
    floor: Position,
    /// What all events weigh that ever came, and those of them that have left.
    come: u64,
    left: u64,
}

struct Entry {
    told: Told,
    /// What came up to here, this one included.
    come: u64,
}

impl Ring {
    pub(super) fn new(capacity: Capacity, floor: Position) -> Self {
        Self { capacity, entries: VecDeque::new(), floor, come: 0, left: 0 }
    }

    pub(super) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The place of the last event that has left: who was told it has missed nothing.
    pub(super) fn floor(&self) -> Position {
        self.floor
    }

    /// Lets all go that was there up to the place.
    pub(super) fn clear(&mut self, floor: Position) {
        self.entries.clear();
        self.floor = floor;
        self.left = self.come;
    }

    pub(super) fn push(&mut self, told: Told) {
        self.come += weight(&told.event);
        self.entries.push_back(Entry { told, come: self.come });
        while self.is_exceeded()
            && let Some(oldest) = self.entries.pop_front()
        {
            self.floor = oldest.told.position;
            self.left = oldest.come;
        }
    }

    fn is_exceeded(&self) -> bool {
        let Capacity { events, bytes } = self.capacity;
        self.entries.len() > 1 && (self.entries.len() > events || self.come - self.left > bytes)
    }

    /// The first events after the place, and whether all that come after it are more than half of what is kept: as long
    /// as it takes to fill the other half, the place can be resumed from.
    pub(super) fn after(&self, place: Position) -> (Vec<Told>, bool) {
        let from = self.entries.partition_point(|entry| entry.told.position <= place);
        let before = from.checked_sub(1).map_or(self.left, |at| self.entries[at].come);
        let first = self.entries.range(from..).take(BATCH).enumerate();
        let batch = first.take_while(|(at, entry)| *at == 0 || entry.come - before <= BATCH_BYTES);
        let batch = batch.map(|(_, entry)| entry.told.clone()).collect();
        let (events, bytes) = (self.entries.len() - from, self.come - before);
        // One event may weigh as much by itself: who has only that to read is not slow.
        let is_far = events > 1 && (events > self.capacity.events / 2 || bytes > self.capacity.bytes / 2);
        (batch, is_far)
    }
}

/// The encoded size tells the texts; the structs around them are added, of which an event can have many.
fn weight(event: &Event) -> u64 {
    let addresses = event.event.participant.as_ref().map_or(0, |participant| participant.addresses.len());
    let bytes = event.event.encoded_len() + size_of::<Event>() + addresses * size_of::<Address>();
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
