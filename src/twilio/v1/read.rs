//! From v1's answers to the contract's messages.

use serde::Deserialize;
use url::form_urlencoded;

use crate::proto::{self, Address, Channel};
use crate::twilio::error::Error;
use crate::twilio::http::Response;
use crate::twilio::{Cursor, Page};
use crate::wire::{Unread, attributes, channel, chat, optional_timestamp, timestamp, with_etag};

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
pub(super) struct Binding {
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
    participants: Option<Vec<Participant>>,
    meta: Option<Meta>,
}

/// Where a page stands among the others.
#[derive(Deserialize)]
pub(super) struct Meta {
    page: Option<u32>,
    previous_page_url: Option<String>,
    next_page_url: Option<String>,
    #[serde(rename = "key")]
    _key: Option<Unread>,
    #[serde(rename = "page_size")]
    _page_size: Option<Unread>,
    #[serde(rename = "first_page_url")]
    _first_page_url: Option<Unread>,
    #[serde(rename = "url")]
    _url: Option<Unread>,
}

pub(in crate::twilio) fn participant(response: &Response) -> Result<proto::Participant, Error> {
    response.json().map(|participant: Participant| participant.into_proto(response))
}

pub(in crate::twilio) fn page(response: &Response) -> Result<Page<proto::Participant>, Error> {
    let Envelope { participants, meta } = response.json()?;
    page_of(response, ("participants", participants), meta, |one| one.into_proto(response))
}

/// A page of the items that stand under this key.
pub(super) fn page_of<Wire, T>(
    response: &Response,
    (key, items): (&str, Option<Vec<Wire>>),
    meta: Option<Meta>,
    convert: impl Fn(Wire) -> T,
) -> Result<Page<T>, Error> {
    // Without either, a cut list would pass for a whole one.
    let items = items.ok_or_else(|| response.broken(key.into()))?;
    let Meta { page, previous_page_url, next_page_url, _key, _page_size, _first_page_url, _url } =
        meta.ok_or_else(|| response.broken("meta".into()))?;
    let cursor = |url: Option<String>, key: &str| match url.as_deref() {
        None | Some("") => Ok(None),
        Some(url) => cursor(url).map(Some).ok_or_else(|| response.broken(format!("meta.{key}"))),
    };
    Ok(Page {
        items: items.into_iter().map(convert).collect(),
        next: cursor(next_page_url, "next_page_url")?,
        // Twilio's own sample has a previous link on the first page, which would lead nowhere.
        previous: if page == Some(0) { None } else { cursor(previous_page_url, "previous_page_url")? },
        answered_at: response.answered_at(),
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
    fn into_proto(self, response: &Response) -> proto::Participant {
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
        // Plain text in Twilio's schema: what is no date says nothing.
        let last_read_time = last_read_timestamp.as_deref().and_then(timestamp);
        if last_read_timestamp.is_some() && last_read_time.is_none() {
            response.unknown_value("last_read_timestamp");
        }
        with_etag(proto::Participant {
            id: sid.unwrap_or_default(),
            conversation_id: conversation_sid.unwrap_or_default(),
            account_id: account_sid.unwrap_or_default(),
            service_id: chat_service_sid.unwrap_or_default(),
            api_version: proto::ApiVersion::V1.into(),
            addresses: addresses(identity, messaging_binding, || {
                response.unknown_value("messaging_binding.type");
            }),
            attributes,
            role_id: role_sid.unwrap_or_default(),
            last_read_message_index,
            last_read_time,
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

/// The identity, as the address of a chat participant, and the messaging binding, as far as they say something.
pub(super) fn addresses(
    identity: Option<String>,
    binding: Option<Binding>,
    unknown_channel: impl FnOnce(),
) -> Vec<Address> {
    let binding = binding.and_then(Binding::into_proto);
    if binding.as_ref().is_some_and(|binding| binding.channel() == Channel::Other) {
        unknown_channel();
    }
    chat(identity).into_iter().chain(binding).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
