//! Twilio's events out of a Kinesis stream. One future owns all of it: it lists the shards, asks each in its turn, applies
//! what it finds in the order of the shard, and only then notes how far it came. A record that cannot be read is counted and
//! passed; one that cannot be handed on holds its shard up until it can.

mod client;
mod shard;
mod shards;

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::str::FromStr;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Receiver;
use crate::ids::AccountId;
use client::Client;
use shard::{Patience, Shard, Turn};
use shards::{Listed, Places, Plan};

/// So often the shards are listed although none has ended: AWS may list one later than those end that it came of.
const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// After a stream that was not there.
const RESTART: Duration = Duration::from_secs(5);

/// What is read, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The stream.
    pub stream: Stream,
    /// A shard is asked again so long after its last answer.
    pub poll_interval: Duration,
}

/// A stream's name or its ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Within the account and the region of AWS's own settings.
    Name(String),
    /// Wherever it says.
    Arn {
        /// The whole.
        arn: String,
        /// The region in it.
        region: String,
    },
}

/// The text is neither a name nor an ARN of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a stream's name (letters, digits, _ . -, at most 128) or its ARN, such as arn:aws:kinesis:us-east-1:123456789012:stream/name"
)]
pub struct NoStream;

impl FromStr for Stream {
    type Err = NoStream;

    fn from_str(text: &str) -> Result<Self, NoStream> {
        let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        let is_name = |text: &str| (1..=128).contains(&text.len()) && is_plain(text);
        if is_name(text) {
            return Ok(Self::Name(text.to_owned()));
        }
        let parts: Vec<_> = text.splitn(6, ':').collect();
        let &["arn", partition, "kinesis", region, account, resource] = parts.as_slice() else {
            return Err(NoStream);
        };
        let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let is_stream = resource.strip_prefix("stream/").is_some_and(is_name);
        let is_whole = partition.starts_with("aws") && is_plain(partition) && is_name(region) && is_account;
        let arn = Self::Arn { arn: text.to_owned(), region: region.to_owned() };
        (is_whole && is_stream).then_some(arn).ok_or(NoStream)
    }
}

impl Stream {
    fn name(&self) -> Option<String> {
        match self {
            Self::Name(name) => Some(name.clone()),
            Self::Arn { .. } => None,
        }
    }

    fn arn(&self) -> Option<String> {
        match self {
            Self::Name(_) => None,
            Self::Arn { arn, .. } => Some(arn.clone()),
        }
    }

    fn region(&self) -> Option<&str> {
        match self {
            Self::Name(_) => None,
            Self::Arn { region, .. } => Some(region),
        }
    }
}

/// Reads the stream until the token is cancelled. Events of other accounts than these are passed.
pub async fn follow(
    settings: Settings,
    receiver: Receiver,
    accounts: HashSet<AccountId>,
    end: CancellationToken,
) {
    let read = async {
        let Settings { stream, poll_interval } = settings;
        let client = Client::new(stream).await;
        let reader = Reader { client, receiver, accounts, poll_interval };
        let (mut places, mut progress) = (Places::new(), Progress::default());
        loop {
            reader.read(&mut places, &mut progress).await;
            sleep(RESTART).await;
        }
    };
    end.run_until_cancelled(read).await;
}

/// What all shards are read with.
struct Reader {
    client: Client,
    receiver: Receiver,
    /// Those whose events are taken.
    accounts: HashSet<AccountId>,
    poll_interval: Duration,
}

impl Reader {
    /// Reads all shards, and those that come of them, until one is not there: then the stream is another.
    async fn read(&self, places: &mut Places, progress: &mut Progress) {
        progress.restart();
        let mut turns = FuturesUnordered::new();
        let mut listing = pin!(self.list(Duration::ZERO));
        loop {
            tokio::select! {
                shards = &mut listing => {
                    turns.extend(self.begin(&shards, places, progress).into_iter().map(|shard| shard.turn(self)));
                    listing.set(self.list(LIST_INTERVAL));
                }
                Some((shard, turn)) = turns.next() => {
                    places.insert(shard.id.clone(), shard.place.clone());
                    self.note(progress, &shard.id, &turn);
                    match turn {
                        Turn::Read { .. } | Turn::Failed => turns.push(shard.turn(self)),
                        // Others may have waited for it.
                        Turn::Ended => listing.set(self.list(Duration::ZERO)),
                        Turn::Lost => return,
                    }
                }
            }
        }
    }

