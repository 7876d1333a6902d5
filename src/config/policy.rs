//! Who may do what: the section `policy` of the file, alone of which is read again while the gateway runs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::Problem;
use super::source::{Sources, table};
use crate::access::{Methods, Pattern, Policy, Rule};
use crate::ids::{AccountId, ServiceId};

const KEYS: [&str; 6] = ["callers", "accounts", "services", "methods", "read_only", "pii"];

/// The file that holds the policy.
#[derive(Clone, Debug)]
pub struct PolicyFile(PathBuf);

impl PolicyFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The policy as it stands there now; `None` where there is none. It blocks while it reads.
    pub fn read(&self) -> Result<Option<Policy>, Vec<Problem>> {
        let mut table = table(&self.0).map_err(|problem| vec![problem])?;
        let Some(section) = table.remove("policy") else {
            return Ok(None);
        };
        let mut problems = Problems::default();
        let policy = policy(&mut problems, section);
        if problems.0.is_empty() { Ok(Some(policy)) } else { Err(problems.0) }
    }
}

pub(super) fn read(sources: &mut Sources<'_>) -> Option<Policy> {
    let section = sources.policy.take()?;
    let mut problems = Problems::default();
    let policy = policy(&mut problems, section);
    sources.problems.append(&mut problems.0);
    Some(policy)
}

/// The rules as `check-config` shows them.
pub(super) fn lines(policy: Option<&Policy>) -> Vec<String> {
    match policy {
        None => vec!["policy = (none: every caller may do everything)".into()],
        Some(Policy { rules }) if rules.is_empty() => vec!["policy = no rule: nobody may do anything".into()],
        Some(Policy { rules }) => {
            rules.iter().enumerate().map(|(at, rule)| format!("policy.rules[{at}] = {rule}")).collect()
        }
    }
}

/// What is wrong, each with its key.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, at: &str, text: impl Into<String>) {
        self.0.push(Problem { at: at.to_owned(), text: text.into() });
    }
}

fn policy(problems: &mut Problems, section: toml::Value) -> Policy {
    let toml::Value::Table(mut section) = section else {
        problems.add("policy", "must be a table, with its rules each as [[policy.rules]]");
        return Policy::default();
    };
    let rules = match section.remove("rules") {
        None => Vec::new(),
        Some(toml::Value::Array(rules)) => rules,
        Some(_) => {
            problems.add("policy.rules", "must be tables, each as [[policy.rules]]");
            Vec::new()
        }
    };
    for key in section.keys() {
        problems.add(&format!("policy.{key}"), "is no key of the policy, which has rules only");
    }
    let rules = rules.into_iter().enumerate().filter_map(|(at, rule)| {
        let key = format!("policy.rules[{at}]");
        match rule {
            toml::Value::Table(rule) => Some(Arc::new(self::rule(problems, &key, rule))),
            _ => {
                problems.add(&key, "must be a table, as [[policy.rules]]");
                None
            }
        }
    });
    Policy { rules: rules.collect() }
}

/// One that is wrong is a rule all the same, so that the rest can be checked; it is never used.
fn rule(problems: &mut Problems, key: &str, mut rule: toml::Table) -> Rule {
    for unknown in rule.keys().filter(|name| !KEYS.contains(&name.as_str())) {
        problems.add(&format!("{key}.{unknown}"), format!("is no key of a rule; these are: {KEYS:?}"));
    }
    let mut list = |problems: &mut Problems, name: &str| {
        let at = format!("{key}.{name}");
        rule.remove(name).map(|value| texts(problems, &at, value))
    };
    let (callers, accounts) = (list(problems, "callers"), list(problems, "accounts"));
    let (services, words) = (list(problems, "services"), list(problems, "methods"));
    for (name, list) in [("callers", &callers), ("accounts", &accounts)] {
        if list.is_none() {
            problems.add(&format!("{key}.{name}"), "is required; [\"*\"] are all");
        }
    }
    let callers = parsed(problems, &format!("{key}.callers"), callers, Pattern::parse);
    let accounts = accounts.filter(|accounts| *accounts != ["*"]).map(|accounts| {
        let sid = |text: &str| AccountId::parse(text).map(|id| id.as_str().into());
        let sid = |text: &str| sid(text).ok_or("must be `AC` and 32 hex digits, or the list [\"*\"]");
        parsed(problems, &format!("{key}.accounts"), Some(accounts), sid)
    });
    let services = services.map(|services| {
        let sid = |text: &str| ServiceId::parse(text).map(|id| id.as_str().into());
        let sid = |text: &str| sid(text).ok_or("must be `IS` and 32 hex digits; leave services out for all");
        parsed(problems, &format!("{key}.services"), Some(services), sid)
    });
    let is_read_only = rule.remove("read_only").is_some_and(|value| read_only(problems, key, &value));
    let methods = methods(problems, key, words, is_read_only, services.is_some());
    let shows_pii = rule.remove("pii").is_some_and(|value| pii(problems, key, &value));
    let set = |list: Vec<Arc<str>>| list.into_iter().collect::<BTreeSet<_>>();
    Rule { callers, accounts: accounts.map(set), services: services.map(set), methods, shows_pii }
}

/// A list that is empty would mean nobody, or nothing, which is said by no rule.
fn texts(problems: &mut Problems, at: &str, value: toml::Value) -> Vec<String> {
    let texts = match value {
        toml::Value::Array(values) if !values.is_empty() => {
            let texts = values.into_iter().map(|value| match value {
                toml::Value::String(text) => Some(text),
                _ => None,
            });
            texts.collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    texts.unwrap_or_else(|| {
        problems.add(at, "must be a list of texts, and not empty");
        Vec::new()
    })
}

fn parsed<T>(
    problems: &mut Problems,
    at: &str,
    texts: Option<Vec<String>>,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Vec<T> {
    let texts = texts.unwrap_or_default().into_iter().enumerate();
    let parsed = texts.filter_map(|(index, text)| match parse(&text) {
        Ok(value) => Some(value),
        Err(wrong) => {
            problems.add(&format!("{at}[{index}]"), wrong);
            None
        }
    });
    parsed.collect()
}

fn methods(
    problems: &mut Problems,
    key: &str,
    words: Option<Vec<String>>,
    is_read_only: bool,
    has_services: bool,
) -> Methods {
    let at = format!("{key}.methods");
    if is_read_only && words.is_some() {
        problems
            .add(&format!("{key}.read_only"), "cannot be set beside methods: it means methods = [\"read\"]");
    }
    let words = match words {
        Some(words) => words,
        None if is_read_only => vec!["read".into()],
        None => {
            problems.add(&at, "is required, or read_only = true is; [\"*\"] are all");
            Vec::new()
        }
    };
    if has_services && words.iter().any(|word| word == "WatchParticipants") {
        problems.add(&at, "cannot name WatchParticipants beside services: an event tells no service");
    }
    let known = |word: &str| {
        Methods::parse(word).ok_or("must be a method such as GetParticipant, or read, write or *")
    };
    parsed(problems, &at, Some(words), known).into_iter().fold(Methods::default(), Methods::with)
}

fn read_only(problems: &mut Problems, key: &str, value: &toml::Value) -> bool {
    value.as_bool().unwrap_or_else(|| {
        problems.add(&format!("{key}.read_only"), "must be true or false, without quotation marks");
        false
    })
}

fn pii(problems: &mut Problems, key: &str, value: &toml::Value) -> bool {
    match value.as_str() {
        Some("shown") => true,
        Some("masked") => false,
        _ => {
            problems.add(&format!("{key}.pii"), "must be \"shown\" or \"masked\"");
            false
        }
    }
}
