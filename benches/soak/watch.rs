//! Watchers: one that stays and tells the model what it hears, and some whose connections break.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use participant_gateway::proto::watch_participants_response::Message;
use participant_gateway::proto::{ParticipantEvent, ParticipantEventType, WatchParticipantsRequest};
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::calls::Client;
use crate::model::{Conversation, Told};
use crate::{World, channel};

const PAUSE: Duration = Duration::from_millis(100);

/// A watcher of some conversations, or of all.
struct Watcher<'a> {
    world: &'a World,
    client: Client,
    conversations: Vec<&'a Conversation>,
    token: String,
    ids: HashSet<String>,
}

/// Hears everything, and never anything twice; ends by being cancelled.
pub(crate) async fn stay(world: &World, gateway: SocketAddr) {
    let mut watcher = Watcher::new(world, gateway, Vec::new());
    let mut added = HashMap::new();
    loop {
        let ended = watcher.watch(|event| learn(world, event, &mut added)).await;
        world.tally.count("Watch", &label(&ended));
        world.tally.wrong("Watch", &format!("the stream of a caller that stays ended: {}", label(&ended)));
        sleep(PAUSE).await;
    }
}

/// Watches one conversation over a connection that breaks, and resumes; ends by being cancelled.
pub(crate) async fn come_and_go(world: &World, front: SocketAddr) {
    loop {
        let conversation = &world.conversations[fastrand::usize(..world.conversations.len())];
        let mut watcher = Watcher::new(world, front, vec![conversation]);
        for _ in 0..3 {
            let ended = watcher.watch(|_| {}).await;
            world.tally.count("Watch", &label(&ended));
            if ended.is_err_and(|status| status.code() == Code::OutOfRange) {
                world.tally.wrong("Watch", "a token has expired that was just given");
            }
            sleep(PAUSE).await;
        }
    }
}

fn label(ended: &Result<(), Status>) -> String {
    match ended {
        Ok(()) => "ended".to_owned(),
        Err(status) => format!("{:?}", status.code()),
    }
}

impl<'a> Watcher<'a> {
    fn new(world: &'a World, address: SocketAddr, conversations: Vec<&'a Conversation>) -> Self {
        let client = Client::new(channel(address));
        Self { world, client, conversations, token: String::new(), ids: HashSet::new() }
    }

    /// Until the stream ends.
    async fn watch(&mut self, mut hear: impl FnMut(&ParticipantEvent)) -> Result<(), Status> {
        let request = WatchParticipantsRequest {
            conversations: self.conversations.iter().filter_map(|one| one.reference()).collect(),
            resume_token: self.token.clone(),
            ..Default::default()
        };
        let mut stream = self.client.watch_participants(request).await?.into_inner();
        while let Some(told) = stream.message().await? {
            self.token = told.resume_token;
            let Some(Message::Event(event)) = told.message else { continue };
            self.judge(&event);
            hear(&event);
        }
        Ok(())
    }

    fn judge(&mut self, event: &ParticipantEvent) {
        if !self.ids.insert(event.id.clone()) {
            self.world.tally.wrong("Watch", &format!("{} is told twice", event.id));
        }
        let id = event.participant.as_ref().map(|participant| participant.conversation_id.as_str());
        let is_wanted =
            self.conversations.is_empty() || self.conversations.iter().any(|one| Some(one.id.as_str()) == id);
        if !is_wanted {
            self.world.tally.wrong("Watch", &format!("{} is of another conversation", event.id));
        }
    }
}

/// Who reads after this reads what the event tells, or something newer.
fn learn(world: &World, event: &ParticipantEvent, added: &mut HashMap<String, u32>) {
    let participant = event.participant.clone().unwrap_or_default();
    let of = |conversation: &&Conversation| conversation.id == participant.conversation_id;
    let Some(conversation) = world.conversations.iter().find(of) else {
        return world.tally.wrong("Watch", "an event of no conversation");
    };
    let learned = Told::read(conversation.face, &conversation.id, &participant).and_then(|told| {
        if event.r#type() == ParticipantEventType::Added {
            let times = added.entry(told.key.clone()).or_default();
            *times += 1;
            if *times > 1 {
                return Err(format!("{} was added twice", told.key));
            }
        }
        match event.r#type() {
            ParticipantEventType::Removed => conversation.learn_removal(&told.key),
            _ => conversation.learn(&told)?,
        }
        Ok(())
    });
    world.tally.check("Watch", learned);
    world.heard.fetch_add(1, Ordering::SeqCst);
}
