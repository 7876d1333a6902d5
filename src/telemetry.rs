//! Log lines: JSON where a program reads them, text where a person does.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::filter::EnvFilter;
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
    tracing_subscriber::registry().with(lines.with_filter(EnvFilter::new(&settings.filter))).try_init()
}
