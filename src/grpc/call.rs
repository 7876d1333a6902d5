//! What surrounds every call: its span, whose it is, its place among those in flight, its deadline, and one log line if it
//! fails.

mod answer;
mod callers;
mod methods;

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::Service as _;
use tracing::{info, warn};

use super::deadline::Limits;
use super::status::{self, Reason};
use super::stopping::Requests;
use super::{Opened, Server, pace};
use crate::access::{Access, Identity, Peer, Unauthenticated};
use crate::telemetry::{CallLog, CallSpan, CallTracer, Metrics};
pub use answer::Answer;
use callers::{Caller, Callers, Place, Places};
use methods::{Kind, Method, Methods};

/// How long a call may take, and how many there may be at once. What is more is refused at once: a queue would only grow
/// old, and its callers give up while it does.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Bounds a call with one answer whose caller sets no deadline, or a later one.
    pub longest: Duration,
    /// So long may the caller of a stream take nothing of it; that of any other call, `longest`.
    pub stall: Duration,
    /// Bounds the calls in flight, watchers apart.
    pub in_flight: usize,
    /// Bounds the watchers, which are there for long and cost little.
    pub watchers: usize,
}

/// What all calls share. Cheap to clone.
#[derive(Clone)]
pub struct Calls(Arc<Shared>);

struct Shared {
    limits: CallLimits,
    methods: Methods,
    access: Access,
    callers: Callers,
    end_streams: CancellationToken,
    tracer: OnceLock<CallTracer>,
    log: CallLog,
}

impl Calls {
    /// `end_streams` ends every stream, reflection's and a health watcher's among them: a graceful shutdown would wait for
    /// them for ever.
    pub fn new(
        limits: CallLimits,
        access: Access,
        end_streams: CancellationToken,
        metrics: &Metrics,
        log: CallLog,
    ) -> Self {
        let (methods, tracer) = (Methods::new(metrics), OnceLock::new());
        let callers = Callers::new(Places { calls: limits.in_flight, watchers: limits.watchers });
        Self(Arc::new(Shared { limits, methods, access, callers, end_streams, tracer, log }))
    }

    /// Gives every call from now on a span. The first tracer stays.
    pub fn trace_by(&self, tracer: CallTracer) {
        let _ = self.0.tracer.set(tracer);
    }

    /// How many calls have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.0.callers.in_flight()
    }
}

/// The services: each connection has a [`CallService`] of them.
#[derive(Clone)]
pub struct Services {
    calls: Calls,
    participants: Server,
    others: Routes,
}

impl Services {
    /// `others` are health and reflection.
    pub fn new(calls: Calls, participants: Server, others: Routes) -> Self {
        Self { calls, participants, others }
    }

    /// For the calls of one connection.
    pub fn called_by(&self, peer: Peer) -> CallService {
        let Shared { access, callers, .. } = &*self.calls.0;
        let caller = access.of_connection(&peer).map(|identity| callers.get(identity));
        CallService { services: self.clone(), peer, caller }
    }
}

/// The services, as one connection meets them: tells whose each call is, gives it a span, a deadline and an end that is
/// logged.
#[derive(Clone)]
pub struct CallService {
    services: Services,
    peer: Peer,
    /// None where each call has to say whose it is.
    caller: Option<Arc<Caller>>,
}

impl CallService {
    /// Answers a call. The future is to be run by [`super::paced`], or an answer that nobody reads would stay for ever.
    pub fn call<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> + Send + use<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    {
        match refusal(&request) {
            Some(status) => Either::Left(ready(Ok(Answer::to_no_call(status)))),
            None => Either::Right(self.answer(request)),
        }
    }

