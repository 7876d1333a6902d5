//! What Twilio's answers hold that this build does not know: counted by the name of the key, and logged once for each.
//!
//! A name comes from outside. Only a plain one is told, and only so many of them, so that no answer can swell the metrics
//! or put its text into the log. A value is never told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_ignored::Path;
use tracing::warn;

use crate::ids::ApiVersion;
use crate::telemetry::Metrics;

const MAX_NAME_BYTES: usize = 64;
/// Different names of unknown keys that are told for each version.
const MAX_NAMES: usize = 100;
/// Stands for every name that is not plain.
const OTHER: &str = "(other)";
/// Stands for every further name.
const MORE: &str = "(more)";

/// What one gateway has seen so far. Cheap to clone.
#[derive(Clone)]
pub(super) struct Drift {
    metrics: Metrics,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    keys: BTreeMap<ApiVersion, BTreeSet<String>>,
    values: BTreeSet<(ApiVersion, &'static str)>,
}

impl Drift {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, told: Arc::default() }
    }

    /// An answer has a key that is not known, and ignored.
    pub(super) fn unknown_key(&self, version: ApiVersion, path: &Path<'_>) {
        let (key, is_new) = self.told().key(version, name(path));
        if is_new {
            warn!(api.version = version.as_str(), key, "Twilio's answers have a key that this build ignores");
        }
        self.metrics.key_unknown(version.as_str(), key);
    }

    /// A key that is known has a word, or the like, that is not.
    pub(super) fn unknown_value(&self, version: ApiVersion, key: &'static str) {
        if self.told().values.insert((version, key)) {
            warn!(
                api.version = version.as_str(),
                key, "Twilio's answers have a value that this build does not know"
            );
        }
        self.metrics.value_unknown(version.as_str(), key);
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // What a panic leaves behind is whole.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// The name to tell, and whether it is told for the first time.
    fn key(&mut self, version: ApiVersion, name: String) -> (String, bool) {
        let names = self.keys.entry(version).or_default();
        let name = if names.len() < MAX_NAMES || names.contains(&name) { name } else { MORE.to_owned() };
        let is_new = names.insert(name.clone());
        (name, is_new)
    }
}

/// The keys that lead to it, without the places in lists: `participants.new_key`.
fn name(mut path: &Path<'_>) -> String {
    let mut keys = Vec::new();
    loop {
        path = match path {
            Path::Root => break,
            Path::Map { parent, key } => {
                keys.push(key.as_str());
                parent
            }
            Path::Seq { parent, .. }
            | Path::Some { parent }
            | Path::NewtypeStruct { parent }
            | Path::NewtypeVariant { parent } => parent,
        };
    }
    keys.reverse();
    let name = keys.join(".");
    if name.len() <= MAX_NAME_BYTES && keys.iter().all(|key| is_plain(key)) { name } else { OTHER.to_owned() }
}

/// What a programmer calls a key: no number, address or mail address is.
pub(super) fn is_plain(key: &str) -> bool {
    key.len() <= MAX_NAME_BYTES
        && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> String {
        fn below(path: &Path<'_>, keys: &[&str]) -> String {
            match keys {
                [] => name(path),
                [key, rest @ ..] => {
                    let path = Path::Map { parent: path, key: (*key).to_owned() };
                    below(&Path::Seq { parent: &Path::Some { parent: &path }, index: 7 }, rest)
                }
            }
        }
        below(&Path::Root, keys)
    }

    #[test]
    fn a_name_is_the_path_without_places() {
        assert_eq!(keys(&["participants", "new_key"]), "participants.new_key");
        assert_eq!(keys(&["_links"]), "_links");
        assert_eq!(keys(&[&"a".repeat(64)]), "a".repeat(64));
    }

    #[test]
    fn what_is_no_plain_name_is_not_told() {
        let long = "a".repeat(65);
        for key in ["", "+15550100001", "15550100001", "a b", "a.b", "a@b", "a-b", "é", "a\"b", "a\nb", &long]
        {
            assert_eq!(keys(&[key]), OTHER, "{key:?}");
            assert_eq!(keys(&["participants", key]), OTHER, "{key:?}");
            assert_eq!(keys(&[key, "key"]), OTHER, "{key:?}");
        }
    }

    #[test]
    fn names_are_bounded_for_each_version_and_new_only_once() {
        let mut told = Told::default();
        for round in 0..2 {
            for at in 0..MAX_NAMES {
                let name = format!("key{at}");
                assert_eq!(told.key(ApiVersion::V1, name.clone()), (name, round == 0));
            }
        }
        assert_eq!(told.key(ApiVersion::V1, "one".into()), (MORE.to_owned(), true));
        assert_eq!(told.key(ApiVersion::V1, "another".into()), (MORE.to_owned(), false));
        assert_eq!(told.key(ApiVersion::V1, "key0".into()), ("key0".to_owned(), false));
        assert_eq!(told.key(ApiVersion::V2, "one".into()), ("one".to_owned(), true));
    }
}
