//! Replicas that share one Redis: a real redis-server, which `.ci/redis` provides.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use participant_gateway::app::Stop;
use participant_gateway::feed::{
    Capacity, Event, Feed, Heard, LeaseError, Notice, Published, RedisSettings, RedisUrlSource,
};
use participant_gateway::ids::{AccountId, ApiVersion, Segment};
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use participant_gateway::telemetry::Metrics;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::events::{self, PUBLIC_URL, Watcher};
use crate::harness::*;
use crate::on_both_versions;

/// Runs a body that may take a few rounds of Redis's patience.
macro_rules! with_redis {
    ($(async fn $name:ident() $body:block)*) => {$(
        #[ignore = "needs redis-server: run .ci/redis"]
        #[tokio::test]
        async fn $name() {
            timeout(2 * PATIENCE, async $body).await.expect("the test takes too long");
        }
    )*};
}

mod requests;

/// What is cached is old after hours, so that only a replica's word makes it go.
const LONG: &[(&str, &str)] = &[("GATEWAY_CACHE_TTL", "5h"), ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "5h")];
/// Nothing is cached but where events are known to arrive.
const BY_EVENTS: &[(&str, &str)] = &[("GATEWAY_CACHE_TTL", "5h"), ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "0s")];

/// A redis-server of the test's own, which ends with it.
struct Redis {
    port: u16,
    data: TempDir,
    process: Child,
}

impl Redis {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = TempDir::new().unwrap();
        let process = Self::launch(port, &data);
        Self { port, data, process }
    }

    /// What was acknowledged is on disk.
    fn launch(port: u16, data: &TempDir) -> Child {
        let port = port.to_string();
        let args = ["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"];
        let mut process = Command::new("redis-server")
            .args(args)
            .arg("--dir")
            .arg(data.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is a redis-server: run .ci/redis");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        lines
            .find(|line| line.as_ref().unwrap().contains("Ready to accept"))
            .expect("redis-server starts")
            .unwrap();
        // It must not stop for want of a reader.
        std::thread::spawn(move || lines.for_each(drop));
        process
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = Self::launch(self.port, &self.data);
    }

    fn start_empty(&mut self) {
        self.data = TempDir::new().unwrap();
        self.start_again();
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// What redis-cli prints.
    fn cli(&self, args: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A way to Redis that can be cut.
struct Link {
    address: SocketAddr,
    to: SocketAddr,
    forwarding: JoinHandle<()>,
}

impl Link {
    async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, to, forwarding: tokio::spawn(forward(listener, to)) }
    }

    async fn cut(&mut self) {
        self.forwarding.abort();
        let _ = (&mut self.forwarding).await;
    }

    async fn heal(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.forwarding = tokio::spawn(forward(listener, self.to));
    }
}

/// Cancelled, all its connections end.
async fn forward(listener: TcpListener, to: SocketAddr) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

/// A gateway before this sandbox that shares this Redis.
async fn replica(fake: SocketAddr, redis: SocketAddr, env: &[(&str, &str)]) -> Gateway {
    let (upstream, redis) = (format!("http://{fake}"), format!("redis://{redis}"));
    let account = [
        ("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID),
        ("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN),
        ("GATEWAY_REDIS_URL", redis.as_str()),
        ("GATEWAY_EVENTS_LISTEN", "127.0.0.1:0"),
        ("GATEWAY_EVENTS_PUBLIC_URL", PUBLIC_URL),
    ];
    Gateway::launch(&["--upstream-url", &upstream], &[&account, env].concat(), Some((fake, None))).await
}

async fn current_replica(fake: SocketAddr, redis: SocketAddr, env: &[(&str, &str)]) -> Gateway {
    let gateway = replica(fake, redis, env).await;
    until(async || is_current(&gateway).await).await;
    gateway
}

/// Whether the gateway says that it knows all that is in the stream.
async fn is_current(gateway: &Gateway) -> bool {
    let url = format!("http://{}/metrics", gateway.addresses.admin);
    let metrics = reqwest::get(url).await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("participant_bus_current ")).unwrap();
    line.ends_with(" 1")
}

/// The test's own limit ends it.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    while !is_so().await {
        tokio::task::yield_now().await;
    }
}

