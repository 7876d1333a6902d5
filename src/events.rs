//! Twilio's events, from wherever they are delivered: decoded here, which is pure, and handed to `participants`, which forgets
//! first and then tells. `webhook` receives them over HTTP, `kinesis` reads them from a stream.
//!
//! v1's are CloudEvents (`cloud_event`), of Twilio's Event Streams. v2's are status callbacks (`callback`).

mod callback;
mod cloud_event;
#[cfg(feature = "kinesis")]
pub mod kinesis;
pub mod webhook;

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use tracing::{info, warn};
use uuid::Uuid;

use crate::ids::{AccountId, ApiVersion};
use crate::participants::{Event, NotPublished, Participants, Published};
use crate::proto::ParticipantEvent;
use crate::telemetry::Metrics;

/// What one event turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// Something happened to a participant.
    Participant {
        /// The account that it names, unless what stands there is no account's SID.
        account: Option<AccountId>,
        /// What is to be told. Boxed, because the others are small.
        event: Box<ParticipantEvent>,
    },
    /// Twilio tries the sink, because somebody asked it to.
    Test {
        /// Tells one such test from another.
        id: Option<Uuid>,
    },
    /// It is about something else.
    UnknownType,
    /// It cannot be read.
    Undecodable(Undecodable),
}

/// The key whose value cannot be read, by its path; never the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable(String);

/// How events come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// CloudEvents, from a webhook sink.
    Webhook,
    /// v2's status callbacks.
    Callback,
    /// CloudEvents, from a Kinesis sink.
    #[cfg(feature = "kinesis")]
    Kinesis,
}

impl Source {
    fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Callback => "callback",
            #[cfg(feature = "kinesis")]
            Self::Kinesis => "kinesis",
        }
    }

    /// The API whose participants these events are about.
    fn version(self) -> ApiVersion {
        match self {
            Self::Webhook => ApiVersion::V1,
            Self::Callback => ApiVersion::V2,
            #[cfg(feature = "kinesis")]
            Self::Kinesis => ApiVersion::V1,
        }
    }
}

/// What came with one request.
#[derive(Clone, Debug, PartialEq)]
struct Delivery {
    source: Source,
    events: Vec<Incoming>,
}

impl Delivery {
    /// Reads a request's body: CloudEvents, one or an array, or one status callback, whose id stands in a header.
    fn decode(body: &[u8], callback_id: &str) -> Self {
        let webhook = |events| Self { source: Source::Webhook, events };
        let json = str::from_utf8(body).unwrap_or_default().trim_ascii();
        if !json.starts_with('[') {
            let is_callback = serde_json::from_str::<Kind>(json).is_ok_and(|kind| kind.event_type.is_some());
            return if json.starts_with('{') && is_callback {
                Self { source: Source::Callback, events: vec![callback::decode(json, callback_id)] }
            } else {
                webhook(vec![cloud_event::decode(json)])
            };
        }
        match serde_json::from_str::<Vec<&RawValue>>(json) {
            Ok(items) => webhook(items.into_iter().map(|item| cloud_event::decode(item.get())).collect()),
            Err(_) => webhook(vec![Incoming::Undecodable(Undecodable("(the body)".into()))]),
        }
    }
}

/// Tells a status callback from a CloudEvent.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "eventType")]
    event_type: Option<IgnoredAny>,
}

impl Incoming {
    fn told(event: ParticipantEvent) -> Self {
        let named = event.participant.as_ref().map_or("", |participant| &participant.account_id);
        Self::Participant { account: AccountId::parse(named), event: Box::new(event) }
    }
}

/// Reads a JSON object. `name` is the key under which it stands; the event itself has none.
fn object<T: DeserializeOwned>(name: &str, json: &str) -> Result<T, Undecodable> {
    let undecodable = |path: &str| match (name, path) {
        ("", ".") => Undecodable("(the event)".to_owned()),
        ("", path) => Undecodable(path.to_owned()),
        (name, ".") => Undecodable(name.to_owned()),
        (name, path) => Undecodable(format!("{name}.{path}")),
    };
    // serde would take an array for a struct, by position: a guess. What is no JSON at all is found out first, because the path
    // of an error that stands below an unknown key would tell that key, which may be anything.
    if !json.trim_ascii_start().starts_with('{') || serde_json::from_str::<IgnoredAny>(json).is_err() {
        return Err(undecodable("."));
    }
    let mut json = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut json).map_err(|error| undecodable(&error.path().to_string()))
}

/// The data of an event: an object, or its JSON as a text.
fn data<T: DeserializeOwned>(raw: Option<&RawValue>) -> Result<T, Undecodable> {
    let json = raw.map_or("", RawValue::get);
    match serde_json::from_str::<String>(json) {
        Ok(text) => object("data", &text),
        Err(_) => object("data", json),
    }
}

/// Hands on what the sources deliver. Cheap to clone.
#[derive(Clone)]
pub struct Receiver {
    participants: Participants,
    metrics: Metrics,
}

impl Receiver {
    /// Events go to these participants.
    pub fn new(participants: Participants, metrics: Metrics) -> Self {
        Self { participants, metrics }
    }

    /// Applies the events of an account in their order. After a failure all of them have to come again: those that were
    /// applied are known by their ids.
    pub async fn receive(
        &self,
        source: Source,
        account: &AccountId,
        events: Vec<Incoming>,
    ) -> Result<(), NotPublished> {
        let mut are_alive = false;
        for incoming in events {
            // That others come says nothing of those about participants, but for v2, where all come together. What cannot
            // be read may be anything.
            let tells = matches!(incoming, Incoming::Participant { .. } | Incoming::Test { .. });
            are_alive |= tells || source == Source::Callback;
            let result = self.apply(source, account, incoming).await;
            self.metrics.event_received(source.as_str(), result.unwrap_or("failed"));
            result?;
        }
        if are_alive {
            self.participants.delivered(account, source.version());
        }
        Ok(())
    }

    async fn apply(
        &self,
        source: Source,
        account: &AccountId,
        incoming: Incoming,
    ) -> Result<&'static str, NotPublished> {
        match incoming {
            Incoming::Participant { event, .. } => {
                let happened = event.event_time.and_then(|time| SystemTime::try_from(time).ok());
                let mut event = *event;
                // Where it names none, it is of the account that delivers it.
                if let Some(participant) = event.participant.as_mut().filter(|one| one.account_id.is_empty())
                {
                    participant.account_id = account.to_string();
                }
                let event = Event { account: account.clone(), version: source.version(), event };
                let published = self.participants.apply(event).await?;
                if let Some(happened) = happened {
                    let age = SystemTime::now().duration_since(happened);
                    self.metrics.event_applied(source.as_str(), age.unwrap_or(Duration::ZERO));
                }
                Ok(match published {
                    Published::Told => "told",
                    Published::Repeated => "repeated",
                    Published::Outdated => "outdated",
                })
            }
            Incoming::Test { id } => {
                info!(%account, test_id = id.map(tracing::field::display), "Twilio tests the sink");
                Ok("test")
            }
            Incoming::UnknownType => Ok("unknown_type"),
            Incoming::Undecodable(Undecodable(key)) => {
                warn!(%account, source = source.as_str(), key, "an event cannot be read, so everything is forgotten");
                // It has changed something, and nobody can tell what.
                self.participants.forget_everything().await?;
                Ok("undecodable")
            }
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
