//! The response stream of WatchParticipants: events, and heartbeats where there are none.

use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::try_unfold;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::status;
use crate::participants::{Error, Position, Told, Watch};
use crate::proto::watch_participants_response::Message;
use crate::proto::{Heartbeat, WatchParticipantsResponse};

/// What is left of the stream.
struct Answers {
    watch: Watch,
    heartbeat: Duration,
    has_begun: bool,
    /// When the next heartbeat is due.
    due: Instant,
    deadline: Instant,
}

/// The stream begins with a heartbeat and ends with its first error; dropped, nothing of it is left.
pub(super) fn answers(
    watch: Watch,
    heartbeat: Duration,
    deadline: Instant,
) -> impl Stream<Item = Result<WatchParticipantsResponse, Status>> + Send + 'static {
    let answers = Answers { watch, heartbeat, has_begun: false, due: Instant::now(), deadline };
    try_unfold(answers, |mut answers| async move {
        let answer = answers.next().await.map_err(|error| status::of_watch(&error))?;
        Ok(Some((answer, answers)))
    })
}

impl Answers {
    async fn next(&mut self) -> Result<WatchParticipantsResponse, Error> {
        // Also where there are events already: with the first message a watcher knows that it misses nothing from here on.
        if !std::mem::replace(&mut self.has_begun, true) {
            self.due = Instant::now() + self.heartbeat;
            return Ok(self.heartbeat());
        }
        let told = timeout_at(self.due.min(self.deadline), self.watch.next()).await;
        self.due = Instant::now() + self.heartbeat;
        match told {
            Ok(told) => {
                let Told { position, event } = told?;
                Ok(answer(Message::Event(event.event.clone()), position))
            }
            Err(_) if Instant::now() >= self.deadline => Err(Error::Deadline { sent: false }),
            Err(_) => Ok(self.heartbeat()),
        }
    }

    fn heartbeat(&self) -> WatchParticipantsResponse {
        answer(Message::Heartbeat(Heartbeat {}), self.watch.place())
    }
}

fn answer(message: Message, place: Position) -> WatchParticipantsResponse {
    WatchParticipantsResponse { message: Some(message), resume_token: place.to_string() }
}
