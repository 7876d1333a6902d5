//! `validate_only`: what would be sent is what is sent, nothing is written, and what must not be shown is masked.

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::harness::*;
use crate::on_both_versions;

const SMS: &str = "MB00000000000000000000000000000003";

async fn preview_create(
    gateway: &mut Gateway,
    request: CreateParticipantRequest,
) -> Result<Option<UpstreamRequest>, Status> {
    let request = CreateParticipantRequest { validate_only: true, ..request };
    let answer = gateway.client.create_participant(request).await?.into_inner();
    assert_eq!(answer.participant, None);
    Ok(answer.upstream_request)
}

async fn preview_update(
    gateway: &mut Gateway,
    request: UpdateParticipantRequest,
) -> Result<Option<UpstreamRequest>, Status> {
    let request = UpdateParticipantRequest { validate_only: true, ..request };
    let answer = gateway.client.update_participant(request).await?.into_inner();
    assert_eq!(answer.participant, None);
    Ok(answer.upstream_request)
}

/// The methods of the requests since the last look.
async fn methods(gateway: &Gateway) -> Vec<String> {
    let requests = gateway.sandbox.requests().await;
    gateway.sandbox.forget_requests().await;
    requests.into_iter().map(|request| request.method).collect()
}

/// The last request, as a preview shows it: masked here by what the contract calls PII.
fn masked(face: Face, sent: &Received, shown: &UpstreamRequest) -> UpstreamRequest {
    let path: Vec<_> = sent.path.split('/').zip(shown.url_template.split('/')).collect();
    let placed = path.iter().map(|(is, template)| if template.starts_with('{') { template } else { is });
    let headers = ["accept", "content-type", "x-twilio-webhook-enabled"].into_iter();
    let headers =
        headers.filter_map(|name| Some((name.to_owned(), sent.headers.get(name)?.as_str()?.to_owned())));
    UpstreamRequest {
        method: sent.method.clone(),
        url_template: placed.copied().collect::<Vec<_>>().join("/"),
        headers: headers.chain([("authorization".into(), "***".into())]).collect(),
        body: if face == Face::V1 { masked_form(&sent.form()) } else { masked_json(sent.json()).to_string() },
    }
}

fn masked_form(form: &[(String, String)]) -> String {
    let shown = |(name, value): &(String, String)| match name.as_str() {
        name if name == "Identity" || name == "Attributes" || name.starts_with("MessagingBinding") => {
            let clears = value == "null" || value == "{}";
            format!("{name}={}", if clears { value } else { "***" })
        }
        _ => format!("{name}={value}"),
    };
    form.iter().map(shown).collect::<Vec<_>>().join("&")
}

fn masked_json(mut body: Value) -> Value {
    for pointer in ["/name", "/addresses/0/address", "/addresses/1/address"] {
        if let Some(value) = body.pointer_mut(pointer) {
            *value = json!("***");
        }
    }
    body
}

/// Where keys stand in no order.
fn comparable(face: Face, mut shown: UpstreamRequest) -> UpstreamRequest {
    if face == Face::V2 {
        shown.body = serde_json::from_str::<Value>(&shown.body).unwrap().to_string();
    }
    shown
}

async fn last(gateway: &Gateway) -> Received {
    gateway.sandbox.requests().await.pop().unwrap()
}

fn text(address: &str) -> Address {
    Address { channel: Channel::Sms.into(), address: address.into(), ..Default::default() }
}

/// With every field that a create of the version can carry.
fn creates(face: Face) -> Vec<CreateParticipantRequest> {
    let participants = match face {
        Face::V1 => vec![
            Participant {
                addresses: vec![Address { proxy_address: "+15550119001".into(), ..text("+15550110001") }],
                attributes: r#"{"secret": 1}"#.into(),
                role_id: "RL000000000000000000000000000000ff".into(),
                create_time: Some("2026-01-02T03:04:05Z".parse().unwrap()),
                update_time: Some("2026-01-02T03:04:06.5Z".parse().unwrap()),
                ..Default::default()
            },
            Participant { attributes: "{}".into(), ..face.newcomer(1) },
        ],
        Face::V2 => vec![Participant {
            display_name: "Rosa".into(),
            r#type: ParticipantType::Other.into(),
            upstream_type: "SUPERVISOR".into(),
            profile_id: "mem_profile_00000000000000000000000009".into(),
            addresses: vec![
                Address { channel_id: "SM1".into(), ..text("+15550110001") },
                text("+15550110002"),
            ],
            ..Default::default()
        }],
    };
    let webhook_enabled = (face == Face::V1).then_some(true);
    let create = |participant| CreateParticipantRequest { webhook_enabled, ..face.create(participant) };
    participants.into_iter().map(create).collect()
}

