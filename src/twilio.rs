//! Twilio's participants in the contract's vocabulary: six operations, each on the API version that holds the conversation.
//!
//! Lenient reader, strict writer: every documented variant of an answer decodes and unknown keys are ignored, but only
//! documented keys are sent. `v1` and `v2` keep their wire structs to themselves and convert straight to and from the
//! contract's messages.

mod account;
mod agreement;
mod breaker;
mod drift;
mod error;
mod governor;
mod http;
mod prepared;
#[cfg(test)]
mod properties;
mod v1;
mod v2;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use ::http::Method;
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

pub use account::{Account, Client, Credentials};
pub use agreement::{Agreement, Caller};
pub use breaker::BreakerSettings;
pub use error::{Broken, Cause, Error, NoToken, Operation, Problem, Subject, THROTTLED};
pub use prepared::Prepared;

use crate::ids::{
    AccountId, ApiVersion, Call, CallerId, Conversation, Field, ParticipantKey, PersonKey, Segment,
};
use crate::proto::{Participant, ParticipantConversation};
use crate::telemetry::Metrics;
use account::{SignIn, Upkeep};
use breaker::Breaker;
use governor::Governor;
use http::{Peer, Request, RetryBudget};

/// Twilio's largest page of participants.
pub fn max_page_size(version: ApiVersion) -> u32 {
    match version {
        ApiVersion::V1 => 100,
        ApiVersion::V2 => 1000,
    }
}

/// Twilio's largest page of a person's conversations.
pub const MAX_CONVERSATIONS_PAGE_SIZE: u32 = 50;

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
    /// How many requests of an account may be under way.
    pub max_concurrency: usize,
    /// How many more may wait until another one ends.
    pub max_queue: usize,
    /// When Twilio is left alone.
    pub breaker: BreakerSettings,
    /// A longer answer is refused.
    pub max_response_bytes: usize,
    /// Whether Twilio gets the trace's ids, in `traceparent`.
    pub propagate_trace: bool,
    /// How often the files of secrets are read.
    pub reload_interval: Duration,
}

/// How long a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// No attempt goes on after it.
    pub until: Instant,
    /// No further attempt begins after it, and of a write no attempt at all: the deadline of the call that asked, which may
    /// be earlier.
    pub retry_until: Instant,
    /// Who asks.
    pub caller: CallerId,
    /// Whether who asks repeats calls by itself: two that do would multiply.
    pub is_repetition: bool,
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
pub struct Page<T> {
    /// In Twilio's order.
    pub items: Vec<T>,
    /// `None` on the last page.
    pub next: Option<Cursor>,
    /// `None` on the first page.
    pub previous: Option<Cursor>,
    /// When Twilio answered, by its own clock, to the second.
    pub answered_at: SystemTime,
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
    reload_interval: Duration,
    metrics: Metrics,
}

/// What a request needs to know of its account.
struct Endpoint {
    v1: Api,
    v2: Api,
}

/// What it needs to know of one of the account's two APIs.
struct Api {
    url: Url,
    peer: Peer,
}

impl Endpoint {
    fn new(settings: &Settings, account: Account, metrics: &Metrics) -> Self {
        let Settings { max_concurrency, max_queue, .. } = *settings;
        let governor = Governor::new(account.id.clone(), max_concurrency, max_queue, metrics.clone());
        let (governor, retries) = (Arc::new(governor), Arc::new(RetryBudget::default()));
        let api = |version, url, sign_in| {
            let breaker = Breaker::new(account.id.clone(), version, settings.breaker, metrics.clone());
            let (breaker, governor, retries) = (Arc::new(breaker), governor.clone(), retries.clone());
            Api { url, peer: Peer { sign_in, breaker, governor, retries } }
        };
        let [v1, v2] = SignIn::pair(&account.credentials);
        Self { v1: api(ApiVersion::V1, account.v1_url, v1), v2: api(ApiVersion::V2, account.v2_url, v2) }
    }

    fn api(&self, version: ApiVersion) -> &Api {
        match version {
            ApiVersion::V1 => &self.v1,
            ApiVersion::V2 => &self.v2,
        }
    }
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The TLS roots or the resolver could not be set up.
    #[error("set up the HTTP client: {}", innermost(.0))]
    Client(#[from] reqwest::Error),
}

/// Those around it say only that something failed.
fn innermost(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, innermost)
}

