//! For each RPC and version the requests that Twilio gets, as files that a person reads: `tests/golden/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use participant_gateway::proto::*;
use participant_gateway::sandbox;

use crate::harness::*;

const REQUEST_ID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
const SECOND: [&str; 2] =
    ["MB00000000000000000000000000000002", "conv_participant_00000000000000000000000002"];

fn path(rpc: &str, face: Face) -> PathBuf {
    let file = format!("tests/golden/{rpc}.{}.http", face.api());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// A request as HTTP/1.1 writes it. Left out are the headers that say nothing about it, or differ from run to run.
fn written(request: &Received) -> String {
    let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    let mut text = format!("{} {}{query}\n", request.method, request.path);
    for (name, value) in request.headers.as_object().unwrap() {
        if !matches!(name.as_str(), "host" | "content-length" | "user-agent") {
            writeln!(text, "{name}: {}", value.as_str().unwrap()).unwrap();
        }
    }
    if !request.body.is_empty() {
        writeln!(text, "\n{}", request.body).unwrap();
    }
    text
}

fn sms() -> Participant {
    let address = Address {
        channel: Channel::Sms.into(),
        address: "+15550110001".into(),
        proxy_address: "+15550119001".into(),
        ..Default::default()
    };
    Participant {
        addresses: vec![address],
        attributes: r#"{"tier":"gold","since":2019}"#.into(),
        role_id: "RL00000000000000000000000000000001".into(),
        create_time: Some("2026-02-03T04:05:06Z".parse().unwrap()),
        ..Default::default()
    }
}

fn customer() -> Participant {
    let address = |channel: Channel, address: &str, channel_id: &str| Address {
        channel: channel.into(),
        address: address.into(),
        channel_id: channel_id.into(),
        ..Default::default()
    };
    Participant {
        display_name: "Dana".into(),
        r#type: ParticipantType::Customer.into(),
        profile_id: "mem_profile_00000000000000000000000002".into(),
        addresses: vec![
            address(Channel::Sms, "+15550110001", ""),
            address(Channel::Voice, "+15550110001", "CA00000000000000000000000000000001"),
        ],
        ..Default::default()
    }
}

/// Makes the call of this name once, as fully as it can be.
async fn call(gateway: &mut Gateway, rpc: &str, face: Face) {
    match (rpc, face) {
        ("GetParticipant", Face::V1) => {
            let get = GetParticipantRequest { participant_id: "alice".into(), ..face.get() };
            gateway.get(get).await.map(drop)
        }
        ("GetParticipant", Face::V2) => gateway.get(face.get()).await.map(drop),
        ("ListParticipants", _) => {
            let first = ListParticipantsRequest { page_size: 2, ..face.list() };
            let page_token = gateway.list(first).await.unwrap().next_page_token;
            gateway.list(ListParticipantsRequest { page_token, page_size: 2, ..face.list() }).await.map(drop)
        }
        ("StreamParticipants", _) => {
            let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 2 };
            gateway.stream(request).await.1
        }
        ("BatchGetParticipants", _) => {
            let second = SECOND[usize::from(face == Face::V2)];
            let request = BatchGetParticipantsRequest {
                conversation: Some(face.conversation()),
                participant_ids: vec![face.participant().into(), second.into()],
                ..Default::default()
            };
            gateway.client.batch_get_participants(request).await.map(drop)
        }
        ("CreateParticipant", Face::V1) => {
            let create = CreateParticipantRequest {
                webhook_enabled: Some(true),
                request_id: REQUEST_ID.into(),
                ..face.create(sms())
            };
            gateway.create(create).await.map(drop)
        }
        ("CreateParticipant", Face::V2) => gateway.create(face.create(customer())).await.map(drop),
        ("UpdateParticipant", Face::V1) => {
            // The third of the seeds, who has a proxy address to be changed.
            let address = Address {
                address: "+15550100001".into(),
                proxy_address: "+15550109003".into(),
                ..Default::default()
            };
            let update = UpdateParticipantRequest {
                participant_id: "MB00000000000000000000000000000003".into(),
                participant: Some(Participant {
                    addresses: vec![address],
                    attributes: r#"{"tier":"silver"}"#.into(),
                    last_read_message_index: Some(7),
                    ..Default::default()
                }),
                webhook_enabled: Some(false),
                ..face.update(Participant::default())
            };
            gateway.update(update).await.map(drop)
        }
        ("UpdateParticipant", Face::V2) => {
            let update = UpdateParticipantRequest {
                update_mask: mask(&["display_name"]),
                ..face.update(Participant { display_name: "Noor B.".into(), ..Default::default() })
            };
            gateway.update(update).await.map(drop)
        }
        ("DeleteParticipant", Face::V1) => {
            let delete = DeleteParticipantRequest {
                participant_id: "alice".into(),
                webhook_enabled: Some(true),
                ..face.delete()
            };
            gateway.delete(delete).await
        }
        ("ListParticipantConversations", Face::V1) => {
            let request = ListParticipantConversationsRequest {
                service_id: sandbox::SERVICE_SID.into(),
                address: "+15550100001".into(),
                ..Default::default()
            };
            gateway.client.list_participant_conversations(request).await.map(drop)
        }
        (rpc, face) => panic!("{rpc} on {face:?} sends nothing"),
    }
    .unwrap();
}

/// The calls that send something, each with its version.
fn calls() -> impl Iterator<Item = (&'static str, Face)> {
    let both = [
        "GetParticipant",
        "ListParticipants",
        "StreamParticipants",
        "BatchGetParticipants",
        "CreateParticipant",
        "UpdateParticipant",
    ];
    let both = both.into_iter().flat_map(|rpc| [(rpc, Face::V1), (rpc, Face::V2)]);
    both.chain([("DeleteParticipant", Face::V1), ("ListParticipantConversations", Face::V1)])
}

async fn recorded(rpc: &str, face: Face) -> String {
    let mut gateway = Gateway::start().await;
    call(&mut gateway, rpc, face).await;
    let mut requests: Vec<String> = gateway.sandbox.requests().await.iter().map(written).collect();
    if rpc == "BatchGetParticipants" {
        // They are sent at the same time.
        requests.sort();
    }
    requests.join("\n###\n\n")
}

#[tokio::test]
async fn each_rpc_sends_what_its_golden_file_shows() {
    for (rpc, face) in calls() {
        let golden = std::fs::read_to_string(path(rpc, face)).unwrap_or_default();
        let recorded = recorded(rpc, face).await;
        let advice = "if that is meant: `cargo test --test gateway write_the_golden -- --ignored`";
        assert!(recorded == golden, "{rpc} on {face:?} sends something else; {advice}\n{recorded}");
    }
}

#[tokio::test]
#[ignore = "writes tests/golden/"]
async fn write_the_golden_files() {
    std::fs::create_dir_all(path("", Face::V1).parent().unwrap()).unwrap();
    for (rpc, face) in calls() {
        std::fs::write(path(rpc, face), recorded(rpc, face).await).unwrap();
    }
}
