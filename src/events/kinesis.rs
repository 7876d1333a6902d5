//! Twilio's events out of a Kinesis stream. One future owns all of it: it lists the shards, asks each in its turn, applies
//! what it finds in the order of the shard, and only then notes how far it came. A record that cannot be read is counted and
//! passed; one that cannot be handed on holds its shard up until it can.

mod client;
mod shard;
mod shards;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
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
use crate::participants::{Lease, LeaseError};
use client::Client;
use shard::{Patience, Shard, Turn};
use shards::{Listed, Place, Places, Plan, from_text, to_text};

/// So often the shards are listed although none has ended: AWS may list one later than those end that it came of.
const LIST_INTERVAL: Duration = Duration::from_secs(30);
/// So long a shard may be listed as open that was read to its end: AWS may list what was so before.
const LIST_LAG: Duration = Duration::from_secs(60);
/// After a stream that was not there.
const RESTART: Duration = Duration::from_secs(5);
/// A replica that is gone is succeeded after so long.
const LEASE: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(5);
/// So often the others ask for it.
const STANDBY: Duration = Duration::from_secs(2);

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

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Name(text) | Self::Arn { arn: text, .. }) = self;
        f.write_str(text)
    }
}

impl Stream {
    /// Without region and account: one replica may have an ARN where another has a name.
    fn bare_name(&self) -> &str {
        let (Self::Name(text) | Self::Arn { arn: text, .. }) = self;
        text.rsplit_once('/').map_or(text, |(_, name)| name)
    }

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

/// Reads the stream until the token is cancelled; where replicas share a bus, in turn with them. Events of other accounts than
/// these are passed.
pub async fn follow(
    settings: Settings,
    receiver: Receiver,
    accounts: HashSet<AccountId>,
    end: CancellationToken,
) {
    let Settings { stream, poll_interval } = settings;
    let name = format!("kinesis:{}", stream.bare_name());
    let Some(client) = end.run_until_cancelled(Client::new(stream)).await else { return };
    receiver.participants.observe_followed(&receiver.metrics);
    let reader = Reader { client, name, receiver, accounts, poll_interval };
    let mut places = Places::new();
    while let Some(lease) = end.run_until_cancelled(reader.lease()).await {
        let term = async {
            tokio::select! {
                () = keep(&lease) => warn!("lost the right to read Kinesis: another replica will"),
                () = reader.read_all(&lease, &mut places) => {}
            }
        };
        end.run_until_cancelled(term).await;
        lease.release().await;
    }
}

/// Returns once the lease cannot be relied on any more.
async fn keep(lease: &Lease) {
    let mut renewed = Instant::now();
    loop {
        sleep(RENEWAL).await;
        let asked = Instant::now();
        match lease.renew().await {
            Ok(()) => renewed = asked,
            Err(LeaseError::Away) if renewed.elapsed() + RENEWAL < LEASE => {}
            Err(_) => return,
        }
    }
}

/// What all shards are read with.
struct Reader {
    client: Client,
    /// Of the lease, and of the places that are saved.
    name: String,
    receiver: Receiver,
    /// Those whose events are taken.
    accounts: HashSet<AccountId>,
    poll_interval: Duration,
}

impl Reader {
    /// Waits until it is this replica's turn to read. Alone, it always is.
    async fn lease(&self) -> Lease {
        let mut stands_by = false;
        loop {
            match self.receiver.participants.lease(&self.name, LEASE).await {
                Ok(lease) => return lease,
                Err(LeaseError::Lost) if !stands_by => {
                    info!("another replica reads Kinesis: standing by");
                    stands_by = true;
                }
                // Without the bus nothing that was read could be handed on.
                Err(LeaseError::Lost | LeaseError::Away) => {}
            }
            sleep(STANDBY).await;
        }
    }

    async fn read_all(&self, lease: &Lease, places: &mut Places) {
        if let Some(saved) = self.saved().await {
            *places = saved;
        }
        let mut progress = Progress::default();
        loop {
            self.read(lease, places, &mut progress).await;
            sleep(RESTART).await;
        }
    }

    /// Where the reader before this one stood.
    async fn saved(&self) -> Option<Places> {
        loop {
            match self.receiver.participants.saved(&self.name).await {
                Ok(None) => return None,
                Ok(Some(text)) => {
                    let places = from_text(&text);
                    if places.is_none() {
                        warn!("what was saved of the place in Kinesis cannot be read: reading from now on");
                    }
                    return places;
                }
                Err(_) => sleep(STANDBY).await,
            }
        }
    }

