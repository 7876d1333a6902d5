//! SIGTERM and SIGINT, and what each asks for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Stop;

/// The process's signals. From here on they no longer end it by themselves.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one: an orchestrator sends SIGTERM, a person SIGINT.
    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::WhenNoticed,
            _ = self.interrupt.recv() => Stop::Promptly,
        }
    }
}
