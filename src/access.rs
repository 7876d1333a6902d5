//! Who calls, and what they may do.

mod certificate;
mod identity;
mod limits;
mod mode;
mod policy;

use futures_util::future::BoxFuture;
use http::HeaderMap;

pub use certificate::Certificate;
pub use identity::{Identity, Peer};
pub use limits::{CallRate, CallerLimits};
pub use mode::{Mode, NoMode};
pub use policy::{Granted, Method, Methods, Pattern, Policies, Policy, PolicyChanges, Rule, Sight};

/// Tells callers apart, and knows what each may do. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Access {
    policies: Policies,
}

/// A caller has not proven who it is. Which check failed nobody is told: whoever guesses would learn from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller has not proven who it is")]
pub struct Unauthenticated;

impl Access {
    /// Nobody has to prove anything: callers are told apart by their addresses.
    pub fn open() -> Self {
        Self::default()
    }

    /// The same, where callers may do what a policy says.
    pub fn under(self, policies: Policies) -> Self {
        Self { policies }
    }

    /// What this caller may do.
    pub fn granted(&self, identity: &Identity) -> Granted {
        self.policies.granted(identity)
    }

    /// Whose the calls of a connection are, where none of them has to say so itself.
    pub fn of_connection(&self, peer: &Peer) -> Option<Identity> {
        Some(Identity::of_address(peer.address))
    }

    /// Whose a call is.
    pub fn of_call(
        &self,
        peer: &Peer,
        _headers: &HeaderMap,
    ) -> BoxFuture<'static, Result<Identity, Unauthenticated>> {
        Box::pin(std::future::ready(self.of_connection(peer).ok_or(Unauthenticated)))
    }
}
