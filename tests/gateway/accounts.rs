//! Several accounts, and every kind of credentials that one may have.

use std::net::TcpListener;
use std::time::Instant;

use participant_gateway::proto::*;
use participant_gateway::sandbox::{self, Fault, FaultMatch};
use serde_json::json;
use tonic::{Code, Status};

use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

const SID: &str = sandbox::ACCOUNT_SID;
const TOKEN_PATH: &str = "/v2/token";

/// A file with the sandbox's account, which signs in with these lines.
fn file(url: &str, lines: &str) -> String {
    format!(
        "upstream.url = {url:?}\nupstream.token_url = \"{url}{TOKEN_PATH}\"\n\
         [[accounts]]\naccount_sid = {SID:?}\n{lines}\n"
    )
}

fn client(secret: &str) -> String {
    format!("client_id = {:?}\nclient_secret = {secret:?}", sandbox::OAUTH_CLIENT_ID)
}

async fn signing_in_with(lines: &str) -> Gateway {
    Gateway::configured(sandbox::Settings::default(), |url| file(url, lines)).await
}

/// A sandbox whose token endpoint has this fault from the start.
fn faulty(fault: Fault) -> sandbox::Settings {
    let matches = FaultMatch { path_contains: Some(TOKEN_PATH.into()), ..Default::default() };
    sandbox::Settings { faults: vec![Fault { matches, ..fault }], ..Default::default() }
}

/// How many of the gateway's requests were answered with 401.
pub async fn refused_requests(gateway: &Gateway) -> f64 {
    let labels = [("http_response_status_code", "401")];
    Scrape::of(gateway).await.sum("http_client_request_duration_seconds_count", &labels)
}

/// Lets OAuth's first token come, which is fetched while the gateway starts.
async fn first_token(gateway: &Gateway) {
    let deadline = Instant::now() + PATIENCE;
    while gateway.sandbox.token_requests().await == 0 {
        assert!(Instant::now() < deadline, "no token is asked for");
    }
}

/// Past the cache, so that it goes to Twilio.
pub async fn read(gateway: &mut Gateway, face: Face) -> Result<(), Status> {
    gateway.get(face.get_fresh()).await.map(|_| ())
}