/// Fields that are set, and fields that are cleared.
fn updates(face: Face) -> Vec<UpdateParticipantRequest> {
    let empty = Participant::default();
    let update = |paths: &[&str], participant| UpdateParticipantRequest {
        update_mask: mask(paths),
        ..face.update(participant)
    };
    match face {
        Face::V1 => vec![
            UpdateParticipantRequest {
                webhook_enabled: Some(false),
                ..update(&["attributes"], face.marked("secret"))
            },
            update(&["attributes", "last_read_message_index"], empty.clone()),
            update(
                &["last_read_message_index"],
                Participant { last_read_message_index: Some(0), ..empty.clone() },
            ),
            UpdateParticipantRequest { participant_id: "bob".into(), ..face.update(face.marked("secret")) },
            UpdateParticipantRequest {
                participant_id: SMS.into(),
                ..update(
                    &["addresses"],
                    Participant { addresses: vec![text("+15550100001")], ..empty.clone() },
                )
            },
            UpdateParticipantRequest {
                conversation: Some(ConversationRef {
                    service_id: sandbox::SERVICE_SID.into(),
                    ..face.conversation()
                }),
                ..update(&["addresses"], Participant { addresses: face.newcomer(2).addresses, ..empty })
            },
        ],
        Face::V2 => vec![
            update(&["display_name"], face.marked("secret")),
            update(&["display_name", "type", "profile_id"], empty.clone()),
            update(&["addresses"], Participant { addresses: vec![text("+15550110003")], ..empty.clone() }),
            update(&["*"], Participant { profile_id: "mem_1".into(), ..empty }),
        ],
    }
}

on_both_versions! {
    async fn a_create_is_shown_as_it_is_then_sent(face) {
        let mut gateway = Gateway::start().await;
        for request in creates(face) {
            gateway.sandbox.forget_requests().await;
            let shown = preview_create(&mut gateway, request.clone()).await.unwrap().unwrap();
            assert_eq!(gateway.sandbox.count().await, 0);
            gateway.create(request).await.unwrap();
            assert_eq!(comparable(face, shown.clone()), masked(face, &last(&gateway).await, &shown));
        }
    }

    async fn an_update_is_shown_as_it_is_then_sent(face) {
        let mut gateway = Gateway::start().await;
        for request in updates(face) {
            methods(&gateway).await;
            let shown = preview_update(&mut gateway, request.clone()).await.unwrap().unwrap();
            let read = methods(&gateway).await;
            assert!(read.iter().all(|method| method == "GET"), "{read:?}");
            let before = gateway.get(face.get_fresh()).await.unwrap().0;
            assert_eq!(preview_update(&mut gateway, request.clone()).await.unwrap(), Some(shown.clone()));
            assert_eq!(gateway.get(face.get_fresh()).await.unwrap().0, before);
            methods(&gateway).await;
            gateway.update(request).await.unwrap();
            assert_eq!(comparable(face, shown.clone()), masked(face, &last(&gateway).await, &shown));
            let (_, before_it) = methods(&gateway).await.split_last().map(|(last, rest)| (last.clone(), rest.to_vec())).unwrap();
            assert_eq!(read, before_it, "a preview reads what the update reads");
        }
    }

    async fn an_update_that_changes_nothing_would_send_nothing(face) {
        let mut gateway = Gateway::start().await;
        let (there, _) = gateway.get(face.get()).await.unwrap();
        let same = Participant { etag: String::new(), ..there };
        let update = UpdateParticipantRequest { update_mask: mask(&["addresses"]), ..face.update(same) };
        assert_eq!(preview_update(&mut gateway, update).await.unwrap(), None);
    }

    async fn what_is_wrong_is_told_as_without_it(face) {
        let mut gateway = Gateway::start().await;
        let wrong = Participant {
            etag: "x".into(),
            display_name: "\u{7}".into(),
            attributes: "{".into(),
            role_id: "x".into(),
            addresses: vec![Address { level: "cc".into(), ..text(&"1".repeat(300)) }],
            ..Default::default()
        };
        let create = CreateParticipantRequest { request_id: "x".into(), ..face.create(wrong.clone()) };
        let previewed = preview_create(&mut gateway, create.clone()).await.unwrap_err();
        let sent = gateway.create(create).await.unwrap_err();
        assert!(refused_fields(&sent).len() > 4, "{sent:?}");
        assert_eq!((previewed.message(), previewed.details()), (sent.message(), sent.details()));
        for paths in [vec![], vec!["*"], vec!["id", "display_name", "attributes", "addresses"]] {
            let update = UpdateParticipantRequest { update_mask: mask(&paths), ..face.update(wrong.clone()) };
            let previewed = preview_update(&mut gateway, update.clone()).await.unwrap_err();
            let sent = gateway.update(update).await.unwrap_err();
            assert!(refused_fields(&sent).len() > 2, "{sent:?}");
            assert_eq!((previewed.message(), previewed.details()), (sent.message(), sent.details()));
        }
        assert_eq!(gateway.sandbox.count().await, 0);
    }

    async fn a_request_id_is_looked_at_and_stays_free(face) {
        let mut gateway = Gateway::start().await;
        let id = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        let create = |request_id: &str, newcomer| CreateParticipantRequest {
            request_id: request_id.into(),
            ..face.create(face.newcomer(newcomer))
        };
        let error = preview_create(&mut gateway, create("7c9e6679", 1)).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["request_id"]);
        for newcomer in [1, 2] {
            preview_create(&mut gateway, create(id, newcomer)).await.unwrap();
        }
        gateway.create(create(id, 3)).await.expect("no other request has the id");
    }
}

