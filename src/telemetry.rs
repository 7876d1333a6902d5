//! What the gateway tells of itself: log lines (JSON where a program reads them, text where a person does; never with
//! PII, whatever the filter), and metrics.

mod metrics;

use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;
use std::str::FromStr;

pub use metrics::{Attempt, METRICS, Metrics, MetricsError, Row, markdown};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, fmt};

/// Which lines are written, and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// A level, or target=level, separated by commas.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl LogSettings {
    /// The text, where it is a filter.
    pub fn check_filter(text: &str) -> Result<String, &'static str> {
        let error = "must be a level (error, warn, info, debug, trace), or target=level, separated by commas";
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

/// Sends the process's log lines to standard error. To be called once, by the process and not by a test.
pub fn init(settings: &LogSettings) -> Result<(), TryInitError> {
    let is_terminal = std::io::stderr().is_terminal();
    let is_json = match settings.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = if is_json {
        lines.json().flatten_event(true).with_span_list(false).with_current_span(false).boxed()
    } else {
        lines.with_ansi(is_terminal).boxed()
    };
    let filter = EnvFilter::new(&settings.filter).and(filter_fn(holds_no_pii));
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Below a warning, the libraries write headers, URLs and frames as they are.
fn holds_no_pii(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_CRATE_NAME")) || *metadata.level() <= Level::WARN
}

/// A message that was formatted may hold a value of a request; a literal may not.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(tracing::field::display);
    let message = panic.payload().downcast_ref::<&'static str>().unwrap_or(&"(formatted, not shown)");
    tracing::error!(location, "a bug: panicked: {message}");
}
