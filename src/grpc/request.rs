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
use std::time::Duration;

use crate::ids::{
    Accounts, ApiVersion, Conversation, Field, ParticipantKey, Segment, ServiceId, is_v2_id, route,
};
use crate::participants::{Create, Cursor, PageTokens, Update, max_page_size};
use crate::proto::{self, ConversationRef, ReadOptions};

use super::status::Reason;
use check::{Check, Refused};
use mask::Mask;
use participant::{cannot_carry, is_set, required_participant, value};

const DEFAULT_PAGE_SIZE: u32 = 50;

pub(super) struct Get {
    pub(super) key: ParticipantKey,
    pub(super) max_age: Option<Duration>,
}

pub(super) struct List {
    pub(super) conversation: Conversation,
    pub(super) size: u32,
    pub(super) cursor: Cursor,
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
    let conversation = self::conversation(&mut check, conversation, accounts);
    let id = self::participant_id(&mut check, &participant_id);
    let max_age = max_age(&mut check, read_options);
    check.done(key(conversation, id).map(|key| Get { key, max_age }))
}

pub(super) fn list(
    request: proto::ListParticipantsRequest,
    accounts: &Accounts,
    page_tokens: &PageTokens,
) -> Result<List, Refused> {
    let proto::ListParticipantsRequest { conversation, page_size, page_token, read_options } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let size = self::page_size(&mut check, page_size, conversation.as_ref());
    let cursor = conversation.as_ref().and_then(|conversation| {
        let cursor = page_tokens.open(conversation, &page_token).ok();
        if cursor.is_none() {
            let text =
                "must be next_page_token or previous_page_token of this conversation's list, unchanged";
            check.refuse_as(Reason::InvalidPageToken, "page_token", text);
        }
        cursor
    });
    let max_age = max_age(&mut check, read_options);
    let list = conversation.zip(cursor);
    check.done(list.map(|(conversation, cursor)| List { conversation, size, cursor, max_age }))
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
    webhook(&mut check, webhook_enabled);
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
    let conversation = self::conversation(&mut check, conversation, accounts);
    let id = self::participant_id(&mut check, &participant_id);
    let participant = required_participant(&mut check, participant);
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
    let update = key(conversation, id).zip(participant);
    check.done(update.map(|(key, participant)| (key, Update { participant, fields, webhook_enabled })))
}

pub(super) fn delete(
    request: proto::DeleteParticipantRequest,
    accounts: &Accounts,
) -> Result<Delete, Refused> {
    let proto::DeleteParticipantRequest { conversation, participant_id, webhook_enabled } = request;
    let mut check = Check::default();
    let conversation = self::conversation(&mut check, conversation, accounts);
    let id = self::participant_id(&mut check, &participant_id);
    check.done(key(conversation, id).map(|key| Delete { key, webhook_enabled }))
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
    let account = accounts.resolve(&account_id).unwrap_or_else(|| {
        check.refuse_as(
            Reason::AccountUnknown,
            "conversation.account_id",
            "is not an account of this gateway",
        );
        // So that the rest can be checked, too.
        accounts.default_account()
    });
    let id = check.take("conversation.conversation_id", Segment::parse(&conversation_id));
    let version = id.as_ref().and_then(|id| version(check, id, api_version));
    check.version = version;
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
    Some(Conversation { account, service, version: version?, id: id? })
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

fn participant_id(check: &mut Check, text: &str) -> Option<Segment> {
    let id = check.take("participant_id", Segment::parse(text))?;
    if check.version == Some(ApiVersion::V2) && !is_v2_id(id.as_str()) {
        check.refuse("participant_id", "of v2 must be letters, digits, `_` and `-`, at most 128");
    }
    Some(id)
}

fn key(conversation: Option<Conversation>, id: Option<Segment>) -> Option<ParticipantKey> {
    Some(ParticipantKey { conversation: conversation?, id: id? })
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
    let prost_types::Duration { seconds, nanos } = max_age?;
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
