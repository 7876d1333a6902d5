//! Accounts of Twilio, and how the gateway proves that it may use them.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use http::header::InvalidHeaderValue;
use url::Url;

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
    /// What Basic authentication sends.
    pub credentials: Credentials,
}

/// User and password of Basic authentication: account SID and auth token, or API key and its secret.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// The parts must be what a header can hold once joined and encoded, which any text is.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }

    /// The part that is no secret: an account SID, or an API key's SID.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The secret part, for keys that are derived from it.
    pub fn secret(&self) -> &str {
        &self.password
    }

    pub(super) fn authorization(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        let encoded = BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password));
        let mut value = HeaderValue::try_from(format!("Basic {encoded}"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
