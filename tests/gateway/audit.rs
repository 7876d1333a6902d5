//! What is recorded of writes and of calls that are denied.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, set_default};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, registry};

use crate::harness::*;
use crate::on_both_versions;
use crate::policy::{Policed, everything, rule};

type Record = BTreeMap<String, String>;

/// The records of this thread, on which a test and its gateway run.
struct Records {
    told: Arc<Mutex<Vec<Record>>>,
    _guard: DefaultGuard,
}

struct Listener(Arc<Mutex<Vec<Record>>>);

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "audit" {
            let mut fields = Fields(Record::new());
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields.0);
        }
    }
}

struct Fields(Record);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), format!("{value:?}"));
    }
}

impl Records {
    fn listen() -> Self {
        let told = Arc::default();
        let _guard = set_default(registry().with(Listener(Arc::clone(&told))));
        Self { told, _guard }
    }

    fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    /// The one that there is, without how long its call took.
    #[track_caller]
    fn one(&self) -> Record {
        let mut records = self.take();
        assert_eq!(records.len(), 1, "{records:#?}");
        let mut record = records.remove(0);
        record.remove("duration_ms").unwrap().parse::<u64>().unwrap();
        record
    }

    async fn until_one(&self) -> Record {
        let told = async {
            while self.told.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("it is recorded");
        self.one()
    }
}

fn record(message: &str, caller: u8, method: &str, code: &str, rest: &[(&str, &str)]) -> Record {
    let method = format!("participant.v1.ParticipantService/{method}");
    let caller = format!("address:127.0.0.{caller}");
    let common = [
        ("message", message),
        ("caller", &caller),
        ("rpc.method", &method),
        ("rpc.response.status_code", code),
        ("account", sandbox::ACCOUNT_SID),
    ];
    common.iter().chain(rest).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

on_both_versions! {
    async fn each_write_is_recorded_once_and_no_read(face) {
        let records = Records::listen();
        let policed = Policed::by(&everything(2)).await;
        let mut client = policed.caller(2).await;
        let (conversation, participant) = (face.conversation().conversation_id, face.participant());
        client.get_participant(face.get()).await.unwrap();
        client.list_participants(face.list()).await.unwrap();
        let trial = CreateParticipantRequest { validate_only: true, ..face.create(face.newcomer(1)) };
        client.create_participant(trial).await.unwrap();
        assert_eq!(records.take(), Vec::<Record>::new());

        let created = client.create_participant(face.create(face.newcomer(1))).await.unwrap().into_inner();
        let created = created.participant.unwrap().id;
        let place = [("conversation", conversation.as_str()), ("participant", &created)];
        assert_eq!(records.one(), record("write", 2, "CreateParticipant", "OK", &place));

        client.update_participant(face.update(face.marked("new"))).await.unwrap();
        let place = [("conversation", conversation.as_str()), ("participant", participant)];
        assert_eq!(records.one(), record("write", 2, "UpdateParticipant", "OK", &place));

        let deleted = client.delete_participant(face.delete()).await;
        let deleted_record = records.one();
        let reason = [&place[..], &[("error.type", "OPERATION_NOT_SUPPORTED_BY_UPSTREAM")]].concat();
        let expected = match face {
            Face::V1 => record("write", 2, "DeleteParticipant", "OK", &place),
            Face::V2 => record("write", 2, "DeleteParticipant", "FAILED_PRECONDITION", &reason),
        };
        assert_eq!((deleted.is_ok(), deleted_record), (face == Face::V1, expected));
    }

    async fn a_write_that_fails_is_recorded_with_its_reason(face) {
        let records = Records::listen();
        let policed = Policed::by(&everything(2)).await;
        let mut client = policed.caller(2).await;
        let conversation = face.conversation().conversation_id;
        let (missing, place) = (face.missing_participant(), ("conversation", conversation.as_str()));
        let update = UpdateParticipantRequest { participant_id: missing.into(), ..face.update(face.marked("new")) };
        client.update_participant(update).await.unwrap_err();
        let rest = [place, ("participant", missing), ("error.type", "PARTICIPANT_NOT_FOUND")];
        assert_eq!(records.one(), record("write", 2, "UpdateParticipant", "NOT_FOUND", &rest));

        client.create_participant(face.create(Participant::default())).await.unwrap_err();
        let rest = [place, ("error.type", "INVALID_REQUEST")];
        assert_eq!(records.one(), record("write", 2, "CreateParticipant", "INVALID_ARGUMENT", &rest));
    }

    async fn a_call_that_is_denied_is_recorded(face) {
        let records = Records::listen();
        let policed = Policed::by(&rule(2, "methods = [\"ListParticipants\"]")).await;
        let mut client = policed.caller(2).await;
        let (conversation, participant) = (face.conversation().conversation_id, face.participant());
        let rest = [("error.type", "NOT_ALLOWED"), ("conversation", &conversation), ("participant", participant)];
        client.get_participant(face.get()).await.unwrap_err();
        assert_eq!(records.one(), record("denied", 2, "GetParticipant", "PERMISSION_DENIED", &rest));
        client.update_participant(face.update(face.marked("new"))).await.unwrap_err();
        assert_eq!(records.one(), record("denied", 2, "UpdateParticipant", "PERMISSION_DENIED", &rest));
        client.watch_participants(WatchParticipantsRequest::default()).await.unwrap_err();
        assert_eq!(records.one(), record("denied", 2, "WatchParticipants", "PERMISSION_DENIED", &rest[..1]));
        // Of what follows at once some are left out.
        for _ in 0..50 {
            client.get_participant(face.get()).await.unwrap_err();
        }
        let told = records.take().len();
        assert!((7..50).contains(&told), "{told}");
    }

    /// Its caller learns nothing of it any more, the audit does.
    async fn a_write_whose_caller_has_gone_is_recorded_when_it_ends(face) {
        let records = Records::listen();
        let policed = Policed::by(&everything(2)).await;
        let (mut client, method) = (policed.caller(2).await, if face == Face::V1 { "POST" } else { "PUT" });
        policed.gateway.sandbox.fault(json!({ "match": { "method": method }, "hold": true, "times": 1 })).await;
        let call = tokio::spawn(async move { client.update_participant(face.update(face.marked("new"))).await });
        policed.gateway.sandbox.held(1).await;
        call.abort();
        call.await.unwrap_err();
        policed.gateway.sandbox.release().await;
        let conversation = face.conversation().conversation_id;
        let place = [("conversation", conversation.as_str()), ("participant", face.participant())];
        assert_eq!(records.until_one().await, record("write", 2, "UpdateParticipant", "OK", &place));
    }

    /// Its caller was told that it may still take effect.
    async fn a_write_that_outlives_its_deadline_is_recorded_when_it_ends(face) {
        let records = Records::listen();
        let policed = Policed::by(&everything(2)).await;
        policed.gateway.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true, "times": 1 })).await;
        let mut request = tonic::Request::new(face.create(face.newcomer(3)));
        request.set_timeout(Duration::from_millis(600));
        policed.caller(2).await.create_participant(request).await.unwrap_err();
        assert_eq!(records.take(), Vec::<Record>::new(), "nobody knows yet");
        policed.gateway.sandbox.release().await;
        let told = records.until_one().await;
        let conversation = face.conversation().conversation_id;
        let place = [("conversation", conversation.as_str()), ("participant", told["participant"].as_str())];
        assert_eq!(told, record("write", 2, "CreateParticipant", "OK", &place));
    }

    async fn no_record_holds_pii(face) {
        let records = Records::listen();
        let policed = Policed::by(&[everything(2), rule(3, "methods = [\"ListParticipants\"]")].concat()).await;
        let (mut client, mut other) = (policed.caller(2).await, policed.caller(3).await);
        let planted = "planted-7";
        let named = ConversationRef { api_version: ApiVersion::V1.into(), ..Face::named(planted) };
        let update = UpdateParticipantRequest {
            conversation: Some(named.clone()), participant_id: planted.into(), ..face.update(face.marked(planted))
        };
        let elsewhere = ConversationRef { account_id: planted.into(), service_id: planted.into(), ..named };
        let create = CreateParticipantRequest {
            conversation: Some(elsewhere), request_id: planted.into(), ..face.create(face.marked(planted))
        };
        for client in [&mut client, &mut other] {
            client.update_participant(update.clone()).await.unwrap_err();
            client.create_participant(create.clone()).await.unwrap_err();
        }
        let mut text = String::new();
        let told = records.take();
        assert_eq!(told.len(), 4, "{told:#?}");
        write!(text, "{told:?}").unwrap();
        assert!(!text.contains(planted), "{text}");
    }
}

/// The SID is told by the answer.
#[tokio::test]
async fn a_unique_name_is_recorded_by_its_sid() {
    let records = Records::listen();
    let policed = Policed::by(&everything(2)).await;
    let named = ConversationRef { api_version: ApiVersion::V1.into(), ..Face::named("sandbox") };
    let request =
        UpdateParticipantRequest { conversation: Some(named), ..Face::V1.update(Face::V1.marked("new")) };
    policed.caller(2).await.update_participant(request).await.unwrap();
    let place = [("conversation", sandbox::V1_CONVERSATION), ("participant", Face::V1.participant())];
    assert_eq!(records.one(), record("write", 2, "UpdateParticipant", "OK", &place));
}
