//! The error table as documentation: `docs/errors.md` is made from it.

use std::collections::BTreeSet;

use tonic::Code;

use super::table::{On, REQUESTS, Retry, Row, TABLE, by_code};

/// Twilio's error codes that a request about participants can meet, with what each means.
const TWILIO_CODES: &[(i64, &str)] = &[
    (20001, "a parameter is bad"),
    (20003, "not authenticated"),
    (20004, "the method is not allowed"),
    (20005, "the account is not active"),
    (20006, "access is forbidden"),
    (20403, "access is forbidden"),
    (20404, "not found"),
    (20409, "it conflicts with what is there"),
    (20422, "a parameter is not valid"),
    (20429, "too many requests; never processed"),
    (20500, "Twilio failed"),
    (20503, "Twilio is not available"),
    (50063, "too many actions a second"),
    (50074, "too many actions a second"),
    (50100, "no such role"),
    (50107, "not authorized"),
    (50109, "no such role of a conversation"),
    (50200, "no such user"),
    (50203, "the identity is a reserved one"),
    (50204, "no identity was given"),
    (50206, "the identity looks like a user's SID"),
    (50207, "the identity is too long"),
    (50208, "the user is in too many conversations"),
    (50211, "this participant can have no identity"),
    (50213, "another change was made at the same time"),
    (50214, "the user is in too many conversations"),
    (50303, "the attributes are too long"),
    (50304, "the attributes are no JSON"),
    (50308, "`DateCreated` is no date"),
    (50309, "`DateUpdated` is no date"),
    (50350, "no such conversation"),
    (50377, "the conversation is closed"),
    (50385, "Conversations are not offered in this region"),
    (50391, "another change was made at the same time"),
    (50400, "an error of the older members' API"),
    (50402, "an error of the older members' API"),
    (50404, "an error of the older members' API"),
    (50405, "an error of the older members' API"),
    (50406, "an error of the older members' API"),
    (50407, "the address or the proxy address is bad or empty"),
    (50408, "the address or the proxy address is bad or empty"),
    (50409, "address and proxy address are the same"),
    (50411, "the address or the proxy address is bad or empty"),
    (50412, "the address or the proxy address is bad or empty"),
    (50413, "the account does not own the proxy address"),
    (50414, "address and proxy address are of different channels"),
    (50415, "the proxy address is no WhatsApp sender"),
    (50416, "address and proxy address are bound in another conversation"),
    (50417, "the conversation has as many participants as it may"),
    (50418, "the conversation has as many participants outside of chat as it may"),
    (50419, "another change was made at the same time"),
    (50420, "the binding's `name` or `level` is wrong"),
    (50421, "the last-read index is bad"),
    (50422, "the conversation has as many participants outside of chat as it may"),
    (50424, "a participant of a bulk create is no JSON"),
    (50425, "address and proxy address of a bulk create are in use"),
    (50426, "a bulk create has too many participants"),
    (50427, "a bulk create failed after it was taken"),
    (50430, "the user is no member of the conversation"),
    (50431, "the participant's SID is missing"),
    (50432, "no such participant"),
    (50433, "the participant is there already"),
    (50434, "the projected address is missing"),
    (50435, "Group MMS could not be activated"),
    (50436, "the group has as many participants as it may"),
    (50437, "the participant is in the group already"),
    (50438, "there is a group with the same participants already"),
    (50439, "the projected address is not authorized"),
    (50440, "a part of the participant could not be added or removed"),
    (50441, "a part of the participant could not be added or removed"),
    (50442, "a part of the participant could not be added or removed"),
    (50443, "a part of the participant could not be added or removed"),
    (50444, "a part of the participant could not be added or removed"),
    (50449, "another change was made at the same time"),
    (50451, "exactly one of identity and address must be named"),
    (50452, "Group MMS is not enabled"),
    (50453, "this channel has no proxy address"),
];

