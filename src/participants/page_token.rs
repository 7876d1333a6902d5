//! Page tokens: where a page begins, sealed so that only the gateway can make one, and bound to what it was made for.
//!
//! A token holds the upstream's own page number and token, never a URL. It is authenticated, not encrypted: the upstream's
//! token is no secret. Replicas with the same key take each other's tokens.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::ids::{AccountId, Conversation, ServiceId};
use crate::twilio::{Cursor, Secret};

const TAG_BYTES: usize = 16;
/// Twilio's tokens are far shorter; more is not looked at.
const MAX_CHARS: usize = 16 * 1024;
/// Made part of the key, so that one made for another purpose from the same secret is another key.
const PURPOSE: &[u8] = b"participant-gateway page token v1";

type HmacSha256 = Hmac<Sha256>;

/// The secrets from which the keys of each account are derived.
#[derive(Clone, Debug)]
pub struct PageTokens {
    secrets: HashMap<AccountId, Vec<Secret>>,
}

/// The token is damaged, or was made for another list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPageToken;

impl PageTokens {
    /// Each account seals with the first of its secrets, and opens what any of them has sealed.
    pub fn new(secrets: impl IntoIterator<Item = (AccountId, Vec<Secret>)>) -> Self {
        Self { secrets: secrets.into_iter().collect() }
    }

    /// A token for the page of `conversation` that begins at `cursor`.
    pub fn seal(&self, conversation: &Conversation, cursor: &Cursor) -> String {
        let body = format!("{}\n{}", cursor.page, cursor.token);
        let secret = self.values(&conversation.account).next().expect("every account has a secret");
        let tag = tag(&secret, conversation, body.as_bytes()).finalize().into_bytes();
        let mut sealed = tag[..TAG_BYTES].to_vec();
        sealed.extend_from_slice(body.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(sealed)
    }

    /// Where the page begins; the empty token is the first page.
    pub fn open(&self, conversation: &Conversation, token: &str) -> Result<Cursor, InvalidPageToken> {
        if token.is_empty() {
            return Ok(Cursor::default());
        }
        if token.len() > MAX_CHARS {
            return Err(InvalidPageToken);
        }
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidPageToken)?;
        let (tag, body) = sealed.split_at_checked(TAG_BYTES).ok_or(InvalidPageToken)?;
        // In constant time, as the crate promises.
        let sealed_with =
            |secret: Arc<str>| self::tag(&secret, conversation, body).verify_truncated_left(tag).is_ok();
        if !self.values(&conversation.account).any(sealed_with) {
            return Err(InvalidPageToken);
        }
        let body = std::str::from_utf8(body).map_err(|_| InvalidPageToken)?;
        let (page, token) = body.split_once('\n').ok_or(InvalidPageToken)?;
        Ok(Cursor { page: page.into(), token: token.into() })
    }

    /// The values of the account's secrets, the one that seals first. One that is being replaced has sealed tokens that
    /// callers hold.
    fn values(&self, account: &AccountId) -> impl Iterator<Item = Arc<str>> {
        let secrets = self.secrets.get(account).expect("one set of accounts is used everywhere");
        secrets.iter().flat_map(Secret::values)
    }
}

fn tag(secret: &str, conversation: &Conversation, body: &[u8]) -> HmacSha256 {
    let Conversation { account, service, version, id } = conversation;
    let service = service.as_ref().map(ServiceId::as_str).unwrap_or_default();
    let parts = ["ListParticipants", account.as_str(), service, version.as_str(), id.as_str()];
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).chain([body]).collect();
    mac(&mac(secret.as_bytes(), &[PURPOSE]).finalize().into_bytes(), &parts)
}

