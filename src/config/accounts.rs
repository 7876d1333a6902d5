//! The accounts: one from the environment, more from the file.

mod credentials;
mod urls;

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::source::Sources;
use crate::ids::AccountId;
use crate::twilio::Account;
use urls::Urls;

const NONE: &str = "no account: set TWILIO_ACCOUNT_SID with TWILIO_AUTH_TOKEN, with TWILIO_API_KEY and TWILIO_API_SECRET, \
                    or with TWILIO_CLIENT_ID and TWILIO_CLIENT_SECRET; or list accounts in the file; or start with \
                    --sandbox, which needs none";

/// Who an account is and what it signs in with, by the keys of a table of the file; its variables are called alike.
const IDENTITY: &[&str] = &[
    "account_sid",
    "auth_token",
    "auth_token_file",
    "secondary_auth_token",
    "secondary_auth_token_file",
    "api_key",
    "api_key_file",
    "api_secret",
    "api_secret_file",
    "client_id",
    "client_id_file",
    "client_secret",
    "client_secret_file",
];
/// Where it lives. The environment's account lives where the settings say.
const URLS: &[&str] = &["url", "v1_url", "v2_url", "token_url", "edge", "region"];

/// Marks that something is wrong of which there is a problem.
struct Reported;

/// What stands about an account in one place.
struct Raw {
    place: Place,
    values: BTreeMap<&'static str, Zeroizing<String>>,
}

#[derive(Clone, Copy)]
enum Place {
    Environment,
    /// The table of the file with this index.
    Table(usize),
}

impl Raw {
    fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|text| text.as_str())
    }

    /// What the key is called there.
    fn name(&self, key: &str) -> String {
        match self.place {
            Place::Environment => format!("TWILIO_{}", key.to_uppercase()),
            Place::Table(at) => format!("accounts[{at}].{key}"),
        }
    }

    fn problem(&self, sources: &mut Sources<'_>, key: &str, text: impl Into<String>) -> Reported {
        sources.problem(self.name(key), text);
        Reported
    }

    fn from_env(sources: &Sources<'_>) -> Self {
        let mut raw = Self { place: Place::Environment, values: BTreeMap::new() };
        raw.values =
            IDENTITY.iter().filter_map(|key| Some((*key, sources.env(&raw.name(key))?.into()))).collect();
        raw
    }

    fn from_table(sources: &mut Sources<'_>, at: usize, table: toml::Table) -> Self {
        let mut raw = Self { place: Place::Table(at), values: BTreeMap::new() };
        for (name, value) in table {
            let key = IDENTITY.iter().chain(URLS).find(|key| **key == name);
            match (key, value) {
                // An empty text is none: deployment templates leave such behind.
                (Some(_), toml::Value::String(text)) if text.is_empty() => {}
                (Some(key), toml::Value::String(text)) => {
                    raw.values.insert(key, text.into());
                }
                (Some(key), _) => {
                    raw.problem(sources, key, "must be a string");
                }
                (None, _) => {
                    let text = format!("is no key of an account; these are: {IDENTITY:?}, {URLS:?}");
                    raw.problem(sources, &name, text);
                }
            }
        }
        raw
    }
}

/// All accounts, the default one first.
pub(super) fn read(sources: &mut Sources<'_>) -> Vec<Account> {
    let common = urls::common(sources);
    let mut accounts = Vec::new();
    let from_env = Raw::from_env(sources);
    let tables = std::mem::take(&mut sources.accounts);
    if from_env.values.is_empty() && tables.is_empty() {
        sources.problem("accounts", NONE);
        return accounts;
    }
    if !from_env.values.is_empty() {
        accounts.extend(account(sources, &from_env, common.clone()));
    }
    for (at, table) in tables.into_iter().enumerate() {
        let raw = Raw::from_table(sources, at, table);
        let urls = urls::own(sources, &raw, &common);
        accounts.extend(account(sources, &raw, urls));
    }
    refuse_duplicates(sources, &accounts);
    default_first(sources, &mut accounts);
    accounts
}

fn account(sources: &mut Sources<'_>, raw: &Raw, urls: Urls) -> Option<Account> {
    let id = match raw.get("account_sid") {
        Some(sid) => AccountId::parse(sid).ok_or("must be `AC` and 32 hex digits"),
        None => Err("is required"),
    };
    let id = id.map_err(|text| raw.problem(sources, "account_sid", text)).ok();
    let Urls { v1, v2, token } = urls;
    let (credentials, auth_tokens) = credentials::read(sources, raw, id.as_ref(), token).ok()?;
    Some(Account { id: id?, credentials: credentials?, auth_tokens, v1_url: v1?, v2_url: v2? })
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
