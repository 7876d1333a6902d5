//! Update masks: which fields an update writes, and which it clears.

use std::collections::BTreeSet;

use prost_types::FieldMask;

use super::check::Check;
use super::participant::cannot_carry;
use crate::ids::{ApiVersion, Field};
use crate::participants::is_set;
use crate::proto::Participant;

/// Which fields an update writes.
pub(super) enum Mask {
    /// Absent or without paths.
    Populated,
    /// `*`.
    Everything,
    /// By name, each with its place in the mask.
    Named(Vec<(usize, Field)>),
}

const OUTPUT_ONLY: [&str; 7] =
    ["id", "conversation_id", "account_id", "service_id", "api_version", "url", "etag"];

impl Mask {
    pub(super) fn parse(check: &mut Check, mask: Option<&FieldMask>) -> Self {
        let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
        match paths {
            [] => return Self::Populated,
            [star] if star == "*" => return Self::Everything,
            _ => {}
        }
        let mut named = Vec::new();
        for (at, path) in paths.iter().enumerate() {
            match Field::from_path(path) {
                Some(field) => named.push((at, field)),
                None => check.refuse(format!("update_mask.paths[{at}]"), not_a_field(path)),
            }
        }
        Self::Named(named)
    }

    /// The fields to write, after the version's own refusals.
    pub(super) fn fields(
        &self,
        check: &mut Check,
        participant: &Participant,
        version: ApiVersion,
    ) -> BTreeSet<Field> {
        let fields: BTreeSet<Field> = match self {
            Self::Named(named) => {
                for (at, field) in named {
                    named_field(check, *at, *field, participant, version);
                }
                return named.iter().map(|(_, field)| *field).collect();
            }
            Self::Populated => {
                // These two come with every read; to write them back has to be asked for.
                let implied = |field: &Field| !matches!(field, Field::CreateTime | Field::UpdateTime);
                Field::ALL.into_iter().filter(implied).filter(|field| is_set(*field, participant)).collect()
            }
            Self::Everything => {
                let writable = |field: &Field| {
                    let carried = field.in_update(version) && field.is_clearable(version);
                    carried || is_set(*field, participant)
                };
                let read_only = |field: &Field| {
                    version == ApiVersion::V2 && matches!(field, Field::CreateTime | Field::UpdateTime)
                };
                Field::ALL.into_iter().filter(writable).filter(|field| !read_only(field)).collect()
            }
        };
        for field in fields.iter().filter(|field| !field.in_update(version)) {
            cannot_carry(check, *field, participant, version, "an update");
        }
        if fields.is_empty() {
            check.refuse("update_mask", "names no field, and participant sets none that is writable");
        }
        fields
    }
}

fn named_field(check: &mut Check, at: usize, field: Field, participant: &Participant, version: ApiVersion) {
    let name = field.name();
    if !field.in_update(version) {
        check
            .refuse(format!("update_mask.paths[{at}]"), format!("{version} cannot carry participant.{name}"));
    } else if !is_set(field, participant) && !field.is_clearable(version) {
        check.refuse(format!("participant.{name}"), format!("is required: {version} cannot clear it"));
    }
}

/// The path itself is the caller's text, and is not repeated.
fn not_a_field(path: &str) -> String {
    match path {
        "*" => "must be the only path where it stands for every field".into(),
        path => match OUTPUT_ONLY.iter().find(|name| **name == path) {
            Some(name) => format!("{name} is output only"),
            None => "is no field of Participant; a field below `addresses` cannot be named".into(),
        },
    }
}
