//! What a caller is told when Twilio refuses, fails, hangs up or talks nonsense, and how often Twilio was asked.

use std::collections::BTreeSet;
use std::time::Duration;

use participant_gateway::grpc::{Row, TABLE};
use participant_gateway::proto::*;
use participant_gateway::twilio::Operation;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::*;
use crate::on_both_versions;
use crate::raw::*;
use crate::upstream::*;

pub const NO_RETRIES: (&str, &str) = ("GATEWAY_UPSTREAM_MAX_RETRIES", "0");
const REQUEST_ID: &str = "RQ0123456789abcdef0123456789abcdef";

pub fn operations(face: Face) -> Vec<Operation> {
    let mut operations = vec![Operation::Fetch, Operation::List, Operation::Create, Operation::Update];
    if face == Face::V1 {
        operations.extend([Operation::Delete, Operation::ListConversations]);
    }
    operations
}

pub fn method(face: Face, operation: Operation) -> &'static str {
    match (operation, face) {
        (Operation::Fetch | Operation::List | Operation::ListConversations, _) => "GET",
        (Operation::Update, Face::V2) => "PUT",
        (Operation::Create | Operation::Update, _) => "POST",
        (Operation::Delete, _) => "DELETE",
    }
}

/// The call that makes this request to Twilio, past the cache.
pub async fn call(gateway: &mut Gateway, face: Face, operation: Operation) -> Result<(), Status> {
    match operation {
        Operation::Fetch => gateway.get(face.get_fresh()).await.map(drop),
        Operation::List => {
            let list = ListParticipantsRequest { read_options: max_age(Duration::ZERO), ..face.list() };
            gateway.list(list).await.map(drop)
        }
        Operation::Create => gateway.create(face.create(face.newcomer(1))).await.map(drop),
        Operation::Update => gateway.update(face.update(face.marked("new"))).await.map(drop),
        Operation::Delete => gateway.delete(face.delete()).await,
        Operation::ListConversations => {
            let list = ListParticipantConversationsRequest {
                identity: "alice".into(),
                read_options: max_age(Duration::ZERO),
                ..Default::default()
            };
            gateway.client.list_participant_conversations(list).await.map(drop)
        }
    }
}

/// The error of that call when Twilio answers so.
async fn answered(gateway: &mut Gateway, face: Face, operation: Operation, mut answer: Value) -> Status {
    answer["match"] = json!({ "api": face.api(), "method": method(face, operation) });
    answer["times"] = json!(1);
    gateway.sandbox.fault(answer).await;
    call(gateway, face, operation).await.unwrap_err()
}

pub fn metadata(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info().unwrap().metadata.get(key).cloned()
}

/// How many requests of this method Twilio got.
pub async fn requests(gateway: &Gateway, method: &str) -> usize {
    let requests = gateway.sandbox.requests().await;
    requests.iter().filter(|request| request.method == method).count()
}

// === The table

/// Which row an answer means: the first one that is about the operation and names the code, else the first that names the
/// status. The contract says it of the table; the rows below `the_contracts_own_words` hold it down.
fn meant(operation: Operation, code: Option<i64>, status: u16) -> &'static Row {
    let about = || TABLE.iter().filter(|row| row.on.includes(operation));
    let by_code = about().find(|row| code.is_some_and(|code| row.twilio_codes.contains(&code)));
    let in_row = |row: &&Row| row.statuses.iter().any(|(first, last)| (*first..=*last).contains(&status));
    by_code.or_else(|| about().find(in_row)).unwrap()
}

