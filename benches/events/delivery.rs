//! Deliveries as Twilio sends them: signed, in batches on v1 and one by one on v2, and again until they are taken.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use participant_gateway::sandbox;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What Twilio is told to call.
pub(crate) const PUBLIC_URL: &str = "https://gateway.example.com/events";

/// Twilio hangs up then.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a request, and what it is signed with.
pub(crate) struct Delivery {
    body: String,
    query: String,
    signature: String,
    id: String,
}

impl Delivery {
    /// v1's events of these numbers. Each is of a participant of its own, in a conversation that many share.
    pub(crate) fn batch(numbers: &[usize]) -> Self {
        let events = numbers.iter().map(|number| cloud_event(*number)).collect();
        Self::signed(&Value::Array(events), String::new())
    }

    /// v2's event of this number.
    pub(crate) fn callback(number: usize) -> Self {
        let body = json!({
            "eventType": "PARTICIPANT_ADDED", "timestamp": "2026-01-01T00:00:00.000Z",
            "data": {
                "accountId": sandbox::ACCOUNT_SID, "id": format!("conv_participant_{number:026}"),
                "conversationId": format!("conv_conversation_{:026}", number % 10_000),
                "name": "somebody", "type": "CUSTOMER", "addresses": [],
            },
        });
        Self::signed(&body, event_id(number))
    }

    fn signed(body: &Value, id: String) -> Self {
        let body = body.to_string();
        let hash: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
        let query = format!("bodySHA256={hash}");
        let mut mac =
            Hmac::<Sha1>::new_from_slice(sandbox::AUTH_TOKEN.as_bytes()).expect("a key of any length");
        mac.update(format!("{PUBLIC_URL}?{query}").as_bytes());
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        Self { body, query, signature, id }
    }

    /// Whether it was taken. What is refused for good is a mistake of this program.
    pub(crate) async fn post(&self, http: &reqwest::Client, listener: SocketAddr) -> bool {
        let request = http
            .post(format!("http://{listener}/events?{}", self.query))
            .timeout(TIMEOUT)
            .header("content-type", "application/json")
            .header("x-twilio-signature", &self.signature)
            .header("i-twilio-idempotency-token", &self.id)
            .body(self.body.clone());
        let status = request.send().await.map(|answer| answer.status().as_u16());
        assert!(matches!(status, Ok(200 | 503) | Err(_)), "{status:?}");
        status.is_ok_and(|status| status == 200)
    }
}

/// The id of the event of this number.
pub(crate) fn event_id(number: usize) -> String {
    format!("EZ{number:032}")
}

/// The v1 conversation of the event of this number.
pub(crate) fn conversation(number: usize) -> String {
    format!("CH{:032}", number % 10_000)
}

fn cloud_event(number: usize) -> Value {
    json!({
        "specversion": "1.0", "type": "com.twilio.conversations.participant.added",
        "source": "/v1/Conversations", "id": event_id(number), "time": "2026-01-01T00:00:00.000Z",
        "datacontenttype": "application/json",
        "dataschema": "https://events-schemas.twilio.com/Conversations.ParticipantAdded/2",
        "data": {
            "AccountSid": sandbox::ACCOUNT_SID, "ConversationSid": conversation(number),
            "ParticipantSid": format!("MB{number:032}"), "Identity": format!("person-{number}"),
            "Attributes": { "name": "somebody" }, "DateCreated": "2026-01-01T00:00:00.000Z",
        },
    })
}
