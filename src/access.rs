//! Who calls, and what they may do.
//!
//! A caller proves who it is in one of the ways that `auth.mode` names. The first of them for which the call brings a proof
//! decides: a proof that is bad is refused, and nothing weaker is looked at in its place.

mod bearer;
mod certificate;
mod file;
mod identity;
mod mode;
mod tokens;

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use http::HeaderMap;
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use certificate::Certificate;
pub use file::FileError;
pub use identity::{Identity, Peer, Proof};
pub use mode::{Mode, NoMode};
pub use tokens::{TableError, Tokens};

use crate::telemetry::Metrics;

/// Tells callers apart, and knows what each may do. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// None where nobody has to prove anything.
    ways: Option<Arc<Ways>>,
}

/// A way to prove who one is, with all that it needs.
#[derive(Clone, Debug)]
pub enum Way {
    /// By the certificate of the connection.
    Certificate,
    /// By a token of a file.
    Tokens(Tokens),
}

impl Way {
    fn proof(&self) -> Proof {
        match self {
            Self::Certificate => Proof::Certificate,
            Self::Tokens(_) => Proof::Token,
        }
    }
}

/// The ways in which callers prove who they are, best first.
struct Ways {
    ways: Vec<Way>,
    metrics: Metrics,
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ways.fmt(f)
    }
}

/// A caller has not proven who it is. Which check failed nobody is told: whoever guesses would learn from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller has not proven who it is")]
pub struct Unauthenticated;

/// The check that failed, for the log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused(&'static str);

/// What became of a proof.
type Judged = BoxFuture<'static, Result<Identity, Refused>>;

impl Access {
    /// Nobody has to prove anything: callers are told apart by their addresses.
    pub fn open() -> Self {
        Self::default()
    }

    /// Callers prove who they are in one of these ways, of which the first for which there is a proof decides; where there are
    /// none, it is open.
    pub fn by(ways: Vec<Way>, metrics: Metrics) -> Self {
        let is_open = ways.is_empty();
        Self { ways: (!is_open).then(|| Arc::new(Ways { ways, metrics })) }
    }

    /// Whose the calls of a connection are, where none of them can say anything else.
    pub fn of_connection(&self, peer: &Peer) -> Option<Identity> {
        let Some(ways) = &self.ways else {
            return Some(Identity::of_address(peer.address));
        };
        match (ways.ways.first(), &peer.certificate) {
            (Some(Way::Certificate), Some(certificate)) => certificate.owner(Proof::Certificate).ok(),
            _ => None,
        }
    }

    /// Whose a call is.
    pub fn of_call(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> BoxFuture<'static, Result<Identity, Unauthenticated>> {
        let Some(ways) = self.ways.clone() else {
            return Box::pin(ready(Ok(Identity::of_address(peer.address))));
        };
        let found = ways.ways.iter().find_map(|way| Some((way.proof(), ways.judge(way, peer, headers)?)));
        Box::pin(async move {
            let (proof, judged) = match found {
                Some((proof, judged)) => (proof, judged.await),
                None => (Proof::None, Err(Refused("the call brings no proof"))),
            };
            ways.metrics.caller_judged(proof.as_str(), judged.is_ok());
            judged.map_err(|Refused(reason)| {
                debug!(proof = proof.as_str(), reason, "a caller has not proven who it is");
                Unauthenticated
            })
        })
    }

    /// Keeps up what the proofs are judged by until the token is cancelled.
    pub async fn upkeep(self, every: Duration, end: CancellationToken) {
        let Some(ways) = self.ways else { return end.cancelled().await };
        let upkeep = ways.ways.iter().map(|way| async {
            match way {
                Way::Certificate => {}
                Way::Tokens(tokens) => tokens.upkeep(every, &ways.metrics).await,
            }
        });
        end.run_until_cancelled(join_all(upkeep)).await;
        end.cancelled().await;
    }
}

impl Ways {
    /// What becomes of the proof of this kind; `None` where the call brings none.
    fn judge(&self, way: &Way, peer: &Peer, headers: &HeaderMap) -> Option<Judged> {
        let now = |judged: Result<Identity, Refused>| -> Judged { Box::pin(ready(judged)) };
        match way {
            Way::Certificate => {
                peer.certificate.as_ref().map(|certificate| now(certificate.owner(Proof::Certificate)))
            }
            Way::Tokens(tokens) => {
                bearer::of(headers).map(|token| now(token.and_then(|token| tokens.owner(token))))
            }
        }
    }
}
