//! How often a conversation was forgotten: the part of a key that makes what was loaded before unreachable.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::{AccountId, Segment};

/// Conversations share a generation with others by hash. Two that collide cost each other spare loads, nothing else.
const STRIPES: usize = 4096;

/// Counts what was forgotten, per stripe of conversations and for all. The service takes no part in the stripe: not every
/// tale of a change tells it.
pub(super) struct Generations {
    hasher: RandomState,
    stripes: Box<[AtomicU64]>,
    all: AtomicU64,
}

impl Default for Generations {
    fn default() -> Self {
        let stripes = std::iter::repeat_with(AtomicU64::default).take(STRIPES).collect();
        Self { hasher: RandomState::new(), stripes, all: AtomicU64::default() }
    }
}

impl Generations {
    fn stripe(&self, account: &AccountId, conversation_id: &Segment) -> &AtomicU64 {
        let hash = self.hasher.hash_one((account, conversation_id));
        // The remainder is below the number of stripes, which is far below either integer's bound.
        &self.stripes[(hash % STRIPES as u64) as usize]
    }

    pub(super) fn of(&self, account: &AccountId, conversation_id: &Segment) -> u64 {
        self.stripe(account, conversation_id).load(Ordering::SeqCst)
    }

    pub(super) fn all(&self) -> u64 {
        self.all.load(Ordering::SeqCst)
    }

    /// `all` before the stripe: a load that sees the stripe's new generation must also see that something was forgotten.
    pub(super) fn forget(&self, account: &AccountId, conversation_id: &Segment) {
        self.all.fetch_add(1, Ordering::SeqCst);
        self.stripe(account, conversation_id).fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn forget_all(&self) {
        self.all.fetch_add(1, Ordering::SeqCst);
        for stripe in &self.stripes {
            stripe.fetch_add(1, Ordering::SeqCst);
        }
    }
}
