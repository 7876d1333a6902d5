//! Spans to an OpenTelemetry collector, and the trace that a caller began.
//!
//! Export never costs a call anything: a span that finds the queue full is dropped and counted, and so is a batch that the
//! collector does not take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, trace};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::Protocol;

/// The OpenTelemetry specification's defaults for batches.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(5);
/// One export, a collector that hangs included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The end of the process waits two seconds for a collector: one for the metrics and, after them, one for the spans.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// One kind of span, as the documentation lists it.
#[derive(Debug)]
pub struct SpanRow {
    /// Its name, or what its name is made of.
    pub name: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// What it is a child of.
    pub parent: &'static str,
    /// Every attribute that it may have.
    pub attributes: &'static [&'static str],
}

/// Every kind of span. A test holds what a collector gets against it.
pub const SPANS: &[SpanRow] = &[
    SpanRow {
        name: "`participant.v1.ParticipantService/…`, one a call; `_OTHER` for methods of other services",
        kind: "server",
        parent: "the caller's `traceparent`, where it is valid",
        attributes: &["rpc.system.name", "rpc.method", "rpc.response.status_code"],
    },
    SpanRow {
        name: "`cache load`, where a read had to be loaded",
        kind: "internal",
        parent: "the call that began it, or a refresh",
        attributes: &[],
    },
    SpanRow {
        name: "`cache refresh`, where an answer past its lifetime was told and is read anew",
        kind: "internal",
        parent: "none; it has a link to the call",
        attributes: &[],
    },
    SpanRow {
        name: "`GET /v1/Conversations/{ConversationSid}/Participants/{Sid}` and the like, one an attempt",
        kind: "client",
        parent: "the load, or the call",
        attributes: &[
            "http.request.method",
            "url.template",
            "server.address",
            "server.port",
            "http.response.status_code",
            "http.request.resend_count",
            "error.type",
            "twilio.request_id",
            "twilio.concurrent_requests",
        ],
    },
];

/// The kinds of spans as rows of a Markdown table.
pub fn markdown() -> String {
    let mut table =
        "| span | kind | parent | attributes, each where it is known |\n|---|---|---|---|\n".to_owned();
    for SpanRow { name, kind, parent, attributes } in SPANS {
        let attributes: Vec<String> = attributes.iter().map(|name| format!("`{name}`")).collect();
        let attributes = if attributes.is_empty() { "–".to_owned() } else { attributes.join(", ") };
        table.push_str(&format!("| {name} | {kind} | {parent} | {attributes} |\n"));
    }
    table
}

/// Owns the export of spans; to be ended by [`Traces::flush`].
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    queue: mpsc::Sender<Message>,
    exporting: JoinHandle<()>,
}

/// How many spans reached the collector, and how many did not.
#[derive(Clone, Debug, Default)]
pub struct SpanCounts {
    exported: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl SpanCounts {
    /// Spans that the collector took.
    pub fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Spans that found the queue full, or that the collector did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

enum Message {
    Span(Box<SpanData>),
    Flush(oneshot::Sender<()>),
}

impl Traces {
    /// Begins to export, as the standard `OTEL_*` variables say; to be called within the runtime.
    pub(super) fn start(protocol: Protocol, counts: SpanCounts) -> Result<Self, ExporterBuildError> {
        let mut exporter = match protocol {
            Protocol::Grpc => SpanExporter::builder().with_tonic().build()?,
            Protocol::Http => SpanExporter::builder().with_http().build()?,
        };
        let resource = Resource::builder().build();
        exporter.set_resource(&resource);
        let (queue, spans) = mpsc::channel(QUEUE);
        let exporting = tokio::spawn(export(exporter, spans, counts.clone()));
        let processor = Queue { queue: queue.clone(), counts };
        let provider =
            SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
        Ok(Self { provider, queue, exporting })
    }

    pub(super) fn tracer(&self) -> opentelemetry_sdk::trace::SdkTracer {
        self.provider.tracer(env!("CARGO_PKG_NAME"))
    }

    /// Exports what has been recorded so far, within a second.
    pub async fn flush(self) {
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            // Where the exporting task has ended, there is nothing left to wait for.
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                let _ = is_done.await;
            }
        };
        let _ = timeout(FLUSH_TIMEOUT, flushed).await;
        self.exporting.abort();
    }
}

