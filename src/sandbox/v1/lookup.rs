//! The conversations of one participant:
//! <https://www.twilio.com/docs/conversations-classic/api/participant-conversation-resource>.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use url::form_urlencoded;

use super::conversation::{Conversation, State, Timers};
use super::list::{Meta, PageQuery};
use super::participant::{Binding, Participant};
use super::refusal::Refusal;
use super::view::{View, sid};
use crate::sandbox::call::Call;
use crate::sandbox::dates;
use crate::sandbox::seed::SERVICE_SID;
use crate::sandbox::store::{Roster, Tenant};

const MOST_PER_PAGE: usize = 50;

#[derive(Serialize)]
struct Listing<'a> {
    conversations: Vec<Resource<'a>>,
    meta: Meta,
}

/// In the order of the documented schema.
#[derive(Serialize)]
struct Resource<'a> {
    account_sid: &'a str,
    chat_service_sid: &'static str,
    participant_sid: String,
    participant_user_sid: Option<String>,
    participant_identity: Option<&'a str>,
    participant_messaging_binding: Option<BindingResource<'a>>,
    conversation_sid: &'a str,
    conversation_unique_name: Option<&'a str>,
    conversation_friendly_name: Option<&'a str>,
    conversation_attributes: &'a str,
    conversation_date_created: String,
    conversation_date_updated: String,
    conversation_created_by: &'static str,
    conversation_state: State,
    conversation_timers: &'a Timers,
    links: Links,
}

/// Here the documented samples show every key, with null for what is not there.
#[derive(Serialize)]
struct BindingResource<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    address: Option<&'a str>,
    proxy_address: Option<&'a str>,
    projected_address: Option<&'a str>,
    level: Option<&'a str>,
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Links {
    participant: String,
    conversation: String,
}

/// Who is looked up: exactly one of the two.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Identity(String),
    Address(String),
}

impl Wanted {
    fn parse(query: &str) -> Result<Wanted, Refusal> {
        let (mut identity, mut address) = (None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()).filter(|(_, value)| !value.is_empty()) {
            match name.as_ref() {
                "Identity" => identity = Some(value.into_owned()),
                "Address" => address = Some(value.into_owned()),
                _ => {}
            }
        }
        match (identity, address) {
            (Some(identity), None) => Ok(Wanted::Identity(identity)),
            (None, Some(address)) => Ok(Wanted::Address(address)),
            (None, None) | (Some(_), Some(_)) => Err(Refusal::NotOneLookup),
        }
    }

    fn is(&self, participant: &Participant) -> bool {
        match self {
            Wanted::Identity(identity) => participant.identity.as_ref() == Some(identity),
            Wanted::Address(address) => {
                participant.binding.as_ref().is_some_and(|binding| binding.address.as_ref() == Some(address))
            }
        }
    }

    /// As the page's links repeat it.
    fn query(&self) -> String {
        let (name, value) = match self {
            Wanted::Identity(identity) => ("Identity", identity),
            Wanted::Address(address) => ("Address", address),
        };
        form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
    }
}

/// Nobody of that name is an empty page, not an error.
pub(super) fn conversations(tenant: &Tenant, call: &Call, view: &View<'_>) -> Result<Response, Refusal> {
    let wanted = Wanted::parse(&call.query)?;
    let asked = PageQuery::parse(&call.query, MOST_PER_PAGE)?;
    let mut found = Roster::default();
    for conversation in &tenant.classic {
        let participants = conversation.roster.iter();
        for (serial, participant) in participants.filter(|(_, participant)| wanted.is(participant)) {
            found.put(serial, (conversation, participant));
        }
    }
    let page = found.page(asked.cursor(), asked.size);
    let url = format!("{}/ParticipantConversations?{}&", view.root(), wanted.query());
    let listing = Listing {
        meta: Meta::of(&asked, &page, &url, "conversations"),
        conversations: page
            .items
            .iter()
            .map(|(serial, (conversation, participant))| {
                resource(tenant, view, conversation, *serial, participant)
            })
            .collect(),
    };
    Ok(Json(listing).into_response())
}

fn resource<'a>(
    tenant: &'a Tenant,
    view: &View<'_>,
    conversation: &'a Conversation,
    serial: u64,
    participant: &'a Participant,
) -> Resource<'a> {
    let collection = view.collection(conversation);
    Resource {
        account_sid: &tenant.account_sid,
        chat_service_sid: SERVICE_SID,
        participant_sid: sid(serial),
        participant_user_sid: participant.identity.as_deref().map(user_sid),
        participant_identity: participant.identity.as_deref(),
        participant_messaging_binding: participant.binding.as_ref().map(BindingResource::of),
        conversation_sid: &conversation.sid,
        conversation_unique_name: conversation.unique_name.as_deref(),
        conversation_friendly_name: conversation.friendly_name.as_deref(),
        conversation_attributes: &conversation.attributes,
        conversation_date_created: dates::seconds(conversation.created),
        conversation_date_updated: dates::seconds(conversation.updated),
        // What Twilio calls a creator that came over REST.
        conversation_created_by: "system",
        conversation_state: conversation.state,
        conversation_timers: &conversation.timers,
        links: Links {
            participant: format!("{collection}/{}", sid(serial)),
            conversation: view.conversation(conversation),
        },
    }
}

impl<'a> BindingResource<'a> {
    fn of(binding: &'a Binding) -> BindingResource<'a> {
        BindingResource {
            kind: binding.channel(),
            address: binding.address.as_deref(),
            proxy_address: binding.proxy.as_deref(),
            projected_address: binding.projected.as_deref(),
            level: None,
            name: None,
        }
    }
}

/// There are no users here, but an identity has the same SID wherever it is shown.
fn user_sid(identity: &str) -> String {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    format!("US{:032x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_is_looked_up() {
        assert_eq!(Wanted::parse("Identity=a%2Bb&PageSize=1"), Ok(Wanted::Identity("a+b".to_owned())));
        assert_eq!(Wanted::parse("Identity=&Address=%2B1"), Ok(Wanted::Address("+1".to_owned())));
        for query in ["", "PageSize=1", "Identity=", "Identity=a&Address=b"] {
            assert_eq!(Wanted::parse(query), Err(Refusal::NotOneLookup), "{query}");
        }
        assert_eq!(Wanted::Address("+1&".to_owned()).query(), "Address=%2B1%26");
    }
}
