//! SIGTERM and SIGINT, and what each asks for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

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

    /// The first signal, and the moment of the second. Only the second future waits for either, so poll both.
    pub fn first_and_second(mut self) -> (impl Future<Output = Stop>, impl Future<Output = ()>) {
        let (send, receive) = oneshot::channel();
        let first = async { receive.await.unwrap_or(Stop::Promptly) };
        let second = async move {
            // Where nobody waits for the first any more, the second counts all the same.
            let _ = send.send(self.next().await);
            self.next().await;
        };
        (first, second)
    }
}
