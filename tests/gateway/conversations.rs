//! ListParticipantConversations: where a person is, paged, cached, and forgotten when a write touches the person.

use std::time::Duration;

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tonic::{Code, Status};

use crate::harness::*;
use crate::upstream::*;

type Answer = ListParticipantConversationsResponse;

fn of(identity: &str) -> ListParticipantConversationsRequest {
    ListParticipantConversationsRequest { identity: identity.into(), ..Default::default() }
}

fn at(address: &str) -> ListParticipantConversationsRequest {
    ListParticipantConversationsRequest { address: address.into(), ..Default::default() }
}

async fn list(
    gateway: &mut Gateway,
    request: ListParticipantConversationsRequest,
) -> Result<(Answer, CacheStatus), Status> {
    let answer = gateway.client.list_participant_conversations(request).await?.into_inner();
    let status = answer.read_info.unwrap().cache_status();
    Ok((answer, status))
}

/// How the cache serves the person now.
async fn served(gateway: &mut Gateway, request: &ListParticipantConversationsRequest) -> CacheStatus {
    list(gateway, request.clone()).await.unwrap().1
}

fn ids(answer: &Answer) -> Vec<&str> {
    answer.conversations.iter().map(|conversation| conversation.conversation_id.as_str()).collect()
}

fn sms(address: &str, proxy: &str) -> Participant {
    let address = Address { address: address.into(), proxy_address: proxy.into(), ..Default::default() };
    Participant { addresses: vec![address], ..Default::default() }
}

fn chat(identity: &str) -> Participant {
    let address = Address { channel: Channel::Chat.into(), address: identity.into(), ..Default::default() };
    Participant { addresses: vec![address], ..Default::default() }
}

#[tokio::test]
async fn a_person_is_found_by_identity_and_by_address() {
    let mut gateway = Gateway::start().await;
    let arranged = json!({
        "unique_name": "support-7",
        "friendly_name": "Support",
        "attributes": "{\"queue\": \"a\"}",
        "state": "inactive",
        "timers": { "date_closed": "2026-02-01T00:00:00Z" },
        "participants": [{ "identity": "alice" }],
    });
    let made = gateway.sandbox.arrange(arranged).await.remove(0);
    let (answer, _) = list(&mut gateway, of("alice")).await.unwrap();
    assert_eq!(ids(&answer), [sandbox::V1_CONVERSATION, &made]);
    let there = &answer.conversations[1];
    assert_eq!(there.account_id, sandbox::ACCOUNT_SID);
    assert_eq!(there.service_id, sandbox::SERVICE_SID);
    assert!(there.participant_id.starts_with("MB") && there.user_id.starts_with("US"), "{there:?}");
    assert_eq!(there.addresses, chat("alice").addresses);
    assert_eq!((there.unique_name.as_str(), there.friendly_name.as_str()), ("support-7", "Support"));
    assert_eq!(there.attributes, "{\"queue\": \"a\"}");
    assert_eq!((there.state(), there.upstream_state.as_str()), (ConversationState::Inactive, "inactive"));
    assert_eq!(there.close_time, Some("2026-02-01T00:00:00Z".parse().unwrap()));
    assert_eq!(there.inactive_time, None);
    assert!(there.create_time.is_some() && there.update_time.is_some());

    let (answer, _) = list(&mut gateway, at("+15550100001")).await.unwrap();
    assert_eq!(ids(&answer), [sandbox::V1_CONVERSATION]);
    let address = &answer.conversations[0].addresses[0];
    assert_eq!(address.channel(), Channel::Sms);
    assert_eq!((address.address.as_str(), address.proxy_address.as_str()), ("+15550100001", "+15550109001"));

    let (answer, _) = list(&mut gateway, of("nobody")).await.unwrap();
    assert!(answer.conversations.is_empty() && answer.next_page_token.is_empty());
}

