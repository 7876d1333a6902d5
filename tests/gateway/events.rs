//! Twilio's events over HTTP, signed as Twilio documents it: what is taken, what is refused, and what a caller sees of it.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use participant_gateway::app::Stop;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

/// What Twilio is told to call. A proxy in front of the gateway would pass it on as `/events`.
pub const PUBLIC_URL: &str = "https://gateway.example.com/hooks/twilio";

// === Signing, from Twilio's description

/// HMAC-SHA1 as RFC 2104 spells it.
fn hmac_sha1(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let padded = |byte: u8| block.map(|key| key ^ byte);
    let inner = Sha1::new_with_prefix(padded(0x36)).chain_update(message).finalize();
    Sha1::new_with_prefix(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

fn sha256(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request as Twilio sends it, until a test spoils it.
#[derive(Clone)]
pub struct Delivery {
    pub body: Vec<u8>,
    query: String,
    signature: Option<String>,
    id: String,
}

impl Delivery {
    /// Signed by this token, for the URL that Twilio was told.
    pub fn new(body: impl Into<Vec<u8>>, token: &str) -> Self {
        Self::to(PUBLIC_URL, body, token)
    }

    /// Signed for this URL.
    pub fn to(url: &str, body: impl Into<Vec<u8>>, token: &str) -> Self {
        let body = body.into();
        let query = format!("bodySHA256={}", sha256(&body));
        let signature =
            BASE64_STANDARD.encode(hmac_sha1(token.as_bytes(), format!("{url}?{query}").as_bytes()));
        Self { body, query, signature: Some(signature), id: String::new() }
    }

    pub async fn post(&self, gateway: &Gateway) -> u16 {
        self.post_to(gateway.addresses.events.unwrap()).await
    }

    pub async fn post_to(&self, listener: SocketAddr) -> u16 {
        self.post_by(&reqwest::Client::new(), &format!("http://{listener}")).await
    }

    pub async fn post_by(&self, client: &reqwest::Client, listener: &str) -> u16 {
        let url = format!("{listener}/events?{}", self.query);
        let mut request = client.post(url).body(self.body.clone());
        request = request.header("content-type", "application/json");
        request = request.header("i-twilio-idempotency-token", &self.id);
        if let Some(signature) = &self.signature {
            request = request.header("x-twilio-signature", signature);
        }
        request.send().await.unwrap().status().as_u16()
    }
}

// === Events

/// An event about the participant that tests read.
#[derive(Clone, Debug)]
pub struct Event {
    pub face: Face,
    pub id: String,
    /// `added`, `updated` or `removed`.
    pub kind: &'static str,
    pub account: String,
    pub conversation: String,
    pub participant: String,
    pub time: String,
    pub mark: String,
}

impl Event {
    pub fn new(face: Face, id: &str) -> Self {
        Self {
            face,
            id: id.into(),
            kind: "updated",
            account: sandbox::ACCOUNT_SID.into(),
            conversation: face.conversation().conversation_id,
            participant: face.participant().into(),
            time: "2026-01-01T00:00:00.000Z".into(),
            mark: id.into(),
        }
    }

    pub fn json(&self) -> Value {
        let Self { face, id, kind, account, conversation, participant, time, mark } = self;
        match face {
            Face::V1 => json!({
                "specversion": "1.0", "type": format!("com.twilio.conversations.participant.{kind}"),
                "source": "/v1/Conversations", "id": id, "time": time, "datacontenttype": "application/json",
                "dataschema": "https://events-schemas.twilio.com/Conversations.ParticipantUpdated/2",
                "data": {
                    "AccountSid": account, "ConversationSid": conversation, "ParticipantSid": participant,
                    "Identity": "alice", "Attributes": { "mark": mark }, "DateUpdated": time,
                },
            }),
            Face::V2 => json!({
                "eventType": format!("PARTICIPANT_{}", kind.to_uppercase()), "timestamp": time,
                "data": {
                    "accountId": account, "conversationId": conversation, "id": participant, "name": mark,
                    "type": "CUSTOMER", "addresses": [], "updatedAt": time,
                },
            }),
        }
    }

    pub fn delivery(&self, token: &str) -> Delivery {
        let body = match self.face {
            Face::V1 => json!([self.json()]),
            Face::V2 => self.json(),
        };
        Delivery { id: self.id.clone(), ..Delivery::new(body.to_string(), token) }
    }

    /// Delivers it, which has to succeed.
    pub async fn deliver(&self, gateway: &Gateway) {
        assert_eq!(self.delivery(sandbox::AUTH_TOKEN).post(gateway).await, 200, "{self:?}");
    }
}

/// A gateway with an events listener, in front of a sandbox that sends no events itself.
pub async fn listening(settings: &str) -> Gateway {
    let (sid, token) = (sandbox::ACCOUNT_SID, sandbox::AUTH_TOKEN);
    with_account(&format!("auth_token = {token:?}"), &format!("account_sid = {sid:?}"), settings).await
}

async fn with_account(credentials: &str, accounts: &str, settings: &str) -> Gateway {
    let file = |url: &str| {
        format!(
            "upstream.url = {url:?}\nevents.listen = \"127.0.0.1:0\"\nevents.public_url = {PUBLIC_URL:?}\n\
             {settings}\n[[accounts]]\n{accounts}\n{credentials}\n"
        )
    };
    Gateway::configured(sandbox::Settings::default(), file).await
}

/// The sandbox's account, and two others by their last digits.
async fn with_others() -> Gateway {
    let others = ['1', '2'].map(account_id);
    let settings = sandbox::Settings {
        accounts: others
            .iter()
            .map(|sid| sandbox::Account { sid: sid.clone(), auth_token: token_of(sid) })
            .collect(),
        ..Default::default()
    };
    let file = |url: &str| {
        let mut file = format!(
            "upstream.url = {url:?}\nevents.listen = \"127.0.0.1:0\"\nevents.public_url = {PUBLIC_URL:?}\n\
             [[accounts]]\naccount_sid = {:?}\nauth_token = {:?}\n",
            sandbox::ACCOUNT_SID,
            sandbox::AUTH_TOKEN
        );
        for sid in &others {
            file += &format!("[[accounts]]\naccount_sid = {sid:?}\nauth_token = {:?}\n", token_of(sid));
        }
        file
    };
    Gateway::configured(settings, file).await
}

fn token_of(sid: &str) -> String {
    format!("token-{}", &sid[30..])
}

// === Watching

/// A watcher.
pub struct Watcher(pub Streaming<WatchParticipantsResponse>);

impl Watcher {
    /// Of everything, from now on.
    pub async fn of(gateway: &Gateway) -> Self {
        Self::with(gateway, WatchParticipantsRequest::default()).await
    }

    pub async fn with(gateway: &Gateway, request: WatchParticipantsRequest) -> Self {
        let mut watcher =
            Self(gateway.client.clone().watch_participants(request).await.unwrap().into_inner());
        // From here on it misses nothing.
        assert!(watcher.message().await.event().is_none(), "a stream begins with a heartbeat");
        watcher
    }

    pub async fn message(&mut self) -> WatchParticipantsResponse {
        self.0.message().await.unwrap().expect("the stream goes on")
    }

    /// The next event, with the token to go on after it.
    pub async fn told(&mut self) -> (ParticipantEvent, String) {
        loop {
            let message = self.message().await;
            if let Some(event) = message.event() {
                return (event.clone(), message.resume_token);
            }
        }
    }

    pub async fn event(&mut self) -> ParticipantEvent {
        self.told().await.0
    }

    /// The ids of the next events.
    pub async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.event().await.id);
        }
        ids
    }

    /// How it ends.
    pub async fn end(&mut self) -> (Code, String) {
        loop {
            match self.0.message().await {
                Ok(message) => assert!(message.is_some(), "the stream ends with an error"),
                Err(status) => return told(&status),
            }
        }
    }
}

