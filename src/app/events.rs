//! The events listener, where there is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::Router;
use tokio::net::TcpListener;
use tracing::{info, warn};
use url::Url;

use super::BuildError;
use crate::config::Events;
use crate::events::Receiver;
use crate::events::webhook::{Keys, PublicUrl, Webhook};
use crate::participants::Participants;
use crate::telemetry::Metrics;
use crate::tls::Tls;
use crate::twilio::Account;

/// The listener, bound.
pub(super) struct Bound {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Tls>,
    public_url: PublicUrl,
    max_body_bytes: usize,
}

impl Bound {
    /// The public URL, if the sandbox can call it: it speaks plain HTTP, which a public URL has on loopback only.
    pub(super) fn sandbox_url(&self) -> Option<Url> {
        let url = Url::parse(&self.public_url.to_string()).ok()?;
        (url.scheme() == "http").then_some(url)
    }
}

pub(super) async fn bind(events: Events) -> Result<Option<Bound>, BuildError> {
    let Events::Webhook { listen, tls, public_url, max_body_bytes } = events else {
        return Ok(None);
    };
    let (listener, address) = super::bind("events", "--events-listen", listen).await?;
    let public_url = match public_url {
        Some(url) => url,
        None => own_url(address, tls.is_some())?,
    };
    Ok(Some(Bound { listener, address, tls, public_url, max_body_bytes }))
}

/// What a sandbox on this machine calls.
fn own_url(mut address: SocketAddr, is_tls: bool) -> Result<PublicUrl, BuildError> {
    if address.ip().is_unspecified() {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        address.set_ip(loopback[usize::from(address.is_ipv6())]);
    }
    let scheme = if is_tls { "https" } else { "http" };
    format!("{scheme}://{address}/events").parse().map_err(BuildError::EventsUrl)
}

/// What the listener answers with. The accounts sign by their auth tokens.
pub(super) fn routes(
    bound: &Bound,
    accounts: &[Account],
    participants: Participants,
    metrics: Metrics,
) -> Router {
    for account in accounts.iter().filter(|account| account.auth_tokens.is_empty()) {
        warn!(account = %account.id, "no events of this account are taken: it has no auth token to check them with");
    }
    let tokens = accounts.iter().map(|account| (account.id.clone(), account.auth_tokens.clone()));
    let keys = Keys::new(bound.public_url.clone(), tokens);
    info!(public_url = %bound.public_url, "events are taken that Twilio sends to this URL");
    let receiver = Receiver::new(participants, metrics.clone());
    Webhook::new(receiver, keys, bound.max_body_bytes, metrics).routes()
}
