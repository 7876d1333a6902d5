//! What one replica does for all: a lease tells which, and where it stood can be saved for its successor.

use std::time::Duration;

use ::redis::{Script, ScriptInvocation, cmd};
use uuid::Uuid;

use super::{Redis, millis};

/// So long it is remembered where a source stood.
const SAVED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) const RENEW: &str = r"
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// Saves only for who holds the lease: a replica that was cut off must not set its successor back.
pub(super) const SAVE: &str = r"
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
    return 1";

pub(super) const RELEASE: &str = r"
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])";

/// Why something is not done under a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseError {
    /// Its time was up, or another replica holds it: stop, and ask for it anew.
    Lost,
    /// Redis is away. The lease holds until its time is up; who cannot renew it by then has to stop.
    Away,
}

/// The right to do something alone, for a limited time. Dropped, it ends with its time; released, at once.
#[derive(Debug)]
pub struct Lease {
    /// `None` without a bus: a process alone holds every lease.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    redis: Redis,
    name: String,
    holder: String,
    time: Duration,
}

impl Lease {
    pub(in crate::feed) fn of_one_process() -> Self {
        Self { held: None }
    }

    /// Prolongs it by its whole time, counted from now.
    pub async fn renew(&self) -> Result<(), LeaseError> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let mut renew = held.script(&held.redis.0.scripts.renew);
        renew.arg(millis(held.time));
        held.done(renew).await
    }

    /// Saves where the source of this name stands, for [`Feed::saved`](crate::feed::Feed::saved). Without a bus it is not
    /// saved.
    pub async fn save(&self, source: &str, place: &str) -> Result<(), LeaseError> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let mut save = held.script(&held.redis.0.scripts.save);
        save.key(held.redis.saved_key(source)).arg(place).arg(SAVED_FOR.as_secs());
        held.done(save).await
    }

    /// Gives it back, so that another replica need not wait until its time is up.
    pub async fn release(self) {
        if let Some(held) = &self.held {
            // If it fails, its time ends it.
            let _ = held.done(held.script(&held.redis.0.scripts.release)).await;
        }
    }
}

impl Held {
    fn script<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut script = script.key(self.redis.lease_key(&self.name));
        script.arg(&self.holder);
        script
    }

    async fn done(&self, script: ScriptInvocation<'_>) -> Result<(), LeaseError> {
        match self.redis.run(&script).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(LeaseError::Lost),
            Err(_) => Err(LeaseError::Away),
        }
    }
}

impl Redis {
    pub(in crate::feed) async fn lease(&self, name: &str, time: Duration) -> Result<Lease, LeaseError> {
        let holder = Uuid::new_v4().to_string();
        let mut set = cmd("SET");
        set.arg(self.lease_key(name)).arg(&holder).arg("NX").arg("PX").arg(millis(time));
        let taken: Option<String> = self.query(&set).await.map_err(|_| LeaseError::Away)?;
        taken.ok_or(LeaseError::Lost)?;
        Ok(Lease { held: Some(Held { redis: self.clone(), name: name.to_owned(), holder, time }) })
    }

    pub(in crate::feed) async fn saved(&self, source: &str) -> Result<Option<String>, LeaseError> {
        self.query(cmd("GET").arg(self.saved_key(source))).await.map_err(|_| LeaseError::Away)
    }

    fn lease_key(&self, name: &str) -> String {
        self.key(&format!("lease:{name}"))
    }

    fn saved_key(&self, source: &str) -> String {
        self.key(&format!("saved:{source}"))
    }
}
