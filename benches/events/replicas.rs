//! Three replicas on one Redis, each caching for hours: how long after an acknowledged write is the older value still read?

use std::time::{Duration, Instant};

use participant_gateway::proto::{
    ConversationRef, GetParticipantRequest, Participant, UpdateParticipantRequest,
};
use participant_gateway::sandbox::{Sandbox, Settings, V1_CONVERSATION, V2_CONVERSATION};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::processes::{Client, Gateway, Redis};

const REPLICAS: usize = 3;
const READERS: usize = 3;
const LENGTH: Duration = Duration::from_secs(60);
/// From a write to the next, at most.
const LONGEST_PAUSE: u64 = 100;
/// Far more than Redis takes.
const LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
enum Face {
    V1,
    V2,
}

/// The value of this number was acknowledged.
struct Write {
    replica: usize,
    acknowledged: Instant,
}

struct Read {
    replica: usize,
    began: Instant,
    ended: Instant,
    value: usize,
}

pub(crate) async fn run() {
    println!(
        "{REPLICAS} replicas, {} s each; ms from the acknowledgement to the first read of the new value, at each other",
        LENGTH.as_secs()
    );
    println!("{:<40} writes     reads  at the writer  elsewhere  median    99 %     max", "older reads:");
    measure("Redis in memory", false).await;
    measure("Redis, appendfsync always", true).await;
}

async fn measure(name: &str, is_durable: bool) {
    let sandbox = Sandbox::bind(Settings::default()).await.expect("a sandbox");
    let (twilio, end) = (sandbox.local_addr(), CancellationToken::new());
    tokio::spawn(sandbox.run(end.clone()));
    let redis = Redis::start(is_durable).await;
    let url = redis.url();
    let hours = [("GATEWAY_CACHE_TTL", "5h"), ("GATEWAY_CACHE_TTL_WITHOUT_EVENTS", "5h")];
    let env = [hours[0], hours[1], ("GATEWAY_REDIS_URL", url.as_str())];
    let (mut gateways, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..REPLICAS {
        let gateway = Gateway::start(twilio, &env).await.current().await;
        clients.push(gateway.addresses.connect().await.expect("a connection"));
        gateways.push(gateway);
    }
    let (v1, v2) = tokio::join!(load(Face::V1, clients.clone()), load(Face::V2, clients));
    report(&format!("v1, {name}"), &v1.0, v1.1);
    report(&format!("v2, {name}"), &v2.0, v2.1);
    end.cancel();
}

/// One writer and some readers of one participant, each call through any replica.
async fn load(face: Face, mut clients: Vec<Client>) -> (Vec<Write>, Vec<Read>) {
    let end = Instant::now() + LENGTH;
    let first = write(face, &mut clients, 0).await;
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        readers.spawn(read(face, clients.clone(), end));
    }
    let mut writes = vec![first];
    while Instant::now() < end {
        writes.push(write(face, &mut clients, writes.len()).await);
        sleep(Duration::from_millis(fastrand::u64(..LONGEST_PAUSE))).await;
    }
    (writes, readers.join_all().await.into_iter().flatten().collect())
}

async fn write(face: Face, clients: &mut [Client], value: usize) -> Write {
    let replica = fastrand::usize(..REPLICAS);
    let value = value.to_string();
    let participant = match face {
        Face::V1 => Participant { attributes: format!("{{\"value\":{value}}}"), ..Default::default() },
        Face::V2 => Participant { display_name: value, ..Default::default() },
    };
    let GetParticipantRequest { conversation, participant_id, .. } = face.get();
    let participant = Some(participant);
    let request =
        UpdateParticipantRequest { conversation, participant_id, participant, ..Default::default() };
    clients[replica].update_participant(request).await.expect("it is written");
    Write { replica, acknowledged: Instant::now() }
}

