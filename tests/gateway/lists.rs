//! Pages and streams.

use participant_gateway::proto::*;
use serde_json::json;
use tonic::Code;

use crate::harness::*;
use crate::on_both_versions;

fn ids(participants: &[Participant]) -> Vec<&str> {
    participants.iter().map(|participant| participant.id.as_str()).collect()
}

fn page(face: Face, size: i32, token: &str) -> ListParticipantsRequest {
    ListParticipantsRequest { page_size: size, page_token: token.into(), ..face.list() }
}

on_both_versions! {
    async fn a_list_is_walked_forwards_and_back(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.populate(&face.conversation(), 7).await;
        let whole = gateway.list(page(face, 100, "")).await.unwrap();
        assert_eq!((whole.participants.len(), whole.next_page_token.as_str()), (10, ""));
        assert_eq!(whole.previous_page_token, "");

        let (mut walked, mut token, mut pages) = (Vec::new(), String::new(), Vec::new());
        loop {
            let answer = gateway.list(page(face, 4, &token)).await.unwrap();
            walked.extend(answer.participants.clone());
            token.clone_from(&answer.next_page_token);
            pages.push(answer);
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((ids(&walked), pages.len()), (ids(&whole.participants), 3));
        let back = gateway.list(page(face, 4, &pages[2].previous_page_token)).await.unwrap();
        assert_eq!(ids(&back.participants), ids(&pages[1].participants));
        assert_eq!(pages[0].previous_page_token, "");
    }

    async fn another_page_size_is_honoured_midway(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.populate(&face.conversation(), 7).await;
        let first = gateway.list(page(face, 2, "")).await.unwrap();
        let rest = gateway.list(page(face, 50, &first.next_page_token)).await.unwrap();
        assert_eq!((rest.participants.len(), rest.next_page_token.as_str()), (8, ""));
    }

    async fn a_page_size_is_defaulted_and_clamped(face) {
        let mut gateway = Gateway::start().await;
        let max = if face == Face::V1 { 100 } else { 1000 };
        for (asked, sent) in [(0, 50), (1, 1), (max, max), (max + 1, max), (i32::MAX, max)] {
            gateway.list(page(face, asked, "")).await.unwrap();
            let query = gateway.sandbox.requests().await.pop().unwrap().query.to_lowercase();
            assert_eq!(query, format!("pagesize={sent}"), "{asked}");
        }
    }

    async fn replicas_take_each_others_tokens(face) {
        let mut gateway = Gateway::start().await;
        let token = gateway.list(page(face, 1, "")).await.unwrap().next_page_token;
        let mut replica = Gateway::beside(&gateway).await;
        let next = replica.list(page(face, 1, &token)).await.unwrap();
        assert_eq!(next.participants.len(), 1);

        let keyed = [("GATEWAY_PAGE_TOKEN_KEY", "another key than the account's")];
        let mut stranger = Gateway::with(&keyed).await;
        let error = stranger.list(page(face, 1, &token)).await.unwrap_err();
        assert_eq!(told(&error), (Code::InvalidArgument, "INVALID_PAGE_TOKEN".into()));
    }

    async fn a_stream_tells_every_participant_once_and_never_caches(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.populate(&face.conversation(), 120).await;
        let whole = gateway.list(page(face, 1000, "")).await.unwrap();
        gateway.sandbox.forget_requests().await;
        let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 25 };
        let (streamed, end) = gateway.stream(request).await;
        end.unwrap();
        assert_eq!((streamed.len(), gateway.sandbox.count().await), (123, 5));
        assert_eq!(ids(&streamed)[..whole.participants.len()], ids(&whole.participants));
    }

    async fn a_stream_ends_with_its_error_after_what_was_read(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        // The first page passes, the second fails.
        gateway.sandbox.fault(json!({ "headers": { "x-first": "page" }, "times": 1 })).await;
        gateway.sandbox.fault(json!({ "status": 503, "times": 1 })).await;
        let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 2 };
        let (streamed, end) = gateway.stream(request).await;
        assert_eq!(streamed.len(), 2);
        assert_eq!(told(&end.unwrap_err()), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));

        let missing = StreamParticipantsRequest { conversation: Some(face.missing_conversation()), page_size: 1 };
        let (streamed, end) = gateway.stream(missing).await;
        assert!(streamed.is_empty());
        assert_eq!(told(&end.unwrap_err()), (Code::NotFound, "CONVERSATION_NOT_FOUND".into()));
    }
}