/// What a message tells.
pub trait Tells {
    fn event(&self) -> Option<&ParticipantEvent>;
}

impl Tells for WatchParticipantsResponse {
    fn event(&self) -> Option<&ParticipantEvent> {
        match self.message.as_ref().expect("a message tells something") {
            watch_participants_response::Message::Event(event) => Some(event),
            watch_participants_response::Message::Heartbeat(Heartbeat {}) => None,
        }
    }
}

async fn received(gateway: &Gateway, source: &str, outcome: &str) -> f64 {
    let labels = [("participant_events_source", source), ("participant_events_outcome", outcome)];
    Scrape::of(gateway).await.sum("participant_events_received_total", &labels)
}

/// Another gateway before the same sandbox: what it writes, nobody tells this one.
async fn elsewhere(gateway: &Gateway) -> Gateway {
    Gateway::beside(gateway).await
}

fn source(face: Face) -> &'static str {
    match face {
        Face::V1 => "webhook",
        Face::V2 => "callback",
    }
}

async fn is_live(gateway: &Gateway, face: Face) -> bool {
    let labels = [("participant_api_version", face.api()), ("participant_account", sandbox::ACCOUNT_SID)];
    Scrape::of(gateway).await.sum("participant_events_live", &labels) == 1.0
}

on_both_versions! {
    async fn an_event_is_told_and_the_next_read_sees_the_new_state(face) {
        let mut gateway = listening("cache.ttl_without_events = \"1h\"\ncache.ttl = \"1h\"").await;
        let mut other = elsewhere(&gateway).await;
        let mut watcher = Watcher::of(&gateway).await;
        gateway.get(face.get()).await.unwrap();
        gateway.list(face.list()).await.unwrap();
        other.update(face.update(face.marked("new"))).await.unwrap();
        let (old, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!((status, face.mark(&old) == "new"), (CacheStatus::Hit, false));

        Event { mark: "new".into(), ..Event::new(face, "E1") }.deliver(&gateway).await;
        let (new, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!((status, face.mark(&new).as_str()), (CacheStatus::Miss, "new"));
        assert!(gateway.list(face.list()).await.unwrap().participants.contains(&new));

        let event = watcher.event().await;
        assert_eq!((event.id.as_str(), event.r#type()), ("E1", ParticipantEventType::Updated));
        assert_eq!(event.event_time.unwrap().to_string(), "2026-01-01T00:00:00Z");
        let told = event.participant.unwrap();
        assert_eq!((told.id.as_str(), face.mark(&told).as_str()), (face.participant(), "new"));
        assert_eq!((told.conversation_id, told.account_id), (new.conversation_id, new.account_id));
    }

    /// Forget before tell: who reads upon an event is never answered from before it.
    async fn whoever_reads_upon_an_event_sees_what_it_tells(face) {
        let mut gateway = listening("cache.ttl_without_events = \"1h\"\ncache.ttl = \"1h\"").await;
        let mut other = elsewhere(&gateway).await;
        let (mut watcher, listener) = (Watcher::of(&gateway).await, gateway.addresses.events.unwrap());
        for round in 0..50 {
            let mark = round.to_string();
            gateway.get(face.get()).await.unwrap();
            other.update(face.update(face.marked(&mark))).await.unwrap();
            let event = Event::new(face, &mark);
            let reading = async {
                let event = watcher.event().await;
                (event.id, gateway.get(face.get()).await.unwrap().0)
            };
            let delivery = event.delivery(sandbox::AUTH_TOKEN);
            let ((id, read), status) = tokio::join!(reading, delivery.post_to(listener));
            assert_eq!((id, face.mark(&read), status), (mark.clone(), mark, 200));
        }
    }

    async fn a_delivery_that_comes_again_is_told_once(face) {
        let gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        for _ in 0..3 {
            Event::new(face, "serial").deliver(&gateway).await;
        }
        let delivery = Event::new(face, "concurrent").delivery(sandbox::AUTH_TOKEN);
        let mut posts = JoinSet::new();
        for _ in 0..20 {
            let (delivery, listener) = (delivery.clone(), gateway.addresses.events.unwrap());
            posts.spawn(async move { delivery.post_to(listener).await });
        }
        assert!(posts.join_all().await.into_iter().all(|status| status == 200));
        Event::new(face, "last").deliver(&gateway).await;
        assert_eq!(watcher.ids(3).await, ["serial", "concurrent", "last"]);
        assert_eq!(received(&gateway, source(face), "told").await, 3.0);
        assert_eq!(received(&gateway, source(face), "repeated").await, 2.0 + 19.0);
    }

    /// Nothing is kept but in Redis.
    async fn what_comes_again_after_a_restart_is_told_again(face) {
        let mut before = listening("").await;
        let event = Event::new(face, "1");
        event.deliver(&before).await;
        before.stop(Stop::Promptly);
        before.ended().await.unwrap();
        let after = listening("").await;
        let mut watcher = Watcher::of(&after).await;
        for _ in 0..2 {
            event.deliver(&after).await;
        }
        assert_eq!(watcher.event().await.id, "1");
        let outcomes = [received(&after, source(face), "told").await, received(&after, source(face), "repeated").await];
        assert_eq!(outcomes, [1.0, 1.0]);
    }

    async fn an_event_from_before_a_removal_does_not_bring_back_who_was_removed(face) {
        let gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        let event = |id: &str, kind, second: u8| Event {
            kind, time: format!("2026-01-01T00:00:0{second}Z"), ..Event::new(face, id)
        };
        event("removed", "removed", 5).deliver(&gateway).await;
        event("late", "updated", 4).deliver(&gateway).await;
        event("again", "added", 6).deliver(&gateway).await;
        let told = [watcher.event().await, watcher.event().await];
        assert_eq!(told.each_ref().map(|event| event.id.as_str()), ["removed", "again"]);
        assert_eq!(told[0].r#type(), ParticipantEventType::Removed);
        assert_eq!(received(&gateway, source(face), "outdated").await, 1.0);
    }

    /// Nothing of it is told, and nothing of it makes the gateway trust that events arrive.
    async fn what_twilio_has_not_signed_is_refused(face) {
        let gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        let good = Event::new(face, "forged").delivery(sandbox::AUTH_TOKEN);
        let signed_for = |url: &str| Delivery { id: good.id.clone(), ..Delivery::to(url, good.body.clone(), sandbox::AUTH_TOKEN) };
        let other_body = Event::new(face, "other").delivery(sandbox::AUTH_TOKEN);
        let without_hash = BASE64_STANDARD.encode(hmac_sha1(sandbox::AUTH_TOKEN.as_bytes(), PUBLIC_URL.as_bytes()));
        let bad = [
            ("no signature", Delivery { signature: None, ..good.clone() }),
            ("no Base64", Delivery { signature: Some("*".into()), ..good.clone() }),
            ("another's signature", Delivery { signature: other_body.signature.clone(), ..good.clone() }),
            ("another token", Event::new(face, "forged").delivery("guessed")),
            ("another URL", signed_for("https://gateway.example.com/events")),
            ("another host", signed_for("https://127.0.0.1/hooks/twilio")),
            ("plain http", signed_for("http://gateway.example.com/hooks/twilio")),
            ("another body", Delivery { body: other_body.body.clone(), ..good.clone() }),
            ("an added query", Delivery { query: format!("{}&a=b", good.query), ..good.clone() }),
            ("no hash", Delivery { query: String::new(), signature: Some(without_hash), ..good.clone() }),
            ("an empty hash", Delivery { query: "bodySHA256=".into(), ..good.clone() }),
        ];
        for (what, delivery) in &bad {
            assert_eq!(delivery.post(&gateway).await, 403, "{what}");
        }
        assert_eq!(received(&gateway, "webhook", "forged").await, bad.len() as f64);
        assert!(!is_live(&gateway, face).await);
        assert_eq!(good.post(&gateway).await, 200);
        assert_eq!(watcher.event().await.id, "forged");
        assert!(is_live(&gateway, face).await);
    }

    /// Twilio signs the URL with or without the default port, whatever it was told.
    async fn a_signature_may_cover_the_default_port(face) {
        let gateway = listening("").await;
        let event = Event::new(face, "E1").delivery(sandbox::AUTH_TOKEN);
        let url = PUBLIC_URL.replace(".com/", ".com:443/");
        assert_eq!(Delivery::to(&url, event.body.clone(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
        let url = PUBLIC_URL.replace(".com/", ".com:8443/");
        assert_eq!(Delivery::to(&url, event.body, sandbox::AUTH_TOKEN).post(&gateway).await, 403);
    }

    async fn each_account_signs_its_own_events_and_no_others(face) {
        let gateway = with_others().await;
        let mut watcher = Watcher::of(&gateway).await;
        let (one, two) = (account_id('1'), account_id('2'));
        let of_one = Event { account: one.clone(), ..Event::new(face, "one") };
        for token in [token_of(&two), sandbox::AUTH_TOKEN.into()] {
            assert_eq!(of_one.delivery(&token).post(&gateway).await, 403);
        }
        assert_eq!(received(&gateway, source(face), "refused").await, 2.0);
        assert_eq!(of_one.delivery(&token_of(&one)).post(&gateway).await, 200);
        let told = watcher.event().await;
        assert_eq!((told.id, told.participant.unwrap().account_id), ("one".into(), one.clone()));

        // An account that is spelled oddly is none: then who signs tells whose it is.
        let odd = Event { account: "AC123".into(), ..Event::new(face, "odd") };
        let conversations = vec![ConversationRef { account_id: two.clone(), ..face.conversation() }];
        let request = WatchParticipantsRequest { conversations, ..Default::default() };
        let mut of_two = Watcher::with(&gateway, request).await;
        assert_eq!(odd.delivery(&token_of(&two)).post(&gateway).await, 200);
        assert_eq!(of_two.event().await.id, "odd");
    }

    async fn the_same_id_of_two_accounts_is_two_events(face) {
        let gateway = with_others().await;
        let mut watcher = Watcher::of(&gateway).await;
        for digit in ['1', '2'] {
            let sid = account_id(digit);
            let event = Event { account: sid.clone(), ..Event::new(face, "same") };
            assert_eq!(event.delivery(&token_of(&sid)).post(&gateway).await, 200);
        }
        assert_eq!(watcher.ids(2).await, ["same", "same"]);
    }

    /// With an API key, too, and while the tokens rotate: what the file held before counts for a while.
    async fn both_auth_tokens_sign_and_so_does_the_one_that_a_file_held_before(face) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\n").unwrap();
        let sid = format!("account_sid = {:?}", sandbox::ACCOUNT_SID);
        for key in [false, true] {
            std::fs::write(file.path(), "first\n").unwrap();
            let mut credentials = format!("auth_token_file = {:?}\nsecondary_auth_token = \"second\"", file.path());
            if key {
                credentials += &format!("\napi_key = {:?}\napi_secret = {:?}", sandbox::API_KEY_SID, sandbox::API_KEY_SECRET);
            }
            let gateway = with_account(&credentials, &sid, "secrets.reload_interval = \"10ms\"").await;
            let posted = async |token: &str| Event::new(face, token).delivery(token).post(&gateway).await;
            assert_eq!([posted("first").await, posted("second").await, posted("third").await], [200, 200, 403]);
            std::fs::write(file.path(), "third\n").unwrap();
            let deadline = Instant::now() + PATIENCE;
            while posted("third").await != 200 {
                assert!(Instant::now() < deadline, "the file is read again");
            }
            assert_eq!([posted("first").await, posted("second").await], [200, 200], "with an API key: {key}");
        }
    }

    async fn what_is_about_something_else_is_acknowledged_and_not_told(face) {
        let gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        let mut other = Event::new(face, "other").json();
        let key = if face == Face::V1 { "type" } else { "eventType" };
        other[key] = "com.twilio.conversations.message.added".into();
        let mut broken = Event::new(face, "broken").json();
        broken["data"] = json!({ "Identity": 5, "name": 5 });
        for body in [&other, &broken] {
            assert_eq!(Delivery::new(body.to_string(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
        }
        assert_eq!(received(&gateway, source(face), "unknown_type").await, 1.0);
        assert_eq!(received(&gateway, source(face), "undecodable").await, 1.0);
        Event::new(face, "known").deliver(&gateway).await;
        assert_eq!(watcher.event().await.id, "known");
    }

    async fn answers_live_longer_where_events_arrive_and_no_longer_than_the_window(face) {
        let settings = "cache.ttl = \"1h\"\ncache.ttl_without_events = \"50ms\"\nevents.live_window = \"1s\"\n\
            cache.stale_while_revalidate = \"0s\"";
        let mut gateway = listening(settings).await;
        let misses_within = async |gateway: &mut Gateway, time: Duration| {
            let (begin, mut misses) = (Instant::now(), 0);
            while begin.elapsed() < time {
                misses += u32::from(gateway.get(face.get()).await.unwrap().1 == CacheStatus::Miss);
            }
            misses
        };
        assert!(misses_within(&mut gateway, Duration::from_millis(300)).await > 1, "without events an answer is soon too old");
        let delivered = Instant::now();
        Event::new(face, "E1").deliver(&gateway).await;
        let misses = misses_within(&mut gateway, Duration::from_millis(300)).await;
        // What is loaded in the moment of the delivery may be loaded again, and a machine that is slow enough proves nothing.
        assert!((1..=2).contains(&misses) || delivered.elapsed() > Duration::from_secs(1), "{misses}");
        let deadline = Instant::now() + PATIENCE;
        while is_live(&gateway, face).await {
            assert!(Instant::now() < deadline, "a source that is silent is not live any more");
        }
        let (_, status) = gateway.get(face.get()).await.unwrap();
        assert_eq!(status, CacheStatus::Miss);
    }

    async fn events_of_one_version_say_nothing_of_the_other(face) {
        let gateway = listening("").await;
        let other = if face == Face::V1 { Face::V2 } else { Face::V1 };
        Event::new(face, "E1").deliver(&gateway).await;
        assert_eq!((is_live(&gateway, face).await, is_live(&gateway, other).await), (true, false));
    }

    async fn what_is_too_large_is_refused_for_good(face) {
        let gateway = listening("events.max_body_bytes = 2048").await;
        let mut watcher = Watcher::of(&gateway).await;
        let large = Event { mark: "x".repeat(2048), ..Event::new(face, "large") };
        assert_eq!(large.delivery(sandbox::AUTH_TOKEN).post(&gateway).await, 413);
        let huge = Event { mark: "x".repeat(10 << 20), ..Event::new(face, "huge") };
        assert_eq!(huge.delivery(sandbox::AUTH_TOKEN).post(&gateway).await, 413);
        assert_eq!(received(&gateway, "webhook", "too_large").await, 2.0);
        Event::new(face, "small").deliver(&gateway).await;
        assert_eq!(watcher.event().await.id, "small");
    }

    /// A timeout of Twilio's own would count against us; a 408 would make it drop the event.
    async fn a_body_that_does_not_end_is_to_come_again(face) {
        let gateway = listening("").await;
        let delivery = Event::new(face, "slow").delivery(sandbox::AUTH_TOKEN);
        let mut half = HalfSent::new(&gateway, &delivery).await;
        assert!(half.answer().await.starts_with("HTTP/1.1 503 "));
        assert_eq!(received(&gateway, "webhook", "too_slow").await, 1.0);
        assert_eq!(delivery.post(&gateway).await, 200);
    }

    async fn a_delivery_in_flight_is_taken_before_the_end(face) {
        let mut gateway = listening("").await;
        let delivery = Event::new(face, "late").delivery(sandbox::AUTH_TOKEN);
        let mut half = HalfSent::new(&gateway, &delivery).await;
        let address = gateway.addresses.events.unwrap();
        gateway.stop(Stop::Promptly);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < deadline, "no further connection is taken");
        }
        half.send_the_rest().await.unwrap();
        assert!(half.answer().await.starts_with("HTTP/1.1 200 "));
        gateway.ended().await.unwrap();
    }
}

/// A request whose body has not ended yet.
struct HalfSent {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl HalfSent {
    async fn new(gateway: &Gateway, delivery: &Delivery) -> Self {
        let mut stream = TcpStream::connect(gateway.addresses.events.unwrap()).await.unwrap();
        let (begin, rest) = delivery.body.split_at(10);
        let head = format!(
            "POST /events?{} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\
             x-twilio-signature: {}\r\ni-twilio-idempotency-token: {}\r\n\r\n",
            delivery.query,
            delivery.signature.as_ref().unwrap(),
            delivery.id
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The gateway waits for the body from here on.
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        let mut half = Self { stream, rest: rest.to_vec() };
        half.chunk(begin).await.unwrap();
        half
    }

    async fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
        self.stream.write_all(bytes).await?;
        self.stream.write_all(b"\r\n").await
    }

    async fn send_the_rest(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        self.chunk(&rest).await?;
        self.stream.write_all(b"0\r\n\r\n").await
    }

    async fn answer(&mut self) -> String {
        let mut head = vec![0; 17];
        self.stream.read_exact(&mut head).await.unwrap();
        String::from_utf8(head).unwrap()
    }
}

/// Anybody can reach the listener, and hold more connections than it takes.
#[tokio::test]
async fn who_connects_and_sends_no_request_keeps_no_delivery_out() {
    let gateway = listening("").await;
    let mut watcher = Watcher::of(&gateway).await;
    let mut strangers = Vec::new();
    for number in 0..260 {
        let mut stranger = TcpStream::connect(gateway.addresses.events.unwrap()).await.unwrap();
        if number % 2 == 0 {
            stranger.write_all(b"POST /events HTTP/1.1\r\nx-twilio-sig").await.unwrap();
        }
        strangers.push(stranger);
    }
    for id in ["1", "2"] {
        Event::new(Face::V1, id).deliver(&gateway).await;
        assert_eq!(watcher.event().await.id, id);
    }
    // The first gave way: it is closed, or reset where what it sent was not read.
    let closed = timeout(PATIENCE, strangers[0].read(&mut [0])).await.expect("it is closed");
    assert!(matches!(closed, Ok(0) | Err(_)));
}

// === What only one version has

#[tokio::test]
async fn a_batch_is_told_in_its_order_and_answered_once_all_of_it_is_applied() {
    let mut gateway = listening("cache.ttl_without_events = \"1h\"\ncache.ttl = \"1h\"").await;
    let mut watcher = Watcher::of(&gateway).await;
    gateway.get(Face::V1.get()).await.unwrap();
    let mut batch: Vec<_> = (0..300)
        .map(|number| {
            Event { conversation: "CH1".into(), ..Event::new(Face::V1, &number.to_string()) }.json()
        })
        .collect();
    batch.push(Event::new(Face::V1, "300").json());
    let batch = Delivery::new(Value::from(batch).to_string(), sandbox::AUTH_TOKEN);
    assert_eq!(batch.post(&gateway).await, 200);
    assert_eq!(gateway.get(Face::V1.get()).await.unwrap().1, CacheStatus::Miss);
    let expected: Vec<_> = (0..=300).map(|number: u32| number.to_string()).collect();
    assert_eq!(watcher.ids(301).await, expected);
}

#[tokio::test]
async fn a_batch_of_more_events_than_twilio_sends_is_refused_whole() {
    let gateway = listening("").await;
    for (count, status) in [(10_001, 413), (10_000, 200)] {
        let body = Value::from(vec![json!({ "type": "com.twilio.other" }); count]).to_string();
        assert_eq!(Delivery::new(body, sandbox::AUTH_TOKEN).post(&gateway).await, status, "{count}");
    }
    assert_eq!(received(&gateway, "webhook", "too_large").await, 1.0);
    assert_eq!(received(&gateway, "webhook", "unknown_type").await, 10_000.0);
}

#[tokio::test]
async fn a_batch_with_an_event_of_another_account_is_refused_whole() {
    let gateway = with_others().await;
    let mut watcher = Watcher::of(&gateway).await;
    let good = Event::new(Face::V1, "good");
    let bad = Event { account: account_id('1'), ..Event::new(Face::V1, "bad") };
    let batch = json!([good.json(), bad.json()]).to_string();
    assert_eq!(Delivery::new(batch, sandbox::AUTH_TOKEN).post(&gateway).await, 403);
    Event::new(Face::V1, "after").deliver(&gateway).await;
    assert_eq!(watcher.event().await.id, "after");
}

#[tokio::test]
async fn one_event_may_come_without_an_array_and_with_its_data_as_text() {
    let gateway = listening("").await;
    let mut watcher = Watcher::of(&gateway).await;
    let mut json = Event::new(Face::V1, "bare").json();
    json["data"] = json["data"].to_string().into();
    assert_eq!(Delivery::new(json.to_string(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
    let told = watcher.event().await.participant.unwrap();
    assert_eq!((told.attributes.as_str(), told.id.as_str()), (r#"{"mark":"bare"}"#, Face::V1.participant()));
}

/// Each as it stands in Twilio's documentation, whose account's SID is a character short.
#[tokio::test]
async fn twilios_samples_are_told() {
    for (body, kind, seconds) in [
        (include_str!("../fixtures/events/added.json"), ParticipantEventType::Added, 0),
        (include_str!("../fixtures/events/updated.json"), ParticipantEventType::Updated, 1),
        (include_str!("../fixtures/events/removed.json"), ParticipantEventType::Removed, 60),
    ] {
        let gateway = listening("").await;
        let mut watcher = Watcher::of(&gateway).await;
        assert_eq!(Delivery::new(body, sandbox::AUTH_TOKEN).post(&gateway).await, 200);
        let event = watcher.event().await;
        assert_eq!((event.id.as_str(), event.r#type()), ("NO00000000000000000000000001", kind));
        assert_eq!(event.event_time.unwrap().seconds, 1_735_689_600 + seconds);
        assert_eq!(event.remove_time.is_some(), kind == ParticipantEventType::Removed);
        let participant = event.participant.unwrap();
        assert_eq!(participant.conversation_id, "CHee95cfd541a925a3337fec19a0200009");
        assert_eq!(participant.account_id, "ACe95cfd541a925a3337fec19a0200009");
        assert_eq!(participant.role_id, "RLe95cfd541a925a3337fec19a0200009");
        let [chat, binding] = &participant.addresses[..] else { panic!("two addresses") };
        assert_eq!(
            (chat.channel(), chat.address.as_str()),
            (Channel::Chat, "FX0000000000000000000000000000001")
        );
        assert_eq!((binding.channel(), binding.address.as_str()), (Channel::Sms, "whatsapp:+14567890123"));
        assert_eq!(binding.proxy_address, "whatsapp:+11234567890");
        assert_eq!(binding.projected_address, "whatsapp:+12345678901");
        assert_eq!((binding.level.as_str(), binding.display_name.as_str()), ("cc", "John Doe"));
        assert_eq!(participant.etag, "");
    }
}

/// It proves that v1's events arrive, and is told to nobody.
#[tokio::test]
async fn the_sinks_test_event_counts_as_a_delivery() {
    let gateway = listening("").await;
    let mut watcher = Watcher::of(&gateway).await;
    let test = json!([{
        "specversion": "1.0", "type": "com.twilio.eventstreams.test-event", "source": "Sink", "id": "AC1",
        "dataschema": "https://events-schemas.twilio.com/EventStreams.TestSink/1.json",
        "data": { "test_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7" },
    }]);
    assert_eq!(Delivery::new(test.to_string(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
    assert!(is_live(&gateway, Face::V1).await && !is_live(&gateway, Face::V2).await);
    assert_eq!(received(&gateway, "webhook", "test").await, 1.0);
    Event::new(Face::V1, "after").deliver(&gateway).await;
    assert_eq!(watcher.event().await.id, "after");
}

/// That messages are subscribed to says nothing about participants, nor does what nobody can read.
#[tokio::test]
async fn only_events_that_keep_the_cache_true_prolong_its_answers() {
    let gateway = listening("").await;
    let mut message = Event::new(Face::V1, "M1").json();
    message["type"] = "com.twilio.conversations.message.added".into();
    for body in [json!([]), json!([message]), json!([{}]), json!({ "AccountSid": sandbox::ACCOUNT_SID })] {
        assert_eq!(Delivery::new(body.to_string(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
        assert!(!is_live(&gateway, Face::V1).await, "{body}");
    }
}

/// It has changed something, and nobody can tell what.
#[tokio::test]
async fn an_event_that_cannot_be_read_forgets_everything() {
    let mut gateway = listening("").await;
    for face in [Face::V1, Face::V2] {
        gateway.get(face.get()).await.unwrap();
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Hit);
    }
    let mut broken = Event::new(Face::V1, "broken").json();
    broken["data"] = json!(5);
    assert_eq!(Delivery::new(broken.to_string(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
    for face in [Face::V1, Face::V2] {
        assert_eq!(gateway.get(face.get()).await.unwrap().1, CacheStatus::Miss);
    }
}

/// What was cached before events were known to arrive keeps the shorter lifetime, whatever arrives then.
#[tokio::test]
async fn a_source_that_comes_alive_prolongs_nothing_that_was_cached_before() {
    let settings = "cache.ttl = \"1h\"\ncache.ttl_without_events = \"100ms\"";
    let mut gateway = listening(settings).await;
    gateway.get(Face::V1.get()).await.unwrap();
    // Of another conversation: it forgets nothing of the one that is read.
    let mut elsewhere = Event::new(Face::V1, "E1").json();
    elsewhere["data"]["ConversationSid"] = "CH00000000000000000000000000000099".into();
    assert_eq!(Delivery::new(elsewhere.to_string(), sandbox::AUTH_TOKEN).post(&gateway).await, 200);
    assert!(is_live(&gateway, Face::V1).await);
    let deadline = Instant::now() + PATIENCE;
    while gateway.get(Face::V1.get()).await.unwrap().1 == CacheStatus::Hit {
        assert!(Instant::now() < deadline, "what was cached before is served for an hour");
    }
}

#[tokio::test]
async fn nothing_but_a_post_to_events_is_answered() {
    let gateway = listening("").await;
    let (http, base) = (reqwest::Client::new(), format!("http://{}", gateway.addresses.events.unwrap()));
    for method in [reqwest::Method::GET, reqwest::Method::PUT, reqwest::Method::DELETE] {
        let answer = http.request(method.clone(), format!("{base}/events")).send().await.unwrap();
        assert_eq!(answer.status(), 405, "{method}");
    }
    assert_eq!(http.post(format!("{base}/metrics")).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn the_age_of_events_is_measured() {
    let gateway = listening("").await;
    Event::new(Face::V1, "E1").deliver(&gateway).await;
    let scrape = Scrape::of(&gateway).await;
    assert_eq!(
        scrape.sum("participant_events_age_seconds_count", &[("participant_events_source", "webhook")]),
        1.0
    );
}

/// The sandbox's gateway is called under its own address.
#[tokio::test]
async fn the_sandboxs_gateway_listens_by_itself() {
    let gateway = Gateway::start().await;
    let url = format!("http://{}/events", gateway.addresses.events.unwrap());
    let body = json!([Event::new(Face::V1, "E1").json()]).to_string();
    assert_eq!(Delivery::new(body.clone(), sandbox::AUTH_TOKEN).post(&gateway).await, 403);
    let mut watcher = Watcher::of(&gateway).await;
    assert_eq!(Delivery::to(&url, body, sandbox::AUTH_TOKEN).post(&gateway).await, 200);
    assert_eq!(watcher.event().await.id, "E1");
}
