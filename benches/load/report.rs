//! Tables of medians, ranges and ratios.

use std::fmt::Write as _;

use crate::rounds::{Measured, Round, Section};

/// A figure of a round, by the head of its column.
type Column = (&'static str, fn(&Round) -> f64);

const COLUMNS: [Column; 9] = [
    ("calls/s at peak", |round| round.calls_a_second),
    ("calls per CPU second at peak", |round| round.calls_a_cpu_second),
    ("p99 at peak, µs", |round| round.p99_at_peak),
    ("alone p50, µs", |round| round.alone_p50),
    ("alone CPU, µs/call", |round| round.alone_cpu),
    ("p50, µs", |round| round.p50),
    ("p99, µs", |round| round.p99),
    ("p99.9, µs", |round| round.p999),
    ("CPU, µs/call", |round| round.cpu),
];

pub(crate) fn tables(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections {
        writeln!(text, "{}, fixed rate {}/s", section.title, section.rate).expect("a string takes all");
        let base = &section.measured[0];
        for candidate in &section.measured {
            writeln!(text, "  {}, RSS {:.1} MiB", candidate.name, candidate.resident_kib / 1024.0)
                .expect("a string takes all");
            for (name, figure) in COLUMNS {
                let [min, median, max] = range(candidate.rounds.iter().map(figure));
                let ratio = ratio(candidate, base, figure);
                writeln!(text, "    {name:<30} {median:>9.1} ({min:.1}–{max:.1})  {ratio:.2}")
                    .expect("a string takes all");
            }
        }
    }
    text
}

/// The median of the rounds' ratios.
pub(crate) fn ratio(candidate: &Measured, base: &Measured, figure: fn(&Round) -> f64) -> f64 {
    let ratios = candidate.rounds.iter().zip(&base.rounds).map(|(own, base)| figure(own) / figure(base));
    range(ratios)[1]
}

/// Minimum, median, maximum.
pub(crate) fn range(figures: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}
