//! Where settings come from: flags before environment before file before defaults.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use zeroize::Zeroizing;

use super::settings::{SETTINGS, Setting};
use super::{Lookup, Problem};

/// The raw text of every setting that is set, and a reader that collects what is wrong with it.
pub(super) struct Sources<'a> {
    flags: BTreeMap<&'static str, String>,
    env: Lookup<'a>,
    file: BTreeMap<String, String>,
    pub(super) accounts: Vec<toml::Table>,
    pub(super) default_account: Option<String>,
    /// Whether an upstream may be plain http and not on loopback.
    pub(super) allow_insecure: bool,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Sources<'a> {
    pub(super) fn new(flags: BTreeMap<&'static str, String>, env: Lookup<'a>, file: Option<&Path>) -> Self {
        let mut sources = Self {
            flags,
            env,
            file: BTreeMap::new(),
            accounts: Vec::new(),
            default_account: None,
            allow_insecure: false,
            problems: Vec::new(),
        };
        if let Some(path) = file {
            sources.read(path);
        }
        sources.allow_insecure = sources.required("upstream.allow_insecure", super::switch);
        sources
    }

    pub(super) fn problem(&mut self, at: impl Into<String>, text: impl Into<String>) {
        self.problems.push(Problem { at: at.into(), text: text.into() });
    }

    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    /// The text of a setting, and where it stands. An empty text is none: deployment templates leave such behind.
    pub(super) fn raw(&self, setting: &Setting) -> (String, String) {
        if let Some(value) = self.flags.get(setting.key).filter(|value| !value.is_empty()) {
            (value.clone(), format!("--{}", setting.flag.unwrap_or_default()))
        } else if let Some(value) = self.env(setting.env) {
            (value, setting.env.to_owned())
        } else if let Some(value) = self.file.get(setting.key).filter(|value| !value.is_empty()) {
            (value.clone(), format!("{} in the file", setting.key))
        } else {
            (setting.default.to_owned(), "default".to_owned())
        }
    }

    /// Where anything but the default sets it.
    pub(super) fn place(&self, key: &str) -> Option<String> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key)?;
        Some(self.raw(setting).1).filter(|at| at != "default")
    }

    /// The parsed value; `None` where it is not set, and where it is wrong, which is then a problem.
    pub(super) fn optional<T, E: Display>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key)?;
        let (text, at) = self.raw(setting);
        if text.is_empty() {
            return None;
        }
        parse(&text).map_err(|error| self.problem(at, error.to_string())).ok()
    }

    /// As `optional`, for a setting with a default. Where the value is wrong the default's stands in, only so that the
    /// rest can be checked too: a configuration with a problem is never used.
    pub(super) fn required<T: Default, E: Display>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> T {
        self.optional(key, parse).unwrap_or_default()
    }

    fn read(&mut self, path: &Path) {
        let at = path.display().to_string();
        let table = match std::fs::read_to_string(path).map(Zeroizing::new) {
            Ok(text) => text.parse::<toml::Table>(),
            Err(error) => return self.problem(at, format!("cannot be read: {error}")),
        };
        match table {
            Ok(table) => self.flatten("", table, &at),
            // The error's own text repeats the line, which may hold a secret.
            Err(error) => {
                let place = error.span().map_or(String::new(), |span| format!(" at byte {}", span.start));
                self.problem(at, format!("is no TOML{place}: {}", error.message()));
            }
        }
    }

    fn flatten(&mut self, prefix: &str, table: toml::Table, at: &str) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            let is_known = SETTINGS.iter().any(|setting| setting.key == key);
            match value {
                toml::Value::Array(tables) if key == "accounts" => self.add_accounts(tables, at),
                toml::Value::String(text) if key == "default_account" => self.default_account = Some(text),
                toml::Value::Table(table) if is_prefix(&format!("{key}.")) => {
                    self.flatten(&format!("{key}."), table, at);
                }
                _ if key == "accounts" => self.problem(format!("{at}: {key}"), TABLES),
                _ if key == "default_account" => self.problem(format!("{at}: {key}"), "must be a string"),
                value if is_known => match scalar(value) {
                    Some(text) => {
                        self.file.insert(key, text);
                    }
                    None => {
                        self.problem(format!("{at}: {key}"), "must be text, a whole number, true or false");
                    }
                },
                _ => {
                    self.problem(
                        format!("{at}: {key}"),
                        "is no setting; docs/configuration.md lists them all",
                    );
                }
            }
        }
    }

    fn add_accounts(&mut self, tables: Vec<toml::Value>, at: &str) {
        for table in tables {
            match table {
                toml::Value::Table(table) => self.accounts.push(table),
                _ => self.problem(format!("{at}: accounts"), TABLES),
            }
        }
    }
}

const TABLES: &str = "must be tables, each as [[accounts]]";

/// Whether settings stand below it.
fn is_prefix(prefix: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key.starts_with(prefix))
}

fn scalar(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(is_on) => Some(is_on.to_string()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
            None
        }
    }
}
