//! What an update sends, what comes back, and what is refused. The tables of docs/updates.md are what is expected here:
//! every cell is asked of a gateway, and what was seen is written in the document's words and compared with it.

use participant_gateway::ids::Field;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::harness::*;
use crate::on_both_versions;

const ROLE: &str = "RL000000000000000000000000000000aa";
const OTHER_ROLE: &str = "RL000000000000000000000000000000ff";
const PROFILE: &str = "mem_profile_00000000000000000000000001";
const OTHER_PROFILE: &str = "mem_profile_00000000000000000000000007";
const TIME: &str = "2026-01-02T03:04:05Z";

/// The requests that change something, in Twilio's order.
async fn writes(gateway: &Gateway) -> Vec<Received> {
    gateway.sandbox.requests().await.into_iter().filter(|request| request.method != "GET").collect()
}

fn update_method(face: Face) -> &'static str {
    if face == Face::V1 { "POST" } else { "PUT" }
}

// === The tables of the document

/// The rows of the table below this heading of docs/updates.md.
fn documented(heading: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/updates.md");
    let document = std::fs::read_to_string(path).unwrap();
    let lines = document.lines().skip_while(|line| *line != heading);
    let table = lines.skip_while(|line| !line.starts_with("|---"));
    table.skip(1).take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
}

/// Compares row by row, so that a difference shows as the two rows.
fn assert_documented(heading: &str, seen: &[String]) {
    let documented = documented(heading);
    for (at, seen) in seen.iter().enumerate() {
        let row = documented.get(at).map(String::as_str);
        assert_eq!(row, Some(seen.as_str()), "docs/updates.md, {heading}: what was seen is on the right");
    }
    assert_eq!(documented.len(), seen.len(), "docs/updates.md, {heading}, has other rows");
}

// === Field by field

/// How an update comes to a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// The mask names another field, and this one is set all the same.
    Unnamed,
    /// There is no mask, and this one is not set.
    Unset,
    Named,
    NamedEmpty,
    Star,
    StarEmpty,
    NoMask,
}

const COLUMNS: [Case; 5] = [Case::Named, Case::NamedEmpty, Case::Star, Case::StarEmpty, Case::NoMask];

/// A participant of whom every field of the version is set.
async fn full(gateway: &mut Gateway, face: Face) -> Participant {
    let participant = match face {
        Face::V1 => Participant {
            addresses: vec![address(Channel::Chat, "carol")],
            attributes: r#"{"a":1}"#.into(),
            role_id: ROLE.into(),
            ..Default::default()
        },
        Face::V2 => Participant {
            display_name: "Rosa".into(),
            r#type: ParticipantType::Customer.into(),
            profile_id: PROFILE.into(),
            addresses: vec![address(Channel::Sms, "+15550110001")],
            ..Default::default()
        },
    };
    let created = gateway.create(face.create(participant)).await.unwrap();
    if face == Face::V2 {
        return created;
    }
    let read = Participant {
        last_read_message_index: Some(7),
        last_read_time: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        ..Default::default()
    };
    let update = UpdateParticipantRequest { participant_id: created.id, ..face.update(read) };
    gateway.update(update).await.unwrap()
}

/// The body of a PUT that changes nothing of it.
fn full_body() -> Value {
    let addresses = json!([{ "channel": "SMS", "address": "+15550110001" }]);
    json!({ "name": "Rosa", "type": "CUSTOMER", "profileId": PROFILE, "addresses": addresses })
}

fn address(channel: Channel, address: &str) -> Address {
    Address { channel: channel.into(), address: address.into(), ..Default::default() }
}