on_both_versions! {
    async fn every_kind_of_credentials_signs_in(face) {
        let key = format!("api_key = {:?}\napi_secret = \"sandbox\"", sandbox::API_KEY_SID);
        for lines in ["auth_token = \"sandbox\"", &key, &client("sandbox")] {
            let mut gateway = signing_in_with(lines).await;
            read(&mut gateway, face).await.unwrap();
            gateway.create(face.create(face.newcomer(1))).await.unwrap();
            gateway.update(face.update(face.marked("changed"))).await.unwrap();
            assert_eq!(gateway.list(face.list()).await.unwrap().participants.len(), 4, "{lines}");
        }
    }

    async fn each_account_has_an_upstream_of_its_own(face) {
        let other_sid = account_id('1');
        let other = sandbox::Account { sid: other_sid.clone(), auth_token: "other".into() };
        let settings = sandbox::Settings { accounts: vec![other], ..Default::default() };
        let (second, _end) = sandbox(settings).await;
        let mut gateway = Gateway::configured(sandbox::Settings::default(), |url| {
            let other = format!("account_sid = {other_sid:?}\nauth_token = \"other\"\nurl = \"http://{second}\"");
            format!("{}[[accounts]]\n{other}\n", file(url, "auth_token = \"sandbox\""))
        })
        .await;
        let of = |account_id: &str| {
            let conversation = ConversationRef { account_id: account_id.into(), ..face.conversation() };
            GetParticipantRequest { conversation: Some(conversation), ..face.get() }
        };
        for (account, counts) in [(SID, (1, 0)), (&other_sid, (1, 1)), ("", (1, 1))] {
            gateway.get(of(account)).await.unwrap();
            let second = Control::new(second);
            assert_eq!((gateway.sandbox.count().await, second.count().await), counts, "{account}");
            assert!(second.requests().await.iter().all(|request| request.account == other_sid));
        }
        let unknown = gateway.get(of(&account_id('9'))).await.unwrap_err();
        assert_eq!(told(&unknown), (Code::InvalidArgument, "ACCOUNT_UNKNOWN".into()));
    }

    async fn the_secondary_token_takes_over_when_the_first_is_refused(face) {
        let mut gateway = signing_in_with("auth_token = \"sandbox\"\nsecondary_auth_token = \"new\"").await;
        read(&mut gateway, face).await.unwrap();
        gateway.sandbox.credentials(json!({ "auth_tokens": ["new"] })).await;
        gateway.sandbox.forget_requests().await;
        gateway.create(face.create(face.newcomer(1))).await.unwrap();
        assert_eq!(gateway.sandbox.count().await, 2, "refused once, then created once");
        // It is remembered which of them is good.
        read(&mut gateway, face).await.unwrap();
        assert_eq!(gateway.sandbox.count().await, 3);
        gateway.sandbox.credentials(json!({ "auth_tokens": ["sandbox", "new"] })).await;
        read(&mut gateway, face).await.unwrap();
        assert_eq!((gateway.sandbox.count().await, refused_requests(&gateway).await), (4, 1.0));
    }

    async fn an_attempt_with_other_credentials_is_no_retry(face) {
        let lines = "auth_token = \"old\"\nsecondary_auth_token = \"sandbox\"";
        let none = "upstream.max_retries = 0\n";
        let settings = sandbox::Settings::default();
        let mut gateway = Gateway::configured(settings, |url| format!("{none}{}", file(url, lines))).await;
        gateway.update(face.update(face.marked("changed"))).await.unwrap();
        assert_eq!(Scrape::of(&gateway).await.sum("participant_upstream_retries_total", &[]), 0.0);
        assert_eq!(refused_requests(&gateway).await, 1.0);
    }

    async fn credentials_that_are_all_refused_are_each_tried_once(face) {
        let mut gateway = signing_in_with("auth_token = \"one\"\nsecondary_auth_token = \"two\"").await;
        for requests in [2, 4] {
            let refused = read(&mut gateway, face).await.unwrap_err();
            assert_eq!(told(&refused), (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".into()));
            assert_eq!(gateway.sandbox.count().await, requests);
        }
        let refused = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&refused), (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".into()));
    }

    async fn a_hundred_calls_without_a_token_cost_one_request_for_it(face) {
        let held = faulty(Fault { hold: true, times: Some(1), ..Default::default() });
        let gateway = Gateway::configured(held, |url| file(url, &client("sandbox"))).await;
        gateway.sandbox.held(1).await;
        let call = || {
            let mut client = gateway.client.clone();
            tokio::spawn(async move { client.get_participant(face.get_fresh()).await })
        };
        let calls: Vec<_> = (0..100).map(|_| call()).collect();
        let get = [("rpc_method", "participant.v1.ParticipantService/GetParticipant")];
        let deadline = Instant::now() + PATIENCE;
        while Scrape::of(&gateway).await.sum("participant_calls_in_flight", &get) < 100.0 {
            assert!(Instant::now() < deadline, "all calls are under way");
        }
        gateway.sandbox.release().await;
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!((gateway.sandbox.token_requests().await, gateway.sandbox.count().await), (1, 101));
    }

    async fn a_token_is_kept_and_renewed_ahead_of_its_end(face) {
        let held = faulty(Fault { hold: true, times: Some(1), ..Default::default() });
        let mut gateway = Gateway::configured(held, |url| file(url, &client("sandbox"))).await;
        gateway.sandbox.held(1).await;
        gateway.sandbox.credentials(json!({ "token_ttl_s": 2 })).await;
        gateway.sandbox.release().await;
        let (began, mut calls) = (Instant::now(), 0);
        while gateway.sandbox.token_requests().await < 3 {
            assert!(began.elapsed() < PATIENCE, "the token is not renewed");
            read(&mut gateway, face).await.unwrap();
            calls += 1;
        }
        assert!(calls > 3, "a token serves many calls");
        assert_eq!(refused_requests(&gateway).await, 0.0, "no token ran out");
    }

    async fn a_token_that_is_revoked_is_renewed_without_a_failed_call(face) {
        let mut gateway = signing_in_with(&client("sandbox")).await;
        for tokens in 1..=3 {
            gateway.create(face.create(face.newcomer(tokens))).await.unwrap();
            assert_eq!(gateway.sandbox.token_requests().await, u64::from(tokens));
            gateway.sandbox.credentials(json!({ "revoke_tokens": true })).await;
        }
        assert_eq!(gateway.list(face.list()).await.unwrap().participants.len(), 6);
    }

    /// Such as those for another audience: the token endpoint gives them, and the API takes none.
    async fn tokens_that_are_always_refused_are_not_fetched_for_ever(face) {
        let mut gateway = signing_in_with(&client("sandbox")).await;
        let other = if face == Face::V1 { Face::V2 } else { Face::V1 };
        read(&mut gateway, face).await.unwrap();
        gateway.sandbox.fault(json!({ "match": { "api": face.api() }, "status": 401, "code": 20003 })).await;
        gateway.sandbox.forget_requests().await;
        let rejected = (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".into());
        assert_eq!(told(&read(&mut gateway, face).await.unwrap_err()), rejected);
        // The token in hand, and three that cannot have run out.
        assert_eq!((gateway.sandbox.token_requests().await, refused_requests(&gateway).await), (3, 4.0));
        for _ in 0..50 {
            assert_eq!(told(&read(&mut gateway, face).await.unwrap_err()), rejected);
            // The other API takes them, and is no worse off.
            read(&mut gateway, other).await.unwrap();
        }
        let tokens = gateway.sandbox.token_requests().await;
        assert!(tokens <= 9, "{tokens} tokens for 50 calls");
        let requests = refused_requests(&gateway).await;
        assert!(requests <= 53.0 + tokens as f64, "{requests} requests for 50 calls");
        // A token that is good is taken as soon as there is one.
        gateway.sandbox.clear_faults().await;
        read(&mut gateway, face).await.unwrap();
    }

    async fn a_token_endpoint_that_fails_is_asked_again(face) {
        let mut gateway = signing_in_with(&client("sandbox")).await;
        read(&mut gateway, face).await.unwrap();
        let down = json!({ "match": { "path_contains": TOKEN_PATH }, "status": 503 });
        gateway.sandbox.fault(down).await;
        gateway.sandbox.credentials(json!({ "revoke_tokens": true })).await;
        let failed = read(&mut gateway, face).await.unwrap_err();
        assert_eq!(told(&failed), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
        gateway.sandbox.clear_faults().await;
        // The token endpoint is asked again by itself, with a pause that grows.
        let deadline = Instant::now() + PATIENCE;
        while read(&mut gateway, face).await.is_err() {
            assert!(Instant::now() < deadline, "it does not recover");
        }
    }

    async fn a_client_that_is_refused_is_the_operators_concern(face) {
        let mut gateway = signing_in_with(&client("wrong")).await;
        first_token(&gateway).await;
        let rejected = (Code::FailedPrecondition, "UPSTREAM_CREDENTIALS_REJECTED".into());
        assert_eq!(told(&read(&mut gateway, face).await.unwrap_err()), rejected);
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!(told(&create), rejected);
        // And an answer that tells more than a status is not repeated.
        assert!(!create.message().contains("wrong"), "{create:?}");
        let requests = gateway.sandbox.requests().await;
        assert!(requests.iter().all(|request| request.path == TOKEN_PATH), "nothing is sent without a token");
    }

    async fn without_a_token_endpoint_nothing_is_sent(face) {
        let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let lines = format!("{}\ntoken_url = \"http://{nowhere}/\"", client("sandbox"));
        let mut gateway = signing_in_with(&lines).await;
        let unavailable = (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into());
        assert_eq!(told(&read(&mut gateway, face).await.unwrap_err()), unavailable);
        // A write, too, is one that can be repeated.
        let create = gateway.create(face.create(face.newcomer(1))).await.unwrap_err();
        assert_eq!((told(&create), create.metadata().get("grpc-retry-pushback-ms")), (unavailable, None));
        assert_eq!(gateway.sandbox.count().await, 0);
    }

    async fn an_answer_that_is_no_token_is_as_good_as_none(face) {
        for body in ["", "<html>", "{}", r#"{"access_token":""}"#, r#"["t"]"#] {
            let broken = faulty(Fault { body: Some(body.into()), ..Default::default() });
            let mut gateway = Gateway::configured(broken, |url| file(url, &client("sandbox"))).await;
            let failed = read(&mut gateway, face).await.unwrap_err();
            assert_eq!(told(&failed), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()), "{body}");
        }
    }
}

#[tokio::test]
async fn a_redirect_of_the_token_endpoint_is_not_followed() {
    let elsewhere = sandbox(sandbox::Settings::default()).await;
    let location = format!("http://{}{TOKEN_PATH}", elsewhere.0);
    let headers = [("location".to_owned(), location)].into();
    let fault = faulty(Fault { status: Some(307), headers, ..Default::default() });
    let mut gateway = Gateway::configured(fault, |url| file(url, &client("sandbox"))).await;
    let failed = read(&mut gateway, Face::V1).await.unwrap_err();
    assert_eq!(told(&failed), (Code::Unavailable, "UPSTREAM_UNAVAILABLE".into()));
    assert_eq!(Control::new(elsewhere.0).count().await, 0);
}
