//! What the sandbox tells of changes: both kinds of event, and all that can happen to them on the way.

use std::collections::HashSet;

use participant_gateway::sandbox::{Account, Sandbox, Settings};
use serde_json::{Value, json};

use super::receiver::{Receiver, Reply};
use super::{ACCOUNT_SID, ALICE, Fake, NOOR, V1_CONVERSATION, V2_CONVERSATION, answer, v1, v1_one, v2};

/// Longer than any test: what has this delay goes when it is flushed.
const UNTIL_FLUSHED: u32 = 600_000;

impl Fake {
    /// A sandbox whose events go to the receiver, in this way.
    async fn telling(receiver: &Receiver, how: Value) -> Fake {
        let fake = Fake::start().await;
        fake.events(json!({"url": receiver.url})).await;
        fake.events(how).await;
        fake
    }

    async fn events(&self, change: Value) -> Value {
        self.control("PUT", "events", change).await
    }

    /// The counts, once nothing is pending.
    async fn idle(&self) -> Value {
        self.control("GET", "events?idle=true", Value::Null).await
    }

    /// The same, after all that waits was sent.
    async fn flush(&self) -> Value {
        self.control("POST", "events/flush", Value::Null).await
    }

    async fn test_event(&self) -> Value {
        self.control("POST", "events/test", Value::Null).await["test_id"].take()
    }
}

/// Counts of which all others are 0.
fn counts(of: &[(&str, u32)]) -> Value {
    let keys = ["emitted", "delivered", "dropped", "lost", "retried", "duplicated", "pending"];
    let mut counts: serde_json::Map<_, _> = keys.map(|key| (key.to_owned(), json!(0))).into_iter().collect();
    counts.extend(of.iter().map(|(key, count)| ((*key).to_owned(), json!(count))));
    Value::Object(counts)
}

