//! The heart: reads, writes, and what they mean for each other. Here, and nowhere else, the cache and Twilio meet: `reads`
//! go through the cache, and every one of the `writes` and `creates` forgets there what it touches.

mod cached;
mod creates;
mod events;
mod fields;
mod freshness;
mod outcome;
mod page_token;
mod reads;
mod reconcile;
mod stream;
mod turns;
mod writes;

use std::sync::Arc;
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use cached::Encoded;
pub use events::{Watch, WatchFilter};
pub use fields::is_set;
pub use freshness::{Freshness, Graces, Lifetimes};
pub use page_token::{InvalidPageToken, Listed, PageTokens};
pub use reads::Tolerance;
pub use stream::Streamed;

pub use crate::cache::Settings as CacheSettings;
use crate::cache::{self, Aliases, Cache, Outcomes};
use crate::feed::Heard;
pub use crate::feed::{
    BadRedisUrl, Capacity, Event, Feed, Lease, LeaseError, NotPublished, Position, Published, RedisSettings,
    RedisUrl, RedisUrlSource, Told,
};
use crate::ids::Segment;
use crate::proto::{CacheStatus, Participant};
use crate::telemetry::Metrics;
use crate::twilio::{self, Twilio};
pub use crate::twilio::{Create, Cursor, MAX_CONVERSATIONS_PAGE_SIZE, Update, max_page_size};
use cached::Cached;
use turns::Turns;

/// Why a call failed.
#[derive(Clone, Debug)]
pub enum Error {
    /// Twilio's answer, or that there was none. Shared by all calls that waited for the same request.
    Upstream(Arc<twilio::Error>),
    /// The caller's deadline passed; a write that was `sent` goes on and may take effect.
    Deadline {
        /// Whether a write was handed to the upstream client.
        sent: bool,
    },
    /// The API version has no such operation.
    NotSupported,
    /// Twilio's pages do not end.
    EndlessPages,
    /// Events after the caller's resume token are gone.
    ResumeTokenExpired,
    /// The watcher is too slow.
    WatchLagged {
        /// Where it can go on from.
        resume: Position,
    },
    /// The participant is no longer what the caller's etag tells.
    EtagMismatch,
    /// The request id came with another request before.
    RequestIdReused,
    /// A create whose answer was lost found another participant in its place.
    Exists {
        /// Twilio's id of that one.
        id: Option<Segment>,
    },
    /// Nobody could find out what became of a write: what Twilio answered, where whoever has sent it is there to tell.
    OutcomeUnknown(Option<Arc<twilio::Error>>),
    /// A bug of the gateway, such as a task that panicked.
    Bug,
}

impl Error {
    /// Whether a read failed because Twilio was away, or took longer than the caller waits.
    fn is_twilio_away(&self) -> bool {
        match self {
            Self::Upstream(error) => error.is_away(),
            Self::Deadline { .. } => true,
            Self::NotSupported
            | Self::EndlessPages
            | Self::ResumeTokenExpired
            | Self::WatchLagged { .. }
            | Self::EtagMismatch
            | Self::RequestIdReused
            | Self::Exists { .. }
            | Self::OutcomeUnknown(_)
            | Self::Bug => false,
        }
    }

    /// Whether nothing was done, for a reason that passes: a repetition with the same request id may do it.
    fn nothing_was_done(&self) -> bool {
        match self {
            Self::Upstream(error) => error.nothing_was_done(),
            Self::Deadline { sent } => !sent,
            Self::NotSupported
            | Self::EndlessPages
            | Self::ResumeTokenExpired
            | Self::WatchLagged { .. }
            | Self::EtagMismatch
            | Self::RequestIdReused
            | Self::Exists { .. }
            | Self::OutcomeUnknown(_)
            | Self::Bug => false,
        }
    }
}

impl From<twilio::Error> for Error {
    fn from(error: twilio::Error) -> Self {
        Self::Upstream(Arc::new(error))
    }
}

/// A value that was read, and where it came from.
#[derive(Clone, Debug)]
pub struct Read<T> {
    /// The value.
    pub value: T,
    /// How the cache served it.
    pub status: CacheStatus,
    /// When the request to Twilio began that brought it.
    pub fetched: SystemTime,
}

/// A page with sealed tokens; an empty token is no page.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// As Twilio answered it.
    pub content: Arc<twilio::Page<T>>,
    /// The page after this one.
    pub next: String,
    /// The page before this one, where the list can go back.
    pub previous: String,
}

/// The participants of all configured accounts.
#[derive(Clone)]
pub struct Participants {
    twilio: Arc<Twilio>,
    cache: Cache<Cached>,
    aliases: Aliases,
    page_tokens: PageTokens,
    /// What became of creates that came with a request id.
    outcomes: Outcomes<Result<Participant, Error>>,
    turns: Turns,
    feed: Feed,
    freshness: Freshness,
    tasks: TaskTracker,
}

impl Participants {
    /// `tasks` owns loads and writes that outlive their callers.
    pub fn new(
        twilio: Twilio,
        cache: &CacheSettings,
        page_tokens: PageTokens,
        (feed, freshness): (Feed, Freshness),
        tasks: TaskTracker,
        metrics: Metrics,
    ) -> Self {
        let sources = freshness.clone();
        metrics.observe_sources(move || sources.all());
        let traits = cache::Traits { weight: Cached::weight, is_negative: Cached::is_negative };
        Self {
            twilio: Arc::new(twilio),
            // No event tells that a unique name was given to another conversation.
            aliases: Aliases::new(freshness.ages_without_events().fresh(), cache.grace),
            cache: Cache::new(cache, &traits, tasks.clone(), metrics),
            page_tokens,
            outcomes: Outcomes::new(&creates::KEPT_OUTCOMES),
            turns: Turns::default(),
            feed,
            freshness,
            tasks,
        }
    }

    /// Before the end: lets the other replicas know what was written last.
    pub async fn flush(&self) {
        self.feed.flush().await;
    }

    /// Keeps what is remembered within its bounds and true to what other replicas tell, and what the accounts sign in with
    /// up to date, until the token is cancelled.
    pub async fn upkeep(&self, end: CancellationToken) {
        let hear = |heard: Heard<'_>, age| self.hear(heard, age);
        tokio::join!(
            self.cache.upkeep(end.clone()),
            self.aliases.upkeep(end.clone()),
            self.outcomes.upkeep(end.clone()),
            self.feed.follow(hear, end.clone()),
            self.twilio.upkeep(end),
        );
    }
}
