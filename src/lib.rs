//! One gRPC Participant service over Twilio Conversations v1 and v2.
//!
//! A call comes in through [`grpc`], which asks [`access`] whose it is, decodes it into a typed intent and asks [`participants`]. That is the heart: it
//! reads through [`cache`] and writes through [`twilio`], and what it changes it makes the cache forget. [`twilio`] speaks
//! both REST APIs and tells answers in the contract's own messages, [`proto`], about the things that [`ids`] names. What
//! Twilio's events tell goes through [`participants`], too, which forgets first and then tells the watchers through [`feed`].
//! [`app`] puts all of it together from a [`config`], and `main` gives that a process. [`tls`] is what its listeners speak, and
//! [`probe`] is the other side, a caller.
//!
//! Data flows one way, and a module knows only those above it in this list. [`sandbox`] is a fake Twilio that stands apart:
//! it imports nothing from the rest, so that it cannot share a mistake with it.

pub mod proto;

pub mod ids;

pub mod telemetry;

pub mod secret;

mod wire;

pub mod sandbox;

pub mod twilio;

pub mod cache;

pub mod feed;

pub mod participants;

pub mod events;

pub mod access;

pub mod tls;

pub mod grpc;

pub mod probe;

pub mod config;

pub mod app;
