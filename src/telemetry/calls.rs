//! The span of a call. The sampler is asked first: of a call that it leaves out, nothing is made but the ids.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::trace::{
    FutureExt as _, Span as _, SpanBuilder, SpanKind, TraceContextExt as _, Tracer, WithContext,
};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tracing::instrument::Instrumented;
use tracing::{Instrument as _, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::traces::caller_of;

/// Begins the spans of calls. There is one where spans are exported.
#[derive(Clone)]
pub struct CallTracer(pub(super) SdkTracer);

impl fmt::Debug for CallTracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallTracer")
    }
}

/// The span of a call.
pub enum CallSpan {
    /// Nothing is exported.
    Off,
    /// Left out by the sampler. What the call does belongs to its trace all the same, and is left out with it.
    Unsampled(Context),
    /// To be exported.
    Sampled(tracing::Span),
}

impl CallSpan {
    /// Begins a span that is part of the trace that the caller's `traceparent` names, where it names one.
    pub fn begin(tracer: Option<&CallTracer>, method: &str, headers: &HeaderMap) -> Self {
        let Some(CallTracer(tracer)) = tracer else {
            return Self::Off;
        };
        let caller = caller_of(headers).unwrap_or_default();
        let builder = SpanBuilder::from_name("rpc").with_kind(SpanKind::Server);
        let begun = tracer.build_with_context(builder, &caller);
        if !begun.is_recording() {
            return Self::Unsampled(caller.with_span(begun));
        }
        let span = info_span!(
            "rpc",
            otel.name = method,
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = field::Empty,
            otel.status_code = field::Empty,
        );
        // It fails for a span that nobody records.
        let _ = span.set_parent(caller.with_value(Begun(Mutex::new(Some(begun)))));
        Self::Sampled(span)
    }

    /// Does a part of the call's work.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        match self {
            Self::Off => work(),
            Self::Unsampled(context) => {
                let _attached = context.clone().attach();
                work()
            }
            Self::Sampled(span) => span.in_scope(work),
        }
    }

    /// Notes how the call ended.
    pub fn end(&self, code: &'static str, is_server_error: bool) {
        if let Self::Sampled(span) = self {
            span.record("rpc.response.status_code", code);
            if is_server_error {
                span.record("otel.status_code", "ERROR");
            }
        }
    }
}

/// Keeps work that becomes a task of its own in the trace of who begins it.
pub fn in_current_trace<F: Future>(work: F) -> WithContext<Instrumented<F>> {
    work.in_current_span().with_current_context()
}

/// A span that the sampler has taken, on its way to the layer.
struct Begun(Mutex<Option<Span>>);

/// What the layer begins spans by. One that has begun already is not begun again: the sampler would be asked about another
/// trace id.
pub(super) struct LayerTracer(pub(super) SdkTracer);

impl Tracer for LayerTracer {
    type Span = Span;

    fn build_with_context(&self, builder: SpanBuilder, parent: &Context) -> Span {
        let begun = parent.get::<Begun>();
        let begun = begun.and_then(|Begun(span)| span.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(mut span) = begun else {
            return self.0.build_with_context(builder, parent);
        };
        span.update_name(builder.name);
        span.set_attributes(builder.attributes.unwrap_or_default());
        span
    }
}
