//! Participants of v2: the rules of Conversation Orchestrator's participant endpoints, and of what
//! Twilio's own client (twilio/agent-connect-python) says about them.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use super::problem::{Invalid, Problem};
use crate::sandbox::store::{Roster, Tenant};

/// Not Twilio's limit: the sandbox's own, for its memory's sake.
pub(in crate::sandbox) const MOST: usize = 10_000;
const MOST_NAME_CHARS: usize = 256;
const MOST_ADDRESS_CHARS: usize = 254;

#[derive(Debug, Clone)]
pub(in crate::sandbox) struct Participant {
    pub(in crate::sandbox) name: Option<String>,
    /// `type` on the wire.
    pub(in crate::sandbox) kind: Option<String>,
    pub(in crate::sandbox) profile_id: Option<String>,
    pub(in crate::sandbox) addresses: Vec<Address>,
    pub(in crate::sandbox) created: SystemTime,
    pub(in crate::sandbox) updated: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::sandbox) struct Address {
    pub(in crate::sandbox) channel: String,
    pub(in crate::sandbox) address: String,
    #[serde(rename = "channelId")]
    pub(in crate::sandbox) channel_id: Option<String>,
}

/// The body of a create or a PUT.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Draft {
    name: Option<String>,
    kind: Option<String>,
    profile_id: Option<String>,
    addresses: Vec<Address>,
}

impl Address {
    pub(in crate::sandbox) fn new(channel: &str, address: &str) -> Address {
        Address { channel: channel.to_owned(), address: address.to_owned(), channel_id: None }
    }

    /// The channel's own id plays no part in whose address it is.
    fn same_place(&self, other: &Address) -> bool {
        self.channel == other.channel && self.address == other.address
    }
}

pub(in crate::sandbox) fn id(serial: u64) -> String {
    format!("conv_participant_{serial:026}")
}

pub(in crate::sandbox) fn serial_of(text: &str) -> Option<u64> {
    let serial = text.strip_prefix("conv_participant_")?.parse().ok()?;
    (id(serial) == text).then_some(serial)
}

impl Draft {
    /// Reads the body, and finds all that is wrong with it. A key that is not documented is wrong: a client
    /// that sends one believes something that is not so.
    pub(in crate::sandbox) fn read(body: &[u8], addresses_required: bool) -> Result<Draft, Problem> {
        let mut map = match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(Problem::Invalid(vec![Invalid::at("", "must be an object")])),
            Err(error) => {
                return Err(Problem::Invalid(vec![Invalid::at("", format!("not JSON: {error}"))]));
            }
        };
        let mut errors = Vec::new();
        let draft = Draft {
            name: text(&mut map, "", "name", &mut errors, |name| name.chars().count() <= MOST_NAME_CHARS),
            kind: text(&mut map, "", "type", &mut errors, is_type),
            profile_id: text(&mut map, "", "profileId", &mut errors, |id| !id.is_empty()),
            addresses: addresses(map.remove("addresses").unwrap_or_default(), &mut errors),
        };
        unknown(&map, "", &mut errors);
        if errors.is_empty() && addresses_required && draft.addresses.is_empty() {
            errors.push(Invalid::at("/addresses", "at least one is required"));
        }
        if errors.is_empty() { Ok(draft) } else { Err(Problem::Invalid(errors)) }
    }
}

fn addresses(value: Value, errors: &mut Vec<Invalid>) -> Vec<Address> {
    let items = match value {
        Value::Array(items) => items,
        Value::Null => return Vec::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            errors.push(Invalid::at("/addresses", "must be an array"));
            return Vec::new();
        }
    };
    let mut read: Vec<Address> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let at = format!("/addresses/{index}");
        match item {
            Value::Object(map) => {
                let Some(address) = address(map, &at, errors) else {
                    continue;
                };
                if read.iter().any(|other| other.same_place(&address)) {
                    errors.push(Invalid::at(at, "is there twice"));
                } else {
                    read.push(address);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                errors.push(Invalid::at(at, "must be an object"));
            }
        }
    }
    read
}

fn address(mut map: Map<String, Value>, at: &str, errors: &mut Vec<Invalid>) -> Option<Address> {
    let before = errors.len();
    let channel = text(&mut map, at, "channel", errors, is_channel);
    let address = text(&mut map, at, "address", errors, |address| {
        !address.is_empty() && address.chars().count() <= MOST_ADDRESS_CHARS
    });
    let channel_id = text(&mut map, at, "channelId", errors, |_| true);
    unknown(&map, at, errors);
    if errors.len() > before {
        return None;
    }
    for (key, missing) in [("channel", channel.is_none()), ("address", address.is_none())] {
        if missing {
            errors.push(Invalid::at(format!("{at}/{key}"), "is required"));
        }
    }
    Some(Address { channel: channel?, address: address?, channel_id })
}

