//! Who may take part in a v1 conversation: creating and updating participants under its rules.

use std::time::SystemTime;

use super::conversation::Conversation;
use super::participant::{Binding, Fields, MOST, Participant, named};
use super::refusal::Refusal;
use crate::sandbox::store::Tenant;

/// Of the participants of one conversation, those who do not chat
/// (<https://www.twilio.com/docs/conversations-classic/conversations-limits>).
const MOST_NON_CHAT: usize = 50;

impl Tenant {
    /// Adds a participant; the answer is its serial.
    pub(in crate::sandbox) fn create_classic(
        &mut self,
        index: usize,
        fields: &Fields,
        now: SystemTime,
    ) -> Result<u64, Refusal> {
        let (identity, binding) = named(fields)?;
        let mut participant = Participant::new(identity, binding, now);
        participant.apply_common(fields)?;
        self.check_unique(index, None, &participant)?;
        let roster = &self.classic[index].roster;
        if roster.len() >= MOST {
            return Err(Refusal::TooManyParticipants);
        }
        let non_chat = roster.iter().filter(|(_, other)| other.identity.is_none()).count();
        if participant.identity.is_none() && non_chat >= MOST_NON_CHAT {
            return Err(Refusal::TooManyNonChat);
        }
        self.last_classic += 1;
        self.classic[index].roster.put(self.last_classic, participant);
        Ok(self.last_classic)
    }

    /// Changes what the fields name and nothing else; all of it or none.
    pub(in crate::sandbox) fn update_classic(
        &mut self,
        index: usize,
        serial: u64,
        fields: &Fields,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        if fields.address.is_some() {
            return Err(Refusal::BadParameter("MessagingBinding.Address cannot be updated".to_owned()));
        }
        let Some(old) = self.classic[index].roster.get(serial) else {
            return Err(Refusal::NoParticipant(serial.to_string()));
        };
        let mut participant = Participant { updated: now, ..old.clone() };
        participant.apply_common(fields)?;
        participant.apply_update(fields)?;
        self.check_unique(index, Some(serial), &participant)?;
        self.classic[index].roster.put(serial, participant);
        Ok(())
    }

    /// An identity is unique in its conversation, a pair of address and proxy address in the account. A closed
    /// conversation gives its pairs free (<https://www.twilio.com/docs/api/errors/48031>).
    fn check_unique(&self, index: usize, own: Option<u64>, participant: &Participant) -> Result<(), Refusal> {
        let mut others = self.classic[index].roster.iter().filter(|(serial, _)| Some(*serial) != own);
        let Some(identity) = &participant.identity else {
            return self.check_pair(index, own, participant.binding.as_ref());
        };
        match others.any(|(_, other)| other.identity.as_ref() == Some(identity)) {
            true => Err(Refusal::IdentityTaken(identity.clone())),
            false => Ok(()),
        }
    }

