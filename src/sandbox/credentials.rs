//! Who may log in: HTTP Basic with an account SID and its auth token, or with an API key and its secret
//! (<https://www.twilio.com/docs/usage/requests-to-twilio>).

use std::collections::HashMap;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Account;
use super::seed::{ACCOUNT_SID, API_KEY_SECRET, API_KEY_SID};

pub(super) struct Credentials {
    by_user: HashMap<String, Login>,
}

struct Login {
    password: String,
    account: String,
}

impl Credentials {
    /// Every account with its token, and the API key of the default one.
    pub(super) fn new(accounts: &[Account]) -> Credentials {
        let key = Login { password: API_KEY_SECRET.to_owned(), account: ACCOUNT_SID.to_owned() };
        let mut by_user = HashMap::from([(API_KEY_SID.to_owned(), key)]);
        by_user.extend(accounts.iter().map(|account| {
            let login = Login { password: account.auth_token.clone(), account: account.sid.clone() };
            (account.sid.clone(), login)
        }));
        Credentials { by_user }
    }

    /// The SID of the account that the request logs in to.
    pub(super) fn account(&self, headers: &HeaderMap) -> Option<String> {
        let (scheme, encoded) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        let login = self.by_user.get(user)?;
        (login.password == password).then(|| login.account.clone())
    }
}
