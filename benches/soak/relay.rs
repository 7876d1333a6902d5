//! A line between two processes that can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Passes connections on; dropped, all of them end.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    /// Whether it listens. Each change, also to the same, cuts what is connected.
    is_up: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, is_up) = (listener.local_addr().expect("an address"), watch::Sender::new(true));
        let mut task = JoinSet::new();
        task.spawn(run(listener, target, is_up.subscribe()));
        Self { address, is_up, _task: task }
    }

    /// As if the process behind it had been killed: what is connected breaks, nobody can connect.
    pub(crate) fn take_down(&self) {
        self.is_up.send_replace(false);
    }

    /// Breaks what is connected; who connects again, can.
    pub(crate) fn cut(&self) {
        self.is_up.send_replace(true);
    }
}

async fn run(first: TcpListener, target: SocketAddr, mut is_up: watch::Receiver<bool>) {
    let address = first.local_addr().expect("an address");
    let mut listener = Some(first);
    loop {
        if *is_up.borrow_and_update() {
            let bound = match listener.take() {
                Some(bound) => bound,
                None => TcpListener::bind(address).await.expect("the port is still free"),
            };
            serve(bound, target, &mut is_up).await;
        } else if is_up.changed().await.is_err() {
            return;
        }
    }
}

/// Until the next change; what is connected ends with it.
async fn serve(listener: TcpListener, target: SocketAddr, is_up: &mut watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = is_up.changed() => {
                // Marked as not seen, so that the caller looks at it.
                is_up.mark_changed();
                return;
            }
            Ok((client, _)) = listener.accept() => {
                connections.spawn(pass_on(client, target));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn pass_on(mut client: TcpStream, target: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        // Small messages both ways: to wait for more would add to each.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        // How it ends is nobody's business here.
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
