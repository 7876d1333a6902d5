//! The one way to Twilio: a reqwest client below a tower stack of retries and, for each attempt, time and size limits.

mod retry;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::redirect;
use serde_path_to_error::Segment;
use tokio::time::{Instant, timeout_at};
use tower::retry::RetryLayer;
use tower::{Layer as _, Service, ServiceExt as _};
use tracing::{Instrument as _, Span, field, info_span};
use url::Url;

use super::account::SignIn;
use super::agreement::Agreement;
use super::drift::{self, Drift};
use super::error::{self, Broken, Cause, Error, NoToken, Operation, Problem, Subject};
use super::{Budget, Settings};
use crate::ids::{ApiVersion, Violation};
use crate::telemetry::{self, Metrics};
use retry::RetryPolicy;

/// RFC 3986's unreserved characters; every other byte of an id is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What metrics call a request for an access token, wherever it is sent.
const TOKEN_TEMPLATE: &str = "/v2/token";
/// So many times a request is sent at most where its credentials are refused.
const MOST_REFUSALS: usize = 6;

const NOT_JSON: &str = "the body is not the documented JSON object";

/// One request to Twilio, which may be sent more than once.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) version: ApiVersion,
    pub(super) subject: Subject,
    pub(super) method: Method,
    pub(super) url: Url,
    /// The path with placeholders: what spans and metrics may hold of it.
    pub(super) template: &'static str,
    pub(super) sign_in: Arc<SignIn>,
    pub(super) webhook_enabled: Option<bool>,
    pub(super) body: Option<Body>,
    pub(super) budget: Budget,
    /// With the caller of a write, which may leave before it is sent.
    agreement: Option<Agreement>,
    history: History,
}

/// What earlier attempts at a request came to.
#[derive(Clone, Copy, Default)]
struct History {
    resends: u32,
    may_have_been_processed: bool,
}

/// What a request carries.
#[derive(Clone)]
pub(super) struct Body {
    pub(super) content_type: &'static str,
    pub(super) bytes: Bytes,
    /// The same as it may be shown: without PII.
    pub(super) shown: Arc<str>,
}

