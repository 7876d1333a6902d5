//! Who calls.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

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

/// How a caller has proven who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By the certificate of its connection.
    Certificate,
    /// By a JSON web token.
    Jwt,
    /// By a token of the file.
    Token,
    /// By what a trusted proxy says.
    Mesh,
    /// It has not, and need not.
    None,
}

impl Proof {
    /// Each of them.
    pub const ALL: [Self; 5] = [Self::Certificate, Self::Jwt, Self::Token, Self::Mesh, Self::None];

    /// Its word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Jwt => "jwt",
            Self::Token => "token",
            Self::Mesh => "mesh",
            Self::None => "none",
        }
    }
}

/// Who calls, once that is proven, or where it need not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    id: CallerId,
    proof: Proof,
    name: Option<Arc<str>>,
    until: Option<Instant>,
}

impl Identity {
    /// Whoever connects from this address.
    pub fn of_address(address: IpAddr) -> Self {
        Self { id: CallerId::Peer(address), proof: Proof::None, name: None, until: None }
    }

    /// Whoever has proven to have this name.
    pub fn proven(proof: Proof, name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        let mut hasher = Sha256::new();
        hasher.update(proof.as_str());
        hasher.update([0]);
        hasher.update(&*name);
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize()[..16]);
        Self { id: CallerId::Named(id), proof, name: Some(name), until: None }
    }

    /// The same, for as long as what proves it holds.
    pub(super) fn until(self, until: Option<Instant>) -> Self {
        Self { until, ..self }
    }

    /// What tells callers apart that share what is scarce.
    pub fn id(&self) -> CallerId {
        self.id
    }

    /// How it has proven its name.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Its name, where it has proven one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// When the proof ends by itself.
    pub fn expiry(&self) -> Option<Instant> {
        self.until
    }
}
