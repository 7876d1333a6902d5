//! Posts what is due, signed as Twilio signs (<https://www.twilio.com/docs/usage/webhooks/webhooks-security>).

use std::sync::Arc;

use axum::http::{StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::redirect;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use url::Url;

use super::outbox::{Outbox, Outcome, Posting};
use crate::sandbox::front::Shared;

/// Straight to the receiver, whatever proxies the environment names. Without root certificates, which are slow to
/// load: the sandbox speaks plain HTTP only. No redirect is followed, as Twilio documents none.
pub(in crate::sandbox) fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().tls_certs_only([]).no_proxy().redirect(redirect::Policy::none()).build()
}

/// Runs until it is dropped.
pub(in crate::sandbox) async fn run(shared: Arc<Shared>, client: reqwest::Client) {
    let outbox = &shared.events.outbox;
    let mut changes = outbox.subscribe();
    loop {
        let posting = next(outbox, &mut changes).await;
        // Asked for now, because the token may have been rotated since the event.
        let auth_token = shared.credentials().primary_auth_token(&posting.account);
        let outcome = send(&client, posting, &auth_token.unwrap_or_default()).await;
        outbox.send_modify(|outbox| outbox.settle(outcome, Instant::now()));
    }
}

async fn next(outbox: &watch::Sender<Outbox>, changes: &mut watch::Receiver<Outbox>) -> Posting {
    loop {
        let due = changes.borrow_and_update().next_due();
        let mut posting = None;
        outbox.send_if_modified(|outbox| {
            posting = outbox.post(Instant::now());
            posting.is_some()
        });
        if let Some(posting) = posting {
            return posting;
        }
        let becomes_due = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = becomes_due => {}
            // Fails only without a sender, and that one is an argument.
            _ = changes.changed() => {}
        }
    }
}

async fn send(client: &reqwest::Client, posting: Posting, auth_token: &str) -> Outcome {
    let body = posting.body.to_string();
    let url = with_hash(posting.url, body.as_bytes());
    let mut request = client
        .post(url.clone())
        .timeout(posting.timeout)
        .header(header::CONTENT_TYPE, "application/json")
        .header("X-Twilio-Signature", signature(&url, auth_token))
        .body(body);
    if let Some(token) = posting.token {
        request = request.header("i-twilio-idempotency-token", token.to_string());
    }
    match request.send().await {
        Ok(response) => outcome(response.status()),
        Err(error) => {
            tracing::debug!(error = %error.without_url(), "an event of the sandbox was not taken");
            Outcome::Failed
        }
    }
}

fn outcome(status: StatusCode) -> Outcome {
    match status {
        _ if status.is_success() => Outcome::Accepted,
        StatusCode::TOO_MANY_REQUESTS => Outcome::Failed,
        _ if status.is_client_error() => Outcome::Refused,
        _ => Outcome::Failed,
    }
}

/// A JSON body takes part in the signature by its hash in the URL.
fn with_hash(mut url: Url, body: &[u8]) -> Url {
    let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    url.query_pairs_mut().append_pair("bodySHA256", &hash);
    url
}

fn signature(url: &Url, auth_token: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(auth_token.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(url.as_str().as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_twilios_sdk_expects() {
        let url = Url::parse("https://mycompany.com/myapp.php?foo=1&bar=2").unwrap();
        let signed = with_hash(url, br#"{"property": "value", "boolean": true}"#);
        let hash = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
        assert_eq!(signed.as_str(), format!("https://mycompany.com/myapp.php?foo=1&bar=2&bodySHA256={hash}"));
        assert_eq!(signature(&signed, "12345"), "a9nBmqA0ju/hNViExpshrM61xv4=");
    }

    #[test]
    fn what_is_sent_again() {
        for (status, expected) in [
            (200, Outcome::Accepted),
            (204, Outcome::Accepted),
            (302, Outcome::Failed),
            (400, Outcome::Refused),
            (404, Outcome::Refused),
            (429, Outcome::Failed),
            (500, Outcome::Failed),
        ] {
            assert_eq!(outcome(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }
}