#[tokio::test]
async fn the_pages_of_a_person_are_walked() {
    let mut gateway = Gateway::start().await;
    let arranged = json!({ "count": 120, "participants": [{ "identity": "erin" }] });
    let made = gateway.sandbox.arrange(arranged).await;
    for (page_size, pages) in [(0, 3), (50, 3), (7, 18), (1000, 3)] {
        let (mut walked, mut requests) = (Vec::new(), 0);
        let mut request = ListParticipantConversationsRequest { page_size, ..of("erin") };
        loop {
            let (answer, _) = list(&mut gateway, request.clone()).await.unwrap();
            walked.extend(ids(&answer).into_iter().map(str::to_owned));
            requests += 1;
            if answer.next_page_token.is_empty() {
                break;
            }
            request.page_token = answer.next_page_token;
        }
        assert_eq!((walked, requests), (made.clone(), pages), "{page_size}");
    }
}

#[tokio::test]
async fn a_page_is_cached_under_its_person() {
    let mut gateway = Gateway::start().await;
    let alice = of("alice");
    assert_eq!(served(&mut gateway, &alice).await, CacheStatus::Miss);
    assert_eq!(served(&mut gateway, &alice).await, CacheStatus::Hit);
    // The identity of one is no address of another's.
    assert_eq!(served(&mut gateway, &at("alice")).await, CacheStatus::Miss);
    let service =
        ListParticipantConversationsRequest { service_id: sandbox::SERVICE_SID.into(), ..alice.clone() };
    assert_eq!(served(&mut gateway, &service).await, CacheStatus::Miss);
    let fresh =
        ListParticipantConversationsRequest { read_options: max_age(Duration::ZERO), ..alice.clone() };
    assert_eq!(served(&mut gateway, &fresh).await, CacheStatus::Bypass);
    assert_eq!(gateway.sandbox.count().await, 4);

    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (mut client, request) = (gateway.client.clone(), of("bob"));
            tokio::spawn(async move { client.list_participant_conversations(request).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(gateway.sandbox.count().await, 5, "calls at the same time share one request");
}

#[tokio::test]
async fn a_write_forgets_whom_it_touches_and_nobody_else() {
    let mut gateway = Gateway::start().await;
    let (alice, carol, phone) = (of("alice"), of("carol"), at("+15550100007"));
    for person in [&alice, &carol, &phone] {
        served(&mut gateway, person).await;
    }
    let created = gateway.create(Face::V1.create(chat("carol"))).await.unwrap();
    let (answer, status) = list(&mut gateway, carol.clone()).await.unwrap();
    assert_eq!((ids(&answer).len(), status), (1, CacheStatus::Miss));
    gateway.create(Face::V1.create(sms("+15550100007", "+15550109001"))).await.unwrap();
    assert_eq!(served(&mut gateway, &phone).await, CacheStatus::Miss);
    assert_eq!(served(&mut gateway, &alice).await, CacheStatus::Hit);

    // An update tells whom it touches: who it was before, and who it is now.
    let dave = of("dave");
    served(&mut gateway, &dave).await;
    let update = UpdateParticipantRequest {
        participant_id: created.id.clone(),
        update_mask: mask(&["addresses"]),
        ..Face::V1.update(chat("dave"))
    };
    gateway.update(update).await.unwrap();
    for person in [&carol, &dave] {
        assert_eq!(served(&mut gateway, person).await, CacheStatus::Miss);
    }
    assert_eq!(ids(&list(&mut gateway, dave.clone()).await.unwrap().0).len(), 1);
    assert_eq!(served(&mut gateway, &alice).await, CacheStatus::Hit);

    let delete = DeleteParticipantRequest { participant_id: "dave".into(), ..Face::V1.delete() };
    gateway.delete(delete).await.unwrap();
    assert!(list(&mut gateway, dave).await.unwrap().0.conversations.is_empty());
    assert_eq!(served(&mut gateway, &alice).await, CacheStatus::Hit);
}

#[tokio::test]
async fn a_write_that_does_not_tell_whom_it_touches_forgets_everybody_of_the_account() {
    let mut gateway = Gateway::with_accounts(&['1', '2'], &[]).await;
    let of_account =
        |digit| ListParticipantConversationsRequest { account_id: account_id(digit), ..of("alice") };
    for digit in ['1', '2'] {
        assert_eq!(served(&mut gateway, &of_account(digit)).await, CacheStatus::Miss);
    }
    gateway.delete(Face::V1.delete()).await.unwrap();
    let (answer, status) = list(&mut gateway, of_account('1')).await.unwrap();
    assert_eq!((answer.conversations.len(), status), (0, CacheStatus::Miss));
    assert_eq!(served(&mut gateway, &of_account('2')).await, CacheStatus::Hit);
}

/// That the repetition did nothing is no word on the first attempt, which took effect.
#[tokio::test]
async fn a_delete_whose_repetition_is_refused_is_forgotten_like_one_that_took_effect() {
    for mut refusal in [json!({ "status": 429, "code": 20429 }), json!({ "status": 401 })] {
        let mut gateway = Gateway::start().await;
        assert_eq!(list(&mut gateway, of("alice")).await.unwrap().0.conversations.len(), 1);
        let delete = json!({ "method": "DELETE" });
        gateway.sandbox.fault(json!({ "match": delete, "after": true, "cut": "before", "times": 1 })).await;
        refusal["match"] = delete;
        gateway.sandbox.fault(refusal.clone()).await;
        let error = gateway.delete(Face::V1.delete()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()), "{refusal}");
        let (answer, status) = list(&mut gateway, of("alice")).await.unwrap();
        assert_eq!((answer.conversations.len(), status), (0, CacheStatus::Miss), "{refusal}");
    }
}

#[tokio::test]
async fn a_write_during_a_load_is_never_followed_by_the_old_list() {
    let mut gateway = Gateway::start().await;
    gateway
        .sandbox
        .fault(json!({
            "match": { "path_contains": "ParticipantConversations" }, "after": true, "hold": true, "times": 1,
        }))
        .await;
    let mut client = gateway.client.clone();
    let slow = tokio::spawn(async move { client.list_participant_conversations(of("carol")).await });
    gateway.sandbox.held(1).await;
    gateway.create(Face::V1.create(chat("carol"))).await.unwrap();
    let (answer, status) = list(&mut gateway, of("carol")).await.unwrap();
    assert_eq!((ids(&answer).len(), status), (1, CacheStatus::Miss));
    gateway.sandbox.release().await;
    assert!(slow.await.unwrap().unwrap().into_inner().conversations.is_empty());
    assert_eq!(ids(&list(&mut gateway, of("carol")).await.unwrap().0).len(), 1);
}

#[tokio::test]
async fn a_request_that_is_wrong_is_refused_whole() {
    let mut gateway = Gateway::start().await;
    let both = ListParticipantConversationsRequest { address: "+15550100001".into(), ..of("alice") };
    let long = "a".repeat(257);
    for (request, fields) in [
        (of(""), vec!["identity"]),
        (both, vec!["identity"]),
        (of("a\nb"), vec!["identity"]),
        (of(&long), vec!["identity"]),
        (at(&long), vec!["address"]),
        (ListParticipantConversationsRequest { page_size: -1, ..of("alice") }, vec!["page_size"]),
        (ListParticipantConversationsRequest { service_id: "CH1".into(), ..of("alice") }, vec!["service_id"]),
        (ListParticipantConversationsRequest { api_version: 9, ..of("alice") }, vec!["api_version"]),
        (
            ListParticipantConversationsRequest { account_id: "AC1".into(), page_size: -1, ..of("") },
            vec!["account_id", "page_size", "identity"],
        ),
    ] {
        let error = list(&mut gateway, request).await.unwrap_err();
        assert_eq!(refused_fields(&error), fields);
    }
    let unknown = ListParticipantConversationsRequest { account_id: account_id('9'), ..of("alice") };
    let error = list(&mut gateway, unknown).await.unwrap_err();
    assert_eq!(told(&error), (Code::InvalidArgument, "ACCOUNT_UNKNOWN".into()));
    assert_eq!(gateway.sandbox.count().await, 0);
}

#[tokio::test]
async fn a_token_opens_for_its_person_only() {
    let mut gateway = Gateway::start().await;
    let arranged = json!({ "count": 3, "participants": [{ "identity": "erin" }] });
    gateway.sandbox.arrange(arranged).await;
    let first = ListParticipantConversationsRequest { page_size: 2, ..of("erin") };
    let token = list(&mut gateway, first).await.unwrap().0.next_page_token;
    let with =
        |request, token: &str| ListParticipantConversationsRequest { page_token: token.into(), ..request };
    list(&mut gateway, with(of("erin"), &token)).await.unwrap();
    let of_a_list = ListParticipantsRequest { page_size: 2, ..Face::V1.list() };
    let of_a_list = gateway.list(of_a_list).await.unwrap().next_page_token;
    for request in [
        with(of("alice"), &token),
        with(at("erin"), &token),
        with(
            ListParticipantConversationsRequest { service_id: sandbox::SERVICE_SID.into(), ..of("erin") },
            &token,
        ),
        with(of("erin"), &of_a_list),
        with(of("erin"), "nonsense"),
    ] {
        let error = list(&mut gateway, request).await.unwrap_err();
        assert_eq!(told(&error), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()));
    }
    let error =
        gateway.list(ListParticipantsRequest { page_token: token, ..Face::V1.list() }).await.unwrap_err();
    assert_eq!(told(&error), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()));
}

