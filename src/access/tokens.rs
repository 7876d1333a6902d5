//! Tokens of a file, which holds only their hashes: whoever reads it learns none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::file::{Content, FileError, Watched};
use super::{Identity, Proof, Refused};
use crate::telemetry::Metrics;

/// Each is looked at for each call.
const MOST_TOKENS: usize = 1000;
const LONGEST_NAME: usize = 64;
const HASH: &str = "sha256:";

type Hash = [u8; 32];

/// Who may call by which token. Clones share it, with every change of the file.
#[derive(Clone)]
pub struct Tokens(Watched<Table>);

impl Tokens {
    /// Those of this file. It reads it, and blocks while it does.
    pub fn read(path: PathBuf) -> Result<Self, FileError<TableError>> {
        Watched::read("auth.tokens_file", path).map(Self)
    }

    /// Whose the token is.
    pub(super) fn owner(&self, token: &str) -> Result<Identity, Refused> {
        let (table, hash) = (self.0.current(), Hash::from(Sha256::digest(token)));
        // All of them, so that the time does not tell which one is nearly right.
        let owner = table.0.iter().fold(
            None,
            |found, (owner, known)| {
                if known.ct_eq(&hash).into() { Some(owner) } else { found }
            },
        );
        owner.cloned().ok_or(Refused("no such token"))
    }

    pub(super) async fn upkeep(&self, every: Duration, metrics: &Metrics) {
        self.0.upkeep(every, metrics).await;
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// Hashes of tokens, with their owners.
pub(super) struct Table(Vec<(Identity, Hash)>);

/// The hashes of an owner's tokens: two while one takes the place of the other.
#[derive(Deserialize)]
#[serde(untagged)]
enum Hashes {
    One(String),
    Some(Vec<String>),
}

/// Why a file holds no tokens. What it holds instead may be one that was not hashed, and is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It is no TOML, or its values are of other kinds.
    #[error("the file must hold lines such as name = \"sha256:<64 hex digits>\", in TOML")]
    NoToml,
    /// A name cannot be one.
    #[error("the names in the file must be of 1 to {LONGEST_NAME} letters, digits, `.`, `_` and `-`")]
    NoName,
    /// A value is no hash.
    #[error("each value in the file must be \"sha256:\" and the 64 hex digits of a token's SHA-256")]
    NoHash,
    /// Two lines have the same hash.
    #[error("a hash must not stand in the file twice")]
    Twice,
    /// There are none, or more than there may be.
    #[error("the file must hold 1 to {MOST_TOKENS} hashes")]
    Count,
}

impl Content for Table {
    type Error = TableError;

    fn parse(bytes: &[u8]) -> Result<Self, TableError> {
        let lines: BTreeMap<String, Hashes> = toml::from_slice(bytes).map_err(|_| TableError::NoToml)?;
        let (mut table, mut known) = (Vec::new(), BTreeSet::new());
        for (name, hashes) in lines {
            if !is_name(&name) {
                return Err(TableError::NoName);
            }
            let owner = Identity::proven(Proof::Token, format!("token:{name}"));
            let hashes = match hashes {
                Hashes::One(hash) => vec![hash],
                Hashes::Some(hashes) => hashes,
            };
            for hash in hashes {
                let hash = parse_hash(&hash).ok_or(TableError::NoHash)?;
                if !known.insert(hash) {
                    return Err(TableError::Twice);
                }
                table.push((owner.clone(), hash));
            }
        }
        if (1..=MOST_TOKENS).contains(&table.len()) { Ok(Self(table)) } else { Err(TableError::Count) }
    }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn parse_hash(text: &str) -> Option<Hash> {
    let digits = text.strip_prefix(HASH)?;
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = Hash::default();
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn hash(token: &str) -> String {
        let digits: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{HASH}{digits}")
    }

    pub(super) fn refused(text: &str) -> TableError {
        Table::parse(text.as_bytes()).err().expect("the file is refused")
    }

    #[test]
    fn what_is_no_token_file_is_refused() {
        let (hash, cut) = (hash("a"), &hash("a")[..70]);
        assert_eq!(refused(""), TableError::Count);
        assert_eq!(refused("a = []"), TableError::Count);
        for text in ["a", "a = 1", "a.b = \"c\"", "a = [1]", &format!("a = \"{hash}\"\na = \"{hash}\"")] {
            assert_eq!(refused(text), TableError::NoToml, "{text}");
        }
        for name in ["\"\"".to_owned(), "\"a b\"".to_owned(), "\"a/b\"".to_owned(), "a".repeat(65)] {
            assert_eq!(refused(&format!("{name} = \"{hash}\"")), TableError::NoName, "{name}");
        }
        for value in
            ["", "secret", cut, &hash[7..], &format!("{cut}g"), &format!("{hash}0"), &format!("{cut}é")]
        {
            assert_eq!(refused(&format!("a = \"{value}\"")), TableError::NoHash, "{value}");
        }
        assert_eq!(refused(&format!("a = \"{hash}\"\nb = \"{hash}\"")), TableError::Twice);
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::tests::{hash, refused};
    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Table::parse(&bytes).is_err());
        }

        #[test]
        fn no_error_repeats_the_content(text in "planted[ =\"]{0,4}planted") {
            prop_assert!(!refused(&text).to_string().contains("planted"));
        }

        #[test]
        fn each_name_has_its_hashes(
            names in prop::collection::btree_set("[A-Za-z0-9_.-]{1,64}", 1..5), is_upper in any::<bool>()
        ) {
            let line = |name: &String| {
                let [one, two] = ["1", "2"].map(|end| hash(&format!("{name}{end}")));
                let two = if is_upper { two.to_uppercase().replace("SHA", "sha") } else { two };
                format!("\"{name}\" = [\"{one}\", \"{two}\"]\n")
            };
            let text: String = names.iter().map(line).collect();
            let table = Table::parse(text.as_bytes()).unwrap();
            let owners: Vec<_> = table.0.iter().map(|(owner, _)| owner.name().unwrap().to_owned()).collect();
            let expected: Vec<_> = names.iter().flat_map(|name| vec![format!("token:{name}"); 2]).collect();
            prop_assert_eq!(owners, expected);
        }
    }
}
