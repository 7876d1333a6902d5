//! Access tokens: `POST /v2/token` of <https://oauth.twilio.com>, for the grant `client_credentials`.

use std::time::SystemTime;

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use url::form_urlencoded;

use super::call::Call;
use super::credentials::Credentials;
use super::v1::refusal::Refusal;

/// The form of a token request; names that it does not know are ignored.
#[derive(Default)]
struct Grant {
    kind: String,
    client_id: String,
    client_secret: String,
}

impl Grant {
    fn parse(body: &[u8]) -> Grant {
        let mut grant = Grant::default();
        for (name, value) in form_urlencoded::parse(body) {
            match name.as_ref() {
                "grant_type" => grant.kind = value.into_owned(),
                "client_id" => grant.client_id = value.into_owned(),
                "client_secret" => grant.client_secret = value.into_owned(),
                _ => {}
            }
        }
        grant
    }
}

/// The SID of the account that the form's client belongs to.
pub(super) fn account(credentials: &Credentials, body: &[u8]) -> Option<String> {
    let grant = Grant::parse(body);
    credentials.client_account(&grant.client_id, &grant.client_secret)
}

/// `None` when the client may not log in.
pub(super) fn answer(credentials: &mut Credentials, call: &Call) -> Option<Response> {
    let grant = Grant::parse(&call.body);
    if call.method != Method::POST {
        return Some(Refusal::MethodNotAllowed.into_response());
    }
    if !call.has_content_type("application/x-www-form-urlencoded") {
        return Some(Refusal::BadParameter("the body must be a form".to_owned()).into_response());
    }
    if grant.kind != "client_credentials" {
        let text = format!("grant_type {:?} is not supported", grant.kind);
        return Some(Refusal::BadParameter(text).into_response());
    }
    let (token, ttl) = credentials.issue(call.account.as_ref()?, SystemTime::now())?;
    let body = json!({"access_token": token, "token_type": "Bearer", "expires_in": ttl.as_secs()});
    Some((StatusCode::OK, Json(body)).into_response())
}

/// The form as a log may show it. Of what is not expected nothing is shown: it may be the secret, misplaced.
pub(super) fn masked(body: &[u8]) -> String {
    let shown = form_urlencoded::parse(body).filter_map(|(name, value)| match name.as_ref() {
        "grant_type" | "client_id" | "audience" | "scope" => Some((name, value)),
        "client_secret" => Some((name, "***".into())),
        _ => None,
    });
    form_urlencoded::Serializer::new(String::new()).extend_pairs(shown).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let form = b"grant_type=client_credentials&client_id=OQ1&client_secret=hush%26hush";
        assert_eq!(masked(form), "grant_type=client_credentials&client_id=OQ1&client_secret=***");
        assert_eq!(masked(br#"{"client_id":"a=b","client_secret":"hush"}"#), "");
    }
}