    fn answer<B>(
        &self,
        mut request: Request<B>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> + Send + use<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    {
        let calls = self.services.calls.clone();
        let limits = Limits::of(request.headers(), calls.0.limits.longest);
        let method = calls.0.methods.find(request.uri().path());
        let kind = method.kind;
        let span = CallSpan::begin(calls.0.tracer.get(), &method.name, request.headers());
        let (caller, services) = (self.caller_of(kind, request.headers()), self.services.clone());
        let mut call = Call::begin(method, span, calls);
        async move {
            let (caller, expiry) = match caller.await {
                Ok(known) => known,
                Err(Unauthenticated) => {
                    return Ok(call.observe(status::plain(Reason::Unauthenticated).into_http()));
                }
            };
            call.expires(expiry);
            let opened = Opened::new(limits.deadline, caller.identity.id(), request.headers());
            request.extensions_mut().insert(opened);
            if !call.has_room(caller) {
                return Ok(call.observe(status::shed().into_http()));
            }
            let mut answer = pin!(in_time(services.dispatch(kind, request), limits.fires));
            let response = poll_fn(|context| call.span.within(|| answer.as_mut().poll(context))).await;
            Ok(call.observe(response))
        }
    }

    /// Whose a call is, and when that holds no longer. Health is asked for by whoever keeps the process running, who has no name.
    fn caller_of(
        &self,
        kind: Kind,
        headers: &HeaderMap,
    ) -> impl Future<Output = Result<(Arc<Caller>, Option<Instant>), Unauthenticated>> + Send + use<> {
        let Shared { access, callers, .. } = &*self.services.calls.0;
        match &self.caller {
            Some(caller) => Either::Left(ready(Ok((caller.clone(), None)))),
            None if kind == Kind::Other => {
                Either::Left(ready(Ok((callers.get(Identity::of_address(self.peer.address)), None))))
            }
            None => {
                let (identity, callers) = (access.of_call(&self.peer, headers), callers.clone());
                Either::Right(async move {
                    let identity = identity.await?;
                    // Not that of the caller, who may have had another proof when it began to call.
                    let expiry = identity.expiry();
                    Ok((callers.get(identity), expiry))
                })
            }
        }
    }
}

impl Services {
    /// By the method alone: tonic's router would look the path up once more, and box the call twice.
    fn dispatch<B>(
        &self,
        kind: Kind,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<tonic::body::Body>, Infallible>> + Send + use<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    {
        match kind {
            // This contract's methods take one request each. Both services are always ready.
            Kind::Call | Kind::Stream | Kind::Watcher => {
                Either::Left(self.participants.clone().call(request))
            }
            Kind::Other => {
                let end_streams = self.calls.0.end_streams.clone();
                Either::Right(self.others.clone().call(request.map(|body| Requests::new(body, end_streams))))
            }
        }
    }
}

/// What is answered, whatever becomes of it. A panic becomes an answer and a log line, in place of a stream that is reset.
async fn in_time(
    answer: impl Future<Output = Result<Response<tonic::body::Body>, Infallible>>,
    fires: Instant,
) -> Response<tonic::body::Body> {
    // A timer rounds up to its next tick, within which a call that has no time left could be served.
    if fires <= Instant::now() {
        return status::plain(Reason::Deadline).into_http();
    }
    match timeout_at(fires, AssertUnwindSafe(answer).catch_unwind()).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(_panic)) => status::plain(Reason::Internal).into_http(),
        Err(_) => status::plain(Reason::Deadline).into_http(),
    }
}

/// tonic would serve any method and any content type.
fn refusal<B>(request: &Request<B>) -> Option<StatusCode> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if request.method() != http::Method::POST {
        Some(StatusCode::METHOD_NOT_ALLOWED)
    } else if !matches!(essence, "application/grpc" | "application/grpc+proto") {
        Some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
    } else {
        None
    }
}

/// A call that has not ended yet. Its end is noted once; dropped before that, the caller went away.
struct Call {
    method: Arc<Method>,
    span: CallSpan,
    began: Instant,
    ended: bool,
    /// None as long as nobody knows whose it is, and where there was none left for it.
    place: Option<Place>,
    /// When a stream's caller has to prove anew who it is.
    expiry: Option<Pin<Box<Sleep>>>,
    calls: Calls,
}

impl Call {
    fn begin(method: Arc<Method>, span: CallSpan, calls: Calls) -> Self {
        method.metrics.began();
        Self { method, span, began: Instant::now(), ended: false, place: None, expiry: None, calls }
    }

    /// Bounds a stream; any other call is short.
    fn expires(&mut self, at: Option<Instant>) {
        let at = at.filter(|_| self.method.kind != Kind::Call);
        self.expiry = at.map(|at| Box::pin(sleep_until(at)));
    }

    fn has_expired(&mut self, context: &mut Context<'_>) -> bool {
        self.expiry.as_mut().is_some_and(|expiry| expiry.as_mut().poll(context).is_ready())
    }

