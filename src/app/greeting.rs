//! What `serve --sandbox` says to the person who started it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{App, SERVICE_NAME};
use crate::sandbox::{V1_CONVERSATION, V2_CONVERSATION};

/// Three grpcurl commands that work as they stand, or with the files that they name where there is TLS.
pub fn greeting(app: &App) -> String {
    let mut grpc = app.addresses.grpc;
    let transport = match &app.front.tls {
        None => "-plaintext",
        Some(tls) if tls.asks_for_certificates() => "-cacert ca.pem -cert caller.pem -key caller-key.pem",
        Some(_) => "-cacert ca.pem",
    };
    if grpc.ip().is_unspecified() {
        grpc = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), grpc.port());
    }
    let call = |method: &str, conversation: &str, rest: &str| {
        let request = format!(r#"{{"conversation":{{"conversation_id":"{conversation}"}}{rest}}}"#);
        format!("  grpcurl {transport} -d '{request}' {grpc} {SERVICE_NAME}/{method}\n")
    };
    format!(
        "The gateway runs on an embedded sandbox in place of Twilio. Try, in another terminal:\n\n{}\n{}\n{}\nStop with Ctrl-C.\n",
        call("GetParticipant", V1_CONVERSATION, r#","participant_id":"alice""#),
        call("ListParticipants", V2_CONVERSATION, ""),
        call(
            "UpdateParticipant",
            V2_CONVERSATION,
            r#","participant_id":"conv_participant_00000000000000000000000001","participant":{"display_name":"Noor A."},"update_mask":{"paths":["display_name"]}"#
        ),
    )
}
