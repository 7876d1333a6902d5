//! The participant of a write: whether the values of its fields can be sent.

use prost_types::Timestamp;

use super::check::Check;
use super::text::{text, word};
use super::{addresses, attributes};
use crate::ids::{ApiVersion, Field, is_sid, is_v2_id};
use crate::proto::{Participant, ParticipantType};

/// The gateway's own bound; Twilio documents none for v2's name.
const MAX_NAME_CHARS: usize = 256;

pub(super) fn cannot_carry(
    check: &mut Check,
    field: Field,
    participant: &Participant,
    version: ApiVersion,
    what: &str,
) {
    let name = match field {
        // Of the two that say one thing, the one that the caller set.
        Field::Type if participant.r#type == 0 && !participant.upstream_type.is_empty() => "upstream_type",
        _ => field.name(),
    };
    let other = if field.in_update(version) { "; use an update" } else { "" };
    check.refuse(format!("participant.{name}"), format!("{what} of {version} cannot carry it{other}"));
}

/// Checks the value of a field that is set and that the version can carry.
pub(super) fn value(check: &mut Check, field: Field, participant: &Participant, version: ApiVersion) {
    let name = format!("participant.{}", field.name());
    match field {
        Field::DisplayName => {
            check.take(&name, text(&participant.display_name, MAX_NAME_CHARS));
        }
        Field::Type => participant_type(check, participant),
        Field::ProfileId if !is_v2_id(&participant.profile_id) => {
            check.refuse(name, "must be letters, digits, `_` and `-`, at most 128");
        }
        Field::RoleId if !is_sid("RL", &participant.role_id) => {
            check.refuse(name, "must be `RL` and 32 hex digits");
        }
        Field::ProfileId | Field::RoleId => {}
        Field::Addresses => check.extend(addresses::violations(&participant.addresses, version)),
        Field::Attributes => {
            check.take(&name, attributes::check(&participant.attributes));
        }
        Field::LastReadMessageIndex => {
            if participant.last_read_message_index.is_some_and(i64::is_negative) {
                check.refuse(name, "must not be negative");
            }
        }
        Field::LastReadTime => time(check, &name, participant.last_read_time.as_ref()),
        Field::CreateTime => time(check, &name, participant.create_time.as_ref()),
        Field::UpdateTime => time(check, &name, participant.update_time.as_ref()),
    }
}

fn participant_type(check: &mut Check, participant: &Participant) {
    let Ok(kind) = ParticipantType::try_from(participant.r#type) else {
        check.refuse("participant.type", "is no type that this gateway knows");
        return;
    };
    let result = word(
        kind.as_str_name().trim_start_matches("PARTICIPANT_TYPE_"),
        &participant.upstream_type,
        kind == ParticipantType::Other,
    );
    check.take("participant.upstream_type", result);
}

fn time(check: &mut Check, name: &str, time: Option<&Timestamp>) {
    let is_valid = time.is_none_or(|time| {
        // The years 1 to 9999, as google.protobuf.Timestamp says.
        (-62_135_596_800..=253_402_300_799).contains(&time.seconds)
            && (0..1_000_000_000).contains(&time.nanos)
    });
    if !is_valid {
        check.refuse(name, "must be within the years 1 to 9999, with nanos from 0 to 999999999");
    }
}