/// Takes ended spans without ever waiting.
#[derive(Debug)]
struct Queue {
    queue: mpsc::Sender<Message>,
    counts: SpanCounts,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let is_sampled = span.span_context.is_sampled();
        if is_sampled && self.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

async fn export(exporter: SpanExporter, mut spans: mpsc::Receiver<Message>, counts: SpanCounts) {
    let mut batch: Vec<SpanData> = Vec::with_capacity(BATCH);
    let mut due = Instant::now() + DELAY;
    loop {
        let message = tokio::select! {
            message = spans.recv() => message,
            () = sleep_until(due) => None,
        };
        let (is_flush, done) = match message {
            Some(Message::Span(span)) => {
                batch.push(*span);
                (batch.len() >= BATCH, None)
            }
            Some(Message::Flush(done)) => (true, Some(done)),
            None if spans.is_closed() && spans.is_empty() => return,
            None => (true, None),
        };
        if is_flush {
            send(&exporter, std::mem::take(&mut batch), &counts).await;
            due = Instant::now() + DELAY;
        }
        if let Some(done) = done {
            // Whoever asked may have run out of patience.
            let _ = done.send(());
        }
    }
}

async fn send(exporter: &SpanExporter, batch: Vec<SpanData>, counts: &SpanCounts) {
    let size = batch.len() as u64;
    if size == 0 {
        return;
    }
    let is_taken = matches!(timeout(EXPORT_TIMEOUT, exporter.export(batch)).await, Ok(Ok(())));
    let count = if is_taken { &counts.exported } else { &counts.dropped };
    count.fetch_add(size, Ordering::Relaxed);
}

/// A span of this process that another one can point to; `None`: one that nobody gets. Behind a pointer, because every cached
/// answer has one.
#[derive(Clone, Debug)]
pub struct Origin(Option<Arc<SpanContext>>);

impl Origin {
    /// The span that is entered now.
    pub fn current() -> Self {
        let context = tracing::Span::current().context();
        let span = context.span();
        Self(span.span_context().is_sampled().then(|| Arc::new(span.span_context().clone())))
    }

    /// Makes the span that is entered now point here.
    pub fn link(&self) {
        if let Some(origin) = &self.0 {
            tracing::Span::current().add_link(SpanContext::clone(origin));
        }
    }
}

/// What the caller's `traceparent` names, where it names a span.
pub(super) fn caller_of(headers: &HeaderMap) -> Option<Context> {
    struct Headers<'a>(&'a HeaderMap);
    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(http::HeaderName::as_str).collect()
        }
    }
    if !headers.contains_key("traceparent") {
        return None;
    }
    let caller = TraceContextPropagator::new().extract(&Headers(headers));
    // An empty parent would tear the trace apart.
    let is_valid = caller.span().span_context().is_valid();
    is_valid.then_some(caller)
}

/// Adds the `traceparent` of the span that is entered now.
pub fn inject_trace(headers: &mut HeaderMap) {
    struct Headers<'a>(&'a mut HeaderMap);
    impl Injector for Headers<'_> {
        fn set(&mut self, key: &str, value: String) {
            if let (Ok(name), Ok(value)) =
                (http::HeaderName::try_from(key), http::HeaderValue::try_from(value))
            {
                self.0.insert(name, value);
            }
        }
    }
    TraceContextPropagator::new().inject_context(&tracing::Span::current().context(), &mut Headers(headers));
}

/// The trace of the span that is entered now, for a record that is written later.
pub fn trace_id() -> Option<String> {
    current_ids().map(|(trace, _)| trace.to_string())
}

/// The ids of the span that is entered now, for log lines.
pub(super) fn current_ids() -> Option<(trace::TraceId, trace::SpanId)> {
    let context = Context::current();
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid().then(|| (ids.trace_id(), ids.span_id()))
}
