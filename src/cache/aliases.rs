//! Unique names of conversations, and the SIDs that Twilio's answers told for them.

use std::time::Duration;

use moka::future::Cache as Moka;
use tokio_util::sync::CancellationToken;

use crate::ids::{Conversation, Segment};

const MAX_ALIASES: u64 = 100_000;

/// Which SID a v1 conversation's unique name means.
#[derive(Clone)]
pub struct Aliases {
    sids: Moka<Conversation, Segment>,
}

impl Aliases {
    /// `ttl`: a unique name can be given to another conversation once the first is gone.
    pub fn new(ttl: Duration) -> Self {
        Self { sids: Moka::builder().max_capacity(MAX_ALIASES).time_to_live(ttl).build() }
    }

    /// The same conversation by its SID; `None` while no answer has told it.
    pub async fn resolve(&self, named: &Conversation) -> Option<Conversation> {
        let id = self.sids.get(named).await?;
        Some(Conversation { id, ..named.clone() })
    }

    /// Notes what an answer told.
    pub async fn learn(&self, named: &Conversation, sid: Segment) {
        self.sids.insert(named.clone(), sid).await;
    }

    /// Drops what has expired, until the token is cancelled: a unique name can be PII.
    pub async fn upkeep(&self, end: CancellationToken) {
        super::tidy(&self.sids, end).await;
    }
}
