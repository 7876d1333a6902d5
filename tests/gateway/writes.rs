//! What a create, an update and a delete send, and what comes back.

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tonic::Code;

use crate::harness::*;
use crate::on_both_versions;

const SMS: &str = "MB00000000000000000000000000000003";
const OTHER_ROLE: &str = "RL000000000000000000000000000000ff";

fn chat(identity: &str) -> Address {
    Address { channel: Channel::Chat.into(), address: identity.into(), ..Default::default() }
}

/// The last request that the sandbox got.
async fn last(gateway: &Gateway) -> Received {
    gateway.sandbox.requests().await.pop().unwrap()
}

fn pairs(form: &[(&str, &str)]) -> Vec<(String, String)> {
    form.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The participant as a caller writes it back: without what is told only.
fn written_back(participant: &Participant) -> Participant {
    Participant { etag: String::new(), ..participant.clone() }
}

on_both_versions! {
    async fn what_is_created_can_be_read(face) {
        let mut gateway = Gateway::start().await;
        let created = gateway.create(face.create(face.newcomer(1))).await.unwrap();
        assert!(!created.id.is_empty() && !created.etag.is_empty() && created.create_time.is_some());
        let get = GetParticipantRequest { participant_id: created.id.clone(), ..face.get() };
        assert_eq!(gateway.get(get).await.unwrap().0, created);
    }

    async fn what_is_there_already_is_told_by_its_id_where_twilio_tells_it(face) {
        let mut gateway = Gateway::start().await;
        gateway.create(face.create(face.newcomer(1))).await.unwrap();
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        use tonic_types::StatusExt as _;
        let resource = error.get_details_resource_info().unwrap();
        assert_eq!(resource.resource_type, "participant.v1.Participant");
        assert_eq!(resource.resource_name.starts_with("conv_participant_"), face == Face::V2);
    }

    async fn an_update_of_all_fields_takes_back_what_a_get_told(face) {
        let mut gateway = Gateway::start().await;
        let (there, _) = gateway.get(face.get()).await.unwrap();
        let update = UpdateParticipantRequest { update_mask: mask(&["*"]), ..face.update(written_back(&there)) };
        let updated = gateway.update(update).await.unwrap();
        let same = Participant { update_time: there.update_time, etag: there.etag.clone(), ..updated };
        assert_eq!(same, there);
    }

    async fn without_a_mask_the_populated_fields_are_written(face) {
        let mut gateway = Gateway::start().await;
        let (there, _) = gateway.get(face.get()).await.unwrap();
        let changed = match face {
            Face::V1 => Participant { attributes: r#"{"mark":"x"}"#.into(), ..written_back(&there) },
            Face::V2 => Participant { display_name: "x".into(), ..written_back(&there) },
        };
        let updated = gateway.update(face.update(changed)).await.unwrap();
        assert_eq!(face.mark(&updated), "x");
        assert_eq!((updated.create_time, updated.addresses), (there.create_time, there.addresses));
        assert_ne!(updated.etag, there.etag);
    }

    async fn a_missing_participant_is_not_updated(face) {
        let mut gateway = Gateway::start().await;
        let update = UpdateParticipantRequest {
            participant_id: face.missing_participant().into(),
            ..face.update(face.marked("x"))
        };
        let error = gateway.update(update).await.unwrap_err();
        assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
    }
}

// === v1

#[tokio::test]
async fn v1_creates_are_forms_of_what_is_set() {
    let mut gateway = Gateway::start().await;
    let service_id = sandbox::SERVICE_SID.to_owned();
    let request = CreateParticipantRequest {
        conversation: Some(ConversationRef { service_id, ..Face::V1.conversation() }),
        participant: Some(Participant {
            id: "ignored".into(),
            addresses: vec![Address {
                channel: Channel::Whatsapp.into(),
                address: "whatsapp:+15550110001".into(),
                proxy_address: "whatsapp:+15550119001".into(),
                ..Default::default()
            }],
            attributes: r#"{"a": [1,  2]}"#.into(),
            role_id: OTHER_ROLE.into(),
            create_time: Some("2026-01-02T03:04:05Z".parse().unwrap()),
            ..Default::default()
        }),
        webhook_enabled: Some(true),
        ..Default::default()
    };
    let created = gateway.create(request).await.unwrap();
    let sent = last(&gateway).await;
    let path = format!(
        "/v1/Services/{}/Conversations/{}/Participants",
        sandbox::SERVICE_SID,
        sandbox::V1_CONVERSATION
    );
    assert_eq!((sent.method.as_str(), &sent.path), ("POST", &path));
    assert_eq!(sent.headers["x-twilio-webhook-enabled"], "true");
    assert_eq!(sent.headers["content-type"], "application/x-www-form-urlencoded");
    let expected = pairs(&[
        ("MessagingBinding.Address", "whatsapp:+15550110001"),
        ("MessagingBinding.ProxyAddress", "whatsapp:+15550119001"),
        ("Attributes", r#"{"a": [1,  2]}"#),
        ("RoleSid", OTHER_ROLE),
        ("DateCreated", "2026-01-02T03:04:05Z"),
    ]);
    assert_eq!(sent.form(), expected);
    assert_eq!(created.attributes, r#"{"a": [1,  2]}"#, "attributes come back byte for byte");
    assert_eq!(created.addresses[0].channel(), Channel::Whatsapp);
    assert_eq!(created.create_time, Some("2026-01-02T03:04:05Z".parse().unwrap()));
}

#[tokio::test]
async fn a_group_mms_chat_member_has_both_addresses() {
    let mut gateway = Gateway::start().await;
    let projected = Address { projected_address: "+15550119002".into(), ..Default::default() };
    let participant = Participant { addresses: vec![chat("carol"), projected], ..Default::default() };
    let created = gateway.create(Face::V1.create(participant)).await.unwrap();
    let expected = pairs(&[("Identity", "carol"), ("MessagingBinding.ProjectedAddress", "+15550119002")]);
    assert_eq!(last(&gateway).await.form(), expected);
    assert_eq!(created.addresses.len(), 2);
    assert_eq!(
        (created.addresses[0].channel(), created.addresses[0].address.as_str()),
        (Channel::Chat, "carol")
    );
    assert_eq!(created.addresses[1].channel(), Channel::Sms);
    assert_eq!(created.addresses[1].projected_address, "+15550119002");
}

#[tokio::test]
async fn v1_updates_send_only_what_is_masked() {
    let mut gateway = Gateway::start().await;
    let participant = Participant {
        attributes: "{}".into(),
        role_id: OTHER_ROLE.into(),
        last_read_message_index: Some(0),
        last_read_time: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        update_time: Some("2026-01-02T03:04:06.5Z".parse().unwrap()),
        ..Default::default()
    };
    for (paths, expected) in [
        (vec!["role_id"], pairs(&[("RoleSid", OTHER_ROLE)])),
        (vec!["last_read_message_index"], pairs(&[("LastReadMessageIndex", "0")])),
        (vec!["last_read_time"], pairs(&[("LastReadTimestamp", "2026-01-02T03:04:05Z")])),
        (
            vec!["update_time", "attributes"],
            pairs(&[("Attributes", "{}"), ("DateUpdated", "2026-01-02T03:04:06.500Z")]),
        ),
    ] {
        let update = UpdateParticipantRequest {
            update_mask: mask(&paths),
            webhook_enabled: Some(false),
            ..Face::V1.update(participant.clone())
        };
        gateway.update(update).await.unwrap();
        let sent = last(&gateway).await;
        assert_eq!((sent.method.as_str(), sent.form()), ("POST", expected), "{paths:?}");
        assert_eq!(sent.headers["x-twilio-webhook-enabled"], "false");
    }
    assert_eq!(gateway.sandbox.count().await, 4, "no read went before them");
}

#[tokio::test]
async fn v1_clears_what_it_can_clear() {
    let mut gateway = Gateway::start().await;
    let read = Participant {
        last_read_message_index: Some(7),
        attributes: r#"{"a":1}"#.into(),
        ..Default::default()
    };
    gateway.update(Face::V1.update(read)).await.unwrap();
    let clear = |paths: &[&str]| UpdateParticipantRequest {
        update_mask: mask(paths),
        ..Face::V1.update(Participant::default())
    };
    let cleared = gateway.update(clear(&["attributes", "last_read_message_index"])).await.unwrap();
    let expected = pairs(&[("Attributes", "{}"), ("LastReadMessageIndex", "null")]);
    assert_eq!(last(&gateway).await.form(), expected);
    assert_eq!((cleared.attributes.as_str(), cleared.last_read_message_index), ("{}", None));
    for path in ["role_id", "last_read_time", "create_time", "update_time", "addresses"] {
        let error = gateway.update(clear(&[path])).await.unwrap_err();
        assert_eq!(refused_fields(&error), [format!("participant.{path}")]);
    }
}

#[tokio::test]
async fn v1_addresses_are_compared_and_only_the_difference_is_sent() {
    let mut gateway = Gateway::start().await;
    let get = GetParticipantRequest { participant_id: SMS.into(), ..Face::V1.get() };
    let (there, _) = gateway.get(get).await.unwrap();
    let mut update = UpdateParticipantRequest {
        participant_id: SMS.into(),
        update_mask: mask(&["addresses"]),
        ..Face::V1.update(written_back(&there))
    };

    let same = gateway.update(update.clone()).await.unwrap();
    let sent = last(&gateway).await;
    assert_eq!((sent.method.as_str(), &same), ("GET", &there), "nothing differs, so nothing is written");

    let address = |update: &mut UpdateParticipantRequest, change: &dyn Fn(&mut Address)| {
        change(&mut update.participant.as_mut().unwrap().addresses[0]);
    };
    address(&mut update, &|binding| binding.proxy_address = "+15550109009".into());
    let changed = gateway.update(update.clone()).await.unwrap();
    assert_eq!(last(&gateway).await.form(), pairs(&[("MessagingBinding.ProxyAddress", "+15550109009")]));
    assert_eq!(changed.addresses[0].proxy_address, "+15550109009");

    address(&mut update, &|binding| binding.proxy_address.clear());
    let cleared = gateway.update(update.clone()).await.unwrap();
    assert_eq!(last(&gateway).await.form(), pairs(&[("MessagingBinding.ProxyAddress", "null")]));
    assert_eq!(cleared.addresses[0].proxy_address, "");

    let writes = gateway.sandbox.count().await;
    for change in [
        |update: &mut UpdateParticipantRequest| {
            update.participant.as_mut().unwrap().addresses[0].address = "+15550100099".into();
        },
        |update: &mut UpdateParticipantRequest| {
            update.participant.as_mut().unwrap().addresses.push(chat("dora"));
        },
        |update: &mut UpdateParticipantRequest| {
            update.participant.as_mut().unwrap().addresses[0] = chat("dora");
        },
    ] {
        let mut impossible = update.clone();
        change(&mut impossible);
        let error = gateway.update(impossible).await.unwrap_err();
        assert!(refused_fields(&error).iter().all(|field| field == "participant.addresses"), "{error:?}");
    }
    let sent: Vec<_> = gateway.sandbox.requests().await.into_iter().skip(writes as usize).collect();
    assert!(sent.iter().all(|request| request.method == "GET"), "{sent:?}");
}

#[tokio::test]
async fn v1_changes_an_identity_and_takes_none_away() {
    let mut gateway = Gateway::start().await;
    let update = |addresses| UpdateParticipantRequest {
        update_mask: mask(&["addresses"]),
        ..Face::V1.update(Participant { addresses, ..Default::default() })
    };
    let renamed = gateway.update(update(vec![chat("alicia")])).await.unwrap();
    assert_eq!(last(&gateway).await.form(), pairs(&[("Identity", "alicia")]));
    assert_eq!(renamed.addresses[0].address, "alicia");
    let taken = gateway.update(update(vec![chat("bob")])).await.unwrap_err();
    assert_eq!(told(&taken), (Code::Aborted, "CONFLICT".into()));
    let binding = Address { address: "+15550100098".into(), ..Default::default() };
    let error = gateway.update(update(vec![binding])).await.unwrap_err();
    assert_eq!(refused_fields(&error), ["participant.addresses", "participant.addresses"]);
}

#[tokio::test]
async fn a_write_by_identity_goes_to_the_sid() {
    let mut gateway = Gateway::start().await;
    // Cached or not, the identity is resolved anew: it may be another participant's by now.
    gateway.get(GetParticipantRequest { participant_id: "alice".into(), ..Face::V1.get() }).await.unwrap();
    gateway.sandbox.forget_requests().await;
    let update =
        UpdateParticipantRequest { participant_id: "alice".into(), ..Face::V1.update(Face::V1.marked("x")) };
    gateway.update(update).await.unwrap();
    let delete = DeleteParticipantRequest {
        participant_id: "alice".into(),
        webhook_enabled: Some(true),
        ..Face::V1.delete()
    };
    gateway.delete(delete.clone()).await.unwrap();

    let item = |id: &str| format!("/v1/Conversations/{}/Participants/{id}", sandbox::V1_CONVERSATION);
    let (alice, sid) = (item("alice"), item(Face::V1.participant()));
    let sent: Vec<_> =
        gateway.sandbox.requests().await.into_iter().map(|sent| (sent.method, sent.path)).collect();
    let expected = [("GET", &alice), ("POST", &sid), ("GET", &alice), ("DELETE", &sid)];
    assert_eq!(sent, expected.map(|(method, path)| (method.to_owned(), path.clone())));
    assert_eq!(last(&gateway).await.headers["x-twilio-webhook-enabled"], "true");

    let error = gateway.delete(delete).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
}

#[tokio::test]
async fn an_api_key_signs_the_requests_where_there_is_one() {
    let (fake, end) = sandbox(sandbox::Settings::default()).await;
    let env = [
        ("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID),
        ("TWILIO_AUTH_TOKEN", "the webhooks' business, and wrong here"),
        ("TWILIO_API_KEY", sandbox::API_KEY_SID),
        ("TWILIO_API_SECRET", sandbox::API_KEY_SECRET),
    ];
    let flags = ["--upstream-url", &format!("http://{fake}")];
    let mut gateway = Gateway::launch(&flags, &env, Some((fake, Some(end)))).await;
    gateway.get(Face::V1.get()).await.unwrap();
}

// === v2

#[tokio::test]
async fn v2_creates_are_json_of_what_is_set() {
    let mut gateway = Gateway::start().await;
    let address = |channel: Channel, upstream: &str, address: &str, channel_id: &str| Address {
        channel: channel.into(),
        upstream_channel: upstream.into(),
        address: address.into(),
        channel_id: channel_id.into(),
        ..Default::default()
    };
    let participant = Participant {
        display_name: "Rosa".into(),
        r#type: ParticipantType::Other.into(),
        upstream_type: "SUPERVISOR".into(),
        profile_id: "mem_profile_00000000000000000000000009".into(),
        addresses: vec![
            address(Channel::Voice, "", "+15550110002", "CA00000000000000000000000000000001"),
            address(Channel::Email, "EMAIL", "rosa@example.com", ""),
            address(Channel::Other, "API", "x-1", ""),
        ],
        ..Default::default()
    };
    let created = gateway.create(Face::V2.create(participant)).await.unwrap();
    let sent = last(&gateway).await;
    assert_eq!(sent.headers["content-type"], "application/json");
    let expected = json!({
        "name": "Rosa",
        "type": "SUPERVISOR",
        "profileId": "mem_profile_00000000000000000000000009",
        "addresses": [
            { "channel": "VOICE", "address": "+15550110002", "channelId": "CA00000000000000000000000000000001" },
            { "channel": "EMAIL", "address": "rosa@example.com" },
            { "channel": "API", "address": "x-1" },
        ],
    });
    assert_eq!(sent.json(), expected);
    assert_eq!((created.r#type(), created.upstream_type.as_str()), (ParticipantType::Other, "SUPERVISOR"));
    assert_eq!(created.addresses[2].channel(), Channel::Other);
    assert_eq!(created.addresses[2].upstream_channel, "API");
}

#[tokio::test]
async fn v2_updates_merge_into_what_is_there_now_and_put_the_whole() {
    let mut gateway = Gateway::start().await;
    // The cache holds an old state, which must not be what the update merges into.
    gateway.get(Face::V2.get()).await.unwrap();
    let mut other = Gateway::beside(&gateway).await;
    let moved =
        Participant { profile_id: "mem_profile_00000000000000000000000007".into(), ..Default::default() };
    other.update(Face::V2.update(moved)).await.unwrap();

    let update = UpdateParticipantRequest {
        update_mask: mask(&["display_name"]),
        // Outside of the mask, and so not looked at.
        ..Face::V2.update(Participant {
            display_name: "Lou".into(),
            attributes: "{}".into(),
            ..Default::default()
        })
    };
    let updated = gateway.update(update).await.unwrap();
    let sent = last(&gateway).await;
    let expected = json!({
        "name": "Lou",
        "type": "CUSTOMER",
        "profileId": "mem_profile_00000000000000000000000007",
        "addresses": [{ "channel": "SMS", "address": "+15550100002" }],
    });
    assert_eq!((sent.method.as_str(), sent.json()), ("PUT", expected));
    assert_eq!(updated.display_name, "Lou");
}

#[tokio::test]
async fn v2_clears_what_is_masked_and_empty() {
    let mut gateway = Gateway::start().await;
    let update = UpdateParticipantRequest {
        update_mask: mask(&["display_name", "upstream_type", "profile_id"]),
        ..Face::V2.update(Participant::default())
    };
    let cleared = gateway.update(update).await.unwrap();
    let expected = json!({ "addresses": [{ "channel": "SMS", "address": "+15550100002" }] });
    assert_eq!(last(&gateway).await.json(), expected);
    assert_eq!((cleared.display_name.as_str(), cleared.r#type()), ("", ParticipantType::Unspecified));
}

#[tokio::test]
async fn v2_has_no_delete() {
    let mut gateway = Gateway::start().await;
    let error = gateway.delete(Face::V2.delete()).await.unwrap_err();
    assert_eq!(told(&error), (Code::FailedPrecondition, "OPERATION_NOT_SUPPORTED_BY_UPSTREAM".into()));
    assert_eq!(gateway.sandbox.count().await, 0);
}

#[tokio::test]
async fn an_address_that_another_has_is_a_conflict_on_update() {
    let mut gateway = Gateway::start().await;
    let address =
        Address { channel: Channel::Voice.into(), address: "+15550100003".into(), ..Default::default() };
    let update = Face::V2.update(Participant { addresses: vec![address], ..Default::default() });
    let error = gateway.update(update).await.unwrap_err();
    assert_eq!(told(&error), (Code::Aborted, "CONFLICT".into()));
}

#[tokio::test]
async fn an_answer_about_another_participant_is_no_ground_to_write_on() {
    let mut gateway = Gateway::start().await;
    for body in ["{}", r#"{"id":"conv_participant_00000000000000000000000002","name":"Robin"}"#] {
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "times": 1, "body": body })).await;
        let error = gateway.update(Face::V2.update(Face::V2.marked("x"))).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()), "{body}");
    }
    assert!(gateway.sandbox.requests().await.iter().all(|request| request.method == "GET"));
}

#[tokio::test]
async fn a_put_sends_no_addresses_where_none_were_told_or_asked_for() {
    let mut gateway = Gateway::start().await;
    let body = json!({ "id": Face::V2.participant(), "name": "Noor" }).to_string();
    gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "times": 1, "body": body })).await;
    gateway.update(Face::V2.update(Face::V2.marked("x"))).await.unwrap();
    assert_eq!(last(&gateway).await.json(), json!({ "name": "x" }));
}

on_both_versions! {
    async fn a_write_that_twilio_took_and_answered_badly_must_not_be_repeated(face) {
        let mut gateway = Gateway::start().await;
        let method = if face == Face::V1 { "POST" } else { "PUT" };
        let fault = json!({ "match": { "method": method }, "times": 1, "after": true, "body": "<html>" });
        gateway.sandbox.fault(fault).await;
        let error = gateway.update(face.update(face.marked("taken"))).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
        assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        assert_eq!(face.mark(&gateway.get(face.get()).await.unwrap().0), "taken");
    }
}
