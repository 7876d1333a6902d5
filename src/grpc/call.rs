//! What surrounds every call: its span, its place among those in flight, its deadline, and one log line if it fails.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::Service as _;
use tracing::{info, warn};

use super::deadline::Limits;
use super::status::{self, Reason};
use super::stopping::{Requests, Stopping};
use super::{Opened, Server, pace};
use crate::ids::CallerId;
use crate::proto::{self, Message as _};
use crate::telemetry::{CallLog, CallSpan, CallTracer, MethodMetrics, Metrics};

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
    methods: HashMap<Arc<str>, Arc<Method>>,
    other: Arc<Method>,
    in_flight: [AtomicUsize; 3],
    /// Those who are connected.
    callers: Mutex<HashMap<CallerId, Weak<Caller>>>,
    end_streams: CancellationToken,
    tracer: OnceLock<CallTracer>,
    log: CallLog,
}

/// A method as spans, metrics and log lines call it, and what counts its calls.
struct Method {
    name: Arc<str>,
    kind: Kind,
    metrics: MethodMetrics,
}

impl Method {
    fn new(name: &str, kind: Kind, metrics: &Metrics) -> Arc<Self> {
        let name = name.into();
        let metrics = metrics.of_method(&name);
        Arc::new(Self { name, kind, metrics })
    }
}

/// What a call counts among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// This contract's, but for watchers.
    Call,
    /// One of those that is answered in many parts.
    Stream,
    Watcher,
    /// Health and reflection, which are never refused: a restart would be the answer to a health check that fails.
    Other,
}

impl Kind {
    /// Its counter.
    fn index(self) -> usize {
        match self {
            Self::Call | Self::Stream => 0,
            Self::Watcher => 1,
            Self::Other => 2,
        }
    }
}

impl Calls {
    /// `end_streams` ends every stream, reflection's and a health watcher's among them: a graceful shutdown would wait for
    /// them for ever.
    pub fn new(limits: CallLimits, end_streams: CancellationToken, metrics: &Metrics, log: CallLog) -> Self {
        let (methods, other) = (methods(metrics), Method::new("_OTHER", Kind::Other, metrics));
        let (in_flight, callers, tracer) = Default::default();
        Self(Arc::new(Shared { limits, methods, other, in_flight, callers, end_streams, tracer, log }))
    }

    /// Gives every call from now on a span. The first tracer stays.
    pub fn trace_by(&self, tracer: CallTracer) {
        let _ = self.0.tracer.set(tracer);
    }

    /// One for all connections of a caller.
    fn caller(&self, id: CallerId) -> Arc<Caller> {
        let mut callers = self.0.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = callers.entry(id).or_default();
        known.upgrade().unwrap_or_else(|| {
            let caller = Arc::new(Caller { id, in_flight: AtomicUsize::new(0), calls: self.clone() });
            *known = Arc::downgrade(&caller);
            caller
        })
    }

    /// How many calls have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.iter().map(|kind| kind.load(Ordering::Relaxed)).sum()
    }
}

/// Who is connected, and the calls that it has in flight, watchers apart.
struct Caller {
    id: CallerId,
    in_flight: AtomicUsize,
    calls: Calls,
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut callers = self.calls.0.callers.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have come back meanwhile.
        if callers.get(&self.id).is_some_and(|known| known.strong_count() == 0) {
            callers.remove(&self.id);
        }
    }
}

/// The paths of this contract's methods: the values that the span's `rpc.method` may take.
fn methods(metrics: &Metrics) -> HashMap<Arc<str>, Arc<Method>> {
    let set = prost_types::FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("{}.{}/{}", file.package(), service.name(), method.name());
                let kind = match method.name() {
                    "WatchParticipants" => Kind::Watcher,
                    _ if method.server_streaming() => Kind::Stream,
                    _ => Kind::Call,
                };
                let method = Method::new(&path, kind, metrics);
                methods.insert(method.name.clone(), method);
            }
        }
    }
    methods
}

/// The services, as one caller meets them: gives every call a span, a deadline and an end that is logged.
#[derive(Clone)]
pub struct CallService {
    calls: Calls,
    participants: Server,
    others: Routes,
    caller: Arc<Caller>,
}

impl CallService {
    /// `others` are health and reflection.
    pub fn new(calls: Calls, participants: Server, others: Routes) -> Self {
        let caller = calls.caller(CallerId::Unknown);
        Self { calls, participants, others, caller }
    }

