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
        let fitting = table.0.iter().filter(|(_, known)| known.ct_eq(&hash).into());
        fitting.last().map(|(owner, _)| owner.clone()).ok_or(Refused("no such token"))
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
