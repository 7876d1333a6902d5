//! What each answer may be.
//!
//! A participant's key never changes and its version counts the writes. From what the gateway has acknowledged, and from the
//! events that it has told, follows what a read that begins after that may tell, and what it may not.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use participant_gateway::proto::{Channel, ConversationRef, Participant};
use serde_json::{Value, json};

/// A write whose end is not known may still take effect for so long: then nobody writes there. Longer than
/// `upstream.total_timeout`.
const REST: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    V1,
    V2,
}

/// Whether a participant is there, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Its create has not ended, or nobody knows how.
    Coming,
    There,
    /// The same of its removal.
    Leaving,
    /// Removed, or never made: for ever.
    Gone,
}

/// What was known of a participant when a read began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    floor: u32,
    presence: Presence,
}

/// Of somebody of whom nothing was known.
const NOTHING: Before = Before { floor: 0, presence: Presence::Coming };

#[derive(Debug)]
struct Person {
    id: Option<String>,
    /// The last version that is known as written: nothing older may be told.
    floor: u32,
    /// The last version that was sent: nothing newer may be told.
    sent: u32,
    /// What was sent, and refused as never processed.
    refused: Vec<u32>,
    newest_told: u32,
    presence: Presence,
    /// A write is under way.
    is_busy: bool,
    rests_until: Option<Instant>,
}

/// A participant as an answer tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) version: u32,
}

/// A conversation that nobody else writes to.
pub(crate) struct Conversation {
    pub(crate) face: Face,
    pub(crate) id: String,
    /// Written to less often than others.
    pub(crate) is_quiet: bool,
    people: Mutex<People>,
}

#[derive(Default)]
struct People {
    known: HashMap<String, Person>,
    last: u32,
}

impl Face {
    pub(crate) fn participant(self, key: &str, version: u32) -> Participant {
        let address = participant_gateway::proto::Address {
            channel: Channel::Chat.into(),
            address: key.to_owned(),
            ..Default::default()
        };
        let mut participant = Participant { addresses: vec![address], ..self.update(key, version) };
        if self == Face::V2 {
            participant.upstream_type = "CUSTOMER".to_owned();
            participant.set_type(participant_gateway::proto::ParticipantType::Customer);
        }
        participant
    }

    /// The fields that an update writes.
    pub(crate) fn update(self, key: &str, version: u32) -> Participant {
        match self {
            // All text, because events tell no other attributes.
            Face::V1 => Participant {
                attributes: json!({"key": key, "version": version.to_string()}).to_string(),
                ..Default::default()
            },
            Face::V2 => Participant { display_name: format!("{key}/{version}"), ..Default::default() },
        }
    }
}

impl Told {
    /// Fails where two participants are mixed into one.
    pub(crate) fn read(face: Face, conversation: &str, participant: &Participant) -> Result<Self, String> {
        let key = participant.addresses.first().map(|address| address.address.clone()).unwrap_or_default();
        let (its_key, version) = match face {
            Face::V1 => {
                let attributes: Value = serde_json::from_str(&participant.attributes).unwrap_or_default();
                let text = |name: &str| attributes[name].as_str().unwrap_or_default().to_owned();
                (text("key"), text("version"))
            }
            Face::V2 => {
                let (key, version) = participant.display_name.split_once('/').unwrap_or_default();
                (key.to_owned(), version.to_owned())
            }
        };
        let version = version.parse().map_err(|_| format!("{key} without a version"))?;
        if its_key != key || participant.conversation_id != conversation {
            return Err(format!("{key} with what belongs to {its_key}"));
        }
        Ok(Self { key, id: participant.id.clone(), version })
    }
}

impl Conversation {
    pub(crate) fn new(face: Face, number: usize) -> Self {
        let id = match face {
            Face::V1 => format!("CH{number:032}"),
            Face::V2 => format!("conv_conversation_{number:026}"),
        };
        Self { face, id, is_quiet: number.is_multiple_of(2), people: Mutex::default() }
    }

