//! JSON log lines that tell which trace they belong to.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::AUDIT;
use super::traces::current_ids;

/// The library's JSON, with `trace_id` and `span_id` at its end where a span is recorded.
pub(super) struct JsonLines(Format<Json>);

impl JsonLines {
    pub(super) fn new(shows_target: bool) -> Self {
        let json = Format::default().json().with_target(shows_target).flatten_event(true);
        Self(json.with_span_list(false).with_current_span(false))
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        // A record for an audit may be written after its call, and says itself which trace it belongs to.
        let ids = current_ids().filter(|_| event.metadata().target() != AUDIT);
        match (ids, line.trim_end().strip_suffix('}')) {
            (Some((trace, span)), Some(open)) => {
                writeln!(writer, r#"{open},"trace_id":"{trace}","span_id":"{span}"}}"#)
            }
            _ => writer.write_str(&line),
        }
    }
}
