//! What a watcher is told, how it goes on after a break, and how its stream ends.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use participant_gateway::app::Stop;
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::Value;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::events::{Delivery, Event, Tells as _, Watcher, listening};
use crate::harness::*;
use crate::on_both_versions;

async fn deliver(gateway: &Gateway, face: Face, ids: &[&str]) {
    for id in ids {
        Event::new(face, id).deliver(gateway).await;
    }
}

fn resumed(token: &str) -> WatchParticipantsRequest {
    WatchParticipantsRequest { resume_token: token.into(), ..Default::default() }
}

/// How a watch is refused: at once, or by its first message.
async fn refused(gateway: &Gateway, request: WatchParticipantsRequest) -> Status {
    match gateway.client.clone().watch_participants(request).await {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
    }
}

/// So many events.
const EVENTS: usize = 60;

async fn deliver_all(gateway: &Gateway, face: Face, ids: &[String]) {
    // v1 sends many at once.
    let size = if face == Face::V1 { 7 } else { 1 };
    for batch in ids.chunks(size) {
        if let [id] = batch {
            Event::new(face, id).deliver(gateway).await;
            continue;
        }
        let events: Vec<_> = batch.iter().map(|id| Event::new(face, id).json()).collect();
        let batch = Delivery::new(Value::from(events).to_string(), sandbox::AUTH_TOKEN);
        assert_eq!(batch.post(gateway).await, 200);
    }
}

/// All ids that a watcher is told which stays for so many events at a time, and its last token.
async fn come_and_go(gateway: &Gateway, token: &str, stay: usize) -> (Vec<String>, String) {
    let (mut ids, mut token) = (Vec::new(), token.to_owned());
    while ids.len() < EVENTS {
        let mut watcher = Watcher::with(gateway, resumed(&token)).await;
        for _ in 0..stay.min(EVENTS - ids.len()) {
            let (event, after) = watcher.told().await;
            ids.push(event.id);
            token = after;
        }
    }
    (ids, token)
}