    pub(crate) fn reference(&self) -> Option<ConversationRef> {
        Some(ConversationRef { conversation_id: self.id.clone(), ..Default::default() })
    }

    fn people(&self) -> MutexGuard<'_, People> {
        self.people.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === Reads

    /// How many are known to be there.
    pub(crate) fn size(&self) -> usize {
        self.people().known.values().filter(|person| person.presence == Presence::There).count()
    }

    /// Somebody to be read, by key and id; mostly one who is there, but those who have gone, too.
    pub(crate) fn anybody(&self, is_there: bool) -> Option<(String, String)> {
        let people = self.people();
        let fits = |person: &Person| is_there == (person.presence == Presence::There);
        let with_id = people.known.iter().filter(|(_, person)| fits(person) && person.id.is_some());
        let some: Vec<_> = with_id.collect();
        let (key, person) = *fastrand::choice(&some)?;
        Some((key.clone(), person.id.clone()?))
    }

    pub(crate) fn before(&self) -> HashMap<String, Before> {
        let people = self.people();
        people.known.iter().map(|(key, person)| (key.clone(), person.before())).collect()
    }

    /// The same of one alone.
    pub(crate) fn before_of(&self, key: &str) -> HashMap<String, Before> {
        let people = self.people();
        people.known.get(key).map(|person| (key.to_owned(), person.before())).into_iter().collect()
    }

    /// Whether the read may tell this of the participant.
    pub(crate) fn judge(&self, before: &HashMap<String, Before>, told: &Told) -> Result<(), String> {
        let Told { key, id, version } = told;
        let earlier = before.get(key).unwrap_or(&NOTHING);
        let mut people = self.people();
        let Some(person) = people.known.get_mut(key) else {
            return Err(format!("{key}, whom nobody made"));
        };
        person.newest_told = person.newest_told.max(*version);
        let wrong = if person.id.as_ref().is_some_and(|own| own != id) {
            "under another id"
        } else if earlier.presence == Presence::Gone {
            "who had gone"
        } else if *version < earlier.floor {
            "older than a known write"
        } else if *version > person.sent {
            "newer than any write"
        } else if person.refused.contains(version) {
            "as a refused write would have it"
        } else {
            return Ok(());
        };
        Err(format!("{key} {wrong}: version {version}, before {earlier:?}, now {person:?}"))
    }

    /// Whether the read may tell that the participant is not there.
    pub(crate) fn judge_missing(&self, before: &HashMap<String, Before>, key: &str) -> Result<(), String> {
        let was_there = before.get(key).is_some_and(|before| before.presence == Presence::There);
        let is_there = self.people().known.get(key).is_some_and(|person| person.presence == Presence::There);
        if was_there && is_there { Err(format!("{key} as missing, who is there")) } else { Ok(()) }
    }

    /// Whether the read may leave out all others.
    pub(crate) fn judge_whole(&self, before: &HashMap<String, Before>, told: &[Told]) -> Result<(), String> {
        let keys: HashSet<&str> = told.iter().map(|told| told.key.as_str()).collect();
        if keys.len() < told.len() {
            return Err("somebody twice in one answer".to_owned());
        }
        let mut others = before.keys().filter(|key| !keys.contains(key.as_str()));
        others.try_for_each(|key| self.judge_missing(before, key))
    }

    // === Writes

    /// A key for somebody new.
    pub(crate) fn begin_create(&self) -> String {
        let mut people = self.people();
        people.last += 1;
        let key = format!("{}-{}", self.id, people.last);
        let person = Person {
            id: None,
            floor: 0,
            sent: 0,
            refused: Vec::new(),
            newest_told: 0,
            presence: Presence::Coming,
            is_busy: true,
            rests_until: None,
        };
        people.known.insert(key.clone(), person);
        key
    }