impl Twilio {
    /// A client for these accounts; nothing is sent yet.
    pub fn new(settings: &Settings, accounts: Vec<Account>, metrics: Metrics) -> Result<Self, BuildError> {
        let endpoint = |account: Account| (account.id.clone(), Endpoint::new(settings, account, &metrics));
        let accounts: HashMap<_, _> = accounts.into_iter().map(endpoint).collect();
        // Weak, because each of them holds the metrics in turn.
        let governor = |endpoint: &Endpoint| Arc::downgrade(&endpoint.v1.peer.governor);
        let governors: Vec<_> = accounts.values().map(governor).collect();
        let loads =
            move || governors.iter().filter_map(Weak::upgrade).map(|governor| governor.load()).collect();
        metrics.observe_governors(loads);
        Ok(Self {
            http: http::Http::new(settings, metrics.clone())?,
            accounts,
            total_timeout: settings.total_timeout,
            reload_interval: settings.reload_interval,
            metrics,
        })
    }

    /// Keeps up to date what the accounts sign in with, until the token is cancelled. Without it no file of a secret is
    /// read again, and there is no access token.
    pub async fn upkeep(&self, end: CancellationToken) {
        let upkeeps = self.accounts.iter().map(|(account, endpoint)| {
            let apis = [&endpoint.v1, &endpoint.v2].map(|api| &*api.peer.sign_in);
            let (http, metrics) = (&self.http, &self.metrics);
            let upkeep = Upkeep { account, apis, http, every: self.reload_interval, metrics };
            upkeep.run(end.clone())
        });
        join_all(upkeeps).await;
    }

    /// The budget of a request on behalf of a call, which may be repeated until the call's deadline.
    pub fn budget(&self, call: Call) -> Budget {
        let Call { deadline, caller, is_repetition } = call;
        let until = Instant::now() + self.total_timeout;
        Budget { until, retry_until: deadline.min(until), caller, is_repetition }
    }

    /// The budget of a request that nobody's deadline bounds.
    pub fn full_budget(&self) -> Budget {
        let until = Instant::now() + self.total_timeout;
        Budget { until, retry_until: until, caller: CallerId::Unknown, is_repetition: false }
    }

    /// Whether the account's API fails for now: most requests to it are not sent.
    pub fn is_sick(&self, account: &AccountId, version: ApiVersion) -> bool {
        self.api(account, version).peer.breaker.is_sick()
    }

    /// Reads one participant.
    pub async fn fetch(&self, key: &ParticipantKey, budget: Budget) -> Result<Participant, Error> {
        self.participant(self.request(Operation::Fetch, &key.conversation, Some(&key.id), budget)?).await
    }

    /// Reads one page; `size` is at most [`max_page_size`].
    pub async fn list(
        &self,
        conversation: &Conversation,
        size: u32,
        cursor: &Cursor,
        budget: Budget,
    ) -> Result<Page<Participant>, Error> {
        let mut request = self.request(Operation::List, conversation, None, budget)?;
        let query = match conversation.version {
            ApiVersion::V1 => v1::page_query(size, cursor),
            ApiVersion::V2 => v2::page_query(size, cursor),
        };
        request.url.query_pairs_mut().extend_pairs(query);
        let response = self.http.send(request).await?;
        match conversation.version {
            ApiVersion::V1 => v1::page(&response),
            ApiVersion::V2 => v2::page(&response),
        }
    }

    /// Reads one page of a person's conversations, which v1 alone can tell; `size` is at most
    /// [`MAX_CONVERSATIONS_PAGE_SIZE`].
    pub async fn list_conversations(
        &self,
        person: &PersonKey,
        size: u32,
        cursor: &Cursor,
        budget: Budget,
    ) -> Result<Page<ParticipantConversation>, Error> {
        let route = v1::conversations_route(person);
        let kind = (Operation::ListConversations, ApiVersion::V1);
        let mut request = self.request_on(kind, &person.account, &route, Subject::default(), budget)?;
        let query = [v1::person_query(&person.person)].into_iter().chain(v1::page_query(size, cursor));
        request.url.query_pairs_mut().extend_pairs(query);
        v1::conversations(&self.http.send(request).await?)
    }

    /// Prepares the addition of a participant: pure.
    pub fn prepare_create(
        &self,
        conversation: &Conversation,
        create: &Create,
        budget: Budget,
    ) -> Result<Prepared, Error> {
        let mut request = self.request(Operation::Create, conversation, None, budget)?;
        request.webhook_enabled = create.webhook_enabled;
        request.body = Some(match conversation.version {
            ApiVersion::V1 => v1::create_body(&create.participant),
            ApiVersion::V2 => v2::create_body(&create.participant),
        });
        Ok(Prepared { request: Some(request) })
    }