impl Request {
    pub(super) fn new(
        (operation, version): (Operation, ApiVersion),
        subject: Subject,
        (method, url): (Method, Url),
        template: &'static str,
        sign_in: Arc<SignIn>,
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
            sign_in,
            webhook_enabled: None,
            body: None,
            budget,
            agreement: None,
            history,
        }
    }

    /// The same as a write that may be given up until it is sent.
    pub(super) fn agreed(mut self, agreement: &Agreement) -> Self {
        self.agreement = Some(agreement.clone());
        self
    }

    /// How long it waits for credentials. A read that others may have joined goes on after its caller's deadline, as ever.
    fn patience(&self) -> Instant {
        if self.agreement.is_some() { self.budget.retry_until } else { self.budget.until }
    }

    /// What to send after these were refused.
    async fn after(&self, refused: &[HeaderValue]) -> Result<HeaderValue, Option<NoToken>> {
        let retry_until = self.budget.retry_until;
        if refused.len() >= MOST_REFUSALS || Instant::now() >= retry_until {
            return Err(None);
        }
        self.sign_in.next(refused, retry_until).await
    }

    /// Called just before an attempt.
    fn begins(&self) -> Result<(), Error> {
        let is_agreed = self.agreement.as_ref().is_none_or(Agreement::send);
        if is_agreed { Ok(()) } else { Err(self.error(Cause::GivenUp)) }
    }

    /// Called just after an attempt.
    fn ended<T>(&self, result: &Result<T, Error>) {
        let is_unprocessed = result.as_ref().is_err_and(Error::nothing_was_done);
        if let Some(agreement) = &self.agreement
            && is_unprocessed
            && !self.history.may_have_been_processed
        {
            agreement.unsent();
        }
    }

    /// The headers that say something about the request, but for the credentials.
    pub(super) fn headers(&self) -> impl Iterator<Item = (HeaderName, &'static str)> {
        let webhook_enabled = self.webhook_enabled.map(|enabled| if enabled { "true" } else { "false" });
        [
            (ACCEPT, Some("application/json")),
            (CONTENT_TYPE, self.body.as_ref().map(|body| body.content_type)),
            (HeaderName::from_static("x-twilio-webhook-enabled"), webhook_enabled),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    fn error(&self, cause: Cause) -> Error {
        Error { operation: self.operation, version: self.version, cause }
    }
}

/// A successful answer, read to its end.
pub(super) struct Response {
    operation: Operation,
    pub(super) version: ApiVersion,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    drift: Drift,
}

impl Response {
    /// Decodes the JSON body; an error names the key and nothing else, because a value may be PII.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Error> {
        // serde would take an array for a struct, by position: a guess.
        if !self.body.trim_ascii_start().starts_with(b"{") {
            return Err(self.broken(NOT_JSON.into()));
        }
        let mut json = serde_json::Deserializer::from_slice(&self.body);
        let mut unknown = |path: serde_ignored::Path<'_>| self.drift.unknown_key(self.version, &path);
        let counting = serde_ignored::Deserializer::new(&mut json, &mut unknown);
        let decoded = serde_path_to_error::deserialize(counting).map_err(|error| key(error.path()));
        let rest = |value| json.end().map(|()| value).map_err(|_| "text follows the JSON body".into());
        decoded.and_then(rest).map_err(|what| self.broken(what))
    }

    /// When Twilio answered, by its own clock where it tells that, to the second.
    pub(super) fn answered_at(&self) -> SystemTime {
        let date = self.headers.get(DATE).and_then(|date| date.to_str().ok());
        date.and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now)
    }

    /// This key of the answer has a word, or the like, that this build does not know.
    pub(super) fn unknown_value(&self, key: &'static str) {
        self.drift.unknown_value(self.version, key);
    }

    /// As if the delete whose answer was lost had been answered.
    fn deleted(request: &Request, drift: Drift) -> Self {
        Self {
            operation: request.operation,
            version: request.version,
            status: StatusCode::NO_CONTENT,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            drift,
        }
    }

    /// An answer with this body.
    #[cfg(test)]
    pub(super) fn of(version: ApiVersion, body: impl Into<Bytes>, drift: &Drift) -> Self {
        let (status, headers) = (StatusCode::OK, HeaderMap::new());
        Self {
            operation: Operation::Fetch,
            version,
            status,
            headers,
            body: body.into(),
            drift: drift.clone(),
        }
    }

    /// The answer is not what Twilio's contract says; `what` names a key.
    pub(super) fn broken(&self, what: String) -> Error {
        let broken = Broken { status: self.status, what, request_id: error::request_id(&self.headers) };
        Error { operation: self.operation, version: self.version, cause: Cause::Broken(broken) }
    }
}

/// The key that an error is about. It may be one that is not known, and then only a plain name is told.
fn key(path: &serde_path_to_error::Path) -> String {
    let is_plain = |segment: &Segment| match segment {
        Segment::Map { key } => drift::is_plain(key),
        Segment::Seq { .. } => true,
        Segment::Enum { .. } | Segment::Unknown => false,
    };
    if path.iter().len() > 0 && path.iter().all(is_plain) { path.to_string() } else { NOT_JSON.into() }
}

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
    stack: tower::retry::Retry<RetryPolicy, Attempt>,
}

impl Http {
    pub(super) fn new(settings: &Settings, metrics: Metrics) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("participant-gateway/", env!("CARGO_PKG_VERSION")))
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
            max_body_bytes: settings.max_response_bytes,
            metrics: metrics.clone(),
            drift: drift.clone(),
            propagate_trace: settings.propagate_trace,
        };
        let policy = RetryPolicy::new(settings.max_retries, metrics, drift);
        Ok(Self { stack: RetryLayer::new(policy).layer(attempt) })
    }

    pub(super) async fn send(&self, request: Request) -> Result<Response, Error> {
        self.stack.clone().oneshot(request).await
    }

    /// Asks for an access token, once: whoever keeps the tokens has its own times for it. An error is a word out of a closed
    /// set.
    pub(super) async fn post_form(
        &self,
        url: &Url,
        form: String,
    ) -> Result<(StatusCode, Bytes), &'static str> {
        self.stack.get_ref().post_form(url, form).await
    }
}

