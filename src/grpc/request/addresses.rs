//! What each API version can hold of an address.

use crate::ids::{ApiVersion, Violation};
use crate::proto::{Address, Channel};

use super::check::Check;
use super::text::{text, word};

/// "Conversations limits": identity, address and proxy address, 256 characters.
const MAX_V1_CHARS: usize = 256;
/// Twilio's own client caps v2's addresses at it.
const MAX_V2_CHARS: usize = 254;

/// Everything that is wrong with the addresses of a write.
pub(super) fn violations(addresses: &[Address], version: ApiVersion) -> Vec<Violation> {
    let mut check = Check::default();
    for (at, address) in addresses.iter().enumerate() {
        let mut entry = Entry { check: &mut check, at };
        match (version, Channel::try_from(address.channel)) {
            (_, Err(_)) => entry.refuse("channel", "is no channel that this gateway knows"),
            (ApiVersion::V1, Ok(Channel::Chat)) => entry.identity(address),
            (ApiVersion::V1, Ok(channel)) => entry.binding(address, channel),
            (ApiVersion::V2, Ok(channel)) => entry.v2(address, channel),
        }
    }
    if version == ApiVersion::V1 {
        let chats = addresses.iter().filter(|address| address.channel() == Channel::Chat).count();
        if chats > 1 || addresses.len() - chats > 1 {
            let text = "v1 holds at most one identity (CHANNEL_CHAT) and one other address";
            check.refuse("participant.addresses", text);
        }
    }
    check.into_violations()
}

/// What a create of v1 needs beyond: an update may clear what it needs, and compares the channel with what is there.
pub(super) fn create_violations(addresses: &[Address], version: ApiVersion) -> Vec<Violation> {
    let mut check = Check::default();
    let bindings = addresses.iter().enumerate().filter(|(_, address)| address.channel() != Channel::Chat);
    for (at, address) in bindings.filter(|_| version == ApiVersion::V1) {
        let mut entry = Entry { check: &mut check, at };
        if address.address.is_empty() && address.projected_address.is_empty() {
            entry.refuse("address", "is required, or projected_address is");
        }
        if address.channel() == Channel::Other && !address.address.contains(':') {
            entry.refuse("channel", DISAGREES);
        }
    }
    check.into_violations()
}

const DISAGREES: &str = "disagrees with the address's prefix (`whatsapp:`, `rcs:`, `messenger:`, or none for SMS and \
                         mail), which tells v1 the channel";

struct Entry<'a> {
    check: &'a mut Check,
    at: usize,
}

impl Entry<'_> {
    fn refuse(&mut self, field: &str, description: &str) {
        self.check.refuse(format!("participant.addresses[{}].{field}", self.at), description);
    }

    fn refuse_set(&mut self, fields: &[(&str, &String)], description: &str) {
        for (field, _) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            self.refuse(field, description);
        }
    }

    fn text(&mut self, field: &str, value: &str, max_chars: usize) {
        if let Err(description) = text(value, max_chars) {
            self.refuse(field, &description);
        }
    }

    /// v1: the identity of a chat participant.
    fn identity(&mut self, address: &Address) {
        let Address {
            channel: _,
            upstream_channel,
            address,
            channel_id,
            proxy_address,
            projected_address,
            level,
            display_name,
        } = address;
        match address.as_str() {
            "" => self.refuse("address", "is required: it is the identity"),
            "null" => self.refuse("address", "must not be `null`, which Twilio reads as no identity"),
            identity => self.text("address", identity, MAX_V1_CHARS),
        }
        if let Err(description) = word("CHAT", upstream_channel, false) {
            self.refuse("upstream_channel", &description);
        }
        let elsewhere = "is no part of an identity: put it into an address of its own, without a channel";
        self.refuse_set(
            &[("proxy_address", proxy_address), ("projected_address", projected_address)],
            elsewhere,
        );
        self.v1_refused(channel_id, level, display_name);
    }

    /// v1: the messaging binding.
    fn binding(&mut self, address: &Address, channel: Channel) {
        let Address {
            channel: _,
            upstream_channel,
            address,
            channel_id,
            proxy_address,
            projected_address,
            level,
            display_name,
        } = address;
        for (field, value) in
            [("address", address), ("proxy_address", proxy_address), ("projected_address", projected_address)]
        {
            self.text(field, value, MAX_V1_CHARS);
            if value == "null" {
                self.refuse(field, "must not be `null`; to clear it, leave it empty");
            }
        }
        if let Err(description) = word(word_of(channel), upstream_channel, channel == Channel::Other) {
            self.refuse("upstream_channel", &description);
        } else if !address.is_empty() && !agrees(channel, upstream_channel, address) {
            self.refuse("channel", DISAGREES);
        }
        self.v1_refused(channel_id, level, display_name);
    }

    fn v1_refused(&mut self, channel_id: &String, level: &String, display_name: &String) {
        self.refuse_set(&[("channel_id", channel_id)], "v1 cannot carry it");
        self.refuse_set(&[("level", level), ("display_name", display_name)], "is read only on v1");
    }

    fn v2(&mut self, address: &Address, channel: Channel) {
        let Address {
            channel: _,
            upstream_channel,
            address,
            channel_id,
            proxy_address,
            projected_address,
            level,
            display_name,
        } = address;
        if channel == Channel::Unspecified {
            self.refuse("channel", "is required on v2; use CHANNEL_OTHER to send upstream_channel as it is");
        } else if let Err(description) = word(word_of(channel), upstream_channel, channel == Channel::Other) {
            self.refuse("upstream_channel", &description);
        }
        if address.is_empty() {
            self.refuse("address", "is required on v2");
        }
        self.text("address", address, MAX_V2_CHARS);
        self.text("channel_id", channel_id, MAX_V2_CHARS);
        let v1_only = [
            ("proxy_address", proxy_address),
            ("projected_address", projected_address),
            ("level", level),
            ("display_name", display_name),
        ];
        self.refuse_set(&v1_only, "v2 cannot carry it");
    }
}

fn word_of(channel: Channel) -> &'static str {
    channel.as_str_name().trim_start_matches("CHANNEL_")
}

/// Whether the channel is the one that v1 takes from the address. Without a prefix that is SMS, or mail where the address
/// looks like it.
fn agrees(channel: Channel, upstream_channel: &str, address: &str) -> bool {
    let prefix = address.split_once(':').map(|(prefix, _)| prefix);
    match channel {
        Channel::Unspecified => true,
        Channel::Sms => prefix.is_none(),
        Channel::Email => prefix.is_none() && address.contains('@'),
        Channel::Other => prefix.is_none_or(|prefix| prefix.eq_ignore_ascii_case(upstream_channel)),
        Channel::Whatsapp | Channel::Rcs | Channel::Messenger | Channel::Voice | Channel::Chat => {
            prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(word_of(channel)))
        }
    }
}