    /// Lists the shards after a while; that is repeated until it succeeds.
    async fn list(&self, after: Duration) -> Vec<Listed> {
        sleep(after).await;
        let mut patience = Patience::default();
        loop {
            match self.client.shards().await {
                Ok(shards) => {
                    patience.succeed("the shards of the Kinesis stream are listed again");
                    return shards;
                }
                Err(error) => patience.fail(&error, "list the shards of the Kinesis stream").await,
            }
        }
    }

    /// Those that are to be read from here on.
    fn begin(&self, shards: &[Listed], places: &mut Places, progress: &mut Progress) -> Vec<Shard> {
        let plan = Plan::new(shards, places);
        if plan.has_lost {
            warn!(
                "records of the Kinesis stream went away before they were read: everything cached is forgotten"
            );
            self.receiver.participants.forget_everything();
        }
        *places = plan.places;
        let new = plan.readable.into_iter().filter(|id| progress.begin(id));
        let begun = new.filter_map(|id| Some(Shard::new(places.get(&id)?.clone(), id)));
        begun
            .inspect(|shard| info!(shard = shard.id, place = %shard.place, "reading a Kinesis shard"))
            .collect()
    }

    fn note(&self, progress: &mut Progress, id: &str, turn: &Turn) {
        progress.note(id, turn);
        match progress.up_to() {
            Some(moment) => {
                self.receiver.metrics.kinesis_read(moment.elapsed());
                self.receiver.participants.followed(moment.elapsed());
            }
            None => self.receiver.metrics.kinesis_read(progress.begun.elapsed()),
        }
    }
}

/// Up to which moment the records of each shard were applied; none: it was not read yet.
struct Progress {
    begun: Instant,
    shards: BTreeMap<String, Option<Instant>>,
    /// Up to which all were, when that was last known.
    all: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { begun: Instant::now(), shards: BTreeMap::new(), all: None }
    }
}

impl Progress {
    fn restart(&mut self) {
        self.shards.clear();
    }

    /// Whether it is read from here on, and was not before.
    fn begin(&mut self, id: &str) -> bool {
        let is_new = !self.shards.contains_key(id);
        self.shards.entry(id.to_owned()).or_insert(self.all);
        is_new
    }

    fn note(&mut self, id: &str, turn: &Turn) {
        match turn {
            Turn::Read { up_to } => {
                self.shards.insert(id.to_owned(), Some(*up_to));
            }
            Turn::Ended => {
                self.shards.remove(id);
            }
            Turn::Failed | Turn::Lost => {}
        }
    }

    /// Up to which moment all records were applied; none: a shard was not read yet.
    fn up_to(&mut self) -> Option<Instant> {
        let all: Option<Vec<Instant>> = self.shards.values().copied().collect();
        // Where no shard is left for a while, it stays where it was.
        self.all = all?.into_iter().min().or(self.all);
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_a_name_or_an_arn() {
        assert_eq!("events".parse(), Ok(Stream::Name("events".into())));
        let arn = "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/my.events_1";
        let parsed: Stream = arn.parse().unwrap();
        assert_eq!(
            (parsed.region(), parsed.arn().as_deref(), parsed.name()),
            (Some("cn-north-1"), Some(arn), None)
        );
        let too_long = "x".repeat(129);
        for text in [
            "",
            "a b",
            "a/b",
            &too_long,
            "arn:aws:sqs:us-east-1:123456789012:stream/x",
            "arn:aws:kinesis::123456789012:stream/x",
            "arn:aws:kinesis:us-east-1:12345:stream/x",
            "arn:aws:kinesis:us-east-1:123456789012:stream/",
            "arn:aws:kinesis:us-east-1:123456789012:stream/x/consumer/y:1",
        ] {
            assert_eq!(text.parse::<Stream>(), Err(NoStream), "{text}");
        }
    }

    #[test]
    fn progress_is_that_of_the_shard_furthest_behind() {
        let mut progress = Progress::default();
        assert!(progress.begin("a") && progress.begin("b") && !progress.begin("b"));
        let early = Instant::now();
        let late = early + Duration::from_secs(1);
        progress.note("a", &Turn::Read { up_to: early });
        assert_eq!(progress.up_to(), None, "b was not read yet");
        progress.note("b", &Turn::Read { up_to: late });
        progress.note("b", &Turn::Failed);
        assert_eq!(progress.up_to(), Some(early));
        progress.note("a", &Turn::Ended);
        assert_eq!(progress.up_to(), Some(late), "only b counts");
        assert!(progress.begin("c"));
        assert_eq!(progress.up_to(), Some(late), "what came of a is no further behind than a was");
        progress.note("b", &Turn::Ended);
        progress.note("c", &Turn::Ended);
        assert_eq!(progress.up_to(), Some(late));
    }
}