/// Sends a request once, but for those that were refused for their credentials.
#[derive(Clone)]
struct Attempt {
    client: reqwest::Client,
    timeout: Duration,
    max_body_bytes: usize,
    metrics: Metrics,
    drift: Drift,
    propagate_trace: bool,
}

impl Service<Request> for Attempt {
    type Response = Response;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let attempt = self.clone();
        Box::pin(async move { attempt.send_with_credentials(&request).await })
    }
}

impl Attempt {
    /// Twilio looks at the credentials first, so a request that it answers with 401 was not processed, and any method can
    /// be sent again at once with others.
    async fn send_with_credentials(&self, request: &Request) -> Result<Response, Error> {
        let (began, no_token) = (Instant::now(), |why| request.error(Cause::NoToken(why)));
        let mut authorization = request.sign_in.first(request.patience()).await.map_err(no_token)?;
        let mut refused = Vec::new();
        loop {
            let result = self.send_as_agreed(request, &authorization, refused.len()).await;
            let next = match &result {
                Err(error) if error.is_unauthorized() => {
                    request.sign_in.refused(&authorization, began);
                    refused.push(authorization);
                    request.after(&refused).await
                }
                Ok(_) => {
                    request.sign_in.accepted(&authorization);
                    Err(None)
                }
                Err(_) => Err(None),
            };
            match next {
                Ok(other) => authorization = other,
                Err(why) => break why.map_or(result, |why| Err(no_token(why))),
            }
        }
    }

    /// Sends it unless it was given up. `refused` attempts were refused for their credentials.
    async fn send_as_agreed(
        &self,
        request: &Request,
        authorization: &HeaderValue,
        refused: usize,
    ) -> Result<Response, Error> {
        request.begins()?;
        let result = self.send(request, authorization).instrument(span(request, refused)).await;
        request.ended(&result);
        result
    }

    async fn send(&self, request: &Request, authorization: &HeaderValue) -> Result<Response, Error> {
        let began = Instant::now();
        let until = request.budget.until.min(began + self.timeout);
        let mut status = None;
        let result = timeout_at(until, self.exchange(request, authorization, &mut status)).await;
        let result = result.unwrap_or(Err(Cause::TimedOut)).map_err(|cause| request.error(cause));
        let error = result.as_ref().err().map(Error::kind);
        if error.is_some() {
            Span::current().record("error.type", error).record("otel.status_code", "ERROR");
        }
        let attempt = telemetry::Attempt {
            method: request.method.as_str(),
            template: request.template,
            host: request.url.host_str().unwrap_or_default(),
            port: request.url.port_or_known_default().unwrap_or_default(),
            status,
            error,
        };
        self.metrics.request_ended(attempt, began.elapsed());
        result
    }

    /// `answered` learns the status as soon as there is one.
    async fn exchange(
        &self,
        request: &Request,
        authorization: &HeaderValue,
        answered: &mut Option<u16>,
    ) -> Result<Response, Cause> {
        let answer = self.outgoing(request, authorization).send().await.map_err(broken_connection)?;
        let status = answer.status();
        *answered = Some(status.as_u16());
        let headers = answer.headers().clone();
        let request_id = error::request_id(&headers);
        let span = Span::current();
        span.record("http.response.status_code", status.as_u16());
        span.record("twilio.request_id", request_id.as_deref());
        span.record("twilio.concurrent_requests", error::concurrent_requests(&headers));

        let is_error = status.is_client_error() || status.is_server_error();
        let body = match self.body(answer).await {
            // An error's status tells enough; its body only says more.
            Err(Cause::Broken(_)) if is_error => Bytes::new(),
            body => body?,
        };
        if is_error {
            return Err(Cause::Answered(Box::new(Problem::read(
                status,
                &headers,
                &body,
                request.subject.clone(),
            ))));
        }
        if !status.is_success() {
            // A redirect is never followed: it would carry the credentials to where it points.
            let what = format!("unexpected HTTP status {}", status.as_u16());
            return Err(Cause::Broken(Broken { status, what, request_id }));
        }
        let (operation, version, drift) = (request.operation, request.version, self.drift.clone());
        Ok(Response { operation, version, status, headers, body, drift })
    }

