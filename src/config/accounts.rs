//! The accounts: one from the environment, more from the file.

use std::collections::BTreeSet;

use url::{Host, Url};

use super::source::Sources;
use crate::ids::AccountId;
use crate::twilio::{Account, Credentials};

const NONE: &str = "no account: set TWILIO_ACCOUNT_SID with TWILIO_AUTH_TOKEN, or with TWILIO_API_KEY and \
                    TWILIO_API_SECRET; or list accounts in the file; or start with --sandbox, which needs none";

/// What an account is called in one place, and what it is.
struct Raw {
    /// Before each name in a problem.
    at: String,
    names: [&'static str; 4],
    values: [Option<String>; 4],
    v1_url: Option<Url>,
    v2_url: Option<Url>,
}

const ENV: [&str; 4] = ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_API_KEY", "TWILIO_API_SECRET"];
const FILE: [&str; 4] = ["account_sid", "auth_token", "api_key", "api_secret"];
const FILE_URLS: [&str; 3] = ["url", "v1_url", "v2_url"];

/// The base URLs of v1 and v2; `None` where one is wrong.
type Urls = (Option<Url>, Option<Url>);

/// All accounts, the default one first.
pub(super) fn read(sources: &mut Sources<'_>) -> Vec<Account> {
    let common = common_urls(sources);
    let mut accounts = Vec::new();
    let values = ENV.map(|name| sources.env(name));
    let tables = std::mem::take(&mut sources.accounts);
    if values.iter().all(Option::is_none) && tables.is_empty() {
        sources.problem("accounts", NONE);
        return accounts;
    }
    if values.iter().any(Option::is_some) {
        let (v1_url, v2_url) = common.clone();
        let raw = Raw { at: String::new(), names: ENV, values, v1_url, v2_url };
        accounts.extend(account(sources, raw));
    }
    for (at, table) in tables.into_iter().enumerate() {
        let raw = from_table(sources, format!("accounts[{at}]."), &table, &common);
        accounts.extend(account(sources, raw));
    }
    refuse_duplicates(sources, &accounts);
    default_first(sources, &mut accounts);
    accounts
}

fn refuse_duplicates(sources: &mut Sources<'_>, accounts: &[Account]) {
    let mut seen = BTreeSet::new();
    for account in accounts {
        if !seen.insert(&account.id) {
            sources.problem("accounts", format!("{} stands twice", account.id));
        }
    }
}

fn default_first(sources: &mut Sources<'_>, accounts: &mut [Account]) {
    let Some(default) = sources.default_account.clone() else {
        return;
    };
    match accounts.iter().position(|account| account.id.as_str() == default) {
        Some(at) => accounts[..=at].rotate_right(1),
        None => sources.problem("default_account", "must be the account_sid of one of the accounts"),
    }
}

fn from_table(sources: &mut Sources<'_>, at: String, table: &toml::Table, (v1, v2): &Urls) -> Raw {
    for name in table.keys() {
        if !FILE.contains(&name.as_str()) && !FILE_URLS.contains(&name.as_str()) {
            sources.problem(
                format!("{at}{name}"),
                format!("is no key of an account; these are: {FILE:?}, {FILE_URLS:?}"),
            );
        }
    }
    let mut text = |name: &str| match table.get(name) {
        None => None,
        Some(toml::Value::String(text)) => Some(text.clone()).filter(|text| !text.is_empty()),
        Some(_) => {
            sources.problem(format!("{at}{name}"), "must be a string");
            None
        }
    };
    let values = FILE.map(&mut text);
    let [url, v1_url, v2_url] = FILE_URLS.map(text);
    let mut own = |name: &str, own: Option<String>, common: &Option<Url>| match own.or_else(|| url.clone()) {
        None => common.clone(),
        Some(text) => checked_url(sources, &format!("{at}{name}"), &text),
    };
    let (v1_url, v2_url) = (own("v1_url", v1_url, v1), own("v2_url", v2_url, v2));
    Raw { at, names: FILE, values, v1_url, v2_url }
}

fn account(sources: &mut Sources<'_>, raw: Raw) -> Option<Account> {
    let Raw { at, names: [sid_name, token_name, key_name, secret_name], values, v1_url, v2_url } = raw;
    let [sid, token, key, secret] = values;
    let id = match sid {
        Some(sid) => AccountId::parse(&sid).ok_or("must be `AC` and 32 hex digits"),
        None => Err("is required"),
    };
    let id = id.map_err(|text| sources.problem(format!("{at}{sid_name}"), text)).ok();
    // An API key is preferred: it can be revoked by itself, and may do less than the auth token.
    let credentials = match (key, secret, token) {
        // Also so that a secret in the key's place is not shown as if it were none.
        (Some(key), Some(_), _) if !key.starts_with("SK") => {
            sources.problem(format!("{at}{key_name}"), "must be an API key's SID, which begins with `SK`");
            None
        }
        (Some(key), Some(secret), _) => Some(Credentials::new(key, secret)),
        (Some(_), None, _) => {
            sources.problem(format!("{at}{secret_name}"), format!("is required with {key_name}"));
            None
        }
        (None, Some(_), _) => {
            sources.problem(format!("{at}{key_name}"), format!("is required with {secret_name}"));
            None
        }
        (None, None, Some(token)) => id.as_ref().map(|id| Credentials::new(id.as_str(), token)),
        (None, None, None) => {
            let text = format!("is required, or {key_name} and {secret_name} are");
            sources.problem(format!("{at}{token_name}"), text);
            None
        }
    };
    Some(Account { id: id?, credentials: credentials?, v1_url: v1_url?, v2_url: v2_url? })
}

/// The base URLs of accounts that have none of their own; one that is wrong is a problem, and none.
fn common_urls(sources: &mut Sources<'_>) -> Urls {
    let mut own = |key: &str| {
        let place = sources.place(key)?;
        let text = sources.optional(key, |text| Ok::<_, String>(text.to_owned()))?;
        Some(checked_url(sources, &place, &text))
    };
    let [common, v1_url, v2_url] = ["upstream.url", "upstream.v1_url", "upstream.v2_url"].map(&mut own);
    let common = common.unwrap_or_else(|| {
        let host = host(sources)?;
        checked_url(sources, "TWILIO_EDGE, TWILIO_REGION", &format!("https://{host}"))
    });
    (v1_url.unwrap_or_else(|| common.clone()), v2_url.unwrap_or(common))
}

/// Twilio's hosts: product, edge, region. An edge alone means the region us1.
fn host(sources: &mut Sources<'_>) -> Option<String> {
    let mut are_labels = true;
    let mut label = |name: &str| {
        let label = sources.env(name)?;
        // Anything else would end the host's name early, and send the credentials elsewhere.
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            are_labels = false;
            sources.problem(name, "must be letters, digits and hyphens, such as dublin or ie1");
        }
        Some(label)
    };
    let (edge, region) = (label("TWILIO_EDGE"), label("TWILIO_REGION"));
    let host = match (edge, region) {
        (None, None) => "conversations.twilio.com".into(),
        (Some(edge), region) => {
            format!("conversations.{edge}.{}.twilio.com", region.as_deref().unwrap_or("us1"))
        }
        (None, Some(region)) => format!("conversations.{region}.twilio.com"),
    };
    are_labels.then_some(host)
}

fn checked_url(sources: &mut Sources<'_>, at: &str, text: &str) -> Option<Url> {
    match base_url(text, sources.allow_insecure) {
        Ok(url) => Some(url),
        Err(error) => {
            sources.problem(at, error);
            None
        }
    }
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
