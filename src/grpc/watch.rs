//! The response stream of WatchParticipants: events, and heartbeats where there are none.

use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::try_unfold;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::permit::{Watched, shown_event};
use super::status;
use crate::participants::{Error, Position, Told, Watch};
use crate::proto::watch_participants_response::Message;
use crate::proto::{Heartbeat, WatchParticipantsResponse};

/// What is left of the stream.
struct Answers {
    watch: Watch,
    watched: Watched,
    heartbeat: Duration,
    has_begun: bool,
    /// When the next heartbeat is due.
    due: Instant,
    deadline: Instant,
}

/// The stream begins with a heartbeat and ends with its first error; dropped, nothing of it is left.
pub(super) fn answers(
    watch: Watch,
    watched: Watched,
    heartbeat: Duration,
    deadline: Instant,
) -> impl Stream<Item = Result<WatchParticipantsResponse, Status>> + Send + 'static {
    let answers = Answers { watch, watched, heartbeat, has_begun: false, due: Instant::now(), deadline };
    try_unfold(answers, |mut answers| async move {
        let answer = answers.next().await?;
        Ok(Some((answer, answers)))
    })
}

impl Answers {
    async fn next(&mut self) -> Result<WatchParticipantsResponse, Status> {
        // Also where there are events already: with the first message a watcher knows that it misses nothing from here on.
        if !std::mem::replace(&mut self.has_begun, true) {
            return Ok(self.heartbeat());
        }
        loop {
            let told = tokio::select! {
                // Who may no longer watch is not told one event more.
                biased;
                changed = self.watched.changed() => {
                    changed?;
                    continue;
                }
                told = timeout_at(self.due.min(self.deadline), self.watch.next()) => told,
            };
            match told {
                Ok(told) => {
                    let Told { position, event } = told.map_err(|error| status::of_watch(&error))?;
                    let Some(sight) = self.watched.sight(event.account.as_str()) else { continue };
                    self.due = Instant::now() + self.heartbeat;
                    return Ok(answer(Message::Event(shown_event(event.event.clone(), sight)), position));
                }
                Err(_) if Instant::now() >= self.deadline => {
                    return Err(status::of_watch(&Error::Deadline { sent: false }));
                }
                Err(_) => return Ok(self.heartbeat()),
            }
        }
    }

    fn heartbeat(&mut self) -> WatchParticipantsResponse {
        self.due = Instant::now() + self.heartbeat;
        answer(Message::Heartbeat(Heartbeat {}), self.watch.place())
    }
}

fn answer(message: Message, place: Position) -> WatchParticipantsResponse {
    WatchParticipantsResponse { message: Some(message), resume_token: place.to_string() }
}
