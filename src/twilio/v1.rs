//! Conversations v1 ("classic"): form-encoded requests with PascalCase names, snake_case JSON answers, POST as update.

use http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::error::{Error, Operation};
use super::http::{Body, Request, Response, url};
use super::{Budget, Create, Cursor, Page, Prepared, Target, Update};
use super::{Cause, channel, optional_timestamp, timestamp, with_etag};
use crate::ids::{ApiVersion, Conversation, Field, ParticipantKey, Violation};
use crate::proto::{self, Address, Channel};

const ITEM: &str = "/v1/Conversations/{ConversationSid}/Participants/{Sid}";
const COLLECTION: &str = "/v1/Conversations/{ConversationSid}/Participants";
const SERVICE_ITEM: &str = "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants/{Sid}";
const SERVICE_COLLECTION: &str = "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants";

/// The text that clears a proxy or a projected address, and by analogy the last-read index. In an answer it stands for an
/// absent identity.
const NULL: &str = "null";

pub(super) async fn fetch(
    target: &Target<'_>,
    key: &ParticipantKey,
    budget: Budget,
) -> Result<proto::Participant, Error> {
    let request = item(target, Operation::Fetch, Method::GET, key, budget)?;
    decode(&target.http.send(request).await?)
}

pub(super) async fn list(
    target: &Target<'_>,
    conversation: &Conversation,
    size: u32,
    cursor: &Cursor,
    budget: Budget,
) -> Result<Page, Error> {
    let mut request = collection(target, Operation::List, Method::GET, conversation, budget)?;
    request.url.query_pairs_mut().append_pair("PageSize", &size.to_string());
    for (name, value) in [("Page", &cursor.page), ("PageToken", &cursor.token)] {
        if !value.is_empty() {
            request.url.query_pairs_mut().append_pair(name, value);
        }
    }
    page(&target.http.send(request).await?)
}

pub(super) async fn create(
    target: &Target<'_>,
    conversation: &Conversation,
    create: &Create,
    budget: Budget,
) -> Result<proto::Participant, Error> {
    let mut request = collection(target, Operation::Create, Method::POST, conversation, budget)?;
    request.webhook_enabled = create.webhook_enabled;
    request.body = Some(form(&create_form(&create.participant)));
    decode(&target.http.send(request).await?)
}

pub(super) async fn update(
    target: &Target<'_>,
    key: &ParticipantKey,
    prepared: Prepared,
    budget: Budget,
) -> Result<proto::Participant, Error> {
    let mut request = item(target, Operation::Update, Method::POST, key, budget)?;
    request.webhook_enabled = prepared.webhook_enabled;
    request.body = prepared.body;
    decode(&target.http.send(request).await?)
}

pub(super) async fn delete(
    target: &Target<'_>,
    key: &ParticipantKey,
    webhook_enabled: Option<bool>,
    budget: Budget,
) -> Result<(), Error> {
    let mut request = item(target, Operation::Delete, Method::DELETE, key, budget)?;
    request.webhook_enabled = webhook_enabled;
    target.http.send(request).await.map(|_| ())
}

fn item(
    target: &Target<'_>,
    operation: Operation,
    method: Method,
    key: &ParticipantKey,
    budget: Budget,
) -> Result<Request, Error> {
    request(target, operation, method, &key.conversation, Some(key.id.as_str()), budget)
}

fn collection(
    target: &Target<'_>,
    operation: Operation,
    method: Method,
    conversation: &Conversation,
    budget: Budget,
) -> Result<Request, Error> {
    request(target, operation, method, conversation, None, budget)
}

