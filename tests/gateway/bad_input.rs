//! What a caller can get wrong, or try: refused with every field named, and without a request to Twilio.

use std::time::Duration;

use http::HeaderValue;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use prost_types::Timestamp;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::on_both_versions;
use crate::raw::*;

/// The path of a field, and a participant that sets it.
type Set = (&'static str, Participant);

/// Ids that cannot be one segment of a path.
fn unsafe_ids() -> Vec<String> {
    let mut ids: Vec<String> =
        ["", ".", "..", "..\n", "\t..", ".\t.", "\r", "a\r\nX-Evil: 1", "a\0b", "\0", "a\u{7f}", "a\u{85}b"]
            .map(Into::into)
            .into();
    ids.extend(["a".repeat(257), "é".repeat(257), "a".repeat(10_000)]);
    ids
}

/// Text that is legal in an identity, and that a careless URL would make something else of.
fn odd_identities() -> Vec<(String, String)> {
    let mut identities: Vec<(String, String)> = [
        ("%2e%2e", "%252e%252e"),
        ("..%2f", "..%252f"),
        ("%", "%25"),
        ("%00", "%2500"),
        ("...", "..."),
        ("a/b", "a%2Fb"),
        ("../../Services", "..%2F..%2FServices"),
        ("//evil", "%2F%2Fevil"),
        ("http://evil/", "http%3A%2F%2Fevil%2F"),
        ("a?b=1", "a%3Fb%3D1"),
        ("a#b", "a%23b"),
        ("a\\b", "a%5Cb"),
        ("..\\", "..%5C"),
        ("a;b", "a%3Bb"),
        ("a%2fb", "a%252fb"),
        ("a b+c", "a%20b%2Bc"),
        ("a&b=c", "a%26b%3Dc"),
        ("dana@example.com", "dana%40example.com"),
        ("!*'(),:$[]", "%21%2A%27%28%29%2C%3A%24%5B%5D"),
        ("é", "%C3%A9"),
        ("e\u{301}", "e%CC%81"),
        ("😀", "%F0%9F%98%80"),
        ("שלום", "%D7%A9%D7%9C%D7%95%D7%9D"),
        ("\u{202e}evil", "%E2%80%AEevil"),
        ("\u{feff}", "%EF%BB%BF"),
        (" ", "%20"),
        ("x", "x"),
        ("MB1", "MB1"),
        ("~-_.", "~-_."),
    ]
    .map(|(id, encoded)| (id.into(), encoded.into()))
    .into();
    identities.push(("a".repeat(256), "a".repeat(256)));
    identities.push(("😀".repeat(256), "%F0%9F%98%80".repeat(256)));
    identities
}

/// Every call that names a conversation, with this one and, where it names a participant, this one.
async fn every_call(
    gateway: &mut Gateway,
    face: Face,
    conversation: Option<ConversationRef>,
    participant_id: &str,
) -> Vec<(&'static str, Result<(), Status>)> {
    let participant_id = participant_id.to_owned();
    let get = GetParticipantRequest {
        conversation: conversation.clone(),
        participant_id: participant_id.clone(),
        ..face.get()
    };
    let list = ListParticipantsRequest { conversation: conversation.clone(), ..face.list() };
    let stream = StreamParticipantsRequest { conversation: conversation.clone(), page_size: 0 };
    let create =
        CreateParticipantRequest { conversation: conversation.clone(), ..face.create(face.newcomer(1)) };
    let update = UpdateParticipantRequest {
        conversation: conversation.clone(),
        participant_id: participant_id.clone(),
        ..face.update(face.marked("x"))
    };
    let delete = DeleteParticipantRequest { conversation, participant_id, webhook_enabled: None };
    vec![
        ("get", gateway.get(get).await.map(drop)),
        ("list", gateway.list(list).await.map(drop)),
        ("stream", gateway.stream(stream).await.1),
        ("create", gateway.create(create).await.map(drop)),
        ("update", gateway.update(update).await.map(drop)),
        ("delete", gateway.delete(delete).await),
    ]
}

/// Nothing came through so far, and the next good call is served.
async fn nothing_was_sent(gateway: &mut Gateway, face: Face) {
    assert_eq!(gateway.sandbox.count().await, 0);
    gateway.get(face.get_fresh()).await.unwrap();
    gateway.sandbox.forget_requests().await;
}

fn chat(identity: &str) -> Address {
    Address { channel: Channel::Chat.into(), address: identity.into(), ..Default::default() }
}

fn phone(address: &str) -> Address {
    Address { channel: Channel::Sms.into(), address: address.into(), ..Default::default() }
}

fn of(addresses: Vec<Address>) -> Participant {
    Participant { addresses, ..Default::default() }
}

/// The fields that a create of it is refused for.
async fn refused_create(gateway: &mut Gateway, face: Face, participant: Participant) -> Vec<String> {
    refused_fields(&gateway.create(face.create(participant)).await.unwrap_err())
}

/// The same for an update of what is set.
async fn refused_update(gateway: &mut Gateway, face: Face, participant: Participant) -> Vec<String> {
    refused_fields(&gateway.update(face.update(participant)).await.unwrap_err())
}

fn conversation(face: Face, id: &str) -> Option<ConversationRef> {
    let api_version = match face {
        Face::V1 => ApiVersion::V1,
        Face::V2 => ApiVersion::V2,
    };
    Some(ConversationRef { api_version: api_version.into(), ..Face::named(id) })
}

on_both_versions! {
    // === Ids

    async fn an_unsafe_participant_id_is_refused(face) {
        let mut gateway = Gateway::start().await;
        for id in unsafe_ids() {
            for (name, result) in every_call(&mut gateway, face, None, &id).await {
                let expected: &[&str] = match name {
                    "get" | "update" | "delete" => &["conversation", "participant_id"],
                    _ => &["conversation"],
                };
                assert_eq!(refused_fields(&result.unwrap_err()), expected, "{name} {id:?}");
            }
            let get = GetParticipantRequest { participant_id: id.clone(), ..face.get() };
            assert_eq!(refused_fields(&gateway.get(get).await.unwrap_err()), ["participant_id"], "{id:?}");
            let update = UpdateParticipantRequest { participant_id: id.clone(), ..face.update(face.marked("x")) };
            assert_eq!(refused_fields(&gateway.update(update).await.unwrap_err()), ["participant_id"], "{id:?}");
            let delete = DeleteParticipantRequest { participant_id: id.clone(), ..face.delete() };
            assert_eq!(refused_fields(&gateway.delete(delete).await.unwrap_err()), ["participant_id"], "{id:?}");
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn an_unsafe_conversation_id_is_refused(face) {
        let mut gateway = Gateway::start().await;
        for id in unsafe_ids() {
            for reference in [conversation(face, &id), Some(Face::named(&id))] {
                for (name, result) in every_call(&mut gateway, face, reference.clone(), face.participant()).await {
                    let fields = refused_fields(&result.unwrap_err());
                    assert_eq!(fields, ["conversation.conversation_id"], "{name} {id:?}");
                }
            }
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn an_id_that_tells_no_version_is_refused_with_a_hint(face) {
        let mut gateway = Gateway::start().await;
        for id in [
            "sandbox",
            "CH1",
            "CHxx000000000000000000000000000001",
            "ch00000000000000000000000000000001",
            "CH0000000000000000000000000000000",
            "CH000000000000000000000000000000011",
            " CH00000000000000000000000000000001",
            "MB00000000000000000000000000000001",
            "IS00000000000000000000000000000001",
            "conv_participant_00000000000000000000000001",
            "conv_conversation_a/b",
            "conv_conversation_é",
        ] {
            for (name, result) in every_call(&mut gateway, face, Some(Face::named(id)), face.participant()).await {
                let error = result.unwrap_err();
                assert_eq!(refused_fields(&error), ["conversation.conversation_id"], "{name} {id}");
                assert!(error.message().contains("api_version"), "{name} {id}: {}", error.message());
            }
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn an_unknown_version_is_refused(face) {
        let mut gateway = Gateway::start().await;
        for api_version in [3, 7, -1, i32::MAX] {
            let reference = Some(ConversationRef { api_version, ..face.conversation() });
            for (name, result) in every_call(&mut gateway, face, reference, face.participant()).await {
                assert_eq!(refused_fields(&result.unwrap_err()), ["conversation.api_version"], "{name}");
            }
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn an_account_that_is_not_configured_is_a_reason_of_its_own(face) {
        let mut gateway = Gateway::start().await;
        for id in [
            "AC99999999999999999999999999999999",
            "ac00000000000000000000000000000000",
            "AC0000000000000000000000000000000",
            "..",
            "\0",
            "AC00000000000000000000000000000000 ",
        ] {
            let reference = Some(ConversationRef { account_id: id.into(), ..face.conversation() });
            for (name, result) in every_call(&mut gateway, face, reference, face.participant()).await {
                let error = result.unwrap_err();
                assert_eq!(told(&error), (Code::InvalidArgument, "ACCOUNT_UNKNOWN".into()), "{name} {id:?}");
                let bad = error.get_details_bad_request().unwrap().field_violations;
                assert_eq!(bad[0].field, "conversation.account_id");
            }
        }
        // The default one may be named.
        let account_id = sandbox::ACCOUNT_SID.to_owned();
        let named = Some(ConversationRef { account_id, ..face.conversation() });
        gateway.get(GetParticipantRequest { conversation: named, ..face.get() }).await.unwrap();
        gateway.sandbox.forget_requests().await;
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_request_without_its_parts_is_refused(face) {
        let mut gateway = Gateway::start().await;
        let error = gateway.get(GetParticipantRequest::default()).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["conversation", "participant_id"]);
        let error = gateway.create(CreateParticipantRequest::default()).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["conversation", "participant"]);
        let error = gateway.update(UpdateParticipantRequest::default()).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["conversation", "participant_id", "participant"]);
        let empty = Some(ConversationRef::default());
        for (name, result) in every_call(&mut gateway, face, empty, face.participant()).await {
            assert_eq!(refused_fields(&result.unwrap_err()), ["conversation.conversation_id"], "{name}");
        }
        let error = gateway.create(face.create(Participant::default())).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["participant.addresses"]);
        let error = gateway.update(face.update(Participant::default())).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["update_mask"]);
        nothing_was_sent(&mut gateway, face).await;
    }

    // === Pages and ages

    async fn a_page_size_is_refused_defaulted_or_clamped(face) {
        let mut gateway = Gateway::start().await;
        for size in [-1, i32::MIN] {
            let list = ListParticipantsRequest { page_size: size, ..face.list() };
            assert_eq!(refused_fields(&gateway.list(list).await.unwrap_err()), ["page_size"]);
            let stream = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: size };
            assert_eq!(refused_fields(&gateway.stream(stream).await.1.unwrap_err()), ["page_size"]);
        }
        nothing_was_sent(&mut gateway, face).await;
        let (name, most) = if face == Face::V1 { ("PageSize", 100) } else { ("pageSize", 1000) };
        for (size, sent) in [(0, 50), (1, 1), (100, 100), (101, most.min(101)), (1001, most), (i32::MAX, most)] {
            let list = ListParticipantsRequest {
                page_size: size,
                read_options: max_age(Duration::ZERO),
                ..face.list()
            };
            gateway.list(list).await.unwrap();
            let query = gateway.sandbox.requests().await.pop().unwrap().query;
            assert_eq!(query, format!("{name}={sent}"), "{size}");
            let stream = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: size };
            gateway.stream(stream).await.1.unwrap();
            assert!(gateway.sandbox.requests().await.iter().any(|sent| sent.query == query));
        }
    }

    async fn a_page_token_opens_only_the_list_it_was_made_for(face) {
        let mut gateway = Gateway::with_accounts(&['1', '2'], &[]).await;
        let page = |token: &str| ListParticipantsRequest { page_size: 1, page_token: token.into(), ..face.list() };
        let token = gateway.list(page("")).await.unwrap().next_page_token;
        assert_ne!(token, "");
        gateway.sandbox.forget_requests().await;

        let mut forged: Vec<String> = ["x", " ", "AAAA", "https://evil/?PageToken=1", "\0", "é", "=", "%00"]
            .map(Into::into)
            .into();
        forged.extend([
            token[1..].to_owned(),
            token[..token.len() - 1].to_owned(),
            token[..token.len() / 2].to_owned(),
            format!("{token}A"),
            format!("{token}="),
            format!(" {token}"),
            format!("{token}\n"),
            token.to_lowercase(),
            token.to_uppercase(),
            token.repeat(2),
            "A".repeat(1 << 20),
        ]);
        for forged in &forged {
            let error = gateway.list(page(forged)).await.unwrap_err();
            assert_eq!(told(&error), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()));
            let bad = error.get_details_bad_request().unwrap().field_violations;
            assert_eq!(bad.len(), 1);
            assert_eq!(bad[0].field, "page_token");
            assert!(forged.len() < 5 || !error.message().contains(&**forged));
        }
        let (other, other_face) = match face {
            Face::V1 => ("CH00000000000000000000000000000002", Face::V2),
            Face::V2 => ("conv_conversation_00000000000000000000000002", Face::V1),
        };
        let mut references = vec![
            Face::named(other),
            ConversationRef { account_id: account_id('2'), ..face.conversation() },
            other_face.conversation(),
        ];
        if face == Face::V1 {
            let service_id = sandbox::SERVICE_SID.to_owned();
            references.push(ConversationRef { service_id, ..face.conversation() });
        }
        for reference in references {
            let list = ListParticipantsRequest { conversation: Some(reference), ..page(&token) };
            let error = gateway.list(list).await.unwrap_err();
            assert_eq!(told(&error), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()));
        }
        nothing_was_sent(&mut gateway, face).await;

        // Its own list takes it, at another page size too, and by the account's name.
        let list = ListParticipantsRequest { page_size: 2, ..page(&token) };
        gateway.list(list).await.unwrap();
        let named = ConversationRef { account_id: account_id('1'), ..face.conversation() };
        let list = ListParticipantsRequest { conversation: Some(named), ..page(&token) };
        gateway.list(list).await.unwrap();
    }

    async fn all_that_is_wrong_comes_together_and_names_the_version(face) {
        let mut gateway = Gateway::start().await;
        let unknown = ConversationRef { account_id: account_id('9'), ..face.conversation() };
        let wrong = match face {
            Face::V1 => Participant { display_name: "x".into(), attributes: "{".into(), ..Default::default() },
            Face::V2 => Participant { display_name: "\n".into(), attributes: "{}".into(), ..Default::default() },
        };
        let update = UpdateParticipantRequest {
            conversation: Some(unknown.clone()),
            participant_id: "..".into(),
            participant: Some(wrong),
            update_mask: None,
            webhook_enabled: (face == Face::V2).then_some(true),
            validate_only: false,
        };
        let error = gateway.update(update).await.unwrap_err();
        let mut expected = vec!["conversation.account_id", "participant_id"];
        expected.extend((face == Face::V2).then_some("webhook_enabled"));
        expected.extend(["participant.display_name", "participant.attributes"]);
        let mut fields = refused_fields(&error);
        fields.sort();
        expected.sort_unstable();
        assert_eq!(fields, expected);
        let info = tonic_types::StatusExt::get_details_error_info(&error).unwrap();
        assert_eq!(info.metadata["api_version"], face.api());

        let list = ListParticipantsRequest {
            conversation: Some(unknown),
            page_size: -1,
            page_token: "x".into(),
            read_options: None,
        };
        let fields = refused_fields(&gateway.list(list).await.unwrap_err());
        assert_eq!(fields, ["conversation.account_id", "page_size", "page_token"]);
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn what_does_not_speak_grpc_is_not_executed(face) {
        let mut gateway = Gateway::start().await;
        let url = format!("http://{}/participant.v1.ParticipantService/GetParticipant", gateway.addresses.grpc);
        let http = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        for (method, content_type, status) in [
            (reqwest::Method::GET, "application/grpc", 405),
            (reqwest::Method::POST, "text/plain", 415),
            (reqwest::Method::POST, "application/grpc+json", 415),
            (reqwest::Method::POST, "application/grpc-web", 415),
        ] {
            let request = http.request(method, &url).header("content-type", content_type);
            let answer = request.body(frame(&face.get())).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{content_type}");
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_request_larger_than_the_bound_is_refused_unread(face) {
        let mut gateway = Gateway::start().await;
        let list = ListParticipantsRequest { page_token: "A".repeat(1 << 21), ..face.list() };
        // tonic's own code.
        assert_eq!(gateway.list(list).await.unwrap_err().code(), Code::OutOfRange);
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_negative_age_is_refused(face) {
        let mut gateway = Gateway::start().await;
        for (seconds, nanos) in [(-1, 0), (0, -1), (1, -1), (i64::MIN, 0), (i64::MIN, i32::MIN), (0, i32::MIN), (0, 1_000_000_000)] {
            let read_options = Some(ReadOptions { max_age: Some(prost_types::Duration { seconds, nanos }), ..Default::default() });
            let error = gateway.get(GetParticipantRequest { read_options, ..face.get() }).await.unwrap_err();
            assert_eq!(refused_fields(&error), ["read_options.max_age"], "{seconds} {nanos}");
            let error = gateway.list(ListParticipantsRequest { read_options, ..face.list() }).await.unwrap_err();
            assert_eq!(refused_fields(&error), ["read_options.max_age"]);
        }
        nothing_was_sent(&mut gateway, face).await;
        // The longest is served.
        let read_options = Some(ReadOptions { max_age: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }), ..Default::default() });
        gateway.get(GetParticipantRequest { read_options, ..face.get() }).await.unwrap();
    }

    // === Masks

    async fn a_mask_with_a_bad_path_is_refused_by_its_place(face) {
        let mut gateway = Gateway::start().await;
        let known = if face == Face::V1 { "attributes" } else { "display_name" };
        for (paths, fields) in [
            (vec!["nonsense"], vec!["update_mask.paths[0]"]),
            (vec![""], vec!["update_mask.paths[0]"]),
            (vec![known, "nonsense", known, ""], vec!["update_mask.paths[1]", "update_mask.paths[3]"]),
            (vec!["*", known], vec!["update_mask.paths[0]"]),
            (vec![known, "*"], vec!["update_mask.paths[1]"]),
            (vec!["*", "*"], vec!["update_mask.paths[0]", "update_mask.paths[1]"]),
            (vec!["addresses.proxy_address"], vec!["update_mask.paths[0]"]),
            (vec!["addresses[0].address"], vec!["update_mask.paths[0]"]),
            (vec!["displayName"], vec!["update_mask.paths[0]"]),
            (vec!["participant.attributes"], vec!["update_mask.paths[0]"]),
            (vec!["create_time.seconds"], vec!["update_mask.paths[0]"]),
            (vec!["attributes,role_id"], vec!["update_mask.paths[0]"]),
            (vec!["id"], vec!["update_mask.paths[0]"]),
            (vec!["conversation_id"], vec!["update_mask.paths[0]"]),
            (vec!["account_id"], vec!["update_mask.paths[0]"]),
            (vec!["service_id"], vec!["update_mask.paths[0]"]),
            (vec!["api_version"], vec!["update_mask.paths[0]"]),
            (vec!["url"], vec!["update_mask.paths[0]"]),
            (vec!["etag"], vec!["update_mask.paths[0]"]),
        ] {
            let update = UpdateParticipantRequest { update_mask: mask(&paths), ..face.update(face.marked("x")) };
            assert_eq!(refused_fields(&gateway.update(update).await.unwrap_err()), fields, "{paths:?}");
        }
        nothing_was_sent(&mut gateway, face).await;
        // One without paths is none.
        let update = UpdateParticipantRequest { update_mask: mask(&[]), ..face.update(face.marked("set")) };
        assert_eq!(face.mark(&gateway.update(update).await.unwrap()), "set");
    }

    async fn a_masked_field_of_the_other_version_is_refused(face) {
        let mut gateway = Gateway::start().await;
        let paths: &[&str] = match face {
            Face::V1 => &["display_name", "type", "upstream_type", "profile_id"],
            Face::V2 => &[
                "attributes",
                "role_id",
                "last_read_message_index",
                "last_read_time",
                "create_time",
                "update_time",
            ],
        };
        for path in paths {
            let update = UpdateParticipantRequest { update_mask: mask(&[path]), ..face.update(face.marked("x")) };
            let error = gateway.update(update).await.unwrap_err();
            assert_eq!(refused_fields(&error), ["update_mask.paths[0]"], "{path}");
            assert!(error.message().contains(face.api()), "{}", error.message());
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn output_only_fields_are_ignored_where_no_mask_names_them(face) {
        let mut gateway = Gateway::start().await;
        let given = Participant {
            id: "other".into(),
            conversation_id: "other".into(),
            account_id: "other".into(),
            service_id: "other".into(),
            api_version: 7,
            url: "http://evil/".into(),
            ..face.newcomer(1)
        };
        let created = gateway.create(face.create(given)).await.unwrap();
        assert_eq!(created.conversation_id, face.conversation().conversation_id);
        let given = Participant { id: "other".into(), url: "x".into(), ..face.marked("set") };
        let updated = gateway.update(face.update(given)).await.unwrap();
        assert_eq!(updated.id, face.participant());
    }

    async fn an_etag_is_no_precondition_of_a_create(face) {
        let mut gateway = Gateway::start().await;
        let newcomer = Participant { etag: "x".into(), ..face.newcomer(1) };
        assert_eq!(refused_create(&mut gateway, face, newcomer).await, ["participant.etag"]);
    }

    // === The participant of a write

    async fn a_field_that_the_version_cannot_carry_is_named(face) {
        let mut gateway = Gateway::start().await;
        let some_time = Some(Timestamp { seconds: 1, nanos: 0 });
        let empty = Participant::default;
        let (in_both, in_create): (Vec<Set>, Vec<Set>) = match face {
            Face::V1 => (
                vec![
                    ("participant.display_name", Participant { display_name: "Dana".into(), ..empty() }),
                    ("participant.type", Participant { r#type: ParticipantType::Customer.into(), ..empty() }),
                    ("participant.upstream_type", Participant { upstream_type: "CUSTOMER".into(), ..empty() }),
                    ("participant.profile_id", Participant { profile_id: "mem_profile_1".into(), ..empty() }),
                ],
                vec![
                    (
                        "participant.last_read_message_index",
                        Participant { last_read_message_index: Some(0), ..empty() },
                    ),
                    ("participant.last_read_time", Participant { last_read_time: some_time, ..empty() }),
                ],
            ),
            Face::V2 => (
                vec![
                    ("participant.attributes", Participant { attributes: "{}".into(), ..empty() }),
                    (
                        "participant.role_id",
                        Participant { role_id: "RL00000000000000000000000000000001".into(), ..empty() },
                    ),
                    (
                        "participant.last_read_message_index",
                        Participant { last_read_message_index: Some(0), ..empty() },
                    ),
                    ("participant.last_read_time", Participant { last_read_time: some_time, ..empty() }),
                ],
                vec![
                    ("participant.create_time", Participant { create_time: some_time, ..empty() }),
                    ("participant.update_time", Participant { update_time: some_time, ..empty() }),
                ],
            ),
        };
        for (field, participant) in in_both.iter().chain(&in_create) {
            let participant = Participant { addresses: face.newcomer(1).addresses, ..participant.clone() };
            let error = gateway.create(face.create(participant)).await.unwrap_err();
            assert_eq!(refused_fields(&error), [*field]);
            assert!(error.message().contains(face.api()), "{}", error.message());
        }
        for (field, participant) in in_both {
            let error = gateway.update(face.update(participant.clone())).await.unwrap_err();
            assert_eq!(refused_fields(&error), [field]);
            assert!(error.message().contains(face.api()), "{}", error.message());
            let everything = UpdateParticipantRequest { update_mask: mask(&["*"]), ..face.update(participant) };
            assert_eq!(refused_fields(&gateway.update(everything).await.unwrap_err()), [field]);
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_part_of_an_address_that_the_version_cannot_carry_is_named(face) {
        let mut gateway = Gateway::start().await;
        let base = || phone("+15550110001");
        let parts: Vec<(&str, Address)> = match face {
            Face::V1 => vec![
                ("channel_id", Address { channel_id: "CA1".into(), ..base() }),
                ("level", Address { level: "cc".into(), ..base() }),
                ("display_name", Address { display_name: "Dana".into(), ..base() }),
                ("channel_id", Address { channel_id: "CA1".into(), ..chat("dana") }),
                ("level", Address { level: "cc".into(), ..chat("dana") }),
                ("display_name", Address { display_name: "Dana".into(), ..chat("dana") }),
                ("proxy_address", Address { proxy_address: "+15550109001".into(), ..chat("dana") }),
                ("projected_address", Address { projected_address: "+15550109001".into(), ..chat("dana") }),
            ],
            Face::V2 => vec![
                ("proxy_address", Address { proxy_address: "+15550109001".into(), ..base() }),
                ("projected_address", Address { projected_address: "+15550109001".into(), ..base() }),
                ("level", Address { level: "cc".into(), ..base() }),
                ("display_name", Address { display_name: "Dana".into(), ..base() }),
            ],
        };
        for (part, address) in parts {
            let field = format!("participant.addresses[0].{part}");
            assert_eq!(refused_create(&mut gateway, face, of(vec![address.clone()])).await, [field.as_str()]);
            assert_eq!(refused_update(&mut gateway, face, of(vec![address])).await, [field.as_str()]);
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn an_address_that_cannot_be_is_refused(face) {
        let mut gateway = Gateway::start().await;
        let at = |part: &str| vec![format!("participant.addresses[0].{part}")];
        let mut rows = vec![
            (at("channel"), Address { channel: 99, ..phone("+15550110001") }),
            (at("channel"), Address { channel: -1, ..phone("+15550110001") }),
            (at("address"), phone("+1555\r\nX-Evil")),
            (at("address"), phone("+1555\0")),
            (at("address"), phone(&"1".repeat(257))),
            (at("upstream_channel"), Address { upstream_channel: "VOICE".into(), ..phone("+15550110001") }),
            (at("upstream_channel"), Address { upstream_channel: "sms\n".into(), ..phone("+15550110001") }),
            (at("upstream_channel"), Address { channel: Channel::Other.into(), ..phone("x:1") }),
        ];
        match face {
            Face::V1 => rows.extend([
                (at("address"), chat("")),
                (at("address"), chat("null")),
                (at("address"), chat("a\0b")),
                (at("address"), chat("a\r\nb")),
                (at("address"), chat(&"é".repeat(257))),
                (at("address"), phone("null")),
                (at("proxy_address"), Address { proxy_address: "null".into(), ..phone("+15550110001") }),
                (at("proxy_address"), Address { proxy_address: "1".repeat(257), ..phone("+15550110001") }),
                (at("proxy_address"), Address { proxy_address: "\r\n".into(), ..phone("+15550110001") }),
                (at("projected_address"), Address { projected_address: "\0".into(), ..phone("+15550110001") }),
                (at("channel"), phone("whatsapp:+15550110001")),
                (at("channel"), Address { channel: Channel::Whatsapp.into(), ..phone("+15550110001") }),
                (at("channel"), Address { channel: Channel::Rcs.into(), ..phone("whatsapp:+15550110001") }),
                (at("channel"), Address { channel: Channel::Messenger.into(), ..phone("+15550110001") }),
                (at("channel"), Address { channel: Channel::Voice.into(), ..phone("+15550110001") }),
            ]),
            Face::V2 => rows.extend([
                (at("channel"), Address { channel: 0, ..phone("+15550110001") }),
                (at("address"), phone("")),
                (at("address"), phone(&"1".repeat(255))),
                (at("channel_id"), Address { channel_id: "CA\n".into(), ..phone("+15550110001") }),
                (at("channel_id"), Address { channel_id: "1".repeat(255), ..phone("+15550110001") }),
            ]),
        }
        for (fields, address) in rows {
            let participant = of(vec![address.clone()]);
            assert_eq!(refused_create(&mut gateway, face, participant.clone()).await, fields, "{address:?}");
            assert_eq!(refused_update(&mut gateway, face, participant).await, fields, "{address:?}");
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_refusal_does_not_repeat_what_was_sent(face) {
        let mut gateway = Gateway::start().await;
        let secret = "dana@example.com\n";
        let participant = Participant {
            display_name: secret.into(),
            profile_id: secret.into(),
            role_id: secret.into(),
            attributes: format!("{{{secret}}}"),
            upstream_type: secret.into(),
            addresses: vec![Address { address: secret.into(), level: secret.into(), ..chat(secret) }],
            ..Default::default()
        };
        let create = gateway.create(face.create(participant)).await.unwrap_err();
        let get = GetParticipantRequest { participant_id: secret.into(), ..face.get() };
        let get = gateway.get(get).await.unwrap_err();
        let list = ListParticipantsRequest { page_token: secret.into(), ..face.list() };
        let list = gateway.list(list).await.unwrap_err();
        let update = UpdateParticipantRequest { update_mask: mask(&[secret]), ..face.update(face.marked("x")) };
        let update = gateway.update(update).await.unwrap_err();
        for error in [create, get, list, update] {
            told(&error);
            let text = format!("{error:?} {}", String::from_utf8_lossy(error.details()));
            assert!(!text.contains("dana") && !text.contains("example.com"), "{text}");
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn everything_that_is_wrong_is_told_at_once(face) {
        let mut gateway = Gateway::start().await;
        let reference = ConversationRef {
            conversation_id: "..".into(),
            service_id: "IS1".into(),
            account_id: "AC1".into(),
            api_version: 0,
        };
        let list = ListParticipantsRequest {
            conversation: Some(reference.clone()),
            page_size: -1,
            page_token: String::new(),
            read_options: Some(ReadOptions { max_age: Some(prost_types::Duration { seconds: -1, nanos: 0 }), ..Default::default() }),
        };
        let conversation = [
            "conversation.account_id",
            "conversation.conversation_id",
            "conversation.service_id",
        ];
        let expected = [&conversation[..], &["page_size", "read_options.max_age"]].concat();
        assert_eq!(refused_fields(&gateway.list(list).await.unwrap_err()), expected);
        let update = UpdateParticipantRequest {
            conversation: Some(reference),
            participant_id: "..".into(),
            participant: None,
            update_mask: mask(&["nonsense", "id"]),
            webhook_enabled: Some(true),
            validate_only: false,
        };
        let expected = [
            &conversation[..],
            &["participant_id", "participant", "update_mask.paths[0]", "update_mask.paths[1]"],
        ]
        .concat();
        assert_eq!(refused_fields(&gateway.update(update).await.unwrap_err()), expected);

        let wrong = Participant {
            etag: "x".into(),
            display_name: "a\n".into(),
            r#type: 99,
            profile_id: "a b".into(),
            addresses: vec![phone("\n"), phone("\n"), Address { level: "cc".into(), ..phone("+15550110001") }],
            attributes: "{".into(),
            role_id: "RL1".into(),
            last_read_message_index: Some(-1),
            last_read_time: Some(Timestamp { seconds: i64::MAX, nanos: 0 }),
            create_time: Some(Timestamp { seconds: 0, nanos: -1 }),
            update_time: Some(Timestamp { seconds: 0, nanos: 1_000_000_000 }),
            ..Default::default()
        };
        let error = gateway.create(face.create(wrong)).await.unwrap_err();
        let mut fields = refused_fields(&error);
        fields.retain(|field| !field.starts_with("participant.addresses"));
        let expected = [
            "etag",
            "display_name",
            "type",
            "profile_id",
            "attributes",
            "role_id",
            "last_read_message_index",
            "last_read_time",
            "create_time",
            "update_time",
        ];
        assert_eq!(fields, expected.map(|field| format!("participant.{field}")));
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_refusal_stays_small_whatever_it_lists(face) {
        let mut gateway = Gateway::start().await;
        let participant = of((0..2000).map(|_| Address { channel: 99, ..phone("\n") }).collect());
        let error = gateway.create(face.create(participant)).await.unwrap_err();
        assert!(refused_fields(&error).len() > 5);
        nothing_was_sent(&mut gateway, face).await;
    }

    // === The call itself

    async fn a_deadline_is_kept_whatever_its_form(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        for timeout in ["0n", "0S", "1n"] {
            let timeout = [("grpc-timeout", timeout)];
            let answer = raw.call("GetParticipant", &timeout, &frame(&face.get_fresh())).await;
            assert_eq!(answer.code(), Code::DeadlineExceeded);
            let create = frame(&face.create(face.newcomer(1)));
            let answer = raw.call("CreateParticipant", &timeout, &create).await;
            assert_eq!(answer.code(), Code::DeadlineExceeded);
        }
        nothing_was_sent(&mut gateway, face).await;
        for garbage in ["-5x", "-5S", "x", "5", "1.5S", "999999999S", "", "99999999H"] {
            let answer = raw.call("GetParticipant", &[("grpc-timeout", garbage)], &frame(&face.get_fresh())).await;
            assert_eq!(answer.code(), Code::Ok, "{garbage}");
        }
        gateway.sandbox.fault(json!({ "hold": true })).await;
        let began = std::time::Instant::now();
        let answer = raw.call("GetParticipant", &[("grpc-timeout", "200m")], &frame(&face.get_fresh())).await;
        assert_eq!(answer.code(), Code::DeadlineExceeded);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        gateway.sandbox.clear_faults().await;
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn a_caller_that_goes_away_repeats_nothing(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true, "after": true, "times": 1 })).await;
        let mut client = gateway.client.clone();
        let call = tokio::spawn(async move { client.create_participant(face.create(face.newcomer(1))).await });
        gateway.sandbox.held(1).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        gateway.sandbox.release().await;
        // It took effect, once: a second one finds the first in the way.
        let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&error), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        let posts = gateway.sandbox.requests().await;
        assert_eq!(posts.iter().filter(|request| request.method == "POST").count(), 2);
    }

    async fn odd_metadata_is_ignored_and_never_reaches_twilio(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        let baggage = (0..200).map(|at| format!("k{at}=v{at}")).collect::<Vec<_>>().join(",");
        let long = "x".repeat(8 * 1024);
        for headers in [
            [("x-token-bin", "!!! no base64 !!!"), ("traceparent", "00-nonsense")],
            [("traceparent", "00-00000000000000000000000000000000-0000000000000000-01"), ("tracestate", "=,=")],
            [("baggage", baggage.as_str()), ("x-forwarded-for", "6.6.6.6")],
            [("x-forwarded-host", "evil"), ("x-twilio-webhook-enabled", "true")],
            [("x-twilio-signature", "forged"), ("forwarded", "host=evil")],
            [("authorization", "Bearer forged"), ("cookie", "a=b")],
            [("x-long", long.as_str()), ("x-more", "y")],
            [("i-twilio-idempotency-token", "x"), ("idempotency-key", "x")],
        ] {
            gateway.sandbox.forget_requests().await;
            let answer = raw.call("GetParticipant", &headers, &frame(&face.get_fresh())).await;
            assert_eq!(answer.code(), Code::Ok, "{headers:?}");
            let sent = gateway.sandbox.requests().await.pop().unwrap().headers;
            for (name, value) in headers {
                // A trace context of the gateway's own making is none of the caller's.
                assert_ne!(sent[name].as_str(), Some(value), "{name}");
            }
        }
        let mut request = Raw::request("GetParticipant", frame(&face.get_fresh()));
        request.headers_mut().insert("x-odd", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        assert_eq!(raw.send(request).await.code(), Code::Ok);
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn much_metadata_is_refused(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        for kib in [17, 28] {
            let much = "x".repeat(kib * 1024);
            let request = Raw::with_headers("GetParticipant", &[("x-much", &much)], &frame(&face.get_fresh()));
            // Either the stream ends or 431 says why.
            if let Ok(answer) = raw.try_send(request).await {
                assert_eq!(answer.http_status, 431);
            }
        }
        nothing_was_sent(&mut gateway, face).await;
        let fits = "x".repeat(15 * 1024);
        let answer = raw.call("GetParticipant", &[("x-much", &fits)], &frame(&face.get_fresh())).await;
        assert_eq!(answer.code(), Code::Ok);
    }

    async fn a_second_message_of_a_unary_call_is_not_executed(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        let (first, second) = (face.create(face.newcomer(1)), face.create(face.newcomer(2)));
        raw.call("CreateParticipant", &[], &[frame(&first), frame(&second)].concat()).await;
        let posts = gateway.sandbox.requests().await;
        assert!(posts.iter().filter(|request| request.method == "POST").count() <= 1);
        gateway.create(face.create(face.newcomer(2))).await.unwrap();
    }

    async fn what_is_no_message_is_refused_by_the_grpc_layer(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        let good = frame(&face.get());
        let wrapped = |bytes: &[u8]| {
            let mut framed = vec![0];
            framed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
            framed.extend_from_slice(bytes);
            framed
        };
        for (what, body) in [
            ("bad UTF-8 in participant_id", wrapped(b"\x12\x02\xff\xfe")),
            ("a varint of eleven bytes", wrapped(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
            ("the wrong wire type", wrapped(b"\x10\x01")),
            ("a length beyond the end", wrapped(b"\x12\x7fab")),
            ("the compressed flag without an encoding", [&[1][..], &good[1..]].concat()),
            ("a flag that is none", [&[7][..], &good[1..]].concat()),
            ("half a message", good[..good.len() / 2].to_vec()),
            ("half a prefix", good[..3].to_vec()),
            ("nothing", Vec::new()),
        ] {
            let answer = raw.call("GetParticipant", &[], &body).await;
            assert_eq!(answer.code(), Code::Internal, "{what}: {answer:?}");
        }
        for length in [5 * 1024 * 1024, u32::MAX] {
            let body = [&[0][..], &length.to_be_bytes()].concat();
            assert_eq!(raw.call("GetParticipant", &[], &body).await.code(), Code::OutOfRange);
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn a_packed_message_is_not_unpacked(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        for encoding in ["gzip", "deflate", "zstd", "x"] {
            let good = frame(&face.get());
            let packed = [&[1][..], &good[1..]].concat();
            let answer = raw.call("GetParticipant", &[("grpc-encoding", encoding)], &packed).await;
            assert_eq!(answer.code(), Code::Unimplemented, "{encoding}");
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn an_unknown_method_is_not_routed_elsewhere(face) {
        let mut gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        for path in [
            "/participant.v1.ParticipantService/Nonsense",
            "/participant.v1.Nonsense/GetParticipant",
            "/participant.v1.ParticipantService/../participant.v1.ParticipantService/GetParticipant",
            "/participant.v1.ParticipantService/getparticipant",
            "/participant.v1.ParticipantService//GetParticipant",
            "/",
        ] {
            let mut request = Raw::request("GetParticipant", frame(&face.get()));
            let uri = format!("http://gateway{path}");
            *request.uri_mut() = uri.parse().unwrap();
            assert_eq!(raw.send(request).await.code(), Code::Unimplemented, "{path}");
        }
        nothing_was_sent(&mut gateway, face).await;
    }

    async fn what_is_not_http2_is_hung_up_on(face) {
        let mut gateway = Gateway::start().await;
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6\xf5\xf4\xf3\xf2\xf1\xf0\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8",
        ] {
            let mut connection = TcpStream::connect(gateway.addresses.grpc).await.unwrap();
            connection.write_all(bytes).await.unwrap();
            // It ends, with or without a word; a reset is an end as well.
            let mut word = Vec::new();
            let _ = connection.read_to_end(&mut word).await;
        }
        nothing_was_sent(&mut gateway, face).await;
    }
}

// === v1

#[tokio::test]
async fn any_identity_is_one_encoded_segment_and_comes_back_as_it_was() {
    let mut gateway = Gateway::start().await;
    let base = format!("/v1/Conversations/{}/Participants", sandbox::V1_CONVERSATION);
    for (id, encoded) in odd_identities() {
        let created = gateway.create(Face::V1.create(of(vec![chat(&id)]))).await.unwrap();
        assert_eq!(created.addresses, [chat(&id)]);
        gateway.sandbox.forget_requests().await;

        let get = GetParticipantRequest { participant_id: id.clone(), ..Face::V1.get() };
        let (read, _) = gateway.get(get).await.unwrap();
        assert_eq!(read, created, "{id:?}");
        // A write by identity reads the SID first, and writes by that.
        let update = UpdateParticipantRequest {
            participant_id: id.clone(),
            ..Face::V1.update(Face::V1.marked("set"))
        };
        assert_eq!(gateway.update(update).await.unwrap().id, created.id);
        let delete = DeleteParticipantRequest { participant_id: id.clone(), ..Face::V1.delete() };
        gateway.delete(delete).await.unwrap();

        let (by_identity, by_sid) = (format!("{base}/{encoded}"), format!("{base}/{}", created.id));
        let sent: Vec<_> = gateway
            .sandbox
            .requests()
            .await
            .into_iter()
            .map(|request| (request.method, request.path, request.query))
            .collect();
        let expected = [
            ("GET", &by_identity),
            ("GET", &by_identity),
            ("POST", &by_sid),
            ("GET", &by_identity),
            ("DELETE", &by_sid),
        ]
        .map(|(method, path)| (method.to_owned(), path.clone(), String::new()));
        assert_eq!(sent, expected, "{id:?}");
    }
}

#[tokio::test]
async fn any_unique_name_is_one_encoded_segment() {
    let mut gateway = Gateway::start().await;
    for (id, encoded) in odd_identities() {
        let list = ListParticipantsRequest { conversation: conversation(Face::V1, &id), ..Face::V1.list() };
        let error = gateway.list(list).await.unwrap_err();
        assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()), "{id:?}");
        let sent = gateway.sandbox.requests().await.pop().unwrap();
        assert_eq!(sent.path, format!("/v1/Conversations/{encoded}/Participants"));
    }
}

#[tokio::test]
async fn a_service_is_a_sid_and_v1s_alone() {
    let mut gateway = Gateway::start().await;
    for (face, service_id) in [
        (Face::V1, ".."),
        (Face::V1, "IS1"),
        (Face::V1, "is00000000000000000000000000000001"),
        (Face::V1, "CH00000000000000000000000000000001"),
        (Face::V1, "IS0000000000000000000000000000000/"),
        (Face::V1, "IS00000000000000000000000000000001\n"),
        (Face::V2, sandbox::SERVICE_SID),
        (Face::V2, "x"),
    ] {
        let reference = ConversationRef { service_id: service_id.into(), ..face.conversation() };
        for (name, result) in
            every_call(&mut gateway, face, Some(reference.clone()), face.participant()).await
        {
            let fields = refused_fields(&result.unwrap_err());
            assert_eq!(fields, ["conversation.service_id"], "{name} {service_id:?}");
        }
    }
    nothing_was_sent(&mut gateway, Face::V1).await;
}

#[tokio::test]
async fn attributes_are_bounded_unambiguous_json() {
    let mut gateway = Gateway::start().await;
    let with = |attributes: String| Participant { attributes, ..Face::V1.newcomer(1) };
    let mut bad: Vec<String> = [
        "{",
        "string",
        "'a'",
        "{}{}",
        "{\"a\":1,}",
        "{\"a\":1,\"a\":2}",
        "{\"a\":{\"b\":1,\"\\u0062\":2}}",
        "1e400",
        "-1e400",
        "[1e999]",
        "NaN",
        "01",
        "\"\0\"",
        "\"\n\"",
        "\u{feff}{}",
        " ",
        "\"\\ud800\"",
    ]
    .map(Into::into)
    .into();
    bad.extend([
        "[".repeat(2000),
        "{\"a\":".repeat(800),
        format!("{}{}", "[".repeat(2000), "]".repeat(2000)),
    ]);
    bad.extend([format!("\"{}\"", "a".repeat(4095)), format!("\"{}\"", "a".repeat(10 * 1024))]);
    for attributes in bad {
        let fields = refused_create(&mut gateway, Face::V1, with(attributes.clone())).await;
        assert_eq!(fields, ["participant.attributes"], "{attributes:.40}");
        let update = Participant { attributes, ..Default::default() };
        assert_eq!(refused_update(&mut gateway, Face::V1, update).await, ["participant.attributes"]);
    }
    nothing_was_sent(&mut gateway, Face::V1).await;
    for attributes in
        ["{}", "null", "17", "\"é\"", " { \"b\" : 1 , \"a\" : 12345678901234567890 } ", "[1e300]"]
    {
        let update = Participant { attributes: attributes.into(), ..Default::default() };
        // Byte for byte.
        let updated = gateway.update(Face::V1.update(update)).await.unwrap();
        assert_eq!(updated.attributes, attributes);
    }
    let longest = format!("\"{}\"", "a".repeat(4094));
    let update = Participant { attributes: longest.clone(), ..Default::default() };
    assert_eq!(gateway.update(Face::V1.update(update)).await.unwrap().attributes, longest);
}

#[tokio::test]
async fn a_v1_value_out_of_its_form_is_refused() {
    let mut gateway = Gateway::start().await;
    let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
    let empty = Participant::default;
    for (field, participant) in [
        ("role_id", Participant { role_id: "RL1".into(), ..empty() }),
        ("role_id", Participant { role_id: "rl00000000000000000000000000000001".into(), ..empty() }),
        ("role_id", Participant { role_id: "RL0000000000000000000000000000000\n".into(), ..empty() }),
        ("last_read_message_index", Participant { last_read_message_index: Some(-1), ..empty() }),
        ("last_read_message_index", Participant { last_read_message_index: Some(i64::MIN), ..empty() }),
        ("last_read_time", Participant { last_read_time: time(253_402_300_800, 0), ..empty() }),
        ("last_read_time", Participant { last_read_time: time(-62_135_596_801, 0), ..empty() }),
        ("create_time", Participant { create_time: time(i64::MAX, 0), ..empty() }),
        ("create_time", Participant { create_time: time(0, -1), ..empty() }),
        ("update_time", Participant { update_time: time(0, 1_000_000_000), ..empty() }),
    ] {
        let update = UpdateParticipantRequest { update_mask: mask(&[field]), ..Face::V1.update(participant) };
        let error = gateway.update(update).await.unwrap_err();
        assert_eq!(refused_fields(&error), [format!("participant.{field}")]);
    }
    nothing_was_sent(&mut gateway, Face::V1).await;
}

#[tokio::test]
async fn a_masked_v1_field_that_cannot_be_cleared_is_refused() {
    let mut gateway = Gateway::start().await;
    for field in ["role_id", "last_read_time", "create_time", "update_time"] {
        let update = UpdateParticipantRequest {
            update_mask: mask(&[field]),
            ..Face::V1.update(Participant::default())
        };
        let error = gateway.update(update).await.unwrap_err();
        assert_eq!(refused_fields(&error), [format!("participant.{field}")]);
    }
    nothing_was_sent(&mut gateway, Face::V1).await;
}

#[tokio::test]
async fn v1_holds_one_identity_and_one_binding() {
    let mut gateway = Gateway::start().await;
    for addresses in [
        vec![chat("dana"), chat("eve")],
        vec![phone("+15550110001"), phone("+15550110002")],
        vec![chat("dana"), phone("+15550110001"), phone("+15550110002")],
    ] {
        let fields = ["participant.addresses"];
        assert_eq!(refused_create(&mut gateway, Face::V1, of(addresses.clone())).await, fields);
        assert_eq!(refused_update(&mut gateway, Face::V1, of(addresses)).await, fields);
    }
    // One that reaches nobody.
    let proxy = Address { proxy_address: "+15550109001".into(), ..Default::default() };
    let fields = refused_create(&mut gateway, Face::V1, of(vec![proxy])).await;
    assert_eq!(fields, ["participant.addresses[0].address"]);
    nothing_was_sent(&mut gateway, Face::V1).await;
}

#[tokio::test]
async fn an_address_that_v1_cannot_change_is_refused_before_anything_is_written() {
    let mut gateway = Gateway::start().await;
    let binding = "MB00000000000000000000000000000003";
    let there = || Address { proxy_address: "+15550109001".into(), ..phone("+15550100001") };
    for (participant_id, addresses) in [
        // Another address, another channel, an entry more, an entry less.
        (binding, vec![Address { address: "+15550100077".into(), ..there() }]),
        (binding, vec![there(), chat("dana")]),
        (binding, vec![chat("dana")]),
        (Face::V1.participant(), vec![chat("alice"), there()]),
        (Face::V1.participant(), vec![there()]),
    ] {
        let update = UpdateParticipantRequest {
            participant_id: participant_id.into(),
            ..Face::V1.update(of(addresses))
        };
        let error = gateway.update(update).await.unwrap_err();
        let fields = refused_fields(&error);
        assert!(
            !fields.is_empty() && fields.iter().all(|field| field == "participant.addresses"),
            "{fields:?}"
        );
    }
    for masked in [binding, Face::V1.participant()] {
        let update = UpdateParticipantRequest {
            participant_id: masked.into(),
            update_mask: mask(&["addresses"]),
            ..Face::V1.update(Participant::default())
        };
        assert_eq!(told(&gateway.update(update).await.unwrap_err()).0, Code::InvalidArgument);
    }
    let requests = gateway.sandbox.requests().await;
    assert!(requests.iter().all(|request| request.method == "GET"));
}

// === v2

#[tokio::test]
async fn v2_ids_are_letters_digits_and_two_signs() {
    let mut gateway = Gateway::start().await;
    let long = "a".repeat(129);
    for id in ["a.b", "a/b", "a b", "é", "a%2fb", "%2e%2e", "a:b", "alice@example.com", "~", &long] {
        for (name, result) in every_call(&mut gateway, Face::V2, conversation(Face::V2, id), "id").await {
            let fields = refused_fields(&result.unwrap_err());
            assert_eq!(fields, ["conversation.conversation_id"], "{name} {id}");
        }
        for (name, result) in every_call(&mut gateway, Face::V2, Some(Face::V2.conversation()), id).await {
            if matches!(name, "get" | "update" | "delete") {
                assert_eq!(refused_fields(&result.unwrap_err()), ["participant_id"], "{name} {id}");
            }
        }
        gateway.sandbox.forget_requests().await;
    }
    let longest = "a".repeat(128);
    for id in ["id", "comms_participant_01k1etx3jbfx88476ccja0889c", "A-_9", "-", &longest] {
        let get = GetParticipantRequest {
            conversation: conversation(Face::V2, id),
            participant_id: id.into(),
            read_options: None,
        };
        assert_eq!(told(&gateway.get(get).await.unwrap_err()).0, Code::NotFound);
        let sent = gateway.sandbox.requests().await.pop().unwrap();
        assert_eq!(sent.path, format!("/v2/Conversations/{id}/Participants/{id}"));
    }
}

#[tokio::test]
async fn webhooks_are_told_to_v1_alone() {
    let mut gateway = Gateway::start().await;
    for enabled in [true, false] {
        let create = CreateParticipantRequest {
            webhook_enabled: Some(enabled),
            ..Face::V2.create(Face::V2.newcomer(1))
        };
        assert_eq!(refused_fields(&gateway.create(create).await.unwrap_err()), ["webhook_enabled"]);
        let update = UpdateParticipantRequest {
            webhook_enabled: Some(enabled),
            ..Face::V2.update(Face::V2.marked("x"))
        };
        assert_eq!(refused_fields(&gateway.update(update).await.unwrap_err()), ["webhook_enabled"]);
    }
    nothing_was_sent(&mut gateway, Face::V2).await;
    for (enabled, header) in [(None, None), (Some(true), Some("true")), (Some(false), Some("false"))] {
        let update =
            UpdateParticipantRequest { webhook_enabled: enabled, ..Face::V1.update(Face::V1.marked("x")) };
        gateway.update(update).await.unwrap();
        let sent = gateway.sandbox.requests().await.pop().unwrap();
        assert_eq!(sent.headers["x-twilio-webhook-enabled"].as_str(), header);
    }
}

#[tokio::test]
async fn a_v2_value_out_of_its_form_is_refused() {
    let mut gateway = Gateway::start().await;
    let empty = || of(Face::V2.newcomer(1).addresses);
    let kind = |kind: ParticipantType, word: &str| Participant {
        r#type: kind.into(),
        upstream_type: word.into(),
        ..empty()
    };
    for (field, participant) in [
        ("display_name", Participant { display_name: "a\0".into(), ..empty() }),
        ("display_name", Participant { display_name: "a\r\nb".into(), ..empty() }),
        ("display_name", Participant { display_name: "é".repeat(257), ..empty() }),
        ("profile_id", Participant { profile_id: "a b".into(), ..empty() }),
        ("profile_id", Participant { profile_id: "a".repeat(129), ..empty() }),
        ("type", Participant { r#type: 99, ..empty() }),
        ("upstream_type", kind(ParticipantType::Other, "")),
        ("upstream_type", kind(ParticipantType::Customer, "AGENT")),
        ("upstream_type", kind(ParticipantType::Other, "A\nB")),
        ("upstream_type", kind(ParticipantType::Other, &"A".repeat(65))),
    ] {
        let fields = [format!("participant.{field}")];
        assert_eq!(refused_create(&mut gateway, Face::V2, participant.clone()).await, fields);
        assert_eq!(refused_update(&mut gateway, Face::V2, participant).await, fields);
    }
    nothing_was_sent(&mut gateway, Face::V2).await;
}

#[tokio::test]
async fn another_channel_needs_its_own_prefix_on_v1() {
    let mut gateway = Gateway::start().await;
    let of = |address: &str| {
        let address = Address {
            channel: Channel::Other.into(),
            upstream_channel: "gbm".into(),
            address: address.into(),
            ..Default::default()
        };
        Face::V1.create(Participant { addresses: vec![address], ..Default::default() })
    };
    let error = gateway.create(of("+15550101117")).await.unwrap_err();
    assert_eq!(refused_fields(&error), ["participant.addresses[0].channel"]);
    nothing_was_sent(&mut gateway, Face::V1).await;
}
