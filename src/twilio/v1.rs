//! Conversations v1 ("classic"): form-encoded requests with PascalCase names, snake_case JSON answers, POST as update.

mod read;
mod write;

use http::Method;

use super::error::{Error, Operation};
use super::http::{Request, url};
use super::{Budget, Cause, Create, Cursor, Page, Prepared, Target};
use crate::ids::{ApiVersion, Conversation, ParticipantKey};
use crate::proto;
use read::{decode, page};
pub(super) use write::update_body;
use write::{create_form, form};

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
