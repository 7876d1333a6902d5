//! What an account signs in with: an API key, an OAuth client, or its auth tokens, each secret by value or by file.

use url::Url;

use super::{Raw, Reported};
use crate::config::source::Sources;
use crate::ids::AccountId;
use crate::secret::Secret;
use crate::twilio::{Client, Credentials};

/// With the auth tokens, whether they sign in or not. `None` where what is wrong is not about the credentials, but about what
/// they need.
pub(super) fn read(
    sources: &mut Sources<'_>,
    raw: &Raw,
    account: Option<&AccountId>,
    token_url: Option<Url>,
) -> Result<(Option<Credentials>, Vec<Secret>), Reported> {
    // All of them are looked at before any is refused.
    let key = pair(sources, raw, ("api_key", "SK", "an API key"), "api_secret");
    let client = pair(sources, raw, ("client_id", "OQ", "an OAuth client"), "client_secret");
    let tokens = auth_tokens(sources, raw);
    // Either is better than the auth token: it can be revoked by itself, and may do less.
    let tokens = tokens?;
    let credentials = match (key?, client?) {
        (Some(_), Some(_)) => {
            let text = format!("cannot stand beside {}: one of them signs in", raw.name("client_id"));
            return Err(raw.problem(sources, "api_key", text));
        }
        (Some((user, secret)), None) => Some(Credentials::Basic { user, passwords: vec![secret] }),
        (None, Some((id, secret))) => {
            token_url.map(|token_url| Credentials::OAuth(Client { id, secret, token_url }))
        }
        (None, None) if tokens.is_empty() => {
            let [key, client] = ["api_key", "client_id"].map(|key| raw.name(key));
            let text = format!("is required, or {key} or {client} with its secret is");
            return Err(raw.problem(sources, "auth_token", text));
        }
        (None, None) => {
            let user = account.map(|id| Secret::new(raw.name("account_sid"), id.as_str()));
            user.map(|user| Credentials::Basic { user, passwords: tokens.clone() })
        }
    };
    Ok((credentials, tokens))
}

/// The auth token, and the one that is to take its place or has just lost it: Twilio takes both while they rotate.
fn auth_tokens(sources: &mut Sources<'_>, raw: &Raw) -> Result<Vec<Secret>, Reported> {
    let token = secret(sources, raw, "auth_token");
    let secondary = secret(sources, raw, "secondary_auth_token");
    match (token?, secondary?) {
        (None, Some(_)) => {
            let text = format!("is required with {}", raw.name("secondary_auth_token"));
            Err(raw.problem(sources, "auth_token", text))
        }
        (token, secondary) => Ok(token.into_iter().chain(secondary).collect()),
    }
}

/// A SID with its secret, or neither. The SID may stand in a file, too: a new secret of a key comes with a new SID.
fn pair(
    sources: &mut Sources<'_>,
    raw: &Raw,
    (id_key, prefix, what): (&str, &str, &str),
    secret_key: &str,
) -> Result<Option<(Secret, Secret)>, Reported> {
    let (id, secret) = (secret(sources, raw, id_key), secret(sources, raw, secret_key));
    match (id?, secret?) {
        (None, None) => Ok(None),
        // Also so that a secret in the SID's place is not shown as if it were none. A colon would end Basic's user early.
        (Some(id), _) if !is_sid(prefix, &id.value()) => {
            let text = format!("must be the SID of {what}: `{prefix}`, then letters and digits");
            Err(raw.problem(sources, id_key, text))
        }
        (Some(id), Some(secret)) => Ok(Some((id, secret))),
        (Some(_), None) => {
            Err(raw.problem(sources, secret_key, format!("is required with {}", raw.name(id_key))))
        }
        (None, Some(_)) => {
            Err(raw.problem(sources, id_key, format!("is required with {}", raw.name(secret_key))))
        }
    }
}

fn is_sid(prefix: &str, text: &str) -> bool {
    text.starts_with(prefix) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A secret as it stands there, or that of the file which is named there.
fn secret(sources: &mut Sources<'_>, raw: &Raw, key: &str) -> Result<Option<Secret>, Reported> {
    let file_key = format!("{key}_file");
    match (raw.get(key), raw.get(&file_key)) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(Secret::new(raw.name(key), text))),
        (None, Some(path)) => Secret::read(raw.name(&file_key), path, 1)
            .map(Some)
            .map_err(|error| raw.problem(sources, &file_key, error.to_string())),
        (Some(_), Some(_)) => {
            Err(raw.problem(sources, key, format!("cannot stand beside {}", raw.name(&file_key))))
        }
    }
}
