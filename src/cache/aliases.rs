//! Unique names of conversations, and the SIDs that Twilio's answers told for them.

use std::time::{Duration, Instant};

use moka::future::Cache as Moka;
use tokio_util::sync::CancellationToken;

use crate::ids::{Conversation, Segment};

const MAX_ALIASES: u64 = 100_000;

/// Which SID a v1 conversation's unique name means.
#[derive(Clone)]
pub struct Aliases {
    sids: Moka<Conversation, Alias>,
    ttl: Duration,
}

#[derive(Clone)]
struct Alias {
    sid: Segment,
    learned: Instant,
}

impl Aliases {
    /// `ttl`: a unique name can be given to another conversation once the first is gone. `grace`: how much longer one is kept.
    pub fn new(ttl: Duration, grace: Duration) -> Self {
        let kept = ttl.saturating_add(grace);
        Self { sids: Moka::builder().max_capacity(MAX_ALIASES).time_to_live(kept).build(), ttl }
    }

    /// The same conversation by its SID; `None` while no answer has told it.
    pub async fn resolve(&self, named: &Conversation) -> Option<Conversation> {
        self.resolve_stale(named, self.ttl).await
    }

    /// The same as an answer told it at most so long ago, for a caller whom Twilio cannot tell.
    pub async fn resolve_stale(&self, named: &Conversation, oldest: Duration) -> Option<Conversation> {
        let alias = self.sids.get(named).await.filter(|alias| alias.learned.elapsed() <= oldest)?;
        Some(Conversation { id: alias.sid, ..named.clone() })
    }

    /// Notes what an answer told.
    pub async fn learn(&self, named: &Conversation, sid: Segment) {
        self.sids.insert(named.clone(), Alias { sid, learned: Instant::now() }).await;
    }

    /// Until the next answer tells what the name means.
    pub async fn forget(&self, named: &Conversation) {
        self.sids.invalidate(named).await;
    }

    /// Drops what has expired, until the token is cancelled: a unique name can be PII.
    pub async fn upkeep(&self, end: CancellationToken) {
        super::tidy(&self.sids, end).await;
    }
}