/// Sets the field anew.
fn set(field: Field, face: Face, participant: &mut Participant) {
    match field {
        Field::DisplayName => participant.display_name = "Lou".into(),
        Field::Type => {
            participant.r#type = ParticipantType::Agent.into();
            participant.upstream_type = "AGENT".into();
        }
        Field::ProfileId => participant.profile_id = OTHER_PROFILE.into(),
        Field::Addresses if face == Face::V1 => participant.addresses = vec![address(Channel::Chat, "dora")],
        Field::Addresses => {
            let upstream_channel = "EMAIL".into();
            let address = address(Channel::Email, "lou@example.com");
            participant.addresses = vec![Address { upstream_channel, ..address }];
        }
        Field::Attributes => participant.attributes = r#"{"b": 2}"#.into(),
        Field::RoleId => participant.role_id = OTHER_ROLE.into(),
        Field::LastReadMessageIndex => participant.last_read_message_index = Some(8),
        Field::LastReadTime => participant.last_read_time = Some(TIME.parse().unwrap()),
        Field::CreateTime => participant.create_time = Some(TIME.parse().unwrap()),
        Field::UpdateTime => participant.update_time = Some(TIME.parse().unwrap()),
    }
}

/// Where the version has the field in a body, and what `set` reads as there.
fn wire(field: Field, face: Face) -> Option<(&'static str, Value)> {
    Some(match (face, field) {
        (Face::V1, Field::Addresses) => ("Identity", json!("dora")),
        (Face::V1, Field::Attributes) => ("Attributes", json!(r#"{"b": 2}"#)),
        (Face::V1, Field::RoleId) => ("RoleSid", json!(OTHER_ROLE)),
        (Face::V1, Field::LastReadMessageIndex) => ("LastReadMessageIndex", json!("8")),
        (Face::V1, Field::LastReadTime) => ("LastReadTimestamp", json!(TIME)),
        (Face::V1, Field::CreateTime) => ("DateCreated", json!(TIME)),
        (Face::V1, Field::UpdateTime) => ("DateUpdated", json!(TIME)),
        (Face::V2, Field::DisplayName) => ("name", json!("Lou")),
        (Face::V2, Field::Type) => ("type", json!("AGENT")),
        (Face::V2, Field::ProfileId) => ("profileId", json!(OTHER_PROFILE)),
        (Face::V2, Field::Addresses) => {
            ("addresses", json!([{ "channel": "EMAIL", "address": "lou@example.com" }]))
        }
        _ => return None,
    })
}

/// The field alone, as text; empty where it is not set.
fn shown(field: Field, participant: &Participant) -> String {
    match field {
        Field::DisplayName => participant.display_name.clone(),
        Field::Type => participant.upstream_type.clone(),
        Field::ProfileId => participant.profile_id.clone(),
        Field::Addresses => {
            let addresses = participant.addresses.iter();
            addresses.map(|address| format!("{} {}", address.channel, address.address)).collect()
        }
        Field::Attributes => participant.attributes.clone(),
        Field::RoleId => participant.role_id.clone(),
        Field::LastReadMessageIndex => {
            participant.last_read_message_index.map(|index| index.to_string()).unwrap_or_default()
        }
        Field::LastReadTime => time(participant.last_read_time),
        Field::CreateTime => time(participant.create_time),
        Field::UpdateTime => time(participant.update_time),
    }
}

fn time(time: Option<prost_types::Timestamp>) -> String {
    time.map(|time| time.to_string()).unwrap_or_default()
}

/// A field that is written beside the one that is looked at.
fn beside(field: Field, face: Face) -> Field {
    match (face, field) {
        (Face::V1, Field::RoleId) => Field::Attributes,
        (Face::V1, _) => Field::RoleId,
        (Face::V2, Field::ProfileId) => Field::DisplayName,
        (Face::V2, _) => Field::ProfileId,
    }
}

fn request(face: Face, field: Field, case: Case) -> UpdateParticipantRequest {
    let mut participant = Participant::default();
    if matches!(case, Case::Unnamed | Case::Unset | Case::NoMask) {
        set(beside(field, face), face, &mut participant);
    }
    if matches!(case, Case::Unnamed | Case::Named | Case::Star | Case::NoMask) {
        set(field, face, &mut participant);
    }
    let update_mask = match case {
        Case::Unnamed => mask(&[beside(field, face).name()]),
        Case::Named | Case::NamedEmpty => mask(&[field.name()]),
        Case::Star | Case::StarEmpty => mask(&["*"]),
        Case::Unset | Case::NoMask => None,
    };
    UpdateParticipantRequest { update_mask, ..face.update(participant) }
}

/// What the body holds of the other fields.
fn rest(face: Face, field: Field, case: Case) -> Value {
    let is_star = matches!(case, Case::Star | Case::StarEmpty);
    let mut rest = match (face, is_star) {
        (Face::V1, false) => json!({}),
        (Face::V1, true) => json!({ "Attributes": "{}", "LastReadMessageIndex": "null" }),
        (Face::V2, false) => full_body(),
        (Face::V2, true) => json!({ "addresses": [] }),
    };
    if matches!(case, Case::Unnamed | Case::Unset | Case::NoMask) {
        let (key, value) = wire(beside(field, face), face).unwrap();
        rest[key] = value;
    }
    if let Some((key, _)) = wire(field, face) {
        rest.as_object_mut().unwrap().remove(key);
    }
    rest
}

/// The body of a write, each form field or JSON key once.
fn body(face: Face, sent: &Received) -> Value {
    if face == Face::V2 {
        return sent.json();
    }
    let form = sent.form();
    let body: Value = form.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    assert_eq!(body.as_object().unwrap().len(), form.len(), "no field comes twice: {form:?}");
    body
}

/// What a gateway does with the field, in the document's words.
async fn cell(gateway: &mut Gateway, face: Face, field: Field, case: Case) -> String {
    gateway.sandbox.reset().await;
    let before = full(gateway, face).await;
    gateway.sandbox.forget_requests().await;
    let update = UpdateParticipantRequest { participant_id: before.id.clone(), ..request(face, field, case) };
    let answer = gateway.update(update).await;
    let writes = writes(gateway).await;
    let after = match answer {
        Ok(after) => after,
        Err(status) => {
            assert!(writes.is_empty(), "what is refused is not sent: {writes:?}");
            return match &refused_fields(&status)[..] {
                [name] if name == "update_mask.paths[0]" => "refused (mask)".into(),
                [name] if *name == format!("participant.{}", field.name()) => "refused (field)".into(),
                other => format!("refused: {other:?}"),
            };
        }
    };
    let [sent] = &writes[..] else { panic!("one write, and not {writes:?}") };
    assert_eq!(sent.method, update_method(face));
    let mut body = body(face, sent);
    let wire = wire(field, face);
    let own = wire.as_ref().and_then(|(key, _)| body.as_object_mut().unwrap().remove(*key));
    assert_eq!(body, rest(face, field, case), "{field:?} {case:?}");
    let get = GetParticipantRequest { participant_id: before.id.clone(), ..face.get_fresh() };
    assert_eq!(gateway.get(get).await.unwrap().0, after, "what comes back is what is there");
    let seen = seen(face, wire, own);
    let mut new = Participant::default();
    set(field, face, &mut new);
    let [was, is, new] = [&before, &after, &new].map(|participant| shown(field, participant));
    match seen.as_str() {
        // Twilio moves it with every change.
        "" if field == Field::UpdateTime && is != new => "Twilio sets it".into(),
        "" | "as it was" if is == was && !is.is_empty() => "stays".into(),
        "" if is == was => "–".into(),
        seen if is == new && seen.contains('…') => seen.into(),
        seen if is.is_empty() => format!("{seen}; reads empty"),
        seen => format!("{seen}; reads `{is}`"),
    }
}

/// What was sent of the field: nothing, `as it was`, left out of a PUT, or a pair in which `…` is the new value.
fn seen(face: Face, wire: Option<(&str, Value)>, own: Option<Value>) -> String {
    let Some((key, new)) = wire else {
        return String::new();
    };
    match (face, own) {
        (Face::V1, None) => String::new(),
        (Face::V1, Some(own)) if own == new => format!("`{key}=…`"),
        (Face::V1, Some(own)) => format!("`{key}={}`", own.as_str().unwrap()),
        (Face::V2, None) => "left out".into(),
        (Face::V2, Some(own)) if own == full_body()[key] => "as it was".into(),
        (Face::V2, Some(own)) if own == new => format!("`{key}: …`"),
        (Face::V2, Some(own)) => format!("`{key}: {own}`"),
    }
}

async fn each_cell(face: Face, heading: &str) {
    let mut gateway = Gateway::start().await;
    let mut seen = Vec::new();
    for field in Field::ALL {
        let absent = cell(&mut gateway, face, field, Case::Unnamed).await;
        let unset = cell(&mut gateway, face, field, Case::Unset).await;
        assert_eq!(absent, unset, "{field:?}: two ways to leave it alone");
        let mut row = format!("| `{}` | {absent} |", field.name());
        for case in COLUMNS {
            row += &format!(" {} |", cell(&mut gateway, face, field, case).await);
        }
        seen.push(row);
    }
    assert_documented(heading, &seen);
}

#[tokio::test]
async fn each_field_of_v1_is_as_documented() {
    each_cell(Face::V1, "### Fields on v1").await;
}

#[tokio::test]
async fn each_field_of_v2_is_as_documented() {
    each_cell(Face::V2, "### Fields on v2").await;
}

// === Part by part of the addresses

/// Whose addresses are changed.
#[derive(Clone, Copy)]
enum Who {
    Chats,
    Texts,
    /// Both at once: v1's member of a Group MMS.
    Both,
}

fn addresses(who: Who, face: Face) -> Vec<Address> {
    let chat = address(Channel::Chat, "carol");
    let text = address(Channel::Sms, "+15550110001");
    match (who, face) {
        (Who::Chats, _) => vec![chat],
        (Who::Texts, Face::V1) => vec![Address { proxy_address: "+15550119001".into(), ..text }],
        (Who::Texts, Face::V2) => vec![Address { channel_id: "SM1".into(), ..text }],
        (Who::Both, Face::V1) => {
            vec![chat, Address { projected_address: "+15550119002".into(), address: String::new(), ..text }]
        }
        (Who::Both, Face::V2) => vec![chat, text],
    }
}

type Change = fn(&mut Vec<Address>);

fn channel(there: &mut [Address], channel: Channel, upstream: &str) {
    there[0].channel = channel.into();
    there[0].upstream_channel = upstream.into();
}

const CHANGES: [(&str, Who, Change); 21] = [
    ("nothing", Who::Both, |_| {}),
    ("the identity", Who::Chats, |there| there[0].address = "dora".into()),
    ("the identity, emptied", Who::Chats, |there| there[0].address.clear()),
    ("`address`", Who::Texts, |there| there[0].address = "+15550110009".into()),
    ("`address`, emptied", Who::Texts, |there| there[0].address.clear()),
    ("`channel`", Who::Texts, |there| channel(there, Channel::Voice, "")),
    ("`channel`, emptied", Who::Texts, |there| channel(there, Channel::Unspecified, "")),
    ("`upstream_channel`", Who::Texts, |there| channel(there, Channel::Other, "PAGER")),
    ("`upstream_channel`, emptied", Who::Texts, |there| channel(there, Channel::Sms, "")),
    ("`proxy_address`", Who::Texts, |there| there[0].proxy_address = "+15550119009".into()),
    ("`proxy_address`, emptied", Who::Texts, |there| there[0].proxy_address.clear()),
    ("`projected_address`", Who::Both, |there| there[1].projected_address = "+15550119009".into()),
    ("`projected_address`, emptied", Who::Both, |there| there[1].projected_address.clear()),
    ("`channel_id`", Who::Texts, |there| there[0].channel_id = "SM2".into()),
    ("`channel_id`, emptied", Who::Texts, |there| there[0].channel_id.clear()),
    ("`level`", Who::Texts, |there| there[0].level = "cc".into()),
    ("`display_name`", Who::Texts, |there| there[0].display_name = "Carol".into()),
    ("an identity added", Who::Texts, |there| there.push(address(Channel::Chat, "dora"))),
    ("an address added", Who::Chats, |there| there.push(address(Channel::Sms, "+15550110009"))),
    ("the identity taken away", Who::Both, |there| drop(there.remove(0))),
    ("the address taken away", Who::Both, |there| there.truncate(1)),
];

/// What a gateway does with the change, in the document's words.
async fn change_cell(gateway: &mut Gateway, face: Face, who: Who, change: Change) -> String {
    gateway.sandbox.reset().await;
    let participant = Participant { addresses: addresses(who, face), ..Default::default() };
    let before = gateway.create(face.create(participant)).await.unwrap();
    gateway.sandbox.forget_requests().await;
    let mut asked = before.addresses.clone();
    change(&mut asked);
    let update = UpdateParticipantRequest {
        participant_id: before.id.clone(),
        update_mask: mask(&["addresses"]),
        ..face.update(Participant { addresses: asked.clone(), ..Default::default() })
    };
    let answer = gateway.update(update).await;
    let writes = writes(gateway).await;
    let after = match answer {
        Ok(after) => after,
        Err(status) => {
            assert!(writes.is_empty(), "what is refused is not sent: {writes:?}");
            let mut fields = refused_fields(&status);
            fields.dedup();
            return format!("refused: `{}`", fields.join("`, `"));
        }
    };
    let Some(sent) = writes.first() else {
        assert_eq!(after, before);
        return "nothing is sent".into();
    };
    assert_eq!(writes.len(), 1);
    let sent = match face {
        Face::V1 => sent.form().iter().map(|(name, value)| format!("{name}={value}")).collect(),
        Face::V2 => vec![sent.json().to_string()],
    };
    let sent = format!("`{}`", sent.join("&"));
    // Twilio adds its own word.
    let plain = |addresses: &[Address]| -> Vec<Address> {
        let plain = |address: &Address| Address { upstream_channel: String::new(), ..address.clone() };
        addresses.iter().map(plain).collect()
    };
    if plain(&after.addresses) == plain(&asked) {
        sent
    } else {
        assert_eq!(plain(&after.addresses), plain(&asked[..after.addresses.len()]));
        format!("{sent}; the entry is gone")
    }
}

#[tokio::test]
async fn each_part_of_addresses_is_as_documented() {
    let mut gateway = Gateway::start().await;
    let mut seen = Vec::new();
    for (what, who, change) in CHANGES {
        let v1 = change_cell(&mut gateway, Face::V1, who, change).await;
        let v2 = change_cell(&mut gateway, Face::V2, who, change).await;
        seen.push(format!("| {what} | {v1} | {v2} |"));
    }
    assert_documented("### Parts of `addresses`", &seen);
}

/// An entry with a word of Twilio's that this build does not know, and without a prefix that would tell it.
#[tokio::test]
async fn v1_changes_no_unknown_channel_either() {
    let mut gateway = Gateway::start().await;
    let binding = json!({ "type": "pager", "address": "4711" });
    let body = json!({ "sid": Face::V1.participant(), "messaging_binding": binding }).to_string();
    gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "body": body })).await;
    for (word, expected) in [("pager", None), ("PAGER", None), ("fax", Some("participant.addresses"))] {
        let upstream_channel = word.into();
        let entry = Address { upstream_channel, ..address(Channel::Other, "4711") };
        let update = Face::V1.update(Participant { addresses: vec![entry], ..Default::default() });
        let answer = gateway.update(update).await;
        let refused = answer.err().map(|status| refused_fields(&status).concat());
        assert_eq!(refused.as_deref(), expected, "{word}");
    }
    assert!(writes(&gateway).await.is_empty());
}

