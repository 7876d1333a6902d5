//! Follows the stream: what it holds is heard first, so that it is forgotten, and told after that.
//!
//! While the entry that was read last is still in the stream, nothing between it and the next was lost. Where it is gone,
//! something may have been: everything is forgotten, and no watcher resumes from before.

use std::convert::Infallible;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use ::redis::{ErrorKind, RedisError, cmd};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::entry::{self, Entry};
use super::{PATIENCE, Redis, Session};
use crate::feed::{Feed, Heard, Notice, Position, now};

/// So long Redis holds the answer back where there is nothing to tell. It bounds how late a hung one is noticed.
const BLOCK: Duration = Duration::from_secs(1);
/// Who heard nothing for so long was stopped, and what it had not read may have left the stream.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
const BATCH: usize = 256;
/// Entries per request of what is loaded at the start.
const PAGE: usize = 250;
/// From one attempt to connect to the next.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Who held out so long is not flapping.
const STABLE: Duration = Duration::from_secs(10);

/// What became of the entry that was read last, or, for a replica that has read none, what there is. Where all is gone, it
/// leaves a mark: a token from before would else be taken for good by a replica that knows no better.
pub(super) const LOCATE: &str = r"
    local function mark()
        return {'marked', redis.call('XADD', KEYS[1], '*', 'kind', 'gap')}
    end
    if redis.call('EXISTS', KEYS[1]) == 0 then return mark() end
    local info = redis.call('XINFO', 'STREAM', KEYS[1])
    local last
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
    if ARGV[1] == '' then return {'unread', last} end
    if last == ARGV[1] or #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 1 then return {'kept', last} end
    local following = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', 1)
    if following[1] then return {'lost', following[1][1]} end
    return mark()";

struct Reader<'a, H> {
    feed: &'a Feed,
    redis: &'a Redis,
    hear: H,
    /// The entry that was read last.
    read: Option<Position>,
    /// When Redis answered last.
    answered: Instant,
}