/// Null is the same as left out.
fn text(
    map: &mut Map<String, Value>,
    at: &str,
    key: &str,
    errors: &mut Vec<Invalid>,
    legal: impl Fn(&str) -> bool,
) -> Option<String> {
    match map.remove(key)? {
        Value::Null => None,
        Value::String(text) if legal(&text) => Some(text),
        other => {
            errors.push(Invalid::at(format!("{at}/{key}"), format!("{other} is not valid")));
            None
        }
    }
}

fn unknown(map: &Map<String, Value>, at: &str, errors: &mut Vec<Invalid>) {
    errors.extend(map.keys().map(|key| Invalid::at(format!("{at}/{key}"), "is not known")));
}

/// HUMAN_AGENT, CUSTOMER, AI_AGENT, AGENT, UNKNOWN are documented; more have been added before.
fn is_type(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// VOICE, SMS, RCS, WHATSAPP, CHAT and EMAIL are documented; Twilio's own client knows more.
fn is_channel(text: &str) -> bool {
    is_type(text)
}

impl Tenant {
    /// Adds a participant; the answer is its serial.
    pub(in crate::sandbox) fn create_orchestrated(
        &mut self,
        conversation: &str,
        draft: Draft,
        now: SystemTime,
    ) -> Result<u64, Problem> {
        let serial = self.last_orchestrated + 1;
        let roster = self.orchestrated_roster(conversation)?;
        check_addresses(roster, None, &draft)?;
        if roster.len() >= MOST {
            let detail = format!("the sandbox keeps {MOST} participants per conversation at most");
            return Err(Problem::Invalid(vec![Invalid::at("", detail)]));
        }
        roster.put(serial, draft.into_participant(now, now));
        self.last_orchestrated = serial;
        Ok(serial)
    }

    /// Puts the draft in the participant's place: what it leaves out is gone.
    pub(in crate::sandbox) fn replace_orchestrated(
        &mut self,
        conversation: &str,
        serial: u64,
        draft: Draft,
        now: SystemTime,
    ) -> Result<(), Problem> {
        let roster = self.orchestrated_roster(conversation)?;
        let created = roster.get(serial).ok_or(Problem::NotFound)?.created;
        check_addresses(roster, Some(serial), &draft)?;
        roster.put(serial, draft.into_participant(created, now));
        Ok(())
    }

    pub(in crate::sandbox) fn orchestrated_roster(
        &mut self,
        id: &str,
    ) -> Result<&mut Roster<Participant>, Problem> {
        let found = self.orchestrated.iter_mut().find(|conversation| conversation.id == id);
        found.map(|conversation| &mut conversation.roster).ok_or(Problem::NotFound)
    }
}

impl Draft {
    fn into_participant(self, created: SystemTime, updated: SystemTime) -> Participant {
        let Draft { name, kind, profile_id, addresses } = self;
        Participant { name, kind, profile_id, addresses, created, updated }
    }
}

/// An address belongs to one participant of the conversation.
fn check_addresses(roster: &Roster<Participant>, own: Option<u64>, draft: &Draft) -> Result<(), Problem> {
    let taken = |other: &Participant| {
        other.addresses.iter().any(|theirs| draft.addresses.iter().any(|ours| ours.same_place(theirs)))
    };
    let mut others = roster.iter().filter(|(serial, _)| Some(*serial) != own);
    match others.find(|(_, other)| taken(other)) {
        Some((serial, _)) => Err(Problem::Conflict(id(serial))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(body: &str, addresses_required: bool) -> Vec<String> {
        match Draft::read(body.as_bytes(), addresses_required) {
            Err(Problem::Invalid(errors)) => errors.into_iter().map(|error| error.pointer).collect(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => Vec::new(),
        }
    }

    #[test]
    fn all_that_is_wrong_is_found() {
        let body = r#"{"name": 1, "type": "customer", "profile_id": "x", "addresses": [
            {"channel": "SMS"}, {"channel": "sms", "address": ""}, 3,
            {"channel": "CARRIER_PIGEON", "address": "a", "channelId": null},
            {"channel": "CARRIER_PIGEON", "address": "a", "channelId": "b"}]}"#;
        let expected = [
            "/name",
            "/type",
            "/addresses/0/address",
            "/addresses/1/channel",
            "/addresses/1/address",
            "/addresses/2",
            "/addresses/4",
            "/profile_id",
        ];
        assert_eq!(pointers(body, true), expected);
    }

    #[test]
    fn only_a_create_needs_addresses() {
        assert_eq!(pointers("{}", true), ["/addresses"]);
        assert_eq!(pointers(r#"{"addresses": []}"#, true), ["/addresses"]);
        assert!(pointers("{}", false).is_empty());
        assert_eq!(pointers("name=Dana", false), [""]);
    }
}
