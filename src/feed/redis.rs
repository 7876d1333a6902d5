//! One Redis Stream, or Valkey's, that all replicas write to and read: its order is the order of events everywhere.
//!
//! A session is a connection to read by and one for everything else; they come and go together. Between two sessions
//! nothing waits for Redis: what has to be in the stream fails at once, and notices wait for the next session.

mod entry;
mod lease;
mod reader;
mod requests;
mod settings;

use std::borrow::Cow;
use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Event, NotPublished, Notice, Published};
use crate::telemetry::Metrics;
pub use lease::{Lease, LeaseError};
pub(super) use reader::follow;
pub use requests::{IdentifiedRequest, RequestClaim, RequestTicket};
pub use settings::{BadRedisUrl, RedisSettings, RedisUrl, RedisUrlSource};

/// Redis answers within a millisecond; who takes so long hangs.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many notices wait for Redis. Of more it is not remembered what was written, only that something was.
const MAX_NOTICES: usize = 10_000;
/// So many go to Redis at once.
const NOTICE_BATCH: usize = 100;
/// So long it is remembered at least which events came: Twilio repeats a delivery for four hours.
const SEEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Twilio's ids are far shorter. Of a longer one the key holds a hash.
const LONGEST_SEEN_ID: usize = 128;
const LONGEST_TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// Adds an entry unless its id was seen. The id is noted last: noted first, it would be lost with the entry where there
/// is no memory for that. The stream's own lifetime lets it go where no gateway is left to trim it.
const ADD: &str = r"
    if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1 then return false end
    local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 4))
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    if KEYS[2] then redis.call('SET', KEYS[2], '', 'PX', ARGV[3]) end
    return id";

/// Lets go what is too old, by Redis's own clock. Exactly: what is kept by `~` can be kept for ever.
const TRIM: &str = r"
    local now = redis.call('TIME')
    local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[1]
    redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f', math.max(oldest, 0)))
    redis.call('PEXPIRE', KEYS[1], ARGV[1])";

/// A replica's side of the stream. Cheap to clone.
#[derive(Clone)]
pub(super) struct Redis(Arc<Inner>);

struct Inner {
    settings: RedisSettings,
    /// Tells this replica's notices from those of others.
    replica: String,
    scripts: Scripts,
    /// `None` between two.
    session: Mutex<Option<Session>>,
    /// Since when this replica hears what the others tell, in milliseconds of the system's clock; 0: it does not.
    current_since: Arc<AtomicU64>,
    notices: Mutex<Notices>,
    noticed: Notify,
    sent: Notify,
    metrics: Metrics,
}

/// The connection for everything but reading.
#[derive(Clone)]
struct Session {
    connection: MultiplexedConnection,
    /// Ends the session.
    broken: CancellationToken,
}

struct Scripts {
    add: Script,
    trim: Script,
    locate: Script,
    renew: Script,
    save: Script,
    release: Script,
    claim: Script,
    settle: Script,
    give_back: Script,
}

#[derive(Default)]
struct Notices {
    waiting: HashSet<Notice>,
    /// They may be in the stream, or not: a session that ends here leaves them to the next.
    sending: Vec<Notice>,
}

impl Redis {
    pub(super) fn new(settings: RedisSettings, metrics: Metrics) -> Self {
        metrics.bus_turned(false);
        let scripts = Scripts {
            add: Script::new(ADD),
            trim: Script::new(TRIM),
            locate: Script::new(reader::LOCATE),
            renew: Script::new(lease::RENEW),
            save: Script::new(lease::SAVE),
            release: Script::new(lease::RELEASE),
            claim: Script::new(requests::CLAIM),
            settle: Script::new(requests::SETTLE),
            give_back: Script::new(requests::GIVE_BACK),
        };
        Self(Arc::new(Inner {
            settings,
            replica: Uuid::new_v4().to_string(),
            scripts,
            session: Mutex::default(),
            current_since: Arc::default(),
            notices: Mutex::default(),
            noticed: Notify::new(),
            sent: Notify::new(),
            metrics,
        }))
    }

