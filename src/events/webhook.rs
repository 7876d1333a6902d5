//! `POST /events`: what Twilio's webhook sinks and status callbacks send.
//!
//! Twilio repeats a delivery after a 429, a 5xx or a timeout, and drops its events for good after any other 4xx. So those are
//! for what no repetition mends, a wrong signature and a body that is too large; whatever may pass is a 503. A delivery is
//! answered with 2xx once all of its events are applied, and not before.

mod signature;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

pub use signature::{Keys, PublicUrl, PublicUrlError};

use super::{Delivery, Incoming, Receiver, Source};
use crate::ids::AccountId;
use crate::telemetry::Metrics;

/// Twilio hangs up after 5 seconds; the rest is for the way.
pub const TIME_LIMIT: Duration = Duration::from_millis(4500);
/// Far more than Twilio sends at once.
const MAX_EVENTS: usize = 10_000;

/// Receives deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Webhook {
    receiver: Receiver,
    keys: Keys,
    max_body_bytes: usize,
    metrics: Metrics,
}

/// Why a delivery was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It is not signed by an account, or the body is not the one that was.
    Forged,
    /// An event is of another account than the one that signed.
    OtherAccount(Source),
    TooLarge,
    TooSlow,
    /// Its events could not be handed on.
    NotPublished,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::Forged | Self::OtherAccount(_) => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow | Self::NotPublished => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Forged => "the signature or bodySHA256 fits no auth token, events.public_url and body\n",
            Self::OtherAccount(_) => "an event is of another account than the signature\n",
            Self::TooLarge => "the delivery is too large\n",
            Self::TooSlow => "the delivery takes too long\n",
            Self::NotPublished => "the events cannot be handed on now\n",
        }
    }
}

impl Webhook {
    /// Takes what these keys have signed, up to so many bytes at once.
    pub fn new(receiver: Receiver, keys: Keys, max_body_bytes: usize, metrics: Metrics) -> Self {
        Self { receiver, keys, max_body_bytes, metrics }
    }

    /// The listener's routes.
    pub fn routes(self) -> Router {
        Router::new().route("/events", post(answer)).with_state(self)
    }

    async fn take(&self, uri: &Uri, headers: &HeaderMap, body: Body) -> Result<(), Refusal> {
        let deadline = Instant::now() + TIME_LIMIT;
        let signed = self.keys.signer(uri, headers);
        // Of what nobody has signed nothing is kept, but it is read: who sends it would else not hear the answer.
        let limit = self.max_body_bytes;
        let body = read(body, limit, signed.is_some(), deadline).await?;
        let signed = signed.filter(|signed| signed.covers(&body)).ok_or(Refusal::Forged)?;
        let delivery = Delivery::decode(&body, header(headers, "i-twilio-idempotency-token"));
        if delivery.events.len() > MAX_EVENTS {
            return Err(Refusal::TooLarge);
        }
        if delivery.events.iter().any(|event| is_of_another(event, &signed.account)) {
            return Err(Refusal::OtherAccount(delivery.source));
        }
        let Delivery { source, events } = delivery;
        match timeout_at(deadline, self.receiver.receive(source, &signed.account, events)).await {
            Ok(received) => received.map_err(|_| Refusal::NotPublished),
            Err(_) => Err(Refusal::TooSlow),
        }
    }
}

async fn answer(
    State(webhook): State<Webhook>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> (StatusCode, &'static str) {
    let Err(refusal) = webhook.take(&uri, &headers, body).await else {
        return (StatusCode::OK, "");
    };
    let outcome = match refusal {
        // What was not read may have been either.
        Refusal::Forged => Some((Source::Webhook, "forged")),
        Refusal::TooLarge => Some((Source::Webhook, "too_large")),
        Refusal::TooSlow => Some((Source::Webhook, "too_slow")),
        Refusal::OtherAccount(source) => Some((source, "refused")),
        // Counted by event.
        Refusal::NotPublished => None,
    };
    if let Some((source, outcome)) = outcome {
        webhook.metrics.event_received(source.as_str(), outcome);
    }
    let (status, told) = (refusal.status(), refusal.told());
    match refusal {
        // Anybody can send such, and as many as they like: the metric counts them.
        Refusal::Forged => {
            debug!(status = status.as_u16(), "refused a delivery of events: {}", told.trim_end());
        }
        _ => warn!(status = status.as_u16(), "refused a delivery of events: {}", told.trim_end()),
    }
    (status, told)
}

/// The whole body. Without `is_kept` it is only waited for.
async fn read(body: Body, limit: usize, is_kept: bool, deadline: Instant) -> Result<Vec<u8>, Refusal> {
    let (mut chunks, mut bytes, mut size) = (body.into_data_stream(), Vec::new(), 0);
    loop {
        match timeout_at(deadline, chunks.next()).await {
            // Nobody waits for the answer any more.
            Ok(Some(Err(_))) => return Err(Refusal::TooSlow),
            Ok(Some(Ok(chunk))) => {
                size += chunk.len();
                if is_kept && size <= limit {
                    bytes.extend_from_slice(&chunk);
                }
            }
            _ if size > limit => return Err(Refusal::TooLarge),
            Ok(None) => return Ok(bytes),
            Err(_) => return Err(Refusal::TooSlow),
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What names no account is of the one that signed.
fn is_of_another(event: &Incoming, signer: &AccountId) -> bool {
    matches!(event, Incoming::Participant { account: Some(account), .. } if account != signer)
}