fn check(status: &Status, face: Face, row: &Row, code: Option<i64>, http_status: u16) {
    let context = format!("{} {code:?} {http_status}: {status:?}", row.reason.as_str());
    assert_eq!(told(status), (row.code, row.reason.as_str().into()), "{context}");
    assert_eq!(metadata(status, "twilio_code"), code.map(|code| code.to_string()), "{context}");
    assert_eq!(metadata(status, "http_status"), Some(http_status.to_string()), "{context}");
    assert_eq!(metadata(status, "twilio_request_id").as_deref(), Some(REQUEST_ID), "{context}");
    assert_eq!(metadata(status, "api_version").as_deref(), Some(face.api()), "{context}");
    let links = status.get_details_help().map(|help| help.links).unwrap_or_default();
    let expected: Vec<_> =
        code.map(|code| format!("https://www.twilio.com/docs/api/errors/{code}")).into_iter().collect();
    let urls: Vec<_> = links.into_iter().map(|link| link.url).collect();
    assert_eq!(urls, expected, "{context}");

    let resource = status.get_details_resource_info().map(|resource| resource.resource_type);
    let expected = match row.reason.as_str() {
        "CONVERSATION_NOT_FOUND" => Some("participant.v1.Conversation"),
        "PARTICIPANT_NOT_FOUND" | "PARTICIPANT_EXISTS" => Some("participant.v1.Participant"),
        _ => None,
    };
    assert_eq!(resource.as_deref(), expected, "{context}");
    let waits = status.get_details_retry_info().is_some();
    assert_eq!(waits, row.reason.as_str() == "UPSTREAM_THROTTLED", "{context}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap());
    let expected = (row.reason.as_str() == "WRITE_OUTCOME_UNKNOWN").then_some("-1");
    assert_eq!(pushback, expected, "{context}");
    assert!(status.get_details_bad_request().is_none(), "{context}");
}

on_both_versions! {
    async fn every_code_of_the_table_is_told_as_its_row_says(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        for operation in operations(face) {
            for row in TABLE.iter().filter(|row| row.on.includes(operation)) {
                for code in row.twilio_codes {
                    let answer = json!({
                        "status": 400,
                        "code": code,
                        "message": "about alice",
                        "headers": { "twilio-request-id": REQUEST_ID },
                    });
                    let status = answered(&mut gateway, face, operation, answer).await;
                    check(&status, face, meant(operation, Some(*code), 400), Some(*code), 400);
                    assert!(!format!("{status:?}").contains("about alice"));
                }
            }
        }
    }

    async fn every_status_of_the_table_is_told_as_its_row_says(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        for operation in operations(face) {
            for row in TABLE.iter().filter(|row| row.on.includes(operation)) {
                let ends: BTreeSet<u16> = row.statuses.iter().flat_map(|(first, last)| [*first, *last]).collect();
                for http_status in ends {
                    // Without a body, with one that is none of Twilio's, and with a code that no row knows.
                    for (body, code) in [
                        (json!(null), None),
                        (json!("<html>about alice</html>"), None),
                        (json!(r#"{"code":599999,"message":"about alice"}"#), Some(599_999)),
                    ] {
                        let answer = json!({
                            "status": http_status,
                            "body": body,
                            "headers": { "twilio-request-id": REQUEST_ID },
                        });
                        let status = answered(&mut gateway, face, operation, answer).await;
                        check(&status, face, meant(operation, None, http_status), code, http_status);
                        assert!(!format!("{status:?}").contains("alice"));
                    }
                }
            }
        }
    }

    async fn the_contracts_own_words(face) {
        use Code::*;
        use Operation::{Create, Fetch, List, Update};
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        for (operation, http_status, twilio_code, code, reason) in [
            (Fetch, 400, None, InvalidArgument, "UPSTREAM_REJECTED_ARGUMENT"),
            (Create, 404, Some(50100), InvalidArgument, "UPSTREAM_REJECTED_ARGUMENT"),
            (Create, 404, Some(50109), InvalidArgument, "UPSTREAM_REJECTED_ARGUMENT"),
            (Create, 404, Some(50200), InvalidArgument, "UPSTREAM_REJECTED_ARGUMENT"),
            (Update, 400, Some(50377), FailedPrecondition, "UPSTREAM_STATE"),
            (Update, 400, Some(50385), FailedPrecondition, "UPSTREAM_STATE"),
            (Update, 400, Some(50413), FailedPrecondition, "UPSTREAM_STATE"),
            (Update, 400, Some(50440), FailedPrecondition, "UPSTREAM_STATE"),
            (Update, 400, Some(50441), FailedPrecondition, "UPSTREAM_STATE"),
            (Update, 400, Some(50444), FailedPrecondition, "UPSTREAM_STATE"),
            (Update, 412, None, FailedPrecondition, "UPSTREAM_STATE"),
            (Fetch, 404, Some(50432), NotFound, "PARTICIPANT_NOT_FOUND"),
            (Fetch, 404, Some(20404), NotFound, "PARTICIPANT_NOT_FOUND"),
            (Update, 404, None, NotFound, "PARTICIPANT_NOT_FOUND"),
            (Fetch, 404, Some(50350), NotFound, "CONVERSATION_NOT_FOUND"),
            (List, 404, None, NotFound, "CONVERSATION_NOT_FOUND"),
            (Create, 404, Some(50350), NotFound, "CONVERSATION_NOT_FOUND"),
            (Create, 409, None, AlreadyExists, "PARTICIPANT_EXISTS"),
            (Create, 400, Some(50433), AlreadyExists, "PARTICIPANT_EXISTS"),
            (Create, 400, Some(50416), AlreadyExists, "PARTICIPANT_EXISTS"),
            (Create, 400, Some(50425), AlreadyExists, "PARTICIPANT_EXISTS"),
            (Create, 400, Some(50437), AlreadyExists, "PARTICIPANT_EXISTS"),
            (Create, 400, Some(50438), AlreadyExists, "PARTICIPANT_EXISTS"),
            (Update, 409, None, Aborted, "CONFLICT"),
            (Update, 409, Some(50433), Aborted, "CONFLICT"),
            (Update, 409, Some(50213), Aborted, "CONFLICT"),
            (Create, 409, Some(50391), Aborted, "CONFLICT"),
            (Update, 400, Some(50419), Aborted, "CONFLICT"),
            (Update, 400, Some(50449), Aborted, "CONFLICT"),
            (List, 429, None, ResourceExhausted, "UPSTREAM_THROTTLED"),
            (Create, 429, Some(20429), ResourceExhausted, "UPSTREAM_THROTTLED"),
            (Create, 400, Some(50063), ResourceExhausted, "UPSTREAM_THROTTLED"),
            (Update, 400, Some(50074), ResourceExhausted, "UPSTREAM_THROTTLED"),
            (Create, 400, Some(50417), ResourceExhausted, "UPSTREAM_LIMIT"),
            (Create, 400, Some(50418), ResourceExhausted, "UPSTREAM_LIMIT"),
            (Create, 400, Some(50422), ResourceExhausted, "UPSTREAM_LIMIT"),
            (Fetch, 401, Some(20003), FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED"),
            (Create, 401, None, FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED"),
            // Whatever the code.
            (Create, 401, Some(50433), FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED"),
            (Create, 403, Some(50433), FailedPrecondition, "UPSTREAM_FORBIDDEN"),
            (Fetch, 403, Some(50430), FailedPrecondition, "UPSTREAM_FORBIDDEN"),
            (List, 403, None, FailedPrecondition, "UPSTREAM_FORBIDDEN"),
            (Fetch, 500, Some(20500), Unavailable, "UPSTREAM_UNAVAILABLE"),
            (Fetch, 502, None, Unavailable, "UPSTREAM_UNAVAILABLE"),
            (List, 503, Some(20503), Unavailable, "UPSTREAM_UNAVAILABLE"),
            (List, 504, None, Unavailable, "UPSTREAM_UNAVAILABLE"),
            (Create, 500, Some(20500), Unknown, "WRITE_OUTCOME_UNKNOWN"),
            (Create, 504, None, Unknown, "WRITE_OUTCOME_UNKNOWN"),
            (Update, 503, None, Unknown, "WRITE_OUTCOME_UNKNOWN"),
        ] {
            let answer = json!({ "status": http_status, "code": twilio_code });
            let status = answered(&mut gateway, face, operation, answer).await;
            assert_eq!(told(&status), (code, reason.into()), "{operation:?} {http_status} {twilio_code:?}");
        }
    }

    async fn every_error_names_the_request_at_twilio(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        let status = answered(&mut gateway, face, Operation::Fetch, json!({ "status": 404 })).await;
        // The sandbox numbers its requests.
        assert!(metadata(&status, "twilio_request_id").unwrap().starts_with("RQ00000000"));
        // What does not look like one is not handed on.
        let answer = json!({ "status": 404, "headers": { "twilio-request-id": "alice <a@b.c>" } });
        let status = answered(&mut gateway, face, Operation::Fetch, answer).await;
        assert_eq!(metadata(&status, "twilio_request_id"), None);
    }

    async fn who_is_in_the_way_is_named(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        for (told, kind, name) in [
            ("conv_participant_9", "participant.v1.Participant", "conv_participant_9"),
            ("conv_conversation_9", "participant.v1.Conversation", "conv_conversation_9"),
            ("MB00000000000000000000000000000009", "participant.v1.Participant", "MB00000000000000000000000000000009"),
            // An identity is no id of Twilio's, and PII.
            ("alice", "participant.v1.Participant", ""),
            ("+15550100001", "participant.v1.Participant", ""),
        ] {
            let answer = json!({ "status": 409, "headers": { "x-conflicting-resource-id": told } });
            let status = answered(&mut gateway, face, Operation::Create, answer).await;
            let resource = status.get_details_resource_info().unwrap();
            assert_eq!((resource.resource_type.as_str(), resource.resource_name.as_str()), (kind, name));
            assert!(name == told || !format!("{status:?}").contains(told));
        }
    }

    async fn what_the_caller_sent_is_not_said_back(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        let (mut taken, offending) = match face {
            Face::V1 => (face.newcomer(1), "bob"),
            Face::V2 => (face.newcomer(1), "+15550100003"),
        };
        taken.addresses[0].address = offending.into();
        if face == Face::V2 {
            taken.addresses[0].channel = Channel::Voice.into();
        }
        let error = gateway.create(face.create(taken)).await.unwrap_err();
        assert_eq!(told(&error), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        says_nothing_of(&error, offending);
        for (status, code) in [(400, 20001), (404, 50432), (409, 50433), (429, 20429), (500, 20500)] {
            let answer = json!({ "status": status, "code": code, "message": "dana@example.com is at +15550199" });
            let error = answered(&mut gateway, face, Operation::Update, answer).await;
            says_nothing_of(&error, "dana");
            says_nothing_of(&error, "+1555");
        }
        for body in [r#"{"sid":{"dana":1},"id":["dana"]}"#, "dana", r#"{"sid":"dana","id":"dana""#] {
            let error = answered(&mut gateway, face, Operation::Fetch, json!({ "body": body })).await;
            assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
            says_nothing_of(&error, "dana");
        }
    }

    // === Waiting

    async fn a_wait_that_twilio_asks_for_is_handed_on(face) {
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        let hour = Duration::from_secs(3600);
        let second = Duration::from_secs(1);
        let in_ten_minutes = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(600));
        for (header, least, most) in [
            (Some("1"), second, second),
            (Some("0"), Duration::ZERO, Duration::ZERO),
            (Some("120"), second * 120, second * 120),
            (Some(&*in_ten_minutes), second * 570, second * 600),
            (Some("Wed, 21 Oct 2015 07:28:00 GMT"), Duration::ZERO, Duration::ZERO),
            // Bounded.
            (Some("1000000000"), hour, hour),
            (Some("18446744073709551615"), hour, hour),
            // Nothing is told, so that a default holds.
            (Some("-5"), second, second),
            (Some("1e9"), second, second),
            (Some("1.5"), second, second),
            (Some("99999999999999999999"), second, second),
            (Some("soon"), second, second),
            (None, second, second),
        ] {
            for operation in operations(face) {
                let answer = json!({ "status": 429, "code": 20429, "retry_after": header });
                let status = answered(&mut gateway, face, operation, answer).await;
                assert_eq!(told(&status), (Code::ResourceExhausted, "UPSTREAM_THROTTLED".into()));
                let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
                assert!((least..=most).contains(&wait), "{header:?}: {wait:?}");
                assert_eq!(status.metadata().get("grpc-retry-pushback-ms"), None);
            }
        }
        let answer = json!({ "status": 503, "retry_after": "7" });
        let status = answered(&mut gateway, face, Operation::Fetch, answer).await;
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(second * 7));
    }

    async fn a_wait_past_the_deadline_is_not_slept(face) {
        let mut gateway = Gateway::start().await;
        for wait in ["31", "1000000000", "18446744073709551615"] {
            for operation in operations(face) {
                gateway.sandbox.forget_requests().await;
                let answer = json!({ "status": 429, "code": 20429, "retry_after": wait });
                let status = answered(&mut gateway, face, operation, answer).await;
                assert_eq!(told(&status), (Code::ResourceExhausted, "UPSTREAM_THROTTLED".into()));
                assert_eq!(requests(&gateway, method(face, operation)).await, 1, "{wait} {operation:?}");
            }
        }
        // Nor past the caller's.
        gateway.sandbox.forget_requests().await;
        gateway.sandbox.fault(json!({ "status": 429, "retry_after": "5" })).await;
        let mut request = tonic::Request::new(face.get_fresh());
        request.set_timeout(Duration::from_secs(4));
        let error = gateway.client.get_participant(request).await.unwrap_err();
        assert_eq!(told(&error), (Code::ResourceExhausted, "UPSTREAM_THROTTLED".into()));
        assert_eq!(gateway.sandbox.count().await, 1);
    }

    async fn a_wait_that_fits_is_slept_and_the_call_succeeds(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "status": 429, "code": 20429, "retry_after": "1", "times": 1 })).await;
        let began = std::time::Instant::now();
        gateway.get(face.get()).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert_eq!(gateway.sandbox.count().await, 2);
    }

    // === Repeating

    async fn what_was_throttled_is_repeated_for_every_method(face) {
        let mut gateway = Gateway::start().await;
        for operation in operations(face) {
            let (face_and_method, before) = (method(face, operation), gateway.sandbox.requests().await.len());
            gateway.sandbox.fault(json!({
                "match": { "method": face_and_method },
                "status": 429, "code": 20429, "retry_after": "0", "times": 2,
            })).await;
            call(&mut gateway, face, operation).await.unwrap();
            let sent = gateway.sandbox.requests().await.split_off(before);
            let sent = sent.iter().filter(|request| request.method == face_and_method).count();
            assert_eq!(sent, 3, "{operation:?}");
        }
    }

    async fn what_failed_at_twilio_is_repeated_for_reads_and_deletes_only(face) {
        let mut gateway = Gateway::start().await;
        for operation in operations(face) {
            gateway.sandbox.clear_faults().await;
            gateway.sandbox.forget_requests().await;
            let method = method(face, operation);
            gateway.sandbox.fault(json!({ "match": { "method": method }, "status": 503, "times": 2 })).await;
            let result = call(&mut gateway, face, operation).await;
            let sent = requests(&gateway, method).await;
            match operation {
                Operation::Create | Operation::Update => {
                    let error = result.unwrap_err();
                    assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
                    assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
                    assert_eq!(sent, 1, "{operation:?}");
                }
                Operation::Fetch | Operation::List | Operation::Delete | Operation::ListConversations => {
                    result.unwrap();
                    assert_eq!(sent, 3, "{operation:?}");
                }
            }
        }
    }

    async fn repeating_ends(face) {
        let mut gateway = Gateway::start().await;
        gateway.sandbox.fault(json!({ "status": 503 })).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        assert_eq!(gateway.sandbox.count().await, 3);
    }

    async fn nothing_else_is_repeated(face) {
        let mut gateway = Gateway::start().await;
        for status in [400, 401, 403, 404, 409, 412] {
            for operation in operations(face) {
                gateway.sandbox.forget_requests().await;
                answered(&mut gateway, face, operation, json!({ "status": status })).await;
                assert_eq!(requests(&gateway, method(face, operation)).await, 1, "{operation:?} {status}");
            }
        }
    }

    // === Connections that break

    async fn a_read_that_is_cut_is_repeated_and_succeeds(face) {
        let mut gateway = Gateway::start().await;
        for cut in ["before", "mid"] {
            for after in [false, true] {
                for operation in [Operation::Fetch, Operation::List] {
                    gateway.sandbox.forget_requests().await;
                    gateway.sandbox.fault(json!({ "cut": cut, "after": after, "times": 1 })).await;
                    call(&mut gateway, face, operation).await.unwrap();
                    assert_eq!(gateway.sandbox.count().await, 2, "{cut} {after} {operation:?}");
                }
            }
        }
    }

    async fn a_read_that_is_always_cut_is_unavailable(face) {
        let mut gateway = Gateway::start().await;
        for cut in ["before", "mid"] {
            gateway.sandbox.clear_faults().await;
            gateway.sandbox.fault(json!({ "cut": cut })).await;
            let error = gateway.get(face.get_fresh()).await.unwrap_err();
            assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        }
    }

    async fn a_write_that_is_cut_is_sent_once_and_its_outcome_is_unknown(face) {
        let mut gateway = Gateway::start().await;
        for operation in [Operation::Create, Operation::Update] {
            for cut in ["before", "mid"] {
                gateway.sandbox.forget_requests().await;
                let error = answered(&mut gateway, face, operation, json!({ "cut": cut })).await;
                let context = format!("{operation:?} {cut}");
                assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()), "{context}");
                assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1", "{context}");
                assert_eq!(requests(&gateway, method(face, operation)).await, 1, "{context}");
                assert_eq!(metadata(&error, "api_version").as_deref(), Some(face.api()));
            }
        }
    }

    async fn an_attempt_that_takes_too_long_is_given_up(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "300ms")]).await;
        for operation in [Operation::Fetch, Operation::List, Operation::Create, Operation::Update] {
            gateway.sandbox.forget_requests().await;
            gateway.sandbox.clear_faults().await;
            let method = method(face, operation);
            gateway.sandbox.fault(json!({ "match": { "method": method }, "hold": true })).await;
            let error = call(&mut gateway, face, operation).await.unwrap_err();
            let (expected, sent) = match operation {
                Operation::Create | Operation::Update => ((Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()), 1),
                Operation::Fetch | Operation::List | Operation::Delete | Operation::ListConversations => {
                    ((Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()), 3)
                }
            };
            assert_eq!(told(&error), expected);
            assert_eq!(requests(&gateway, method).await, sent, "{operation:?}");
        }
    }

    async fn a_refused_connection_is_unavailable_for_every_method(face) {
        let (address, _socket) = refusing();
        let mut gateway = gateway_asking(address, &[]).await;
        for operation in operations(face) {
            let error = call(&mut gateway, face, operation).await.unwrap_err();
            assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()), "{operation:?}");
            // It was never sent, so that it may be repeated.
            assert_eq!(error.metadata().get("grpc-retry-pushback-ms"), None);
        }
    }

    async fn a_refused_connection_is_tried_again(face) {
        let (address, socket) = refusing();
        let mut gateway = gateway_asking(address, &[("GATEWAY_UPSTREAM_MAX_RETRIES", "10")]).await;
        let mut client = gateway.client.clone();
        let waiting = tokio::spawn(async move { client.create_participant(face.create(face.newcomer(1))).await });
        // That this one fails shows that connections are refused now; the other one has begun before it.
        let mut impatient = tonic::Request::new(face.get());
        impatient.set_timeout(Duration::from_millis(100));
        gateway.client.get_participant(impatient).await.unwrap_err();
        let upstream = Upstream::on(socket.listen(16).unwrap(), |_, _| ok(r#"{"sid":"MB1","id":"MB1"}"#));
        let created = waiting.await.unwrap().unwrap().into_inner().participant.unwrap();
        assert_eq!(created.id, "MB1");
        assert!(upstream.count() >= 1);
    }

    async fn a_deadline_after_a_write_was_sent_says_so(face) {
        let gateway = Gateway::start().await;
        let raw = Raw::connect(&gateway).await;
        let method = method(face, Operation::Update);
        gateway.sandbox.fault(json!({ "match": { "method": method }, "hold": true, "times": 1 })).await;
        let update = frame(&face.update(face.marked("late")));
        let answer = raw.call("UpdateParticipant", &[("grpc-timeout", "1S")], &update).await;
        assert_eq!(told(answer.status()), (Code::DeadlineExceeded, "DEADLINE".into()));
        assert_eq!(answer.status().metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        // A read may be repeated, and so may a write that was not sent.
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "hold": true })).await;
        let get = raw.call("GetParticipant", &[("grpc-timeout", "200m")], &frame(&face.get_fresh())).await;
        let by_identity = UpdateParticipantRequest {
            participant_id: if face == Face::V1 { "bob".into() } else { face.participant().into() },
            ..face.update(face.marked("late"))
        };
        let update = raw.call("UpdateParticipant", &[("grpc-timeout", "200m")], &frame(&by_identity)).await;
        for answer in [get, update] {
            assert_eq!(told(answer.status()), (Code::DeadlineExceeded, "DEADLINE".into()));
            assert_eq!(answer.status().metadata().get("grpc-retry-pushback-ms"), None);
        }
        assert_eq!(requests(&gateway, method).await, 1);
    }

    // === Answers that are none

    async fn a_redirect_is_not_followed(face) {
        let target = Upstream::always(ok("{}")).await;
        let mut gateway = Gateway::with(&[NO_RETRIES]).await;
        for status in [300, 301, 302, 303, 304, 307, 308] {
            for location in [
                Some(format!("http://{}/v1/x", target.address)),
                Some("http://169.254.169.254/latest/meta-data/".into()),
                Some("/v1/Conversations".into()),
                Some("//evil".into()),
                None,
            ] {
                for operation in operations(face) {
                    gateway.sandbox.forget_requests().await;
                    let headers = location.as_ref().map_or(json!({}), |to| json!({ "location": to }));
                    let answer = json!({ "status": status, "headers": headers });
                    let error = answered(&mut gateway, face, operation, answer).await;
                    assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
                    assert_eq!(metadata(&error, "http_status"), Some(status.to_string()));
                    assert_eq!(requests(&gateway, method(face, operation)).await, 1);
                }
            }
        }
        assert_eq!(target.count(), 0);
    }

    async fn an_answer_that_is_not_json_is_a_broken_contract(face) {
        let mut gateway = Gateway::start().await;
        for (operation, status, body) in [
            (Operation::Fetch, 200, "<html>secret</html>"),
            (Operation::Fetch, 200, ""),
            (Operation::Fetch, 200, "null"),
            (Operation::Fetch, 200, "[]"),
            (Operation::Fetch, 200, "[\"secret\"]"),
            (Operation::Fetch, 200, "\"secret\""),
            (Operation::Fetch, 200, r#"{"sid":"secret""#),
            (Operation::Fetch, 200, r#"{"sid":"MB1"} secret"#),
            (Operation::Fetch, 200, "{}{}"),
            (Operation::Fetch, 206, "secret"),
            (Operation::List, 200, "<html>secret</html>"),
            (Operation::List, 200, "[]"),
            (Operation::List, 200, r#"{"participants":"secret","meta":{}}"#),
            (Operation::List, 200, r#"{"participants":[[]],"meta":{}}"#),
            (Operation::List, 200, r#"{"participants":["secret"],"meta":{}}"#),
            (Operation::Create, 201, "<html>secret</html>"),
            (Operation::Create, 201, ""),
            (Operation::Update, 200, "secret"),
        ] {
            gateway.sandbox.forget_requests().await;
            let answer = json!({ "status": status, "body": body });
            let error = answered(&mut gateway, face, operation, answer).await;
            assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()), "{operation:?} {body}");
            says_nothing_of(&error, "secret");
            assert_eq!(requests(&gateway, method(face, operation)).await, 1, "{body}");
        }
    }

    async fn a_read_that_is_answered_without_content_is_a_broken_contract(face) {
        let mut gateway = Gateway::start().await;
        for operation in [Operation::Fetch, Operation::List, Operation::Create, Operation::Update] {
            let error = answered(&mut gateway, face, operation, json!({ "status": 204 })).await;
            assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
        }
    }

    async fn a_value_that_cannot_be_decoded_is_named_and_not_guessed(face) {
        let mut gateway = Gateway::start().await;
        let values: &[(&str, &str)] = match face {
            Face::V1 => &[
                (r#"{"last_read_message_index":"42"}"#, "last_read_message_index"),
                (r#"{"last_read_message_index":4.5}"#, "last_read_message_index"),
                (r#"{"last_read_message_index":99999999999999999999}"#, "last_read_message_index"),
                (r#"{"date_created":"yesterday"}"#, "date_created"),
                (r#"{"date_created":"2015-12-16"}"#, "date_created"),
                (r#"{"date_created":"2015-12-16T22:18:37"}"#, "date_created"),
                (r#"{"date_created":""}"#, "date_created"),
                (r#"{"date_updated":1450304317}"#, "date_updated"),
                (r#"{"date_updated":"2015-02-30T22:18:37Z"}"#, "date_updated"),
                (r#"{"sid":17}"#, "sid"),
                (r#"{"identity":["alice"]}"#, "identity"),
                (r#"{"attributes":17}"#, "attributes"),
                (r#"{"attributes":[]}"#, "attributes"),
                (r#"{"attributes":true}"#, "attributes"),
                (r#"{"messaging_binding":"sms"}"#, "messaging_binding"),
                (r#"{"messaging_binding":{"address":5}}"#, "messaging_binding.address"),
                (r#"{"last_read_timestamp":5}"#, "last_read_timestamp"),
            ],
            Face::V2 => &[
                (r#"{"id":17}"#, "id"),
                (r#"{"name":{}}"#, "name"),
                (r#"{"type":1}"#, "type"),
                (r#"{"createdAt":5}"#, "createdAt"),
                (r#"{"createdAt":"2009-07-06"}"#, "createdAt"),
                (r#"{"updatedAt":"soon"}"#, "updatedAt"),
                (r#"{"addresses":{}}"#, "addresses"),
                (r#"{"addresses":"x"}"#, "addresses"),
                (r#"{"addresses":[{"channel":7}]}"#, "addresses[0].channel"),
                (r#"{"addresses":[{},{"channelId":[]}]}"#, "addresses[1].channelId"),
            ],
        };
        for (body, key) in values {
            let error = answered(&mut gateway, face, Operation::Fetch, json!({ "body": body })).await;
            assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()), "{body}");
            assert!(error.message().ends_with(&format!(": {key}")), "{body}: {}", error.message());
            let page = format!(r#"{{"meta":{{}},"participants":[{{}},{body}]}}"#);
            let error = answered(&mut gateway, face, Operation::List, json!({ "body": page })).await;
            let key = format!(": participants[1].{key}");
            assert!(error.message().ends_with(&key), "{body}: {}", error.message());
        }
    }

    async fn a_body_over_the_bound_is_refused(face) {
        let mut gateway = Gateway::with(&[("GATEWAY_UPSTREAM_MAX_RESPONSE_BYTES", "1024")]).await;
        let long = json!({ "sid": "x".repeat(1024) }).to_string();
        for operation in [Operation::Fetch, Operation::Create, Operation::Update] {
            let error = answered(&mut gateway, face, operation, json!({ "body": long })).await;
            assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
            assert!(error.message().contains("1024 bytes"), "{}", error.message());
        }
        // It does not matter how an error's body ends.
        let answer = json!({ "status": 404, "body": long });
        let error = answered(&mut gateway, face, Operation::Fetch, answer).await;
        assert!(matches!(error.code(), Code::NotFound | Code::Internal), "{error:?}");
        let short = json!({ "sid": "x".repeat(900) }).to_string();
        gateway.sandbox.fault(json!({ "times": 1, "body": short })).await;
        gateway.get(face.get_fresh()).await.unwrap();
    }

    async fn a_body_without_end_is_refused(face) {
        let mut chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..64 {
            chunks.extend_from_slice(b"1000\r\n");
            chunks.extend(std::iter::repeat_n(b' ', 0x1000));
            chunks.extend_from_slice(b"\r\n");
        }
        let upstream = Upstream::always(chunks).await;
        let bound = [("GATEWAY_UPSTREAM_MAX_RESPONSE_BYTES", "100000")];
        let mut gateway = gateway_asking(upstream.address, &bound).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
        assert_eq!(upstream.count(), 1);
    }

    async fn an_encoded_body_is_not_decoded(face) {
        // gzip of nothing: the gateway asks for no encoding, and a bomb finds nobody to unpack it.
        let empty = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let upstream = Upstream::answering(move |_, head| {
            assert!(!head.to_ascii_lowercase().contains("accept-encoding"), "{head}");
            http("200 OK", "content-encoding: gzip\r\n", &empty)
        })
        .await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
    }

    async fn a_wrong_length_is_a_cut_or_a_broken_body(face) {
        // Longer than what comes: a cut, which is repeated.
        let long = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 99\r\n\r\n{}".to_vec();
        let upstream = Upstream::answering(move |number, _| if number == 0 { long.clone() } else { ok("{}") }).await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        gateway.get(face.get()).await.unwrap();
        assert_eq!(upstream.count(), 2);
        // Shorter: half a body.
        let short = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{\"sid\":\"MB1\"}".to_vec();
        let upstream = Upstream::always(short).await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        let error = gateway.get(face.get()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
    }

    async fn what_is_not_http_is_a_connection_that_broke(face) {
        for bytes in ["connection: close", "SSH-2.0-x\r\nconnection: close\r\n\r\n", "HTTP/1.1 x\r\nconnection: close\r\n\r\n"] {
            let upstream = Upstream::always(bytes).await;
            let mut gateway = gateway_asking(upstream.address, &[NO_RETRIES]).await;
            let error = gateway.get(face.get()).await.unwrap_err();
            assert_eq!(told(&error), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()), "{bytes:?}");
            let error = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
            assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()), "{bytes:?}");
        }
    }

    async fn interim_answers_are_skipped(face) {
        let mut flood = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(200);
        flood.extend(ok("{}"));
        let upstream = Upstream::always(flood).await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        gateway.get(face.get()).await.unwrap();
    }

    // === Pages

    async fn a_page_that_leads_to_itself_ends_the_stream(face) {
        let mut gateway = Gateway::start().await;
        let link = json!("https://conversations.twilio.com/v1/x?PageSize=50&Page=1&PageToken=same");
        let body = json!({ "participants": [{}], "meta": { "next_page_url": link, "nextToken": "same" } });
        gateway.sandbox.fault(json!({ "match": { "method": "GET" }, "body": body.to_string() })).await;
        let (participants, end) = gateway.stream(stream(face)).await;
        let error = end.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
        assert_eq!(metadata(&error, "api_version").as_deref(), Some(face.api()));
        // The first page, and at most the second.
        assert!((1..=2).contains(&participants.len()), "{}", participants.len());
        assert_eq!(gateway.sandbox.count().await, 2);
    }

    async fn a_failure_ends_the_stream_after_what_came_before_it(face) {
        let upstream = Upstream::answering(|number, _| match number {
            0 => ok(&json!({
                "participants": [{}, {}],
                "meta": { "next_page_url": "/?Page=1&PageToken=a", "nextToken": "a" },
            })
            .to_string()),
            _ => http("503 Service Unavailable", "", b""),
        })
        .await;
        let mut gateway = gateway_asking(upstream.address, &[NO_RETRIES]).await;
        let (participants, end) = gateway.stream(stream(face)).await;
        assert_eq!(participants.len(), 2);
        assert_eq!(told(&end.unwrap_err()), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
    }
}

fn stream(face: Face) -> StreamParticipantsRequest {
    StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 0 }
}

fn says_nothing_of(status: &Status, private: &str) {
    let told = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
    assert!(!told.contains(private), "{told}");
}

#[tokio::test]
async fn a_delete_that_is_cut_after_it_took_effect_succeeds() {
    let mut gateway = Gateway::start().await;
    for cut in ["before", "mid"] {
        gateway.sandbox.forget_requests().await;
        let fault = json!({ "match": { "method": "DELETE" }, "after": true, "cut": cut, "times": 1 });
        gateway.sandbox.fault(fault).await;
        let delete = DeleteParticipantRequest {
            participant_id: if cut == "before" { "alice" } else { "bob" }.into(),
            ..Face::V1.delete()
        };
        gateway.delete(delete).await.unwrap();
        assert_eq!(requests(&gateway, "DELETE").await, 2);
    }
    // It is not there any more, and nobody else's doing hides it.
    let error = gateway.delete(Face::V1.delete()).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
}

#[tokio::test]
async fn a_delete_that_was_never_processed_and_finds_nothing_is_not_found() {
    let mut gateway = Gateway::start().await;
    let delete = DeleteParticipantRequest {
        participant_id: Face::V1.missing_participant().into(),
        ..Face::V1.delete()
    };
    // Throttled is not processed: the participant was not there before.
    let fault = json!({ "match": { "method": "DELETE" }, "status": 429, "retry_after": "0", "times": 1 });
    gateway.sandbox.fault(fault).await;
    let error = gateway.delete(delete).await.unwrap_err();
    assert_eq!(told(&error), (Code::NotFound, "PARTICIPANT_NOT_FOUND".into()));
    assert_eq!(requests(&gateway, "DELETE").await, 2);
}

#[tokio::test]
async fn v2_has_no_delete() {
    let mut gateway = Gateway::start().await;
    let error = gateway.delete(Face::V2.delete()).await.unwrap_err();
    assert_eq!(told(&error), (Code::FailedPrecondition, "OPERATION_NOT_SUPPORTED_BY_UPSTREAM".into()));
    assert_eq!(metadata(&error, "api_version").as_deref(), Some("v2"));
    assert_eq!(gateway.sandbox.count().await, 0);
}

#[tokio::test]
async fn a_link_to_anywhere_gives_its_token_and_no_request() {
    let evil = Upstream::always(ok("{}")).await;
    let mut gateway = Gateway::start().await;
    let port = evil.address.port();
    for host in [
        format!("http://127.0.0.1:{port}"),
        format!("https://127.0.0.1:{port}"),
        format!("http://user:password@127.0.0.1:{port}"),
        format!("//127.0.0.1:{port}"),
        format!("\\\\127.0.0.1:{port}"),
        format!("http://0x7f.1:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
        "../../v2/Services".into(),
        "file:///etc/passwd".into(),
        "http://169.254.169.254".into(),
        String::new(),
    ] {
        let link = format!("{host}/v1/Services?PageSize=50&Page=1&PageToken=PA%2F..%26Page%3D7&x=y");
        let body = json!({ "participants": [], "meta": { "page": 0, "next_page_url": link } });
        gateway.sandbox.fault(json!({ "times": 2, "body": body.to_string() })).await;
        let fresh = ListParticipantsRequest { read_options: max_age(Duration::ZERO), ..Face::V1.list() };
        let page = gateway.list(fresh.clone()).await.unwrap();
        assert_ne!(page.next_page_token, "", "{link}");
        let next = ListParticipantsRequest { page_token: page.next_page_token, ..fresh };
        gateway.list(next).await.unwrap();
        let sent = gateway.sandbox.requests().await.pop().unwrap();
        assert_eq!(
            sent.path,
            format!("/v1/Conversations/{}/Participants", Face::V1.conversation().conversation_id)
        );
        assert_eq!(sent.query, "PageSize=50&Page=1&PageToken=PA%2F..%26Page%3D7");
    }
    assert_eq!(evil.count(), 0);
}

#[tokio::test]
async fn a_link_that_leads_nowhere_is_a_broken_contract() {
    let mut gateway = Gateway::start().await;
    for link in ["x", "https://conversations.twilio.com/v1/x", "?", "?PageSize=50", "?Page=-1", "?Page=..%2F"]
    {
        let body = json!({ "participants": [], "meta": { "next_page_url": link } });
        gateway.sandbox.fault(json!({ "times": 1, "body": body.to_string() })).await;
        let error = gateway.list(Face::V1.list()).await.unwrap_err();
        assert_eq!(told(&error), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()), "{link}");
        assert!(error.message().ends_with(": meta.next_page_url"), "{}", error.message());
    }
}

#[tokio::test]
async fn pages_that_do_not_end_end_the_stream() {
    for (pages, requests) in [(2, 3), (usize::MAX, 10_000)] {
        // A ring of two, in which no page names itself; then ever new pages.
        let upstream = Upstream::answering(move |number, _| {
            ok(&format!(r#"{{"participants":[],"meta":{{"nextToken":"t{}"}}}}"#, number % pages))
        })
        .await;
        let mut gateway = gateway_asking(upstream.address, &[]).await;
        let (participants, end) = gateway.stream(stream(Face::V2)).await;
        assert_eq!(participants.len(), 0);
        assert_eq!(told(&end.unwrap_err()), (Code::Internal, "UPSTREAM_CONTRACT_BROKEN".into()));
        assert_eq!(upstream.count(), requests);
    }
}
