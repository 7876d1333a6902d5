//! From a request of the contract to a typed intent, or to everything that is wrong with it at once.

mod addresses;
mod attributes;

use std::collections::BTreeSet;
use std::time::Duration;

use prost_types::{FieldMask, Timestamp};

use crate::ids::{
    Accounts, ApiVersion, Conversation, Field, ParticipantKey, Segment, ServiceId, Violation, is_sid,
    is_v2_id, route,
};
use crate::participants::{Create, Update, max_page_size};
use crate::proto::{self, ConversationRef, Participant, ParticipantType, ReadOptions};

use super::status::{self, Reason};

const DEFAULT_PAGE_SIZE: u32 = 50;
/// The gateway's own bound; Twilio documents none for v2's name.
const MAX_NAME_CHARS: usize = 256;

/// A request that is refused.
#[derive(Debug, PartialEq)]
pub(super) struct Refused(Vec<Violation>);

/// What is said of an account that is not configured; alone, it is a reason of its own.
const UNKNOWN_ACCOUNT: &str = "is not an account of this gateway";

impl From<Refused> for tonic::Status {
    fn from(Refused(violations): Refused) -> Self {
        let reason = match violations.as_slice() {
            [only] if only.description == UNKNOWN_ACCOUNT => Reason::AccountUnknown,
            _ => Reason::InvalidRequest,
        };
        status::refused(reason, &violations)
    }
}

/// Collects what is wrong, so that a caller can mend all of it at once.
#[derive(Default)]
struct Check(Vec<Violation>);

impl Check {
    fn refuse(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation::new(field, description));
    }

    fn take<T>(&mut self, field: &str, result: Result<T, impl Into<String>>) -> Option<T> {
        result.map_err(|description| self.refuse(field, description)).ok()
    }

    /// The value, unless anything at all was wrong.
    fn done<T>(self, value: Option<T>) -> Result<T, Refused> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Refused(self.0)),
        }
    }
}

pub(super) struct Get {
    pub(super) key: ParticipantKey,
    pub(super) max_age: Option<Duration>,
}

pub(super) struct List {
    pub(super) conversation: Conversation,
    pub(super) size: u32,
    pub(super) token: String,
    pub(super) max_age: Option<Duration>,
}

pub(super) struct Stream {
    pub(super) conversation: Conversation,
    pub(super) size: u32,
}

pub(super) struct Delete {
    pub(super) key: ParticipantKey,
    pub(super) webhook_enabled: Option<bool>,
}

pub(super) fn get(request: proto::GetParticipantRequest, accounts: &Accounts) -> Result<Get, Refused> {
    let proto::GetParticipantRequest { conversation, participant_id, read_options } = request;
    let mut check = Check::default();
    let key = key(&mut check, conversation, &participant_id, accounts);
    let max_age = max_age(&mut check, read_options);
    check.done(key.map(|key| Get { key, max_age }))
}

pub(super) fn list(request: proto::ListParticipantsRequest, accounts: &Accounts) -> Result<List, Refused> {
    let proto::ListParticipantsRequest { conversation, page_size, page_token: token, read_options } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let size = self::page_size(&mut check, page_size, conversation.as_ref());
    let max_age = max_age(&mut check, read_options);
    check.done(conversation.map(|conversation| List { conversation, size, token, max_age }))
}

pub(super) fn stream(
    request: proto::StreamParticipantsRequest,
    accounts: &Accounts,
) -> Result<Stream, Refused> {
    let proto::StreamParticipantsRequest { conversation, page_size } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let size = self::page_size(&mut check, page_size, conversation.as_ref());
    check.done(conversation.map(|conversation| Stream { conversation, size }))
}

pub(super) fn create(
    request: proto::CreateParticipantRequest,
    accounts: &Accounts,
) -> Result<(Conversation, Create), Refused> {
    let proto::CreateParticipantRequest { conversation, participant, webhook_enabled } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let participant = required_participant(&mut check, participant);
    if let (Some(conversation), Some(participant)) = (&conversation, &participant) {
        let version = conversation.version;
        webhook(&mut check, webhook_enabled, version);
        for field in Field::ALL.into_iter().filter(|field| is_set(*field, participant)) {
            if field.in_create(version) {
                value(&mut check, field, participant, version);
            } else {
                cannot_carry(&mut check, field, version, "a create");
            }
        }
        if participant.addresses.is_empty() {
            check.refuse("participant.addresses", "is required");
        }
        check.0.extend(addresses::missing(&participant.addresses, version));
    }
    check.done(
        conversation
            .zip(participant)
            .map(|(conversation, participant)| (conversation, Create { participant, webhook_enabled })),
    )
}

