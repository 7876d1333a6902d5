//! Reads, pages, meets a deadline and watches, through the gateway:
//!
//!     cargo run -- 127.0.0.1:50051 CH00000000000000000000000000000001

use std::error::Error;
use std::time::{Duration, Instant};

use pb::participant_service_client::ParticipantServiceClient;
use pb::watch_participants_response::Message;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

#[allow(clippy::large_enum_variant)]
mod pb {
    tonic::include_proto!("participant.v1");
}

type Client = ParticipantServiceClient<Channel>;

const ATTEMPTS: u32 = 6;
/// Three heartbeats: a watcher that hears nothing for so long is not connected, whatever its connection says.
const SILENCE: Duration = Duration::from_secs(45);

fn reason(status: &Status) -> String {
    // An error of the network has no details.
    status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason)
}

/// How long to wait before the call is repeated, if it may be.
fn wait_before(attempt: u32, status: &Status) -> Option<Duration> {
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    if pushback.is_some_and(|pushback| pushback == "-1") {
        return None;
    }
    if let Some(wait) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
        // Never shorter, and a little longer by chance, so that callers who were told the same do not come back at once.
        return Some(wait.mul_f64(1.0 + fastrand::f64() / 10.0));
    }
    is_passing(status).then(|| backoff(attempt))
}

/// tonic tells a connection that broke as UNKNOWN; the gateway's own UNKNOWN has an `ErrorInfo`.
fn is_passing(status: &Status) -> bool {
    let is_network = status.code() == Code::Unknown && status.get_details_error_info().is_none();
    is_network || status.code() == Code::Unavailable
}

fn backoff(attempt: u32) -> Duration {
    let longest = Duration::from_millis(100 << attempt.min(6)).min(Duration::from_secs(5));
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The one place that repeats calls: only those that are safe to repeat go through it, and all within one deadline.
async fn repeated<Q: Clone, A>(
    request: Q,
    limit: Duration,
    mut call: impl AsyncFnMut(Request<Q>) -> Result<Response<A>, Status>,
) -> Result<A, Status> {
    let deadline = Instant::now() + limit;
    for attempt in 1.. {
        let mut request = Request::new(request.clone());
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let status = match call(request).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        match wait_before(attempt, &status) {
            Some(wait) if attempt < ATTEMPTS && Instant::now() + wait < deadline => {
                println!("retry: {}, in {:.1} s", reason(&status), wait.as_secs_f64());
                sleep(wait).await;
            }
            _ => return Err(status),
        }
    }
    unreachable!("the last attempt returns")
}

async fn page(
    client: &mut Client,
    conversation: &pb::ConversationRef,
) -> Result<Vec<pb::Participant>, Status> {
    let mut request = pb::ListParticipantsRequest {
        conversation: Some(conversation.clone()),
        page_size: 2,
        ..Default::default()
    };
    let mut participants = Vec::new();
    let mut pages = 0;
    loop {
        let answer = repeated(request.clone(), Duration::from_secs(10), async |request| {
            client.list_participants(request).await
        })
        .await?;
        participants.extend(answer.participants);
        pages += 1;
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            println!("page: {} participants on {pages} pages", participants.len());
            return Ok(participants);
        }
    }
}

/// Asks Twilio; without options it would be the gateway's default.
fn fresh(conversation: &pb::ConversationRef, id: &str) -> pb::GetParticipantRequest {
    pb::GetParticipantRequest {
        conversation: Some(conversation.clone()),
        participant_id: id.to_owned(),
        read_options: Some(pb::ReadOptions {
            max_age: Some(prost_types::Duration::default()),
            ..Default::default()
        }),
    }
}

async fn read(client: &mut Client, conversation: &pb::ConversationRef, id: &str) -> Result<(), Status> {
    let request = fresh(conversation, id);
    let answer =
        repeated(request, Duration::from_secs(10), async |request| client.get_participant(request).await)
            .await?;
    let status = answer.read_info.unwrap_or_default().cache_status();
    println!("read: {} {}", answer.participant.unwrap_or_default().id, status.as_str_name());
    Ok(())
}

/// Not repeated: who has no more time has none for another attempt.
async fn meet_deadline(client: &mut Client, conversation: &pb::ConversationRef, id: &str) {
    let mut request = Request::new(fresh(conversation, id));
    // The gateway answers just before; where it does not, tonic's own clock says CANCELLED.
    request.set_timeout(Duration::from_millis(300));
    let code = client.get_participant(request).await.map_or_else(|status| status.code(), |_| Code::Ok);
    println!("deadline: {code:?}");
}