async fn read(face: Face, mut clients: Vec<Client>, end: Instant) -> Vec<Read> {
    let mut reads = Vec::new();
    while Instant::now() < end {
        let (replica, began) = (fastrand::usize(..REPLICAS), Instant::now());
        let answer = clients[replica].get_participant(face.get()).await.expect("it is read");
        let value = face.value(&answer.into_inner().participant.expect("a participant"));
        reads.push(Read { replica, began, ended: Instant::now(), value });
    }
    reads
}

impl Face {
    fn get(self) -> GetParticipantRequest {
        let (conversation, participant) = match self {
            Self::V1 => (V1_CONVERSATION, "MB00000000000000000000000000000001"),
            Self::V2 => (V2_CONVERSATION, "conv_participant_00000000000000000000000001"),
        };
        GetParticipantRequest {
            conversation: Some(ConversationRef {
                conversation_id: conversation.into(),
                ..Default::default()
            }),
            participant_id: participant.into(),
            read_options: None,
        }
    }

    fn value(self, participant: &Participant) -> usize {
        let text = match self {
            Self::V1 => participant.attributes.trim_matches(|letter: char| !letter.is_ascii_digit()),
            Self::V2 => &participant.display_name,
        };
        text.parse().expect("the value that was written")
    }
}

fn report(name: &str, writes: &[Write], mut reads: Vec<Read>) {
    reads.sort_by_key(|read| read.began);
    let (mut at_writer, mut elsewhere, mut too_late) = (0, 0, 0);
    for read in &reads {
        // The first value that is newer than what was read.
        let Some(newer) = writes.get(read.value + 1).filter(|newer| newer.acknowledged < read.began) else {
            continue;
        };
        too_late += usize::from(read.began - newer.acknowledged > LIMIT);
        let is_own = writes[read.value + 1..]
            .iter()
            .take_while(|write| write.acknowledged < read.began)
            .any(|write| write.replica == read.replica);
        if is_own { at_writer += 1 } else { elsewhere += 1 }
    }
    let mut delays = delays(writes, &reads);
    delays.sort();
    let millis = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    println!(
        "{name:<37} {:>9} {:>9} {at_writer:>14} {elsewhere:>10} {:>7.2} {:>7.2} {:>7.2}",
        writes.len(),
        reads.len(),
        millis(0.5),
        millis(0.99),
        millis(1.0)
    );
    let steps_back = steps_back(&reads);
    assert_eq!(
        (at_writer, too_late, steps_back),
        (0, 0, 0),
        "older at the writer, after a second, after the newer one"
    );
}

/// For each write and each other replica, how long after the acknowledgement the first read began that no older value
/// followed.
fn delays(writes: &[Write], reads: &[Read]) -> Vec<Duration> {
    let mut delays = Vec::new();
    for replica in 0..REPLICAS {
        let here: Vec<&Read> = reads.iter().filter(|read| read.replica == replica).collect();
        for (value, write) in writes.iter().enumerate().filter(|(_, write)| write.replica != replica) {
            let from = here.partition_point(|read| read.began <= write.acknowledged);
            let stale = here[from..].iter().take_while(|read| read.began < write.acknowledged + LIMIT);
            let last = stale.enumerate().filter(|(_, read)| read.value < value).last();
            match (last, here.get(from + last.map_or(0, |(index, _)| index + 1))) {
                (Some(_), Some(first)) => delays.push(first.began - write.acknowledged),
                (None, Some(_)) => delays.push(Duration::ZERO),
                (_, None) => {}
            }
        }
    }
    delays
}

/// How many reads began at a replica after another had ended there with a newer value.
fn steps_back(reads: &[Read]) -> usize {
    (0..REPLICAS)
        .map(|replica| {
            let mut ended: Vec<&Read> = reads.iter().filter(|read| read.replica == replica).collect();
            let began = ended.clone();
            ended.sort_by_key(|read| read.ended);
            let (mut next, mut newest) = (0, 0);
            let is_older = |read: &&Read| {
                while let Some(before) = ended.get(next).filter(|before| before.ended < read.began) {
                    newest = newest.max(before.value);
                    next += 1;
                }
                read.value < newest
            };
            began.into_iter().filter(is_older).count()
        })
        .sum()
}
