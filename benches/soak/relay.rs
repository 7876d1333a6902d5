//! A line between two processes that can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const BACKLOG: u32 = 1024;

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
        self.is_up.send(false).expect("it runs");
    }

    /// Breaks what is connected; who connects again, can.
    pub(crate) fn cut(&self) {
        self.is_up.send(true).expect("it runs");
    }
}

async fn run(mut listener: TcpListener, target: SocketAddr, mut is_up: watch::Receiver<bool>) {
    let address = listener.local_addr().expect("an address");
    loop {
        serve(&listener, target, &mut is_up).await;
        if *is_up.borrow() {
            continue;
        }
        drop(listener);
        // Bound and not listening: who connects is refused, and nobody else gets the port.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(address).expect("the port is still free");
        if is_up.wait_for(|is_up| *is_up).await.is_err() {
            return;
        }
        listener = socket.listen(BACKLOG).expect("it listens");
    }
}

/// Until the next change; what is connected ends with it.
async fn serve(listener: &TcpListener, target: SocketAddr, is_up: &mut watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = is_up.changed() => return,
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