    /// Somebody to be changed, whom nobody else changes, and the version to be written.
    pub(crate) fn begin_update(&self) -> Option<Told> {
        let mut people = self.people();
        let (key, person) = people.free(&[Presence::There])?;
        person.is_busy = true;
        person.sent += 1;
        Some(Told { key, id: person.id.clone()?, version: person.sent })
    }

    /// Somebody to be removed. Where a removal of v1 ended nobody knows how, it is repeated some time; those of v2 are
    /// Twilio's own.
    pub(crate) fn begin_removal(&self) -> Option<(String, String, Presence)> {
        let mut people = self.people();
        let (key, person) = match self.face {
            Face::V1 => people.free(&[Presence::There, Presence::Leaving])?,
            Face::V2 => people.free(&[Presence::There])?,
        };
        let (id, earlier) = (person.id.clone()?, person.presence);
        (person.is_busy, person.presence) = (true, Presence::Leaving);
        Some((key, id, earlier))
    }

    /// The end of a write.
    pub(crate) fn end(&self, key: &str, end: End) -> Result<(), String> {
        let mut people = self.people();
        let Some(person) = people.known.get_mut(key) else { return Ok(()) };
        person.is_busy = false;
        match end {
            End::Created { id } => {
                if person.id.as_ref().is_some_and(|own| *own != id) {
                    return Err(format!("{key} created under two ids"));
                }
                person.id = Some(id);
                person.appear();
            }
            End::Updated { version } => person.floor = person.floor.max(version),
            End::Gone => person.presence = Presence::Gone,
            End::CreateRefused if person.presence != Presence::Coming => {
                return Err(format!("{key}: made, but the create was refused as never processed"));
            }
            End::CreateRefused => person.presence = Presence::Gone,
            End::UpdateRefused { version } => {
                person.refused.push(version);
                if person.newest_told >= version {
                    return Err(format!("{key}: version {version} was told, but refused as never processed"));
                }
            }
            End::Unknown => person.rests_until = Some(Instant::now() + REST),
        }
        Ok(())
    }

    // === Events

    /// What an event tells is known from now on.
    pub(crate) fn learn(&self, told: &Told) -> Result<(), String> {
        let mut people = self.people();
        let Some(person) = people.known.get_mut(&told.key) else {
            return Err(format!("an event of {}, whom nobody made", told.key));
        };
        if person.refused.contains(&told.version) || told.version > person.sent {
            return Err(format!("an event of {} with a version that was refused or never sent", told.key));
        }
        person.id.get_or_insert_with(|| told.id.clone());
        person.floor = person.floor.max(told.version);
        person.newest_told = person.newest_told.max(told.version);
        person.appear();
        Ok(())
    }

    pub(crate) fn learn_removal(&self, key: &str) {
        if let Some(person) = self.people().known.get_mut(key) {
            person.presence = Presence::Gone;
        }
    }
}

/// How a write ended, as the gateway tells it.
#[derive(Debug)]
pub(crate) enum End {
    Created { id: String },
    Updated { version: u32 },
    Gone,
    CreateRefused,
    UpdateRefused { version: u32 },
    Unknown,
}

impl People {
    fn free(&mut self, presences: &[Presence]) -> Option<(String, &mut Person)> {
        let now = Instant::now();
        let is_free = |person: &Person| {
            let has_rested = person.rests_until.is_none_or(|end| end < now);
            presences.contains(&person.presence) && person.id.is_some() && !person.is_busy && has_rested
        };
        let free: Vec<_> = self.known.iter_mut().filter(|(_, person)| is_free(person)).collect();
        let chosen = fastrand::usize(..free.len().max(1));
        free.into_iter().nth(chosen).map(|(key, person)| (key.clone(), person))
    }
}

impl Person {
    fn before(&self) -> Before {
        Before { floor: self.floor, presence: self.presence }
    }

    fn appear(&mut self) {
        if self.presence == Presence::Coming {
            self.presence = Presence::There;
        }
    }
}
