//! What the run has shown, and docs/soak.md.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::processes::Vitals;
use crate::tally::Counts;
use crate::{CALLS_A_SECOND, DEFAULT_MINUTES, Last};

/// Connections that are no call's: the sandbox's for events, this program's for metrics.
const OTHER_FILES: usize = 4;
/// RSS may grow by so much of itself over the second half.
const GROWTH: f64 = 0.1;

/// The gateway at one moment.
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) vitals: Vitals,
}

pub(crate) struct Report {
    pub(crate) length: Duration,
    pub(crate) troubles: usize,
    pub(crate) samples: Vec<Sample>,
    pub(crate) at_start: Vitals,
    pub(crate) at_end: Vitals,
    pub(crate) last: Last,
    pub(crate) counts: Counts,
}

impl Report {
    /// What must not be; empty where all is well.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut complain = |is_bad: bool, text: String| {
            if is_bad {
                complaints.push(text);
            }
        };
        let (start, end) = (&self.at_start, &self.at_end);
        complain(self.counts.wrong > 0, format!("{} wrong answers", self.counts.wrong));
        complain(end.calls != 0.0, format!("{} calls are still in flight", end.calls));
        complain(end.files > start.files + OTHER_FILES, format!("{} files are still open", end.files));
        let failed: u64 = self.counts.failed_in_calm.values().sum();
        complain(failed > 0, format!("{failed} calls failed although all was well"));
        complain(self.counts.not_made > 0, format!("{} calls were not made", self.counts.not_made));
        let Last { events, heard, outdated, .. } = &self.last;
        let all = events["emitted"].as_u64().unwrap_or_default();
        complain(heard + outdated != all, format!("of {all} events {heard} were told, {outdated} outdated"));
        complain(events["dropped"] != 0, format!("{} events were dropped", events["dropped"]));
        let growth = self.slope() * self.length.as_secs_f64() / 120.0;
        let is_leak = growth > GROWTH * end.rss_kib;
        // In less time the cache does not even get full.
        let is_whole = self.length >= Duration::from_secs_f64(DEFAULT_MINUTES * 60.0);
        complain(is_whole && is_leak, format!("RSS grew by {growth:.0} KiB in the second half"));
        complaints
    }

    /// RSS in KiB a minute, by least squares over the second half.
    fn slope(&self) -> f64 {
        let half = &self.samples[self.samples.len() / 2..];
        let points: Vec<(f64, f64)> =
            half.iter().map(|sample| (sample.at.as_secs_f64() / 60.0, sample.vitals.rss_kib)).collect();
        let count = points.len().max(1) as f64;
        let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
        let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        if variance > 0.0 { covariance / variance } else { 0.0 }
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let counts = &self.counts;
        let (minutes, troubles) = (self.length.as_secs_f64() / 60.0, self.troubles);
        let mut line = |line: String| writeln!(text, "{line}").expect("a string takes it");
        line(format!(
            "{minutes:.0} minutes, {CALLS_A_SECOND} calls begun a second, {troubles} faults of 10 s with 20 s of calm between. \
             Commit {}, release build, {} cores shared with sandbox and callers.\n",
            commit(),
            std::thread::available_parallelism().map_or(1, usize::from),
        ));
        let failed: u64 = counts.failed_in_calm.values().sum();
        let Last { held, posts, events, heard, outdated } = &self.last;
        line("| what | how many |\n|---|---|".to_owned());
        line(format!("| calls that ended | {} |", counts.calls));
        line(format!("| **wrong answers** | **{}** |", counts.wrong));
        line(format!("| calls that failed although no fault had been in force for 10 s | {failed} |"));
        line(format!("| calls in flight at the end | {} |", self.at_end.calls));
        line(format!("| creates that reached Twilio, each once unless answered 429 | {} |", posts.len()));
        line(format!(
            "| requests that left the sandbox's journal before they were looked at | {} |",
            posts.missed
        ));
        line(format!("| participants at the end, at Twilio as the gateway tells them | {held} |"));
        line(format!(
            "| events emitted; told, each once; outdated; sent twice, sent again | {}; {heard}; {outdated}; {}, {} |\n",
            events["emitted"], events["duplicated"], events["retried"]
        ));
        line(
            "| | RSS, MiB | open files | threads | calls in flight | cache entries | cache, KiB |".to_owned(),
        );
        line("|---|---|---|---|---|---|---|".to_owned());
        line(row("before the load", &self.at_start));
        for quarter in 1..=4 {
            if let Some(sample) = self.samples.get((self.samples.len() * quarter / 4).saturating_sub(1)) {
                line(row(&format!("after {:.1} minutes", sample.at.as_secs_f64() / 60.0), &sample.vitals));
            }
        }
        if let Some(most) = self.most() {
            line(row("the most of each", &most));
        }
        line(row("after the load", &self.at_end));
        line(format!("\nRSS over the second half, by least squares: {:+.1} KiB a minute.\n", self.slope()));
        line("| method | outcome | calls |\n|---|---|---|".to_owned());
        for ((method, outcome), times) in &counts.outcomes {
            line(format!("| {method} | {outcome} | {times} |"));
        }
        for ((method, outcome), times) in &counts.failed_in_calm {
            line(format!("| {method}, while all was well | {outcome} | {times} |"));
        }
        for example in &counts.examples {
            line(format!("- wrong: {example}"));
        }
        text
    }

    fn most(&self) -> Option<Vitals> {
        self.samples.iter().map(|sample| sample.vitals).reduce(|one, other| Vitals {
            rss_kib: one.rss_kib.max(other.rss_kib),
            files: one.files.max(other.files),
            threads: one.threads.max(other.threads),
            calls: one.calls.max(other.calls),
            cache_entries: one.cache_entries.max(other.cache_entries),
            cache_kib: one.cache_kib.max(other.cache_kib),
        })
    }

    pub(crate) fn write(&self) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/soak.md");
        std::fs::write(path, format!("{INTRODUCTION}\n{}", self.markdown()))
            .expect("docs/soak.md can be written");
    }
}

fn row(name: &str, vitals: &Vitals) -> String {
    let Vitals { rss_kib, files, threads, calls, cache_entries, cache_kib } = vitals;
    let rss = rss_kib / 1024.0;
    format!("| {name} | {rss:.1} | {files} | {threads} | {calls} | {cache_entries} | {cache_kib:.0} |")
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let text = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

const INTRODUCTION: &str = "\
# Half an hour of faults

`cargo bench --bench soak` writes this page (`SOAK_MINUTES=10` for a shorter run, which does not). It starts the gateway and a
sandbox as processes, and calls every method on v1 and v2 at a fixed rate, whether or not earlier calls have ended. Meanwhile
Twilio fails, throttles, is late, hangs, breaks off, freezes, and is killed and started again; callers set deadlines that are too
short, cancel calls, come for one call, and lose their connections.

A model knows what each answer may be. Each participant carries a key and a version. No read may tell a version older than a
write that was acknowledged, or an event that was told, before the read began; nor what was refused as never processed; nor
somebody who was removed, or leave out somebody who is there; nor mix two participants. A create that is repeated with its
`request_id` names the same participant. No watcher is told anything twice, and the one that stays is told everything. In the end
Twilio holds what was acknowledged, and the gateway tells just that in each way of reading.
";
