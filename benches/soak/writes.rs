//! Calls that write.

use std::collections::BTreeSet;

use participant_gateway::proto::{
    CreateParticipantRequest, DeleteParticipantRequest, Participant, UpdateParticipantRequest,
};
use serde_json::json;
use tonic::Code;
use uuid::Uuid;

use crate::calls::{Caller, Client, Method};
use crate::model::{End, Face, Presence, Told};
use crate::tally::Failure;

const CREATE: Method = Method { name: "Create", is_write: true, judged: Some(Code::AlreadyExists) };
const UPDATE: Method = Method { name: "Update", is_write: true, judged: Some(Code::NotFound) };
const DELETE: Method = Method { name: "Delete", is_write: false, judged: Some(Code::NotFound) };

impl Caller<'_> {
    /// With a request id the call is repeated, sometimes while the first is under way.
    pub(crate) async fn create(&self) {
        let key = self.conversation.begin_create();
        let has_id = fastrand::bool();
        let request = CreateParticipantRequest {
            conversation: self.conversation.reference(),
            participant: Some(self.conversation.face.participant(&key, 0)),
            request_id: if has_id { Uuid::new_v4().to_string() } else { String::new() },
            ..Default::default()
        };
        let mut results = Vec::new();
        if has_id && fastrand::bool() {
            let (one, other) = (self.create_once(request.clone()), self.create_once(request.clone()));
            let (one, other) = tokio::join!(one, other);
            results.extend([one, other]);
        } else {
            results.push(self.create_once(request.clone()).await);
        }
        if has_id {
            results.push(self.create_once(request).await);
        }
        let end = self.sum_up(&key, &results);
        self.check(&CREATE, self.conversation.end(&key, end));
    }

    /// What the answers to one create say together.
    fn sum_up(&self, key: &str, results: &[Result<Option<Participant>, Failure>]) -> End {
        let made = results.iter().flatten();
        let told = made.filter_map(|participant| self.written(&CREATE, participant.as_ref(), key, 0));
        let ids: BTreeSet<String> = told.map(|told| told.id).collect();
        let failures = || results.iter().filter_map(|result| result.as_ref().err());
        let has = |reason: &str| failures().any(|failure| failure.reason.as_deref() == Some(reason));
        let is_contradiction = ids.len() > 1 || (!ids.is_empty() && has("WRITE_OUTCOME_UNKNOWN"));
        // Nobody else has that name.
        if is_contradiction || has("PARTICIPANT_EXISTS") {
            let labels: Vec<String> = failures().map(Failure::label).collect();
            self.tally.wrong(CREATE.name, &format!("{key}: {ids:?}, and {labels:?}"));
        }
        match ids.into_iter().next() {
            Some(id) => End::Created { id },
            None if failures().all(Failure::is_never_processed) => End::CreateRefused,
            None => End::Unknown,
        }
    }

    async fn create_once(&self, request: CreateParticipantRequest) -> Result<Option<Participant>, Failure> {
        let call = |mut client: Client, request| async move { client.create_participant(request).await };
        let answer = self.send(&CREATE, request, call).await?;
        self.count(&CREATE, "OK");
        Ok(answer.participant)
    }

    pub(crate) async fn update(&self) {
        let Some(Told { key, id, version }) = self.conversation.begin_update() else { return };
        let before = self.conversation.before_of(&key);
        let request = UpdateParticipantRequest {
            conversation: self.conversation.reference(),
            participant_id: id,
            participant: Some(self.conversation.face.update(&key, version)),
            ..Default::default()
        };
        let call = |mut client: Client, request| async move { client.update_participant(request).await };
        let end = match self.send(&UPDATE, request, call).await {
            Ok(answer) => {
                self.count(&UPDATE, "OK");
                self.written(&UPDATE, answer.participant.as_ref(), &key, version);
                End::Updated { version }
            }
            Err(failure) if failure.code == Some(Code::NotFound) => {
                self.check(&UPDATE, self.conversation.judge_missing(&before, &key));
                End::UpdateRefused { version }
            }
            Err(failure) if failure.is_never_processed() => End::UpdateRefused { version },
            Err(_) => End::Unknown,
        };
        self.check(&UPDATE, self.conversation.end(&key, end));
    }

    /// v1 by the gateway. v2 has no such call, Twilio does it by itself: only its event tells.
    pub(crate) async fn remove(&self) {
        let Some((key, participant_id, earlier)) = self.conversation.begin_removal() else { return };
        if self.conversation.face == Face::V2 {
            let removal = json!({"conversation": self.conversation.id, "participant": participant_id});
            self.twilio.post("remove", removal).await;
            self.check(&DELETE, self.conversation.end(&key, End::Unknown));
            return;
        }
        let request = DeleteParticipantRequest {
            conversation: self.conversation.reference(),
            participant_id,
            ..Default::default()
        };
        let call = |mut client: Client, request| async move { client.delete_participant(request).await };
        let end = match self.send(&DELETE, request, call).await {
            Ok(_) => {
                self.count(&DELETE, "OK");
                End::Gone
            }
            Err(failure) if failure.code == Some(Code::NotFound) => {
                if earlier == Presence::There {
                    self.tally.wrong(DELETE.name, &format!("{key} is missing, who is there"));
                }
                End::Gone
            }
            Err(_) => End::Unknown,
        };
        self.check(&DELETE, self.conversation.end(&key, end));
    }

    /// What the answer to a write tells has to be what was written.
    fn written(
        &self,
        method: &Method,
        participant: Option<&Participant>,
        key: &str,
        version: u32,
    ) -> Option<Told> {
        let told = self.told(method, participant)?;
        if told.key != key || told.version != version {
            self.tally.wrong(method.name, &format!("{told:?}, not version {version} of {key}"));
        }
        Some(told)
    }
}