/// Takes a text out of the object, which it must have.
#[track_caller]
fn take(object: &mut Value, key: &str) -> String {
    match object.as_object_mut().unwrap().remove(key) {
        Some(Value::String(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

#[track_caller]
fn assert_millis(date: &str) {
    assert!(date.len() == "2025-01-01T00:00:00.000Z".len() && date.ends_with('Z'), "{date}");
}

#[tokio::test]
async fn each_change_of_a_v1_participant_is_one_cloud_event() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({"batch": 1})).await;
    let pair = "Address=whatsapp:+15550100010&ProxyAddress=whatsapp:+15550109010";
    let sid = fake.form(&v1(""), pair).await.ok(201)["sid"].as_str().unwrap().to_owned();
    fake.form(&v1_one(ALICE), r#"Attributes={"role":"driver","seats":3}"#).await.ok(200);
    fake.call("DELETE", &v1_one(&sid)).await.ok(204);
    assert_eq!(fake.idle().await, counts(&[("emitted", 3), ("delivered", 3)]));

    let binding = json!({"Type": "WHATSAPP", "Address": "whatsapp:+15550100010",
                         "ProxyAddress": "whatsapp:+15550109010"});
    let bound = json!({"ParticipantSid": sid, "MessagingBinding": binding, "Attributes": {}});
    let alice = json!({"ParticipantSid": ALICE, "Identity": "alice",
                       "Attributes": {"role": "driver", "seats": "3"}});
    let expected = [
        ("Added", &bound, &["DateCreated"][..]),
        ("Updated", &alice, &["DateCreated", "DateUpdated"]),
        ("Removed", &bound, &["DateCreated", "DateUpdated", "DateRemoved"]),
    ];
    let events = receiver.events();
    assert_eq!(events.len(), expected.len());
    let ids: HashSet<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 3);
    for (mut event, (word, who, dates)) in events.into_iter().zip(expected) {
        let id = take(&mut event, "id");
        let hex = id.strip_prefix("EZ").unwrap();
        assert!(hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_millis(&take(&mut event, "time"));
        let mut data = event.as_object_mut().unwrap().remove("data").unwrap();
        dates.iter().for_each(|date| assert_millis(&take(&mut data, date)));
        let mut whole = json!({"AccountSid": ACCOUNT_SID, "ConversationSid": V1_CONVERSATION,
                               "RoleSid": "RL00000000000000000000000000000001"});
        whole.as_object_mut().unwrap().extend(who.as_object().unwrap().clone());
        assert_eq!(data, whole);
        let participant = who["ParticipantSid"].as_str().unwrap();
        let envelope = json!({
            "specversion": "1.0",
            "type": format!("com.twilio.conversations.participant.{}", word.to_lowercase()),
            "source": v1_one(participant),
            "dataschema": format!("https://events-schemas.twilio.com/Conversations.Participant{word}/2"),
            "datacontenttype": "application/json",
        });
        assert_eq!(event, envelope);
    }
}

#[tokio::test]
async fn each_change_of_a_v2_participant_is_one_status_callback() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({})).await;
    let body = json!({"addresses": [{"channel": "CHAT", "address": "erin"}]});
    let added = fake.json("POST", &v2(""), body).await.ok(201);
    let updated = fake.json("PUT", &v2(&format!("/{NOOR}")), json!({"name": "Noor B"})).await.ok(200);
    let removal = json!({"conversation": V2_CONVERSATION, "participant": added["id"]});
    fake.control("POST", "remove", removal).await;
    fake.get(&v2(&format!("/{}", added["id"].as_str().unwrap()))).await.refused(404, 20404);
    assert_eq!(fake.idle().await, counts(&[("emitted", 3), ("delivered", 3)]));

    let received = receiver.received();
    let expected =
        [("PARTICIPANT_ADDED", &added), ("PARTICIPANT_UPDATED", &updated), ("PARTICIPANT_REMOVED", &added)];
    assert_eq!(received.len(), expected.len());
    let tokens: HashSet<_> = received.iter().map(|one| &one.headers["i-twilio-idempotency-token"]).collect();
    assert_eq!(tokens.len(), 3);
    for (request, (kind, data)) in received.iter().zip(expected) {
        let mut callback = request.verified("sandbox");
        assert!(take(&mut callback, "timestamp").starts_with("20"));
        assert_eq!(callback, json!({"eventType": kind, "data": data}));
    }
}

#[tokio::test]
async fn what_is_refused_or_arranged_is_no_event() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::start().await;
    fake.form(&v1(""), "Identity=unheard").await.ok(201);
    fake.events(json!({"url": receiver.url})).await;
    fake.form(&v1(""), "Identity=alice").await.refused(409, 50433);
    fake.form(&v1_one(ALICE), "Attributes={").await.refused(400, 50304);
    fake.json("POST", &v2(""), json!({})).await.refused(400, 20001);
    fake.get(&v1("")).await.ok(200);
    fake.populate(V1_CONVERSATION, 1).await;
    fake.arrange(json!({"participants": [{"identity": "erin"}]})).await;
    assert_eq!(fake.idle().await, counts(&[]));
    // A request whose answer is lost has taken effect.
    fake.fault(json!({"after": true, "status": 500, "times": 1})).await;
    assert_eq!(fake.form(&v1(""), "Identity=heard").await.status, 500);
    assert_eq!(fake.idle().await, counts(&[("emitted", 1), ("delivered", 1)]));
    assert_eq!(receiver.events()[0]["data"]["Identity"], "heard");
}

