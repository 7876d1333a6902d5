//! Who calls.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use super::Certificate;
use crate::ids::CallerId;

/// The other end of a connection, as far as the connection itself tells.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it connects from.
    pub address: IpAddr,
    /// The certificate that it has proven to be its own, where the connection asked for one.
    pub certificate: Option<Arc<Certificate>>,
}

/// Who calls, once that is proven, or where it need not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    id: CallerId,
    name: Option<Arc<str>>,
}

impl Identity {
    /// Whoever connects from this address.
    pub fn of_address(address: IpAddr) -> Self {
        Self { id: CallerId::Peer(address), name: None }
    }

    /// Whoever has proven to have this name.
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self { id: CallerId::Named(hasher.finish()), name: Some(name) }
    }

    /// What tells callers apart that share what is scarce.
    pub fn id(&self) -> CallerId {
        self.id
    }

    /// Its name, where it has proven one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl fmt::Display for Identity {
    /// Its name, or the address that it calls from, as a policy names them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.id) {
            (Some(name), _) => f.write_str(name),
            (None, CallerId::Peer(address)) => write!(f, "address:{address}"),
            (None, CallerId::Named(_) | CallerId::Unknown) => f.write_str("anonymous"),
        }
    }
}
