//! BatchGetParticipants: many reads in one call, each as the single call would have ended.

use std::time::Duration;

use participant_gateway::proto::*;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::on_both_versions;

fn batch(face: Face, ids: &[&str]) -> BatchGetParticipantsRequest {
    BatchGetParticipantsRequest {
        conversation: Some(face.conversation()),
        participant_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    }
}

/// The ids of the conversation's seeded participants.
async fn seeded(gateway: &mut Gateway, face: Face) -> Vec<String> {
    let page = gateway.list(face.list()).await.unwrap();
    gateway.sandbox.forget_requests().await;
    page.participants.into_iter().map(|participant| participant.id).collect()
}

on_both_versions! {
    async fn a_batch_answers_in_its_own_order_and_reads_each_participant_once(face) {
        let mut gateway = Gateway::start().await;
        let ids = seeded(&mut gateway, face).await;
        let asked = [&ids[2], &ids[0], &ids[2], &ids[1]].map(String::as_str);
        let answer = gateway.client.batch_get_participants(batch(face, &asked)).await.unwrap().into_inner();
        let told: Vec<&str> = answer.participants.iter().map(|participant| participant.id.as_str()).collect();
        assert_eq!(told, asked);
        assert!(answer.failed_requests.is_empty());
        assert_eq!(gateway.sandbox.count().await, 3);

        // Each is cached by itself, and served to the single call, too.
        let answer = gateway.client.batch_get_participants(batch(face, &asked)).await.unwrap().into_inner();
        let statuses: Vec<CacheStatus> = answer.read_info.iter().map(ReadInfo::cache_status).collect();
        assert_eq!(statuses, [CacheStatus::Hit; 4]);
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
        let fresh = BatchGetParticipantsRequest { read_options: max_age(Duration::ZERO), ..batch(face, &asked) };
        let answer = gateway.client.batch_get_participants(fresh).await.unwrap().into_inner();
        assert!(answer.read_info.iter().all(|info| info.cache_status() == CacheStatus::Bypass));
        assert_eq!(gateway.sandbox.count().await, 6);
    }

    async fn one_failure_fails_the_batch_and_says_which_it_was(face) {
        let mut gateway = Gateway::start().await;
        let ids = seeded(&mut gateway, face).await;
        let asked = [&ids[0], face.missing_participant(), &ids[1], face.missing_participant()];
        let error = gateway.client.batch_get_participants(batch(face, &asked)).await.unwrap_err();
        assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
        assert_eq!(error.get_details_error_info().unwrap().metadata["index"], "1");
        assert!(error.message().contains("participant_ids[1]"), "{error:?}");
        let resource = error.get_details_resource_info().unwrap();
        assert_eq!(resource.resource_name, face.missing_participant());
    }

    async fn a_partial_answer_tells_each_failure_as_the_single_call_does(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RETRIES", "0")]).await;
        let ids = seeded(&mut gateway, face).await;
        let throttled = json!({
            "match": { "path_contains": ids[1] }, "status": 429, "code": 20429, "retry_after": "7",
        });
        gateway.sandbox.fault(throttled).await;
        let asked = [&ids[0], &ids[1], face.missing_participant(), &ids[2]];
        let request = BatchGetParticipantsRequest { return_partial_success: true, ..batch(face, &asked) };
        let answer = gateway.client.batch_get_participants(request).await.unwrap().into_inner();

        let told: Vec<&str> = answer.participants.iter().map(|participant| participant.id.as_str()).collect();
        assert_eq!((told, answer.read_info.len()), (vec![ids[0].as_str(), ids[2].as_str()], 2));
        let mut failed: Vec<_> = answer.failed_requests.into_iter().collect();
        failed.sort_by_key(|(index, _)| *index);
        let [(1, throttled), (2, missing)] = &failed[..] else {
            panic!("{failed:?}");
        };
        assert_eq!((throttled.code, throttled.reason.as_str()), (8, "UPSTREAM_THROTTLED"));
        assert_eq!(throttled.retry_delay, Some(prost_types::Duration { seconds: 7, nanos: 0 }));
        assert_eq!((missing.code, missing.reason.as_str()), (5, "PARTICIPANT_NOT_FOUND"));
        assert_eq!(missing.retry_delay, None);
        let get = GetParticipantRequest { participant_id: face.missing_participant().into(), ..face.get() };
        assert_eq!(missing.message, gateway.get(get).await.unwrap_err().message());
    }

    async fn a_hundred_are_read_and_no_more(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.populate(&face.conversation(), 97).await;
        let all = ListParticipantsRequest { page_size: 100, ..face.list() };
        let ids: Vec<String> =
            gateway.list(all).await.unwrap().participants.into_iter().map(|participant| participant.id).collect();
        let mut asked: Vec<&str> = ids.iter().map(String::as_str).collect();
        let answer = gateway.client.batch_get_participants(batch(face, &asked)).await.unwrap().into_inner();
        let told: Vec<String> = answer.participants.into_iter().map(|participant| participant.id).collect();
        assert_eq!((told.len(), &told), (100, &ids));

        asked.push(face.participant());
        let error = gateway.client.batch_get_participants(batch(face, &asked)).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["participant_ids"]);
        let error = gateway.client.batch_get_participants(batch(face, &[])).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["participant_ids"]);
    }

    async fn every_id_that_is_wrong_is_named(face) {
        let mut gateway = Gateway::start().await;
        let asked = ["", face.participant(), "..", "a\nb"];
        let error = gateway.client.batch_get_participants(batch(face, &asked)).await.unwrap_err();
        let fields = refused_fields(&error);
        assert_eq!(fields, ["participant_ids[0]", "participant_ids[2]", "participant_ids[3]"]);
        assert_eq!(gateway.sandbox.count().await, 0);
    }

    async fn not_all_are_read_at_the_same_time(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.populate(&face.conversation(), 27).await;
        let ids = seeded(&mut gateway, face).await;
        gateway.sandbox.fault(json!({ "match": { "path_contains": "/Participants/" }, "hold": true })).await;
        let mut client = gateway.client.clone();
        let asked: Vec<&str> = ids.iter().map(String::as_str).collect();
        let request = batch(face, &asked);
        let reading = tokio::spawn(async move { client.batch_get_participants(request).await });
        gateway.sandbox.held(10).await;
        // By the time that another call is answered, more would have been sent if there was no bound.
        let fresh = ListParticipantsRequest { read_options: max_age(Duration::ZERO), ..face.list() };
        gateway.list(fresh).await.unwrap();
        assert_eq!(gateway.sandbox.count().await, 11);
        gateway.sandbox.clear_faults().await;
        let answer = reading.await.unwrap().unwrap().into_inner();
        assert_eq!((ids.len(), answer.participants.len()), (30, 30));
    }
}