#[tokio::test]
async fn a_failed_delivery_is_repeated_as_it_was() {
    let mut receiver = Receiver::start().await;
    let how = json!({"timeout_ms": 200, "first_retry_ms": 1});
    let fake = Fake::telling(&receiver, how).await;
    receiver.plan(&[Reply::Status(503), Reply::Status(429), Reply::Hang]);
    fake.form(&v1(""), "Identity=erin").await.ok(201);
    assert_eq!(fake.idle().await, counts(&[("emitted", 1), ("delivered", 1), ("retried", 3)]));
    let events = receiver.events();
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| *event == events[0]), "{events:?}");

    receiver.plan(&[Reply::Status(500)]);
    fake.json("PUT", &v2(&format!("/{NOOR}")), json!({})).await.ok(200);
    fake.idle().await;
    let received = receiver.received();
    let tokens: Vec<_> = received.iter().map(|one| &one.headers["i-twilio-idempotency-token"]).collect();
    assert!(tokens.len() == 2 && tokens[0] == tokens[1], "{tokens:?}");
}

#[tokio::test]
async fn a_refused_event_is_dropped_and_so_is_one_that_fails_for_too_long() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({"give_up_ms": 0})).await;
    receiver.plan(&[Reply::Status(400)]);
    fake.test_event().await;
    assert_eq!(fake.idle().await, counts(&[("emitted", 1), ("dropped", 1)]));
    receiver.plan(&[Reply::Status(503)]);
    fake.test_event().await;
    assert_eq!(fake.idle().await, counts(&[("emitted", 2), ("dropped", 2)]));
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test]
async fn what_is_due_together_goes_in_batches() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({"batch": 3, "delay_ms": UNTIL_FLUSHED})).await;
    for number in 0..5 {
        fake.form(&v1(""), &format!("Identity=erin-{number}")).await.ok(201);
    }
    fake.json("PUT", &v2(&format!("/{NOOR}")), json!({})).await.ok(200);
    let waiting = fake.control("GET", "events", Value::Null).await;
    assert_eq!(waiting, counts(&[("emitted", 6), ("pending", 6)]));
    assert!(receiver.received().is_empty());
    assert_eq!(fake.flush().await, counts(&[("emitted", 6), ("delivered", 6)]));
    let sizes = receiver.received().into_iter().map(|request| match request.verified("sandbox") {
        Value::Array(events) => events.len(),
        callback => {
            assert_eq!(callback["data"]["id"], NOOR);
            0
        }
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [3, 2, 0]);
}

/// The order in which so many events arrive that meet this.
async fn arrivals(how: Value, number: usize) -> (Vec<usize>, Value) {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({"delay_ms": UNTIL_FLUSHED})).await;
    fake.events(how).await;
    let mut sent = Vec::new();
    for _ in 0..number {
        sent.push(fake.test_event().await);
    }
    let counts = fake.flush().await;
    let place = |event: Value| sent.iter().position(|id| *id == event["data"]["test_id"]).unwrap();
    (receiver.events().into_iter().map(place).collect(), counts)
}

#[tokio::test]
async fn events_are_lost_told_twice_and_overtaken() {
    let (arrived, told) = arrivals(json!({"loss": 1}), 2).await;
    assert_eq!((arrived, told), (vec![], counts(&[("emitted", 2), ("lost", 2)])));
    let (arrived, told) = arrivals(json!({"duplicates": 1}), 2).await;
    assert_eq!(arrived, [0, 0, 1, 1]);
    assert_eq!(told, counts(&[("emitted", 2), ("duplicated", 2), ("delivered", 4)]));
    let (arrived, _) = arrivals(json!({"reorder": 1}), 5).await;
    assert_eq!(arrived, [1, 0, 3, 2, 4]);
    let (arrived, _) = arrivals(json!({"reorder": 1, "duplicates": 1}), 2).await;
    assert_eq!(arrived, [0, 1, 1, 0]);
}

#[tokio::test]
async fn chance_repeats_itself_by_its_seed() {
    let how = |seed: u32| json!({"loss": 0.2, "duplicates": 0.2, "reorder": 0.2, "seed": seed});
    let (arrived, told) = arrivals(how(1), 50).await;
    for count in ["lost", "duplicated", "delivered"] {
        assert!((1..=58).contains(&told[count].as_u64().unwrap()), "{told}");
    }
    assert!(!arrived.is_sorted(), "{arrived:?}");
    assert_eq!(arrivals(how(1), 50).await, (arrived.clone(), told));
    assert_ne!(arrivals(how(2), 50).await.0, arrived);
}