pub(super) fn update(
    request: proto::UpdateParticipantRequest,
    accounts: &Accounts,
) -> Result<(ParticipantKey, Update), Refused> {
    let proto::UpdateParticipantRequest {
        conversation,
        participant_id,
        participant,
        update_mask,
        webhook_enabled,
    } = request;
    let mut check = Check::default();
    let key = key(&mut check, conversation, &participant_id, accounts);
    let participant = required_participant(&mut check, participant);
    let mask = Mask::parse(&mut check, update_mask.as_ref());
    let mut fields = BTreeSet::new();
    if let (Some(key), Some(participant)) = (&key, &participant) {
        let version = key.conversation.version;
        webhook(&mut check, webhook_enabled, version);
        fields = mask.fields(&mut check, participant, version);
        for field in fields.iter().copied().filter(|field| is_set(*field, participant)) {
            value(&mut check, field, participant, version);
        }
    }
    check.done(
        key.zip(participant).map(|(key, participant)| (key, Update { participant, fields, webhook_enabled })),
    )
}

pub(super) fn delete(
    request: proto::DeleteParticipantRequest,
    accounts: &Accounts,
) -> Result<Delete, Refused> {
    let proto::DeleteParticipantRequest { conversation, participant_id, webhook_enabled } = request;
    let mut check = Check::default();
    let key = key(&mut check, conversation, &participant_id, accounts);
    check.done(key.map(|key| Delete { key, webhook_enabled }))
}

// === Who and what

fn conversation(
    check: &mut Check,
    conversation: Option<ConversationRef>,
    accounts: &Accounts,
) -> Option<Conversation> {
    let Some(ConversationRef { conversation_id, service_id, account_id, api_version }) = conversation else {
        check.refuse("conversation", "is required");
        return None;
    };
    let account = accounts.resolve(&account_id);
    if account.is_none() {
        check.refuse("conversation.account_id", UNKNOWN_ACCOUNT);
    }
    let id = check.take("conversation.conversation_id", Segment::parse(&conversation_id));
    let version = id.as_ref().and_then(|id| version(check, id, api_version));
    let service = match service_id.as_str() {
        "" => None,
        _ if version == Some(ApiVersion::V2) => {
            check.refuse("conversation.service_id", "v2 has no services; leave it empty");
            None
        }
        text => {
            let service = ServiceId::parse(text).ok_or("must be `IS` and 32 hex digits");
            check.take("conversation.service_id", service)
        }
    };
    Some(Conversation { account: account?, service, version: version?, id: id? })
}

fn version(check: &mut Check, id: &Segment, api_version: i32) -> Option<ApiVersion> {
    match proto::ApiVersion::try_from(api_version) {
        Ok(proto::ApiVersion::V1) => Some(ApiVersion::V1),
        Ok(proto::ApiVersion::V2) if is_v2_id(id.as_str()) => Some(ApiVersion::V2),
        Ok(proto::ApiVersion::V2) => {
            let text = "of v2 must be letters, digits, `_` and `-`, at most 128";
            check.refuse("conversation.conversation_id", text);
            None
        }
        Ok(proto::ApiVersion::Unspecified) => {
            let text = "is neither `CH` and 32 hex digits (v1) nor `conv_conversation_…` (v2): \
                        set conversation.api_version to say which API it is of";
            check.take("conversation.conversation_id", route(id.as_str()).ok_or(text))
        }
        Err(_) => {
            check.refuse("conversation.api_version", "is no version that this gateway knows");
            None
        }
    }
}

fn key(
    check: &mut Check,
    conversation: Option<ConversationRef>,
    participant_id: &str,
    accounts: &Accounts,
) -> Option<ParticipantKey> {
    let conversation = self::conversation(check, conversation, accounts);
    let id = check.take("participant_id", Segment::parse(participant_id))?;
    let is_v2 = conversation.as_ref().is_some_and(|conversation| conversation.version == ApiVersion::V2);
    if is_v2 && !is_v2_id(id.as_str()) {
        check.refuse("participant_id", "of v2 must be letters, digits, `_` and `-`, at most 128");
    }
    Some(ParticipantKey { conversation: conversation?, id })
}

