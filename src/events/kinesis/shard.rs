//! One shard: its turns, and what is done when one fails.

use std::collections::HashSet;
use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant, SystemTime};

use tokio::time::sleep;
use tower::util::rng::{HasherRng, Rng as _};
use tracing::{debug, info, warn};

use super::Reader;
use super::client::{Error, Page, Record};
use super::shards::Place;
use crate::events::{Incoming, Receiver, Source, Undecodable, cloud_event};
use crate::ids::AccountId;
use crate::participants::{NotPublished, Participants};

const SOURCE: Source = Source::Kinesis;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// Clocks differ: a moment of ours may lie ahead of AWS's, which then refuses it.
const SKEW: Duration = Duration::from_secs(10);
/// Now and then AWS throttles anybody.
const THROTTLED_OFTEN: u32 = 3;

/// A shard that is being read.
pub(super) struct Shard {
    pub(super) id: String,
    /// After all that was applied.
    pub(super) place: Place,
    iterator: Option<String>,
    /// Something may have changed of which nobody was told: what is cached may be older than the reading, or than a record
    /// that cannot be read.
    has_missed: bool,
    wait: Duration,
    patience: Patience,
}

/// How a turn went.
#[derive(Debug)]
pub(super) enum Turn {
    /// All records up to the moment are applied.
    Read {
        up_to: Instant,
    },
    Failed,
    /// There is nothing more, nor will be.
    Ended,
    /// The shard is not there.
    Lost,
}