#[tokio::test]
async fn a_test_event_is_like_twilios() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({})).await;
    let test_id = fake.test_event().await;
    fake.idle().await;
    let event = receiver.events().remove(0);
    assert_eq!(event["type"], "com.twilio.eventstreams.test-event");
    assert_eq!(event["dataschema"], "https://events-schemas.twilio.com/EventStreams.TestSink/1.json");
    assert_eq!(event["data"], json!({"test_id": test_id}));
    assert!(uuid::Uuid::parse_str(test_id.as_str().unwrap()).is_ok());
}

#[tokio::test]
async fn the_token_that_is_primary_when_it_is_sent_signs() {
    let mut receiver = Receiver::start().await;
    let fake = Fake::telling(&receiver, json!({"delay_ms": UNTIL_FLUSHED})).await;
    fake.test_event().await;
    fake.credentials(json!({"auth_tokens": ["next", "sandbox"]})).await;
    fake.flush().await;
    let received = receiver.received().remove(0);
    received.verified("next");
    assert!(!received.signed_with("sandbox"));
}

#[tokio::test]
async fn an_accounts_events_are_signed_with_its_own_token() {
    let (mut receiver, other) = (Receiver::start().await, "AC11111111111111111111111111111111");
    let account = Account { sid: other.into(), auth_token: "theirs".into() };
    let fake = Fake::with(Settings { accounts: vec![account], ..Settings::default() }).await;
    let create = async |user: &str, password: &str| {
        let request = fake.client.post(format!("{}{}", fake.base, v1("")));
        let request = request.basic_auth(user, Some(password)).form(&[("Identity", "erin")]);
        answer(request).await.ok(201)
    };
    // Due together, they still go apart.
    fake.events(json!({"url": receiver.url, "delay_ms": UNTIL_FLUSHED})).await;
    create(ACCOUNT_SID, "sandbox").await;
    create(other, "theirs").await;
    fake.flush().await;
    let received = receiver.received();
    assert_eq!(received[0].verified("sandbox")[0]["data"]["AccountSid"], ACCOUNT_SID);
    assert_eq!(received[1].verified("theirs")[0]["data"]["AccountSid"], other);
    assert_eq!(received.len(), 2);

    fake.events(json!({"account": other})).await;
    fake.form(&v1(""), "Identity=frank").await.ok(201);
    assert_eq!(fake.flush().await["emitted"], 2);
    fake.test_event().await;
    fake.flush().await;
    receiver.received()[0].verified("theirs");
}

#[tokio::test]
async fn a_change_of_the_settings_leaves_the_others_and_a_reset_brings_them_back() {
    let mut receiver = Receiver::start().await;
    let sandbox = Sandbox::bind(Settings::default()).await.unwrap();
    sandbox.deliver_events_to(receiver.url.parse().unwrap());
    let fake = Fake::run(sandbox);
    fake.events(json!({"delay_ms": UNTIL_FLUSHED})).await;
    let settings = fake.events(json!({"batch": 2})).await;
    assert_eq!((&settings["delay_ms"], &settings["batch"]), (&json!(UNTIL_FLUSHED), &json!(2)));
    fake.test_event().await;
    fake.events(json!({"url": null})).await;
    assert_eq!(fake.idle().await, counts(&[("emitted", 1), ("dropped", 1)]));
    fake.form(&v1(""), "Identity=erin").await.ok(201);
    assert_eq!(fake.idle().await["emitted"], 1);
    fake.control("POST", "reset", Value::Null).await;
    fake.form(&v1(""), "Identity=erin").await.ok(201);
    assert_eq!(fake.idle().await, counts(&[("emitted", 1), ("delivered", 1)]));
    assert_eq!(receiver.events().len(), 1);
}
