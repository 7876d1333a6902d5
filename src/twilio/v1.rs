//! Conversations v1 ("classic"): form-encoded requests with PascalCase names, snake_case JSON answers, POST as update.

mod conversations;
mod read;
mod write;

pub(super) use conversations::{conversations, conversations_route, person_query};
pub(super) use read::{page, participant};
pub(super) use write::{create_body, update_body};

use super::{Cursor, Route};
use crate::ids::{Conversation, Segment};

const ITEM: &str = "/v1/Conversations/{ConversationSid}/Participants/{Sid}";
const COLLECTION: &str = "/v1/Conversations/{ConversationSid}/Participants";
const SERVICE_ITEM: &str = "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants/{Sid}";
const SERVICE_COLLECTION: &str = "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants";

/// The text that clears a proxy or a projected address, and by analogy the last-read index. In an answer it stands for an
/// absent identity.
const NULL: &str = "null";

/// Below the account's default service, or below the one that is named.
pub(super) fn route<'a>(conversation: &'a Conversation, participant: Option<&'a Segment>) -> Route<'a> {
    let mut segments = vec!["v1"];
    if let Some(service) = &conversation.service {
        segments.extend(["Services", service.as_str()]);
    }
    segments.extend(["Conversations", conversation.id.as_str(), "Participants"]);
    segments.extend(participant.map(Segment::as_str));
    let template = match (&conversation.service, participant) {
        (None, None) => COLLECTION,
        (None, Some(_)) => ITEM,
        (Some(_), None) => SERVICE_COLLECTION,
        (Some(_), Some(_)) => SERVICE_ITEM,
    };
    Route { segments, template }
}

pub(super) fn page_query(size: u32, cursor: &Cursor) -> Vec<(&'static str, String)> {
    let mut query = vec![("PageSize", size.to_string())];
    for (name, value) in [("Page", &cursor.page), ("PageToken", &cursor.token)] {
        if !value.is_empty() {
            query.push((name, value.clone()));
        }
    }
    query
}