    /// For the calls of one caller.
    pub fn called_by(&self, caller: CallerId) -> Self {
        Self { caller: self.calls.caller(caller), ..self.clone() }
    }

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
        let shared = &self.calls.0;
        let limits = Limits::of(request.headers(), shared.limits.longest);
        let ours = shared.methods.get(request.uri().path().trim_start_matches('/'));
        let method = ours.unwrap_or(&shared.other).clone();
        let kind = method.kind;
        let span = CallSpan::begin(shared.tracer.get(), &method.name, request.headers());
        let call = Call::begin(method, span, &self.caller);
        let opened = Opened::new(limits.deadline, self.caller.id, request.headers());
        request.extensions_mut().insert(opened);
        let answer = call.place.is_some().then(|| self.dispatch(kind, request));
        async move {
            let response = match answer {
                Some(answer) => {
                    let mut answer = pin!(in_time(answer, limits.fires));
                    poll_fn(|context| call.span.within(|| answer.as_mut().poll(context))).await
                }
                None => status::shed().into_http(),
            };
            Ok(call.observe(response))
        }
    }

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
    /// None where there was none left for it.
    place: Option<Place>,
    calls: Calls,
}

/// A place among the calls in flight.
struct Place {
    kind: Kind,
    caller: Arc<Caller>,
}

impl Place {
    /// A caller may have as many calls in flight as places are left, so that nobody takes them all.
    fn take(kind: Kind, caller: &Arc<Caller>) -> Option<Self> {
        let CallLimits { in_flight, watchers, .. } = caller.calls.0.limits;
        let most = [in_flight, watchers, usize::MAX][kind.index()];
        let place = Self { kind, caller: caller.clone() };
        let all = caller.calls.0.in_flight[kind.index()].fetch_add(1, Ordering::Relaxed);
        let own = place.of_caller().map_or(0, |own| own.fetch_add(1, Ordering::Relaxed));
        (all.saturating_add(own) < most).then_some(place)
    }

