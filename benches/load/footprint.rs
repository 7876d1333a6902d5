//! What a gateway takes of memory, idle and with a full cache, and how soon it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use participant_gateway::proto::{CacheStatus, GetParticipantResponse};
use prost::Message as _;

use crate::client::{Answer, CONNECTIONS, Client, ask, framed};
use crate::gateway::{CACHED, Read, call, checked};
use crate::process::{Cores, Process};

const STARTS: usize = 11;
const FILLINGS: usize = 3;
/// Far more than there is to keep.
const CACHE_BYTES: &str = "4294967296";
pub(crate) struct Footprint {
    /// From the start of the process to its first answer.
    pub(crate) start_ms: Vec<f64>,
    pub(crate) bare_start_ms: Vec<f64>,
    /// After that answer.
    pub(crate) idle_mib: Vec<f64>,
    pub(crate) bare_idle_mib: Vec<f64>,
    pub(crate) entries: u64,
    pub(crate) encoded_bytes: usize,
    pub(crate) bytes_an_entry: Vec<f64>,
}

pub(crate) async fn measure(cores: Cores, entries: u64) -> Footprint {
    eprintln!("Start and memory");
    let upstream = cores.upstream(Duration::ZERO);
    let (warm, answer) = checked(&cores.gateway(&upstream, &[]), Read::Cached).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), answer).expect("it is written");
    let (mut start_ms, mut bare_start_ms) = (Vec::new(), Vec::new());
    let (mut idle_mib, mut bare_idle_mib) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let began = Instant::now();
        let gateway = cores.gateway(&upstream, &[]);
        ask(gateway.address, &warm).await;
        start_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        idle_mib.push(gateway.resident_bytes() / 1024.0 / 1024.0);
        drop(gateway);
        let began = Instant::now();
        let bare = cores.bare(file.path());
        ask(bare.address, &warm).await;
        bare_start_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        bare_idle_mib.push(bare.resident_bytes() / 1024.0 / 1024.0);
    }
    let mut bytes_an_entry = Vec::new();
    for number in 1..=FILLINGS {
        bytes_an_entry.push(fill(cores, &upstream, entries).await);
        eprintln!("  filling {number} of {FILLINGS}: {:.0} bytes an entry", bytes_an_entry[number - 1]);
    }
    let encoded_bytes = warm.answer.len();
    Footprint { start_ms, bare_start_ms, idle_mib, bare_idle_mib, entries, encoded_bytes, bytes_an_entry }
}

/// By how much a gateway grows for each participant that it keeps.
async fn fill(cores: Cores, upstream: &Process, entries: u64) -> f64 {
    let env: Vec<_> = CACHED.into_iter().chain([("GATEWAY_CACHE_MAX_BYTES", CACHE_BYTES)]).collect();
    let gateway = cores.gateway(upstream, &env);
    let (warm, _) = checked(&gateway, Read::PastTheCache).await;
    let client = Client::connect(gateway.address, &warm, CONNECTIONS).await;
    // Whatever is made once, for connections, pools and buffers, is not the cache's.
    client.saturate(Duration::from_secs(2)).await;
    let before = gateway.resident_bytes();
    read_all(&client, entries, CacheStatus::Miss).await;
    let after = gateway.resident_bytes();
    // All of them are there, or the figure means nothing.
    read_all(&client, entries, CacheStatus::Hit).await;
    (after - before) / entries as f64
}

async fn read_all(client: &Client, entries: u64, expected: CacheStatus) {
    let counted = Arc::new(AtomicU64::new(0));
    // The first participant was read before.
    let frame = |number| framed(&call(number + 2, Read::Cached).request);
    let note = {
        let counted = counted.clone();
        move |_, answer: Answer| {
            let decoded = GetParticipantResponse::decode(answer.expect("it is read")).expect("a message");
            let is_as_expected = decoded.read_info.is_some_and(|info| info.cache_status() == expected);
            counted.fetch_add(u64::from(is_as_expected), Ordering::Relaxed);
        }
    };
    client.each(entries, frame, note).await;
    assert_eq!(counted.load(Ordering::Relaxed), entries, "each is {expected:?}");
}
