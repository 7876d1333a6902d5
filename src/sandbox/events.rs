//! What Twilio tells of changes: v1 by the CloudEvents of Event Streams, v2 by status callbacks, both signed and
//! posted to one URL.
//!
//! A face notes what a request changed (`Change`); `outbox` decides what becomes of it (lost, told twice,
//! overtaken, late) and when it is due; `courier` posts it, one request after the other.

pub(super) mod courier;
mod outbox;
mod settings;

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::dates;
use super::store::Tenant;
use outbox::{Counts, Message, Outbox};
use settings::Settings;
pub(super) use settings::SettingsError;

/// A change of a participant, in the words of its face.
#[derive(Debug)]
pub(super) enum Change {
    /// v1.
    CloudEvent {
        /// `type` on the wire.
        kind: String,
        source: String,
        /// Below Twilio's host of schemas.
        schema: String,
        data: Value,
    },
    /// v2: the whole body.
    StatusCallback(Value),
}

/// What happened to the participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Updated,
    Removed,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Added => "Added",
            Kind::Updated => "Updated",
            Kind::Removed => "Removed",
        }
    }
}

pub(super) struct Events {
    /// In a watch channel, because the courier and those who wait for it to be done want to know of changes.
    outbox: watch::Sender<Outbox>,
    /// Part of every id: a receiver that outlives this sandbox must not take the events of the next for known.
    started_us: u64,
    ids: AtomicU64,
}

impl Events {
    pub(super) fn new() -> Events {
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Events {
            outbox: watch::Sender::new(Outbox::default()),
            started_us: u64::try_from(age.as_micros()).unwrap_or_default(),
            ids: AtomicU64::new(0),
        }
    }

    /// Takes what was noted at the account.
    pub(super) fn tell(&self, tenant: &mut Tenant) {
        let changes = mem::take(&mut tenant.changes);
        if !changes.is_empty() {
            self.queue(&tenant.account_sid, changes);
        }
    }

    /// Tells a test event, whose id is the answer; `None` if nothing of this account is told.
    pub(super) fn test(&self, account: &str) -> Option<String> {
        let test_id = Uuid::from_u128(self.next_id()).to_string();
        let event = Change::CloudEvent {
            kind: "com.twilio.eventstreams.test-event".to_owned(),
            source: "Sink".to_owned(),
            schema: "EventStreams.TestSink/1.json".to_owned(),
            data: json!({"test_id": test_id}),
        };
        self.queue(account, vec![event]).then_some(test_id)
    }

    /// False if nothing of this account is told.
    fn queue(&self, account: &str, changes: Vec<Change>) -> bool {
        self.outbox.send_if_modified(|outbox| {
            let wanted = outbox.tells_of(account);
            for change in changes.into_iter().filter(|_| wanted) {
                outbox.queue(account, self.message(change), Instant::now());
            }
            wanted
        })
    }

    fn message(&self, change: Change) -> Message {
        let id = self.next_id();
        match change {
            Change::CloudEvent { kind, source, schema, data } => Message::CloudEvent(json!({
                "specversion": "1.0",
                "type": kind,
                "source": source,
                "id": format!("EZ{id:032x}"),
                "dataschema": format!("https://events-schemas.twilio.com/{schema}"),
                "datacontenttype": "application/json",
                "time": dates::millis(SystemTime::now()),
                "data": data,
            })),
            Change::StatusCallback(body) => Message::StatusCallback { token: Uuid::from_u128(id), body },
        }
    }

    fn next_id(&self) -> u128 {
        let number = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        u128::from(self.started_us) << 64 | u128::from(number)
    }

    pub(super) fn settings(&self) -> Settings {
        self.outbox.borrow().settings().clone()
    }

    pub(super) fn change_settings(&self, settings: Settings) {
        self.outbox.send_modify(|outbox| outbox.change_settings(settings));
    }

    /// From now on, and after a reset too.
    pub(super) fn deliver_to(&self, url: Url) {
        self.outbox.send_modify(|outbox| outbox.deliver_to(url));
    }

    pub(super) fn reset(&self) {
        self.outbox.send_modify(Outbox::reset);
    }

    /// What waits now waits no longer.
    pub(super) fn hurry(&self) {
        self.outbox.send_modify(|outbox| outbox.hurry(Instant::now()));
    }

    pub(super) fn counts(&self) -> Counts {
        self.outbox.borrow().counts()
    }

    /// The counts, once nothing is pending.
    pub(super) async fn idle(&self) -> Counts {
        let mut outbox = self.outbox.subscribe();
        // Fails only without a sender, and that one lives in self.
        let _ = outbox.wait_for(|outbox| outbox.counts().pending == 0).await;
        self.counts()
    }
}
