//! How often something was forgotten: the part of a key that makes what was loaded before unreachable.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Scope;
use crate::ids::{AccountId, Conversation, Person, PersonKey, Segment};

/// Scopes share a generation with others by hash. Two that collide cost each other spare loads, nothing else.
const STRIPES: usize = 4096;

/// Counts what was forgotten, per stripe and for all. The service takes no part in the stripe: not every tale of a change
/// tells it.
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
    fn stripe(&self, scope: impl Hash) -> &AtomicU64 {
        let hash = self.hasher.hash_one(scope);
        // The remainder is below the number of stripes, which is far below either integer's bound.
        &self.stripes[(hash % STRIPES as u64) as usize]
    }

    pub(super) fn of(&self, scope: &Scope) -> u64 {
        match scope {
            Scope::Conversation(Conversation { account, id, .. }) => count(self.conversation(account, id)),
            // Neither count ever falls, so the sum changes whenever one of them does.
            Scope::Person(PersonKey { account, person, .. }) => {
                count(self.person(account, person)).wrapping_add(count(self.people(account)))
            }
        }
    }

    fn conversation(&self, account: &AccountId, id: &Segment) -> &AtomicU64 {
        self.stripe((account, id))
    }

    fn person(&self, account: &AccountId, person: &Person) -> &AtomicU64 {
        self.stripe((account, person))
    }

    fn people(&self, account: &AccountId) -> &AtomicU64 {
        self.stripe((account, "every person"))
    }

    pub(super) fn all(&self) -> u64 {
        count(&self.all)
    }

    pub(super) fn forget(&self, account: &AccountId, conversation_id: &Segment) {
        self.count_up(self.conversation(account, conversation_id));
    }

    pub(super) fn forget_person(&self, account: &AccountId, person: &Person) {
        self.count_up(self.person(account, person));
    }

    pub(super) fn forget_people(&self, account: &AccountId) {
        self.count_up(self.people(account));
    }

    pub(super) fn forget_scope(&self, scope: &Scope) {
        match scope {
            Scope::Conversation(Conversation { account, id, .. }) => self.forget(account, id),
            Scope::Person(PersonKey { account, person, .. }) => self.forget_person(account, person),
        }
    }

    /// `all` before the stripe: a load that sees the stripe's new generation must also see that something was forgotten.
    fn count_up(&self, stripe: &AtomicU64) {
        self.all.fetch_add(1, Ordering::SeqCst);
        stripe.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn forget_all(&self) {
        self.all.fetch_add(1, Ordering::SeqCst);
        for stripe in &self.stripes {
            stripe.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn count(stripe: &AtomicU64) -> u64 {
    stripe.load(Ordering::SeqCst)
}
