//! Conversations of v1. They are no resource here: what is kept of one is what is told of it where the
//! conversations of a participant are listed.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::participant::Participant;
use super::refusal::Refusal;
use crate::sandbox::store::Roster;

/// In the default service, like all of them.
pub(in crate::sandbox) struct Conversation {
    pub(in crate::sandbox) sid: String,
    pub(in crate::sandbox) unique_name: Option<String>,
    pub(in crate::sandbox) friendly_name: Option<String>,
    pub(in crate::sandbox) attributes: String,
    pub(in crate::sandbox) state: State,
    pub(in crate::sandbox) timers: Timers,
    pub(in crate::sandbox) created: SystemTime,
    pub(in crate::sandbox) updated: SystemTime,
    pub(in crate::sandbox) roster: Roster<Participant>,
}

/// See <https://www.twilio.com/docs/conversations/states-timers>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::sandbox) enum State {
    Inactive,
    Active,
    Closed,
}

/// When the state is to change. Only shown: no timer runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::sandbox) struct Timers {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::sandbox) date_inactive: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::sandbox) date_closed: Option<String>,
}

impl Conversation {
    /// An active one with nobody in it.
    pub(in crate::sandbox) fn new(sid: &str, created: SystemTime) -> Conversation {
        Conversation {
            sid: sid.to_owned(),
            unique_name: None,
            friendly_name: None,
            attributes: "{}".to_owned(),
            state: State::Active,
            timers: Timers::default(),
            created,
            updated: created,
            roster: Roster::default(),
        }
    }

    /// SID or unique name.
    pub(in crate::sandbox) fn is_called(&self, key: &str) -> bool {
        self.sid == key || self.unique_name.as_deref() == Some(key)
    }

    /// Participants of a closed conversation can be read, and nothing else.
    pub(super) fn check_open(&self) -> Result<(), Refusal> {
        match self.state {
            State::Closed => Err(Refusal::Closed),
            State::Inactive | State::Active => Ok(()),
        }
    }
}