async fn create(client: &mut Client, conversation: &pb::ConversationRef) -> Result<String, Status> {
    let mut address =
        pb::Address { address: format!("client-{}", uuid::Uuid::new_v4()), ..Default::default() };
    address.set_channel(pb::Channel::Chat);
    let request = pb::CreateParticipantRequest {
        conversation: Some(conversation.clone()),
        participant: Some(pb::Participant { addresses: vec![address], ..Default::default() }),
        // The same id at every attempt makes this create safe to repeat.
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let answer =
        repeated(request, Duration::from_secs(20), async |request| client.create_participant(request).await)
            .await?;
    let id = answer.participant.unwrap_or_default().id;
    println!("create: {id}");
    Ok(id)
}

/// What a watcher hands on.
enum Told {
    /// All that is read from here on is either read or told.
    Begun,
    Event(Box<pb::ParticipantEvent>),
}

/// Hands on every change once, whatever becomes of the connection, until nobody takes them any more.
async fn watch(
    mut client: Client,
    conversation: pb::ConversationRef,
    told: UnboundedSender<Told>,
) -> Result<(), Status> {
    let mut token = String::new();
    let mut failures = 0;
    loop {
        let Err(status) = watch_once(&mut client, &conversation, &mut token, &mut failures, &told).await
        else {
            return Ok(());
        };
        match status.get_details_error_info() {
            Some(info) if info.reason == "WATCH_LAGGED" => token.clone_from(&info.metadata["resume_token"]),
            Some(info) if info.reason == "RESUME_TOKEN_EXPIRED" => token.clear(),
            _ if is_passing(&status) || status.code() == Code::DeadlineExceeded => {}
            _ => return Err(status),
        }
        println!("watch: resumes after {}", reason(&status));
        failures += 1;
        sleep(backoff(failures)).await;
    }
}

async fn watch_once(
    client: &mut Client,
    conversation: &pb::ConversationRef,
    token: &mut String,
    failures: &mut u32,
    told: &UnboundedSender<Told>,
) -> Result<(), Status> {
    let request = pb::WatchParticipantsRequest {
        conversations: vec![conversation.clone()],
        resume_token: token.clone(),
        ..Default::default()
    };
    let mut stream = client.watch_participants(request).await?.into_inner();
    loop {
        let silent = |_| Status::deadline_exceeded("silence");
        let Some(message) = timeout(SILENCE, stream.message()).await.map_err(silent)?? else {
            return Err(Status::unavailable("the stream ended"));
        };
        let begun = token.is_empty().then_some(Told::Begun);
        let event = match message.message {
            Some(Message::Event(event)) => Some(Told::Event(Box::new(event))),
            Some(Message::Heartbeat(_)) | None => None,
        };
        for told_now in begun.into_iter().chain(event) {
            if told.send(told_now).is_err() {
                return Ok(());
            }
        }
        // Not before it is dealt with. Who keeps it on disk goes on from here after a restart.
        *token = message.resume_token;
        *failures = 0;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(conversation_id)) = (args.next(), args.next()) else {
        return Err("usage: participant-gateway-client ADDRESS CONVERSATION".into());
    };
    let conversation = pb::ConversationRef { conversation_id, ..Default::default() };
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        // A connection that has died in silence is noticed after at most 40 s, also while only a stream is open on it.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .connect_lazy();
    let mut client = Client::new(channel);

    let participants = page(&mut client, &conversation).await?;
    let (Some(first), Some(last)) = (participants.first(), participants.last()) else {
        return Err("nobody is in this conversation".into());
    };
    read(&mut client, &conversation, &first.id).await?;
    meet_deadline(&mut client, &conversation, &last.id).await;

    let (tell, mut told) = unbounded_channel();
    let watcher = tokio::spawn(watch(client.clone(), conversation.clone(), tell));
    let mut wanted = Vec::new();
    let mut made = 0;
    while let Some(told) = told.recv().await {
        match told {
            // Only now what is read is whole: a change from here on is told, and the read sees those before.
            Told::Begun => {
                page(&mut client, &conversation).await?;
            }
            Told::Event(event) => {
                let id = event.participant.clone().unwrap_or_default().id;
                println!("watch: {id} {}", event.r#type().as_str_name());
                wanted.retain(|wanted| *wanted != id);
            }
        }
        if wanted.is_empty() {
            if made == 2 {
                println!("done");
                watcher.abort();
                return Ok(());
            }
            wanted.push(create(&mut client, &conversation).await?);
            made += 1;
        }
    }
    watcher.await??;
    Ok(())
}