/// What a record turned out to be.
#[derive(Debug, PartialEq)]
enum Weighed<'a> {
    /// An event of this account.
    Ours(&'a AccountId, Incoming),
    /// Nothing to hand on, and as what it counts.
    Passed(&'static str),
}

/// Tells that records went away before anybody read them.
pub(super) async fn lose_events(participants: &Participants) {
    let mut refused = Refused::new("that events of Kinesis are lost");
    while participants.lose_events().await.is_err() {
        refused.wait().await;
    }
}

/// What cannot be handed on is handed on again, however long that takes: who read on without it would have lost it.
struct Refused {
    what: &'static str,
    times: u32,
}

impl Refused {
    fn new(what: &'static str) -> Self {
        Self { what, times: 0 }
    }

    async fn wait(&mut self) {
        if self.times == 0 {
            warn!("{} cannot be handed on: the reading waits", self.what);
        }
        self.times += 1;
        sleep(backoff(self.times)).await;
    }
}

impl Shard {
    pub(super) fn new(place: Place, id: String) -> Self {
        let has_missed = place == Place::Now;
        Self { id, place, iterator: None, has_missed, wait: Duration::ZERO, patience: Patience::default() }
    }

    /// Asks once, and applies what comes.
    pub(super) async fn turn(mut self, reader: &Reader) -> (Self, Turn) {
        sleep(self.wait).await;
        self.wait = reader.poll_interval;
        let asked = Instant::now();
        match self.ask(reader).await {
            Ok(page) => {
                self.patience.succeed("the Kinesis shard is read again");
                let turn = self.apply(page, asked, reader).await;
                (self, turn)
            }
            Err(error) => {
                let turn = self.fail(&error, reader).await;
                (self, turn)
            }
        }
    }

    async fn ask(&mut self, reader: &Reader) -> Result<Page, Error> {
        let iterator = match &self.iterator {
            Some(iterator) => iterator,
            None => {
                let asked = SystemTime::now();
                let iterator = reader.client.iterator(&self.id, &self.place).await?;
                if self.place == Place::Now {
                    // Another iterator, made later, must not begin later.
                    self.place = Place::Since(asked - SKEW);
                }
                self.iterator.insert(iterator)
            }
        };
        reader.client.records(iterator).await
    }

    async fn apply(&mut self, page: Page, asked: Instant, reader: &Reader) -> Turn {
        for record in page.records {
            self.apply_one(&record, reader).await;
            self.place = Place::After(record.sequence_number);
        }
        let mut refused = Refused::new("that everything is to be forgotten");
        while self.has_missed {
            match reader.receiver.participants.forget_everything().await {
                Ok(()) => self.has_missed = false,
                Err(NotPublished) => refused.wait().await,
            }
        }
        self.iterator = page.next;
        if self.iterator.is_none() {
            info!(shard = self.id, "read a Kinesis shard to its end");
            self.place = Place::Ended;
            return Turn::Ended;
        }
        Turn::Read { up_to: asked.checked_sub(page.behind).unwrap_or(asked) }
    }

    /// Comes back when the record needs no more, however long that takes.
    async fn apply_one(&mut self, record: &Record, reader: &Reader) {
        match self.weigh(record, &reader.accounts) {
            Weighed::Ours(account, incoming) => self.hand_on(account, &incoming, reader).await,
            Weighed::Passed(outcome) => reader.receiver.metrics.event_received(SOURCE.as_str(), outcome),
        }
    }

    /// What names no account is the only account's, where there is but one.
    fn weigh<'a>(&mut self, record: &Record, accounts: &'a HashSet<AccountId>) -> Weighed<'a> {
        let (shard, sequence_number) = (&self.id, &record.sequence_number);
        // What is no text is no JSON either.
        let incoming = cloud_event::decode(str::from_utf8(&record.data).unwrap_or_default());
        let only = accounts.iter().next().filter(|_| accounts.len() == 1);
        let outcome = match &incoming {
            Incoming::Participant { account, .. } => {
                let named = account.as_ref();
                match named.map_or(only, |named| accounts.get(named)) {
                    Some(account) => return Weighed::Ours(account, incoming),
                    None if named.is_none() => self.pass_over(sequence_number, "data.AccountSid"),
                    None => {
                        debug!(
                            shard,
                            sequence_number, "passed an event of an account that is not configured"
                        );
                        "refused"
                    }
                }
            }
            Incoming::Test { id } => {
                info!(shard, test_id = id.map(tracing::field::display), "Twilio tests the sink");
                "test"
            }
            Incoming::UnknownType => "unknown_type",
            Incoming::Undecodable(Undecodable(key)) => self.pass_over(sequence_number, key),
        };
        Weighed::Passed(outcome)
    }

    fn pass_over(&mut self, sequence_number: &str, key: &str) -> &'static str {
        warn!(
            shard = self.id,
            sequence_number, key, "a record of Kinesis cannot be read, and is passed over"
        );
        // It may have told of a change.
        self.has_missed = true;
        "undecodable"
    }

    async fn hand_on(&self, account: &AccountId, incoming: &Incoming, reader: &Reader) {
        let Receiver { metrics, .. } = &reader.receiver;
        let mut refused = Refused::new("an event of Kinesis");
        loop {
            let result = reader.receiver.apply(SOURCE, account, incoming.clone()).await;
            metrics.event_received(SOURCE.as_str(), result.unwrap_or("failed"));
            match result {
                Ok(_) => return,
                Err(NotPublished) => refused.wait().await,
            }
        }
    }

    async fn fail(&mut self, error: &Error, reader: &Reader) -> Turn {
        match error {
            Error::IteratorExpired => {
                self.iterator = None;
                return Turn::Failed;
            }
            // The place is none of this shard, or no longer: AWS has nothing that could be read after it.
            Error::Invalid(_) if self.iterator.is_none() && self.place != Place::Oldest => {
                warn!(shard = self.id, place = %self.place, "the place in the Kinesis shard is gone: reading what there is");
                self.place = Place::Oldest;
                lose_events(&reader.receiver.participants).await;
                return Turn::Failed;
            }
            // Then it is the iterator.
            Error::Invalid(_) => self.iterator = None,
            _ => {}
        }
        self.patience.fail(error, "read a Kinesis shard").await;
        // Which shards there are is to be asked again.
        if matches!(error, Error::NotFound(_)) { Turn::Lost } else { Turn::Failed }
    }
}

/// How often something has failed in a row, and what was said about it.
#[derive(Debug, Default)]
pub(super) struct Patience {
    failures: u32,
    said: Option<Discriminant<Error>>,
}

impl Patience {
    /// Says what is wrong, unless it is the same as before, and waits longer each time.
    pub(super) async fn fail(&mut self, error: &Error, what: &str) {
        self.failures = self.failures.saturating_add(1);
        let is_noise = matches!(error, Error::Throttled) && self.failures < THROTTLED_OFTEN;
        if !is_noise && self.said.replace(discriminant(error)) != Some(discriminant(error)) {
            warn!("cannot {what}: {error}");
        }
        sleep(backoff(self.failures)).await;
    }