/// HMAC-SHA256 over the parts, each with its length before it, so that no two lists of parts read the same.
fn mac(key: &[u8], parts: &[&[u8]]) -> HmacSha256 {
    let mut mac = HmacSha256::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{ApiVersion, Segment};

    fn account(digit: char) -> AccountId {
        AccountId::parse(&format!("AC{}", digit.to_string().repeat(32))).unwrap()
    }

    fn tokens() -> PageTokens {
        sealed_with(&["one"])
    }

    /// Those of an account with these secrets, beside another account.
    fn sealed_with(secrets: &[&str]) -> PageTokens {
        let secrets = secrets.iter().map(|text| Secret::new("a test", *text)).collect();
        PageTokens::new([(account('1'), secrets), (account('2'), vec![Secret::new("a test", "two")])])
    }

    fn conversation() -> Conversation {
        let id = Segment::parse("CH00000000000000000000000000000001").unwrap();
        Conversation { account: account('1'), service: None, version: ApiVersion::V1, id }
    }

    #[test]
    fn a_token_opens_only_where_it_was_made_for() {
        let cursor = Cursor { page: "1".into(), token: "PAMB1".into() };
        let token = tokens().seal(&conversation(), &cursor);
        assert_eq!(tokens().open(&conversation(), &token), Ok(cursor));
        let service = ServiceId::parse(&format!("IS{}", "1".repeat(32)));
        for other in [
            Conversation { account: account('2'), ..conversation() },
            Conversation { version: ApiVersion::V2, ..conversation() },
            Conversation { service, ..conversation() },
            Conversation { id: Segment::parse("other").unwrap(), ..conversation() },
        ] {
            assert_eq!(tokens().open(&other, &token), Err(InvalidPageToken));
        }
        let rotated = sealed_with(&["another"]);
        assert_eq!(rotated.open(&conversation(), &token), Err(InvalidPageToken));
    }

    #[test]
    fn the_first_secret_seals_and_every_one_opens() {
        let cursor = Cursor { page: "1".into(), token: "PAMB1".into() };
        let (old, both, new) = (sealed_with(&["old"]), sealed_with(&["old", "new"]), sealed_with(&["new"]));
        let token = both.seal(&conversation(), &cursor);
        assert_eq!(token, old.seal(&conversation(), &cursor));
        for tokens in [&old, &both] {
            assert_eq!(tokens.open(&conversation(), &token), Ok(cursor.clone()));
        }
        assert_eq!(both.open(&conversation(), &new.seal(&conversation(), &cursor)), Ok(cursor));
        assert_eq!(new.open(&conversation(), &token), Err(InvalidPageToken));
    }

    #[test]
    fn a_token_that_is_too_long_or_cut_is_refused() {
        let token = tokens().seal(&conversation(), &Cursor { page: "1".into(), token: "t".into() });
        for cut in 1..token.len() {
            assert_eq!(tokens().open(&conversation(), &token[..cut]), Err(InvalidPageToken), "{cut}");
        }
        assert_eq!(tokens().open(&conversation(), &"A".repeat(1 << 20)), Err(InvalidPageToken));
    }

    proptest! {
        #[test]
        fn any_cursor_comes_back(page in "[0-9]{0,9}", token in "\\PC{0,200}") {
            let cursor = Cursor { page, token };
            let sealed = tokens().seal(&conversation(), &cursor);
            prop_assert_eq!(tokens().open(&conversation(), &sealed), Ok(cursor));
        }

        #[test]
        fn any_changed_byte_is_noticed(at in 0_usize..40, flip in 1_u8..=255) {
            let token = tokens().seal(&conversation(), &Cursor { page: "1".into(), token: "PAMB000000000000".into() });
            let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(token).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let forged = BASE64_URL_SAFE_NO_PAD.encode(bytes);
            prop_assert_eq!(tokens().open(&conversation(), &forged), Err(InvalidPageToken));
        }

        #[test]
        fn any_other_text_is_refused(text in "\\PC{1,300}") {
            prop_assert_eq!(tokens().open(&conversation(), &text), Err(InvalidPageToken));
        }
    }
}
