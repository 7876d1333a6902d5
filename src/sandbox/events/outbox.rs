//! What is to be told, in the order in which it is due; chance and retries included. Pure: it is given the time.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::settings::Settings;

/// The sandbox's own limit, for its memory's sake: what comes when so many wait is dropped.
const MOST_WAITING: usize = 10_000;
/// Nobody waits longer than this to be overtaken.
const HELD_BACK_FOR: Duration = Duration::from_secs(1);

/// When it is due, and its place among those that are due then.
type Place = (Instant, u64);

pub(super) struct Outbox {
    /// Where events go from the start.
    home: Option<Url>,
    settings: Settings,
    /// Decides what happens to events, and nothing else: retries must not change what the next event meets.
    luck: Rng,
    jitter: Rng,
    waiting: BTreeMap<Place, Delivery>,
    last_place: u64,
    /// The one in `waiting` that the next event overtakes.
    held_back: Option<Place>,
    /// In the courier's hands.
    sending: Vec<Delivery>,
    counts: Counts,
}

/// What became of the events. A copy counts as an event, so that `emitted` and `duplicated` together are
/// `delivered`, `dropped`, `lost` and `pending` together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(in crate::sandbox) struct Counts {
    emitted: u64,
    delivered: u64,
    dropped: u64,
    lost: u64,
    retried: u64,
    duplicated: u64,
    pub(super) pending: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Message {
    CloudEvent(Value),
    StatusCallback { token: Uuid, body: Value },
}

#[derive(Debug, Clone)]
struct Delivery {
    account: String,
    message: Message,
    first_sent: Option<Instant>,
    failures: u32,
}

/// One request.
pub(super) struct Posting {
    pub(super) url: Url,
    /// Whose auth token signs it.
    pub(super) account: String,
    pub(super) body: Value,
    /// Of a status callback.
    pub(super) token: Option<Uuid>,
    pub(super) timeout: Duration,
}

/// What the receiver made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    /// Sent again.
    Failed,
    /// Dropped for good.
    Refused,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox::new(None)
    }
}

