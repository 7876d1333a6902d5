//! Twilio's participants in the contract's vocabulary: five operations, each on the API version that holds the conversation.
//!
//! Lenient reader, strict writer: every documented variant of an answer decodes and unknown keys are ignored, but only
//! documented keys are sent. `v1` and `v2` keep their wire structs to themselves and convert straight to and from the
//! contract's messages.

mod error;
mod http;
mod v1;
mod v2;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use ::http::HeaderValue;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use url::Url;

pub use error::{Broken, Cause, Error, NOT_FOUND, Operation, Problem, THROTTLED};

use crate::ids::{AccountId, ApiVersion, Conversation, Field, ParticipantKey};
use crate::proto::{Channel, Message as _, Participant, ParticipantType};

/// Twilio's largest page of participants.
pub fn max_page_size(version: ApiVersion) -> u32 {
    match version {
        ApiVersion::V1 => 100,
        ApiVersion::V2 => 1000,
    }
}

/// How the client behaves towards Twilio, whatever the account.
#[derive(Clone, Debug)]
pub struct Settings {
    /// To connect, TLS included.
    pub connect_timeout: Duration,
    /// For one attempt, from sending to the last byte of the answer.
    pub attempt_timeout: Duration,
    /// For a request with all its retries.
    pub total_timeout: Duration,
    /// An idle connection is closed after it; it must be shorter than Twilio's own limit.
    pub pool_idle_timeout: Duration,
    /// How often a request is sent again at most.
    pub max_retries: u32,
    /// A longer answer is refused.
    pub max_response_bytes: usize,
}

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

    fn authorization(&self) -> Result<HeaderValue, ::http::header::InvalidHeaderValue> {
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

/// How long a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// No attempt goes on after it.
    pub until: Instant,
    /// No further attempt begins after it: the deadline of the call that asked, which may be earlier.
    pub retry_until: Instant,
}

/// Where a page begins: v1's Page and PageToken, or v2's token. Never a URL, so that none is ever followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// v1's `Page`, or empty.
    pub page: String,
    /// v1's `PageToken` or v2's `nextToken`, or empty.
    pub token: String,
}

/// A page as Twilio answered it.
#[derive(Clone, Debug)]
pub struct Page {
    /// In Twilio's order.
    pub participants: Vec<Participant>,
    /// `None` on the last page.
    pub next: Option<Cursor>,
    /// `None` on the first page.
    pub previous: Option<Cursor>,
}

/// A participant to add; its fields are ones that the version can carry.
#[derive(Clone, Debug)]
pub struct Create {
    /// The values.
    pub participant: Participant,
    /// v1's `X-Twilio-Webhook-Enabled`.
    pub webhook_enabled: Option<bool>,
}

/// A change of a participant; its fields are ones that the version can carry and, where empty, clear.
#[derive(Clone, Debug)]
pub struct Update {
    /// The new values.
    pub participant: Participant,
    /// Which of them are written.
    pub fields: BTreeSet<Field>,
    /// v1's `X-Twilio-Webhook-Enabled`.
    pub webhook_enabled: Option<bool>,
}

/// The client for all accounts.
pub struct Twilio {
    http: http::Http,
    accounts: HashMap<AccountId, Endpoint>,
    total_timeout: Duration,
}

/// What a request needs to know of its account.
struct Endpoint {
    authorization: HeaderValue,
    v1_url: Url,
    v2_url: Url,
}

impl Endpoint {
    /// Every conversation was parsed against the configured accounts.
    fn url(&self, version: ApiVersion) -> &Url {
        match version {
            ApiVersion::V1 => &self.v1_url,
            ApiVersion::V2 => &self.v2_url,
        }
    }
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The TLS roots or the resolver could not be set up.
    #[error("set up the HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// The credentials do not fit into a header.
    #[error("the credentials of {0} do not fit into an HTTP header")]
    Credentials(AccountId),
}

