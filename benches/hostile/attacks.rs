//! What goes on beside the floods: what is too large, too slow, nonsense that is well framed, and connections for their own
//! sake.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use participant_gateway::proto::GetParticipantRequest;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::floods::{FLOODS, Flood, GET, Pace, Report, attack, framed, request};
use crate::wire::*;

const WATCH: &str = "/participant.v1.ParticipantService/WatchParticipants";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Each has connections from that many addresses.
const ADDRESSES: u8 = 4;
/// One that floods sends so many frames at once, then waits so long: 40,000 frames a second from all.
const FAST: (u32, Duration) = (50, Duration::from_millis(5));
/// One that dawdles.
const SLOW: (u32, Duration) = (1, Duration::from_millis(200));
/// So many of an address stay open; it may have 256.
const HELD: usize = 200;

/// What floods with frames, beside those of `benches/flood`.
const FRAMES: &[Flood] = &[
    Flood { name: "headers of 24 KiB", settings: &[], first: Vec::new, next: long_headers },
    Flood { name: "messages of 1 GiB", settings: &[], first: Vec::new, next: large_message },
    Flood { name: "bytes that are no message", settings: &[], first: Vec::new, next: garbage },
    Flood { name: "ids that are refused", settings: &[], first: Vec::new, next: bad_id },
    Flood { name: "ids that are not there", settings: &[], first: Vec::new, next: guessed },
    Flood { name: "health checks", settings: &[], first: Vec::new, next: health },
    Flood { name: "watchers that read nothing", settings: &[(4, 0)], first: Vec::new, next: watch },
];

const DAWDLERS: &[Flood] = &[Flood {
    name: "a body of 2 MiB, a byte now and then",
    settings: &[],
    first: large_body,
    next: one_byte,
}];

/// One after the other, for as long as there is time.
#[derive(Clone, Copy)]
pub(crate) enum Attack {
    Frames(&'static Flood, (u32, Duration)),
    Connections,
    SilentConnections,
}

impl Attack {
    pub(crate) fn all() -> Vec<Self> {
        let fast = FLOODS.iter().chain(FRAMES).map(|flood| Self::Frames(flood, FAST));
        let slow = DAWDLERS.iter().map(|flood| Self::Frames(flood, SLOW));
        fast.chain(slow).chain([Self::Connections, Self::SilentConnections]).collect()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Frames(flood, _) => flood.name,
            Self::Connections => "connections, closed at once",
            Self::SilentConnections => "connections that say nothing",
        }
    }

    /// From some addresses of loopback, none of which is the good client's.
    pub(crate) async fn run(self, address: SocketAddr, end: Instant) -> Report {
        let mut attackers = JoinSet::new();
        for last in 2..2 + ADDRESSES {
            let from = IpAddr::from([127, 0, 0, last]);
            match self {
                Self::Frames(flood, (batch, pause)) => {
                    attackers.spawn(attack(flood, Pace { from, batch, pause }, address, end));
                }
                Self::Connections => {
                    attackers.spawn(connections(from, address, end));
                }
                Self::SilentConnections => {
                    attackers.spawn(silent(from, address, end));
                }
            }
        }
        let mut all = Report::default();
        for report in attackers.join_all().await {
            all.connections += report.connections;
            for (what, count) in report.told {
                *all.told.entry(what).or_default() += count;
            }
        }
        all
    }
}

async fn connect(from: IpAddr, address: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::new(from, 0)).ok()?;
    timeout(Duration::from_secs(1), socket.connect(address)).await.ok()?.ok()
}

/// Hundreds a second.
async fn connections(from: IpAddr, address: SocketAddr, end: Instant) -> Report {
    let mut report = Report::default();
    while Instant::now() < end {
        for _ in 0..2 {
            report.connections += 1;
            if connect(from, address).await.is_none() {
                report.note("not accepted");
            }
        }
        sleep(FAST.1).await;
    }
    report
}

/// As many as it may have, and each that is closed again.
async fn silent(from: IpAddr, address: SocketAddr, end: Instant) -> Report {
    let mut held = JoinSet::new();
    for _ in 0..HELD {
        held.spawn(async move {
            let mut report = Report::default();
            while Instant::now() < end {
                report.connections += 1;
                let Some(mut stream) = connect(from, address).await else {
                    report.note("not accepted");
                    sleep(SLOW.1).await;
                    continue;
                };
                tokio::select! {
                    _ = stream.read_u8() => report.note("closed"),
                    () = sleep_until(end.into()) => report.note("stood"),
                }
                sleep(SLOW.1).await;
            }
            report
        });
    }
    let mut all = Report::default();
    for report in held.join_all().await {
        all.connections += report.connections;
        for (what, count) in report.told {
            *all.told.entry(what).or_default() += count;
        }
    }
    all
}

fn stream_of(at: u32) -> u32 {
    2 * at + 1
}

fn long_headers(at: u32) -> Vec<u8> {
    let mut more = Vec::new();
    for _ in 0..100 {
        header(&mut more, "x-much", &"m".repeat(112));
    }
    let stream = stream_of(at);
    let begin = frame(HEADERS, END_STREAM, stream, &call_headers(GET));
    [begin, frame(CONTINUATION, 0, stream, &more), frame(CONTINUATION, END_HEADERS, stream, &more)].concat()
}

fn large_message(at: u32) -> Vec<u8> {
    let (stream, mut body) = (stream_of(at), vec![0, 0x40, 0, 0, 0]);
    body.resize(1024, 0);
    [call_without_body(stream, GET), frame(DATA, 0, stream, &body)].concat()
}

fn garbage(at: u32) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0, 64];
    body.extend((0..64).map(|_| fastrand::u8(..)));
    call(stream_of(at), GET, &body)
}

fn bad_id(at: u32) -> Vec<u8> {
    call(stream_of(at), GET, &framed(&request("../..")))
}

/// Each is a request to Twilio, unless there are too many.
fn guessed(at: u32) -> Vec<u8> {
    let participant_id = format!("MB{:032x}", fastrand::u128(..));
    let guessed = GetParticipantRequest { participant_id, ..request("") };
    call(stream_of(at), GET, &framed(&guessed))
}

fn health(at: u32) -> Vec<u8> {
    call(stream_of(at), HEALTH, &[0; 5])
}

fn watch(at: u32) -> Vec<u8> {
    call(stream_of(at), WATCH, &[0; 5])
}

/// A message that is announced as the largest that is taken.
fn large_body() -> Vec<u8> {
    [call_without_body(1, GET), frame(DATA, 0, 1, &[0, 0, 0x1f, 0, 0])].concat()
}

fn one_byte(_at: u32) -> Vec<u8> {
    frame(DATA, 0, 1, &[0])
}
