//! From a request of the contract to a typed intent, or to everything that is wrong with it at once.

mod addresses;
mod attributes;
mod check;
mod mask;
mod participant;
#[cfg(test)]
mod properties;
mod text;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use crate::ids::{
    AccountId, Accounts, ApiVersion, Conversation, Field, ParticipantKey, Person, PersonKey, RequestId,
    Segment, ServiceId, is_v2_id, route,
};
use crate::participants::{
    Create, Cursor, Listed, MAX_CONVERSATIONS_PAGE_SIZE, PageTokens, Position, Tolerance, Update,
    WatchFilter, is_set, max_page_size,
};
use crate::proto::{self, ConversationRef, ParticipantEventType, ReadOptions};

use super::status::Reason;
use check::{Check, Refused};
use mask::Mask;
use participant::{cannot_carry, value};
use text::text;

const DEFAULT_PAGE_SIZE: u32 = 50;
const MAX_BATCH: usize = 100;
const MAX_WATCHED: usize = 1000;
/// "Conversations limits": identity and address, 256 characters.
const MAX_PERSON_CHARS: usize = 256;

pub(super) struct Get {
    pub(super) key: ParticipantKey,
    pub(super) tolerance: Tolerance,
}

pub(super) struct List {
    pub(super) conversation: Conversation,
    pub(super) size: u32,
    pub(super) cursor: Cursor,
    pub(super) tolerance: Tolerance,
}

pub(super) struct BatchGet {
    pub(super) conversation: Conversation,
    pub(super) ids: Vec<Segment>,
    pub(super) tolerance: Tolerance,
    pub(super) partial: bool,
}

pub(super) struct ListConversations {
    pub(super) version: ApiVersion,
    pub(super) person: PersonKey,
    pub(super) size: u32,
    pub(super) cursor: Cursor,
    pub(super) tolerance: Tolerance,
}

pub(super) struct Watch {
    pub(super) filter: WatchFilter,
    pub(super) after: Option<Position>,
}

pub(super) struct Created {
    pub(super) conversation: Conversation,
    pub(super) create: Create,
    pub(super) request_id: Option<RequestId>,
}

pub(super) struct Updated {
    pub(super) key: ParticipantKey,
    pub(super) update: Update,
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
    let conversation = self::conversation(&mut check, conversation, accounts);
    let id = self::participant_id(&mut check, "participant_id", &participant_id);
    let tolerance = tolerance(&mut check, read_options);
    check.done(key(conversation, id).map(|key| Get { key, tolerance }))
}

pub(super) fn list(
    request: proto::ListParticipantsRequest,
    accounts: &Accounts,
    page_tokens: &PageTokens,
) -> Result<List, Refused> {
    let proto::ListParticipantsRequest { conversation, page_size, page_token, read_options } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let size = self::page_size(&mut check, page_size, max_page_size_of(conversation.as_ref()));
    let cursor = conversation.as_ref().and_then(|list| cursor(&mut check, page_tokens, list, &page_token));
    let tolerance = tolerance(&mut check, read_options);
    let list = conversation.zip(cursor);
    check.done(list.map(|(conversation, cursor)| List { conversation, size, cursor, tolerance }))
}

pub(super) fn batch_get(
    request: proto::BatchGetParticipantsRequest,
    accounts: &Accounts,
) -> Result<BatchGet, Refused> {
    let proto::BatchGetParticipantsRequest {
        conversation,
        participant_ids,
        read_options,
        return_partial_success: partial,
    } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let ids = participant_ids.iter().take(MAX_BATCH).enumerate();
    let ids: Vec<Segment> = ids
        .filter_map(|(at, id)| self::participant_id(&mut check, &format_args!("participant_ids[{at}]"), id))
        .collect();
    if !(1..=MAX_BATCH).contains(&participant_ids.len()) {
        check.refuse("participant_ids", format!("must be from 1 to {MAX_BATCH}"));
    }
    let tolerance = tolerance(&mut check, read_options);
    check.done(conversation.map(|conversation| BatchGet { conversation, ids, tolerance, partial }))
}

