//! Calls that read.

use participant_gateway::proto::{
    BatchGetParticipantsRequest, GetParticipantRequest, ListParticipantConversationsRequest,
    ListParticipantsRequest, ReadOptions, StreamParticipantsRequest,
};
use tonic::{Code, Response};

use crate::calls::{Caller, Client, Method};
use crate::model::Face;

const GET: Method = Method { name: "Get", is_write: false, judged: Some(Code::NotFound) };
const LIST: Method = read("List");
const BATCH: Method = read("BatchGet");
const STREAM: Method = read("Stream");
/// Failures within an answer.
const BATCH_PART: Method = read("one of a BatchGet");
const CONVERSATIONS: Method = read("ListConversations");

const fn read(name: &'static str) -> Method {
    Method { name, is_write: false, judged: None }
}

impl Caller<'_> {
    pub(crate) async fn get(&self, is_fresh: bool, is_there: bool) {
        if let Some((key, id)) = self.conversation.anybody(is_there) {
            self.get_one(&key, id, is_fresh).await;
        }
    }

    /// v1 reads by identity, too.
    pub(crate) async fn get_by_identity(&self) {
        if let Some((key, id)) = self.conversation.anybody(true) {
            let name = if self.conversation.face == Face::V1 { key.clone() } else { id };
            self.get_one(&key, name, false).await;
        }
    }

    async fn get_one(&self, key: &str, participant_id: String, is_fresh: bool) {
        let request = GetParticipantRequest {
            conversation: self.conversation.reference(),
            participant_id,
            read_options: read_options(is_fresh),
        };
        let before = self.conversation.before_of(key);
        let call = |mut client: Client, request| async move { client.get_participant(request).await };
        match self.send(&GET, request, call).await {
            Ok(answer) => {
                self.count_read(&GET, answer.read_info.as_ref());
                let Some(told) = self.told(&GET, answer.participant.as_ref()) else { return };
                let is_asked = if told.key == key { Ok(()) } else { Err(format!("{told:?}, not {key}")) };
                self.check(&GET, is_asked.and_then(|()| self.conversation.judge(&before, &told)));
            }
            Err(failure) if failure.code == Some(Code::NotFound) => {
                self.check(&GET, self.conversation.judge_missing(&before, key));
            }
            Err(_) => {}
        }
    }

    /// One page with everybody, or the first two of small ones.
    pub(crate) async fn list(&self) {
        let is_whole = fastrand::bool();
        let before = self.conversation.before();
        let mut page_token = String::new();
        for _ in 0..2 {
            let request = ListParticipantsRequest {
                conversation: self.conversation.reference(),
                page_size: if is_whole { 100 } else { 10 },
                page_token,
                read_options: read_options(fastrand::u8(..5) == 0),
            };
            let call = |mut client: Client, request| async move { client.list_participants(request).await };
            let Ok(answer) = self.send(&LIST, request, call).await else { return };
            self.count_read(&LIST, answer.read_info.as_ref());
            let told = self.judge_all(&LIST, &before, &answer.participants);
            page_token = answer.next_page_token;
            if !page_token.is_empty() {
                continue;
            }
            if is_whole {
                self.check(&LIST, self.conversation.judge_whole(&before, &told));
            }
            return;
        }
    }

    pub(crate) async fn batch(&self) {
        let some = (0..fastrand::usize(1..8)).filter_map(|_| self.conversation.anybody(true));
        let asked: Vec<(String, String)> = some.collect();
        if asked.is_empty() {
            return;
        }
        let before = self.conversation.before();
        let request = BatchGetParticipantsRequest {
            conversation: self.conversation.reference(),
            participant_ids: asked.iter().map(|(_, id)| id.clone()).collect(),
            read_options: None,
            return_partial_success: true,
        };
        let call = |mut client: Client, request| async move { client.batch_get_participants(request).await };
        let Ok(answer) = self.send(&BATCH, request, call).await else { return };
        self.count(&BATCH, if answer.failed_requests.is_empty() { "OK" } else { "OK in part" });
        self.judge_all(&BATCH, &before, &answer.participants);
        for (index, failure) in &answer.failed_requests {
            let asked = usize::try_from(*index).ok().and_then(|index| asked.get(index));
            match asked {
                None => self.tally.wrong(BATCH.name, "a failure of nobody who was asked for"),
                Some((key, _)) if failure.code == Code::NotFound as i32 => {
                    self.check(&BATCH, self.conversation.judge_missing(&before, key));
                }
                Some(_) => self.count(&BATCH_PART, &failure.reason),
            }
        }
        if answer.participants.len() + answer.failed_requests.len() != asked.len() {
            self.tally.wrong(BATCH.name, "not everybody is answered");
        }
    }

    pub(crate) async fn stream(&self) {
        let before = self.conversation.before();
        let request =
            StreamParticipantsRequest { conversation: self.conversation.reference(), page_size: 20 };
        let call = |mut client: Client, request| async move {
            let mut stream = client.stream_participants(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await? {
                all.extend(message.participant);
            }
            Ok(Response::new(all))
        };
        let Ok(all) = self.send(&STREAM, request, call).await else { return };
        self.count(&STREAM, "OK");
        let told = self.judge_all(&STREAM, &before, &all);
        self.check(&STREAM, self.conversation.judge_whole(&before, &told));
    }

    /// v1's list of somebody's conversations, which is the one.
    pub(crate) async fn conversations(&self) {
        let is_v1 = self.conversation.face == Face::V1;
        let Some((key, id)) = self.conversation.anybody(true).filter(|_| is_v1) else { return };
        let before = self.conversation.before_of(&key);
        let request = ListParticipantConversationsRequest { identity: key.clone(), ..Default::default() };
        let call =
            |mut client: Client, request| async move { client.list_participant_conversations(request).await };
        let Ok(answer) = self.send(&CONVERSATIONS, request, call).await else { return };
        self.count_read(&CONVERSATIONS, answer.read_info.as_ref());
        match answer.conversations.as_slice() {
            [] => self.check(&CONVERSATIONS, self.conversation.judge_missing(&before, &key)),
            [one] if one.participant_id == id && one.conversation_id == self.conversation.id => {}
            _ => self.tally.wrong(CONVERSATIONS.name, &format!("{key} elsewhere")),
        }
    }
}

/// The defaults, or past the cache.
pub(crate) fn read_options(is_fresh: bool) -> Option<ReadOptions> {
    is_fresh.then(|| {
        let mut options = ReadOptions::default();
        options.max_age.get_or_insert_default();
        options
    })
}
