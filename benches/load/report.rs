//! docs/performance.md: tables of medians, ranges and ratios, each part between the marks that it stands between there.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use participant_gateway::grpc::code_name;
use tonic::Code;

use crate::client::{CONNECTIONS, STREAMS, Status};
use crate::faults::{BrownOut, Faults, Outcome, percentile};
use crate::footprint::Footprint;
use crate::rounds::{Measured, Round, Section};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance.md");
const TITLE: &str = "# Performance\n";

/// A figure of a round, by the head of its row.
type Row = (&'static str, fn(&Round) -> f64);

const CALLS_A_CPU_SECOND: Row = ("at peak: calls per CPU second", |round| round.calls_a_cpu_second);
const P99: Row = ("at the fixed rate: p99, µs", |round| round.p99);
const ROWS: [Row; 10] = [
    CALLS_A_CPU_SECOND,
    ("at peak: calls per second", |round| round.calls_a_second),
    ("at peak: the server's core busy, %", |round| round.busy_at_peak),
    ("at peak: p99, µs", |round| round.p99_at_peak),
    ("alone: p50, µs", |round| round.alone_p50),
    ("alone: CPU, µs a call", |round| round.alone_cpu),
    ("at the fixed rate: p50, µs", |round| round.p50),
    P99,
    ("at the fixed rate: p99.9, µs", |round| round.p999),
    ("at the fixed rate: CPU, µs a call", |round| round.cpu),
];

/// A row of the table of targets: what, the target, what was measured, and whether that is enough.
type Target = (String, &'static str, String, bool);

/// The part about reads.
pub(crate) fn reads(sections: &[Section]) -> String {
    let mut text = format!(
        "## Reads\n\n\
         At peak {CONNECTIONS} connections × {STREAMS} streams call again as soon as they are answered; alone is one call after \
         the other; at the fixed rate calls begin whether or not others are answered, and a call's time counts from when it \
         was due. A cell has the median of the rounds, their range, and behind × the median of the rounds' ratios to the first \
         column. CPU is that of the server's process. Traces of 1 % and metrics every 5 seconds go to a collector on \
         loopback. {}\n\n",
        provenance("cargo bench --bench load -- reads")
    );
    text += &targets(&sections.iter().flat_map(read_targets).collect::<Vec<_>>());
    for section in sections {
        text += &table(section);
    }
    if sections.iter().all(|section| !is_envoy(section)) {
        text += "\nNothing was compared with Envoy: `ENVOY` did not name its binary.\n";
    }
    text
}

fn is_envoy(section: &Section) -> bool {
    section.measured[0].name.starts_with("Envoy")
}

fn read_targets(section: &Section) -> Vec<Target> {
    let [base, rest @ ..] = section.measured.as_slice() else { return Vec::new() };
    let mut rows = Vec::new();
    for (candidate, is_quiet) in rest.iter().zip([true, false]) {
        let mut push = |what: &str, target, value: f64, is_met| {
            let what = format!("{}, {}: {what}, ratio to {}", section.title, candidate.name, base.name);
            rows.push((what, target, format!("{value:.2}"), is_met));
        };
        let (calls, p99) = (ratio(candidate, base, CALLS_A_CPU_SECOND.1), ratio(candidate, base, P99.1));
        match (is_envoy(section), base.name.starts_with("bare"), is_quiet) {
            (true, ..) => push("calls per CPU second", "≥ 3", calls, calls >= 3.0),
            (_, true, true) => {
                push("calls per CPU second", "≥ 0.95", calls, calls >= 0.95);
                push("p99 at the fixed rate", "≤ 1.25", p99, p99 <= 1.25);
            }
            (_, true, false) => {
                push("calls per CPU second", "≥ 0.85", calls, calls >= 0.85);
                push("p99 at the fixed rate", "≤ 1.25", p99, p99 <= 1.25);
            }
            (false, false, _) => {}
        }
    }
    rows
}

fn table(section: &Section) -> String {
    let (mut text, base) = (format!("\n### {}\n\n|", section.title), &section.measured[0]);
    for candidate in &section.measured {
        write!(text, " | {}", candidate.name).expect("a string takes all");
    }
    text += &format!(" |\n|---{}|\n", "|---".repeat(section.measured.len()));
    for (name, figure) in ROWS {
        let name = name.replace("the fixed rate", &format!("{} calls/s", number(section.rate)));
        write!(text, "| {name}").expect("a string takes all");
        for candidate in &section.measured {
            let [min, median, max] = range(candidate.rounds.iter().map(figure)).map(number);
            write!(text, " | {median} ({min}–{max})").expect("a string takes all");
            if !std::ptr::eq(candidate, base) {
                write!(text, " ×{:.2}", ratio(candidate, base, figure)).expect("a string takes all");
            }
        }
        text += " |\n";
    }
    let row = |name: &str, figure: fn(&Measured) -> String| {
        let cells: Vec<String> = section.measured.iter().map(figure).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    };
    text += &row("resident afterwards, MiB", |one| format!("{:.1}", one.resident_mib));
    text + &row("calls that failed", |one| number(one.rounds.iter().map(|round| round.failed).sum()))
}

/// The part about start and memory.
pub(crate) fn footprint(figures: &Footprint) -> String {
    let (start, idle) = (spread(&figures.start_ms), spread(&figures.idle_mib));
    let entry = spread(&figures.bytes_an_entry);
    let mut text = format!(
        "## Start and memory\n\n\
         A start counts from before the process is made to the answer of its first call, a read from Twilio on loopback; idle is \
         the resident memory after it. A cached participant has {} encoded bytes; its memory is the growth of the resident \
         size, divided, while {} participants are read, each of which is served from the cache afterwards. {}\n\n",
        figures.encoded_bytes,
        number(figures.entries as f64),
        provenance("cargo bench --bench load -- footprint")
    );
    text += &targets(&[
        ("start to first answered call, ms".into(), "≤ 20", format!("{:.1}", start[1]), start[1] <= 20.0),
        ("idle process, MiB".into(), "≤ 20", format!("{:.1}", idle[1]), idle[1] <= 20.0),
        ("memory of a cached participant, bytes".into(), "≤ 1,024", number(entry[1]), entry[1] <= 1024.0),
    ]);
    text += "\n| | median | min | max |\n|---|---|---|---|\n";
    for (name, [min, median, max]) in [
        ("gateway: start to first answered call, ms", start),
        ("bare tonic: the same", spread(&figures.bare_start_ms)),
        ("gateway: idle, MiB", idle),
        ("bare tonic: the same", spread(&figures.bare_idle_mib)),
        ("a cached participant, bytes", entry),
    ] {
        writeln!(text, "| {name} | {median:.1} | {min:.1} | {max:.1} |").expect("a string takes all");
    }
    text
}

/// The part about what goes wrong with Twilio.
pub(crate) fn faults(faults: &Faults) -> String {
    let Faults { failing, offered, brown_out } = faults;
    let mut text = format!(
        "## While Twilio fails\n\n\
         Calls begin at a fixed rate, with a deadline of 2 seconds, and each reads another participant, so that no cache helps. \
         Twilio answers after 20 ms. {}\n\n",
        provenance("cargo bench --bench load -- faults")
    );
    text += &fault_targets(faults);
    text += "\n### Part of Twilio's answers is 503\n\n";
    text += &format!("{OUTCOME_HEAD} requests a call |\n{OUTCOME_LINE}---|\n");
    for one in failing {
        text += &format!("| {} %{} {:.2} |\n", one.percent, outcome(&one.outcome), one.requests_a_call);
    }
    text += "\n### Twilio answers 20 requests at a time, which is 1,000 a second, and 429 beyond\n\n";
    text += &format!("{OUTCOME_HEAD} goodput |\n{OUTCOME_LINE}---|\n");
    for one in offered {
        text += &format!("| {} × capacity{} {} |\n", one.times, outcome(&one.outcome), number(one.goodput));
    }
    text += &format!("\n### Every answer 30 s late, for 30 s\n\n{OUTCOME_HEAD}\n{OUTCOME_LINE}\n");
    let BrownOut { before, during, after, recovery: _, growth_mib } = brown_out;
    for (name, one) in [("before", before), ("during", during), ("after", after)] {
        text += &format!("| {name}{}\n", outcome(one));
    }
    text += &format!("\nThe resident memory grew by {growth_mib:.1} MiB. ");
    text + "Normal is an answer within four times the 99 % of before.\n"
}

fn fault_targets(faults: &Faults) -> String {
    let Faults { failing, offered, brown_out } = faults;
    let requests = failing.iter().map(|one| one.requests_a_call).fold(0.0, f64::max);
    let peak = offered.iter().map(|one| one.goodput).fold(0.0, f64::max);
    let part = offered.last().map_or(0.0, |one| one.goodput / peak);
    let seconds = brown_out.recovery.as_secs_f64();
    targets(&[
        ("requests to Twilio for a call, at most".into(), "≤ 1.2", format!("{requests:.2}"), requests <= 1.2),
        ("goodput at 5 × capacity, part of its peak".into(), "≥ 0.9", format!("{part:.2}"), part >= 0.9),
        ("from a brown-out's end back to normal, s".into(), "≤ 5", format!("{seconds:.1}"), seconds <= 5.0),
    ])
}

const OUTCOME_HEAD: &str = "| | answered/s | p50, ms | p99, ms | failed/s | p50, ms | p99, ms | with |";
const OUTCOME_LINE: &str = "|---|---|---|---|---|---|---|---|";

/// The cells after the first.
fn outcome(outcome: &Outcome) -> String {
    let millis = |times: &[Duration], percent| percentile(times, percent).as_secs_f64() * 1000.0;
    let mut codes: Vec<String> = outcome
        .codes
        .iter()
        .map(|(status, count)| match status {
            Status::Code(code) => {
                format!("{} {}", number(*count as f64), code_name(Code::from(i32::from(*code))))
            }
            Status::Cut => format!("{} cut", number(*count as f64)),
        })
        .collect();
    if outcome.late > 0 {
        codes.push(format!("{} too late", number(outcome.late as f64)));
    }
    let (good, failed) = (&outcome.good, &outcome.failed);
    format!(
        " | {} | {:.1} | {:.1} | {} | {:.1} | {:.1} | {} |",
        number(good.len() as f64 / outcome.seconds),
        millis(good, 50.0),
        millis(good, 99.0),
        number(failed.len() as f64 / outcome.seconds),
        millis(failed, 50.0),
        millis(failed, 99.0),
        codes.join(", ")
    )
}

fn targets(rows: &[Target]) -> String {
    let mut text = String::from("| figure | target | measured | |\n|---|---|---|---|\n");
    for (what, target, measured, is_met) in rows {
        let verdict = if *is_met { "met" } else { "**missed**" };
        writeln!(text, "| {what} | {target} | {measured} | {verdict} |").expect("a string takes all");
    }
    text
}

/// What was measured, how and where.
fn provenance(command: &str) -> String {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let mut commit = output("git", &["rev-parse", "--short", "HEAD"]);
    if !output("git", &["status", "--porcelain", "--", "src", "Cargo.toml", "Cargo.lock"]).is_empty() {
        commit += " with changes";
    }
    let processors = std::fs::read_to_string("/proc/cpuinfo").expect("/proc");
    let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
    format!("`{command}` at commit {commit}, on a machine of {cores} cores.")
}

/// Puts the part in place of the one of this name, or at the end.
pub(crate) fn write(part: &str, text: &str) {
    let (begin, end) = (format!("<!-- {part}: begin -->\n"), format!("<!-- {part}: end -->\n"));
    let file = Path::new(FILE);
    let old = std::fs::read_to_string(file).unwrap_or_else(|_| TITLE.to_owned());
    let new = match (old.split_once(&begin), old.split_once(&end)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{begin}{text}{end}{after}"),
        _ => format!("{old}\n{begin}{text}{end}"),
    };
    std::fs::write(file, new).expect("docs/performance.md can be written");
}

/// The median of the rounds' ratios.
fn ratio(candidate: &Measured, base: &Measured, figure: fn(&Round) -> f64) -> f64 {
    let ratios = candidate.rounds.iter().zip(&base.rounds).map(|(own, base)| figure(own) / figure(base));
    range(ratios)[1]
}

fn spread(figures: &[f64]) -> [f64; 3] {
    range(figures.iter().copied())
}

/// Minimum, median, maximum.
fn range(figures: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}

/// Rounded, with a comma before each three digits.
pub(crate) fn number(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
