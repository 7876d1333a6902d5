//! What a call brings with it, whatever it asks.

use std::net::IpAddr;

use tokio::time::Instant;

/// What a call brings with it, whatever it asks.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// By when it has to be answered.
    pub deadline: Instant,
    /// Who makes it.
    pub caller: CallerId,
    /// Whether the caller, or a mesh on its behalf, has made it before and repeats it by itself.
    pub is_repetition: bool,
}

/// Who makes a call: callers share what is scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerId {
    /// Whoever connects from this address.
    Peer(IpAddr),
    /// Whoever has proven a name, by a hash of both that nobody can aim at: what a caller may do hangs on it.
    Named([u8; 16]),
    /// The gateway itself, which looks after a write of its own, or nobody knows.
    Unknown,
}
