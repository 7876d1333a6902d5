//! Accounts of Twilio, and how the gateway proves that it may use them.

mod secret;
mod sign_in;
mod token;
mod upkeep;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use url::Url;

pub use secret::{Secret, SecretFileError};
pub(super) use sign_in::SignIn;
pub(super) use upkeep::Upkeep;

use crate::ids::AccountId;

/// An account: where it lives and how the gateway proves itself.
#[derive(Clone, Debug)]
pub struct Account {
    /// The account.
    pub id: AccountId,
    /// The base URL of the v1 API.
    pub v1_url: Url,
    /// The base URL of the v2 API.
    pub v2_url: Url,
    /// What it signs in with.
    pub credentials: Credentials,
}

/// What an account signs in with.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// HTTP's Basic authentication.
    Basic {
        /// The account's SID, or that of an API key.
        user: String,
        /// Auth tokens, of which Twilio takes each while they rotate; or the API key's one secret.
        passwords: Vec<Secret>,
    },
    /// OAuth's grant of client credentials.
    OAuth(Client),
}

/// A client of Twilio's OAuth server.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its SID, `OQ…`.
    pub id: String,
    /// Its secret.
    pub secret: Secret,
    /// Where it gets its access tokens.
    pub token_url: Url,
}

impl Credentials {
    /// The part that is no secret: an account's SID, an API key's or a client's.
    pub fn user(&self) -> &str {
        match self {
            Self::Basic { user, .. } => user,
            Self::OAuth(client) => &client.id,
        }
    }

    /// The secret parts, the first one first; for keys that are derived from them, too.
    pub fn secrets(&self) -> &[Secret] {
        match self {
            Self::Basic { passwords, .. } => passwords,
            Self::OAuth(client) => std::slice::from_ref(&client.secret),
        }
    }

    /// What Basic authentication may send, best first: every secret's value in use, then those before it.
    fn basic(&self) -> Vec<HeaderValue> {
        let Self::Basic { user, passwords } = self else {
            return Vec::new();
        };
        let passwords: Vec<_> = passwords.iter().map(Secret::values).collect();
        let oldest = passwords.iter().map(Vec::len).max().unwrap_or_default();
        let by_age = (0..oldest).flat_map(|age| passwords.iter().filter_map(move |values| values.get(age)));
        let mut headers = Vec::new();
        for password in by_age {
            let header = authorization("Basic", &BASE64_STANDARD.encode(format!("{user}:{password}")));
            let header = header.expect("Base64 fits into a header");
            if !headers.contains(&header) {
                headers.push(header);
            }
        }
        headers
    }
}

/// A value that is printed nowhere; `None` where it does not fit into a header.
fn authorization(scheme: &str, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("{scheme} {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