impl Twilio {
    /// A client for these accounts; nothing is sent yet.
    pub fn new(settings: &Settings, accounts: Vec<Account>) -> Result<Self, BuildError> {
        let endpoint = |account: Account| {
            let authorization = account
                .credentials
                .authorization()
                .map_err(|_| BuildError::Credentials(account.id.clone()))?;
            let endpoint = Endpoint { authorization, v1_url: account.v1_url, v2_url: account.v2_url };
            Ok((account.id, endpoint))
        };
        Ok(Self {
            http: http::Http::new(settings)?,
            accounts: accounts.into_iter().map(endpoint).collect::<Result<_, BuildError>>()?,
            total_timeout: settings.total_timeout,
        })
    }

    /// The budget of a request on behalf of a call that may repeat it until `deadline`.
    pub fn budget(&self, deadline: Instant) -> Budget {
        let until = Instant::now() + self.total_timeout;
        Budget { until, retry_until: deadline.min(until) }
    }

    /// Reads one participant.
    pub async fn fetch(&self, key: &ParticipantKey, budget: Budget) -> Result<Participant, Error> {
        match key.conversation.version {
            ApiVersion::V1 => v1::fetch(&self.target(&key.conversation)?, key, budget).await,
            ApiVersion::V2 => v2::fetch(&self.target(&key.conversation)?, key, budget).await,
        }
    }

    /// Reads one page; `size` is at most [`max_page_size`].
    pub async fn list(
        &self,
        conversation: &Conversation,
        size: u32,
        cursor: &Cursor,
        budget: Budget,
    ) -> Result<Page, Error> {
        match conversation.version {
            ApiVersion::V1 => v1::list(&self.target(conversation)?, conversation, size, cursor, budget).await,
            ApiVersion::V2 => v2::list(&self.target(conversation)?, conversation, size, cursor, budget).await,
        }
    }

    /// Adds a participant.
    pub async fn create(
        &self,
        conversation: &Conversation,
        create: &Create,
        budget: Budget,
    ) -> Result<Participant, Error> {
        match conversation.version {
            ApiVersion::V1 => v1::create(&self.target(conversation)?, conversation, create, budget).await,
            ApiVersion::V2 => v2::create(&self.target(conversation)?, conversation, create, budget).await,
        }
    }

    /// Whether an update has to know what is there: v2 writes the whole, v1 compares addresses part by part.
    pub fn needs_current(version: ApiVersion, update: &Update) -> bool {
        match version {
            ApiVersion::V1 => update.fields.contains(&Field::Addresses),
            ApiVersion::V2 => true,
        }
    }

    /// Prepares an update: pure, and it fails where the version cannot make the change from `current` to what is asked.
    /// `current` must be told where [`Self::needs_current`] says so.
    pub fn prepare(
        &self,
        key: &ParticipantKey,
        update: &Update,
        current: Option<&Participant>,
    ) -> Result<Prepared, Error> {
        let body = match key.conversation.version {
            ApiVersion::V1 => v1::update_body(update, current),
            ApiVersion::V2 => v2::update_body(update, current),
        };
        let unsupported = |violations| Error {
            operation: Operation::Update,
            version: key.conversation.version,
            cause: Cause::Unsupported(violations),
        };
        Ok(Prepared { body: body.map_err(unsupported)?, webhook_enabled: update.webhook_enabled })
    }

    /// Sends a prepared update. The key must hold an id, not an identity.
    pub async fn update(
        &self,
        key: &ParticipantKey,
        prepared: Prepared,
        budget: Budget,
    ) -> Result<Participant, Error> {
        match key.conversation.version {
            ApiVersion::V1 => v1::update(&self.target(&key.conversation)?, key, prepared, budget).await,
            ApiVersion::V2 => v2::update(&self.target(&key.conversation)?, key, prepared, budget).await,
        }
    }

