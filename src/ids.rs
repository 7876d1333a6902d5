//! Who and what a call is about: account, conversation, participant, and the fields of a write.
//!
//! A value of these types is valid: it was parsed once, at the edge, and is safe as one segment of a URL's path. Nothing
//! here knows gRPC or HTTP.

mod call;
mod field;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

pub use call::{Call, CallerId};
pub use field::Field;

/// The longest id that is accepted, in characters. Twilio's longest is an identity ("Conversations limits": 256).
pub const MAX_ID_CHARS: usize = 256;
const MAX_V2_ID_CHARS: usize = 128;

/// Which of Twilio's Conversations APIs holds a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiVersion {
    /// "Conversations (classic)": form-encoded requests.
    V1,
    /// Conversation Orchestrator: JSON.
    V2,
}

impl ApiVersion {
    /// `v1` or `v2`, as in the paths, in messages and in `ErrorInfo`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A field of a request, by its path in the contract, and what is wrong with it. Never holds the field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path, such as `participant.addresses[0].channel`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// A Twilio account: `AC` and 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// `None` where the text is no account SID.
    pub fn parse(text: &str) -> Option<Self> {
        is_sid("AC", text).then(|| Self(text.into()))
    }

    /// The SID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The accounts that the gateway is configured with.
#[derive(Clone, Debug)]
pub struct Accounts {
    default: AccountId,
    known: BTreeSet<AccountId>,
}

impl Accounts {
    /// `default` is the account of a request that names none.
    pub fn new(default: AccountId, all: impl IntoIterator<Item = AccountId>) -> Self {
        let known = all.into_iter().chain([default.clone()]).collect();
        Self { default, known }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = AccountId> + '_ {
        self.known.iter().cloned()
    }

    /// The account of a request that names none.
    pub fn default_account(&self) -> AccountId {
        self.default.clone()
    }

    /// The SID that a request means, whether it is configured or not.
    pub fn named<'a>(&'a self, account_id: &'a str) -> &'a str {
        if account_id.is_empty() { self.default.as_str() } else { account_id }
    }

    /// The account that a request means; `None` where it is not configured.
    pub fn resolve(&self, account_id: &str) -> Option<AccountId> {
        match account_id {
            "" => Some(self.default.clone()),
            named => self.known.iter().find(|known| known.as_str() == named).cloned(),
        }
    }
}

/// An id that is safe as one segment of a URL's path once it is percent-encoded: not empty, neither `.` nor `..` (which no
/// encoding makes safe: a URL parser collapses `%2E%2E` too), no control characters (which it strips), bounded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(Arc<str>);

impl Segment {
    /// Checks the text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "" => Err("is required"),
            "." | ".." => Err("must not be `.` or `..`"),
            _ if text.chars().any(char::is_control) => Err("must not hold control characters"),
            _ if text.chars().count() > MAX_ID_CHARS => Err("must not be longer than 256 characters"),
            _ => Ok(Self(text.into())),
        }
    }

    /// The text, not encoded.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Segment {
    /// An id may be an identity or a unique name: PII that belongs in no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if is_public(&self.0) { &self.0 } else { "***" })
    }
}

/// A conversation of one account, and the API that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conversation {
    /// The account, always told: nothing of one account is ever served to another.
    pub account: AccountId,
    /// v1's Conversation Service; `None` is the account's default service.
    pub service: Option<ServiceId>,
    /// The API.
    pub version: ApiVersion,
    /// v1: a SID or a unique name; v2: an id.
    pub id: Segment,
}

impl Conversation {
    /// Whether the id is a v1 unique name, which only Twilio can turn into the SID.
    pub fn is_unique_name(&self) -> bool {
        self.version == ApiVersion::V1 && !is_sid("CH", self.id.as_str())
    }
}

/// A v1 Conversation Service: `IS` and 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(Arc<str>);

impl ServiceId {
    /// `None` where the text is no service SID.
    pub fn parse(text: &str) -> Option<Self> {
        is_sid("IS", text).then(|| Self(text.into()))
    }

    /// The SID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One participant of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParticipantKey {
    /// The conversation.
    pub conversation: Conversation,
    /// v1: a SID or an identity; v2: an id.
    pub id: Segment,
}