fn request(
    target: &Target<'_>,
    operation: Operation,
    method: Method,
    conversation: &Conversation,
    participant: Option<&str>,
    budget: Budget,
) -> Result<Request, Error> {
    let mut segments = vec!["v1"];
    if let Some(service) = &conversation.service {
        segments.extend(["Services", service.as_str()]);
    }
    segments.extend(["Conversations", conversation.id.as_str(), "Participants"]);
    segments.extend(participant);
    let template = match (&conversation.service, participant) {
        (None, None) => COLLECTION,
        (None, Some(_)) => ITEM,
        (Some(_), None) => SERVICE_COLLECTION,
        (Some(_), Some(_)) => SERVICE_ITEM,
    };
    let url = url(target.endpoint.url(ApiVersion::V1), &segments).map_err(|violation| Error {
        operation,
        version: ApiVersion::V1,
        cause: Cause::Unsupported(vec![violation]),
    })?;
    let authorization = target.endpoint.authorization.clone();
    Ok(Request::new((operation, ApiVersion::V1), (method, url), template, authorization, budget))
}

// === Reading

#[derive(Deserialize)]
struct Participant {
    account_sid: Option<String>,
    conversation_sid: Option<String>,
    chat_service_sid: Option<String>,
    sid: Option<String>,
    identity: Option<String>,
    #[serde(default, deserialize_with = "attributes")]
    attributes: String,
    messaging_binding: Option<Binding>,
    role_sid: Option<String>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_created: Option<prost_types::Timestamp>,
    #[serde(default, deserialize_with = "optional_timestamp")]
    date_updated: Option<prost_types::Timestamp>,
    url: Option<String>,
    last_read_message_index: Option<i64>,
    last_read_timestamp: Option<String>,
}

#[derive(Deserialize)]
struct Binding {
    #[serde(rename = "type")]
    channel: Option<String>,
    address: Option<String>,
    proxy_address: Option<String>,
    projected_address: Option<String>,
    level: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    participants: Vec<Participant>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    page: Option<u32>,
    previous_page_url: Option<String>,
    next_page_url: Option<String>,
}

fn decode(response: &Response) -> Result<proto::Participant, Error> {
    response.json().map(Participant::into_proto)
}

fn page(response: &Response) -> Result<Page, Error> {
    let Envelope { participants, meta: Meta { page, previous_page_url, next_page_url } } = response.json()?;
    let cursor = |url: Option<String>, key: &str| match url.as_deref() {
        None | Some("") => Ok(None),
        Some(url) => cursor(url).map(Some).ok_or_else(|| response.broken(format!("meta.{key}"))),
    };
    Ok(Page {
        participants: participants.into_iter().map(Participant::into_proto).collect(),
        next: cursor(next_page_url, "next_page_url")?,
        // Twilio's own sample has a previous link on the first page, which would lead nowhere.
        previous: if page == Some(0) { None } else { cursor(previous_page_url, "previous_page_url")? },
    })
}

/// Only the two parameters are taken from the link: its host is not ours to trust.
fn cursor(url: &str) -> Option<Cursor> {
    let (_, query) = url.split_once('?')?;
    let mut cursor = Cursor::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "Page" if value.len() <= 10 && value.bytes().all(|b| b.is_ascii_digit()) => {
                cursor.page = value.into_owned();
            }
            "PageToken" => cursor.token = value.into_owned(),
            _ => {}
        }
    }
    (cursor != Cursor::default()).then_some(cursor)
}

impl Participant {
    fn into_proto(self) -> proto::Participant {
        // No `..`: a key that is read and not carried over must not compile.
        let Self {
            account_sid,
            conversation_sid,
            chat_service_sid,
            sid,
            identity,
            attributes,
            messaging_binding,
            role_sid,
            date_created,
            date_updated,
            url,
            last_read_message_index,
            last_read_timestamp,
        } = self;
        let identity = identity.filter(|identity| !identity.is_empty() && identity != NULL);
        let chat =
            identity.map(|address| Address { channel: Channel::Chat.into(), address, ..Address::default() });
        with_etag(proto::Participant {
            id: sid.unwrap_or_default(),
            conversation_id: conversation_sid.unwrap_or_default(),
            account_id: account_sid.unwrap_or_default(),
            service_id: chat_service_sid.unwrap_or_default(),
            api_version: proto::ApiVersion::V1.into(),
            addresses: chat.into_iter().chain(messaging_binding.and_then(Binding::into_proto)).collect(),
            attributes,
            role_id: role_sid.unwrap_or_default(),
            last_read_message_index,
            // Plain text in Twilio's schema: what is no date says nothing.
            last_read_time: last_read_timestamp.as_deref().and_then(timestamp),
            create_time: date_created,
            update_time: date_updated,
            url: url.unwrap_or_default(),
            display_name: String::new(),
            r#type: 0,
            upstream_type: String::new(),
            profile_id: String::new(),
            etag: String::new(),
        })
    }
}

