//! One attempt at a request, within its limits of time and size.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};
use tower::Service;
use tracing::{Instrument as _, Span, field, info_span};
use url::Url;

use super::{Request, Response};
use crate::telemetry::{self, Metrics};
use crate::twilio::drift::Drift;
use crate::twilio::error::{self, Broken, Cause, Error, Problem};
use crate::twilio::governor::Ending;

/// What metrics call a request for an access token, wherever it is sent.
const TOKEN_TEMPLATE: &str = "/v2/token";

/// Sends a request once, but for those that were refused for their credentials.
#[derive(Clone)]
pub(super) struct Attempt {
    pub(super) client: reqwest::Client,
    pub(super) timeout: Duration,
    /// That of a request with all its attempts.
    pub(super) total_timeout: Duration,
    pub(super) max_body_bytes: usize,
    pub(super) metrics: Metrics,
    pub(super) drift: Drift,
    pub(super) propagate_trace: bool,
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
        let mut authorization = request.peer.sign_in.first(request.patience()).await.map_err(no_token)?;
        let mut refused = Vec::new();
        loop {
            let result = self.send_as_agreed(request, &authorization, refused.len()).await;
            let next = match &result {
                Err(error) if error.is_unauthorized() => {
                    request.peer.sign_in.refused(&authorization, began);
                    refused.push(authorization);
                    request.after(&refused).await
                }
                Ok(_) => {
                    request.peer.sign_in.accepted(&authorization);
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

    /// Sends it unless it was given up, or the circuit has opened meanwhile. `refused` attempts were refused for their
    /// credentials.
    async fn send_as_agreed(
        &self,
        request: &Request,
        authorization: &HeaderValue,
        refused: usize,
    ) -> Result<Response, Error> {
        // Nothing else is waited for with a place in hand, neither credentials nor the pause before a retry. Those who waited
        // are not sent one after the other when the circuit has opened meanwhile.
        let refuse = |cause| request.error(cause);
        let (permit, pass) = match request.peer.breaker.probe().map_err(refuse)? {
            Some(probe) => (request.peer.governor.enter_beyond(), probe),
            None => {
                let permit = request.turn().await?;
                (permit, request.peer.breaker.enter().map_err(refuse)?)
            }
        };
        request.begins()?;
        // A tenth may have passed since the request was made: where the total bounds the attempt, it never has all of it.
        let whole = self.timeout.min(self.total_timeout.mul_f64(0.9));
        let had_its_time = Instant::now() + whole <= request.budget.until;
        let mut seen = Seen::default();
        let result = self.send(request, authorization, &mut seen).instrument(span(request, refused)).await;
        permit.end(ending(&result, seen.concurrent_requests));
        pass.ended(&result, had_its_time);
        request.ended(&result);
        result
    }

    async fn send(
        &self,
        request: &Request,
        authorization: &HeaderValue,
        seen: &mut Seen,
    ) -> Result<Response, Error> {
        let began = Instant::now();
        let until = request.budget.until.min(began + self.timeout);
        let result = timeout_at(until, self.exchange(request, authorization, seen)).await;
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
            status: seen.status,
            error,
        };
        self.metrics.request_ended(attempt, began.elapsed());
        result
    }

    async fn exchange(
        &self,
        request: &Request,
        authorization: &HeaderValue,
        seen: &mut Seen,
    ) -> Result<Response, Cause> {
        let answer = self.outgoing(request, authorization).send().await.map_err(broken_connection)?;
        let status = answer.status();
        let headers = answer.headers().clone();
        *seen =
            Seen { status: Some(status.as_u16()), concurrent_requests: error::concurrent_requests(&headers) };
        let request_id = error::request_id(&headers);
        let span = Span::current();
        span.record("http.response.status_code", status.as_u16());
        span.record("twilio.request_id", request_id.as_deref());
        span.record("twilio.concurrent_requests", seen.concurrent_requests);

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

    pub(super) async fn post_form(
        &self,
        url: &Url,
        form: Bytes,
    ) -> Result<(StatusCode, Bytes), &'static str> {
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

/// What is known of an answer as soon as it begins, even where the rest of it never comes.
#[derive(Default)]
struct Seen {
    status: Option<u16>,
    concurrent_requests: Option<u64>,
}

/// What the governor learns of an attempt.
fn ending(result: &Result<Response, Error>, concurrent_requests: Option<u64>) -> Ending {
    match result {
        Ok(_) => Ending::Answered(concurrent_requests),
        Err(error) if error.is_one_too_many() => Ending::Exceeded(concurrent_requests),
        Err(Error { cause: Cause::Answered(problem), .. }) if problem.status.is_client_error() => {
            Ending::Answered(concurrent_requests)
        }
        Err(_) => Ending::Failed,
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