impl ParticipantKey {
    /// Whether the id is a v1 identity, which Twilio takes for reads only.
    pub fn is_identity(&self) -> bool {
        self.conversation.version == ApiVersion::V1 && !is_sid("MB", self.id.as_str())
    }
}

/// A person of one account, by what v1 finds conversations by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PersonKey {
    /// The account.
    pub account: AccountId,
    /// v1's Conversation Service; `None` is the account's default service.
    pub service: Option<ServiceId>,
    /// Who.
    pub person: Person,
}

/// Who somebody is in v1, whichever conversation they are in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Person {
    /// A chat user's identity.
    Identity(Arc<str>),
    /// The address of one who does not chat.
    Address(Arc<str>),
}

impl fmt::Debug for Person {
    /// Both are PII.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An id of the caller's choice that makes a write safe to repeat: a UUID, and not the nil one, which callers send who have
/// chosen none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// In the usual form with hyphens, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        // The crate knows further forms: braces, a URN, no hyphens.
        let is_usual = text.len() == uuid::fmt::Hyphenated::LENGTH;
        Uuid::try_parse(text).ok().filter(|id| is_usual && !id.is_nil()).map(Self)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The API that an id belongs to where the caller does not say: `CH` and 32 hex digits is v1, `conv_conversation_…` is v2.
pub fn route(conversation_id: &str) -> Option<ApiVersion> {
    if is_sid("CH", conversation_id) {
        Some(ApiVersion::V1)
    } else if conversation_id.starts_with("conv_conversation_") && is_v2_id(conversation_id) {
        Some(ApiVersion::V2)
    } else {
        None
    }
}

/// Twilio's SID: two letters and 32 hex digits.
pub fn is_sid(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// v2 ids have no fixed form (older prefixes occur), so they are checked loosely.
pub fn is_v2_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_V2_ID_CHARS
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Whether an id is one that Twilio made, and so no PII: it may stand in logs and in error details.
pub fn is_public(id: &str) -> bool {
    ["AC", "CH", "MB", "IS"].iter().any(|prefix| is_sid(prefix, id))
        || (is_v2_id(id) && ["conv_", "comms_", "mem_"].iter().any(|prefix| id.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_no_encoding_makes_safe_are_refused() {
        for unsafe_id in ["", ".", "..", "..\n", "\t..", ".\t.", "a\0b", "a\r\nb", "\u{7f}", "\u{85}"] {
            assert!(Segment::parse(unsafe_id).is_err(), "{unsafe_id:?}");
        }
        assert!(Segment::parse(&"é".repeat(257)).is_err());
    }

    #[test]
    fn any_other_text_is_a_segment() {
        for id in ["%2e%2e", "..%2f", "...", "a/b", "a?b#c", "a\\b", "//evil", "😀", "ש", " "] {
            assert_eq!(Segment::parse(id).unwrap().as_str(), id);
        }
        assert!(Segment::parse(&"é".repeat(256)).is_ok());
    }

    #[test]
    fn the_form_of_an_id_tells_the_api() {
        assert_eq!(route("CH00000000000000000000000000000001"), Some(ApiVersion::V1));
        assert_eq!(route("conv_conversation_01k1etk2y5f1y9fpe2epfdtvv2"), Some(ApiVersion::V2));
        for unclear in ["", "CH1", "ch00000000000000000000000000000001", "MB00000000000000000000000000000001"]
        {
            assert_eq!(route(unclear), None, "{unclear}");
        }
        assert_eq!(route(&format!("conv_conversation_{}", "a".repeat(128))), None);
    }

    #[test]
    fn a_request_id_is_a_uuid_in_its_usual_form() {
        let usual = RequestId::parse("7c9e6679-7425-40de-944b-e07fc1f90ae7");
        assert!(usual.is_some() && usual == RequestId::parse("7C9E6679-7425-40DE-944B-E07FC1F90AE7"));
        for other in [
            "",
            "1",
            "00000000-0000-0000-0000-000000000000",
            "7c9e6679742540de944be07fc1f90ae7",
            "{7c9e6679-7425-40de-944b-e07fc1f90ae7}",
            "7c9e6679-7425-40de-944b-e07fc1f90aeg",
        ] {
            assert!(RequestId::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn an_id_that_may_be_pii_is_not_printed() {
        assert_eq!(format!("{:?}", Segment::parse("alice").unwrap()), "***");
        let sid = "MB00000000000000000000000000000001";
        assert_eq!(format!("{:?}", Segment::parse(sid).unwrap()), sid);
    }
}

#[cfg(test)]
mod properties {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        let length = prop_oneof![8 => 0..20_usize, 1 => 250..260_usize];
        length.prop_flat_map(|length| vec(any::<char>(), length)).prop_map(String::from_iter)
    }

    fn sid() -> impl Strategy<Value = (&'static str, String)> {
        let prefix = select(vec!["AC", "CH", "MB", "IS", "RL"]);
        (prefix, "[0-9a-fA-F]{32}").prop_map(|(prefix, hex)| (prefix, format!("{prefix}{hex}")))
    }

    proptest! {
        #[test]
        fn a_segment_is_what_a_path_can_hold(text in prop_oneof![text(), "\\.{1,3}", "[a-z%./\\\\]{0,9}"]) {
            let is_safe = !["", ".", ".."].contains(&text.as_str())
                && !text.chars().any(char::is_control)
                && text.chars().count() <= 256;
            match Segment::parse(&text) {
                Ok(segment) => prop_assert!(is_safe && segment.as_str() == text),
                Err(_) => prop_assert!(!is_safe, "{:?}", text),
            }
        }

        #[test]
        fn a_sid_is_one_of_its_own_kind((prefix, sid) in sid()) {
            for other in ["AC", "CH", "MB", "IS", "RL"] {
                prop_assert_eq!(is_sid(other, &sid), other == prefix);
            }
            prop_assert_eq!(AccountId::parse(&sid).is_some(), prefix == "AC");
            prop_assert_eq!(ServiceId::parse(&sid).is_some(), prefix == "IS");
            prop_assert_eq!(route(&sid), (prefix == "CH").then_some(ApiVersion::V1));
            prop_assert_eq!(is_public(&sid), prefix != "RL");
        }

        #[test]
        fn a_sid_with_any_other_letter_is_none((prefix, sid) in sid(), at in any::<Index>(), c in "[^0-9a-fA-F]") {
            let at = at.index(sid.len());
            let changed = format!("{}{c}{}", &sid[..at], &sid[at + 1..]);
            prop_assume!(changed != sid);
            for wrong in [changed, sid[..at].to_owned(), format!("{sid}{c}"), format!("{sid}0"), format!("{c}{sid}"), sid.to_lowercase()] {
                prop_assert!(!is_sid(prefix, &wrong), "{}", wrong);
                prop_assert_eq!((AccountId::parse(&wrong), ServiceId::parse(&wrong)), (None, None));
                prop_assert_eq!(route(&wrong), None);
            }
        }

        #[test]
        fn a_v2_id_is_letters_and_digits(id in "[A-Za-z0-9_-]{1,110}", other in "[^A-Za-z0-9_-]", at in any::<Index>()) {
            let at = at.index(id.len() + 1);
            let changed = format!("{}{other}{}", &id[..at], &id[at..]);
            let long = format!("{id}{}", "a".repeat(128));
            prop_assert!(is_v2_id(&id) && !is_v2_id(&changed) && !is_v2_id(&long));
            let of_v2 = format!("conv_conversation_{id}");
            prop_assert_eq!(route(&of_v2), Some(ApiVersion::V2));
            prop_assert_eq!(route(&(of_v2 + &other)), None);
        }

        #[test]
        fn no_identity_is_printed(text in prop_oneof![text(), "[a-z0-9_@.+]{1,40}"]) {
            let is_twilios = ["conv_", "comms_", "mem_"].iter().any(|prefix| text.starts_with(prefix));
            prop_assume!(!is_twilios);
            if let Ok(segment) = Segment::parse(&text) {
                prop_assert_eq!(format!("{segment:?}"), "***");
            }
        }
    }
}
