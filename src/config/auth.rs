//! How callers prove who they are.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};

use super::source::Sources;
use super::{duration, limit, switch};
use crate::access::{Jwt, JwtSettings, Keys, Mesh, MeshHeader, Mode, SigningAlgorithm, Tokens, Way};

const NOT_BESIDE: &str = "open cannot stand beside another mode: nobody would have to prove anything";
const TWICE: &str = "must not name a mode twice";

/// The modes, in their order; `None` where they are wrong, which is then a problem.
pub(super) fn modes(sources: &mut Sources<'_>) -> Option<Vec<Mode>> {
    match sources.place("auth.mode") {
        None => Some(Vec::new()),
        Some(_) => sources.optional("auth.mode", parse),
    }
}

fn parse(text: &str) -> Result<Vec<Mode>, String> {
    let mut modes: Vec<Mode> = Vec::new();
    for word in text.split(',') {
        let mode = word.trim().parse::<Mode>().map_err(|error| error.to_string())?;
        if modes.contains(&mode) {
            return Err(TWICE.to_owned());
        }
        modes.push(mode);
    }
    if modes.len() > 1 && modes.contains(&Mode::Open) { Err(NOT_BESIDE.to_owned()) } else { Ok(modes) }
}

/// The ways that these modes mean, with what they need.
pub(super) fn ways(sources: &mut Sources<'_>, modes: &[Mode]) -> Vec<Way> {
    let (jwt, tokens, mesh) = (jwt(sources, modes), tokens(sources, modes), mesh(sources, modes));
    let way = |mode: &Mode| match mode {
        Mode::Mtls => Some(Way::Certificate),
        Mode::Tokens => tokens.clone().map(Way::Tokens),
        Mode::Jwt => jwt.clone().map(Way::Jwt),
        Mode::Mesh => mesh.clone().map(Way::Mesh),
        Mode::Open => None,
    };
    modes.iter().filter_map(way).collect()
}

const ISSUER: &str = "auth.jwt.issuer";
const AUDIENCE: &str = "auth.jwt.audience";
const JWKS_FILE: &str = "auth.jwt.jwks_file";
const JWKS_URL: &str = "auth.jwt.jwks_url";
const JWKS_REFRESH: &str = "auth.jwt.jwks_refresh";
const ALGORITHMS: &str = "auth.jwt.algorithms";
const LEEWAY: &str = "auth.jwt.leeway";

fn jwt(sources: &mut Sources<'_>, modes: &[Mode]) -> Option<Jwt> {
    let settings = [ISSUER, AUDIENCE, JWKS_FILE, JWKS_URL, JWKS_REFRESH, ALGORITHMS, LEEWAY];
    let is_on = is_needed(sources, modes, Mode::Jwt, &settings);
    let mode = sources.place("auth.mode").unwrap_or_default();
    for setting in [ISSUER, AUDIENCE] {
        if is_on && sources.place(setting).is_none() {
            sources.problem(&mode, format!("jwt requires {setting}"));
        }
    }
    let algorithms = sources.required(ALGORITHMS, algorithms);
    let leeway = sources.required(LEEWAY, leeway);
    let [issuer, audience] = [ISSUER, AUDIENCE].map(|key| sources.optional(key, str::parse::<String>));
    let keys = keys(sources, is_on.then_some(mode));
    Some(Jwt::new(JwtSettings { issuer: issuer?, audience: audience?, algorithms, leeway, keys: keys? }))
}

/// Of a file or of a URL: where a mode that stands there needs them, of one of the two.
fn keys(sources: &mut Sources<'_>, mode: Option<String>) -> Option<Keys> {
    match (mode, sources.place(JWKS_FILE), sources.place(JWKS_URL)) {
        (Some(mode), None, None) => {
            sources.problem(mode, format!("jwt requires {JWKS_FILE} or {JWKS_URL}"));
        }
        (_, Some(file), Some(url)) => sources.problem(url, format!("cannot be set beside {file}")),
        _ => {}
    }
    let refresh = sources.required(JWKS_REFRESH, limit);
    let of_url = |text: &str| Keys::url(jwks_url(text)?, refresh).map_err(|error| error.to_string());
    let of_file = |path: &str| Keys::file(PathBuf::from(path));
    sources.optional(JWKS_FILE, of_file).or(sources.optional(JWKS_URL, of_url))
}

fn jwks_url(text: &str) -> Result<Url, String> {
    const WRONG: &str = "must be an https URL without user, password and fragment; http is for loopback only";
    let url: Url = text.parse().map_err(|_| WRONG)?;
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let is_bare = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
    if is_bare && is_safe { Ok(url) } else { Err(WRONG.to_owned()) }
}

fn algorithms(text: &str) -> Result<Vec<SigningAlgorithm>, String> {
    let all = text.split(',').map(|word| word.trim().parse::<SigningAlgorithm>());
    all.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Clocks differ by less.
fn leeway(text: &str) -> Result<Duration, &'static str> {
    const MOST: Duration = Duration::from_secs(300);
    duration(text).ok().filter(|leeway| *leeway <= MOST).ok_or("must be a duration of at most 5m")
}

const PROXIES: &str = "auth.mesh.trusted_proxies";
const HEADER: &str = "auth.mesh.header";
const REQUIRED: &str = "auth.mesh.require_identity";

fn mesh(sources: &mut Sources<'_>, modes: &[Mode]) -> Option<Mesh> {
    let is_on = is_needed(sources, modes, Mode::Mesh, &[PROXIES, HEADER, REQUIRED]);
    let proxies = sources.required(PROXIES, networks);
    let header = sources.required(HEADER, str::parse::<MeshHeader>);
    let is_required = sources.required(REQUIRED, switch);
    is_on.then_some(Mesh { proxies, header, is_required })
}

fn networks(text: &str) -> Result<Vec<IpNet>, &'static str> {
    const WRONG: &str = "must be networks such as 127.0.0.0/8 or ::1/128, with commas between them";
    text.split(',').map(|word| word.trim().parse().map_err(|_| WRONG)).collect()
}

fn tokens(sources: &mut Sources<'_>, modes: &[Mode]) -> Option<Tokens> {
    const FILE: &str = "auth.tokens_file";
    if is_needed(sources, modes, Mode::Tokens, &[FILE]) && sources.place(FILE).is_none() {
        let place = sources.place("auth.mode").unwrap_or_default();
        sources.problem(place, format!("tokens requires {FILE}"));
    }
    sources.optional(FILE, |path| Tokens::read(PathBuf::from(path)))
}

/// Whether the mode is on. Where it is not, none of its settings may be set: whoever sets one relies on it.
fn is_needed(sources: &mut Sources<'_>, modes: &[Mode], mode: Mode, settings: &[&str]) -> bool {
    let is_on = modes.contains(&mode);
    for setting in settings {
        if let Some(place) = sources.place(setting).filter(|_| !is_on) {
            sources.problem(place, format!("means nothing without auth.mode={mode}"));
        }
    }
    is_on
}
