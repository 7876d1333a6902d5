//! Accounts of Twilio, and how the gateway proves that it may use them.

mod sign_in;
mod token;
mod upkeep;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use url::Url;
use zeroize::Zeroizing;

pub(super) use sign_in::SignIn;
pub(super) use upkeep::Upkeep;

use crate::ids::AccountId;
use crate::secret::Secret;

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
    /// What Twilio signs the account's events with, whatever the account signs in with.
    pub auth_tokens: Vec<Secret>,
}

impl Account {
    /// The auth tokens that it does not sign in with: nobody else reads their files again.
    pub fn spare_tokens(&self) -> impl Iterator<Item = &Secret> {
        let used = self.credentials.secrets();
        self.auth_tokens.iter().filter(|token| !used.iter().any(|other| other.is_same(token)))
    }
}

/// What an account signs in with.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// HTTP's Basic authentication.
    Basic {
        /// The account's SID, or that of an API key.
        user: Secret,
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
    pub id: Secret,
    /// Its secret.
    pub secret: Secret,
    /// Where it gets its access tokens.
    pub token_url: Url,
}

impl Credentials {
    /// The part that is no secret, but may change with it: an account's SID, an API key's or a client's.
    pub fn user(&self) -> &Secret {
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

    /// Everything that may stand in a file.
    fn parts(&self) -> Vec<&Secret> {
        std::iter::once(self.user()).chain(self.secrets()).collect()
    }

    /// What Basic authentication sends, by the values in use, best first.
    fn basic(&self) -> Vec<HeaderValue> {
        let Self::Basic { user, passwords } = self else {
            return Vec::new();
        };
        let header = |password: &Secret| {
            let pair = Zeroizing::new([&*user.value(), ":", &*password.value()].concat());
            let pair = Zeroizing::new(BASE64_STANDARD.encode(&*pair));
            authorization("Basic", &pair).expect("Base64 fits into a header")
        };
        passwords.iter().map(header).collect()
    }
}

/// A value that is printed nowhere, and overwritten with its last clone; `None` where it does not fit into a header.
fn authorization(scheme: &str, text: &str) -> Option<HeaderValue> {
    let text = Zeroizing::new([scheme, " ", text].concat());
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok()?;
    value.set_sensitive(true);
    Some(value)
}
