//! What Twilio's events mean here: forget first, then tell. A watcher who reacts with a read must not be told the old value.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::writes::people;
use super::{Error, Event, Participants, Position, Published, Told};
use crate::feed::{Heard, Lease, LeaseError, Missed, NotPublished, Notice, Subscription, Topic};
use crate::ids::{AccountId, ApiVersion, Segment};
use crate::proto::ParticipantEventType;
use crate::telemetry::Metrics;

impl Participants {
    /// Forgets what the event makes stale, then tells the watchers: those of all replicas, where they share a bus. It fails
    /// where the event could not be handed on, and then has to come again.
    pub async fn apply(&self, event: Event) -> Result<Published, NotPublished> {
        self.forget_after(&event);
        self.feed.publish(event).await
    }

    /// What stands in the stream that the replicas share. This one's own events come again here, to be forgotten again:
    /// that costs a load, and needs no look at whose they are.
    pub(super) fn hear(&self, heard: Heard<'_>, age: Duration) {
        match heard {
            Heard::Event(event) => self.forget_after(event),
            Heard::Notice(Notice::Written { account, conversation, people }) => {
                self.cache.forget(account, conversation);
                if *people {
                    self.cache.forget_people(account);
                }
            }
            Heard::Notice(Notice::Delivered { account, version }) => {
                self.freshness.delivered(account, *version, age);
            }
            Heard::Notice(Notice::Followed { behind }) => {
                self.freshness.followed(*behind, age);
            }
            Heard::Notice(Notice::Everything) => self.cache.forget_all(),
        }
    }

    fn forget_after(&self, event: &Event) {
        let Event { account, version, event } = event;
        let participant = event.participant.as_ref();
        match participant.and_then(|participant| Segment::parse(&participant.conversation_id).ok()) {
            Some(conversation) => self.cache.forget(account, &conversation),
            // Nobody can tell which conversation it is about.
            None => self.cache.forget_all(),
        }
        if *version == ApiVersion::V2 {
            return;
        }
        let people: Vec<_> = participant.iter().flat_map(|one| &one.addresses).flat_map(people).collect();
        // An update does not tell who it was before.
        if people.is_empty() || event.r#type() == ParticipantEventType::Updated {
            self.cache.forget_people(account);
        }
        for person in &people {
            self.cache.forget_person(account, person);
        }
    }

    /// Notes that a source of events is alive, here and at the other replicas.
    pub fn delivered(&self, account: &AccountId, version: ApiVersion) {
        if self.freshness.delivered(account, version, Duration::ZERO) {
            self.feed.notify(Notice::Delivered { account: account.clone(), version });
        }
    }

    /// Notes that the events of v1, of all accounts, are applied up to `behind` ago, here and at the other replicas.
    pub fn followed(&self, behind: Duration) {
        if self.freshness.followed(behind, Duration::ZERO) {
            self.feed.notify(Notice::Followed { behind });
        }
    }

    /// Lets the metrics tell how far the stream is behind.
    pub fn observe_followed(&self, metrics: &Metrics) {
        let freshness = self.freshness.clone();
        metrics.observe_kinesis(move || freshness.behind());
    }

    /// Forgets everything cached, here and at the other replicas, for an event that nobody can read.
    pub async fn forget_everything(&self) -> Result<(), NotPublished> {
        self.cache.forget_all();
        self.feed.announce(&Notice::Everything).await
    }

    /// The same, for events that nobody tells any more. Watchers, who would not be told of them, end.
    pub async fn lose_events(&self) -> Result<(), NotPublished> {
        self.cache.forget_all();
        self.feed.lose().await
    }

    /// The right to read a source for all replicas, [as](crate::feed::Feed::lease) the feed gives it.
    pub async fn lease(&self, source: &str, time: Duration) -> Result<Lease, LeaseError> {
        self.feed.lease(source, time).await
    }

    /// Where the source stood that was read last under such a lease.
    pub async fn saved(&self, source: &str) -> Result<Option<String>, LeaseError> {
        self.feed.saved(source).await
    }

    /// A stream of the events that pass the filter, after the place or from now on.
    pub fn watch(&self, filter: WatchFilter, after: Option<Position>) -> Result<Watch, Error> {
        let WatchFilter { conversations, types } = filter;
        let subscription = self.feed.subscribe_to(conversations, after);
        let subscription = subscription.map_err(|_| Error::ResumeTokenExpired)?;
        Ok(Watch { subscription, types, waiting: VecDeque::new() })
    }
}

/// What a watcher wants to be told.
#[derive(Debug, Default)]
pub struct WatchFilter {
    /// Empty: all.
    pub conversations: HashSet<Topic>,
    /// Empty: all.
    pub types: HashSet<ParticipantEventType>,
}

/// A watcher's stream.
pub struct Watch {
    subscription: Subscription,
    types: HashSet<ParticipantEventType>,
    waiting: VecDeque<Told>,
}

impl Watch {
    /// Where the stream resumes: all that passes up to here was told.
    pub fn place(&self) -> Position {
        let next = self.waiting.front();
        next.map_or_else(|| self.subscription.place(), |next| next.position.before())
    }

    /// Waits for the next event that passes. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Told, Error> {
        loop {
            if let Some(told) = self.waiting.pop_front() {
                return Ok(told);
            }
            let batch = self.subscription.next().await;
            let batch = batch.map_err(|missed| match missed {
                Missed::Lagged => Error::WatchLagged { resume: self.subscription.place() },
                Missed::Gone => Error::ResumeTokenExpired,
            })?;
            let types = &self.types;
            let passes = |told: &Told| types.is_empty() || types.contains(&told.event.event.r#type());
            self.waiting.extend(batch.into_iter().filter(passes));
        }
    }
}