    /// Whether an update has to know what is there: v2 writes the whole, v1 compares addresses part by part.
    pub fn needs_current(version: ApiVersion, update: &Update) -> bool {
        match version {
            ApiVersion::V1 => update.fields.contains(&Field::Addresses),
            ApiVersion::V2 => true,
        }
    }

    /// Prepares an update: pure, and it fails where the version cannot make the change from `current` to what is asked.
    /// `current` must be told where [`Self::needs_current`] says so. The key must hold an id, not an identity.
    pub fn prepare_update(
        &self,
        key: &ParticipantKey,
        update: &Update,
        current: Option<&Participant>,
        budget: Budget,
    ) -> Result<Prepared, Error> {
        let version = key.conversation.version;
        let body = match version {
            ApiVersion::V1 => v1::update_body(update, current),
            ApiVersion::V2 => v2::update_body(update, current),
        };
        let unsupported = |violations| Error {
            operation: Operation::Update,
            version,
            cause: Cause::Unsupported(violations),
        };
        let Some(body) = body.map_err(unsupported)? else {
            return Ok(Prepared { request: None });
        };
        let mut request = self.request(Operation::Update, &key.conversation, Some(&key.id), budget)?;
        request.webhook_enabled = update.webhook_enabled;
        request.body = Some(body);
        Ok(Prepared { request: Some(request) })
    }

    /// Sends a prepared write, unless it is given up before; `None` where there is nothing to send.
    pub async fn write(
        &self,
        prepared: Prepared,
        agreement: &Agreement,
    ) -> Result<Option<Participant>, Error> {
        match prepared.request {
            None => Ok(None),
            Some(request) => self.participant(request.agreed(agreement)).await.map(Some),
        }
    }

    /// Removes a participant of a v1 conversation, unless that is given up before; v2 has no such request. The key must hold
    /// a SID, not an identity.
    pub async fn delete(
        &self,
        key: &ParticipantKey,
        webhook_enabled: Option<bool>,
        budget: Budget,
        agreement: &Agreement,
    ) -> Result<(), Error> {
        let mut request = self.request(Operation::Delete, &key.conversation, Some(&key.id), budget)?;
        request.webhook_enabled = webhook_enabled;
        self.http.send(request.agreed(agreement)).await.map(|_| ())
    }

    async fn participant(&self, request: Request) -> Result<Participant, Error> {
        let response = self.http.send(request).await?;
        match response.version {
            ApiVersion::V1 => v1::participant(&response),
            ApiVersion::V2 => v2::participant(&response),
        }
    }

    /// A request about a conversation's participants, or one of them.
    fn request(
        &self,
        operation: Operation,
        conversation: &Conversation,
        participant: Option<&Segment>,
        budget: Budget,
    ) -> Result<Request, Error> {
        let version = conversation.version;
        let route = match version {
            ApiVersion::V1 => v1::route(conversation, participant),
            ApiVersion::V2 => v2::route(conversation, participant),
        };
        let subject = Subject::new(&conversation.id, participant);
        self.request_on((operation, version), &conversation.account, &route, subject, budget)
    }

    fn request_on(
        &self,
        (operation, version): (Operation, ApiVersion),
        account: &AccountId,
        route: &Route<'_>,
        subject: Subject,
        budget: Budget,
    ) -> Result<Request, Error> {
        let method = match (operation, version) {
            (Operation::Fetch | Operation::List | Operation::ListConversations, _) => Method::GET,
            (Operation::Create, _) | (Operation::Update, ApiVersion::V1) => Method::POST,
            (Operation::Update, ApiVersion::V2) => Method::PUT,
            (Operation::Delete, _) => Method::DELETE,
        };
        let unsupported =
            |violation| Error { operation, version, cause: Cause::Unsupported(vec![violation]) };
        let Api { url, peer } = self.api(account, version);
        let url = http::url(url, &route.segments).map_err(unsupported)?;
        Ok(Request::new((operation, version), subject, (method, url), route.template, peer.clone(), budget))
    }

    fn api(&self, account: &AccountId, version: ApiVersion) -> &Api {
        let endpoint = self.accounts.get(account);
        endpoint.expect("requests and clients come from one set of accounts").api(version)
    }
}

/// Where a request goes.
struct Route<'a> {
    /// The path's segments, not encoded.
    segments: Vec<&'a str>,
    /// The path with placeholders.
    template: &'static str,
}