    pub(super) fn succeed(&mut self, what: &str) {
        if self.said.is_some() {
            info!(failures = self.failures, "{what}");
        }
        *self = Self::default();
    }
}

/// Exponential, half of it jitter, so that replicas do not come back together.
fn backoff(failures: u32) -> Duration {
    let ceiling = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST_BACKOFF);
    ceiling.mul_f64(0.5 + 0.5 * HasherRng::new().next_f64())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIRST: &str = "AC00000000000000000000000000000001";
    const SECOND: &str = "AC00000000000000000000000000000002";

    /// As what the record counts, whose it is, and whether what is cached is to be forgotten.
    fn weighed(data: &str, accounts: &[&str]) -> (&'static str, Option<String>, bool) {
        let mut shard = Shard::new(Place::Oldest, "shardId-0".into());
        let record = Record { sequence_number: "7".into(), data: data.into() };
        let accounts = accounts.iter().map(|sid| AccountId::parse(sid).unwrap()).collect();
        let (outcome, account) = match shard.weigh(&record, &accounts) {
            Weighed::Ours(account, _) => ("ours", Some(account.to_string())),
            Weighed::Passed(outcome) => (outcome, None),
        };
        (outcome, account, shard.has_missed)
    }

    fn event_of(account: &str) -> String {
        let data = json!({ "AccountSid": account, "ParticipantSid": "MB1", "ConversationSid": "CH1" });
        json!({ "type": "com.twilio.conversations.participant.updated", "id": "1", "data": data }).to_string()
    }

    #[test]
    fn a_record_that_cannot_be_read_makes_the_shard_forget_and_no_other_does() {
        let broken = r#"{"type":"com.twilio.conversations.participant.added","data":"mallory"}"#;
        for data in ["", "no JSON", "{}", broken] {
            assert_eq!(weighed(data, &[FIRST]), ("undecodable", None, true), "{data}");
        }
        let other = event_of("AC00000000000000000000000000000009");
        assert_eq!(weighed(&other, &[FIRST]), ("refused", None, false));
        assert_eq!(weighed(r#"{"type":"com.twilio.other"}"#, &[FIRST]), ("unknown_type", None, false));
        assert_eq!(weighed(&event_of(SECOND), &[FIRST, SECOND]), ("ours", Some(SECOND.into()), false));
    }

    #[test]
    fn an_event_that_names_no_account_is_the_only_ones_or_makes_the_shard_forget() {
        for sid in ["", "AC0000000000000000000000000000001"] {
            assert_eq!(weighed(&event_of(sid), &[FIRST]), ("ours", Some(FIRST.into()), false), "{sid}");
            assert_eq!(weighed(&event_of(sid), &[FIRST, SECOND]), ("undecodable", None, true), "{sid}");
        }
    }

    #[test]
    fn the_backoff_grows_and_is_bounded() {
        for failures in 1..100 {
            let wait = backoff(failures);
            assert!(wait >= FIRST_BACKOFF / 2 && wait <= LONGEST_BACKOFF, "{wait:?} after {failures}");
        }
        assert!(backoff(1) <= FIRST_BACKOFF && backoff(100) >= LONGEST_BACKOFF / 2);
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_record_is_an_accounts_event_or_passed_over(
            data in prop_oneof![
                any::<Vec<u8>>(),
                "\\{\"type\":\"com\\.twilio\\.[a-z.]{0,40}\",\"id\":\"[ -~]{0,8}\",\"data\":[ -~]{0,20}\\}".prop_map(String::into_bytes),
            ],
        ) {
            let account = AccountId::parse(&format!("AC{}", "0".repeat(32))).unwrap();
            let mut shard = Shard::new(Place::Oldest, "shardId-0".into());
            let record = Record { sequence_number: "7".into(), data };
            let accounts = HashSet::from([account]);
            match shard.weigh(&record, &accounts) {
                Weighed::Ours(..) => prop_assert!(str::from_utf8(&record.data).is_ok()),
                Weighed::Passed(outcome) => prop_assert!(outcome != "undecodable" || shard.has_missed),
            }
        }
    }
}
