//! What the gateway tells of itself: log lines (JSON where a program reads them, text where a person does; never with
//! PII, whatever the filter), metrics, and traces.

mod calls;
mod lines;
pub mod metrics;
pub mod traces;

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use calls::{CallSpan, CallTracer, in_current_trace};
pub use metrics::{
    Attempt, CallShed, CircuitState, ConnectionRefused, GovernorLoad, MethodMetrics, Metrics, MetricsError,
};
use traces::Traces;
pub use traces::{Origin, SpanCounts, inject_trace, trace_id};

use calls::LayerTracer;
use lines::JsonLines;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::{Identity, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, fmt, reload};

/// What goes to an OpenTelemetry collector, and how; `None`: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Export {
    /// Spans.
    pub traces: Option<Protocol>,
    /// What is counted.
    pub metrics: Option<Protocol>,
}

/// The protocol of `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP with protobuf: the specification's default.
    Http,
}

/// Which lines are written, and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// A level, or target=level, separated by commas.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
    /// Which calls have a line that did not fail.
    pub calls: CallLog,
    /// Whether there are records for an audit, whatever the filter.
    pub is_audit_log: bool,
}

/// The target of records for an audit.
pub const AUDIT: &str = "audit";

/// Which calls have a log line although they did not fail; one that failed always has one, but for those that were refused
/// because there were too many.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallLog {
    /// All of them.
    pub is_access_log: bool,
    /// Those that took longer; `None`: none.
    pub slow: Option<Duration>,
}

impl LogSettings {
    /// The text, where it is a filter.
    pub fn check_filter(text: &str) -> Result<String, &'static str> {
        let error = "must be a level (error, warn, info, debug, trace), or target=level, separated by commas";
        // The parser takes a misspelled level for a target: everything else would be silent.
        let is_word = |part: &str| !part.contains(['=', '[']) && part.trim().parse::<LevelFilter>().is_err();
        if text.split(',').any(is_word) {
            return Err(error);
        }
        text.parse::<EnvFilter>().map(|_| text.to_owned()).map_err(|_| error)
    }
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("must be auto, json or text"),
        }
    }
}

/// What [`init`] set up. To be ended by [`Telemetry::flush`].
#[derive(Debug)]
pub struct Telemetry {
    /// How the export of spans goes.
    pub spans: SpanCounts,
    /// Begins the spans of calls; `None`: nothing is exported.
    pub calls: Option<CallTracer>,
    /// Changes which lines are written.
    pub filter: LogFilter,
    traces: Option<Traces>,
}

impl Telemetry {
    /// Exports what has been recorded so far, within a second.
    pub async fn flush(self) {
        if let Some(traces) = self.traces {
            traces.flush().await;
        }
    }
}

/// Changes the log's filter while the process runs.
#[derive(Clone)]
pub struct LogFilter(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogFilter {
    /// Sets the filter; the error says what is legal.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let text = LogSettings::check_filter(text)?;
        (self.0)(EnvFilter::new(text)).map_err(|error| error.to_string())
    }
}

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogFilter")
    }
}

/// Logs and traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The process has a subscriber already.
    #[error("set up the log: {0}")]
    Log(#[from] TryInitError),
    /// The collector's address or headers make no exporter.
    #[error("set up the export of traces, as the OTEL_* variables say: {0}")]
    Export(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends the process's log lines to standard error and, where a protocol is told, its spans to a collector. To be called
/// once, within the runtime, by the process and not by a test.
pub fn init(settings: &LogSettings, export: Option<Protocol>) -> Result<Telemetry, InitError> {
    let spans = SpanCounts::default();
    let traces = export.map(|protocol| Traces::start(protocol, spans.clone())).transpose()?;
    let recorded = match &traces {
        Some(traces) => {
            let layer = tracing_opentelemetry::layer().with_tracer(LayerTracer(traces.tracer()));
            let layer = layer
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false);
            // The exporter's own transport would record itself without end.
            layer.with_filter(filter_fn(is_own).with_max_level_hint(LevelFilter::DEBUG)).boxed()
        }
        // A layer without a filter would enable every span of every library, and make a call cost nearly twice as much.
        None => Identity::new().with_filter(LevelFilter::OFF).boxed(),
    };

    let is_json = match settings.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&settings.filter));
    let change = LogFilter(Arc::new(move |filter| handle.reload(filter)));
    let usual = lines(is_json, false).with_filter(filter.and(filter_fn(is_line)));
    let is_audit_log = settings.is_audit_log;
    let audit = filter_fn(move |metadata| is_audit_log && metadata.target() == AUDIT);
    let audit = lines(is_json, true).with_filter(audit.with_max_level_hint(LevelFilter::INFO));
    // The layer that knows the spans comes first: the lines ask it for their ids.
    tracing_subscriber::registry().with(recorded).with(usual).with(audit).try_init()?;
    std::panic::set_hook(Box::new(log_panic));
    let calls = traces.as_ref().map(|traces| CallTracer(traces.tracer()));
    Ok(Telemetry { spans, calls, filter: change, traces })
}

/// What writes lines; their target is told only where a collector may tell them apart by it.
fn lines<S>(is_json: bool, shows_target: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = fmt::layer().with_writer(std::io::stderr);
    if is_json {
        lines.fmt_fields(JsonFields::new()).event_format(JsonLines::new(shows_target)).boxed()
    } else {
        lines.with_target(shows_target).with_ansi(std::io::stderr().is_terminal()).boxed()
    }
}

fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
}

/// Below a warning, the libraries write headers, URLs and frames as they are. Spans are no lines: to format their fields
/// would cost every call a quarter of its time.
fn is_line(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && (is_own(metadata) || *metadata.level() <= Level::WARN)
}

/// A message that was formatted may hold a value of a request; a literal may not.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(tracing::field::display);
    let message = panic.payload().downcast_ref::<&'static str>().unwrap_or(&"(formatted, not shown)");
    tracing::error!(location, "a bug: panicked: {message}");
}