/// Every reason with its code, what it says about repeating the call, and what to do.
pub fn reasons() -> String {
    let mut table = "| code | reason | on repeating it | what to do |\n|---|---|---|---|\n".to_owned();
    let mut told = BTreeSet::new();
    for row in TABLE.iter().filter(|row| told.insert(row.reason.as_str())) {
        let retry = match row.reason.retry() {
            Retry::Untold => "–",
            Retry::Wait => "after the wait in `RetryInfo`: Twilio's or the gateway's, or 1 s",
            Retry::WaitIfAsked => "after the wait in `RetryInfo`, where Twilio asks for one",
            Retry::Never => "`grpc-retry-pushback-ms: -1`",
            Retry::NeverOnceSent => "`grpc-retry-pushback-ms: -1` where a write was sent",
        };
        table.push_str(&format!("| {} | {retry} | {} |\n", told_as(row, " | "), row.reason.what_to_do()));
    }
    table
}

/// Every row: which answers of Twilio it is about, and what the caller is told.
pub fn rows() -> String {
    let mut table =
        "| request | Twilio's code | HTTP status | told as | message |\n|---|---|---|---|---|\n".to_owned();
    for row in TABLE {
        let is_ours = row.twilio_codes.is_empty() && row.statuses.is_empty();
        let request = match row.on {
            _ if is_ours => "–",
            On::Any => "any",
            On::Create => "create",
            On::Collection => "list, list conversations, create",
            On::Write => "create, update",
        };
        let codes = row.twilio_codes.iter().map(ToString::to_string);
        let statuses = row.statuses.iter().map(|(first, last)| match last {
            last if last == first => first.to_string(),
            last => format!("{first}–{last}"),
        });
        let (codes, statuses, told) = (listed(codes), listed(statuses), told_as(row, " "));
        table.push_str(&format!("| {request} | {codes} | {statuses} | {told} | {} |\n", row.message));
    }
    table
}

/// Every code of Twilio's with what it means, and what the caller is told.
pub fn twilio_codes() -> String {
    let mut table = "| Twilio's code | meaning | told as |\n|---|---|---|\n".to_owned();
    for (code, meaning) in TWILIO_CODES {
        table.push_str(&format!("| {code} | {meaning} | {} |\n", by_operation(*code)));
    }
    table
}

/// What a code is told as, for each request where that differs.
fn by_operation(code: i64) -> String {
    let mut told: Vec<(String, Vec<&str>)> = Vec::new();
    for (operation, name) in REQUESTS {
        let as_what =
            by_code(operation, code).map_or_else(|| "by the HTTP status".into(), |row| told_as(row, " "));
        match told.iter_mut().find(|(known, _)| *known == as_what) {
            Some((_, names)) => names.push(name),
            None => told.push((as_what, vec![name])),
        }
    }
    match &told[..] {
        [(as_what, _)] => as_what.clone(),
        told => {
            let each = told.iter().map(|(as_what, names)| format!("{}: {as_what}", names.join(", ")));
            each.collect::<Vec<_>>().join("; ")
        }
    }
}

fn told_as(row: &Row, between: &str) -> String {
    format!("{}{between}`{}`", upper_snake(row.code), row.reason.as_str())
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "–".to_owned() } else { items.join(", ") }
}

/// A code as the gRPC protocol spells it, from tonic's name for it.
fn upper_snake(code: Code) -> String {
    let mut text = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_a_row_names_has_a_meaning_and_each_stands_once() {
        let listed: Vec<_> = TWILIO_CODES.iter().map(|(code, _)| *code).collect();
        assert!(listed.is_sorted_by(|one, next| one < next));
        let named = TABLE.iter().flat_map(|row| row.twilio_codes);
        let missing: Vec<_> = named.filter(|code| !listed.contains(code)).collect();
        assert!(missing.is_empty(), "{missing:?} have no meaning");
    }

    #[test]
    fn one_reason_has_one_code() {
        for row in TABLE {
            for other in TABLE.iter().filter(|other| other.reason == row.reason) {
                assert_eq!(other.code, row.code, "{}", row.reason.as_str());
            }
        }
    }
}