#[tokio::test]
async fn v2_cannot_tell_where_a_person_is() {
    let mut gateway = Gateway::start().await;
    let request = ListParticipantConversationsRequest { api_version: ApiVersion::V2.into(), ..of("alice") };
    let error = list(&mut gateway, request).await.unwrap_err();
    assert_eq!(told(&error), (Code::FailedPrecondition, "OPERATION_NOT_SUPPORTED_BY_UPSTREAM".into()));
    assert_eq!(gateway.sandbox.count().await, 0);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_not_found() {
    let mut gateway = Gateway::start().await;
    let service_id = "IS00000000000000000000000000000099".into();
    let request = ListParticipantConversationsRequest { service_id, ..of("alice") };
    let error = list(&mut gateway, request).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
}

/// The keys of Twilio's OpenAPI document, with the nulls that its sample has, and with what its schema allows beyond.
#[tokio::test]
async fn the_documented_answer_reads_as_expected() {
    let body = include_str!("../fixtures/v1/participant_conversations.json");
    let upstream = Upstream::always(ok(body)).await;
    let mut gateway = gateway_asking(upstream.address, &[]).await;
    let (answer, _) = list(&mut gateway, of("IDENTITY")).await.unwrap();
    let [first, second] = &answer.conversations[..] else {
        panic!("{answer:?}");
    };
    let expected = ParticipantConversation {
        account_id: "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into(),
        service_id: "ISaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into(),
        participant_id: "MBaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into(),
        user_id: "USaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into(),
        addresses: chat("IDENTITY").addresses,
        conversation_id: "CHaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into(),
        friendly_name: "friendly_name".into(),
        attributes: "{}".into(),
        state: ConversationState::Inactive.into(),
        upstream_state: "inactive".into(),
        inactive_time: Some("2015-12-16T22:19:38Z".parse().unwrap()),
        close_time: Some("2015-12-16T22:28:38Z".parse().unwrap()),
        create_time: Some("2015-07-30T20:00:00Z".parse().unwrap()),
        update_time: Some("2015-07-30T20:00:00Z".parse().unwrap()),
        created_by: "created_by".into(),
        ..Default::default()
    };
    assert_eq!(*first, expected);
    let whatsapp = Address {
        channel: Channel::Whatsapp.into(),
        upstream_channel: "whatsapp".into(),
        address: "whatsapp:+15550100001".into(),
        proxy_address: "whatsapp:+15550109001".into(),
        ..Default::default()
    };
    assert_eq!(second.addresses, [whatsapp]);
    assert_eq!((second.state(), second.upstream_state.as_str()), (ConversationState::Other, "archived"));
    assert_eq!((second.unique_name.as_str(), second.attributes.as_str()), ("unique", r#"{"a":1}"#));
    assert_eq!((second.inactive_time, second.create_time), (None, None));
}