    pub(super) fn current_since(&self) -> Arc<AtomicU64> {
        self.0.current_since.clone()
    }

    /// Puts the event into the stream; the reader tells it, here as everywhere.
    pub(super) async fn publish(&self, event: &Event) -> Result<Published, NotPublished> {
        let fields = entry::of_event(event);
        let seen = (!event.event.id.is_empty()).then(|| self.seen_key(event));
        let id: Option<String> =
            self.run(&self.add(seen.as_deref(), &fields)).await.map_err(|_| NotPublished)?;
        Ok(if id.is_some() { Published::Told } else { Published::Repeated })
    }

    /// Sends the notice in its turn. While Redis is away it waits, unless it tells of what is so now.
    pub(super) fn notify(&self, notice: Notice) {
        let mut notices = self.notices();
        if notices.waiting.len() >= MAX_NOTICES {
            notices.waiting = HashSet::from([Notice::Everything]);
        }
        notices.waiting.insert(notice);
        self.0.noticed.notify_one();
    }

    /// Puts the notice into the stream.
    pub(super) async fn announce(&self, notice: &Notice) -> Result<(), NotPublished> {
        self.put(&entry::of_notice(&self.0.replica, notice)).await
    }

    /// Puts a gap into the stream; each replica's reader ends its watchers there.
    pub(super) async fn lose(&self) -> Result<(), NotPublished> {
        self.put(&entry::of_gap()).await
    }

    async fn put(&self, fields: &[(&str, Vec<u8>)]) -> Result<(), NotPublished> {
        self.run::<Option<String>>(&self.add(None, fields)).await.map(|_| ()).map_err(|_| NotPublished)
    }

    /// Waits until all notices are sent, for as long as Redis may take.
    pub(super) async fn flush(&self) {
        let all_sent = async {
            while self.session().is_ok() && self.has_notices() {
                self.0.sent.notified().await;
            }
        };
        // What is left is lost with the process, and old by the others' cache lifetimes.
        let _ = timeout(PATIENCE, all_sent).await;
    }

    fn has_notices(&self) -> bool {
        let notices = self.notices();
        !notices.waiting.is_empty() || !notices.sending.is_empty()
    }

    async fn send_notices(&self) -> Result<Infallible, RedisError> {
        loop {
            while let Some(batch) = self.next_notices() {
                for notice in batch {
                    let fields = entry::of_notice(&self.0.replica, &notice);
                    let _: Option<String> = self.run(&self.add(None, &fields)).await?;
                }
                self.notices().sending.clear();
                self.0.sent.notify_one();
            }
            self.0.noticed.notified().await;
        }
    }

    /// What the last session left behind. That a source was alive is no news any more, and would be read as if it were.
    fn take_up_notices(&self) {
        let mut notices = self.notices();
        let unsure = std::mem::take(&mut notices.sending);
        notices.waiting.extend(unsure);
        notices
            .waiting
            .retain(|notice| !matches!(notice, Notice::Delivered { .. } | Notice::Followed { .. }));
    }

    fn next_notices(&self) -> Option<Vec<Notice>> {
        let mut notices = self.notices();
        let batch: Vec<_> = notices.waiting.iter().take(NOTICE_BATCH).cloned().collect();
        for notice in &batch {
            notices.waiting.remove(notice);
        }
        notices.sending.clone_from(&batch);
        (!batch.is_empty()).then_some(batch)
    }

    async fn trim(&self) -> Result<(), RedisError> {
        let mut trim = self.0.scripts.trim.key(self.stream());
        trim.arg(millis(self.0.settings.retention));
        self.run::<Option<()>>(&trim).await.map(|_| ())
    }

    async fn trim_for_ever(&self) -> Result<Infallible, RedisError> {
        loop {
            sleep((self.0.settings.retention / 10).min(LONGEST_TRIM_INTERVAL)).await;
            self.trim().await?;
        }
    }

