//! What surrounds every call: its span, its deadline, and one log line if it fails.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field, info, info_span, warn};

use super::deadline::Limits;
use super::status::{self, Reason};
use super::stopping::{Requests, Stopping};
use crate::proto::{self, Message as _};
use crate::telemetry::{self, CallLog, Metrics};

/// Gives every call a span, a deadline and an end that is logged.
#[derive(Clone)]
pub struct CallLayer {
    longest: Duration,
    methods: Arc<HashSet<Arc<str>>>,
    in_flight: Arc<AtomicUsize>,
    end_streams: CancellationToken,
    metrics: Metrics,
    log: CallLog,
}

impl CallLayer {
    /// `longest` bounds a call with one answer whose caller sets no deadline, or a later one. `end_streams` ends every
    /// stream, reflection's and a health watcher's among them: a graceful shutdown would wait for them for ever.
    pub fn new(longest: Duration, end_streams: CancellationToken, metrics: Metrics, log: CallLog) -> Self {
        Self { longest, methods: Arc::new(methods()), in_flight: Arc::default(), end_streams, metrics, log }
    }

    /// How many calls have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// The paths of this contract's methods: the values that the span's `rpc.method` may take.
fn methods() -> HashSet<Arc<str>> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = HashSet::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()).into());
            }
        }
    }
    methods
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, layer: self.clone() }
    }
}

/// What [`CallLayer`] makes of a service.
#[derive(Clone)]
pub struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<tonic::body::Body>> for CallService<S>
where
    S: Service<
            Request<tonic::body::Body>,
            Response = Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<tonic::body::Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        if let Some(status) = refusal(&request) {
            return Box::pin(std::future::ready(Ok(not_grpc(status))));
        }
        let limits = Limits::of(request.headers(), self.layer.longest);
        request.extensions_mut().insert(limits.deadline);
        let path = request.uri().path().trim_start_matches('/');
        let ours = self.layer.methods.get(path).cloned();
        let is_ours = ours.is_some();
        let method = ours.unwrap_or_else(|| "_OTHER".into());
        let span = info_span!(
            "rpc",
            otel.name = &*method,
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = &*method,
            rpc.response.status_code = field::Empty,
            otel.status_code = field::Empty,
        );
        telemetry::continue_trace(&span, request.headers());
        let end_streams = self.layer.end_streams.clone();
        let stopping = Stopping::new(end_streams.clone());
        let call = Call::begin(method, span.clone(), self.layer.clone());
        // This contract's methods take one request each.
        let request = if is_ours {
            request
        } else {
            request.map(|body| tonic::body::Body::new(Requests::new(body, end_streams)))
        };
        // A clone takes this service's place: the one that was polled to be ready has to be the one that is called.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        // A panic becomes an answer and a log line, in place of a stream that is reset.
        let answer = AssertUnwindSafe(async move { inner.call(request).await }).catch_unwind();
        let answered = async move {
            // A timer rounds up to its next tick, within which a call that has no time left could be served.
            let has_time = limits.fires > Instant::now();
            let in_time = if has_time { timeout_at(limits.fires, answer).await.ok() } else { None };
            let response = match in_time {
                Some(Ok(response)) => response?,
                Some(Err(_panic)) => status::plain(Reason::Internal).into_http(),
                None => status::plain(Reason::Deadline).into_http(),
            };
            Ok(call.observe(response, stopping))
        };
        Box::pin(answered.instrument(span))
    }
}

/// tonic would serve any method and any content type.
fn refusal<B>(request: &Request<B>) -> Option<StatusCode> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if request.method() != Method::POST {
        Some(StatusCode::METHOD_NOT_ALLOWED)
    } else if !matches!(essence, "application/grpc" | "application/grpc+proto") {
        Some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
    } else {
        None
    }
}

/// As the gRPC protocol asks for: a client that does not speak it could not read a gRPC status.
fn not_grpc(status: StatusCode) -> Response<tonic::body::Body> {
    let mut response = Response::new(tonic::body::Body::empty());
    *response.status_mut() = status;
    response
}

/// A call that has not ended yet. Its end is noted once; dropped before that, the caller went away.
struct Call {
    method: Arc<str>,
    span: Span,
    began: Instant,
    ended: bool,
    layer: CallLayer,
}