    /// An address without a proxy address (group MMS) is unique in its conversation only.
    fn check_pair(&self, index: usize, own: Option<u64>, binding: Option<&Binding>) -> Result<(), Refusal> {
        let Some(Binding { address: Some(address), proxy, .. }) = binding else {
            return Ok(());
        };
        let open = |(_, conversation): &(usize, &Conversation)| conversation.check_open().is_ok();
        for (other_index, conversation) in self.classic.iter().enumerate().filter(open) {
            let in_same = other_index == index;
            let taken = conversation
                .roster
                .iter()
                .filter(|(serial, _)| !in_same || Some(*serial) != own)
                .filter_map(|(_, other)| other.binding.as_ref())
                .any(|other| other.address.as_ref() == Some(address) && other.proxy == *proxy);
            match (taken, proxy) {
                (true, Some(_)) => return Err(Refusal::PairTaken(conversation.sid.clone())),
                (true, None) if in_same => return Err(Refusal::GroupMemberTaken(address.clone())),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::seed::V1_CONVERSATION;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn chat(identity: &str) -> Fields {
        Fields { identity: some(identity), ..Fields::default() }
    }

    fn sms(address: &str, proxy: &str) -> Fields {
        Fields { address: some(address), proxy: some(proxy), ..Fields::default() }
    }

    fn create(tenant: &mut Tenant, fields: &Fields) -> Result<u64, Refusal> {
        tenant.create_classic(0, fields, SystemTime::UNIX_EPOCH)
    }

    fn update(tenant: &mut Tenant, serial: u64, fields: &Fields) -> Result<(), Refusal> {
        tenant.update_classic(0, serial, fields, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_pair_is_bound_once_in_the_whole_account() {
        let mut tenant = Tenant::seeded("AC1");
        let other = "CH0000000000000000000000000000000a";
        tenant.populate(other, 0).unwrap();
        let seeded = sms("+15550100001", "+15550109001");
        let taken = Refusal::PairTaken(V1_CONVERSATION.to_owned());
        assert_eq!(tenant.create_classic(1, &seeded, SystemTime::UNIX_EPOCH), Err(taken));
        assert_eq!(create(&mut tenant, &sms("+15550100001", "+15550109002")), Ok(4));
        let back = Fields { proxy: some("+15550109001"), ..Fields::default() };
        let taken = Err(Refusal::PairTaken(V1_CONVERSATION.to_owned()));
        assert_eq!(update(&mut tenant, 4, &back), taken);
    }

    #[test]
    fn fifty_do_not_chat_and_a_thousand_take_part() {
        let mut tenant = Tenant::seeded("AC1");
        for number in 1..50 {
            create(&mut tenant, &sms(&format!("+155501001{number:02}"), "+15550109001")).unwrap();
        }
        assert_eq!(create(&mut tenant, &sms("+15550100200", "+15550109001")), Err(Refusal::TooManyNonChat));
        tenant.populate(V1_CONVERSATION, MOST - 52).unwrap();
        assert_eq!(create(&mut tenant, &chat("one too many")), Err(Refusal::TooManyParticipants));
        assert!(tenant.populate(V1_CONVERSATION, 1).is_err());
    }

    #[test]
    fn a_refused_update_changes_nothing() {
        let mut tenant = Tenant::seeded("AC1");
        let fields = Fields { attributes: some(r#"{"a":1}"#), identity: some("bob"), ..Fields::default() };
        assert_eq!(update(&mut tenant, 1, &fields), Err(Refusal::IdentityTaken("bob".to_owned())));
        assert_eq!(tenant.classic[0].roster.get(1).unwrap().attributes, "{}");
    }

    #[test]
    fn the_word_null_takes_a_proxy_away() {
        let mut tenant = Tenant::seeded("AC1");
        let null = Fields { proxy: some("null"), projected: some("null"), ..Fields::default() };
        for serial in [1, 3] {
            update(&mut tenant, serial, &null).unwrap();
        }
        let binding = tenant.classic[0].roster.get(3).unwrap().binding.clone().unwrap();
        assert_eq!((binding.address, binding.proxy), (some("+15550100001"), None));
        // Now it is a participant of group MMS, of which there is one per address.
        let again = Fields { address: some("+15550100001"), ..Fields::default() };
        assert_eq!(create(&mut tenant, &again), Err(Refusal::GroupMemberTaken("+15550100001".to_owned())));
    }

    #[test]
    fn who_is_named() {
        let mut tenant = Tenant::seeded("AC1");
        assert_eq!(create(&mut tenant, &chat("")), Err(Refusal::NobodyNamed));
        let both = Fields { identity: some("eve"), ..sms("+15550100009", "+15550109001") };
        assert_eq!(create(&mut tenant, &both), Err(Refusal::IdentityNotAcceptable("eve".to_owned())));
        let masked = Fields { projected: some("+15550109003"), ..chat("eve") };
        let serial = create(&mut tenant, &masked).unwrap();
        let binding = tenant.classic[0].roster.get(serial).unwrap().binding.clone().unwrap();
        assert_eq!((binding.channel(), binding.projected), ("sms", some("+15550109003")));
    }
}