pub(super) fn list_conversations(
    request: proto::ListParticipantConversationsRequest,
    accounts: &Accounts,
    page_tokens: &PageTokens,
) -> Result<ListConversations, Refused> {
    let proto::ListParticipantConversationsRequest {
        account_id,
        service_id,
        api_version,
        identity,
        address,
        page_size,
        page_token,
        read_options,
    } = request;
    let mut check = Check::default();
    let account = account(&mut check, "account_id", &account_id, accounts);
    let tolerance = tolerance(&mut check, read_options);
    let size = self::page_size(&mut check, page_size, MAX_CONVERSATIONS_PAGE_SIZE);
    let person = person(&mut check, &identity, &address);
    let version = match proto::ApiVersion::try_from(api_version) {
        Ok(proto::ApiVersion::Unspecified | proto::ApiVersion::V1) => Some(ApiVersion::V1),
        Ok(proto::ApiVersion::V2) => Some(ApiVersion::V2),
        Err(_) => {
            check.refuse("api_version", "is no version that this gateway knows");
            None
        }
    };
    check.version = version;
    let service = service(&mut check, "service_id", &service_id);
    let person = person.map(|person| PersonKey { account, service, person });
    let cursor = person.as_ref().and_then(|list| cursor(&mut check, page_tokens, list, &page_token));
    let list = version.zip(person).zip(cursor);
    check.done(list.map(|((version, person), cursor)| ListConversations {
        version,
        person,
        size,
        cursor,
        tolerance,
    }))
}

pub(super) fn watch(request: proto::WatchParticipantsRequest, accounts: &Accounts) -> Result<Watch, Refused> {
    let proto::WatchParticipantsRequest { conversations, event_types, resume_token } = request;
    let mut check = Check::default();
    if conversations.len() > MAX_WATCHED {
        check.refuse("conversations", format!("must be at most {MAX_WATCHED}"));
    }
    let mut filter = WatchFilter::default();
    for (at, reference) in conversations.into_iter().take(MAX_WATCHED).enumerate() {
        let field = format!("conversations[{at}]");
        let Some(conversation) = self::named_conversation(&mut check, &field, Some(reference), accounts)
        else {
            continue;
        };
        if conversation.is_unique_name() {
            check
                .refuse(format!("{field}.conversation_id"), "must be the SID: an event tells no unique name");
        }
        if conversation.service.is_some() {
            check.refuse(format!("{field}.service_id"), "must be empty: an event tells no service");
        }
        let Conversation { account, version, id, .. } = conversation;
        filter.conversations.insert((account, version, id.as_str().to_owned()));
    }
    for (at, event_type) in event_types.into_iter().enumerate() {
        match ParticipantEventType::try_from(event_type) {
            Ok(event_type) if event_type != ParticipantEventType::Unspecified => {
                filter.types.insert(event_type);
            }
            _ => check.refuse(format!("event_types[{at}]"), "is no type of event that this gateway knows"),
        }
    }
    let after = match resume_token.as_str() {
        "" => None,
        token => check
            .take("resume_token", token.parse().map_err(|_| "must be a token that a watch gave, unchanged")),
    };
    // It is about no one version.
    check.version = None;
    check.done(Some(Watch { filter, after }))
}

pub(super) fn stream(
    request: proto::StreamParticipantsRequest,
    accounts: &Accounts,
) -> Result<Stream, Refused> {
    let proto::StreamParticipantsRequest { conversation, page_size } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let size = self::page_size(&mut check, page_size, max_page_size_of(conversation.as_ref()));
    check.done(conversation.map(|conversation| Stream { conversation, size }))
}

pub(super) fn create(
    request: proto::CreateParticipantRequest,
    accounts: &Accounts,
) -> Result<Created, Refused> {
    let proto::CreateParticipantRequest {
        conversation,
        participant,
        webhook_enabled,
        request_id,
        validate_only: _,
    } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    match &participant {
        None => check.refuse("participant", "is required"),
        Some(participant) if !participant.etag.is_empty() => {
            check.refuse("participant.etag", "has nothing to be compared with in a create; leave it empty");
        }
        Some(_) => {}
    }
    webhook(&mut check, webhook_enabled);
    let request_id = self::request_id(&mut check, &request_id);
    if let (Some(version), Some(participant)) = (check.version, &participant) {
        for field in Field::ALL.into_iter().filter(|field| is_set(*field, participant)) {
            if field.in_create(version) {
                value(&mut check, field, participant, version);
            } else {
                cannot_carry(&mut check, field, participant, version, "a create");
            }
        }
        if participant.addresses.is_empty() {
            check.refuse("participant.addresses", "is required");
        }
        check.extend(addresses::create_violations(&participant.addresses, version));
    }
    check.done(conversation.zip(participant).map(|(conversation, participant)| Created {
        conversation,
        create: Create { participant, webhook_enabled },
        request_id,
    }))
}