    fn outgoing(&self, request: &Request, authorization: &HeaderValue) -> reqwest::RequestBuilder {
        let mut outgoing = self
            .client
            .request(request.method.clone(), request.url.clone())
            .header(AUTHORIZATION, authorization.clone());
        for (name, value) in request.headers() {
            outgoing = outgoing.header(name, value);
        }
        if self.propagate_trace {
            let mut headers = HeaderMap::new();
            telemetry::inject_trace(&mut headers);
            outgoing = outgoing.headers(headers);
        }
        match &request.body {
            None => outgoing,
            Some(body) => outgoing.body(body.bytes.clone()),
        }
    }

    async fn post_form(&self, url: &Url, form: String) -> Result<(StatusCode, Bytes), &'static str> {
        let began = Instant::now();
        let mut status = None;
        let exchange = async {
            let outgoing = self.client.post(url.clone()).header(ACCEPT, "application/json");
            let outgoing = outgoing.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
            let answer = outgoing.send().await.map_err(broken_connection)?;
            status = Some(answer.status());
            Ok((answer.status(), self.body(answer).await?))
        };
        let result = timeout_at(began + self.timeout, exchange).await.unwrap_or(Err(Cause::TimedOut));
        let result = result.map_err(|cause| cause.kind());
        let is_error = status.is_some_and(|status| !status.is_success());
        let attempt = telemetry::Attempt {
            method: "POST",
            template: TOKEN_TEMPLATE,
            host: url.host_str().unwrap_or_default(),
            port: url.port_or_known_default().unwrap_or_default(),
            status: status.map(|status| status.as_u16()),
            error: result.as_ref().err().copied().or(is_error.then_some("answered")),
        };
        self.metrics.request_ended(attempt, began.elapsed());
        result
    }

    /// Reads the body to its end, or to the bound: the peer decides neither our memory nor our time.
    async fn body(&self, mut answer: reqwest::Response) -> Result<Bytes, Cause> {
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(broken_connection)? {
            if body.len() + chunk.len() > self.max_body_bytes {
                let what = format!("the body is larger than {} bytes", self.max_body_bytes);
                let request_id = error::request_id(answer.headers());
                return Err(Cause::Broken(Broken { status: answer.status(), what, request_id }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

fn broken_connection(error: reqwest::Error) -> Cause {
    // The URL may hold an identity.
    let error = error.without_url();
    if error.is_connect() { Cause::NotSent(error) } else { Cause::Cut(error) }
}

/// One span an attempt, of which so many were refused for their credentials. It never holds the URL, which may hold an
/// identity.
fn span(request: &Request, refused: usize) -> Span {
    let resends = request.history.resends as usize + refused;
    info_span!(
        "twilio",
        otel.name = format_args!("{} {}", request.method, request.template),
        otel.kind = "client",
        http.request.method = request.method.as_str(),
        url.template = request.template,
        server.address = request.url.host_str(),
        server.port = request.url.port_or_known_default(),
        http.request.resend_count = (resends > 0).then_some(resends),
        http.response.status_code = field::Empty,
        twilio.request_id = field::Empty,
        twilio.concurrent_requests = field::Empty,
        error.type = field::Empty,
        otel.status_code = field::Empty,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twilio::v1;

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
    fn an_error_names_a_key_of_the_answer_only_where_that_is_a_plain_name() {
        let drift = Drift::new(Metrics::new(None).unwrap());
        let long = format!(r#"{{"{}":x}}"#, "a".repeat(65));
        for (body, what) in [
            (r#"{"new_key":x}"#, "new_key"),
            (r#"{"dana@example.com":x}"#, NOT_JSON),
            (r#"{"+15550100001":x}"#, NOT_JSON),
            (&long, NOT_JSON),
            // A key that cannot be read, which the path would show as `?`.
            (r#"{"sid":"MB1","ty\x":1}"#, NOT_JSON),
        ] {
            let response = Response::of(ApiVersion::V1, body.to_owned(), &drift);
            let Err(Error { cause: Cause::Broken(broken), .. }) = v1::participant(&response) else {
                panic!("{body}");
            };
            assert_eq!(broken.what, what, "{body}");
        }
    }

    #[test]
    fn a_path_that_a_parser_would_collapse_is_refused() {
        let base = Url::parse("http://127.0.0.1:1").unwrap();
        assert!(url(&base, &["v1", "Conversations", "CH1", "Participants", ".."]).is_err());
    }
}
