//! The TLS of the listeners.

use std::path::PathBuf;

use super::source::Sources;
use crate::tls::{ClientAuth, Clients, File, Files, Listener, Tls};

/// The keys of a listener's settings.
struct Keys {
    certificate: &'static str,
    key: &'static str,
}

pub(super) fn read_grpc(sources: &mut Sources<'_>) -> Option<Tls> {
    let keys = Keys { certificate: "tls.cert_file", key: "tls.key_file" };
    let clients = clients(sources);
    if clients.is_some() && sources.place(keys.certificate).is_none() {
        let place = sources.place(CLIENT_CA).unwrap_or_default();
        sources.problem(place, "means nothing without tls.cert_file and tls.key_file");
    }
    read(sources, Listener::Grpc, &keys, clients)
}

pub(super) fn read_events(sources: &mut Sources<'_>) -> Option<Tls> {
    let keys = Keys { certificate: "events.tls.cert_file", key: "events.tls.key_file" };
    read(sources, Listener::Events, &keys, None)
}

const CLIENT_CA: &str = "tls.client_ca_file";

fn clients(sources: &mut Sources<'_>) -> Option<Clients> {
    let auth = sources.optional("tls.client_auth", str::parse::<ClientAuth>);
    let ca = sources.optional(CLIENT_CA, str::parse::<PathBuf>);
    if let (Some(place), None) = (sources.place("tls.client_auth"), &ca) {
        sources.problem(place, "means nothing without tls.client_ca_file");
    }
    ca.map(|ca| Clients { ca, auth: auth.unwrap_or_default() })
}

fn read(sources: &mut Sources<'_>, listener: Listener, keys: &Keys, clients: Option<Clients>) -> Option<Tls> {
    let files = [keys.certificate, keys.key].map(|key| sources.optional(key, str::parse::<PathBuf>));
    let (certificate, key) = match files {
        [Some(certificate), Some(key)] => (certificate, key),
        [None, None] => return None,
        [certificate, _] => {
            let (set, missing) = if certificate.is_some() {
                (keys.certificate, keys.key)
            } else {
                (keys.key, keys.certificate)
            };
            let place = sources.place(set).unwrap_or_default();
            sources.problem(place, format!("requires {missing}, too"));
            return None;
        }
    };
    let read = Tls::read(listener, Files { certificate, key, clients });
    read.map_err(|error| {
        let setting = match error.file {
            File::Certificate => keys.certificate,
            File::Key => keys.key,
            File::ClientCa => CLIENT_CA,
        };
        let place = sources.place(setting).unwrap_or_default();
        sources.problem(place, error.reason.to_string());
    })
    .ok()
}
