//! Where the gRPC listener may be: off loopback only by a choice of who may call, and in plain text only where that is asked
//! for.

use std::net::SocketAddr;

use super::source::Sources;
use super::switch;
use crate::access::Mode;
use crate::tls::Tls;

const NO_CHOICE: &str = "is not on loopback, and nothing says who may call: set auth.mode to mtls (with tls.client_ca_file), to \
                         jwt or tokens, to mesh where a mesh does mutual TLS in front of the gateway, or to open for \
                         everybody who can reach it";
const READABLE: &str = "is not on loopback, and tokens would travel readable: set tls.cert_file and tls.key_file; or \
                        tls.allow_plaintext=true where something in front of the gateway does TLS";
const NO_CA: &str = "mtls requires tls.client_ca_file, with tls.cert_file and tls.key_file";

/// Reports what stands against the address.
pub(super) fn check(
    sources: &mut Sources<'_>,
    modes: &[Mode],
    listen: Option<SocketAddr>,
    tls: Option<&Tls>,
) {
    let allows_plaintext = sources.required("tls.allow_plaintext", switch);
    let place = sources.place("auth.mode");
    // Files that are of no use have a problem of their own.
    let is_tls = tls.is_some() || sources.place("tls.cert_file").is_some();
    let asks = tls.is_some_and(Tls::asks_for_certificates) || sources.place("tls.client_ca_file").is_some();
    if let Some(place) = place.filter(|_| modes.contains(&Mode::Mtls) && !asks) {
        return sources.problem(place, NO_CA);
    }
    let objection = listen.and_then(|listen| objection(listen, modes, is_tls || allows_plaintext));
    if let (Some(place), Some(objection)) = (sources.place("grpc.listen"), objection) {
        sources.problem(place, objection);
    }
}

/// What stands against listening there.
fn objection(listen: SocketAddr, modes: &[Mode], is_covered: bool) -> Option<&'static str> {
    let is_plain_fine = |mode: &Mode| match mode {
        Mode::Mesh | Mode::Open => true,
        Mode::Mtls | Mode::Jwt | Mode::Tokens => false,
    };
    if listen.ip().to_canonical().is_loopback() {
        None
    } else if modes.is_empty() {
        Some(NO_CHOICE)
    } else if is_covered || modes.iter().any(is_plain_fine) {
        None
    } else {
        Some(READABLE)
    }
}
