//! What a request path addresses.

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// One of the two REST faces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Conversations (classic).
    V1,
    /// Conversations of Conversation Orchestrator.
    V2,
}

/// A path, split and decoded.
#[derive(Debug)]
pub(super) struct Route {
    /// The face that answers; `None` for what belongs to neither of them.
    pub(super) api: Option<Api>,
    /// What is addressed; `None` when there is no such path.
    pub(super) target: Option<Target>,
}

#[derive(Debug)]
pub(super) enum Target {
    Participants(Participants),
    /// The conversations of a participant, in a service or in the default one (v1 only).
    ParticipantConversations {
        service: Option<String>,
    },
    /// Access tokens. They live on a host of their own at Twilio, and their `/v2` is not that of the face.
    Token,
}

/// Participants of a conversation, or one of them.
#[derive(Debug)]
pub(super) struct Participants {
    /// The conversation service, where the path names one (v1 only).
    pub(super) service: Option<String>,
    pub(super) conversation: String,
    /// `None` for the collection.
    pub(super) participant: Option<String>,
}

impl Route {
    /// Splits the raw path and only then decodes each segment, once: a `%2F` belongs to its segment.
    pub(super) fn parse(path: &str) -> Route {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let (api, rest) = match segments.as_slice() {
            ["v2", "token"] => {
                return Route { api: None, target: Some(Target::Token) };
            }
            ["v1", rest @ ..] => (Api::V1, rest),
            ["v2", rest @ ..] => (Api::V2, rest),
            _ => {
                return Route { api: None, target: None };
            }
        };
        let (service, rest) = match (api, rest) {
            (Api::V1, ["Services", service, rest @ ..]) => (Some(*service), rest),
            _ => (None, rest),
        };
        let target = match rest {
            ["ParticipantConversations"] if api == Api::V1 => {
                optional(service).map(|service| Target::ParticipantConversations { service })
            }
            ["Conversations", conversation, "Participants"] => {
                Participants::decode(service, conversation, None)
            }
            ["Conversations", conversation, "Participants", participant] => {
                Participants::decode(service, conversation, Some(participant))
            }
            _ => None,
        };
        Route { api: Some(api), target }
    }

    /// The path as the documentation writes it, for counting requests of one kind.
    pub(super) fn template(&self) -> &'static str {
        let target = match &self.target {
            None => return "(other)",
            Some(Target::Token) => return "/v2/token",
            Some(Target::ParticipantConversations { service: None }) => return "/v1/ParticipantConversations",
            Some(Target::ParticipantConversations { service: Some(_) }) => {
                return "/v1/Services/{ChatServiceSid}/ParticipantConversations";
            }
            Some(Target::Participants(target)) => target,
        };
        match (self.api, &target.service, &target.participant) {
            (Some(Api::V2), _, None) => "/v2/Conversations/{ConversationSid}/Participants",
            (Some(Api::V2), _, Some(_)) => "/v2/Conversations/{ConversationSid}/Participants/{Sid}",
            (_, None, None) => "/v1/Conversations/{ConversationSid}/Participants",
            (_, None, Some(_)) => "/v1/Conversations/{ConversationSid}/Participants/{Sid}",
            (_, Some(_), None) => {
                "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants"
            }
            (_, Some(_), Some(_)) => {
                "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants/{Sid}"
            }
        }
    }
}

impl Target {
    /// The conversation service that the path names.
    pub(super) fn service(&self) -> Option<&str> {
        match self {
            Target::Participants(Participants { service, .. })
            | Target::ParticipantConversations { service } => service.as_deref(),
            Target::Token => None,
        }
    }
}

impl Participants {
    fn decode(service: Option<&str>, conversation: &str, participant: Option<&str>) -> Option<Target> {
        Some(Target::Participants(Participants {
            service: optional(service)?,
            conversation: segment(conversation)?,
            participant: optional(participant)?,
        }))
    }
}

/// `None` when there is a segment and it names nothing.
fn optional(raw: Option<&str>) -> Option<Option<String>> {
    match raw {
        None => Some(None),
        Some(raw) => segment(raw).map(Some),
    }
}

/// `None` for what cannot name anything: an empty segment, or bytes that are not UTF-8.
fn segment(raw: &str) -> Option<String> {
    let text = percent_decode_str(raw).decode_utf8().ok()?;
    (!text.is_empty()).then(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_decoded_once() {
        let route = Route::parse("/v1/Conversations/sandbox/Participants/a%2Fb%2520c+d");
        let Some(Target::Participants(target)) = route.target else { panic!("{route:?}") };
        assert_eq!(target.participant.as_deref(), Some("a/b%20c+d"));
        assert_eq!(target.service, None);
    }

    #[test]
    fn services_are_a_matter_of_v1() {
        let below = "Services/IS1/Conversations/C/Participants";
        let v1 = Route::parse(&format!("/v1/{below}"));
        assert_eq!(
            v1.template(),
            "/v1/Services/{ChatServiceSid}/Conversations/{ConversationSid}/Participants"
        );
        assert!(Route::parse(&format!("/v2/{below}")).target.is_none());
    }

    #[test]
    fn what_names_nothing_is_no_target() {
        for path in [
            "/v1/Conversations//Participants",
            "/v1/Conversations/C/Participants/",
            "/v2/Conversations/%FF/Participants",
        ] {
            assert!(Route::parse(path).target.is_none(), "{path}");
        }
        assert_eq!(Route::parse("/v3/Conversations/C/Participants").api, None);
    }
}