impl Call {
    fn begin(method: Arc<str>, span: Span, layer: CallLayer) -> Self {
        layer.in_flight.fetch_add(1, Ordering::Relaxed);
        layer.metrics.call_began(&method);
        Self { method, span, began: Instant::now(), ended: false, layer }
    }

    fn observe(
        mut self,
        response: Response<tonic::body::Body>,
        stopping: Stopping,
    ) -> Response<tonic::body::Body> {
        // An error that comes before any answer is in the headers; else the end is in the trailers.
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.end(&status);
            return response;
        }
        response.map(|inner| tonic::body::Body::new(Observed { inner, call: self, stopping }))
    }

    /// The trailers of a stream that ends because the gateway does.
    fn stop<T>(&mut self) -> Frame<T> {
        let status = status::plain(Reason::ShuttingDown);
        self.end(&status);
        let mut trailers = HeaderMap::new();
        // It holds no text that a header could not.
        let _ = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }

    fn end(&mut self, status: &Status) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let code = code_name(status.code());
        self.span.record("rpc.response.status_code", code);
        if is_server_error(status.code()) {
            self.span.record("otel.status_code", "ERROR");
        }
        let took = self.began.elapsed();
        self.layer.metrics.call_answered(&self.method, code, took);
        let CallLog { is_access_log, slow } = self.layer.log;
        let is_slow = slow.is_some_and(|bound| took > bound);
        self.span.in_scope(|| match status.code() {
            Code::Ok if is_slow => warn!(rpc.method = &*self.method, duration_ms = millis(took), "slow call"),
            Code::Ok if is_access_log => {
                info!(rpc.method = &*self.method, duration_ms = millis(took), "call");
            }
            Code::Ok => {}
            _ => self.log(status),
        });
    }

    /// One line a failed call. Only what this gateway wrote is in it: a message without `ErrorInfo` is not ours.
    fn log(&self, status: &Status) {
        let info = status.get_details_error_info();
        let about = |key: &str| info.as_ref()?.metadata.get(key).map(String::as_str);
        let reason = info.as_ref().map(|info| info.reason.as_str());
        let message = match status.code() {
            _ if reason.is_some() => status.message(),
            Code::Cancelled => "the caller went away, or its connection was cut",
            _ => "refused by the gRPC layer",
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    rpc.method = &*self.method,
                    rpc.response.status_code = code_name(status.code()),
                    reason,
                    twilio.code = about("twilio_code"),
                    http.response.status_code = about("http_status"),
                    twilio.request_id = about("twilio_request_id"),
                    api.version = about("api_version"),
                    duration_ms = millis(self.began.elapsed()),
                    "{message}"
                )
            };
        }
        let needs_a_human = reason == Some(Reason::UpstreamCredentialsRejected.as_str());
        match status.code() {
            // tonic's own errors are the caller's: bytes that are no message, a method that is none.
            _ if reason.is_none() => line!(info),
            Code::Internal | Code::DataLoss => line!(error),
            Code::FailedPrecondition if needs_a_human => line!(error),
            Code::Unknown | Code::DeadlineExceeded | Code::Unavailable => line!(warn),
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => line!(info),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.end(&Status::cancelled("the caller went away"));
        }
        self.layer.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.layer.metrics.call_ended(&self.method);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The codes that make a server's span an error by the semantic conventions; any other is the caller's.
fn is_server_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The code's name in the gRPC protocol, such as `NOT_FOUND`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

pin_project! {
    /// A response's body that notes the status in its trailers, and ends when the gateway stops.
    struct Observed {
        #[pin]
        inner: tonic::body::Body,
        call: Call,
        stopping: Stopping,
    }
}

impl Body for Observed {
    type Data = <tonic::body::Body as Body>::Data;
    type Error = <tonic::body::Body as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        if this.call.ended {
            return Poll::Ready(None);
        }
        // A stream's work is done while it is polled, and belongs to the call's span.
        let _entered = this.call.span.clone().entered();
        let Poll::Ready(frame) = this.inner.poll_frame(context) else {
            std::task::ready!(this.stopping.poll(context));
            return Poll::Ready(Some(Ok(this.call.stop())));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.end(&Status::from_header_map(trailers).unwrap_or_else(|| Status::new(Code::Ok, "")));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.call.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_methods_are_the_contracts() {
        assert!(methods().contains("participant.v1.ParticipantService/GetParticipant"));
        assert_eq!(methods().len(), 9);
    }
}
