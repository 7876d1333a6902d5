//! OAuth's grant of client credentials: a client's id and secret for an access token that lives for an hour or so
//! (RFC 6749, section 4.4).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Client, authorization};
use crate::twilio::error::NoToken;
use crate::twilio::http::Http;

/// What Twilio's tokens live for. One that is refused earlier is renewed at once, so that this needs not be true.
const USUAL_LIFE: Duration = Duration::from_secs(3600);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

const BROKEN: &str = "broken_answer";

/// An access token, ready to be sent.
pub(super) struct Token {
    pub(super) authorization: HeaderValue,
    pub(super) life: Duration,
}

/// The keys that matter (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct Answer {
    access_token: Zeroizing<String>,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

impl Client {
    /// Asks for a token, with the values in use and then with those before them: Twilio may know the new ones only later
    /// than the gateway does.
    pub(super) async fn token(&self, http: &Http) -> Result<Token, NoToken> {
        let mut refusal = None;
        for id in self.id.values() {
            for secret in self.secret.values() {
                match self.ask(http, &id, &secret).await {
                    // What the values in use were told says more than what the old ones were.
                    Err(NoToken::Refused(status)) => refusal = refusal.or(Some(status)),
                    told => return told,
                }
            }
        }
        Err(refusal.map_or(NoToken::Unavailable("no secret"), NoToken::Refused))
    }

    async fn ask(&self, http: &Http, id: &str, secret: &str) -> Result<Token, NoToken> {
        let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
        // With room for all of it, each byte as `%xx`: a buffer that grows leaves copies behind.
        let room = form.iter().map(|(name, value)| 3 * value.len() + name.len() + 2).sum();
        let form =
            url::form_urlencoded::Serializer::new(String::with_capacity(room)).extend_pairs(form).finish();
        let form = Bytes::from_owner(Zeroizing::new(form));
        let (status, body) = http.post_form(&self.token_url, form).await.map_err(NoToken::Unavailable)?;
        match status {
            StatusCode::OK | StatusCode::CREATED => decode(&body).ok_or(NoToken::Unavailable(BROKEN)),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(NoToken::Unavailable("throttled"))
            }
            // Also what is no word about the client, such as 404 for a wrong URL: only an operator can mend it.
            status if status.is_client_error() => Err(NoToken::Refused(status)),
            _ => Err(NoToken::Unavailable("answered")),
        }
    }
}

fn decode(body: &[u8]) -> Option<Token> {
    // serde would take an array for a struct, by position.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let Answer { access_token, token_type, expires_in } =
        serde_json::from_slice(body).ok().filter(|_| is_object)?;
    let is_bearer = token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    let is_one_word = !access_token.is_empty() && access_token.bytes().all(|b| b.is_ascii_graphic());
    let seconds = expires_in.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
    let life = seconds.filter(|seconds| *seconds > 0).map_or(USUAL_LIFE, Duration::from_secs);
    let authorization = authorization("Bearer", &access_token).filter(|_| is_bearer && is_one_word)?;
    Some(Token { authorization, life: life.min(LONGEST_LIFE) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life(expires_in: &str) -> Duration {
        let body = format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{expires_in}}}"#);
        decode(body.as_bytes()).unwrap().life
    }

    #[test]
    fn a_life_that_makes_no_sense_is_the_usual_one() {
        assert_eq!((life("60"), life("\"60\"")), (Duration::from_secs(60), Duration::from_secs(60)));
        for nonsense in ["0", "-1", "null", "1.5", "\"soon\"", "[]"] {
            assert_eq!(life(nonsense), USUAL_LIFE, "{nonsense}");
        }
        assert_eq!(life("18446744073709551615"), LONGEST_LIFE);
    }

    #[test]
    fn what_is_no_bearer_token_is_none() {
        for body in [
            "",
            "[\"t\"]",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\r\nb: c"}"#,
            r#"{"access_token":"t","token_type":"mac"}"#,
        ] {
            assert!(decode(body.as_bytes()).is_none(), "{body}");
        }
        let token = decode(br#"{"access_token":"t","token_type":"bearer","new_key":1}"#).unwrap();
        assert_eq!(token.authorization, "Bearer t");
        assert_eq!(format!("{:?}", token.authorization), "Sensitive");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&body);
        }

        #[test]
        fn any_token_of_one_word_is_sent_as_it_is(token in "[!#-\\[\\]-~]{1,200}") {
            let body = serde_json::json!({ "access_token": token, "expires_in": 5 }).to_string();
            prop_assert_eq!(decode(body.as_bytes()).unwrap().authorization, format!("Bearer {token}"));
        }
    }
}
