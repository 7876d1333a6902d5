//! The one way to Twilio: a reqwest client below a tower stack of retries, the circuit breaker and, for each attempt, limits of
//! time and size.

mod attempt;
mod request;
mod response;
mod retry;

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, err};
use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::redirect;
use tower::retry::RetryLayer;
use tower::{Layer as _, Service, ServiceExt as _};
use url::Url;

use super::Settings;
use super::drift::Drift;
use super::error::Error;
use crate::ids::Violation;
use crate::telemetry::Metrics;
use attempt::Attempt;
pub(super) use request::{Body, Peer, Request};
pub(super) use response::Response;
pub(super) use retry::RetryBudget;
use retry::RetryPolicy;

/// RFC 3986's unreserved characters; every other byte of an id is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Builds `base` + `/` + the segments, each percent-encoded, and checks that a URL parser sees just these segments.
pub(super) fn url(base: &Url, segments: &[&str]) -> Result<Url, Violation> {
    let mut path = base.path().trim_end_matches('/').to_owned();
    for segment in segments {
        path.push('/');
        path.extend(utf8_percent_encode(segment, ENCODED));
    }
    let mut url = base.clone();
    url.set_path(&path);
    // The ids are parsed values, so this holds; were it ever not to, a fetch could become a list, a delete worse.
    if url.path() == path {
        Ok(url)
    } else {
        Err(Violation::new("conversation.conversation_id", "this id and the participant's make no safe path"))
    }
}

/// Sends requests: retries on the outside, one attempt with its limits on the inside.
#[derive(Clone)]
pub(super) struct Http {
    stack: tower::retry::Retry<RetryPolicy, Guarded<Attempt>>,
}

impl Http {
    pub(super) fn new(settings: &Settings, metrics: Metrics) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("participant-gateway/", env!("CARGO_PKG_VERSION")))
            // So that what is tested is what is shipped: the tests' own dependencies turn on HTTP/2.
            .http1_only()
            .connect_timeout(settings.connect_timeout)
            // Twilio closes idle connections; one that it closes under a write costs an unknown outcome.
            .pool_idle_timeout(settings.pool_idle_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            // Only the stack below repeats requests, and inside its attempts those that were refused with 401: a further
            // place would multiply.
            .retry(reqwest::retry::never())
            .build()?;
        let drift = Drift::new(metrics.clone());
        let attempt = Attempt {
            client,
            timeout: settings.attempt_timeout,
            total_timeout: settings.total_timeout,
            max_body_bytes: settings.max_response_bytes,
            metrics: metrics.clone(),
            drift: drift.clone(),
            propagate_trace: settings.propagate_trace,
        };
        let policy = RetryPolicy::new(settings.max_retries, metrics, drift);
        Ok(Self { stack: RetryLayer::new(policy).layer(Guarded(attempt)) })
    }

    pub(super) async fn send(&self, request: Request) -> Result<Response, Error> {
        // Also of a read that is for the cache: whoever asked for it has gone before it begins.
        request.has_until(request.budget.retry_until)?;
        self.stack.clone().oneshot(request).await
    }

    /// Asks for an access token, once: whoever keeps the tokens has its own times for it. An error is a word out of a closed
    /// set.
    pub(super) async fn post_form(
        &self,
        url: &Url,
        form: Bytes,
    ) -> Result<(StatusCode, Bytes), &'static str> {
        self.stack.get_ref().0.post_form(url, form).await
    }
}

/// Lets through what has a chance to be sent, before it queues for anything further in. An attempt asks again just before
/// it begins.
#[derive(Clone)]
struct Guarded<S>(S);

impl<S> Service<Request> for Guarded<S>
where
    S: Service<Request, Response = Response, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response, Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match request.peer.breaker.check() {
            Ok(()) => self.0.call(request).boxed(),
            Err(cause) => err(request.error(cause)).boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segment: &str) -> String {
        let base = Url::parse("https://conversations.twilio.com/base/").unwrap();
        url(&base, &["v1", "Conversations", segment]).unwrap().path().to_owned()
    }

    #[test]
    fn an_id_stays_one_segment_whatever_it_holds() {
        for (id, encoded) in [
            ("alice", "alice"),
            ("%2e%2e", "%252e%252e"),
            ("..%2f", "..%252f"),
            ("a/b?c#d;e\\f", "a%2Fb%3Fc%23d%3Be%5Cf"),
            ("//evil", "%2F%2Fevil"),
            ("é 😀", "%C3%A9%20%F0%9F%98%80"),
            ("a+b@c.d", "a%2Bb%40c.d"),
        ] {
            assert_eq!(path(id), format!("/base/v1/Conversations/{encoded}"));
        }
    }

    #[test]
    fn a_path_that_a_parser_would_collapse_is_refused() {
        let base = Url::parse("http://127.0.0.1:1").unwrap();
        assert!(url(&base, &["v1", "Conversations", "CH1", "Participants", ".."]).is_err());
    }
}