on_both_versions! {
    async fn a_watcher_is_told_of_the_conversations_and_the_kinds_that_it_asks_for(face) {
        let gateway = listening("").await;
        let here = || WatchParticipantsRequest { conversations: vec![face.conversation()], ..Default::default() };
        let removed = ParticipantEventType::Removed.into();
        let removals = WatchParticipantsRequest { event_types: vec![removed], ..Default::default() };
        let removals_here = WatchParticipantsRequest { event_types: vec![removed], ..here() };
        let two = WatchParticipantsRequest {
            conversations: vec![face.missing_conversation(), face.conversation()], ..Default::default()
        };
        let mut watchers = Vec::new();
        for request in [WatchParticipantsRequest::default(), here(), removals, removals_here, two] {
            watchers.push(Watcher::with(&gateway, request).await);
        }
        let there = face.missing_conversation().conversation_id;
        let event = |id: &str, kind| Event { kind, ..Event::new(face, id) };
        event("added here", "added").deliver(&gateway).await;
        Event { conversation: there.clone(), ..event("updated there", "updated") }.deliver(&gateway).await;
        Event { conversation: there, ..event("removed there", "removed") }.deliver(&gateway).await;
        Event { conversation: "CH77".into(), participant: "MB7".into(), ..event("elsewhere", "added") }.deliver(&gateway).await;
        event("removed here", "removed").deliver(&gateway).await;

        let all = ["added here", "updated there", "removed there", "elsewhere", "removed here"];
        let expected: [&[&str]; 5] = [
            &all,
            &["added here", "removed here"],
            &["removed there", "removed here"],
            &["removed here"],
            &["added here", "updated there", "removed there", "removed here"],
        ];
        for (watcher, expected) in watchers.iter_mut().zip(expected) {
            assert_eq!(watcher.ids(expected.len()).await, expected);
        }
    }

    /// The same conversation's id in another account, or in the other API, is another conversation.
    async fn a_conversation_is_one_of_its_account_and_its_version(face) {
        let gateway = listening("").await;
        let id = face.conversation().conversation_id;
        let other = if face == Face::V1 { Face::V2 } else { Face::V1 };
        let version = if face == Face::V1 { ApiVersion::V1 } else { ApiVersion::V2 };
        let reference = ConversationRef { api_version: version.into(), ..Face::named(&id) };
        let request = WatchParticipantsRequest { conversations: vec![reference], ..Default::default() };
        let mut watcher = Watcher::with(&gateway, request).await;
        Event { conversation: id, ..Event::new(other, "of the other version") }.deliver(&gateway).await;
        deliver(&gateway, face, &["of this version"]).await;
        assert_eq!(watcher.event().await.id, "of this version");
    }

    /// As `serve --sandbox` does it: the sandbox calls the gateway's listener. A write is told once, by its event.
    async fn what_is_written_through_the_sandboxs_gateway_is_told_once(face) {
        let mut gateway = Gateway::told(&[]).await;
        let mut watcher = Watcher::of(&gateway).await;
        let created = gateway.create(face.create(face.newcomer(1))).await.unwrap();
        gateway.update(face.update(face.marked("new"))).await.unwrap();
        let told = [watcher.event().await, watcher.event().await];
        assert_eq!(told.each_ref().map(ParticipantEvent::r#type), [ParticipantEventType::Added, ParticipantEventType::Updated]);
        let [added, updated] = told.map(|event| event.participant.unwrap());
        assert_eq!((&added.id, &added.addresses), (&created.id, &created.addresses));
        assert_eq!((updated.id.as_str(), face.mark(&updated).as_str()), (face.participant(), "new"));
        if face == Face::V1 {
            gateway.delete(face.delete()).await.unwrap();
            let removed = watcher.event().await;
            assert_eq!(removed.r#type(), ParticipantEventType::Removed);
            assert_eq!(removed.participant.unwrap().id, face.participant());
        }
    }

    async fn a_watcher_goes_on_after_a_break_without_a_gap_and_without_a_repetition(face) {
        let gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        deliver(&gateway, face, &["1", "2", "3"]).await;
        let (first, after_first) = watcher.told().await;
        let (second, after_second) = watcher.told().await;
        assert_eq!((first.id.as_str(), second.id.as_str()), ("1", "2"));
        drop(watcher);
        deliver(&gateway, face, &["4"]).await;

        let mut again = Watcher::with(&gateway, resumed(&after_second)).await;
        let mut from_first = Watcher::with(&gateway, resumed(&after_first)).await;
        deliver(&gateway, face, &["5"]).await;
        assert_eq!(again.ids(3).await, ["3", "4", "5"]);
        assert_eq!(from_first.ids(4).await, ["2", "3", "4", "5"]);
    }

    /// Also where nothing that passes the filter has come since: a heartbeat's token moves on.
    async fn the_token_of_a_heartbeat_resumes_too(face) {
        let gateway = listening("watch.heartbeat = \"20ms\"").await;
        let elsewhere = WatchParticipantsRequest {
            conversations: vec![face.missing_conversation()], ..Default::default()
        };
        let mut stream = gateway.client.clone().watch_participants(elsewhere).await.unwrap().into_inner();
        let begin = stream.message().await.unwrap().unwrap().resume_token;
        deliver(&gateway, face, &["1"]).await;
        let moved = loop {
            let message = stream.message().await.unwrap().unwrap();
            assert!(message.event().is_none());
            if message.resume_token != begin {
                break message.resume_token;
            }
        };
        deliver(&gateway, face, &["2"]).await;
        assert_eq!(Watcher::with(&gateway, resumed(&begin)).await.ids(2).await, ["1", "2"]);
        assert_eq!(Watcher::with(&gateway, resumed(&moved)).await.ids(1).await, ["2"]);
    }

    /// They come from several sides at once, in disorder and some of them twice, while watchers break off and resume.
    async fn each_watcher_is_told_each_event_once_however_they_come(face) {
        let gateway = listening("").await;
        let mut ids: Vec<_> = (0..EVENTS).chain((0..EVENTS).step_by(20)).map(|number| number.to_string()).collect();
        fastrand::shuffle(&mut ids);
        let stream = gateway.client.clone().watch_participants(WatchParticipantsRequest::default()).await;
        let token = stream.unwrap().into_inner().message().await.unwrap().unwrap().resume_token;
        let sending = async {
            let quarter = ids.len() / 4 + 1;
            join_all(ids.chunks(quarter).map(|ids| deliver_all(&gateway, face, ids))).await;
        };
        let watching = join_all([1, 7, 25].map(|stay| come_and_go(&gateway, &token, stay)));
        let ((), told) = tokio::join!(sending, watching);
        let distinct: HashSet<_> = told[0].0.iter().collect();
        assert_eq!(distinct.len(), EVENTS, "{:?}", told[0].0);
        deliver(&gateway, face, &["last"]).await;
        for (ids, token) in &told {
            assert_eq!(ids, &told[0].0);
            assert_eq!(Watcher::with(&gateway, resumed(token)).await.event().await.id, "last");
        }
    }

    async fn what_is_no_longer_kept_cannot_be_resumed_from(face) {
        let gateway = listening("watch.events_kept = 4").await;
        let mut watcher = Watcher::of(&gateway).await;
        deliver(&gateway, face, &["1"]).await;
        let (_, after_first) = watcher.told().await;
        deliver(&gateway, face, &["2", "3", "4", "5"]).await;
        assert_eq!(Watcher::with(&gateway, resumed(&after_first)).await.ids(4).await, ["2", "3", "4", "5"]);
        deliver(&gateway, face, &["6"]).await;
        let expired = (Code::OutOfRange, "RESUME_TOKEN_EXPIRED".to_owned());
        assert_eq!(told(&refused(&gateway, resumed(&after_first)).await), expired);
        // Nor from another gateway's place.
        let other = listening("").await;
        let (_, theirs) = {
            let mut watcher = Watcher::of(&other).await;
            deliver(&other, face, &["1"]).await;
            watcher.told().await
        };
        assert_eq!(told(&refused(&gateway, resumed(&theirs)).await), expired);
    }

    async fn no_more_conversations_are_watched_than_there_may_be(face) {
        let mut gateway = Gateway::start().await;
        let watch = |count| WatchParticipantsRequest { conversations: vec![face.conversation(); count], ..Default::default() };
        gateway.client.watch_participants(watch(1000)).await.unwrap();
        assert_eq!(refused_fields(&refused(&gateway, watch(1001)).await), ["conversations"]);
    }

    async fn what_is_no_token_is_refused(face) {
        let gateway = listening("").await;
        deliver(&gateway, face, &["1"]).await;
        for token in ["x", "1", "-", "1-", "-1", "+1-1", "1-1-1", "99999999999999999999-1", "1 -1", "1-\u{661}"] {
            assert_eq!(refused_fields(&refused(&gateway, resumed(token)).await), ["resume_token"], "{token}");
        }
    }

    async fn a_watcher_ends_with_its_deadline(face) {
        let gateway = listening("").await;
        let mut request = Request::new(WatchParticipantsRequest::default());
        request.set_timeout(Duration::from_millis(500));
        let stream = gateway.client.clone().watch_participants(request).await.unwrap().into_inner();
        let mut watcher = Watcher(stream);
        deliver(&gateway, face, &["1"]).await;
        assert_eq!(watcher.event().await.id, "1");
        assert_eq!(watcher.end().await, (Code::DeadlineExceeded, "DEADLINE".into()));
    }

    async fn a_watcher_is_told_that_the_gateway_stops(face) {
        let mut gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        deliver(&gateway, face, &["1"]).await;
        gateway.stop(Stop::Promptly);
        assert_eq!(watcher.event().await.id, "1");
        assert_eq!(watcher.end().await, (Code::Unavailable, "SHUTTING_DOWN".into()));
        gateway.ended().await.unwrap();
    }
}

#[tokio::test]
async fn a_watcher_hears_a_heartbeat_first_and_then_whenever_nothing_else_is_told() {
    let gateway = listening("watch.heartbeat = \"20ms\"").await;
    let mut watcher = Watcher::of(&gateway).await;
    for _ in 0..5 {
        assert!(watcher.message().await.event().is_none());
    }
    // One that is due rarely is still the first.
    let gateway = listening("watch.heartbeat = \"1h\"").await;
    let mut watcher = Watcher::of(&gateway).await;
    deliver(&gateway, Face::V1, &["1"]).await;
    assert!(watcher.message().await.event().is_some());
}

/// Half of what is kept is behind it: it is told so while the rest can still be resumed from.
#[tokio::test]
async fn a_watcher_that_does_not_read_has_lagged_and_goes_on_from_where_it_was() {
    const COUNT: usize = 1800;
    let gateway = listening("watch.events_kept = 2000").await;
    // It takes little ahead: the rest has to wait at the gateway.
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc)).unwrap();
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let watch =
        ParticipantServiceClient::new(channel).watch_participants(WatchParticipantsRequest::default()).await;
    let mut slow = Watcher(watch.unwrap().into_inner());
    assert!(slow.message().await.event().is_none());
    for batch in 0..COUNT / 200 {
        let events: Vec<_> = (0..200)
            .map(|number| {
                let id = (batch * 200 + number).to_string();
                Event { mark: "x".repeat(3000), ..Event::new(Face::V1, &id) }.json()
            })
            .collect();
        let batch = Delivery::new(Value::from(events).to_string(), sandbox::AUTH_TOKEN);
        assert_eq!(batch.post(&gateway).await, 200);
    }
    let mut read = Vec::new();
    let status = loop {
        match timeout(PATIENCE, slow.0.message()).await.expect("it has lagged") {
            Ok(message) => read.extend(message.unwrap().event().map(|event| event.id.clone())),
            Err(status) => break status,
        }
    };
    assert_eq!(told(&status), (Code::Aborted, "WATCH_LAGGED".into()));
    let token = status.get_details_error_info().unwrap().metadata["resume_token"].clone();
    let mut again = Watcher::with(&gateway, resumed(&token)).await;
    read.extend(again.ids(COUNT - read.len()).await);
    let all: Vec<_> = (0..COUNT).map(|number| number.to_string()).collect();
    assert_eq!(read, all);
    let calls = crate::metrics::Scrape::of(&gateway).await;
    let watching = [("rpc_method", "participant.v1.ParticipantService/WatchParticipants")];
    assert_eq!(calls.sum("participant_calls_in_flight", &watching), 1.0);
}