    /// Reads all shards, and those that come of them, until one is not there: then the stream is another.
    async fn read(&self, lease: &Lease, places: &mut Places, progress: &mut Progress) {
        progress.restart();
        let mut is_saved = true;
        let mut turns = FuturesUnordered::new();
        let mut listing = pin!(self.list(Duration::ZERO));
        loop {
            tokio::select! {
                mut shards = &mut listing => {
                    progress.close_ended(&mut shards);
                    let begun = self.begin(&shards, places, progress).await;
                    turns.extend(begun.into_iter().map(|shard| shard.turn(self)));
                    listing.set(self.list(LIST_INTERVAL));
                }
                Some((shard, turn)) = turns.next() => {
                    let before = places.insert(shard.id.clone(), shard.place.clone());
                    if !is_saved || before.as_ref() != Some(&shard.place) {
                        is_saved = lease.save(&self.name, &to_text(places)).await.is_ok();
                    }
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
    async fn begin(&self, shards: &[Listed], places: &mut Places, progress: &mut Progress) -> Vec<Shard> {
        let plan = Plan::new(shards, places);
        if plan.has_lost {
            warn!(
                "records of the Kinesis stream went away before they were read: everything cached is forgotten, and watchers end"
            );
            shard::lose_events(&self.receiver.participants).await;
        }
        progress.forget_succeeded(shards, places, &plan.places);
        *places = plan.places;
        let new = plan.readable.into_iter().filter(|id| progress.begin(id));
        let begun = new.filter_map(|id| Some(Shard::new(places.get(&id)?.clone(), id)));
        begun
            .inspect(|shard| info!(shard = shard.id, place = %shard.place, "reading a Kinesis shard"))
            .collect()
    }

    fn note(&self, progress: &mut Progress, id: &str, turn: &Turn) {
        progress.note(id, turn);
        if let Some(moment) = progress.up_to() {
            self.receiver.participants.followed(moment.elapsed());
        }
    }
}

/// Up to which moment the records of each shard were applied; none: it was not read yet.
#[derive(Default)]
struct Progress {
    shards: BTreeMap<String, Option<Instant>>,
    /// When shards ended.
    ended: BTreeMap<String, Instant>,
    /// Up to which all were, when that was last known.
    all: Option<Instant>,
}

impl Progress {
    fn restart(&mut self) {
        self.shards.clear();
        self.ended.clear();
    }

    /// A list may be older than the end of a shard. Much later, one that is open again is another stream's.
    fn close_ended(&mut self, shards: &mut [Listed]) {
        self.ended.retain(|_, ended| ended.elapsed() < LIST_LAG);
        for shard in shards {
            shard.is_open &= !self.ended.contains_key(&shard.id);
        }
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
            // Nobody reads yet what came of it: where it was read up to still counts.
            Turn::Ended => {
                self.ended.insert(id.to_owned(), Instant::now());
            }
            Turn::Failed | Turn::Lost => {}
        }
    }

    /// Leaves out what was read to its end, once something that came of it is read, or AWS has it no longer.
    fn forget_succeeded(&mut self, shards: &[Listed], before: &Places, places: &Places) {
        let is_read = |shard: &&Listed| places.contains_key(&shard.id);
        let succeeded: HashSet<_> = shards.iter().filter(is_read).flat_map(|shard| &shard.parents).collect();
        let is_waited_for = |id: &String| places.contains_key(id) && !succeeded.contains(id);
        self.shards.retain(|id, _| before.get(id) != Some(&Place::Ended) || is_waited_for(id));
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
        let named: Stream = "my.events_1".parse().unwrap();
        assert_eq!((parsed.bare_name(), named.bare_name()), ("my.events_1", "my.events_1"));
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
    fn a_shard_that_has_just_ended_is_not_open_whatever_an_old_list_says() {
        let listed = |id: &str| Listed { id: id.into(), parents: Vec::new(), is_open: true };
        let open = |progress: &mut Progress| {
            let mut shards = [listed("a"), listed("b")];
            progress.close_ended(&mut shards);
            shards.map(|shard| shard.is_open)
        };
        let mut progress = Progress::default();
        progress.note("a", &Turn::Ended);
        assert_eq!(open(&mut progress), [false, true]);
        progress.ended.values_mut().for_each(|ended| *ended -= LIST_LAG);
        assert_eq!(open(&mut progress), [true, true], "a list does not lag for so long");
        assert!(progress.ended.is_empty());

        progress.note("a", &Turn::Ended);
        progress.restart();
        assert_eq!(open(&mut progress), [true, true], "the stream is another");
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
        progress.note("b", &Turn::Ended);
        assert_eq!(progress.up_to(), Some(early), "what came of them is not read");
    }

    #[test]
    fn a_shard_that_has_ended_counts_until_what_came_of_it_is_read() {
        let shard = |id: &str, parent: Option<&str>| {
            let parents = parent.map(ToOwned::to_owned).into_iter().collect();
            Listed { id: id.into(), parents, is_open: parent.is_some() }
        };
        let early = Instant::now();
        let [late, later] = [1, 2].map(|seconds| early + Duration::from_secs(seconds));
        let mut progress = Progress::default();
        assert!(progress.begin("a") && progress.begin("b"));
        progress.note("a", &Turn::Read { up_to: early });
        progress.note("a", &Turn::Ended);
        progress.note("b", &Turn::Read { up_to: late });

        let mut shards = vec![shard("a", None), shard("b", None)];
        let before = Places::from([("a".into(), Place::Ended), ("b".into(), Place::Oldest)]);
        let mut places = before.clone();
        progress.forget_succeeded(&shards, &before, &places);
        assert_eq!(progress.up_to(), Some(early), "what came of it is not listed yet");
        shards.push(shard("c", Some("a")));
        progress.forget_succeeded(&shards, &before, &places);
        assert_eq!(progress.up_to(), Some(early), "it waits for another");
        places.insert("c".into(), Place::Oldest);
        progress.forget_succeeded(&shards, &before, &places);
        assert!(progress.begin("c"));
        assert_eq!(progress.up_to(), Some(early), "nothing of it was read");
        progress.note("c", &Turn::Read { up_to: later });
        assert_eq!(progress.up_to(), Some(late));

        progress.note("b", &Turn::Ended);
        places.remove("b");
        progress.forget_succeeded(&shards[2..], &Places::from([("b".into(), Place::Ended)]), &places);
        assert_eq!(progress.up_to(), Some(later), "who is gone holds up nobody");
    }
}
