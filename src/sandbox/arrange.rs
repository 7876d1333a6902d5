//! v1 conversations as a test wants them: named, in a state, with these participants.

use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use super::dates;
use super::seed::{PopulateError, seeded_at};
use super::store::Tenant;
use super::v1::conversation::{Conversation, State, Timers};
use super::v1::participant::Fields;
use super::v1::refusal::Refusal;

/// Conversations to be made, or one to be changed; what is left out stays as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Arrangement {
    pub(super) account: Option<String>,
    /// SID or unique name of the one; without it, new ones are made.
    conversation: Option<String>,
    count: Option<usize>,
    unique_name: Option<String>,
    friendly_name: Option<String>,
    attributes: Option<String>,
    state: Option<State>,
    timers: Option<Timers>,
    /// To be added to each of them.
    #[serde(default)]
    participants: Vec<Fields>,
}

/// Why nothing more was arranged.
#[derive(Debug, Error)]
pub(super) enum ArrangeError {
    #[error("`count` is for new conversations, and `conversation` names one")]
    CountOfOne,
    #[error("`unique_name` {0} is another conversation's")]
    NameTaken(String),
    #[error("`attributes` are not valid JSON")]
    Attributes,
    #[error("`timers` has a date that is none: {0}")]
    Date(String),
    #[error("`participants`: {0}")]
    Participant(#[from] Refusal),
    #[error(transparent)]
    Conversation(#[from] PopulateError),
}

impl Arrangement {
    fn check(&self) -> Result<(), ArrangeError> {
        if self.conversation.is_some() && self.count.is_some() {
            return Err(ArrangeError::CountOfOne);
        }
        if self.attributes.as_deref().is_some_and(|text| serde_json::from_str::<IgnoredAny>(text).is_err()) {
            return Err(ArrangeError::Attributes);
        }
        let dates = self.timers.iter().flat_map(|timers| [&timers.date_inactive, &timers.date_closed]);
        match dates.flatten().find(|date| dates::parse(date).is_none()) {
            Some(date) => Err(ArrangeError::Date(date.clone())),
            None => Ok(()),
        }
    }

    fn apply(&self, conversation: &mut Conversation) {
        let Arrangement { friendly_name, attributes, state, timers, .. } = self;
        if friendly_name.is_some() {
            conversation.friendly_name.clone_from(friendly_name);
        }
        if let Some(attributes) = attributes {
            conversation.attributes.clone_from(attributes);
        }
        if let Some(timers) = timers {
            conversation.timers = timers.clone();
        }
        conversation.state = state.unwrap_or(conversation.state);
    }
}

impl Tenant {
    /// The SIDs of the conversations that were made or changed. Where one of the new ones cannot be made, none
    /// is. In one that was there, a participant that is refused ends it: those before it stay.
    pub(super) fn arrange(&mut self, wanted: &Arrangement) -> Result<Vec<String>, ArrangeError> {
        wanted.check()?;
        let before = self.classic.len();
        let arranged = match &wanted.conversation {
            None => (1..=wanted.count.unwrap_or(1)).map(|number| self.arrange_new(wanted, number)).collect(),
            Some(key) => self.arrange_one(wanted, key).map(|sid| vec![sid]),
        };
        if arranged.is_err() {
            self.classic.truncate(before);
        }
        arranged
    }

    fn arrange_one(&mut self, wanted: &Arrangement, key: &str) -> Result<String, ArrangeError> {
        let index = match self.classic_index(key) {
            Some(index) => index,
            None => self.make_classic(key)?,
        };
        self.arrange_at(index, wanted, wanted.unique_name.clone())
    }

    fn arrange_new(&mut self, wanted: &Arrangement, number: usize) -> Result<String, ArrangeError> {
        // One name for several would not be unique.
        let several = wanted.count.is_some_and(|count| count > 1);
        let name = wanted.unique_name.as_ref();
        let name = name.map(|name| if several { format!("{name}-{number}") } else { name.clone() });
        let mut serial = self.classic.len() as u64 + 1;
        while self.classic_index(&format!("CH{serial:032}")).is_some() {
            serial += 1;
        }
        let index = self.make_classic(&format!("CH{serial:032}"))?;
        self.arrange_at(index, wanted, name)
    }

    fn arrange_at(
        &mut self,
        index: usize,
        wanted: &Arrangement,
        name: Option<String>,
    ) -> Result<String, ArrangeError> {
        if let Some(name) = name {
            if self.classic_index(&name).is_some_and(|other| other != index) {
                return Err(ArrangeError::NameTaken(name));
            }
            self.classic[index].unique_name = Some(name);
        }
        for fields in &wanted.participants {
            self.create_classic(index, fields, seeded_at(self.last_classic + 1))?;
        }
        wanted.apply(&mut self.classic[index]);
        Ok(self.classic[index].sid.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn arrange(tenant: &mut Tenant, wanted: Value) -> Result<Vec<String>, ArrangeError> {
        tenant.arrange(&serde_json::from_value(wanted).unwrap())
    }

    #[test]
    fn many_are_made_at_once_and_one_is_changed() {
        let mut tenant = Tenant::seeded("AC1");
        let many = json!({"count": 2, "unique_name": "n", "participants": [{"identity": "erin"}]});
        let sids = arrange(&mut tenant, many).unwrap();
        assert_eq!(sids, ["CH00000000000000000000000000000002", "CH00000000000000000000000000000003"]);
        arrange(&mut tenant, json!({"conversation": "n-2", "state": "closed", "unique_name": "n-3"}))
            .unwrap();
        let changed = &tenant.classic[2];
        assert_eq!((changed.state, changed.unique_name.as_deref()), (State::Closed, Some("n-3")));
        assert_eq!(changed.roster.len(), 1);
        assert_eq!(tenant.classic[1].state, State::Active);
    }

    #[test]
    fn none_is_made_where_one_cannot_be() {
        let mut tenant = Tenant::seeded("AC1");
        let pair = json!({"address": "+15550100040", "proxy_address": "+15550109001"});
        let error = arrange(&mut tenant, json!({"count": 2, "participants": [pair]})).unwrap_err();
        assert!(matches!(error, ArrangeError::Participant(Refusal::PairTaken(_))), "{error}");
        assert_eq!(tenant.classic.len(), 1);
    }

    #[test]
    fn what_cannot_be_arranged() {
        let mut tenant = Tenant::seeded("AC1");
        for (wanted, named) in [
            (json!({"conversation": "sandbox", "count": 1}), "`count`"),
            (json!({"conversation": "nowhere"}), "nowhere"),
            (json!({"unique_name": "sandbox"}), "`unique_name`"),
            (json!({"attributes": "{"}), "`attributes`"),
            (json!({"timers": {"date_closed": "soon"}}), "soon"),
            (json!({"conversation": "sandbox", "participants": [{"identity": "bob"}]}), "bob"),
            (json!({"count": 1000}), "1000 conversations"),
        ] {
            let error = arrange(&mut tenant, wanted.clone()).unwrap_err().to_string();
            assert!(error.contains(named), "{wanted}: {error}");
        }
    }
}
