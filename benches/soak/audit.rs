//! The end: does the gateway tell what Twilio holds, and does Twilio hold what was written, once?

use std::collections::HashMap;
use std::time::Instant;

use participant_gateway::proto::{GetParticipantRequest, ListParticipantsRequest};
use serde_json::Value;
use tonic::Status;
use url::form_urlencoded;

use crate::calls::Client;
use crate::model::{Conversation, Face, Told};
use crate::processes::Twilio;
use crate::tally::Tally;
use crate::weather::Windows;

/// The creates that reached Twilio, whatever became of them.
#[derive(Default)]
pub(crate) struct Posts {
    by_key: HashMap<String, Vec<Instant>>,
    total: usize,
    /// Requests that had left the journal before they were looked at.
    pub(crate) missed: usize,
}

impl Posts {
    /// Reads on in the sandbox's journal, which keeps the last 1000 requests.
    pub(crate) async fn read_on(&mut self, twilio: &Twilio) {
        let journal = twilio.get("requests").await;
        let total = journal["total"].as_u64().unwrap_or_default() as usize;
        let last = journal["last"].as_array().map(Vec::as_slice).unwrap_or_default();
        let new = total - self.total;
        self.missed += new.saturating_sub(last.len());
        self.total = total;
        for entry in &last[last.len().saturating_sub(new)..] {
            if let Some(key) = created(entry) {
                self.by_key.entry(key).or_default().push(Instant::now());
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// A create is sent once, unless Twilio has said that it did not process it.
    pub(crate) fn judge(&self, tally: &Tally, windows: &Windows) {
        let is_excused = |times: &[Instant]| {
            windows.iter().any(|(from, to)| times.iter().any(|at| from <= at && at <= to))
        };
        for (key, times) in &self.by_key {
            if times.len() > 1 && !is_excused(times) {
                tally.wrong("journal", &format!("the create of {key} was sent {} times", times.len()));
            }
        }
    }
}

/// Whom the request would create.
fn created(entry: &Value) -> Option<String> {
    let (path, body) = (entry["path"].as_str()?, entry["body"].as_str()?);
    if entry["method"] != "POST" || !path.ends_with("/Participants") {
        return None;
    }
    if path.starts_with("/v2/") {
        let body: Value = serde_json::from_str(body).ok()?;
        return body["addresses"][0]["address"].as_str().map(str::to_owned);
    }
    let identity = form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "Identity");
    identity.map(|(_, value)| value.into_owned())
}

/// Compares three: what the model knows, what Twilio holds, what the gateway tells of it in each way of reading.
pub(crate) async fn compare(
    tally: &Tally,
    twilio: &Twilio,
    client: &Client,
    conversation: &Conversation,
) -> usize {
    let known = conversation.before();
    let mut held = match conversation.face {
        Face::V1 => held_v1(twilio, &conversation.id).await,
        Face::V2 => held_v2(twilio, &conversation.id).await,
    };
    held.sort();
    for told in &held {
        tally.check("store", conversation.judge(&known, told));
    }
    tally.check("store", conversation.judge_whole(&known, &held));
    for is_fresh in [false, true] {
        match listed(client.clone(), conversation, is_fresh).await {
            Ok(listed) if listed == held => {}
            Ok(listed) => {
                tally.wrong("end", &format!("{} are listed, {} are there", listed.len(), held.len()));
            }
            Err(status) => tally.wrong("end", &format!("the list fails: {status}")),
        }
    }
    for told in &held {
        match got(client.clone(), conversation, &told.id).await {
            Ok(got) if got.as_ref() == Some(told) => {}
            Ok(got) => tally.wrong("end", &format!("{got:?} is told, and {told:?} is there")),
            Err(status) => tally.wrong("end", &format!("{} cannot be read: {status}", told.key)),
        }
    }
    held.len()
}

async fn listed(
    mut client: Client,
    conversation: &Conversation,
    is_fresh: bool,
) -> Result<Vec<Told>, Status> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListParticipantsRequest {
            conversation: conversation.reference(),
            page_size: 30,
            page_token,
            read_options: crate::reads::read_options(is_fresh),
        };
        let answer = client.list_participants(request).await?.into_inner();
        let read = |one| Told::read(conversation.face, &conversation.id, one).map_err(Status::data_loss);
        for participant in &answer.participants {
            all.push(read(participant)?);
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            all.sort();
            return Ok(all);
        }
    }
}

async fn got(mut client: Client, conversation: &Conversation, id: &str) -> Result<Option<Told>, Status> {
    let request = GetParticipantRequest {
        conversation: conversation.reference(),
        participant_id: id.to_owned(),
        read_options: None,
    };
    let answer = client.get_participant(request).await?.into_inner();
    let told = answer.participant.map(|one| Told::read(conversation.face, &conversation.id, &one));
    told.transpose().map_err(Status::data_loss)
}

async fn held_v1(twilio: &Twilio, conversation: &str) -> Vec<Told> {
    let mut page = format!("/v1/Conversations/{conversation}/Participants?PageSize=100");
    let mut all = Vec::new();
    loop {
        let answer = twilio.api(&page).await;
        for one in participants(&answer) {
            let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
            let attributes: Value = serde_json::from_str(&text("attributes")).unwrap_or_default();
            let version = attributes["version"].as_str().and_then(|version| version.parse().ok());
            let version = version.unwrap_or(u32::MAX);
            all.push(Told { key: text("identity"), id: text("sid"), version });
        }
        let Some(next) = answer["meta"]["next_page_url"].as_str() else { return all };
        let (_, path) = next.split_once("/v1/").expect("a URL of v1");
        page = format!("/v1/{path}");
    }
}

async fn held_v2(twilio: &Twilio, conversation: &str) -> Vec<Told> {
    let first = format!("/v2/Conversations/{conversation}/Participants?pageSize=1000");
    let (mut page, mut all) = (first.clone(), Vec::new());
    loop {
        let answer = twilio.api(&page).await;
        for one in participants(&answer) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let name = text(&one["name"]);
            let version = name.split_once('/').and_then(|(_, version)| version.parse().ok());
            let key = text(&one["addresses"][0]["address"]);
            all.push(Told { key, id: text(&one["id"]), version: version.unwrap_or(u32::MAX) });
        }
        let Some(token) = answer["meta"]["nextToken"].as_str() else { return all };
        page = format!("{first}&pageToken={token}");
    }
}

fn participants(answer: &Value) -> &[Value] {
    answer["participants"].as_array().expect("a page of participants")
}