impl Outbox {
    fn new(home: Option<Url>) -> Outbox {
        let settings = Settings { url: home.clone(), ..Settings::default() };
        Outbox {
            luck: Rng::with_seed(settings.seed),
            jitter: Rng::with_seed(settings.seed),
            home,
            settings,
            waiting: BTreeMap::new(),
            last_place: 0,
            held_back: None,
            sending: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// What the courier is sending is forgotten too, so that its outcome counts nothing.
    pub(super) fn reset(&mut self) {
        *self = Outbox::new(self.home.clone());
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Chance begins anew. Without a URL what waits is dropped.
    pub(super) fn change_settings(&mut self, settings: Settings) {
        self.luck = Rng::with_seed(settings.seed);
        self.jitter = Rng::with_seed(settings.seed);
        self.settings = settings;
        if self.settings.url.is_none() {
            self.counts.dropped += self.waiting.len() as u64;
            self.waiting.clear();
        }
    }

    pub(super) fn deliver_to(&mut self, url: Url) {
        self.home = Some(url.clone());
        self.settings.url = Some(url);
    }

    pub(super) fn tells_of(&self, account: &str) -> bool {
        let Settings { url, account: only, .. } = &self.settings;
        url.is_some() && only.as_ref().is_none_or(|only| only == account)
    }

    /// Takes an event, and decides what happens to it.
    pub(super) fn queue(&mut self, account: &str, message: Message, now: Instant) {
        self.counts.emitted += 1;
        let Settings { loss, duplicates, reorder, delay_ms, .. } = self.settings;
        // All three are always drawn: a rate that changes must not shift the others' luck.
        let [lost, duplicated, holds_back] = [loss, duplicates, reorder].map(|rate| self.luck.f64() < rate);
        if lost {
            self.counts.lost += 1;
            return;
        }
        let event = Delivery { account: account.to_owned(), message, first_sent: None, failures: 0 };
        let mut in_turn = vec![event];
        if duplicated {
            self.counts.duplicated += 1;
            in_turn.extend_from_within(..);
        }
        let overtaken = self.held_back.take().and_then(|place| self.waiting.remove(&place));
        // Of an event and its copy one alone is held back. Who overtakes is not held back itself.
        let late = if overtaken.is_none() && holds_back { in_turn.pop() } else { None };
        in_turn.extend(overtaken);
        let due = now + Duration::from_millis(delay_ms.into());
        for delivery in in_turn {
            self.put(delivery, due);
        }
        if let Some(delivery) = late {
            self.held_back = self.put(delivery, due + HELD_BACK_FOR);
        }
    }

    /// Everything that waits is due now, in the order in which it would have been.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.held_back = None;
        for delivery in mem::take(&mut self.waiting).into_values() {
            self.put(delivery, now);
        }
    }

    fn put(&mut self, delivery: Delivery, due: Instant) -> Option<Place> {
        if self.waiting.len() >= MOST_WAITING {
            self.counts.dropped += 1;
            return None;
        }
        self.last_place += 1;
        let place = (due, self.last_place);
        self.waiting.insert(place, delivery);
        Some(place)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next request, of what is due: a status callback, or CloudEvents of one account. Until it is settled
    /// there is no other.
    pub(super) fn post(&mut self, now: Instant) -> Option<Posting> {
        let url = self.settings.url.clone()?;
        let first = self.waiting.first_entry().filter(|entry| entry.key().0 <= now)?.remove();
        let account = first.account.clone();
        let (token, room) = match &first.message {
            Message::StatusCallback { token, .. } => (Some(*token), 0),
            Message::CloudEvent(_) => (None, self.settings.batch - 1),
        };
        self.sending = vec![first];
        let fits = |_: &Place, other: &mut Delivery| {
            other.account == account && matches!(other.message, Message::CloudEvent(_))
        };
        let more = self.waiting.extract_if(..=(now, u64::MAX), fits).take(room);
        self.sending.extend(more.map(|(_, delivery)| delivery));
        let mut bodies = Vec::new();
        for delivery in &mut self.sending {
            delivery.first_sent.get_or_insert(now);
            self.counts.retried += u64::from(delivery.failures > 0);
            let (Message::CloudEvent(body) | Message::StatusCallback { body, .. }) = &delivery.message;
            bodies.push(body);
        }
        // A status callback is one object, CloudEvents are always an array.
        let body = if token.is_some() { json!(bodies[0]) } else { json!(bodies) };
        let timeout = Duration::from_millis(self.settings.timeout_ms.into());
        Some(Posting { url, account, body, token, timeout })
    }

    pub(super) fn settle(&mut self, outcome: Outcome, now: Instant) {
        // One for all, so that a batch stays together.
        let jitter = self.jitter.f64();
        for delivery in mem::take(&mut self.sending) {
            match outcome {
                Outcome::Accepted => self.counts.delivered += 1,
                Outcome::Refused => self.counts.dropped += 1,
                Outcome::Failed => self.retry(delivery, jitter, now),
            }
        }
    }

    fn retry(&mut self, mut delivery: Delivery, jitter: f64, now: Instant) {
        let longest = Duration::from_millis(self.settings.first_retry_ms.into())
            .saturating_mul(2_u32.saturating_pow(delivery.failures));
        let wait = longest - longest.mul_f64(jitter / 2.0);
        let so_far = delivery.first_sent.map_or(Duration::ZERO, |first_sent| now - first_sent);
        let give_up = Duration::from_millis(self.settings.give_up_ms.into());
        if so_far.saturating_add(wait) > give_up || self.settings.url.is_none() {
            self.counts.dropped += 1;
            return;
        }
        delivery.failures += 1;
        self.put(delivery, now + wait);
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { pending: self.waiting.len() + self.sending.len(), ..self.counts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(settings: Settings) -> Outbox {
        let url = Url::parse("http://127.0.0.1:1/").unwrap();
        let mut outbox = Outbox::default();
        outbox.change_settings(Settings { url: Some(url), ..settings });
        outbox
    }

    fn queue(outbox: &mut Outbox, number: u64, now: Instant) {
        outbox.queue("AC1", Message::CloudEvent(json!(number)), now);
    }

    #[test]
    fn who_is_not_overtaken_goes_after_a_while() {
        let (mut outbox, now) = (outbox(Settings { reorder: 1.0, ..Settings::default() }), Instant::now());
        queue(&mut outbox, 1, now);
        assert!(outbox.post(now).is_none());
        assert_eq!(outbox.next_due(), Some(now + HELD_BACK_FOR));
        let later = now + HELD_BACK_FOR;
        assert_eq!(outbox.post(later).unwrap().body, json!([1]));
        outbox.settle(Outcome::Accepted, later);
        // The one that has gone is overtaken by nobody.
        queue(&mut outbox, 2, later);
        assert!(outbox.post(later).is_none());
        queue(&mut outbox, 3, later);
        assert_eq!(outbox.post(later).unwrap().body, json!([3, 2]));
    }

    #[test]
    fn the_wait_doubles_until_it_gives_up() {
        let (first_retry_ms, give_up_ms) = (100, 1000);
        let mut outbox = outbox(Settings { first_retry_ms, give_up_ms, ..Settings::default() });
        let mut now = Instant::now();
        queue(&mut outbox, 1, now);
        for longest in [100, 200, 400] {
            outbox.post(now).unwrap();
            outbox.settle(Outcome::Failed, now);
            let wait = outbox.next_due().unwrap() - now;
            let longest = Duration::from_millis(longest);
            assert!((longest / 2..=longest).contains(&wait), "{wait:?}");
            now += wait;
        }
        now += Duration::from_millis(650); // past the end, however short the waits were
        outbox.post(now).unwrap();
        outbox.settle(Outcome::Failed, now);
        let Counts { dropped, retried, pending, .. } = outbox.counts();
        assert_eq!((dropped, retried, pending), (1, 3, 0));
    }

    #[test]
    fn what_finds_no_room_is_dropped() {
        let (mut outbox, now) = (outbox(Settings::default()), Instant::now());
        (0..=MOST_WAITING as u64).for_each(|number| queue(&mut outbox, number, now));
        let Counts { dropped, pending, .. } = outbox.counts();
        assert_eq!((dropped, pending), (1, MOST_WAITING));
    }

    #[test]
    fn a_reset_forgets_what_is_being_sent() {
        let (mut outbox, now) = (outbox(Settings::default()), Instant::now());
        queue(&mut outbox, 1, now);
        outbox.post(now).unwrap();
        assert_eq!(outbox.counts().pending, 1);
        outbox.reset();
        outbox.settle(Outcome::Failed, now);
        assert_eq!(outbox.counts(), Counts::default());
    }
}
