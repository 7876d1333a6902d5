//! What the attackers send, and what the gateway says to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use participant_gateway::proto::{ConversationRef, GetParticipantRequest, ListParticipantsRequest};
use participant_gateway::sandbox::V1_CONVERSATION;
use tokio::time::{sleep, sleep_until};

use crate::wire::*;

pub(crate) const GET: &str = "/participant.v1.ParticipantService/GetParticipant";
pub(crate) const LIST: &str = "/participant.v1.ParticipantService/ListParticipants";
/// Listed by the attackers: some 25 KB, more than is handed to HTTP/2 at once.
pub(crate) const LISTED: u32 = 50;
pub(crate) const LARGE_CONVERSATION: &str = "CH000000000000000000000000000000f1";
/// Read by the victim, from the cache.
pub(crate) const CALM: &str = "alice";
/// Read by the attackers: the sandbox takes ten seconds over it.
pub(crate) const SLOW: &str = "MB00000000000000000000000000000001";

/// What a connection sends.
pub(crate) struct Flood {
    pub(crate) name: &'static str,
    /// What it sets for the gateway's answers.
    pub(crate) settings: &'static [(u16, u32)],
    pub(crate) first: fn() -> Vec<u8>,
    /// Sent again and again, each time with the next number, counted from 0.
    pub(crate) next: fn(u32) -> Vec<u8>,
}

pub(crate) const NO_WINDOW: &[(u16, u32)] = &[(4, 0)];

pub(crate) const FLOODS: &[Flood] = &[
    Flood { name: "rapid reset", settings: &[], first: Vec::new, next: |at| reset(at, CALM) },
    Flood { name: "rapid reset of 10 s calls", settings: &[], first: Vec::new, next: |at| reset(at, SLOW) },
    Flood {
        name: "CONTINUATION",
        settings: &[],
        first: open_headers,
        next: |_| frame(CONTINUATION, 0, 1, &[0; 64]),
    },
    Flood { name: "empty DATA", settings: &[], first: open_body, next: |_| frame(DATA, 0, 1, &[]) },
    Flood { name: "DATA of 1 byte", settings: &[], first: open_body, next: |_| frame(DATA, 0, 1, &[0]) },
    Flood { name: "PING", settings: &[], first: Vec::new, next: |_| frame(PING, 0, 0, &[0; 8]) },
    Flood { name: "SETTINGS", settings: &[], first: Vec::new, next: |_| frame(SETTINGS, 0, 0, &[]) },
    Flood {
        name: "PRIORITY",
        settings: &[],
        first: Vec::new,
        next: |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]),
    },
    Flood {
        name: "HPACK garbage",
        settings: &[],
        first: Vec::new,
        next: |at| frame(HEADERS, END_HEADERS, 2 * at + 1, &[0xff; 64]),
    },
    Flood {
        name: "random bytes",
        settings: &[],
        first: Vec::new,
        next: |_| (0..64).map(|_| fastrand::u8(..)).collect(),
    },
    Flood {
        name: "10 s calls",
        settings: &[],
        first: Vec::new,
        next: |at| call(2 * at + 1, GET, &get(SLOW)),
    },
    Flood {
        name: "calls without a body",
        settings: &[],
        first: Vec::new,
        next: |at| call_without_body(2 * at + 1, GET),
    },
    Flood {
        name: "answers that are not read",
        settings: NO_WINDOW,
        first: Vec::new,
        next: |at| call(2 * at + 1, GET, &get(CALM)),
    },
    Flood {
        name: "lists of which a byte is read",
        settings: &[(4, 1)],
        first: Vec::new,
        next: |at| call(2 * at + 1, LIST, &list()),
    },
];

fn reset(at: u32, participant: &str) -> Vec<u8> {
    let stream = 2 * at + 1;
    [call(stream, GET, &get(participant)), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
}

pub(crate) fn open_headers() -> Vec<u8> {
    frame(HEADERS, 0, 1, &call_headers(GET))
}

/// A message that is announced as 2 MiB, the largest that is taken.
fn open_body() -> Vec<u8> {
    [call_without_body(1, GET), frame(DATA, 0, 1, &[0, 0, 0x20, 0, 0])].concat()
}

fn list() -> Vec<u8> {
    let conversation = ConversationRef { conversation_id: LARGE_CONVERSATION.into(), ..Default::default() };
    let request =
        ListParticipantsRequest { conversation: Some(conversation), page_size: 100, ..Default::default() };
    framed(&request)
}

pub(crate) fn request(participant: &str) -> GetParticipantRequest {
    let conversation = ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() };
    GetParticipantRequest {
        conversation: Some(conversation),
        participant_id: participant.into(),
        read_options: None,
    }
}

pub(crate) fn get(participant: &str) -> Vec<u8> {
    framed(&request(participant))
}

pub(crate) fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("it is short");
    [&[0][..], &length.to_be_bytes(), &message].concat()
}

#[derive(Default)]
pub(crate) struct Report {
    pub(crate) connections: usize,
    pub(crate) told: BTreeMap<String, usize>,
}

impl Report {
    pub(crate) fn note(&mut self, what: impl Into<String>) {
        *self.told.entry(what.into()).or_default() += 1;
    }
}

/// How fast a connection sends, and from where.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) from: IpAddr,
    /// So many at once.
    pub(crate) batch: u32,
    /// Between two batches, and before a connection that was closed is opened anew.
    pub(crate) pause: Duration,
}

/// One connection after the other.
pub(crate) async fn attack(flood: &'static Flood, pace: Pace, address: SocketAddr, end: Instant) -> Report {
    let mut report = Report::default();
    while Instant::now() < end {
        report.connections += 1;
        let ended = connection(flood, pace, address, end, &mut report).await;
        report.note(ended);
        if !pace.pause.is_zero() {
            sleep(pace.pause).await;
        }
    }
    report
}

/// How it ended.
async fn connection(
    flood: &'static Flood,
    pace: Pace,
    address: SocketAddr,
    end: Instant,
    report: &mut Report,
) -> String {
    let Wire { mut reader, mut writer } =
        Wire::connect_from(pace.from, address).await.greet(flood.settings).await;
    let writing = async {
        let mut sent = writer.send(&(flood.first)()).await;
        let mut at = 0;
        while sent.is_ok() {
            let batch: Vec<u8> = (at..at + pace.batch).flat_map(flood.next).collect();
            // Nothing is sent twice as a stream: its number would be too large.
            at = (at + pace.batch) % (1 << 30);
            sent = writer.send(&batch).await;
            if !pace.pause.is_zero() {
                sleep(pace.pause).await;
            }
        }
        // What the gateway still says is read to its end.
        std::future::pending::<()>().await;
    };
    let reading = async {
        while let Some(frame) = reader.next().await {
            match frame.kind {
                GOAWAY if frame.error() != 0 => return format!("GOAWAY {}", name_of(frame.error())),
                RST_STREAM if frame.error() == REFUSED_STREAM => report.note("REFUSED_STREAM"),
                _ => {}
            }
        }
        "closed".to_owned()
    };
    tokio::select! {
        ended = reading => ended,
        () = writing => unreachable!("it waits for ever"),
        () = sleep_until(end.into()) => "stood".to_owned(),
    }
}

/// The errors of HTTP/2 by their names.
fn name_of(error: u32) -> String {
    match error {
        1 => "PROTOCOL_ERROR".to_owned(),
        9 => "COMPRESSION_ERROR".to_owned(),
        6 => "FRAME_SIZE_ERROR".to_owned(),
        ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM".to_owned(),
        other => other.to_string(),
    }
}
