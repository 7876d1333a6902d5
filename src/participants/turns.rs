//! Updates of one v2 participant take turns. Each is a read, a merge and a write of the whole, so of two that overlap the
//! later write would undo what the earlier one changed. A write that timed out ends its turn, though it may still arrive.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::ids::ParticipantKey;

/// Participants share a turn with others by hash: two that collide wait for each other, as long as an update takes.
const STRIPES: usize = 1024;

/// Who may update now. Whoever waits is served in the order of asking.
#[derive(Clone)]
pub(super) struct Turns {
    hasher: RandomState,
    stripes: Arc<[Semaphore]>,
}

impl Default for Turns {
    fn default() -> Self {
        let stripes = std::iter::repeat_with(|| Semaphore::new(1)).take(STRIPES).collect();
        Self { hasher: RandomState::new(), stripes }
    }
}

impl Turns {
    /// Waits for the participant's turn, which lasts until the permit is dropped.
    pub(super) async fn take(&self, key: &ParticipantKey) -> Option<SemaphorePermit<'_>> {
        // The remainder is below the number of stripes, which is far below either integer's bound.
        let stripe = (self.hasher.hash_one(key) % STRIPES as u64) as usize;
        // It fails only once it is closed, which nobody does.
        self.stripes[stripe].acquire().await.ok()
    }
}