/// Follows the stream until the token is cancelled, however often Redis goes away and comes back. What `hear` is told is
/// told to watchers when it returns.
pub(in crate::feed) async fn follow(
    feed: &Feed,
    redis: &Redis,
    hear: impl Fn(Heard<'_>, Duration) + Send + Sync,
    end: CancellationToken,
) {
    if redis.0.settings.url.is_readable_on_the_way() {
        warn!("events travel to Redis readable, and PII with them: rediss:// would hide them");
    }
    let mut reader = Reader { feed, redis, hear, read: None, answered: Instant::now() };
    let (mut pause, mut is_away) = (SHORTEST_PAUSE, false);
    loop {
        let began = Instant::now();
        let error = tokio::select! {
            () = end.cancelled() => return,
            error = reader.session(&mut is_away) => error,
        };
        redis.end_session();
        if !std::mem::replace(&mut is_away, true) {
            warn!(
                "Redis is away ({}): answers are kept as long as without events, request ids by each process alone",
                why(&error)
            );
        }
        pause = if began.elapsed() > STABLE { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::select! {
            () = end.cancelled() => return,
            () = sleep(jittered(pause)) => {}
        }
    }
}

/// Replicas that lost Redis at once should not come back at once.
fn jittered(pause: Duration) -> Duration {
    let percent = 50 + u32::from(Uuid::new_v4().as_bytes()[0]) * 50 / 255;
    pause * percent / 100
}

/// Not the error's own text: Redis repeats in some what it was sent.
fn why(error: &RedisError) -> String {
    error.code().map_or_else(|| error.category().to_owned(), ToOwned::to_owned)
}

impl<H: Fn(Heard<'_>, Duration) + Send + Sync> Reader<'_, H> {
    /// From connecting to the error that ends it.
    async fn session(&mut self, is_away: &mut bool) -> RedisError {
        let ended = async {
            let redis = self.redis;
            let mut connection = redis.connect(BLOCK + PATIENCE).await?;
            let session = redis.begin_session().await?;
            self.find_place(&mut connection).await?;
            while self.read_on(&mut connection, None).await? == BATCH {}
            // It fails where Redis takes no writes, such as after a failover: better before all seems well.
            redis.trim().await?;
            redis.set_current(true);
            if std::mem::take(is_away) {
                info!("Redis is back");
            }
            tokio::try_join!(
                self.read_all(connection),
                redis.send_notices(),
                redis.trim_for_ever(),
                broken(session)
            )
        };
        match ended.await {
            Err(error) => error,
            Ok((never, ..)) => match never {},
        }
    }

    async fn read_all(&mut self, mut connection: MultiplexedConnection) -> Result<Infallible, RedisError> {
        loop {
            self.read_on(&mut connection, Some(BLOCK)).await?;
        }
    }

    /// Where to read on from.
    async fn find_place(&mut self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let mut locate = self.redis.0.scripts.locate.key(self.redis.stream());
        locate.arg(self.read.map(|read| read.to_string()).unwrap_or_default());
        let (found, id): (String, String) = locate.invoke_async(connection).await?;
        self.answered = Instant::now();
        let place = match found.as_str() {
            "kept" => return Ok(()),
            "unread" => return self.load(connection, &id).await,
            "lost" => entry::position(&id)?.before(),
            _ => entry::position(&id)?,
        };
        if self.read.is_some() {
            warn!("what Redis held was lost in part: everything is forgotten");
        }
        self.forget_everything();
        self.feed.restart(place, Vec::new());
        self.read = Some(place);
        Ok(())
    }

    /// Takes over what was told before this replica began, so that tokens from then resume.
    async fn load(&mut self, connection: &mut MultiplexedConnection, last: &str) -> Result<(), RedisError> {
        // Since it began to serve, nobody told this replica of writes.
        self.forget_everything();
        let newest_first = self.tail(connection, last).await?;
        let last = entry::position(last)?;
        let oldest = newest_first.last().map(|oldest| entry::position(&oldest.id)).transpose()?;
        let (mut after, mut events) = (oldest.map_or(last, Position::before), Vec::new());
        for entry in newest_first.iter().rev() {
            let (position, entry) = entry::read(entry)?;
            match entry {
                Entry::Event(event) => events.push((position, event)),
                // Only who verified a delivery can say that a source is alive: an event may come from a broken one.
                Entry::Notice {
                    notice: notice @ (Notice::Delivered { .. } | Notice::Followed { .. }),
                    ..
                } => (self.hear)(Heard::Notice(&notice), age(position)),
                Entry::Gap => (after, events) = (position, Vec::new()),
                Entry::Notice { .. } | Entry::Unknown => {}
            }
        }
        self.feed.restart(after, events);
        self.read = Some(last);
        Ok(())
    }

    /// As many of the last entries as the feed keeps, in pages: in one answer they could be too many for Redis's patience.
    async fn tail(
        &self,
        connection: &mut MultiplexedConnection,
        last: &str,
    ) -> Result<Vec<StreamId>, RedisError> {
        let mut newest_first = Vec::<StreamId>::new();
        let (capacity, mut bytes) = (self.feed.capacity(), 0);
        let mut until = last.to_owned();
        loop {
            let wanted = PAGE.min(capacity.events - newest_first.len());
            let mut range = cmd("XREVRANGE");
            range.arg(self.redis.stream()).arg(&until).arg("-").arg("COUNT").arg(wanted);
            let page: StreamRangeReply = range.query_async(connection).await?;
            let is_last = page.ids.len() < PAGE;
            bytes += page.ids.iter().map(entry::size).sum::<usize>();
            newest_first.extend(page.ids);
            let is_full = newest_first.len() >= capacity.events || bytes as u64 >= capacity.bytes;
            match newest_first.last() {
                Some(oldest) if !is_last && !is_full => {
                    until = format!("({}", oldest.id);
                }
                _ => return Ok(newest_first),
            }
        }
    }

    /// Reads a batch, and tells how many entries it had.
    async fn read_on(
        &mut self,
        connection: &mut MultiplexedConnection,
        block: Option<Duration>,
    ) -> Result<usize, RedisError> {
        let mut read = cmd("XREAD");
        read.arg("COUNT").arg(BATCH);
        if let Some(block) = block {
            read.arg("BLOCK").arg(super::millis(block));
        }
        read.arg("STREAMS").arg(self.redis.stream()).arg(self.read.unwrap_or_default().to_string());
        let reply: Option<StreamReadReply> = read.query_async(connection).await?;
        // Before any of it is applied: the next session looks for a gap from the entry that was read last.
        let silence = std::mem::replace(&mut self.answered, Instant::now()).elapsed();
        if silence > LONGEST_SILENCE {
            return Err((ErrorKind::Io, "it was not read for too long").into());
        }
        let entries: Vec<_> =
            reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect();
        if entries.len() == BATCH && !self.misses_nothing(connection).await? {
            return Err((ErrorKind::Io, "it was not read fast enough").into());
        }
        for entry in &entries {
            let position = self.apply(entry)?;
            self.read = Some(position);
            self.redis.0.metrics.bus_lagged(age(position));
        }
        Ok(entries.len())
    }

    /// Whether nothing after the entry that was read last has left the stream. It is asked of a reader that is a batch behind:
    /// the stream keeps more than that.
    async fn misses_nothing(&self, connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
        let mut range = cmd("XRANGE");
        range.arg(self.redis.stream()).arg("-").arg("+").arg("COUNT").arg(1);
        let oldest: StreamRangeReply = range.query_async(connection).await?;
        let oldest = oldest.ids.first().map(|oldest| entry::position(&oldest.id)).transpose()?;
        // After a loss the last place stands before the oldest entry, and no entry there.
        Ok(oldest.is_some_and(|oldest| oldest <= self.read.unwrap_or_default().next()))
    }

    /// Forgets first, then tells.
    fn apply(&self, entry: &StreamId) -> Result<Position, RedisError> {
        let (position, entry) = entry::read(entry)?;
        match entry {
            Entry::Event(event) => {
                (self.hear)(Heard::Event(&event), age(position));
                self.feed.tell(position, event);
            }
            Entry::Notice { from, .. } if from == self.redis.0.replica => {}
            Entry::Notice { notice, .. } => (self.hear)(Heard::Notice(&notice), age(position)),
            Entry::Gap => {
                self.forget_everything();
                self.feed.restart(position, Vec::new());
            }
            Entry::Unknown => self.forget_everything(),
        }
        Ok(position)
    }

    fn forget_everything(&self) {
        (self.hear)(Heard::Notice(&Notice::Everything), Duration::ZERO);
    }
}

async fn broken(session: Session) -> Result<Infallible, RedisError> {
    session.broken.cancelled().await;
    Err((ErrorKind::Io, "a command failed").into())
}

/// By two clocks, Redis's and this one.
fn age(position: Position) -> Duration {
    Duration::from_millis(now().saturating_sub(position.epoch))
}
