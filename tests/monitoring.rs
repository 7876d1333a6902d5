//! Alerts, dashboard and runbooks fit the gateway and each other: no query asks for a metric or a label that there is not,
//! every metric has a panel, every alert has words, a runbook and cases. That the queries are PromQL, and that the cases
//! hold, is for `.ci/metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use participant_gateway::telemetry::metrics::{METRICS, Metrics};
use serde_json::Value;

const RULES: &str = "helm/participant-gateway/rules/participant-gateway.yaml";
const DASHBOARD: &str = "helm/participant-gateway/dashboards/participant-gateway.json";
/// What a scrape adds to every series.
const TARGET: [&str; 4] = ["namespace", "job", "pod", "instance"];

type Names = BTreeSet<String>;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

// === What there is

/// Every series of `/metrics`, and Prometheus's own `up`, with their labels.
fn series() -> BTreeMap<String, Names> {
    let mut series = BTreeMap::from([("up".to_owned(), Names::new())]);
    for row in METRICS {
        let labels: Names = row.labels.iter().map(|label| label.replace('.', "_")).collect();
        if row.kind == "histogram" {
            let with_bound = labels.iter().cloned().chain(["le".to_owned()]).collect();
            series.insert(format!("{}_bucket", row.prometheus), with_bound);
            series.insert(format!("{}_sum", row.prometheus), labels.clone());
            series.insert(format!("{}_count", row.prometheus), labels);
        } else {
            series.insert(row.prometheus.to_owned(), labels);
        }
    }
    let rendered = Metrics::new(None).expect("metrics").render().expect("text");
    let process = rendered.lines().filter(|line| line.starts_with("process_"));
    series.extend(process.filter_map(|line| Some((line.split_once(' ')?.0.to_owned(), Names::new()))));
    series
}

/// The same with what the rules record. What labels that has is for Prometheus to say: any that exists may be asked for.
fn series_and_records() -> BTreeMap<String, Names> {
    let mut series = series();
    let any: Names = series.values().flatten().cloned().chain(["slo".to_owned()]).collect();
    series.extend(rules().into_iter().filter(|rule| !rule.is_alert).map(|rule| (rule.name, any.clone())));
    series
}

// === What is asked for

/// What a query asks for: metrics, each with the labels of its matchers, and the labels that it groups and joins by.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    metrics: Vec<(String, Vec<String>)>,
    by: Vec<String>,
    /// What `label_replace` adds.
    made: Vec<String>,
}

/// Names, texts in quotes, and single characters. Numbers, durations, ranges and Grafana's variables are left out.
fn tokens(query: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut tokens = Vec::new();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => rest[1..].find('"').expect("a text that ends") + 2,
            '[' => rest.find(']').expect("a range that ends") + 1,
            '$' => 1 + rest[1..].find(|c| !is_name(c)).unwrap_or(rest.len() - 1),
            _ if is_name(first) => rest.find(|c| !is_name(c) && c != '.').unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        if !matches!(first, '[' | '$' | '0'..='9') {
            tokens.push(rest[..length].to_owned());
        }
        rest = rest[length..].trim_start();
    }
    tokens
}

fn asked(query: &str) -> Asked {
    let tokens = tokens(query);
    let mut asked = Asked::default();
    let mut at = 0;
    let names_until = |from: usize, end: &str| {
        let length = tokens[from..].iter().position(|token| token == end).expect("a closing bracket");
        (tokens[from..from + length].to_vec(), from + length)
    };
    while at < tokens.len() {
        let next = tokens.get(at + 1).map(String::as_str);
        match tokens[at].as_str() {
            "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" if next == Some("(") => {
                let (names, end) = names_until(at + 2, ")");
                asked.by.extend(names.into_iter().filter(|name| name != ","));
                at = end;
            }
            "{" => {
                let (matchers, end) = names_until(at + 1, "}");
                let labels = matchers.iter().enumerate().filter(|(i, _)| *i == 0 || matchers[i - 1] == ",");
                let labels = labels.map(|(_, label)| label.clone());
                asked.metrics.last_mut().expect("a metric before its matchers").1.extend(labels);
                at = end;
            }
            // Of all functions, only label_replace takes four texts.
            text if text.starts_with('"') => {
                if let Some([to, _, _, _, from]) =
                    tokens.get(at..at + 5).filter(|five| five[4].starts_with('"'))
                {
                    asked.made.push(to.trim_matches('"').to_owned());
                    asked.by.push(from.trim_matches('"').to_owned());
                    at += 6;
                }
            }
            "and" | "or" | "unless" | "offset" | "bool" => {}
            name if name.starts_with(|c: char| c.is_ascii_alphabetic())
                && !matches!(next, Some("(" | "by" | "without")) =>
            {
                asked.metrics.push((name.to_owned(), Vec::new()));
            }
            _ => {}
        }
        at += 1;
    }
    asked
}

