//! Where an account lives: URLs of its own, or Twilio's by edge and region, or those that are common to all.

use url::{Host, Url};

use super::Raw;
use crate::config::source::Sources;

/// The base URLs of v1 and v2 and the token endpoint's; `None` where one is wrong.
#[derive(Clone)]
pub(super) struct Urls {
    pub(super) v1: Option<Url>,
    pub(super) v2: Option<Url>,
    pub(super) token: Option<Url>,
}

/// Those of accounts that have none of their own.
pub(super) fn common(sources: &mut Sources<'_>) -> Urls {
    let mut own = |key: &str| {
        let place = sources.place(key)?;
        let text = sources.optional(key, |text| Ok::<_, String>(text.to_owned()))?;
        Some(checked(sources, &place, &text))
    };
    let [both, v1, v2] = ["upstream.url", "upstream.v1_url", "upstream.v2_url"].map(&mut own);
    let both = both.unwrap_or_else(|| {
        let names = ["TWILIO_EDGE", "TWILIO_REGION"];
        let [edge, region] = names.map(|name| sources.env(name));
        host_url(sources, (names[0], edge.as_deref()), (names[1], region.as_deref()))
    });
    let is_insecure_allowed = sources.allow_insecure;
    let token = sources.optional("upstream.token_url", |text| base_url(text, is_insecure_allowed));
    Urls { v1: v1.unwrap_or_else(|| both.clone()), v2: v2.unwrap_or(both), token }
}

/// Those of an account of the file.
pub(super) fn own(sources: &mut Sources<'_>, raw: &Raw, common: &Urls) -> Urls {
    let [edge, region] = ["edge", "region"];
    for key in [edge, region] {
        if raw.get("url").is_some() && raw.get(key).is_some() {
            raw.problem(sources, key, format!("cannot stand beside {}", raw.name("url")));
        }
    }
    let has_host = raw.get(edge).is_some() || raw.get(region).is_some();
    let both = if let Some(text) = raw.get("url") {
        Some(checked(sources, &raw.name("url"), text))
    } else if has_host {
        let (edge, region) = ((raw.name(edge), raw.get(edge)), (raw.name(region), raw.get(region)));
        Some(host_url(sources, (&edge.0, edge.1), (&region.0, region.1)))
    } else {
        None
    };
    let mut url = |key: &str, otherwise: Option<Url>| match raw.get(key) {
        Some(text) => checked(sources, &raw.name(key), text),
        None => otherwise,
    };
    let or_both = |common: &Option<Url>| both.clone().unwrap_or_else(|| common.clone());
    Urls {
        v1: url("v1_url", or_both(&common.v1)),
        v2: url("v2_url", or_both(&common.v2)),
        token: url("token_url", common.token.clone()),
    }
}

/// Twilio's hosts: product, edge, region, each label with what it is called. An edge alone means the region us1.
fn host_url(
    sources: &mut Sources<'_>,
    edge: (&str, Option<&str>),
    region: (&str, Option<&str>),
) -> Option<Url> {
    let mut are_labels = true;
    for (name, label) in [edge, region] {
        // Anything else would end the host's name early, and send the credentials elsewhere.
        if label.is_some_and(|label| !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')) {
            are_labels = false;
            sources.problem(name, "must be letters, digits and hyphens, such as dublin or ie1");
        }
    }
    let host = match (edge.1, region.1) {
        (None, None) => "conversations.twilio.com".into(),
        (Some(edge), region) => format!("conversations.{edge}.{}.twilio.com", region.unwrap_or("us1")),
        (None, Some(region)) => format!("conversations.{region}.twilio.com"),
    };
    let url = are_labels.then(|| format!("https://{host}"))?;
    checked(sources, &format!("{}, {}", edge.0, region.0), &url)
}

fn checked(sources: &mut Sources<'_>, at: &str, text: &str) -> Option<Url> {
    base_url(text, sources.allow_insecure).map_err(|error| sources.problem(at, error)).ok()
}

fn base_url(text: &str, allow_insecure: bool) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "must be a URL such as https://conversations.twilio.com")?;
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => return Err("must name a host"),
    };
    let is_bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    match url.scheme() {
        _ if !is_bare || url.fragment().is_some() => Err("must hold no user, password, query or fragment"),
        "https" => Ok(url),
        "http" if is_loopback || allow_insecure => Ok(url),
        "http" => {
            Err("is plain http to another machine: credentials and PII would travel readable; use https, \
                       or accept that with --allow-insecure-upstream")
        }
        _ => Err("must begin with https://"),
    }
}
