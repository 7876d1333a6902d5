//! One request to Twilio, as the stack passes it on.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method};
use tokio::time::Instant;
use url::Url;

use super::RetryBudget;
use crate::ids::ApiVersion;
use crate::twilio::Budget;
use crate::twilio::account::SignIn;
use crate::twilio::agreement::Agreement;
use crate::twilio::breaker::Breaker;
use crate::twilio::error::{Cause, Error, NoToken, Operation, Subject};
use crate::twilio::governor::{Ask, Governor, Kind, Permit};

/// So many times a request is sent at most where its credentials are refused.
const MOST_REFUSALS: usize = 6;
/// No answer of Twilio's comes sooner: an attempt that has less time left is not begun. How long one takes is not guessed.
pub(super) const SHORTEST_ANSWER: Duration = Duration::from_millis(2);

/// One request to Twilio, which may be sent more than once.
#[derive(Clone)]
pub(in crate::twilio) struct Request {
    pub(in crate::twilio) operation: Operation,
    pub(in crate::twilio) version: ApiVersion,
    pub(in crate::twilio) subject: Subject,
    pub(in crate::twilio) method: Method,
    pub(in crate::twilio) url: Url,
    /// The path with placeholders: what spans and metrics may hold of it.
    pub(in crate::twilio) template: &'static str,
    pub(in crate::twilio) peer: Peer,
    pub(in crate::twilio) webhook_enabled: Option<bool>,
    pub(in crate::twilio) body: Option<Body>,
    pub(in crate::twilio) budget: Budget,
    /// With the caller of a write, which may leave before it is sent.
    agreement: Option<Agreement>,
    pub(super) history: History,
}

/// What all requests to one API of an account share.
#[derive(Clone)]
pub(in crate::twilio) struct Peer {
    pub(in crate::twilio) sign_in: Arc<SignIn>,
    pub(in crate::twilio) breaker: Arc<Breaker>,
    /// That of the account.
    pub(in crate::twilio) retries: Arc<RetryBudget>,
    /// That of the account, because Twilio counts what both its APIs have under way.
    pub(in crate::twilio) governor: Arc<Governor>,
}

/// What earlier attempts at a request came to.
#[derive(Clone, Copy, Default)]
pub(super) struct History {
    pub(super) resends: u32,
    pub(super) may_have_been_processed: bool,
}

/// What a request carries.
#[derive(Clone)]
pub(in crate::twilio) struct Body {
    pub(in crate::twilio) content_type: &'static str,
    pub(in crate::twilio) bytes: Bytes,
    /// The same as it may be shown: without PII.
    pub(in crate::twilio) shown: Arc<str>,
}

impl Request {
    pub(in crate::twilio) fn new(
        (operation, version): (Operation, ApiVersion),
        subject: Subject,
        (method, url): (Method, Url),
        template: &'static str,
        peer: Peer,
        budget: Budget,
    ) -> Self {
        let history = History::default();
        Self {
            operation,
            version,
            subject,
            method,
            url,
            template,
            peer,
            webhook_enabled: None,
            body: None,
            budget,
            agreement: None,
            history,
        }
    }

    /// The same as a write that may be given up until it is sent.
    pub(in crate::twilio) fn agreed(mut self, agreement: &Agreement) -> Self {
        self.agreement = Some(agreement.clone());
        self
    }

    /// Until when it waits for what it needs to be sent. A read that others may have joined goes on after its caller's
    /// deadline, as ever.
    pub(super) fn patience(&self) -> Instant {
        if self.agreement.is_some() { self.budget.retry_until } else { self.budget.until }
    }

    /// What to send after these were refused.
    pub(super) async fn after(&self, refused: &[HeaderValue]) -> Result<HeaderValue, Option<NoToken>> {
        let retry_until = self.budget.retry_until;
        if refused.len() >= MOST_REFUSALS || Instant::now() >= retry_until {
            return Err(None);
        }
        self.peer.sign_in.next(refused, retry_until).await
    }

    /// Waits for its turn, unless it is given up before. The deadline of the call that asked bounds that for a read, too:
    /// nobody else's stands behind it, and whoever joined it can ask again.
    pub(super) async fn turn(&self) -> Result<Permit, Error> {
        let kind = match self.operation {
            Operation::Fetch | Operation::List | Operation::ListConversations => Kind::Read,
            Operation::Create | Operation::Update | Operation::Delete => Kind::Write,
        };
        let Budget { retry_until, caller, .. } = self.budget;
        let permit = self.peer.governor.enter(Ask { kind, caller, deadline: retry_until });
        let given_up = async {
            match &self.agreement {
                Some(agreement) => agreement.given_up().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            permit = permit => permit.map_err(|wait| self.error(Cause::Overloaded(wait))),
            () = given_up => Err(self.error(Cause::GivenUp)),
        }
    }

    /// Whether an attempt that has to end by then can be begun now.
    pub(super) fn has_until(&self, end: Instant) -> Result<(), Error> {
        let could_end = Instant::now() + SHORTEST_ANSWER <= end;
        if could_end { Ok(()) } else { Err(self.error(Cause::GivenUp)) }
    }

    /// Called just before an attempt, when nothing is left to wait for.
    pub(super) fn begins(&self) -> Result<(), Error> {
        self.has_until(self.patience())?;
        let is_agreed = self.agreement.as_ref().is_none_or(Agreement::send);
        if is_agreed { Ok(()) } else { Err(self.error(Cause::GivenUp)) }
    }

    /// Called just after an attempt.
    pub(super) fn ended<T>(&self, result: &Result<T, Error>) {
        let is_unprocessed = result.as_ref().is_err_and(Error::nothing_was_done);
        if let Some(agreement) = &self.agreement
            && is_unprocessed
            && !self.history.may_have_been_processed
        {
            agreement.unsent();
        }
    }

    /// The headers that say something about the request, but for the credentials.
    pub(in crate::twilio) fn headers(&self) -> impl Iterator<Item = (HeaderName, &'static str)> {
        let webhook_enabled = self.webhook_enabled.map(|enabled| if enabled { "true" } else { "false" });
        [
            (ACCEPT, Some("application/json")),
            (CONTENT_TYPE, self.body.as_ref().map(|body| body.content_type)),
            (HeaderName::from_static("x-twilio-webhook-enabled"), webhook_enabled),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    pub(super) fn error(&self, cause: Cause) -> Error {
        Error { operation: self.operation, version: self.version, cause }
    }
}
