//! Requests that carry an id: of all replicas one does each, and the others are told its outcome.
//!
//! A claim says that the request may have been sent, for that is what its owner does next. So nothing is lost on the way
//! that nobody knows of: an owner that dies leaves its claim, and whoever repeats the request learns that it may be done.

use std::time::Duration;

use ::redis::{Script, ScriptInvocation};
use uuid::Uuid;

use super::{Redis, millis};
use crate::ids::{AccountId, RequestId};

/// All times are by Redis's own clock.
pub(super) const CLAIM: &str = r"
    local there = redis.call('HMGET', KEYS[1], 'fingerprint', 'until', 'outcome')
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    if not there[1] then
        local at_work_until = string.format('%.0f', now + ARGV[3])
        redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'owner', ARGV[2], 'until', at_work_until)
        redis.call('PEXPIRE', KEYS[1], ARGV[3] + ARGV[4])
        return {'first', ''}
    end
    if there[1] ~= ARGV[1] then return {'other', ''} end
    if there[3] then return {'settled', there[3]} end
    if now < tonumber(there[2]) then return {'under way', ''} end
    return {'lost', ''}";

/// Also where there is no claim: Redis may have been away then.
pub(super) const SETTLE: &str = r"
    local owner = redis.call('HGET', KEYS[1], 'owner')
    if owner and owner ~= ARGV[2] then return 0 end
    redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'owner', ARGV[2], 'outcome', ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return 1";

pub(super) const GIVE_BACK: &str = r"
    if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 0 end
    return redis.call('DEL', KEYS[1])";

/// A request that carries an id of its caller's choice.
#[derive(Clone, Debug)]
pub struct IdentifiedRequest {
    /// Whose id it is.
    pub account: AccountId,
    /// The id.
    pub id: RequestId,
    /// Tells it from another that comes with the same id.
    pub fingerprint: [u8; 32],
    /// So long a replica may be at work on it. Whoever was not heard of for longer is taken to be gone.
    pub at_work: Duration,
    /// So long its outcome is kept from then on.
    pub kept: Duration,
}

/// What a replica finds that asks for the right to do a request.
pub enum RequestClaim {
    /// It is the first, and does it.
    First(RequestTicket),
    /// Another replica may be at work on it.
    UnderWay,
    /// What another replica settled it with.
    Settled(Vec<u8>),
    /// A replica that is gone may have done it, or not.
    Lost,
    /// The id came with another request before.
    OtherRequest,
}

/// The right to do a request alone. Dropped, what becomes of the request counts as lost.
pub struct RequestTicket {
    /// `None` without a bus.
    held: Option<Held>,
}

struct Held {
    redis: Redis,
    request: IdentifiedRequest,
    owner: String,
}

impl RequestTicket {
    pub(in crate::feed) fn of_one_process() -> Self {
        Self { held: None }
    }

    /// Keeps the outcome for the other replicas, unless Redis is away.
    pub async fn settle(self, outcome: &[u8]) {
        if let Some(held) = &self.held {
            let mut settle = held.script(&held.redis.0.scripts.settle);
            settle.arg(outcome).arg(millis(held.request.kept));
            // If it fails, the claim stays, and nobody does the request again.
            let _ = held.redis.run::<bool>(&settle).await;
        }
    }

    /// Nothing was done: any replica may do it.
    pub async fn release(self) {
        if let Some(held) = &self.held {
            let release = held.script(&held.redis.0.scripts.give_back);
            // If it fails, the request counts as lost: that is safe.
            let _ = held.redis.run::<bool>(&release).await;
        }
    }
}

impl Held {
    fn script<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut script = script.key(self.redis.request_key(&self.request));
        script.arg(&self.request.fingerprint).arg(&self.owner);
        script
    }
}

impl Redis {
    /// While Redis is away everybody is the first.
    pub(in crate::feed) async fn claim(&self, request: IdentifiedRequest) -> RequestClaim {
        let held = Held { redis: self.clone(), owner: Uuid::new_v4().to_string(), request };
        let mut claim = held.script(&self.0.scripts.claim);
        claim.arg(millis(held.request.at_work)).arg(millis(held.request.kept));
        let Ok((found, outcome)) = self.run::<(String, Vec<u8>)>(&claim).await else {
            return RequestClaim::First(RequestTicket { held: Some(held) });
        };
        match found.as_str() {
            "first" => RequestClaim::First(RequestTicket { held: Some(held) }),
            "settled" => RequestClaim::Settled(outcome),
            "under way" => RequestClaim::UnderWay,
            "other" => RequestClaim::OtherRequest,
            _ => RequestClaim::Lost,
        }
    }

    fn request_key(&self, IdentifiedRequest { account, id, .. }: &IdentifiedRequest) -> String {
        self.key(&format!("request:{account}:{id}"))
    }
}