pub(super) fn update(
    request: proto::UpdateParticipantRequest,
    accounts: &Accounts,
) -> Result<Updated, Refused> {
    let proto::UpdateParticipantRequest {
        conversation,
        participant_id,
        participant,
        update_mask,
        webhook_enabled,
        validate_only: _,
    } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let id = self::participant_id(&mut check, "participant_id", &participant_id);
    if participant.is_none() {
        check.refuse("participant", "is required");
    }
    let mask = Mask::parse(&mut check, update_mask.as_ref());
    webhook(&mut check, webhook_enabled);
    let mut fields = BTreeSet::new();
    if let (Some(version), Some(participant)) = (check.version, &participant) {
        fields = mask.fields(&mut check, participant, version);
        // What the version cannot carry is refused already.
        let carried = |field: &Field| field.in_update(version) && is_set(*field, participant);
        for field in fields.iter().copied().filter(carried) {
            value(&mut check, field, participant, version);
        }
    }
    check.done(
        key(conversation, id).zip(participant).map(|(key, participant)| Updated {
            key,
            update: Update { participant, fields, webhook_enabled },
        }),
    )
}

pub(super) fn delete(
    request: proto::DeleteParticipantRequest,
    accounts: &Accounts,
) -> Result<Delete, Refused> {
    let proto::DeleteParticipantRequest { conversation, participant_id, webhook_enabled } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let id = self::participant_id(&mut check, "participant_id", &participant_id);
    check.done(key(conversation, id).map(|key| Delete { key, webhook_enabled }))
}

// === Who and what

fn conversation(
    check: &mut Check,
    conversation: Option<ConversationRef>,
    accounts: &Accounts,
) -> Option<Conversation> {
    named_conversation(check, "conversation", conversation, accounts)
}

/// The conversation that stands in this field.
fn named_conversation(
    check: &mut Check,
    field: &str,
    conversation: Option<ConversationRef>,
    accounts: &Accounts,
) -> Option<Conversation> {
    let Some(ConversationRef { conversation_id, service_id, account_id, api_version }) = conversation else {
        check.refuse(field, "is required");
        return None;
    };
    let account = account(check, &format_args!("{field}.account_id"), &account_id, accounts);
    let id = check.take(&format_args!("{field}.conversation_id"), Segment::parse(&conversation_id));
    let version = id.as_ref().and_then(|id| version(check, field, id, api_version));
    check.version = version;
    let service = service(check, &format_args!("{field}.service_id"), &service_id);
    Some(Conversation { account, service, version: version?, id: id? })
}

fn account(
    check: &mut Check,
    field: &(impl Display + ?Sized),
    account_id: &str,
    accounts: &Accounts,
) -> AccountId {
    accounts.resolve(account_id).unwrap_or_else(|| {
        check.refuse_as(Reason::AccountUnknown, field, "is not an account of this gateway");
        // So that the rest can be checked, too.
        accounts.default_account()
    })
}

fn service(check: &mut Check, field: &(impl Display + ?Sized), service_id: &str) -> Option<ServiceId> {
    match service_id {
        "" => None,
        _ if check.version == Some(ApiVersion::V2) => {
            check.refuse(field.to_string(), "v2 has no services; leave it empty");
            None
        }
        text => check.take(field, ServiceId::parse(text).ok_or("must be `IS` and 32 hex digits")),
    }
}

fn person(check: &mut Check, identity: &str, address: &str) -> Option<Person> {
    let (field, value) = match (identity.is_empty(), address.is_empty()) {
        (false, true) => ("identity", identity),
        (true, false) => ("address", address),
        (true, true) | (false, false) => {
            check.refuse("identity", "is required, or address is, and not both");
            return None;
        }
    };
    check.take(field, text(value, MAX_PERSON_CHARS))?;
    let person = if address.is_empty() { Person::Identity } else { Person::Address };
    Some(person(value.into()))
}