/// What the query asks for that there is not.
fn missing(query: &str, series: &BTreeMap<String, Names>) -> Vec<String> {
    let asked = asked(query);
    assert!(!asked.metrics.is_empty() || query.starts_with("vector("), "no metric in {query}");
    let mut missing = Vec::new();
    let mut known: BTreeSet<&str> = TARGET.into_iter().chain(asked.made.iter().map(String::as_str)).collect();
    for (metric, labels) in &asked.metrics {
        let Some(has) = series.get(metric) else {
            missing.push(format!("metric {metric}"));
            continue;
        };
        let is_there = |label: &str| TARGET.contains(&label) || has.contains(label);
        missing.extend(
            labels.iter().filter(|label| !is_there(label)).map(|label| format!("{metric}{{{label}}}")),
        );
        known.extend(has.iter().map(String::as_str));
    }
    missing.extend(
        asked.by.iter().filter(|label| !known.contains(label.as_str())).map(|label| format!("label {label}")),
    );
    missing
}

#[test]
fn a_query_is_taken_apart() {
    let query = r#"sum by (le, job) (label_replace(rate(a_bucket{x="by (y)", z!~"}"}[5m]) offset 1h, "made", "$1", "x", "(.*)"))
        / on (job) group_left () b > 1.5 and c{pod=~"$pod"} unless count without (pod) (d)"#;
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let metrics: [(&str, &[&str]); 4] = [("a_bucket", &["x", "z"]), ("b", &[]), ("c", &["pod"]), ("d", &[])];
    let expected = Asked {
        metrics: metrics.iter().map(|(name, labels)| ((*name).to_owned(), texts(labels))).collect(),
        by: texts(&["le", "job", "x", "job", "pod"]),
        made: texts(&["made"]),
    };
    assert_eq!(asked(query), expected);

    let there = BTreeMap::from([("a".to_owned(), Names::from(["x".to_owned()]))]);
    assert_eq!(missing(r#"sum by (x) (a{x="1", pod="2"})"#, &there), texts(&[]));
    assert_eq!(missing(r#"sum by (y) (a{z="1"}) + b"#, &there), texts(&["a{z}", "metric b", "label y"]));
}

// === Rules

/// One rule of the file.
struct Rule {
    name: String,
    is_alert: bool,
    expr: String,
    /// All of it.
    text: String,
}

/// The file is ours, so its layout is known: a rule begins with its name, and a query of several lines is indented below `expr`.
fn rules() -> Vec<Rule> {
    let file = read(RULES);
    let rule = |text: &str| {
        let (kind, rest) = text.split_once(": ").expect("a rule begins with its kind");
        let (_, expr) = text.split_once("\n        expr: ").unwrap_or_else(|| panic!("no expr: {text}"));
        let expr = match expr.strip_prefix("|\n") {
            Some(block) => {
                let lines: Vec<&str> =
                    block.lines().take_while(|line| line.starts_with("          ")).collect();
                lines.join("\n")
            }
            None => expr.lines().next().unwrap_or_default().to_owned(),
        };
        let name = rest.lines().next().unwrap_or_default().to_owned();
        Rule { name, is_alert: kind == "alert", expr, text: text.to_owned() }
    };
    let rules: Vec<Rule> = file.split("\n      - ").skip(1).map(rule).collect();
    assert_eq!(rules.len(), file.matches("expr:").count(), "a rule whose layout is another");
    rules
}

/// Each alert, with the text of all its rules.
fn alerts() -> BTreeMap<String, String> {
    let mut alerts = BTreeMap::<String, String>::new();
    for rule in rules().into_iter().filter(|rule| rule.is_alert) {
        *alerts.entry(rule.name).or_default() += &(rule.text + "\n");
    }
    alerts
}

/// What stands behind `key` wherever it occurs, up to one of the ends.
fn values<'a>(text: &'a str, key: &str, ends: &[char]) -> BTreeSet<&'a str> {
    text.split(key).skip(1).map(|rest| rest.split(ends).next().unwrap_or_default()).collect()
}

#[test]
fn rules_ask_only_for_what_there_is() {
    let series = series_and_records();
    for rule in rules() {
        assert_eq!(missing(&rule.expr, &series), Vec::<String>::new(), "{}: {}", rule.name, rule.expr);
    }
}

#[test]
fn each_alert_says_what_it_is_and_what_to_do() {
    let runbooks = read("docs/runbooks.md");
    let sections = values(&runbooks, "\n## Participant", &['\n']);
    let sections: Names = sections.into_iter().map(|section| format!("Participant{section}")).collect();
    let alerts = alerts();
    assert_eq!(
        sections,
        alerts.keys().cloned().collect::<Names>(),
        "alerts and sections of docs/runbooks.md"
    );
    for (name, text) in alerts {
        for needed in ["\n          summary: ", "\n          description: "] {
            assert!(text.contains(needed), "{name} has no {}", needed.trim());
        }
        let runbook = format!("docs/runbooks.md#{}", name.to_lowercase());
        assert_eq!(values(&text, "runbook_url: ", &['\n']), BTreeSet::from([runbook.as_str()]), "{name}");
        let severities = values(&text, "severity: ", &['}', '\n']);
        assert!(!severities.is_empty(), "{name} has no severity");
        for severity in severities {
            assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        }
    }
}

#[test]
fn each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let (mut fired, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for file in ["tests/rules/objectives.yaml", "tests/rules/causes.yaml"] {
        for case in read(file).split("- expr: ").skip(1) {
            let query = case.lines().next().unwrap_or_default();
            let expected = case.split_once("exp_samples:").expect("what is expected").1;
            for alert in values(query, "alertname=\"", &['"']) {
                if expected.starts_with(" []") && query.contains("alertstate=\"firing\"") {
                    quiet.insert(alert.to_owned());
                }
                let severities = values(expected, "severity=\"", &['"']);
                fired.extend(severities.into_iter().map(|severity| (alert.to_owned(), severity.to_owned())));
            }
        }
    }
    let alerts = alerts();
    assert_eq!(quiet, alerts.keys().cloned().collect(), "alerts that have a case in which they stay quiet");
    let pairs = alerts.iter().flat_map(|(name, text)| {
        values(text, "severity: ", &['}', '\n'])
            .into_iter()
            .map(|severity| (name.clone(), severity.to_owned()))
    });
    assert_eq!(fired, pairs.collect(), "alerts, with each severity, that have a case in which they fire");
}

// === Dashboard

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).expect("JSON")
}