    fn has_room(&mut self, caller: Arc<Caller>) -> bool {
        self.place = Place::take(self.method.kind, caller);
        if self.place.is_none() {
            self.method.metrics.shed();
        }
        self.place.is_some()
    }

    fn observe(mut self, response: Response<tonic::body::Body>) -> Response<Answer> {
        pace::give(self.patience());
        // An error that comes before any answer is in the headers; else the end is in the trailers.
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.fail(&status);
            return response.map(|inner| Answer::of(inner, None));
        }
        response.map(|inner| Answer::of(inner, Some(self)))
    }

    fn patience(&self) -> Duration {
        let CallLimits { longest, stall, .. } = self.calls.0.limits;
        if matches!(self.method.kind, Kind::Stream | Kind::Watcher) { stall } else { longest }
    }

    /// The trailers of a stream that ends before its end.
    fn end_early<T>(&mut self, why: Reason) -> Frame<T> {
        let status = status::plain(why);
        self.fail(&status);
        let mut trailers = HeaderMap::new();
        // It holds no text that a header could not.
        let _ = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }

    fn end_by(&mut self, trailers: &HeaderMap) {
        // To read a whole status is to copy the trailers.
        let is_ok = trailers.get(Status::GRPC_STATUS).is_some_and(|code| code == "0");
        match if is_ok { None } else { Status::from_header_map(trailers) } {
            Some(status) => self.fail(&status),
            None => self.succeed(),
        }
    }

    fn succeed(&mut self) {
        let Some(took) = self.note_end(Code::Ok) else { return };
        let CallLog { is_access_log, slow } = self.calls.0.log;
        let (method, duration_ms) = (&*self.method.name, millis(took));
        if slow.is_some_and(|bound| took > bound) {
            self.span.within(|| warn!(rpc.method = method, duration_ms, "slow call"));
        } else if is_access_log {
            self.span.within(|| info!(rpc.method = method, duration_ms, "call"));
        }
    }

    fn fail(&mut self, status: &Status) {
        if self.note_end(status.code()).is_some() {
            self.span.within(|| self.log(status));
        }
    }

    /// How long the call took; `None` where its end was noted before.
    fn note_end(&mut self, code: Code) -> Option<Duration> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let (name, took) = (code_name(code), self.began.elapsed());
        self.span.end(name, is_server_error(code));
        self.method.metrics.answered(name, took);
        Some(took)
    }

    /// One line a failed call. Only what this gateway wrote is in it: a message without `ErrorInfo` is not ours.
    fn log(&self, status: &Status) {
        let info = status.get_details_error_info();
        let about = |key: &str| info.as_ref()?.metadata.get(key).map(String::as_str);
        let reason = info.as_ref().map(|info| info.reason.as_str());
        let message = match status.code() {
            _ if reason.is_some() => status.message(),
            Code::Cancelled => "the caller went away or read no more, or its connection was cut",
            _ => "refused by the gRPC layer",
        };
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    rpc.method = &*self.method.name,
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
        let is_shed =
            [Reason::LocalConcurrency, Reason::CircuitOpen].iter().any(|shed| reason == Some(shed.as_str()));
        match status.code() {
            // There may be thousands a second, which a metric counts.
            _ if is_shed => line!(debug),
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
            self.fail(&Status::cancelled("the caller went away"));
        }
        self.method.metrics.ended();
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn begin() -> Call {
        let second = Duration::from_secs(1);
        let limits = CallLimits { longest: second, stall: second, in_flight: 1, watchers: 1 };
        let metrics = Metrics::new(None).unwrap();
        let calls =
            Calls::new(limits, Access::open(), CancellationToken::new(), &metrics, CallLog::default());
        let caller = calls.0.callers.get(Identity::of_address([127, 0, 0, 1].into()));
        let mut call = Call::begin(Method::new("a/Method", Kind::Call, &metrics), CallSpan::Off, calls);
        assert!(call.has_room(caller) && call.calls.in_flight() == 1);
        call
    }

    #[tokio::test]
    async fn a_call_that_panics_is_answered_and_not_counted_any_more() {
        let call = begin();
        let calls = call.calls.clone();
        let answer = in_time(async { panic!("as a bug would") }, Instant::now() + Duration::from_secs(1));
        let answer = call.observe(answer.await);
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), Code::Internal);
        assert_eq!(calls.in_flight(), 0);
    }
}
