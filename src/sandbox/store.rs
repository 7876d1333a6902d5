//! The data: per account its conversations, per conversation its participants in the order they came.

use std::collections::{BTreeMap, HashMap};

use super::events::Change;
use super::v1::conversation::Conversation as ClassicConversation;
use super::v2::participant as v2_participant;

/// All accounts.
pub(super) struct Store {
    tenants: HashMap<String, Tenant>,
}

/// What belongs to one account.
pub(super) struct Tenant {
    pub(super) account_sid: String,
    pub(super) classic: Vec<ClassicConversation>,
    pub(super) orchestrated: Vec<OrchestratedConversation>,
    /// Of the participants, not of the accounts: every account counts from the same number.
    pub(super) last_classic: u64,
    pub(super) last_orchestrated: u64,
    /// What a request has changed, until `front` has it told.
    pub(super) changes: Vec<Change>,
}

/// A v2 conversation.
pub(super) struct OrchestratedConversation {
    pub(super) id: String,
    pub(super) roster: Roster<v2_participant::Participant>,
}

impl Store {
    pub(super) fn seeded<'a>(accounts: impl Iterator<Item = &'a str>) -> Store {
        Store { tenants: accounts.map(|sid| (sid.to_owned(), Tenant::seeded(sid))).collect() }
    }

    pub(super) fn tenant(&mut self, account: &str) -> Option<&mut Tenant> {
        self.tenants.get_mut(account)
    }
}

impl Tenant {
    /// Where the conversation of this SID or unique name is kept.
    pub(super) fn classic_index(&self, key: &str) -> Option<usize> {
        self.classic.iter().position(|conversation| conversation.is_called(key))
    }

    pub(super) fn orchestrated(&self, id: &str) -> Option<&OrchestratedConversation> {
        self.orchestrated.iter().find(|conversation| conversation.id == id)
    }
}

/// Participants by serial number, which is the order they came in. A serial is never used twice, so that it
/// marks a place in the order even when its participant has gone.
pub(super) struct Roster<P> {
    members: BTreeMap<u64, P>,
}

/// Where a page begins, or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cursor {
    Start,
    After(u64),
    Before(u64),
}

/// A part of the roster.
pub(super) struct Page<'a, P> {
    pub(super) items: Vec<(u64, &'a P)>,
    pub(super) more_before: bool,
    pub(super) more_after: bool,
}

impl<P> Default for Roster<P> {
    fn default() -> Self {
        Self { members: BTreeMap::new() }
    }
}

impl<P> Roster<P> {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn get(&self, serial: u64) -> Option<&P> {
        self.members.get(&serial)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &P)> {
        self.members.iter().map(|(serial, participant)| (*serial, participant))
    }

    /// Puts it there, in place of who had that serial.
    pub(super) fn put(&mut self, serial: u64, participant: P) {
        self.members.insert(serial, participant);
    }

    pub(super) fn remove(&mut self, serial: u64) {
        self.members.remove(&serial);
    }

    pub(super) fn page(&self, cursor: Cursor, size: usize) -> Page<'_, P> {
        let mut items: Vec<(u64, &P)> = match cursor {
            Cursor::Start => self.iter().take(size).collect(),
            Cursor::After(serial) => {
                self.iter().skip_while(|(other, _)| *other <= serial).take(size).collect()
            }
            Cursor::Before(serial) => {
                let before = self.members.range(..serial).rev().take(size);
                before.map(|(serial, participant)| (*serial, participant)).collect()
            }
        };
        items.sort_unstable_by_key(|(serial, _)| *serial);
        let first = self.members.keys().next();
        let last = self.members.keys().next_back();
        Page {
            more_before: items.first().is_some_and(|(serial, _)| first < Some(serial)),
            more_after: items.last().is_some_and(|(serial, _)| Some(serial) < last),
            items,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serials(roster: &Roster<()>, cursor: Cursor, size: usize) -> (Vec<u64>, bool, bool) {
        let page = roster.page(cursor, size);
        (page.items.iter().map(|(serial, ())| *serial).collect(), page.more_before, page.more_after)
    }

    #[test]
    fn pages_both_ways() {
        let mut roster = Roster::default();
        (1..=5).for_each(|serial| roster.put(serial, ()));
        assert_eq!(serials(&roster, Cursor::Start, 2), (vec![1, 2], false, true));
        assert_eq!(serials(&roster, Cursor::After(2), 2), (vec![3, 4], true, true));
        assert_eq!(serials(&roster, Cursor::After(4), 2), (vec![5], true, false));
        assert_eq!(serials(&roster, Cursor::After(5), 2), (vec![], false, false));
        assert_eq!(serials(&roster, Cursor::Before(3), 2), (vec![1, 2], false, true));
        assert_eq!(serials(&roster, Cursor::Before(5), 2), (vec![3, 4], true, true));
    }

    #[test]
    fn a_place_survives_its_participant() {
        let mut roster = Roster::default();
        (1..=4).for_each(|serial| roster.put(serial, ()));
        roster.remove(2);
        assert_eq!(serials(&roster, Cursor::After(2), 2), (vec![3, 4], true, false));
        assert_eq!(roster.len(), 3);
    }
}