    fn add(&self, seen: Option<&str>, fields: &[(&str, Vec<u8>)]) -> ScriptInvocation<'_> {
        let mut add = self.0.scripts.add.key(self.stream());
        seen.into_iter().for_each(|seen| {
            add.key(seen);
        });
        let retention = self.0.settings.retention;
        add.arg(millis(retention)).arg(self.0.settings.max_len).arg(millis(SEEN_FOR.max(retention)));
        for (name, value) in fields {
            add.arg(name).arg(value);
        }
        add
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, RedisError> {
        let session = self.session()?;
        session.ended_by(script.invoke_async(&mut session.connection.clone()).await)
    }

    async fn query<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, RedisError> {
        let session = self.session()?;
        session.ended_by(cmd.query_async(&mut session.connection.clone()).await)
    }

    fn session(&self) -> Result<Session, RedisError> {
        let session = self.held_session().clone().filter(|session| !session.broken.is_cancelled());
        session.ok_or_else(|| (ErrorKind::Io, "Redis is away").into())
    }

    async fn begin_session(&self) -> Result<Session, RedisError> {
        let session = Session { connection: self.connect(PATIENCE).await?, broken: CancellationToken::new() };
        self.take_up_notices();
        *self.held_session() = Some(session.clone());
        Ok(session)
    }

    fn end_session(&self) {
        *self.held_session() = None;
        self.set_current(false);
    }

    async fn connect(&self, patience: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(patience));
        let client = Client::open(self.0.settings.url.current()?)?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    fn stream(&self) -> String {
        self.key("events")
    }

    fn seen_key(&self, Event { account, version, event }: &Event) -> String {
        let id = if event.id.len() > LONGEST_SEEN_ID {
            let hash = Sha256::digest(&event.id);
            Cow::Owned(hash.iter().map(|byte| format!("{byte:02x}")).collect())
        } else {
            Cow::Borrowed(event.id.as_str())
        };
        self.key(&format!("seen:{account}:{version}:{id}"))
    }

    /// All keys are of one hash slot: a cluster runs no script over several.
    fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.0.settings.key_prefix)
    }

    fn held_session(&self) -> MutexGuard<'_, Option<Session>> {
        self.0.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notices(&self) -> MutexGuard<'_, Notices> {
        self.0.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_current(&self, is_current: bool) {
        let was_current = self.0.current_since.load(Ordering::SeqCst) != 0;
        if was_current != is_current {
            self.0.current_since.store(if is_current { super::now().max(1) } else { 0 }, Ordering::SeqCst);
            self.0.metrics.bus_turned(is_current);
        }
    }
}

impl Session {
    /// Any failure ends the session: after a failover, what is connected may refuse writes for ever.
    fn ended_by<T>(&self, result: Result<T, RedisError>) -> Result<T, RedisError> {
        if result.is_err() {
            self.broken.cancel();
        }
        result
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redis")
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AccountId, ApiVersion, Segment};

    #[test]
    fn a_new_session_tells_of_writes_but_not_that_a_source_was_alive() {
        let settings = RedisSettings {
            url: RedisUrlSource::Value("redis://localhost".parse().unwrap()),
            key_prefix: "test".into(),
            max_len: 1,
            retention: Duration::from_secs(1),
        };
        let redis = Redis::new(settings, Metrics::new(None).unwrap());
        let account = AccountId::parse("AC00000000000000000000000000000000").unwrap();
        let written = |id: &str| Notice::Written {
            account: account.clone(),
            conversation: Segment::parse(id).unwrap(),
            people: false,
        };
        let of_sources = [
            Notice::Delivered { account: account.clone(), version: ApiVersion::V1 },
            Notice::Followed { behind: Duration::ZERO },
        ];
        let notify =
            |id: &str| of_sources.iter().cloned().chain([written(id)]).for_each(|one| redis.notify(one));
        notify("CH1");
        assert_eq!(redis.next_notices().map(|batch| batch.len()), Some(3), "they are being sent");
        notify("CH2");
        redis.take_up_notices();
        let batch: HashSet<_> = redis.next_notices().unwrap_or_default().into_iter().collect();
        assert_eq!(batch, HashSet::from([written("CH1"), written("CH2")]));
        assert_eq!(redis.next_notices(), None);
    }
}
