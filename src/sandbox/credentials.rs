//! Who may log in: HTTP Basic with an account SID and one of its auth tokens, or with an API key and its
//! secret (<https://www.twilio.com/docs/usage/requests-to-twilio>); Bearer with an access token of OAuth.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::Account;
use super::seed::{ACCOUNT_SID, API_KEY_SECRET, OAUTH_CLIENT_SECRET};

/// The oldest is forgotten when there are more.
const MOST_ACCESS_TOKENS: usize = 1000;
const FIRST_TTL: Duration = Duration::from_secs(3600);

pub(super) struct Credentials {
    by_account: BTreeMap<String, Secrets>,
    issued: VecDeque<AccessToken>,
    /// Not reset, so that no token is ever issued twice.
    issued_ever: u64,
}

/// What logs in to one account. Its API key and its OAuth client have the account's digits.
struct Secrets {
    auth_tokens: Vec<String>,
    api_secret: String,
    client_secret: String,
    token_ttl: Duration,
}

struct AccessToken {
    text: String,
    account: String,
    expires: SystemTime,
}

/// A change of an account's credentials; what is left out stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    account: Option<String>,
    auth_tokens: Option<Vec<String>>,
    api_secret: Option<String>,
    client_secret: Option<String>,
    token_ttl_s: Option<u32>,
    revoke_tokens: Option<bool>,
}

/// Why no credentials were changed.
#[derive(Debug, Error)]
pub(super) enum ChangeError {
    #[error("there is no account {0}")]
    NoAccount(String),
    #[error("`auth_tokens` are one or two, none of them empty")]
    AuthTokens,
}

impl Credentials {
    pub(super) fn new(accounts: &[Account]) -> Credentials {
        let mut credentials =
            Credentials { by_account: BTreeMap::new(), issued: VecDeque::new(), issued_ever: 0 };
        credentials.reset(accounts);
        credentials
    }

    /// Every account as at the start, and no token issued.
    pub(super) fn reset(&mut self, accounts: &[Account]) {
        let secrets = |account: &Account| Secrets {
            auth_tokens: vec![account.auth_token.clone()],
            api_secret: API_KEY_SECRET.to_owned(),
            client_secret: OAUTH_CLIENT_SECRET.to_owned(),
            token_ttl: FIRST_TTL,
        };
        self.by_account = accounts.iter().map(|account| (account.sid.clone(), secrets(account))).collect();
        self.issued.clear();
    }

    /// All of it or none.
    pub(super) fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        let account = change.account.unwrap_or_else(|| ACCOUNT_SID.to_owned());
        let Some(secrets) = self.by_account.get_mut(&account) else {
            return Err(ChangeError::NoAccount(account));
        };
        if let Some(tokens) = change.auth_tokens {
            if !(1..=2).contains(&tokens.len()) || tokens.iter().any(String::is_empty) {
                return Err(ChangeError::AuthTokens);
            }
            secrets.auth_tokens = tokens;
        }
        if let Some(secret) = change.api_secret {
            secrets.api_secret = secret;
        }
        if let Some(secret) = change.client_secret {
            secrets.client_secret = secret;
        }
        if let Some(seconds) = change.token_ttl_s {
            secrets.token_ttl = Duration::from_secs(seconds.into());
        }
        if change.revoke_tokens == Some(true) {
            self.issued.retain(|token| token.account != account);
        }
        Ok(())
    }

    /// The SID of the account that the request logs in to.
    pub(super) fn account(&self, headers: &HeaderMap, now: SystemTime) -> Option<String> {
        let (scheme, given) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            let known = self.issued.iter().find(|token| token.text == given.trim())?;
            return (now < known.expires).then(|| known.account.clone());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(given.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        if let Some(secrets) = self.by_account.get(user) {
            return secrets.auth_tokens.iter().any(|token| token == password).then(|| user.to_owned());
        }
        let (account, secrets) = self.owner("SK", user)?;
        (secrets.api_secret == password).then_some(account)
    }

    /// What the account's events are signed with.
    pub(super) fn primary_auth_token(&self, account: &str) -> Option<String> {
        self.by_account.get(account)?.auth_tokens.first().cloned()
    }

    /// The SID of the account whose OAuth client this is.
    pub(super) fn client_account(&self, client_id: &str, client_secret: &str) -> Option<String> {
        let (account, secrets) = self.owner("OQ", client_id)?;
        (secrets.client_secret == client_secret).then_some(account)
    }

    fn owner(&self, prefix: &str, sid: &str) -> Option<(String, &Secrets)> {
        let account = format!("AC{}", sid.strip_prefix(prefix)?);
        let secrets = self.by_account.get(&account)?;
        Some((account, secrets))
    }

    /// A new access token of the account, and how long it is good for.
    pub(super) fn issue(&mut self, account: &str, now: SystemTime) -> Option<(String, Duration)> {
        let ttl = self.by_account.get(account)?.token_ttl;
        let expires = now + ttl;
        self.issued_ever += 1;
        let text = jwt(account, self.issued_ever, now, expires);
        if self.issued.len() == MOST_ACCESS_TOKENS {
            self.issued.pop_front();
        }
        self.issued.push_back(AccessToken { text: text.clone(), account: account.to_owned(), expires });
        Some((text, ttl))
    }
}

