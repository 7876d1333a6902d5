//! Why the gateway does not run.

use std::net::SocketAddr;

use crate::events::webhook::PublicUrlError;
use crate::telemetry::MetricsError;
use crate::twilio;

/// The gateway could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An address could not be bound.
    #[error("bind the {what} listener to {address}: {source}; choose a free address with {flag}")]
    Bind {
        /// Which listener.
        what: &'static str,
        /// The setting that chooses the address.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// An earlier run's ready file could not be removed.
    #[error("remove the ready file of an earlier run: {0}")]
    ReadyFile(std::io::Error),
    /// The metrics could not be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The configuration holds no account.
    #[error("no account is configured")]
    NoAccount,
    /// The events listener's own URL is none that Twilio could call.
    #[error("the events listener's own URL {0}: set events.public_url")]
    EventsUrl(PublicUrlError),
    /// The client for Twilio could not be made.
    #[error(transparent)]
    Twilio(#[from] twilio::BuildError),
    /// The descriptors could not be served.
    #[error("set up reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// The gateway failed while it ran.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ready file could not be written.
    #[error("write the ready file: {0}")]
    ReadyFile(std::io::Error),
    /// A listener ended by itself.
    #[error("{what} ended by itself: {reason}")]
    Ended {
        /// Which listener.
        what: &'static str,
        /// Why.
        reason: String,
    },
}