    /// Where the caller's own share counts.
    fn of_caller(&self) -> Option<&AtomicUsize> {
        matches!(self.kind, Kind::Call | Kind::Stream).then_some(&self.caller.in_flight)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(own) = self.of_caller() {
            own.fetch_sub(1, Ordering::Relaxed);
        }
        self.caller.calls.0.in_flight[self.kind.index()].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Call {
    fn begin(method: Arc<Method>, span: CallSpan, caller: &Arc<Caller>) -> Self {
        let place = Place::take(method.kind, caller);
        method.metrics.began();
        if place.is_none() {
            method.metrics.shed();
        }
        Self { method, span, began: Instant::now(), ended: false, place, calls: caller.calls.clone() }
    }

    fn observe(mut self, response: Response<tonic::body::Body>) -> Response<Answer> {
        pace::give(self.patience());
        // An error that comes before any answer is in the headers; else the end is in the trailers.
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.fail(&status);
            return response.map(|inner| Answer {
                inner,
                call: None,
                rest: Bytes::new(),
                stopping: Stopping::default(),
            });
        }
        response.map(|inner| Answer {
            inner,
            call: Some(self),
            rest: Bytes::new(),
            stopping: Stopping::default(),
        })
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

pin_project! {
    /// An answer's body, which is given in slices, notes the status in its trailers and ends when the gateway stops.
    pub struct Answer {
        #[pin]
        inner: tonic::body::Body,
        // None where the call has ended with the headers.
        call: Option<Call>,
        // What is there already of a part that is longer than a slice.
        rest: Bytes,
        stopping: Stopping,
    }
}

impl Answer {
    /// As the gRPC protocol asks for: a client that does not speak it could not read a gRPC status.
    fn to_no_call(status: StatusCode) -> Response<Self> {
        let inner = tonic::body::Body::empty();
        let mut response =
            Response::new(Self { inner, call: None, rest: Bytes::new(), stopping: Stopping::default() });
        *response.status_mut() = status;
        response
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = <tonic::body::Body as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let Some(call) = this.call else { return this.inner.poll_frame(context) };
        if call.ended {
            return Poll::Ready(None);
        }
        if !this.rest.is_empty() {
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(Frame::data(next_slice(this.rest)))));
        }
        // A stream's work is done while it is polled, and belongs to the call's span.
        let inner = this.inner;
        let poll = AssertUnwindSafe(|| call.span.within(|| inner.poll_frame(context)));
        let Ok(polled) = catch_unwind(poll) else {
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(call.end_early(Reason::Internal))));
        };
        let Poll::Ready(frame) = polled else {
            pace::wait();
            std::task::ready!(this.stopping.poll(&call.calls.0.end_streams, context));
            pace::give(call.patience());
            return Poll::Ready(Some(Ok(call.end_early(Reason::ShuttingDown))));
        };
        pace::give(call.patience());
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            call.end_by(trailers);
        }
        let rest = this.rest;
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| first_slice(data, rest)))))
    }

    fn is_end_stream(&self) -> bool {
        let has_ended = self.call.as_ref().is_some_and(|call| call.ended);
        self.rest.is_empty() && (has_ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// hyper hands on all that it is given as soon as the caller has room for a byte, and no longer waits for the caller then:
/// with more than this at once, its memory would be the caller's for as long as the connection lasts.
const SLICE: usize = 16 * 1024;

fn first_slice(data: Bytes, rest: &mut Bytes) -> Bytes {
    if data.len() <= SLICE {
        return data;
    }
    *rest = data;
    rest.split_to(SLICE)
}

fn next_slice(rest: &mut Bytes) -> Bytes {
    if rest.len() > SLICE {
        return rest.split_to(SLICE);
    }
    // The last is a copy: it may stay after the call, and would keep the memory of all before it.
    Bytes::copy_from_slice(&std::mem::take(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(in_flight: usize) -> Calls {
        let second = Duration::from_secs(1);
        let limits = CallLimits { longest: second, stall: second, in_flight, watchers: 1 };
        let metrics = Metrics::new(None).unwrap();
        Calls::new(limits, CancellationToken::new(), &metrics, CallLog::default())
    }

    fn begin(caller: &Arc<Caller>) -> Call {
        let metrics = Metrics::new(None).unwrap();
        Call::begin(Method::new("a/Method", Kind::Call, &metrics), CallSpan::Off, caller)
    }

    fn peer(number: u8) -> CallerId {
        CallerId::Peer([127, 0, 0, number].into())
    }

    #[tokio::test]
    async fn a_call_that_panics_is_answered_and_not_counted_any_more() {
        let calls = calls(1);
        for _ in 0..3 {
            let call = begin(&calls.caller(peer(1)));
            assert!(call.place.is_some() && calls.in_flight() == 1);
            let answer = in_time(async { panic!("as a bug would") }, Instant::now() + Duration::from_secs(1));
            let answer = call.observe(answer.await);
            assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), Code::Internal);
            assert_eq!(calls.in_flight(), 0);
        }
    }

    #[tokio::test]
    async fn a_stream_that_panics_ends_with_a_status() {
        let calls = calls(1);
        let parts = futures_util::stream::poll_fn(|_| -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            panic!("as a bug would")
        });
        let body = tonic::body::Body::new(http_body_util::StreamBody::new(parts));
        let answer = begin(&calls.caller(peer(1))).observe(Response::new(body));
        let trailers =
            http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().trailers().cloned();
        assert_eq!(Status::from_header_map(&trailers.unwrap()).unwrap().code(), Code::Internal);
        assert_eq!(calls.in_flight(), 0);
    }

    #[tokio::test]
    async fn what_is_refused_takes_no_place() {
        let calls = calls(1);
        let caller = calls.caller(peer(1));
        let first = begin(&caller);
        let refused: Vec<_> = (0..3).map(|_| begin(&caller)).collect();
        assert!(first.place.is_some() && refused.iter().all(|call| call.place.is_none()));
        assert_eq!(calls.in_flight(), 1);
        drop(first);
        assert!(begin(&caller).place.is_some());
    }

    #[tokio::test]
    async fn a_callers_connections_share_its_places_and_nobody_is_remembered() {
        let calls = calls(8);
        let own: Vec<_> = (0..5).map(|_| begin(&calls.caller(peer(1)))).collect();
        assert_eq!(own.iter().filter(|call| call.place.is_some()).count(), 4);
        let others: Vec<_> = (0..3).map(|_| begin(&calls.caller(peer(2)))).collect();
        assert_eq!(others.iter().filter(|call| call.place.is_some()).count(), 2);
        assert_eq!(calls.0.callers.lock().unwrap().len(), 2);
        drop((own, others));
        assert_eq!(calls.in_flight(), 0);
        assert!(calls.0.callers.lock().unwrap().is_empty());
    }

    #[test]
    fn the_methods_are_the_contracts() {
        let methods = methods(&Metrics::new(None).unwrap());
        assert_eq!(methods["participant.v1.ParticipantService/GetParticipant"].kind, Kind::Call);
        assert_eq!(methods["participant.v1.ParticipantService/WatchParticipants"].kind, Kind::Watcher);
        assert_eq!(methods.len(), 9);
    }

    #[test]
    fn a_long_part_is_given_in_slices() {
        for length in [1, SLICE, SLICE + 1, 2 * SLICE, 3 * SLICE - 1] {
            let part: Bytes = (0..=u8::MAX).cycle().take(length).collect();
            let mut rest = Bytes::new();
            let mut slices = vec![first_slice(part.clone(), &mut rest)];
            while !rest.is_empty() {
                slices.push(next_slice(&mut rest));
            }
            assert!(slices.iter().all(|slice| slice.len() <= SLICE));
            assert_eq!(slices.len(), length.div_ceil(SLICE));
            assert_eq!(slices.concat(), part);
            // Alone, the last keeps nothing else's memory.
            drop((slices.drain(..slices.len() - 1), part));
            assert!(slices[0].is_unique(), "{length}");
        }
    }
}
