//! The gateway over real sockets: a tonic client on one side, the sandbox in Twilio's place on the other.

#![allow(clippy::unwrap_used, unreachable_pub)] // clippy spares the tests themselves only, and this is no library

mod harness;

mod accounts;
mod auth;
mod bad_input;
mod batch;
mod breaker;
mod cache;
mod contract;
mod conversations;
mod deadlines;
mod errors;
mod events;
mod fixtures;
mod front;
mod golden;
mod governor;
mod lists;
mod metrics;
mod outcomes;
mod previews;
mod properties;
mod raw;
mod replicas;
mod rotation;
mod stale;
mod tls;
mod updates;
mod upstream;
mod upstream_faults;
mod watch;
mod wire;
mod writes;