/// Twilio's tokens are JWTs, and its SDKs read `exp` in them. The signature is for show: a token is known by
/// its whole text.
fn jwt(account: &str, number: u64, now: SystemTime, expires: SystemTime) -> String {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = json!({
        "iss": "sandbox", "sub": account, "jti": number, "iat": seconds(now), "exp": seconds(expires),
    });
    let parts = [json!({"alg": "HS256", "typ": "JWT"}).to_string(), claims.to_string(), "sandbox".to_owned()];
    parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn credentials() -> Credentials {
        let account = |sid: &str| Account { sid: sid.to_owned(), auth_token: "sandbox".to_owned() };
        Credentials::new(&[account(ACCOUNT_SID), account("AC1")])
    }

    fn bearer(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
    }

    fn change(json: serde_json::Value) -> Change {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_token_lives_as_long_as_its_account_said_when_it_was_issued() {
        let mut credentials = credentials();
        credentials.change(change(json!({"account": "AC1", "token_ttl_s": 5}))).unwrap();
        let (token, ttl) = credentials.issue("AC1", at(10)).unwrap();
        assert_eq!(ttl, Duration::from_secs(5));
        credentials.change(change(json!({"account": "AC1", "token_ttl_s": 50}))).unwrap();
        assert_eq!(credentials.account(&bearer(&token), at(14)).as_deref(), Some("AC1"));
        assert_eq!(credentials.account(&bearer(&token), at(15)), None);
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&claims).unwrap()["exp"], 15);
    }

    #[test]
    fn revoking_is_per_account_and_a_reset_revokes_all() {
        let mut credentials = credentials();
        let mut tokens = [ACCOUNT_SID, "AC1"].map(|account| credentials.issue(account, at(0)).unwrap().0);
        credentials.change(change(json!({"revoke_tokens": true}))).unwrap();
        assert_eq!(credentials.account(&bearer(&tokens[0]), at(1)), None);
        assert_eq!(credentials.account(&bearer(&tokens[1]), at(1)).as_deref(), Some("AC1"));
        credentials.reset(&[Account { sid: "AC1".to_owned(), auth_token: "sandbox".to_owned() }]);
        assert_eq!(credentials.account(&bearer(&tokens[1]), at(1)), None);
        tokens[0] = credentials.issue("AC1", at(0)).unwrap().0;
        assert_ne!(tokens[0], tokens[1]);
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let mut credentials = credentials();
        for auth_tokens in [json!([]), json!([""]), json!(["a", "b", "c"])] {
            let refused = change(json!({"auth_tokens": auth_tokens, "client_secret": "new"}));
            assert!(matches!(credentials.change(refused), Err(ChangeError::AuthTokens)));
        }
        let client = "OQ00000000000000000000000000000000";
        assert_eq!(credentials.client_account(client, "sandbox").as_deref(), Some(ACCOUNT_SID));
        assert_eq!(credentials.client_account(client, "new"), None);
        assert!(matches!(
            credentials.change(change(json!({"account": "AC2"}))),
            Err(ChangeError::NoAccount(_))
        ));
    }
}