impl Binding {
    /// `None` for a binding that says nothing: all its keys may be there with nulls.
    fn into_proto(self) -> Option<Address> {
        let Self { channel: word, address, proxy_address, projected_address, level, name } = self;
        let address = Address {
            channel: channel(word.as_deref()).into(),
            upstream_channel: word.unwrap_or_default(),
            address: address.unwrap_or_default(),
            channel_id: String::new(),
            proxy_address: proxy_address.unwrap_or_default(),
            projected_address: projected_address.unwrap_or_default(),
            level: level.unwrap_or_default(),
            display_name: name.unwrap_or_default(),
        };
        (address != Address::default()).then_some(address)
    }
}

/// Text as it is; an object, as Twilio's older samples show it, as compact JSON.
fn attributes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let Some(raw) = Option::<Box<RawValue>>::deserialize(deserializer)? else {
        return Ok(String::new());
    };
    match raw.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw.get()).map_err(serde::de::Error::custom),
        Some(b'{') => Ok(compact(raw.get())),
        _ => Err(serde::de::Error::custom("neither text nor an object")),
    }
}

/// Valid JSON without the white space between its tokens. The tokens stay as they are: to parse them would lose the order
/// of keys and the digits of large numbers.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            if in_string {
                in_string = escaped || c != '"';
                escaped = !escaped && c == '\\';
                return true;
            }
            in_string = c == '"';
            !c.is_ascii_whitespace()
        })
        .collect()
}

// === Writing