    /// Removes a participant of a v1 conversation; v2 has no such request. The key must hold a SID, not an identity.
    pub async fn delete(
        &self,
        key: &ParticipantKey,
        webhook_enabled: Option<bool>,
        budget: Budget,
    ) -> Result<(), Error> {
        v1::delete(&self.target(&key.conversation)?, key, webhook_enabled, budget).await
    }

    fn target<'a>(&'a self, conversation: &Conversation) -> Result<Target<'a>, Error> {
        let endpoint = self.accounts.get(&conversation.account).ok_or_else(|| Error {
            operation: Operation::Fetch,
            version: conversation.version,
            cause: Cause::Unsupported(vec![crate::ids::Violation::new(
                "conversation.account_id",
                "is not an account of this gateway",
            )]),
        })?;
        Ok(Target { http: &self.http, endpoint })
    }
}

/// An update that only has to be sent.
pub struct Prepared {
    /// `None`: nothing differs, so nothing is sent.
    body: Option<http::Body>,
    webhook_enabled: Option<bool>,
}

impl Prepared {
    /// Whether the participant already is as the update wants it.
    pub fn is_no_change(&self) -> bool {
        self.body.is_none()
    }
}

/// Where the requests of one account go.
struct Target<'a> {
    http: &'a http::Http,
    endpoint: &'a Endpoint,
}

/// The contract's word for Twilio's: the same without the prefix, in either case; a word that is not known is OTHER.
fn channel(word: Option<&str>) -> Channel {
    match word.map(str::to_ascii_uppercase).as_deref() {
        None | Some("") => Channel::Unspecified,
        Some("OTHER" | "UNSPECIFIED") => Channel::Other,
        Some(word) => Channel::from_str_name(&format!("CHANNEL_{word}")).unwrap_or(Channel::Other),
    }
}

/// As [`channel`], for the type of a participant.
fn participant_type(word: Option<&str>) -> ParticipantType {
    match word.map(str::to_ascii_uppercase).as_deref() {
        None | Some("") => ParticipantType::Unspecified,
        Some("OTHER" | "UNSPECIFIED") => ParticipantType::Other,
        Some(word) => ParticipantType::from_str_name(&format!("PARTICIPANT_TYPE_{word}"))
            .unwrap_or(ParticipantType::Other),
    }
}

/// A hash of the content. `service_id` and `url` are left out: they tell the way to the participant, and the same
/// participant read on another way has the same etag.
fn with_etag(participant: Participant) -> Participant {
    let Participant { service_id, url, .. } = participant.clone();
    let content = Participant { service_id: String::new(), url: String::new(), ..participant };
    let digest = Sha256::digest(content.encode_to_vec());
    let etag = BASE64_URL_SAFE_NO_PAD.encode(&digest[..16]);
    Participant { service_id, url, etag, ..content }
}

/// RFC 3339, as both APIs spell time: `Z` or an offset, with up to nine digits of fraction.
fn timestamp(text: &str) -> Option<prost_types::Timestamp> {
    // A date alone parses too, and so does a time without an offset; which moment they mean would be a guess.
    let sign = text.len().checked_sub(6).and_then(|at| text.as_bytes().get(at));
    let has_offset = text.ends_with(['Z', 'z']) || matches!(sign, Some(b'+' | b'-'));
    let timestamp: prost_types::Timestamp = text.parse().ok()?;
    (text.contains(':') && has_offset && is_in_range(&timestamp)).then_some(timestamp)
}

/// The years 1 to 9999, which is what `google.protobuf.Timestamp` may hold.
fn is_in_range(timestamp: &prost_types::Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&timestamp.seconds)
        && (0..1_000_000_000).contains(&timestamp.nanos)
}

fn optional_timestamp<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<prost_types::Timestamp>, D::Error> {
    let text: Option<String> = serde::Deserialize::deserialize(deserializer)?;
    let parse =
        |text: String| timestamp(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"));
    text.map(parse).transpose()
}