/// A replica of which there is only the feed: the test speaks through it.
struct Peer {
    feed: Feed,
    _end: DropGuard,
}

impl Peer {
    async fn of(redis: SocketAddr) -> Self {
        Self::hearing(redis, |_| {}).await
    }

    async fn hearing(redis: SocketAddr, hear: impl Fn(Heard<'_>) + Send + Sync + 'static) -> Self {
        let settings = RedisSettings {
            url: RedisUrlSource::Value(format!("redis://{redis}").parse().unwrap()),
            key_prefix: "participant-gateway".into(),
            max_len: 100_000,
            retention: Duration::from_secs(3600),
        };
        let feed =
            Feed::shared(Capacity { events: 10_000, bytes: 1 << 26 }, settings, Metrics::new(None).unwrap());
        let (following, end) = (feed.clone(), CancellationToken::new());
        let ended = end.clone();
        tokio::spawn(async move { following.follow(|heard, _| hear(heard), ended).await });
        let peer = Self { feed, _end: end.drop_guard() };
        until(async || peer.is_connected().await).await;
        peer
    }

    async fn is_connected(&self) -> bool {
        self.feed.saved("").await.is_ok()
    }

    async fn publish(&self, id: &str) -> Published {
        self.feed.publish(added(id)).await.expect("Redis is there")
    }
}

fn account() -> AccountId {
    AccountId::parse(sandbox::ACCOUNT_SID).unwrap()
}

/// Somebody joined, which nobody here has ever read.
fn added(id: &str) -> Event {
    let participant = Participant {
        id: id.into(),
        conversation_id: "CH00000000000000000000000000000077".into(),
        ..Default::default()
    };
    let event = ParticipantEvent {
        id: id.into(),
        r#type: ParticipantEventType::Added.into(),
        participant: Some(participant),
        ..Default::default()
    };
    Event { account: account(), version: ApiVersion::V1, event }
}

/// A watcher of all that comes after the token.
async fn watch(gateway: &Gateway, token: &str) -> Watcher {
    Watcher::with(gateway, WatchParticipantsRequest { resume_token: token.into(), ..Default::default() })
        .await
}

/// The ids of the next events, each with its token.
async fn take(watcher: &mut Watcher, count: usize) -> Vec<(String, String)> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let (event, token) = watcher.told().await;
        taken.push((event.id, token));
    }
    taken
}

/// Why a token does not resume.
async fn refusal(gateway: &mut Gateway, token: &str) -> (Code, String) {
    let request = WatchParticipantsRequest { resume_token: token.into(), ..Default::default() };
    match gateway.client.watch_participants(request).await {
        Err(status) => told(&status),
        Ok(stream) => told(&stream.into_inner().message().await.expect_err("the token is accepted")),
    }
}

fn expired() -> (Code, String) {
    (Code::OutOfRange, "RESUME_TOKEN_EXPIRED".into())
}

async fn cached(gateway: &mut Gateway, face: Face) {
    until(async || gateway.get(face.get()).await.unwrap().1 == CacheStatus::Hit).await;
}

async fn forgotten(gateway: &mut Gateway, face: Face) -> Participant {
    loop {
        if let (participant, CacheStatus::Miss) = gateway.get(face.get()).await.unwrap() {
            return participant;
        }
    }
}

