//! What is looked up.

use crate::ids::{Conversation, Person, PersonKey, Segment};

/// What is looked up. A struct and no joined text, so that no two ids can collide, and with the account in it, so that
/// nothing of one account is served to another.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) scope: Scope,
    pub(super) item: Item,
    pub(super) generation: u64,
}

/// What an item belongs to, and is forgotten with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A conversation: its participants and their pages.
    Conversation(Conversation),
    /// A person: the pages of their conversations.
    Person(PersonKey),
}

/// What of a scope is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A participant by its id, or by the identity that stands in its place.
    Participant(Segment),
    /// A page by its size and where it begins.
    Page {
        /// At most so many items.
        size: u32,
        /// The upstream's own page number and token. Behind a pointer: most items are participants.
        cursor: Box<(String, String)>,
    },
}

impl Key {
    pub(super) fn weight(&self) -> u32 {
        let item = match &self.item {
            Item::Participant(id) => id.as_str().len(),
            Item::Page { cursor, .. } => cursor.0.len() + cursor.1.len(),
        };
        let scope = match &self.scope {
            Scope::Conversation(conversation) => conversation.id.as_str().len(),
            Scope::Person(PersonKey { person: Person::Identity(text) | Person::Address(text), .. }) => {
                text.len()
            }
        };
        // What an entry takes beside the texts of its key and the value's bytes: live allocations, measured at 20,000 entries.
        let bytes = 550 + scope + item;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}