fn page_size(check: &mut Check, size: i32, conversation: Option<&Conversation>) -> u32 {
    let max = conversation.map_or(DEFAULT_PAGE_SIZE, |conversation| max_page_size(conversation.version));
    match u32::try_from(size) {
        Ok(0) => DEFAULT_PAGE_SIZE,
        Ok(size) => size.min(max),
        Err(_) => {
            check.refuse("page_size", "must not be negative");
            DEFAULT_PAGE_SIZE
        }
    }
}

fn max_age(check: &mut Check, options: Option<ReadOptions>) -> Option<Duration> {
    let ReadOptions { max_age } = options?;
    let duration = Duration::try_from(max_age?).map_err(|_| "must not be negative");
    check.take("read_options.max_age", duration)
}

fn webhook(check: &mut Check, enabled: Option<bool>, version: ApiVersion) {
    if enabled.is_some() && version == ApiVersion::V2 {
        check.refuse("webhook_enabled", "v2 cannot carry it; leave it out");
    }
}

// === The participant of a write

fn required_participant(check: &mut Check, participant: Option<Participant>) -> Option<Participant> {
    match &participant {
        None => check.refuse("participant", "is required"),
        Some(participant) if !participant.etag.is_empty() => {
            check.refuse("participant.etag", "is not accepted as a precondition yet; leave it empty");
        }
        Some(_) => {}
    }
    participant
}

fn is_set(field: Field, participant: &Participant) -> bool {
    // No `..`: a field of the contract that is neither written nor output only must not compile.
    let Participant {
        id: _,
        conversation_id: _,
        account_id: _,
        service_id: _,
        api_version: _,
        url: _,
        etag: _,
        display_name,
        r#type,
        upstream_type,
        profile_id,
        addresses,
        attributes,
        role_id,
        last_read_message_index,
        last_read_time,
        create_time,
        update_time,
    } = participant;
    match field {
        Field::DisplayName => !display_name.is_empty(),
        Field::Type => *r#type != 0 || !upstream_type.is_empty(),
        Field::ProfileId => !profile_id.is_empty(),
        Field::Addresses => !addresses.is_empty(),
        Field::Attributes => !attributes.is_empty(),
        Field::RoleId => !role_id.is_empty(),
        Field::LastReadMessageIndex => last_read_message_index.is_some(),
        Field::LastReadTime => last_read_time.is_some(),
        Field::CreateTime => create_time.is_some(),
        Field::UpdateTime => update_time.is_some(),
    }
}

fn cannot_carry(check: &mut Check, field: Field, version: ApiVersion, what: &str) {
    let other = if field.in_update(version) { "; use an update" } else { "" };
    check.refuse(
        format!("participant.{}", field.name()),
        format!("{what} of {version} cannot carry it{other}"),
    );
}

/// Checks the value of a field that is set and that the version can carry.
fn value(check: &mut Check, field: Field, participant: &Participant, version: ApiVersion) {
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
        Field::Addresses => check.0.extend(addresses::violations(&participant.addresses, version)),
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

/// Text of a bounded length without control characters, which have no business in a name, an identity or an address.
fn text(text: &str, max_chars: usize) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        Err("must not hold control characters".into())
    } else if text.chars().count() > max_chars {
        Err(format!("must not be longer than {max_chars} characters"))
    } else {
        Ok(())
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

/// Twilio's own word beside the contract's: required beside OTHER, else it must agree. `known` is the contract's word.
fn word(known: &str, upstream: &str, is_other: bool) -> Result<(), String> {
    if upstream.bytes().any(|b| !b.is_ascii_alphanumeric() && b != b'_') || upstream.len() > 64 {
        Err("must be letters, digits and `_`, at most 64".into())
    } else if is_other && upstream.is_empty() {
        Err("is required with OTHER: it is the word that is sent".into())
    } else if is_other || upstream.is_empty() || upstream.eq_ignore_ascii_case(known) {
        Ok(())
    } else {
        Err(format!("disagrees with {known}; leave it empty, or use OTHER"))
    }
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

// === Update masks

enum Mask {
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
    fn parse(check: &mut Check, mask: Option<&FieldMask>) -> Self {
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
    fn fields(&self, check: &mut Check, participant: &Participant, version: ApiVersion) -> BTreeSet<Field> {
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
            cannot_carry(check, *field, version, "an update");
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

#[cfg(test)]
mod tests;
