//! A fake Twilio, so that the gateway can be tried and tested without an account.
//!
//! It speaks the participant endpoints of both REST faces on one plain-HTTP listener: `/v1` (Conversations
//! classic: forms in, JSON out) and `/v2` (Conversation Orchestrator: JSON both ways). Its rules are written
//! down from Twilio's documentation and share no code with the rest of this crate: a mistake made here and a
//! mistake made there would have to be the same one to go unnoticed.
//!
//! A request passes through these modules:
//!
//! * `front` reads and logs it, applies a fault if one matches, and stamps the headers every answer has;
//! * `route` and `credentials` say what it addresses and whose it is;
//! * `v1` and `v2` translate between HTTP and their rules, which stand below them;
//! * `oauth` issues access tokens;
//! * `store` keeps the data, per account, in memory and bounded; `seed` is what it starts with;
//! * `events` tells a URL what changed, signed, with what can go wrong on the way.
//!
//! Below `/_sandbox/` are the control routes (`control`): faults, what is held, the request log, credentials,
//! conversations to start from (`arrange`), events, reset.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use events::courier;
use front::Shared;

mod arrange;
mod call;
mod control;
mod credentials;
mod cut;
mod dates;
mod events;
mod fault;
mod faults;
mod front;
mod journal;
mod oauth;
mod route;
mod seed;
mod store;
mod v1;
mod v2;

pub use fault::{Cut, Fault, FaultError, FaultMatch};
pub use route::Api;
pub use seed::{
    ACCOUNT_SID, API_KEY_SECRET, API_KEY_SID, AUTH_TOKEN, OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET, SERVICE_SID,
    V1_CONVERSATION, V2_CONVERSATION,
};

/// What the sandbox is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Accounts besides the default one ([`ACCOUNT_SID`]), each with a store of its own, seeded the same.
    pub accounts: Vec<Account>,
    /// Faults that are there from the start; a reset brings them back.
    pub faults: Vec<Fault>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 0).into(), accounts: Vec::new(), faults: Vec::new() }
    }
}

/// An account that may log in.
#[derive(Clone)]
pub struct Account {
    /// `AC…`: the user name.
    pub sid: String,
    /// The password.
    pub auth_token: String,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("sid", &self.sid).finish_non_exhaustive()
    }
}

/// A fake Twilio that is bound to its address; [`run`](Sandbox::run) serves it.
pub struct Sandbox {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    courier: reqwest::Client,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Binds the listener: from here on connections queue up, to be answered once it runs.
    ///
    /// # Errors
    /// When the address cannot be bound, or (`InvalidInput`) when one of the faults makes no sense.
    pub async fn bind(settings: Settings) -> io::Result<Sandbox> {
        for fault in &settings.faults {
            fault.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        }
        let listener = TcpListener::bind(settings.listen).await?;
        let local_addr = listener.local_addr()?;
        let shared = Shared::new(settings.accounts, settings.faults);
        let courier = courier::client().map_err(io::Error::other)?;
        Ok(Sandbox { listener, local_addr, shared: Arc::new(shared), courier })
    }

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where its events go, also after a reset. A method, because a receiver in the same process learns its address
    /// only when it is bound, too.
    pub fn deliver_events_to(&self, url: Url) {
        self.shared.events.deliver_to(url);
    }

    /// Serves until `shutdown` is cancelled, then drops what connections are open and ends.
    pub async fn run(self, shutdown: CancellationToken) {
        // A JoinSet, because it aborts its tasks when dropped: also when this future is dropped half-way.
        let mut tasks = JoinSet::new();
        tasks.spawn(courier::run(self.shared.clone(), self.courier));
        let router =
            Router::new().nest("/_sandbox", control::router()).fallback(front::serve).with_state(self.shared);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a task of the sandbox panicked");
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tasks.spawn(serve_connection(stream, router.clone()));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: accepting again at once would spin.
                        tracing::warn!(%error, "the sandbox cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        tasks.shutdown().await;
    }
}

/// Where this differs from serving the router as it is: hyper closes a connection without a response byte
/// when the service fails, and that is the only way to play a peer that hangs up.
async fn serve_connection(stream: TcpStream, router: Router) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let answering = router.call(request);
        async move {
            let response = answering.await.unwrap_or_else(|never: Infallible| match never {});
            cut::hang_up_if_asked(response)
        }
    });
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a sandbox connection ended early");
    }
}