on_both_versions! {
    #[ignore = "needs redis-server: run .ci/redis"]
    async fn a_write_at_one_replica_makes_all_forget(face) {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut writer = current_replica(fake, redis.address(), LONG).await;
        let mut readers = Vec::new();
        for _ in 0..2 {
            readers.push(current_replica(fake, redis.address(), LONG).await);
        }
        for reader in &mut readers {
            cached(reader, face).await;
        }
        writer.update(face.update(face.marked("new"))).await.unwrap();
        for reader in &mut readers {
            assert_eq!(face.mark(&forgotten(reader, face).await), "new");
        }
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn a_webhook_that_reaches_one_replica_makes_all_forget_and_tell(face) {
        let (mut redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut replicas = Vec::new();
        for _ in 0..3 {
            replicas.push(current_replica(fake, redis.address(), LONG).await);
        }
        let mut watchers = Vec::new();
        for replica in &mut replicas {
            cached(replica, face).await;
            watchers.push(Watcher::of(replica).await);
        }
        let mut elsewhere = Gateway::beside(&replicas[0]).await;
        elsewhere.update(face.update(face.marked("new"))).await.unwrap();
        let event = events::Event::new(face, "EZ1");
        event.deliver(&replicas[1]).await;
        // Twilio sends again what it thinks was lost, and the balancer picks another.
        event.deliver(&replicas[2]).await;
        events::Event::new(face, "EZ2").deliver(&replicas[0]).await;
        for (replica, watcher) in replicas.iter_mut().zip(&mut watchers) {
            assert_eq!(watcher.event().await.id, "EZ1");
            // Who is told of a change reads it.
            assert_eq!(face.mark(&replica.get(face.get()).await.unwrap().0), "new");
            assert_eq!(watcher.event().await.id, "EZ2");
        }

        redis.kill();
        let lost = events::Event::new(face, "EZ3");
        assert_eq!(lost.delivery(sandbox::AUTH_TOKEN).post(&replicas[0]).await, 503);
        // Nobody can read it, so all have to forget everything, and could not be told.
        let mut unreadable = events::Event::new(face, "unreadable").json();
        unreadable["data"] = json!({ "Identity": 5, "name": 5 });
        let unreadable = events::Delivery::new(unreadable.to_string(), sandbox::AUTH_TOKEN);
        assert_eq!(unreadable.post(&replicas[0]).await, 503);
        redis.start_again();
        until(async || lost.delivery(sandbox::AUTH_TOKEN).post(&replicas[1]).await == 200).await;
        for watcher in &mut watchers {
            assert_eq!(watcher.event().await.id, "EZ3");
        }
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn a_write_while_redis_is_away_is_told_on_its_return(face) {
        let (mut redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut writer = current_replica(fake, redis.address(), LONG).await;
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(current_replica(fake, redis.address(), LONG).await);
        }
        for reader in &mut readers {
            cached(reader, face).await;
        }
        redis.kill();
        for gateway in readers.iter().chain([&writer]) {
            until(async || !is_current(gateway).await).await;
        }
        writer.update(face.update(face.marked("new"))).await.unwrap();
        for reader in &mut readers {
            let (old, status) = reader.get(face.get()).await.unwrap();
            assert_eq!((face.mark(&old) == "new", status), (false, CacheStatus::Hit));
        }
        redis.start_again();
        for reader in &mut readers {
            assert_eq!(face.mark(&forgotten(reader, face).await), "new");
        }
        for gateway in readers.iter_mut().chain([&mut writer]) {
            until(async || is_current(gateway).await).await;
            assert_eq!(face.mark(&gateway.get(face.get()).await.unwrap().0), "new");
        }
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn a_delivery_that_comes_again_after_a_restart_is_told_once(face) {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut gateway = current_replica(fake, redis.address(), &[]).await;
        let (_, token) = {
            let mut watcher = watch(&gateway, "").await;
            events::Event::new(face, "EZ0").deliver(&gateway).await;
            take(&mut watcher, 1).await.remove(0)
        };
        let twice = events::Event::new(face, "EZ1");
        twice.deliver(&gateway).await;
        gateway.stop(Stop::Promptly);
        gateway.ended().await.unwrap();

        let gateway = current_replica(fake, redis.address(), &[]).await;
        twice.deliver(&gateway).await;
        events::Event::new(face, "EZ2").deliver(&gateway).await;
        assert_eq!(watch(&gateway, &token).await.ids(2).await, ["EZ1", "EZ2"]);
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn calls_go_on_while_redis_hangs(face) {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut gateway = current_replica(fake, redis.address(), LONG).await;
        let peer = Peer::of(redis.address()).await;
        redis.signal("-STOP");
        gateway.update(face.update(face.marked("new"))).await.unwrap();
        assert_eq!(face.mark(&gateway.get(face.get()).await.unwrap().0), "new");
        assert!(peer.feed.publish(added("lost?")).await.is_err(), "nobody can say that it is in the stream");
        until(async || !is_current(&gateway).await).await;
        redis.signal("-CONT");
        until(async || is_current(&gateway).await).await;
    }
}

with_redis! {
    async fn a_create_makes_all_forget_where_somebody_is() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut writer = current_replica(fake, redis.address(), LONG).await;
        let mut reader = current_replica(fake, redis.address(), LONG).await;
        let request = ListParticipantConversationsRequest { identity: "newcomer-1".into(), ..Default::default() };
        let mut conversations = async || {
            let answer = reader.client.list_participant_conversations(request.clone()).await.unwrap();
            answer.into_inner().conversations.len()
        };
        assert_eq!(conversations().await, 0);
        writer.create(Face::V1.create(Face::V1.newcomer(1))).await.unwrap();
        until(async || conversations().await == 1).await;
    }

    async fn the_last_write_of_a_gateway_that_ends_is_told() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut writer = current_replica(fake, redis.address(), LONG).await;
        let mut reader = current_replica(fake, redis.address(), LONG).await;
        cached(&mut reader, Face::V1).await;
        writer.update(Face::V1.update(Face::V1.marked("last"))).await.unwrap();
        writer.stop(Stop::Promptly);
        writer.ended().await.unwrap();
        assert_eq!(Face::V1.mark(&forgotten(&mut reader, Face::V1).await), "last");
    }

    async fn all_are_told_each_event_once_and_in_one_order() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let one = current_replica(fake, redis.address(), &[]).await;
        let other = current_replica(fake, redis.address(), &[]).await;
        let (mut here, mut there) = (watch(&one, "").await, watch(&other, "").await);
        let (first, second) = (Peer::of(redis.address()).await, Peer::of(redis.address()).await);
        // Both are sent the middle third: Twilio repeats an event to whom it reaches.
        let of = async |peer: &Peer, ids: std::ops::Range<u32>| {
            let mut told = 0;
            for id in ids {
                told += u32::from(peer.publish(&format!("EZ{id}")).await == Published::Told);
            }
            told
        };
        let (told_first, told_second) = tokio::join!(of(&first, 0..200), of(&second, 100..300));
        assert_eq!(told_first + told_second, 300);
        let told = take(&mut here, 300).await;
        assert_eq!(take(&mut there, 300).await, told);
        let ids: std::collections::HashSet<_> = told.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), 300);
        assert_eq!(first.publish("EZ0").await, Published::Repeated);
    }

    async fn a_token_of_one_replica_resumes_at_another_also_at_one_that_began_later() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let one = current_replica(fake, redis.address(), &[]).await;
        let mut other = current_replica(fake, redis.address(), &[]).await;
        let peer = Peer::of(redis.address()).await;
        let mut watcher = watch(&one, "").await;
        for id in ["EZ1", "EZ2", "EZ3"] {
            peer.publish(id).await;
        }
        let told = take(&mut watcher, 3).await;
        let mut late = current_replica(fake, redis.address(), &[]).await;
        for gateway in [&mut other, &mut late] {
            let mut resumed = watch(gateway, &told[0].1).await;
            assert_eq!(take(&mut resumed, 2).await, told[1..]);
        }
        let future = format!("{}-0", u64::MAX);
        assert_eq!(refusal(&mut late, &future).await, expired());
    }

    async fn a_replica_that_was_cut_off_misses_nothing_that_is_still_in_the_stream() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut link = Link::to(redis.address()).await;
        let mut gateway = current_replica(fake, link.address, BY_EVENTS).await;
        let peer = Peer::of(redis.address()).await;
        let mut watcher = watch(&gateway, "").await;
        peer.publish("EZ0").await;
        assert_eq!(watcher.event().await.id, "EZ0");
        // A delivery that reached another replica whole tells this one, too, that events arrive.
        peer.feed.notify(Notice::Delivered { account: account(), version: ApiVersion::V1 });
        cached(&mut gateway, Face::V1).await;

        link.cut().await;
        until(async || !is_current(&gateway).await).await;
        let (_, status) = gateway.get(Face::V1.get()).await.unwrap();
        assert_ne!(status, CacheStatus::Hit, "no event can be relied on");
        assert_eq!(health(&gateway).await, 1, "it is SERVING");
        peer.publish("EZ1").await;
        peer.feed.notify(Notice::Written {
            account: account(),
            conversation: Segment::parse(sandbox::V1_CONVERSATION).unwrap(),
            people: false,
        });
        peer.publish("EZ2").await;
        until(async || redis.cli(&["XRANGE", STREAM, "-", "+"]).contains("written")).await;

        link.heal().await;
        assert_eq!(watcher.ids(2).await, ["EZ1", "EZ2"]);
        cached(&mut gateway, Face::V1).await;
    }

    async fn a_replica_that_begins_later_relies_on_deliveries_and_not_on_events() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let peer = Peer::of(redis.address()).await;
        peer.publish("EZ0").await;
        let mut early = current_replica(fake, redis.address(), BY_EVENTS).await;
        for _ in 0..2 {
            let (_, status) = early.get(Face::V1.get()).await.unwrap();
            assert_ne!(status, CacheStatus::Hit, "the delivery of the event may have failed in part");
        }
        peer.feed.notify(Notice::Delivered { account: account(), version: ApiVersion::V1 });
        until(async || redis.cli(&["XRANGE", STREAM, "-", "+"]).contains("delivered")).await;
        let mut late = current_replica(fake, redis.address(), BY_EVENTS).await;
        cached(&mut late, Face::V1).await;
    }

    async fn a_replica_that_missed_what_is_gone_forgets_everything_and_says_so() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut link = Link::to(redis.address()).await;
        let mut gateway = current_replica(fake, link.address, LONG).await;
        let peer = Peer::of(redis.address()).await;
        let mut watcher = watch(&gateway, "").await;
        peer.publish("EZ0").await;
        let (_, token) = watcher.told().await;
        for face in [Face::V1, Face::V2] {
            cached(&mut gateway, face).await;
        }
        link.cut().await;
        until(async || !is_current(&gateway).await).await;
        for id in ["EZ1", "EZ2"] {
            peer.publish(id).await;
        }
        redis.cli(&["XTRIM", STREAM, "MAXLEN", "1"]);
        link.heal().await;
        for face in [Face::V1, Face::V2] {
            forgotten(&mut gateway, face).await;
        }
        assert_eq!(watcher.end().await, expired());
        assert_eq!(refusal(&mut gateway, &token).await, expired());
    }

    async fn a_replica_that_was_stopped_for_long_looks_for_what_it_missed() {
        let redis = Arc::new(Redis::start());
        let (has_stopped, has_forgotten) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, forgets, bus) = (has_stopped.clone(), has_forgotten.clone(), redis.clone());
        let peer = Peer::hearing(redis.address(), move |heard| match heard {
            Heard::Event(_) => {
                // As a process that is stopped: nothing else runs in this thread meanwhile.
                for _ in 0..2 {
                    bus.cli(&["XADD", STREAM, "*", "kind", "followed", "behind", "1", "from", "another"]);
                }
                bus.cli(&["XTRIM", STREAM, "MAXLEN", "1"]);
                jump(Duration::from_secs(6));
                stopped.store(true, Ordering::SeqCst);
            }
            Heard::Notice(Notice::Everything) => {
                forgets.store(stopped.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            Heard::Notice(_) => {}
        })
        .await;
        let _ = peer.feed.publish(added("EZ1")).await;
        until(async || has_forgotten.load(Ordering::SeqCst)).await;
    }

    async fn a_redis_that_comes_back_without_its_data_makes_all_forget_everything() {
        let (mut redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut one = current_replica(fake, redis.address(), LONG).await;
        let mut other = current_replica(fake, redis.address(), LONG).await;
        let peer = Peer::of(redis.address()).await;
        let mut watcher = watch(&one, "").await;
        peer.publish("EZ0").await;
        let (_, token) = watcher.told().await;
        for gateway in [&mut one, &mut other] {
            cached(gateway, Face::V2).await;
        }
        redis.kill();
        until(async || !is_current(&one).await && !is_current(&other).await).await;
        redis.start_empty();
        for gateway in [&mut one, &mut other] {
            forgotten(gateway, Face::V2).await;
            until(async || is_current(gateway).await).await;
        }
        assert_eq!(watcher.end().await, expired());
        let mut late = current_replica(fake, redis.address(), LONG).await;
        for gateway in [&mut one, &mut other, &mut late] {
            assert_eq!(refusal(gateway, &token).await, expired());
        }
        until(async || peer.is_connected().await).await;
        let mut watcher = watch(&late, "").await;
        peer.publish("EZ1").await;
        assert_eq!(watcher.event().await.id, "EZ1");
    }

    async fn a_redis_that_lost_only_the_end_of_its_data_expires_the_tokens_of_it() {
        let (mut redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut gateway = current_replica(fake, redis.address(), LONG).await;
        let peer = Peer::of(redis.address()).await;
        let mut watcher = watch(&gateway, "").await;
        peer.publish("EZ0").await;
        let kept = take(&mut watcher, 1).await.remove(0).1;
        let copy = TempDir::new().unwrap();
        copy_folder(redis.data.path(), copy.path());
        peer.publish("EZ1").await;
        let lost = take(&mut watcher, 1).await.remove(0).1;
        redis.kill();
        until(async || !is_current(&gateway).await).await;
        redis.data = copy;
        redis.start_again();
        until(async || is_current(&gateway).await).await;
        let mut late = current_replica(fake, redis.address(), LONG).await;
        until(async || peer.is_connected().await).await;
        peer.publish("EZ2").await;
        watch(&late, "").await;
        for token in [&kept, &lost] {
            assert_eq!(refusal(&mut gateway, token).await, expired());
            assert_eq!(refusal(&mut late, token).await, expired());
        }
    }

    async fn a_gateway_that_starts_without_redis_serves_and_finds_it_later() {
        let (mut redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        redis.kill();
        let mut gateway = replica(fake, redis.address(), BY_EVENTS).await;
        gateway.get(Face::V1.get()).await.unwrap();
        assert_eq!(health(&gateway).await, 1, "it is SERVING");
        assert!(!is_current(&gateway).await);
        let mut watcher = watch(&gateway, "").await;
        redis.start_again();
        until(async || is_current(&gateway).await).await;
        Peer::of(redis.address()).await.publish("EZ1").await;
        assert_eq!(watcher.event().await.id, "EZ1");
    }

    async fn a_replica_that_reads_too_slowly_looks_for_what_it_missed() {
        let redis = Arc::new(Redis::start());
        let (is_behind, has_forgotten) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (behind, forgets, bus) = (is_behind.clone(), has_forgotten.clone(), redis.clone());
        let peer = Peer::hearing(redis.address(), move |heard| match heard {
            Heard::Event(_) if !behind.load(Ordering::SeqCst) => {
                // Others write more meanwhile than the stream keeps.
                let add = "for _ = 1, 1001 do redis.call('XADD', KEYS[1], 'MAXLEN', 1000, '*', 'kind', 'followed', 'behind', 1, 'from', 'x') end";
                bus.cli(&["EVAL", add, "1", STREAM]);
                behind.store(true, Ordering::SeqCst);
            }
            Heard::Notice(Notice::Everything) => {
                forgets.store(behind.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            Heard::Event(_) | Heard::Notice(_) => {}
        })
        .await;
        let _ = peer.feed.publish(added("EZ1")).await;
        until(async || has_forgotten.load(Ordering::SeqCst)).await;
        // It goes on after that.
        let current_since = peer.feed.current_since().unwrap();
        until(async || current_since.load(Ordering::SeqCst) != 0).await;
        let mut place = peer.feed.subscribe(None).unwrap();
        peer.publish("EZ2").await;
        assert_eq!(place.next().await.unwrap()[0].event.event.id, "EZ2");
    }

    async fn a_watcher_from_before_the_first_connection_misses_nothing_of_what_others_were_told_since() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut link = Link::to(redis.address()).await;
        link.cut().await;
        let gateway = replica(fake, link.address, &[]).await;
        let peer = Peer::of(redis.address()).await;
        peer.publish("EZ0").await;
        let mut watcher = watch(&gateway, "").await;
        peer.publish("EZ1").await;
        link.heal().await;
        until(async || is_current(&gateway).await).await;
        peer.publish("EZ2").await;
        // Whose clock is right nobody knows, so what came shortly before is told, too.
        assert_eq!(watcher.ids(3).await, ["EZ0", "EZ1", "EZ2"]);
    }

    async fn what_is_too_old_leaves_and_all_leaves_with_the_last_gateway() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        redis.cli(&["XADD", STREAM, "1-1", "kind", "event"]);
        let _gateway = current_replica(fake, redis.address(), &[]).await;
        until(async || redis.cli(&["XRANGE", STREAM, "-", "+"]).is_empty()).await;
        Peer::of(redis.address()).await.publish("EZ1").await;
        let keys = redis.cli(&["KEYS", "*"]);
        assert_eq!(keys.lines().count(), 2, "{keys}");
        for key in keys.lines() {
            let time = if key == STREAM { 3600 } else { 24 * 3600 };
            let left: i64 = redis.cli(&["TTL", key]).parse().unwrap();
            assert!((time - 100..=time).contains(&left), "{key} leaves in {left} s");
        }
    }

    async fn an_event_is_told_once_however_long_its_id_is() {
        let redis = Redis::start();
        let peer = Peer::of(redis.address()).await;
        let mut ids = [127, 128, 129, 10_000].map(|length| "x".repeat(length));
        for id in &ids {
            assert_eq!(peer.publish(id).await, Published::Told);
            assert_eq!(peer.publish(id).await, Published::Repeated);
        }
        ids[3].replace_range(9_999.., "y");
        assert_eq!(peer.publish(&ids[3]).await, Published::Told, "only the end differs");
        let keys = redis.cli(&["KEYS", "*seen*"]);
        assert!(keys.lines().all(|key| key.len() < 256), "{keys}");
    }

    async fn a_write_leaves_nothing_in_redis_that_tells_of_whom() {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut gateway = current_replica(fake, redis.address(), &[]).await;
        gateway.create(Face::V1.create(Face::V1.newcomer(1))).await.unwrap();
        gateway.create(Face::V2.create(Face::V2.newcomer(1))).await.unwrap();
        until(async || redis.cli(&["XRANGE", STREAM, "-", "+"]).matches("written").count() == 2).await;
        let stream = redis.cli(&["XRANGE", STREAM, "-", "+"]);
        assert!(!stream.contains("newcomer") && !stream.contains("+1555"), "{stream}");
        assert_eq!(redis.cli(&["KEYS", "*"]), STREAM);
    }

    async fn a_lease_is_one_replica_s_until_it_ends_or_is_given_back() {
        let redis = Redis::start();
        let (one, other) = (Peer::of(redis.address()).await, Peer::of(redis.address()).await);
        let (one, other) = (&one.feed, &other.feed);
        let hour = Duration::from_secs(3600);
        let lease = one.lease("shard-1", hour).await.unwrap();
        assert_eq!(other.lease("shard-1", hour).await.unwrap_err(), LeaseError::Lost);
        assert!(other.lease("shard-2", hour).await.is_ok());
        lease.renew().await.unwrap();
        assert_eq!(other.saved("shard-1").await, Ok(None));
        lease.save("shard-1", "4711").await.unwrap();
        assert_eq!(other.saved("shard-1").await, Ok(Some("4711".into())));

        let short = other.lease("shard-3", Duration::from_millis(1)).await.unwrap();
        until(async || redis.cli(&["EXISTS", "{participant-gateway}:lease:shard-3"]) == "0").await;
        assert_eq!(short.renew().await, Err(LeaseError::Lost), "another may have held it meanwhile");
        assert_eq!(short.save("shard-3", "1").await, Err(LeaseError::Lost));

        lease.release().await;
        assert!(other.lease("shard-1", hour).await.is_ok());
    }
}

const STREAM: &str = "{participant-gateway}:events";

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The status by its number.
async fn health(gateway: &Gateway) -> i32 {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let channel = Endpoint::from_shared(format!("http://{}", gateway.addresses.grpc)).unwrap();
    let mut client = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest { service: participant_gateway::app::SERVICE_NAME.into() };
    client.check(request).await.unwrap().into_inner().status
}
