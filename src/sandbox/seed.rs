//! What every account starts with, and what can be poured into it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::store::{OrchestratedConversation, Roster, Tenant};
use super::v1::conversation::Conversation as ClassicConversation;
use super::v1::participant::{self as v1_participant, Binding};
use super::v2::participant::{self as v2_participant, Address};

/// The account that is always there.
pub const ACCOUNT_SID: &str = "AC00000000000000000000000000000000";
/// Its auth token.
pub const AUTH_TOKEN: &str = "sandbox";
/// An API key of that account.
pub const API_KEY_SID: &str = "SK00000000000000000000000000000000";
/// The key's secret.
pub const API_KEY_SECRET: &str = "sandbox";
/// An OAuth client of that account.
pub const OAUTH_CLIENT_ID: &str = "OQ00000000000000000000000000000000";
/// The client's secret.
pub const OAUTH_CLIENT_SECRET: &str = "sandbox";
/// The default conversation service of every account.
pub const SERVICE_SID: &str = "IS00000000000000000000000000000001";
/// The v1 conversation of every account; its unique name is `sandbox`.
pub const V1_CONVERSATION: &str = "CH00000000000000000000000000000001";
/// The v2 conversation of every account.
pub const V2_CONVERSATION: &str = "conv_conversation_00000000000000000000000001";

/// 2026-01-05T09:00:00Z
const SEEDED_AT: Duration = Duration::from_secs(1_767_603_600);
const MOST_CONVERSATIONS: usize = 1000;

/// Why nothing was poured in.
#[derive(Debug, Error)]
pub(super) enum PopulateError {
    #[error("there is no account {0}")]
    NoAccount(String),
    #[error("no conversation {0}; a new one is named CH and 32 hex digits, or conv_conversation_…")]
    NoConversation(String),
    #[error(
        "a conversation holds at most {0} participants, and an account {MOST_CONVERSATIONS} conversations"
    )]
    TooMany(usize),
}

impl Tenant {
    pub(super) fn seeded(account_sid: &str) -> Tenant {
        let mut classic = Roster::default();
        let sms = Binding::between("+15550100001", "+15550109001");
        for (identity, binding) in [(Some("alice"), None), (Some("bob"), None), (None, Some(sms))] {
            let serial = classic.len() as u64 + 1;
            let identity = identity.map(str::to_owned);
            classic.put(serial, v1_participant::Participant::new(identity, binding, seeded_at(serial)));
        }
        let mut orchestrated = Roster::default();
        for (name, kind, channel, address) in [
            ("Noor", "CUSTOMER", "SMS", "+15550100002"),
            ("Robin", "HUMAN_AGENT", "VOICE", "+15550100003"),
            ("Assistant", "AI_AGENT", "SMS", "+15550109002"),
        ] {
            let serial = orchestrated.len() as u64 + 1;
            let participant = v2_participant::Participant {
                name: Some(name.to_owned()),
                kind: Some(kind.to_owned()),
                profile_id: (kind == "CUSTOMER").then(|| "mem_profile_00000000000000000000000001".to_owned()),
                addresses: vec![Address::new(channel, address)],
                created: seeded_at(serial),
                updated: seeded_at(serial),
            };
            orchestrated.put(serial, participant);
        }
        Tenant {
            account_sid: account_sid.to_owned(),
            last_classic: classic.len() as u64,
            last_orchestrated: orchestrated.len() as u64,
            classic: vec![ClassicConversation {
                unique_name: Some("sandbox".to_owned()),
                friendly_name: Some("Sandbox".to_owned()),
                roster: classic,
                ..ClassicConversation::new(V1_CONVERSATION, seeded_at(0))
            }],
            orchestrated: vec![OrchestratedConversation {
                id: V2_CONVERSATION.to_owned(),
                roster: orchestrated,
            }],
            changes: Vec::new(),
        }
    }

    /// Adds chat participants to a conversation of either face, which is made if it is not there.
    pub(super) fn populate(&mut self, conversation: &str, count: usize) -> Result<(), PopulateError> {
        if let Some(index) = self.orchestrated.iter().position(|known| known.id == conversation) {
            return self.populate_orchestrated(index, count);
        }
        if let Some(index) = self.classic_index(conversation) {
            return self.populate_classic(index, count);
        }
        if conversation.starts_with("conv_conversation_") {
            self.check_room()?;
            let id = conversation.to_owned();
            self.orchestrated.push(OrchestratedConversation { id, roster: Roster::default() });
            return self.populate_orchestrated(self.orchestrated.len() - 1, count);
        }
        let index = self.make_classic(conversation)?;
        self.populate_classic(index, count)
    }

    /// A new v1 conversation of this SID; the answer is where it is kept.
    pub(super) fn make_classic(&mut self, sid: &str) -> Result<usize, PopulateError> {
        let hex = sid.strip_prefix("CH").filter(|digits| digits.len() == 32);
        if !hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return Err(PopulateError::NoConversation(sid.to_owned()));
        }
        self.check_room()?;
        let index = self.classic.len();
        self.classic.push(ClassicConversation::new(sid, seeded_at(index as u64)));
        Ok(index)
    }

    fn check_room(&self) -> Result<(), PopulateError> {
        let full = self.classic.len() + self.orchestrated.len() >= MOST_CONVERSATIONS;
        if full { Err(PopulateError::TooMany(v1_participant::MOST)) } else { Ok(()) }
    }

    fn populate_classic(&mut self, index: usize, count: usize) -> Result<(), PopulateError> {
        let roster = &mut self.classic[index].roster;
        if count > v1_participant::MOST.saturating_sub(roster.len()) {
            return Err(PopulateError::TooMany(v1_participant::MOST));
        }
        for _ in 0..count {
            self.last_classic += 1;
            let identity = Some(format!("member-{}", self.last_classic));
            let at = seeded_at(self.last_classic);
            roster.put(self.last_classic, v1_participant::Participant::new(identity, None, at));
        }
        Ok(())
    }

    fn populate_orchestrated(&mut self, index: usize, count: usize) -> Result<(), PopulateError> {
        let roster = &mut self.orchestrated[index].roster;
        if count > v2_participant::MOST.saturating_sub(roster.len()) {
            return Err(PopulateError::TooMany(v2_participant::MOST));
        }
        for _ in 0..count {
            self.last_orchestrated += 1;
            let at = seeded_at(self.last_orchestrated);
            let participant = v2_participant::Participant {
                name: None,
                kind: Some("CUSTOMER".to_owned()),
                profile_id: None,
                addresses: vec![Address::new("CHAT", &format!("member-{}", self.last_orchestrated))],
                created: at,
                updated: at,
            };
            roster.put(self.last_orchestrated, participant);
        }
        Ok(())
    }
}

/// A second later for each, always the same.
pub(super) fn seeded_at(serial: u64) -> SystemTime {
    UNIX_EPOCH + SEEDED_AT + Duration::from_secs(serial)
}
