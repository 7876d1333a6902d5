//! How Twilio's events come in.

use std::net::{Ipv4Addr, SocketAddr};

use super::source::Sources;
use super::{Upstream, listen, number, tls};
use crate::events::webhook::PublicUrl;
use crate::tls::Tls;

/// How Twilio's events come in.
#[derive(Debug)]
pub enum Events {
    /// They do not.
    Off,
    /// Twilio posts them to a listener.
    Webhook {
        /// Its address.
        listen: SocketAddr,
        /// Its TLS, where none ends before it.
        tls: Option<Tls>,
        /// The URL under which Twilio calls it; `None` is its own, which only the sandbox can call.
        public_url: Option<PublicUrl>,
        /// The largest delivery.
        max_body_bytes: usize,
    },
}

pub(super) fn read(sources: &mut Sources<'_>, upstream: &Upstream) -> Events {
    let public_url = sources.optional("events.public_url", str::parse::<PublicUrl>);
    let max_body_bytes = sources.required("events.max_body_bytes", |text| number(text, 1024, 1 << 30));
    let (url_place, place) = (sources.place("events.public_url"), sources.place("events.listen"));
    let listen = sources.optional("events.listen", listen);
    let tls = tls::read_events(sources);
    let webhook = |listen| Events::Webhook { listen, tls, public_url, max_body_bytes };
    let Some(place) = place else {
        if let (Upstream::Twilio(_), Some(tls_place)) = (upstream, sources.place("events.tls.cert_file")) {
            sources.problem(tls_place, "means nothing without events.listen");
        }
        return match (upstream, url_place) {
            (Upstream::Sandbox(_), _) => webhook((Ipv4Addr::LOCALHOST, 0).into()),
            (Upstream::Twilio(_), None) => Events::Off,
            (Upstream::Twilio(_), Some(url_place)) => {
                sources.problem(url_place, "means nothing without events.listen");
                Events::Off
            }
        };
    };
    if let Upstream::Twilio(accounts) = upstream {
        if url_place.is_none() {
            let text = "requires events.public_url: signatures cover the URL under which Twilio calls it";
            sources.problem(&place, text);
        }
        // An account that was refused has a problem of its own.
        if !accounts.is_empty() && accounts.iter().all(|account| account.auth_tokens.is_empty()) {
            let text = "requires an account's auth_token, beside its API key or OAuth client: Twilio signs with nothing else";
            sources.problem(&place, text);
        }
    }
    listen.map_or(Events::Off, webhook)
}
