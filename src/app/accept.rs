//! Accepts connections, also where the process has no more files: then it waits, where a bare loop would spin.

use std::io::{Error, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{info, warn};

/// Ten attempts a second cost nothing, and nobody notices the wait for the next.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener that goes on accepting.
pub(super) struct Acceptor {
    listener: TcpListener,
    what: &'static str,
    fails: bool,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, what: &'static str) -> Self {
        Self { listener, what, fails: false }
    }

    /// The next connection, and who makes it. Dropped while it pauses, it tries again at once.
    pub(super) async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if mem::take(&mut self.fails) {
                        info!("the {} listener accepts connections again", self.what);
                    }
                    // Answers are small, and written whole. One that is gone already is no loss.
                    let _ = stream.set_nodelay(true);
                    return (stream, peer);
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    if !mem::replace(&mut self.fails, true) {
                        warn!("the {} listener cannot accept connections: {error}", self.what);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Whether the peer has gone before it was accepted.
fn is_the_peers(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}