/// What v1 cannot change is known only once the addresses are read.
#[tokio::test]
async fn what_v1_cannot_change_is_told_as_without_it() {
    let mut gateway = Gateway::start().await;
    let addresses = vec![text("+15550110001")];
    let update = Face::V1.update(Participant { addresses, ..Default::default() });
    let previewed = preview_update(&mut gateway, update.clone()).await.unwrap_err();
    let sent = gateway.update(update).await.unwrap_err();
    assert_eq!(refused_fields(&sent), ["participant.addresses"; 2]);
    assert_eq!((previewed.message(), previewed.details()), (sent.message(), sent.details()));
    assert_eq!(methods(&gateway).await, ["GET", "GET"]);
}

/// A preview that reads nothing cannot know; one that has to read does.
#[tokio::test]
async fn a_missing_participant_shows_where_it_is_read() {
    let mut gateway = Gateway::start().await;
    for (face, expected) in [(Face::V1, None), (Face::V2, Some(Code::NotFound))] {
        let participant_id = face.missing_participant().into();
        let update = UpdateParticipantRequest { participant_id, ..face.update(face.marked("x")) };
        let previewed = preview_update(&mut gateway, update).await;
        assert_eq!(previewed.err().map(|status| told(&status).0), expected, "{face:?}");
    }
}

#[tokio::test]
async fn clearing_is_shown_and_what_is_private_is_not() {
    let mut gateway = Gateway::start().await;
    let bodies = [
        (
            Face::V1,
            updates(Face::V1),
            vec![
                "Attributes=***",
                "Attributes={}&LastReadMessageIndex=null",
                "LastReadMessageIndex=0",
                "Attributes=***",
                "MessagingBinding.ProxyAddress=null",
                "Identity=***",
            ],
        ),
        (
            Face::V2,
            updates(Face::V2),
            vec![
                r#"{"name":"***","type":"CUSTOMER","profileId":"mem_profile_00000000000000000000000001","addresses":[{"channel":"SMS","address":"***"}]}"#,
                r#"{"addresses":[{"channel":"SMS","address":"***"}]}"#,
                r#"{"name":"***","type":"CUSTOMER","profileId":"mem_profile_00000000000000000000000001","addresses":[{"channel":"SMS","address":"***"}]}"#,
                r#"{"profileId":"mem_1","addresses":[]}"#,
            ],
        ),
    ];
    for (face, updates, expected) in bodies {
        let mut shown = Vec::new();
        for update in updates {
            shown.push(preview_update(&mut gateway, update).await.unwrap().unwrap().body);
        }
        assert_eq!(shown, expected, "{face:?}");
    }
}