/// The panels that show something: a row only has a title.
fn panels() -> Vec<Value> {
    let panels = dashboard()["panels"].as_array().expect("panels").clone();
    panels.into_iter().filter(|panel| panel["type"] != "row").collect()
}

fn queries(panel: &Value) -> Vec<String> {
    let targets = panel["targets"].as_array().expect("targets");
    targets.iter().map(|target| target["expr"].as_str().expect("a query").to_owned()).collect()
}

/// Of each variable that asks Prometheus: `label_values(series, label)`.
fn variables() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let queries = variables.filter_map(|variable| variable["query"]["query"].as_str());
    let inside = queries.map(|query| {
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect("label_values");
        (series.to_owned(), label.to_owned())
    });
    inside.collect()
}

#[test]
fn the_dashboard_asks_only_for_what_there_is() {
    let series = series_and_records();
    for panel in panels() {
        for query in queries(&panel) {
            assert_eq!(missing(&query, &series), Vec::<String>::new(), "{}: {query}", panel["title"]);
        }
    }
    let variables = variables();
    assert_eq!(variables.len(), 4, "namespace, job, pod and account");
    for (of, label) in variables {
        let query = format!("sum by ({label}) ({of})");
        assert_eq!(missing(&query, &series), Vec::<String>::new(), "{query}");
    }
}

#[test]
fn each_metric_has_a_panel() {
    let shown: Names = panels()
        .iter()
        .flat_map(queries)
        .flat_map(|query| asked(&query).metrics)
        .map(|(metric, _)| {
            ["_bucket", "_count", "_sum"].iter().fold(metric, |name, end| name.replace(end, ""))
        })
        .collect();
    let own = METRICS.iter().map(|row| row.prometheus);
    let process =
        ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_threads"];
    for metric in own.chain(process) {
        assert!(shown.contains(metric), "no panel shows {metric}");
    }
}

#[test]
fn each_panel_says_what_is_normal_and_can_be_narrowed() {
    let mut ids = BTreeSet::new();
    for panel in panels() {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title} has the id of another");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 40), "{title} says little");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for query in queries(&panel) {
            for (metric, labels) in asked(&query).metrics {
                let needed: &[&str] = if metric.starts_with("job:") { &TARGET[..2] } else { &TARGET[..3] };
                assert!(needed.iter().all(|label| labels.iter().any(|has| has == label)), "{title}: {query}");
            }
        }
    }
}

// === Runbooks

#[test]
fn the_runbooks_ask_only_for_what_there_is() {
    let (runbooks, series) = (read("docs/runbooks.md"), series_and_records());
    let queries: Vec<&str> =
        runbooks.split("```promql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(queries.len() >= alerts().len() / 2, "most runbooks have a query");
    for query in queries {
        assert_eq!(missing(query, &series), Vec::<String>::new(), "{query}");
    }
}