type Form = Vec<(&'static str, String)>;

fn form(pairs: &Form) -> Body {
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    Body::Form(encoded.into())
}

/// What only one of the two entries holds that v1 knows: the identity, and the messaging binding.
fn split(addresses: &[Address]) -> (Option<&Address>, Option<&Address>) {
    let is_chat = |address: &&Address| address.channel() == Channel::Chat;
    (addresses.iter().find(is_chat), addresses.iter().find(|address| !is_chat(address)))
}

fn create_form(participant: &proto::Participant) -> Form {
    let (chat, binding) = split(&participant.addresses);
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let part = |part: fn(&Address) -> &String| binding.map(part).and_then(text);
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(ToString::to_string);
    [
        ("Identity", chat.map(|chat| chat.address.clone())),
        ("MessagingBinding.Address", part(|binding| &binding.address)),
        ("MessagingBinding.ProxyAddress", part(|binding| &binding.proxy_address)),
        ("MessagingBinding.ProjectedAddress", part(|binding| &binding.projected_address)),
        ("Attributes", text(&participant.attributes)),
        ("RoleSid", text(&participant.role_id)),
        ("DateCreated", time(&participant.create_time)),
        ("DateUpdated", time(&participant.update_time)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

/// The form of an update; `None` where nothing differs.
pub(super) fn update_body(
    update: &Update,
    current: Option<&proto::Participant>,
) -> Result<Option<Body>, Vec<Violation>> {
    let new = &update.participant;
    let mut pairs = Form::new();
    for field in &update.fields {
        match field {
            Field::Addresses => {
                let there = current.map(|current| current.addresses.as_slice()).unwrap_or_default();
                pairs.extend(changed_addresses(there, &new.addresses)?);
            }
            Field::Attributes if new.attributes.is_empty() => pairs.push(("Attributes", "{}".into())),
            Field::Attributes => pairs.push(("Attributes", new.attributes.clone())),
            Field::RoleId => pairs.push(("RoleSid", new.role_id.clone())),
            Field::LastReadMessageIndex => {
                let index =
                    new.last_read_message_index.map_or_else(|| NULL.into(), |index| index.to_string());
                // There is nothing to clear where nothing is set.
                if index != NULL || current.is_none_or(|current| current.last_read_message_index.is_some()) {
                    pairs.push(("LastReadMessageIndex", index));
                }
            }
            Field::LastReadTime => push_time(&mut pairs, "LastReadTimestamp", new.last_read_time.as_ref()),
            Field::CreateTime => push_time(&mut pairs, "DateCreated", new.create_time.as_ref()),
            Field::UpdateTime => push_time(&mut pairs, "DateUpdated", new.update_time.as_ref()),
            // v2's; the request was checked against the version.
            Field::DisplayName | Field::Type | Field::ProfileId => {}
        }
    }
    Ok((!pairs.is_empty()).then(|| form(&pairs)))
}

fn push_time(pairs: &mut Form, name: &'static str, time: Option<&prost_types::Timestamp>) {
    pairs.extend(time.map(|time| (name, time.to_string())));
}

/// What differs, for Twilio answers 50441 to a proxy address that is sent again unchanged. Entries can be neither added
/// nor removed, and the address of a binding is fixed: v1 has no parameter for these.
fn changed_addresses(current: &[Address], new: &[Address]) -> Result<Form, Vec<Violation>> {
    let (current_chat, current_binding) = split(current);
    let (chat, binding) = split(new);
    let mut violations = Vec::new();
    let mut pairs = Form::new();
    match (current_chat, chat) {
        (Some(there), Some(new)) if there.address != new.address => {
            pairs.push(("Identity", new.address.clone()));
        }
        (Some(_), Some(_)) | (None, None) => {}
        (None, Some(_)) => violations.push("v1 cannot add an identity to a participant without one"),
        (Some(_), None) => violations.push("v1 cannot take the identity from a participant"),
    }
    match (current_binding, binding) {
        (Some(there), Some(new)) => {
            if there.address != new.address {
                violations
                    .push("v1 cannot change the address of a participant: delete it and create another");
            }
            if new.channel() != Channel::Unspecified && new.channel() != there.channel() {
                violations
                    .push("v1 cannot change the channel of a participant: delete it and create another");
            }
            for (name, there, new) in [
                ("MessagingBinding.ProxyAddress", &there.proxy_address, &new.proxy_address),
                ("MessagingBinding.ProjectedAddress", &there.projected_address, &new.projected_address),
            ] {
                if there != new {
                    pairs.push((name, if new.is_empty() { NULL.into() } else { new.clone() }));
                }
            }
        }
        (None, None) => {}
        (None, Some(_)) => violations.push("v1 cannot add a messaging binding to a participant without one"),
        (Some(_), None) => violations.push("v1 cannot take the messaging binding from a participant"),
    }
    if violations.is_empty() {
        Ok(pairs)
    } else {
        Err(violations.into_iter().map(|text| Violation::new("participant.addresses", text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_every_token() {
        let spaced = "{ \"a b\" : [ 1e400 , \"\\\" { \\\\\" ] ,\n\t\"z\" : 12345678901234567890 }";
        assert_eq!(compact(spaced), r#"{"a b":[1e400,"\" { \\"],"z":12345678901234567890}"#);
    }

    #[test]
    fn a_page_link_gives_its_two_parameters_and_nothing_else() {
        let taken = |url: &str| cursor(url).map(|cursor| (cursor.page, cursor.token));
        for host in
            ["https://conversations.twilio.com", "http://evil", "//evil", "\\\\evil", "", "https://u:p@x:1"]
        {
            let url =
                format!("{host}/v1/Conversations/CH1/Participants?PageSize=50&Page=1&PageToken=PAMB%2B1");
            assert_eq!(taken(&url), Some(("1".into(), "PAMB+1".into())), "{url}");
        }
        assert_eq!(taken("https://x/?PageSize=50&Page=1"), Some(("1".into(), String::new())));
        assert_eq!(taken("https://x/?PageSize=50"), None);
        assert_eq!(taken("https://x/?Page=..%2F"), None);
    }
}
