//! Page tokens: where a page begins, sealed so that only the gateway can make one, and bound to what it was made for.
//!
//! A token holds the upstream's own page number and token, never a URL. It is authenticated, not encrypted: the upstream's
//! token is no secret. Replicas with the same key take each other's tokens.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::ids::{AccountId, Conversation, Person, PersonKey, ServiceId};
use crate::secret::{Secret, Text};
use crate::twilio::Cursor;

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

    /// A token for the page of `list` that begins at `cursor`.
    pub fn seal<'a>(&self, list: impl Into<Listed<'a>>, cursor: &Cursor) -> String {
        let body = format!("{}\n{}", cursor.page, cursor.token);
        let list = list.into();
        let secret = self.values(list.account()).next().expect("every account has a secret");
        let tag = tag(&secret, list, body.as_bytes()).finalize().into_bytes();
        let mut sealed = tag[..TAG_BYTES].to_vec();
        sealed.extend_from_slice(body.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(sealed)
    }

    /// Where the page begins; the empty token is the first page.
    pub fn open<'a>(&self, list: impl Into<Listed<'a>>, token: &str) -> Result<Cursor, InvalidPageToken> {
        if token.is_empty() {
            return Ok(Cursor::default());
        }
        if token.len() > MAX_CHARS {
            return Err(InvalidPageToken);
        }
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidPageToken)?;
        let (tag, body) = sealed.split_at_checked(TAG_BYTES).ok_or(InvalidPageToken)?;
        // In constant time, as the crate promises.
        let list = list.into();
        let sealed_with = |secret: Text| self::tag(&secret, list, body).verify_truncated_left(tag).is_ok();
        if !self.values(list.account()).any(sealed_with) {
            return Err(InvalidPageToken);
        }
        let body = std::str::from_utf8(body).map_err(|_| InvalidPageToken)?;
        let (page, token) = body.split_once('\n').ok_or(InvalidPageToken)?;
        Ok(Cursor { page: page.into(), token: token.into() })
    }

    /// The values of the account's secrets, the one that seals first. One that is being replaced has sealed tokens that
    /// callers hold.
    fn values(&self, account: &AccountId) -> impl Iterator<Item = Text> {
        let secrets = self.secrets.get(account).expect("one set of accounts is used everywhere");
        secrets.iter().flat_map(Secret::values)
    }
}

fn tag(secret: &str, list: Listed<'_>, body: &[u8]) -> HmacSha256 {
    let parts: Vec<&[u8]> = list.parts().iter().map(|part| part.as_bytes()).chain([body]).collect();
    let key = Zeroizing::new(<[u8; 32]>::from(mac(secret.as_bytes(), &[PURPOSE]).finalize().into_bytes()));
    mac(&*key, &parts)
}

/// A list that has pages.
#[derive(Clone, Copy, Debug)]
pub enum Listed<'a> {
    /// The participants of a conversation.
    Participants(&'a Conversation),
    /// The conversations of a person.
    Conversations(&'a PersonKey),
}

impl<'a> From<&'a Conversation> for Listed<'a> {
    fn from(conversation: &'a Conversation) -> Self {
        Self::Participants(conversation)
    }
}

impl<'a> From<&'a PersonKey> for Listed<'a> {
    fn from(person: &'a PersonKey) -> Self {
        Self::Conversations(person)
    }
}

impl<'a> Listed<'a> {
    fn account(self) -> &'a AccountId {
        match self {
            Self::Participants(conversation) => &conversation.account,
            Self::Conversations(person) => &person.account,
        }
    }

    /// All that a token is bound to, the RPC first.
    fn parts(self) -> [&'a str; 5] {
        let service =
            |service: &'a Option<ServiceId>| service.as_ref().map(ServiceId::as_str).unwrap_or_default();
        match self {
            Self::Participants(Conversation { account, service: of, version, id }) => {
                ["ListParticipants", account.as_str(), service(of), version.as_str(), id.as_str()]
            }
            Self::Conversations(PersonKey { account, service: of, person }) => {
                let (kind, text) = match person {
                    Person::Identity(identity) => ("identity", identity),
                    Person::Address(address) => ("address", address),
                };
                ["ListParticipantConversations", account.as_str(), service(of), kind, text]
            }
        }
    }
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
    use super::*;
    use crate::ids::{ApiVersion, Segment};

    pub(super) fn account(digit: char) -> AccountId {
        AccountId::parse(&format!("AC{}", digit.to_string().repeat(32))).unwrap()
    }

    pub(super) fn tokens() -> PageTokens {
        sealed_with(&["one"])
    }

    /// Those of an account with these secrets, beside another account.
    fn sealed_with(secrets: &[&str]) -> PageTokens {
        let secrets = secrets.iter().map(|text| Secret::new("a test", *text)).collect();
        PageTokens::new([(account('1'), secrets), (account('2'), vec![Secret::new("a test", "two")])])
    }

    pub(super) fn conversation() -> Conversation {
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
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::tests::{conversation, tokens};
    use super::*;
    use crate::ids::{ApiVersion, Segment};

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

        #[test]
        fn a_token_opens_for_its_own_list_only(ids in ("[ab]{1,2}", "[ab]{1,2}"), is_other_version in any::<bool>()) {
            let of = |id: &str| Conversation { id: Segment::parse(id).unwrap(), ..conversation() };
            let (own, mut other) = (of(&ids.0), of(&ids.1));
            if is_other_version {
                other.version = ApiVersion::V2;
            }
            let token = tokens().seal(&own, &Cursor { page: "1".into(), token: "t".into() });
            prop_assert_eq!(tokens().open(&other, &token).is_ok(), own == other);
        }
    }
}