// === At the same time

/// An update whose read is answered only once it is released, with what was there when it was asked.
async fn reads_early(
    gateway: &Gateway,
    update: UpdateParticipantRequest,
) -> JoinHandle<Result<Participant, Status>> {
    let late = json!({ "match": { "method": "GET" }, "times": 1, "after": true, "hold": true });
    gateway.sandbox.fault(late).await;
    let mut client = gateway.client.clone();
    let update = tokio::spawn(async move {
        Ok(client.update_participant(update).await?.into_inner().participant.unwrap())
    });
    gateway.sandbox.held(1).await;
    update
}

fn profile(id: &str) -> Participant {
    Participant { profile_id: id.into(), ..Default::default() }
}

#[tokio::test]
async fn updates_of_one_v2_participant_through_one_gateway_lose_nothing() {
    let mut gateway = Gateway::start().await;
    let update = |number: usize| match number % 2 {
        0 => Face::V2.update(Face::V2.marked(&format!("name-{number}"))),
        _ => Face::V2.update(profile(&format!("profile-{number}"))),
    };
    let calls: Vec<_> = (0..40)
        .map(|number| {
            let mut client = gateway.client.clone();
            tokio::spawn(async move { client.update_participant(update(number)).await })
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        let answer = call.await.unwrap().unwrap().into_inner().participant.unwrap();
        let own = if number % 2 == 0 { answer.display_name } else { answer.profile_id };
        assert!(own.ends_with(&format!("-{number}")), "{own}");
    }
    // The seed. Each write leaves there what the one before it wrote, but for the field that it is about.
    let mut there = json!({ "name": "Noor", "profileId": PROFILE });
    let puts = writes(&gateway).await;
    assert_eq!(puts.len(), 40);
    for put in puts {
        let put = put.json();
        let changed = ["name", "profileId"].into_iter().filter(|key| put[key] != there[key]).count();
        assert_eq!(changed, 1, "{put} after {there}");
        there = put;
    }
    let (is, _) = gateway.get(Face::V2.get_fresh()).await.unwrap();
    assert_eq!(
        (json!(is.display_name), json!(is.profile_id)),
        (there["name"].clone(), there["profileId"].clone())
    );
}

/// Twilio offers no condition for a PUT, so this is no more than docs/updates.md promises.
#[tokio::test]
async fn of_two_v2_updates_that_read_before_either_wrote_the_later_one_wins_whole() {
    let first = Gateway::start().await;
    let mut second = Gateway::beside(&first).await;
    let (there, _) = second.get(Face::V2.get()).await.unwrap();
    // An etag changes nothing here: it fits when it is compared.
    for etag in [String::new(), there.etag.clone()] {
        let named = Participant { etag, ..Face::V2.marked("Lou") };
        let early = reads_early(&first, Face::V2.update(named)).await;
        let moved = second.update(Face::V2.update(profile(OTHER_PROFILE))).await.unwrap();
        assert_eq!((moved.display_name.as_str(), moved.profile_id.as_str()), ("Noor", OTHER_PROFILE));
        first.sandbox.release().await;
        let named = early.await.unwrap().unwrap();
        assert_eq!((named.display_name.as_str(), named.profile_id.as_str()), ("Lou", PROFILE));
        assert_eq!(second.get(Face::V2.get_fresh()).await.unwrap().0, named, "the profile is lost");
        first.sandbox.reset().await;
    }
}

#[tokio::test]
async fn v1_updates_of_different_fields_never_undo_each_other() {
    let first = Gateway::start().await;
    let mut second = Gateway::beside(&first).await;
    let renamed = Participant { addresses: vec![address(Channel::Chat, "alicia")], ..Default::default() };
    let early = reads_early(&first, Face::V1.update(renamed)).await;
    second.update(Face::V1.update(Face::V1.marked("theirs"))).await.unwrap();
    first.sandbox.release().await;
    let renamed = early.await.unwrap().unwrap();
    assert_eq!(
        (renamed.addresses[0].address.as_str(), Face::V1.mark(&renamed).as_str()),
        ("alicia", "theirs")
    );
    assert_eq!(second.get(Face::V1.get_fresh()).await.unwrap().0, renamed);
}

on_both_versions! {
    async fn an_update_that_has_nothing_to_change_makes_the_cache_forget(face) {
        let mut gateway = Gateway::start().await;
        gateway.get(face.get()).await.unwrap();
        let mut other = Gateway::beside(&gateway).await;
        let change = match face {
            Face::V1 => Participant { addresses: vec![address(Channel::Chat, "alicia")], ..Default::default() },
            Face::V2 => Face::V2.marked("Lou"),
        };
        let changed = other.update(face.update(change.clone())).await.unwrap();
        gateway.sandbox.forget_requests().await;
        assert_eq!(gateway.update(face.update(change)).await.unwrap(), changed);
        assert!(writes(&gateway).await.is_empty(), "it is as asked already");
        assert_eq!(gateway.get(face.get()).await.unwrap().0, changed, "what was answered is what is read");
    }

    // === Etags

    async fn an_etag_that_fits_is_followed_by_the_next(face) {
        let mut gateway = Gateway::start().await;
        let (mut there, _) = gateway.get(face.get()).await.unwrap();
        for mark in ["one", "two"] {
            gateway.sandbox.forget_requests().await;
            let marked = Participant { etag: there.etag.clone(), ..face.marked(mark) };
            let updated = gateway.update(face.update(marked)).await.unwrap();
            let methods: Vec<_> = gateway.sandbox.requests().await.into_iter().map(|sent| sent.method).collect();
            assert_eq!(methods, ["GET", update_method(face)], "one read, whatever else needs it");
            assert_eq!(face.mark(&updated), mark);
            assert_ne!(updated.etag, there.etag);
            there = gateway.get(face.get_fresh()).await.unwrap().0;
            assert_eq!(there.etag, updated.etag);
        }
    }

    async fn an_etag_that_another_change_outdated_ends_the_update(face) {
        let mut gateway = Gateway::start().await;
        let (there, _) = gateway.get(face.get()).await.unwrap();
        let mut other = Gateway::beside(&gateway).await;
        other.update(face.update(face.marked("theirs"))).await.unwrap();
        gateway.sandbox.forget_requests().await;
        let ours = |etag: &str| face.update(Participant { etag: etag.into(), ..face.marked("ours") });
        for validate_only in [true, false] {
            let update = UpdateParticipantRequest { validate_only, ..ours(&there.etag) };
            let error = gateway.update(update).await.unwrap_err();
            assert_eq!(told(&error), (Code::Aborted, "ETAG_MISMATCH".into()));
        }
        assert!(writes(&gateway).await.is_empty());
        // The state that the etag is of was cached, and is no more.
        let (theirs, _) = gateway.get(face.get()).await.unwrap();
        assert_eq!(face.mark(&theirs), "theirs");
        let updated = gateway.update(ours(&theirs.etag)).await.unwrap();
        assert_eq!(face.mark(&updated), "ours");
    }

    async fn an_etag_is_the_same_on_every_way(face) {
        let mut gateway = Gateway::start().await;
        let (there, _) = gateway.get(face.get()).await.unwrap();
        let mut ways = vec![face.get_fresh()];
        if face == Face::V1 {
            let on_service = ConversationRef { service_id: sandbox::SERVICE_SID.into(), ..face.conversation() };
            let by_name = ConversationRef { api_version: ApiVersion::V1.into(), ..Face::named("sandbox") };
            let on = |conversation| GetParticipantRequest { conversation: Some(conversation), ..face.get() };
            ways.extend([on(on_service), on(by_name)]);
            ways.push(GetParticipantRequest { participant_id: "alice".into(), ..face.get() });
        }
        let mut other = Gateway::beside(&gateway).await;
        let mut etags = Vec::new();
        for way in ways {
            etags.push(other.get(way.clone()).await.unwrap().0.etag);
            let marked = Participant { etag: there.etag.clone(), ..face.marked("x") };
            let UpdateParticipantRequest { participant, .. } = face.update(marked);
            let GetParticipantRequest { conversation, participant_id, .. } = way;
            let update = UpdateParticipantRequest { conversation, participant_id, participant, validate_only: true, ..Default::default() };
            gateway.client.update_participant(update).await.expect("it fits on this way, too");
        }
        etags.push(gateway.list(face.list()).await.unwrap().participants[0].etag.clone());
        etags.push(other.list(face.list()).await.unwrap().participants[0].etag.clone());
        assert!(etags.iter().all(|etag| *etag == there.etag), "{etags:?}");
    }
}