fn request_id(check: &mut Check, text: &str) -> Option<RequestId> {
    if text.is_empty() {
        return None;
    }
    let text = RequestId::parse(text)
        .ok_or("must be a UUID such as 7c9e6679-7425-40de-944b-e07fc1f90ae7, and not the nil one");
    check.take("request_id", text)
}

fn version(check: &mut Check, field: &str, id: &Segment, api_version: i32) -> Option<ApiVersion> {
    match proto::ApiVersion::try_from(api_version) {
        Ok(proto::ApiVersion::V1) => Some(ApiVersion::V1),
        Ok(proto::ApiVersion::V2) if is_v2_id(id.as_str()) => Some(ApiVersion::V2),
        Ok(proto::ApiVersion::V2) => {
            let text = "of v2 must be letters, digits, `_` and `-`, at most 128";
            check.refuse(format!("{field}.conversation_id"), text);
            None
        }
        Ok(proto::ApiVersion::Unspecified) => {
            let text = "is neither `CH` and 32 hex digits (v1) nor `conv_conversation_…` (v2): \
                        set api_version to say which API it is of";
            check.take(&format_args!("{field}.conversation_id"), route(id.as_str()).ok_or(text))
        }
        Err(_) => {
            check.refuse(format!("{field}.api_version"), "is no version that this gateway knows");
            None
        }
    }
}

fn participant_id(check: &mut Check, field: &(impl Display + ?Sized), text: &str) -> Option<Segment> {
    let id = check.take(field, Segment::parse(text))?;
    if check.version == Some(ApiVersion::V2) && !is_v2_id(id.as_str()) {
        check.refuse(field.to_string(), "of v2 must be letters, digits, `_` and `-`, at most 128");
    }
    Some(id)
}

fn key(conversation: Option<Conversation>, id: Option<Segment>) -> Option<ParticipantKey> {
    Some(ParticipantKey { conversation: conversation?, id: id? })
}

fn max_page_size_of(conversation: Option<&Conversation>) -> u32 {
    conversation.map_or(DEFAULT_PAGE_SIZE, |conversation| max_page_size(conversation.version))
}

fn cursor<'a>(
    check: &mut Check,
    page_tokens: &PageTokens,
    list: impl Into<Listed<'a>>,
    page_token: &str,
) -> Option<Cursor> {
    let cursor = page_tokens.open(list, page_token).ok();
    if cursor.is_none() {
        let text = "must be a token that an answer for this very list gave, unchanged";
        check.refuse_as(Reason::InvalidPageToken, "page_token", text);
    }
    cursor
}

fn page_size(check: &mut Check, size: i32, max: u32) -> u32 {
    match u32::try_from(size) {
        Ok(0) => DEFAULT_PAGE_SIZE,
        Ok(size) => size.min(max),
        Err(_) => {
            check.refuse("page_size", "must not be negative");
            DEFAULT_PAGE_SIZE
        }
    }
}

fn tolerance(check: &mut Check, options: Option<ReadOptions>) -> Tolerance {
    let ReadOptions { max_age, allow_stale_on_error } = options.unwrap_or_default();
    Tolerance {
        max_age: max_age.and_then(|age| self::max_age(check, age)),
        stale_on_error: allow_stale_on_error,
    }
}

fn max_age(check: &mut Check, max_age: prost_types::Duration) -> Option<Duration> {
    let prost_types::Duration { seconds, nanos } = max_age;
    // Not by prost's conversion: to refuse a negative duration it negates it, which overflows for the smallest.
    let duration = match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => Ok(Duration::new(seconds, nanos)),
        _ => Err("must not be negative, with nanos from 0 to 999999999"),
    };
    check.take("read_options.max_age", duration)
}

fn webhook(check: &mut Check, enabled: Option<bool>) {
    if enabled.is_some() && check.version == Some(ApiVersion::V2) {
        check.refuse("webhook_enabled", "v2 cannot carry it; leave it out");
    }
}
