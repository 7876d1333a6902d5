//! The sandbox on the wire: both faces, their errors, paging, faults and the control routes.

#![allow(clippy::unwrap_used)] // in helpers: clippy spares the tests themselves only

mod events;
mod receiver;

use participant_gateway::sandbox::{
    ACCOUNT_SID, API_KEY_SECRET, API_KEY_SID, AUTH_TOKEN, Account, Cut, Fault, FaultMatch, OAUTH_CLIENT_ID,
    OAUTH_CLIENT_SECRET, SERVICE_SID, Sandbox, Settings, V1_CONVERSATION, V2_CONVERSATION,
};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const ALICE: &str = "MB00000000000000000000000000000001";
const NOBODY: &str = "MB00000000000000000000000000000099";
const SMS: &str = "MB00000000000000000000000000000003";
const NOOR: &str = "conv_participant_00000000000000000000000001";

struct Fake {
    base: String,
    client: Client,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
    body: Value,
}

impl Fake {
    async fn start() -> Fake {
        Fake::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Fake {
        Fake::run(Sandbox::bind(settings).await.unwrap())
    }

    fn run(sandbox: Sandbox) -> Fake {
        let base = format!("http://{}", sandbox.local_addr());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(sandbox.run(shutdown.clone()));
        Fake { base, client: Client::new(), shutdown, running }
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, url).basic_auth(ACCOUNT_SID, Some(AUTH_TOKEN))
    }

    async fn call(&self, method: &str, path: &str) -> Answer {
        answer(self.request(method, path)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path).await
    }

    /// Posts a form, written here without any encoding; the addresses are those of the messaging binding.
    async fn form(&self, path: &str, fields: &str) -> Answer {
        let pairs = fields.split('&').filter_map(|field| field.split_once('='));
        let prefixed = |name: &str| {
            if name.ends_with("Address") { "MessagingBinding." } else { "" }
        };
        let form: Vec<_> = pairs.map(|(name, value)| (format!("{}{name}", prefixed(name)), value)).collect();
        answer(self.request("POST", path).form(&form)).await
    }

    async fn json(&self, method: &str, path: &str, body: Value) -> Answer {
        answer(self.request(method, path).json(&body)).await
    }

    /// Asks a control route, which must do as told.
    async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.json(method, &format!("/_sandbox/{path}"), body).await;
        assert!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.text);
        answer.body
    }

    async fn populate(&self, conversation: &str, count: usize) {
        let body = json!({"account": ACCOUNT_SID, "conversation": conversation, "count": count});
        self.control("POST", "populate", body).await;
    }

    /// Makes or changes v1 conversations; their SIDs.
    async fn arrange(&self, wanted: Value) -> Value {
        self.control("POST", "conversations", wanted).await["conversations"].take()
    }

    async fn credentials(&self, change: Value) {
        self.control("PUT", "credentials", change).await;
    }

    /// Fetches alice as this user.
    async fn as_user(&self, user: &str, password: &str) -> Answer {
        let request = self.client.get(format!("{}{}", self.base, v1("/alice")));
        answer(request.basic_auth(user, Some(password))).await
    }

    /// Fetches a participant of each face with this access token.
    async fn as_bearer(&self, token: &Value) -> [Answer; 2] {
        let get = |path: String| {
            let request = self.client.get(format!("{}{path}", self.base));
            answer(request.bearer_auth(token.as_str().unwrap()))
        };
        [get(v1("/alice")).await, get(v2(&format!("/{NOOR}"))).await]
    }

    async fn ask_token(&self, client_id: &str, client_secret: &str) -> Answer {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client_id),
            ("client_secret", client_secret),
        ];
        answer(self.client.post(format!("{}/v2/token", self.base)).form(&form)).await
    }

    /// An access token of the default account.
    async fn token(&self) -> Value {
        self.ask_token(OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET).await.ok(200)["access_token"].clone()
    }

    async fn fault(&self, fault: Value) {
        self.control("POST", "faults", fault).await;
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Answer { status, headers, text, body }
}

impl Answer {
    #[track_caller]
    fn refused(&self, status: u16, code: u32) {
        let stated = (self.status, &self.body["status"], &self.body["code"]);
        assert_eq!(stated, (status, &json!(status), &json!(code)), "{}", self.text);
    }

    #[track_caller]
    fn ok(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// The body's keys are exactly these, in this order.
    #[track_caller]
    fn keys(&self, keys: &str) {
        let place = |key| self.text.find(&format!("\"{key}\":")).unwrap_or(usize::MAX);
        assert!(keys.split(' ').is_sorted_by_key(place), "{}", self.text);
        let expected = keys.split(' ').collect::<std::collections::BTreeSet<_>>();
        assert!(expected.iter().eq(self.body.as_object().unwrap().keys()), "{}", self.text);
    }
}

fn v1(rest: &str) -> String {
    format!("/v1/Conversations/{V1_CONVERSATION}/Participants{rest}")
}

fn v1_one(sid: &str) -> String {
    v1(&format!("/{sid}"))
}

fn v2(rest: &str) -> String {
    format!("/v2/Conversations/{V2_CONVERSATION}/Participants{rest}")
}

fn ids(listing: &Value, key: &str) -> Vec<String> {
    let items = listing["participants"].as_array().unwrap();
    items.iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn v1_lives_through_create_fetch_update_delete() {
    let fake = Fake::start().await;
    let binding = "Address=whatsapp:+15550100010&ProxyAddress=whatsapp:+15550109010";
    let created = fake.form("/v1/Conversations/sandbox/Participants", binding).await;
    created.keys(
        "account_sid conversation_sid sid identity attributes messaging_binding role_sid \
         date_created date_updated url last_read_message_index last_read_timestamp",
    );
    let created = created.ok(201);
    let sid = "MB00000000000000000000000000000004";
    assert_eq!(created["sid"], sid);
    assert_eq!(created["conversation_sid"], V1_CONVERSATION);
    assert_eq!(created["attributes"], "{}");
    let (address, proxy_address) = ("whatsapp:+15550100010", "whatsapp:+15550109010");
    let binding = json!({"type": "whatsapp", "address": address, "proxy_address": proxy_address});
    assert_eq!(created["messaging_binding"], binding);
    assert_eq!(created["url"], format!("{}{}", fake.base, v1_one(sid)));

    let one = v1_one(sid);
    assert_eq!(fake.get(&one).await.ok(200), created);
    let changes = [
        r#"Attributes={"role":"driver"}"#,
        "LastReadMessageIndex=7",
        "LastReadTimestamp=any text",
        "DateUpdated=2019-05-15T15:37:35+02:00",
        "ProxyAddress=null",
        "Unheard.Of=ignored",
    ];
    let updated = fake.form(&one, &changes.join("&")).await.ok(200);
    assert_eq!(updated["attributes"], r#"{"role":"driver"}"#);
    assert_eq!(updated["last_read_message_index"], 7);
    assert_eq!(updated["last_read_timestamp"], "any text");
    assert_eq!(updated["date_updated"], "2019-05-15T13:37:35Z");
    assert_eq!(updated["messaging_binding"], json!({"type": "whatsapp", "address": "whatsapp:+15550100010"}));
    assert_eq!(updated["date_created"], created["date_created"]);
    assert_eq!(updated["role_sid"], created["role_sid"]);
    assert_eq!(
        fake.form(&one, "LastReadMessageIndex=null").await.ok(200)["last_read_message_index"],
        Value::Null
    );

    let deleted = fake.call("DELETE", &one).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    for method in ["GET", "DELETE"] {
        fake.call(method, &one).await.refused(404, 50432);
    }
}

#[tokio::test]
async fn v1_services_show_the_same_store() {
    let fake = Fake::start().await;
    let below = |service: &str, rest: &str| {
        format!("/v1/Services/{service}/Conversations/sandbox/Participants{rest}")
    };
    let created = fake.form(&below(SERVICE_SID, ""), "Identity=carol").await.ok(201);
    assert_eq!(created["chat_service_sid"], SERVICE_SID);
    assert_eq!(created["messaging_binding"], Value::Null);
    assert!(
        created["url"]
            .as_str()
            .unwrap()
            .contains(&format!("/v1/Services/{SERVICE_SID}/Conversations/{V1_CONVERSATION}/"))
    );
    let short = fake.get(&v1("/carol")).await.ok(200);
    assert!(short.get("chat_service_sid").is_none());
    assert_eq!(short["sid"], created["sid"]);
    fake.get(&below("IS00000000000000000000000000000002", "")).await.refused(404, 20404);
}

#[tokio::test]
async fn v1_finds_an_identity_only_to_fetch_it() {
    let fake = Fake::start().await;
    assert_eq!(fake.get(&v1("/alice")).await.ok(200)["sid"], ALICE);
    fake.form(&v1("/alice"), "Attributes={}").await.refused(404, 50432);
    fake.call("DELETE", &v1("/alice")).await.refused(404, 50432);
    let odd = "a/b%2F c+ü?#";
    fake.form(&v1(""), &format!("Identity={odd}")).await.ok(201);
    assert_eq!(fake.get(&v1("/a%2Fb%252F%20c+%C3%BC%3F%23")).await.ok(200)["identity"], odd);
}

#[tokio::test]
async fn v1_group_mms_binds_half_each() {
    let fake = Fake::start().await;
    let masked = fake.form(&v1(""), "Identity=dave&ProjectedAddress=+15550109003").await.ok(201);
    assert_eq!(masked["messaging_binding"], json!({"type": "sms", "projected_address": "+15550109003"}));
    let alone = fake.form(&v1(""), "Address=+15550100011").await.ok(201);
    assert_eq!(alone["messaging_binding"], json!({"type": "sms", "address": "+15550100011"}));
    let cleared = format!("/{}", masked["sid"].as_str().unwrap());
    let cleared = fake.form(&v1(&cleared), "ProjectedAddress=null").await.ok(200);
    assert_eq!(cleared["messaging_binding"], Value::Null);
}

#[tokio::test]
async fn v1_refuses_what_it_should() {
    let fake = Fake::start().await;
    let long = |name: &str| format!("{name}={}", "x".repeat(257));
    let large = format!("Identity=eve&Attributes=\"{}\"", "x".repeat(4095));
    let creates = [
        ("", 400, 50204),
        ("ProxyAddress=+15550109001", 400, 50204),
        ("Identity=alice", 409, 50433),
        ("Address=+15550100001&ProxyAddress=+15550109001", 409, 50416),
        (&long("Identity"), 400, 50207),
        ("Identity=eve&Address=+15550100012", 400, 50211),
        (&long("Address"), 400, 50407),
        ("Address=", 400, 50407),
        ("Address=+15550100012&ProxyAddress=", 400, 50408),
        ("Address=+15550100012&ProxyAddress=+15550100012", 400, 50409),
        ("Address=rcs:someone&ProxyAddress=+15550109001", 400, 50414),
        ("Identity=eve&Attributes={", 400, 50304),
        (&large, 400, 50303),
        ("Identity=eve&DateCreated=yesterday", 400, 50308),
        ("Identity=eve&DateUpdated=2023-05-04", 400, 50309),
        ("Identity=eve&RoleSid=RL1", 400, 20001),
        ("Address=+15550100012&ProjectedAddress=+1", 400, 50442),
    ];
    for (fields, status, code) in creates {
        fake.form(&v1(""), fields).await.refused(status, code);
    }
    let updates = [
        (SMS, "Identity=eve", 400, 50211),
        (SMS, "ProxyAddress=+15550109001", 400, 50441),
        (SMS, "ProxyAddress=rcs:sender", 400, 50414),
        (SMS, "Address=+15550100012", 400, 20001),
        (SMS, "ProjectedAddress=+15550109001", 400, 50442),
        (ALICE, "ProxyAddress=+15550109001", 400, 50440),
        (ALICE, "Identity=bob", 409, 50433),
        (ALICE, "LastReadMessageIndex=many", 400, 50421),
        (NOBODY, "Attributes={}", 404, 50432),
    ];
    for (sid, fields, status, code) in updates {
        fake.form(&v1_one(sid), fields).await.refused(status, code);
    }
    let taken = fake.form(&v1(""), "Address=+15550100001&ProxyAddress=+15550109001").await;
    assert!(taken.body["message"].as_str().unwrap().contains(V1_CONVERSATION));
    taken.keys("code message more_info status");

    for path in ["/v1/Conversations/none/Participants", "/v1/Conversations", "/elsewhere"] {
        fake.get(path).await.refused(404, 20404);
    }
    fake.get(&v1("/nobody")).await.refused(404, 50432);
    fake.call("PUT", &v1_one(ALICE)).await.refused(405, 20004);
    fake.call("DELETE", &v1("")).await.refused(405, 20004);
    fake.json("POST", &v1(""), json!({"Identity": "eve"})).await.refused(400, 20001);
}

#[tokio::test]
async fn v1_conversations_are_full_at_some_point() {
    let fake = Fake::start().await;
    for number in 0..49 {
        let sms = format!("Address=+155501002{number:02}&ProxyAddress=+15550109001");
        fake.form(&v1(""), &sms).await.ok(201);
    }
    let one_more = "Address=+15550100300&ProxyAddress=+15550109001";
    fake.form(&v1(""), one_more).await.refused(400, 50418);
    fake.populate("sandbox", 1000 - 52).await;
    fake.form(&v1(""), "Identity=eve").await.refused(400, 50417);
}

#[tokio::test]
async fn v1_pages_both_ways() {
    let fake = Fake::start().await;
    fake.populate(V1_CONVERSATION, 4).await;
    let first = fake.get(&v1("?PageSize=3")).await;
    first.keys("meta participants");
    let first = first.ok(200);
    let meta = &first["meta"];
    let link = |rest: &str| json!(format!("{}{}?PageSize=3&Page={rest}", fake.base, v1("")));
    assert_eq!(meta["key"], "participants");
    assert_eq!(meta["page"], 0);
    assert_eq!(meta["page_size"], 3);
    assert_eq!((&meta["first_page_url"], &meta["url"]), (&link("0"), &link("0")));
    assert_eq!(meta["previous_page_url"], Value::Null);
    assert_eq!(meta["next_page_url"], link(&format!("1&PageToken=PA{SMS}")));

    // A participant that a page ends with may go: the next page still begins where this one ended.
    fake.call("DELETE", &v1_one(SMS)).await.ok(204);
    let second = fake.get(meta["next_page_url"].as_str().unwrap()).await.ok(200);
    assert_eq!(ids(&second, "identity"), ["member-4", "member-5", "member-6"]);
    let third = fake.get(second["meta"]["next_page_url"].as_str().unwrap()).await.ok(200);
    assert_eq!(ids(&third, "identity"), ["member-7"]);
    assert_eq!(third["meta"]["page"], 2);
    assert_eq!(third["meta"]["next_page_url"], Value::Null);
    let back = fake.get(third["meta"]["previous_page_url"].as_str().unwrap()).await.ok(200);
    assert_eq!(ids(&back, "sid"), ids(&second, "sid"));
    let start = fake.get(back["meta"]["previous_page_url"].as_str().unwrap()).await.ok(200);
    assert_eq!(ids(&start, "identity"), ["alice", "bob"]);
    assert_eq!(start["meta"]["previous_page_url"], Value::Null);

    assert_eq!(fake.get(&v1("?PageSize=1000")).await.ok(200)["meta"]["page_size"], 100);
    assert_eq!(fake.get(&v1("")).await.ok(200)["meta"]["page_size"], 50);
    for query in ["?PageSize=0", "?PageSize=x", "?Page=-1", "?PageToken=PAx", "?PageToken=é"] {
        fake.get(&v1(query)).await.refused(400, 20001);
    }
}

#[tokio::test]
async fn v1_lists_the_conversations_of_a_participant() {
    let fake = Fake::start().await;
    let timers = json!({"date_closed": "2026-03-01T00:00:00Z"});
    let participants =
        json!([{"identity": "erin"}, {"address": "+15550100040", "proxy_address": "+15550109001"}]);
    let sids = fake
        .arrange(json!({"unique_name": "case-1", "friendly_name": "Case 1", "attributes": "{\"a\":1}",
            "state": "inactive", "timers": timers, "participants": participants}))
        .await;
    let page = fake.get("/v1/ParticipantConversations?Identity=erin").await;
    page.keys("conversations meta");
    let page = page.ok(200);
    let sid = sids[0].as_str().unwrap();
    let (conversation, participant) =
        (format!("{}/v1/Conversations/{sid}", fake.base), format!("MB{:032}", 4));
    let user = page["conversations"][0]["participant_user_sid"].clone();
    assert!(user.as_str().unwrap().starts_with("US") && user.as_str().unwrap().len() == 34);
    let expected = json!({
        "account_sid": ACCOUNT_SID, "chat_service_sid": SERVICE_SID, "participant_sid": participant,
        "participant_user_sid": user, "participant_identity": "erin", "participant_messaging_binding": null,
        "conversation_sid": sid, "conversation_unique_name": "case-1", "conversation_friendly_name": "Case 1",
        "conversation_attributes": "{\"a\":1}", "conversation_date_created": "2026-01-05T09:00:01Z",
        "conversation_date_updated": "2026-01-05T09:00:01Z", "conversation_created_by": "system",
        "conversation_state": "inactive", "conversation_timers": timers,
        "links": {"participant": format!("{conversation}/Participants/{participant}"), "conversation": conversation},
    });
    assert_eq!(page["conversations"], json!([expected]));
    assert_eq!(page["meta"]["key"], "conversations");

    let below = format!("/v1/Services/{SERVICE_SID}/ParticipantConversations");
    let by_address = fake.get(&format!("{below}?Address=%2B15550100040")).await.ok(200);
    let found = &by_address["conversations"][0];
    assert_eq!(
        (&found["participant_identity"], &found["participant_user_sid"]),
        (&Value::Null, &Value::Null)
    );
    let binding = json!({"type": "sms", "address": "+15550100040", "proxy_address": "+15550109001",
        "projected_address": null, "level": null, "name": null});
    assert_eq!(found["participant_messaging_binding"], binding);
    assert!(
        found["links"]["conversation"].as_str().unwrap().contains(&format!("/v1/Services/{SERVICE_SID}/"))
    );

    // A plus sign that is not encoded is a blank.
    for nobody in ["Identity=nobody", "Address=+15550100040"] {
        let page = fake.get(&format!("/v1/ParticipantConversations?{nobody}")).await.ok(200);
        assert_eq!((&page["conversations"], &page["meta"]["next_page_url"]), (&json!([]), &Value::Null));
    }
    for query in ["", "?Identity=", "?Identity=erin&Address=%2B15550100040"] {
        fake.get(&format!("/v1/ParticipantConversations{query}")).await.refused(400, 50451);
    }
    fake.get("/v1/Services/IS2/ParticipantConversations?Identity=erin").await.refused(404, 20404);
    fake.get("/v2/ParticipantConversations?Identity=erin").await.refused(404, 20404);
    fake.call("POST", "/v1/ParticipantConversations?Identity=erin").await.refused(405, 20004);
    let log = fake.control("GET", "requests", Value::Null).await;
    for (template, count) in
        [("/v1/ParticipantConversations", 6), ("/v1/Services/{ChatServiceSid}/ParticipantConversations", 2)]
    {
        let counted = json!({"method": "GET", "path_template": template, "count": count});
        assert!(log["by"].as_array().unwrap().contains(&counted), "{}", log["by"]);
    }
}

#[tokio::test]
async fn v1_pages_through_the_conversations_of_a_participant() {
    let fake = Fake::start().await;
    fake.arrange(json!({"count": 120, "unique_name": "n", "participants": [{"identity": "e r+n"}]})).await;
    let names = |page: &Value| {
        let found = page["conversations"].as_array().unwrap().iter();
        found.map(|one| one["conversation_unique_name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = fake.get("/v1/ParticipantConversations?Identity=e%20r%2Bn&PageSize=100").await.ok(200);
    assert_eq!((first["meta"]["page_size"].as_u64(), names(&first).len()), (Some(50), 50));
    let second = fake.get(first["meta"]["next_page_url"].as_str().unwrap()).await.ok(200);
    let third = fake.get(second["meta"]["next_page_url"].as_str().unwrap()).await.ok(200);
    assert_eq!(third["meta"]["next_page_url"], Value::Null);
    let all: Vec<_> = [&first, &second, &third].into_iter().flat_map(names).collect();
    assert_eq!(all, (1..=120).map(|number| format!("n-{number}")).collect::<Vec<_>>());
    let back = fake.get(third["meta"]["previous_page_url"].as_str().unwrap()).await.ok(200);
    assert_eq!(names(&back), names(&second));
}

#[tokio::test]
async fn v1_closed_conversations_are_read_only_and_give_their_pairs_free() {
    let fake = Fake::start().await;
    fake.arrange(json!({"conversation": "sandbox", "state": "closed"})).await;
    fake.form(&v1(""), "Identity=eve").await.refused(400, 50377);
    fake.form(&v1_one(ALICE), "Attributes={}").await.refused(400, 50377);
    fake.call("DELETE", &v1_one(ALICE)).await.refused(400, 50377);
    assert_eq!(ids(&fake.get(&v1("")).await.ok(200), "sid").len(), 3);
    let found = fake.get("/v1/ParticipantConversations?Identity=alice").await.ok(200);
    assert_eq!(found["conversations"][0]["conversation_state"], "closed");
    fake.arrange(json!({"unique_name": "next"})).await;
    let pair = "Address=+15550100001&ProxyAddress=+15550109001";
    fake.form("/v1/Conversations/next/Participants", pair).await.ok(201);
}

#[tokio::test]
async fn v1_channels_are_told_by_the_address() {
    let fake = Fake::start().await;
    for channel in ["whatsapp", "messenger", "rcs"] {
        let (address, proxy) = (format!("{channel}:+15550100030"), format!("{channel}:sender"));
        let created = fake.form(&v1(""), &format!("Address={address}&ProxyAddress={proxy}")).await.ok(201);
        let binding = json!({"type": channel, "address": address, "proxy_address": proxy});
        assert_eq!(created["messaging_binding"], binding);
    }
    let fallback = [
        ("MessagingBinding.Address", "rcs:+15550100031"),
        ("MessagingBinding.ProxyAddress", "rcs:sender"),
        ("MessagingBinding.ProxyAddressFallback", "+15550109001"),
    ];
    let created = answer(fake.request("POST", &v1("")).form(&fallback)).await.ok(201);
    let binding = json!({"type": "sms", "address": "+15550100031", "proxy_address": "+15550109001"});
    assert_eq!(created["messaging_binding"], binding);
}

#[tokio::test]
async fn v2_creates_fetches_and_replaces() {
    let fake = Fake::start().await;
    let addresses = json!([{"channel": "EMAIL", "address": "dana@example.com", "channelId": "c1"}]);
    let draft =
        json!({"name": "Dana S.", "type": "CUSTOMER", "profileId": "mem_profile_1", "addresses": addresses});
    let created = fake.json("POST", &v2(""), draft).await;
    created.keys("id conversationId accountId name type profileId addresses createdAt updatedAt");
    let created = created.ok(201);
    assert_eq!(created["id"], "conv_participant_00000000000000000000000004");
    assert_eq!(created["addresses"], addresses);
    assert_eq!(created["createdAt"].as_str().unwrap().len(), "2023-07-01T12:00:00.000000000Z".len());
    let one = v2("/conv_participant_00000000000000000000000004");
    assert_eq!(fake.get(&one).await.ok(200), created);

    let replaced = fake.json("PUT", &one, json!({"name": "Only a name"})).await.ok(200);
    assert_eq!(replaced["name"], "Only a name");
    assert_eq!(replaced["type"], Value::Null);
    assert_eq!(replaced["profileId"], Value::Null);
    assert_eq!(replaced["addresses"], json!([]));
    assert_eq!(replaced["createdAt"], created["createdAt"]);
    let own = json!({"type": "SOMETHING_NEW", "addresses": [{"channel": "FAX", "address": "+15550100020"}]});
    for _ in 0..2 {
        let replaced = fake.json("PUT", &one, own.clone()).await.ok(200);
        assert_eq!(replaced["addresses"][0]["channelId"], Value::Null);
    }
}

#[tokio::test]
async fn v2_refuses_what_it_should() {
    let fake = Fake::start().await;
    let sms = |address: &str| json!([{"channel": "SMS", "address": address}]);
    let bodies = [
        (json!({}), "/addresses"),
        (json!({"addresses": []}), "/addresses"),
        (json!({"addresses": sms("")}), "/addresses/0/address"),
        (json!({"addresses": sms(&"1".repeat(255))}), "/addresses/0/address"),
        (json!({"addresses": sms("+15550100020"), "type": "customer"}), "/type"),
        (json!({"addresses": sms("+15550100020"), "name": "x".repeat(257)}), "/name"),
        (json!({"addresses": [{"channel": "sms", "address": "a"}]}), "/addresses/0/channel"),
        (json!([]), ""),
    ];
    for (body, pointer) in bodies {
        let refused = fake.json("POST", &v2(""), body).await;
        refused.refused(400, 20001);
        refused.keys("type title status code detail instance errors");
        assert_eq!(refused.headers["content-type"], "application/problem+json");
        assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{}", refused.text);
    }
    let robin = "conv_participant_00000000000000000000000002";
    let taken = json!({"addresses": [{"channel": "SMS", "address": "+15550100002"}]});
    for (method, path) in [("POST", v2("")), ("PUT", v2(&format!("/{robin}")))] {
        let conflict = fake.json(method, &path, taken.clone()).await;
        conflict.refused(409, 20409);
        assert_eq!(conflict.headers["x-conflicting-resource-id"], NOOR);
    }
    fake.form(&v2(""), "name=Dana").await.refused(415, 20001);
    for path in ["/v2/Conversations/none/Participants".to_owned(), v2("/none"), "/v2/Elsewhere".to_owned()] {
        fake.get(&path).await.refused(404, 20404);
    }
    for method in ["DELETE", "PATCH"] {
        fake.call(method, &v2(&format!("/{NOOR}"))).await.refused(405, 20004);
    }
    for query in ["?pageSize=0", "?pageSize=1001", "?pageToken=%2B"] {
        fake.get(&v2(query)).await.refused(400, 20001);
    }
}

#[tokio::test]
async fn v2_pages_both_ways() {
    let fake = Fake::start().await;
    fake.populate(V2_CONVERSATION, 2).await;
    let page = async |token: &Value| {
        let token = token.as_str().map(|token| format!("&pageToken={token}")).unwrap_or_default();
        fake.get(&v2(&format!("?pageSize=2{token}"))).await.ok(200)
    };
    let first = page(&Value::Null).await;
    assert_eq!(first["meta"]["key"], "participants");
    assert_eq!(first["meta"]["pageSize"], 2);
    assert_eq!(first["meta"]["previousToken"], Value::Null);
    let second = page(&first["meta"]["nextToken"]).await;
    let third = page(&second["meta"]["nextToken"]).await;
    assert_eq!(ids(&third, "id"), ["conv_participant_00000000000000000000000005"]);
    assert_eq!(third["meta"]["nextToken"], Value::Null);
    let back = page(&third["meta"]["previousToken"]).await;
    assert_eq!(ids(&back, "id"), ids(&second, "id"));
    assert_eq!(page(&back["meta"]["previousToken"]).await, first);
    let token = first["meta"]["nextToken"].as_str().unwrap();
    let pascal = fake.get(&v2(&format!("?PageSize=2&pageToken={token}&PageToken={token}"))).await.ok(200);
    assert_eq!(pascal, second);
    assert_eq!(fake.get(&v2("?pageSize=1000")).await.ok(200)["participants"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn accounts_log_in_and_are_apart() {
    let other = Account { sid: "AC11111111111111111111111111111111".into(), auth_token: "secret".into() };
    assert!(!format!("{other:?}").contains("secret"));
    let fake = Fake::with(Settings { accounts: vec![other], ..Settings::default() }).await;
    let sid = "AC11111111111111111111111111111111";
    let logged_in = |user: &str, password: &str, path: String| {
        answer(fake.client.get(format!("{}{path}", fake.base)).basic_auth(user, Some(password)))
    };
    fake.call("DELETE", &v1_one(ALICE)).await.ok(204);
    let theirs = logged_in(sid, "secret", v1("/alice")).await.ok(200);
    assert_eq!(theirs["account_sid"], sid);
    assert_eq!(logged_in(sid, "secret", v2("")).await.ok(200)["participants"][0]["accountId"], sid);
    logged_in(API_KEY_SID, API_KEY_SECRET, v1("/alice")).await.refused(404, 50432);

    for path in [v1(""), v2("")] {
        logged_in(sid, AUTH_TOKEN, path.clone()).await.refused(401, 20003);
        answer(fake.client.get(format!("{}{path}", fake.base))).await.refused(401, 20003);
    }
}

#[tokio::test]
async fn an_access_token_logs_in_until_it_expires_or_is_revoked() {
    let fake = Fake::start().await;
    let issued = fake.ask_token(OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET).await.ok(200);
    assert_eq!((&issued["token_type"], &issued["expires_in"]), (&json!("Bearer"), &json!(3600)));
    for answer in fake.as_bearer(&issued["access_token"]).await {
        answer.ok(200);
    }
    // The lifetime is that of tokens issued from now on.
    fake.credentials(json!({"token_ttl_s": 0})).await;
    for answer in fake.as_bearer(&fake.token().await).await {
        answer.refused(401, 20003);
    }
    for answer in fake.as_bearer(&issued["access_token"]).await {
        answer.ok(200);
    }
    fake.credentials(json!({"revoke_tokens": true})).await;
    for answer in fake.as_bearer(&issued["access_token"]).await {
        answer.refused(401, 20003);
    }
    fake.control("POST", "reset", Value::Null).await;
    assert_eq!(fake.ask_token(OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET).await.ok(200)["expires_in"], 3600);
}

#[tokio::test]
async fn token_requests_that_are_refused() {
    let fake = Fake::start().await;
    fake.ask_token(OAUTH_CLIENT_ID, "wrong").await.refused(401, 20003);
    fake.ask_token("OQ00000000000000000000000000000001", OAUTH_CLIENT_SECRET).await.refused(401, 20003);
    let url = format!("{}/v2/token", fake.base);
    let form = [("client_id", OAUTH_CLIENT_ID), ("client_secret", OAUTH_CLIENT_SECRET)];
    answer(fake.client.post(&url).form(&form)).await.refused(400, 20001);
    answer(fake.client.post(&url).json(&json!({}))).await.refused(400, 20001);
    answer(fake.client.get(&url)).await.refused(405, 20004);
}

#[tokio::test]
async fn token_requests_are_logged_without_the_secret_and_faults_find_them() {
    let fake = Fake::start().await;
    fake.fault(json!({"match": {"api": "v2"}, "status": 500})).await;
    fake.ask_token(OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET).await.ok(200);
    fake.fault(json!({"match": {"path_contains": "/token"}, "status": 503, "code": 20503})).await;
    fake.ask_token(OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET).await.refused(503, 20503);
    let log = fake.control("GET", "requests", Value::Null).await;
    assert_eq!(log["by"], json!([{"method": "POST", "path_template": "/v2/token", "count": 2}]));
    let body = format!("grant_type=client_credentials&client_id={OAUTH_CLIENT_ID}&client_secret=***");
    assert_eq!((&log["last"][0]["body"], &log["last"][0]["account"]), (&json!(body), &json!(ACCOUNT_SID)));
}

#[tokio::test]
async fn credentials_rotate_while_it_runs() {
    let other = "AC11111111111111111111111111111111";
    let account = Account { sid: other.into(), auth_token: "theirs".into() };
    let fake = Fake::with(Settings { accounts: vec![account], ..Settings::default() }).await;
    fake.credentials(json!({"auth_tokens": [AUTH_TOKEN, "secondary"]})).await;
    fake.as_user(ACCOUNT_SID, AUTH_TOKEN).await.ok(200);
    fake.as_user(ACCOUNT_SID, "secondary").await.ok(200);
    fake.credentials(json!({"auth_tokens": ["secondary"], "api_secret": "a", "client_secret": "b"})).await;
    fake.as_user(ACCOUNT_SID, AUTH_TOKEN).await.refused(401, 20003);
    fake.as_user(API_KEY_SID, API_KEY_SECRET).await.refused(401, 20003);
    fake.as_user(API_KEY_SID, "a").await.ok(200);
    fake.ask_token(OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET).await.refused(401, 20003);
    let token = fake.ask_token(OAUTH_CLIENT_ID, "b").await.ok(200)["access_token"].clone();

    // Every account has a key and a client of its own.
    fake.as_user(other, "theirs").await.ok(200);
    fake.as_user("SK11111111111111111111111111111111", API_KEY_SECRET).await.ok(200);
    fake.credentials(json!({"account": other, "auth_tokens": ["new"], "revoke_tokens": true})).await;
    fake.as_user(other, "theirs").await.refused(401, 20003);
    assert_eq!(fake.as_user(other, "new").await.ok(200)["account_sid"], other);
    for answer in fake.as_bearer(&token).await {
        answer.ok(200);
    }

    fake.control("POST", "reset", Value::Null).await;
    fake.as_user(ACCOUNT_SID, "secondary").await.refused(401, 20003);
    fake.as_user(ACCOUNT_SID, AUTH_TOKEN).await.ok(200);
    fake.as_user(API_KEY_SID, API_KEY_SECRET).await.ok(200);
    for answer in fake.as_bearer(&token).await {
        answer.refused(401, 20003);
    }
}

#[tokio::test]
async fn every_answer_has_twilios_headers_and_every_request_is_logged() {
    let fake = Fake::start().await;
    for path in [v1(""), v2(""), "/nowhere".to_owned()] {
        let headers = fake.get(&path).await.headers;
        let id = headers["twilio-request-id"].to_str().unwrap();
        assert!(id.starts_with("RQ") && id.len() == 34);
        assert!(headers["twilio-request-duration"].to_str().unwrap().parse::<f64>().is_ok());
        assert_eq!(headers["twilio-concurrent-requests"], "1");
    }
    let request = fake.request("POST", &v1("?x=1")).header("X-Twilio-Webhook-Enabled", "true");
    answer(request.form(&[("Identity", "e/v e")])).await.ok(201);
    let log = fake.control("GET", "requests", Value::Null).await;
    assert_eq!(log["total"], 4);
    let counted = |method: &str| {
        let template = "/v1/Conversations/{ConversationSid}/Participants";
        json!({"method": method, "path_template": template, "count": 1})
    };
    let by = log["by"].as_array().unwrap();
    assert!(by.contains(&counted("GET")) && by.contains(&counted("POST")), "{by:?}");
    let last = &log["last"][3];
    assert_eq!(last["method"], "POST");
    assert_eq!(last["path"], json!(v1("")));
    assert_eq!(last["query"], "x=1");
    assert_eq!(last["body"], "Identity=e%2Fv+e");
    assert_eq!(last["account"], json!(ACCOUNT_SID));
    assert_eq!(last["headers"]["x-twilio-webhook-enabled"], "true");
    assert!(last["headers"].get("authorization").is_none());
    fake.control("DELETE", "requests", Value::Null).await;
    assert_eq!(fake.control("GET", "requests", Value::Null).await["total"], 0);
}

#[tokio::test]
async fn a_fault_answers_in_place_of_the_face_as_often_as_it_says() {
    let fault = "status=429,code=20429,retry-after=1,times=2,method=GET".parse().unwrap();
    let fake = Fake::with(Settings { faults: vec![fault], ..Settings::default() }).await;
    fake.form(&v1(""), "Identity=eve").await.ok(201);
    for path in [v1(""), v2("")] {
        let throttled = fake.get(&path).await;
        throttled.refused(429, 20429);
        assert_eq!(throttled.headers["retry-after"], "1");
        assert!(throttled.headers.contains_key("twilio-request-id"));
    }
    fake.get(&v1("")).await.ok(200);
    fake.control("POST", "reset", Value::Null).await;
    assert_eq!(fake.control("GET", "faults", Value::Null).await["faults"][0]["times"], 2);
    fake.get(&v1("")).await.refused(429, 20429);
}

#[tokio::test]
async fn a_fault_strikes_what_it_matches() {
    let fake = Fake::start().await;
    let matches =
        json!({"api": "v1", "method": "post", "path_contains": "/Participants", "account": ACCOUNT_SID});
    fake.fault(json!({"match": matches, "status": 503})).await;
    let refused = fake.form(&v1(""), "Identity=eve").await;
    assert_eq!((refused.status, refused.text.as_str()), (503, ""));
    fake.json("POST", &v2(""), json!({"addresses": [{"channel": "CHAT", "address": "eve"}]})).await.ok(201);
    fake.get(&v1("/eve")).await.refused(404, 50432);
    fake.control("DELETE", "faults", Value::Null).await;

    // The first that matches strikes, and when it is used up the next one does.
    fake.fault(
        json!({"match": {"method": "GET"}, "times": 1, "body": "<html>", "content_type": "text/html"}),
    )
    .await;
    fake.fault(json!({"headers": {"X-Odd": "yes", "Twilio-Request-Id": "RQ1"}, "latency_ms": 1})).await;
    let page = fake.get(&v1("")).await;
    assert_eq!((page.status, page.text.as_str()), (200, "<html>"));
    assert_eq!(page.headers["content-type"], "text/html");
    let real = fake.get(&v1("/alice")).await;
    assert_eq!(real.headers["x-odd"], "yes");
    assert_eq!(real.headers["twilio-request-id"], "RQ1");
    assert_eq!(real.ok(200)["sid"], ALICE);
}

#[tokio::test]
async fn requests_under_way_are_counted_for_each_account() {
    let other = Account { sid: "AC11111111111111111111111111111111".into(), auth_token: "secret".into() };
    let fake = Fake::with(Settings { accounts: vec![other], ..Settings::default() }).await;
    fake.fault(json!({"match": {"method": "GET"}, "hold": true, "times": 2})).await;
    let above = json!({"match": {"concurrent_above": 2}, "status": 429, "code": 20429});
    fake.fault(above).await;
    let held: Vec<_> = (0..2).map(|_| tokio::spawn(fake.request("GET", &v1("")).send())).collect();
    fake.control("GET", "held?at_least=2", Value::Null).await;
    let third = fake.get(&v2("")).await;
    assert_eq!(third.headers["twilio-concurrent-requests"], "3");
    third.refused(429, 20429);
    let theirs = fake.as_user("AC11111111111111111111111111111111", "secret").await;
    assert_eq!((theirs.status, &theirs.headers["twilio-concurrent-requests"]), (200, &"1".parse().unwrap()));
    fake.control("POST", "release", Value::Null).await;
    for (at, held) in held.into_iter().enumerate() {
        let headers = held.await.unwrap().unwrap().headers().clone();
        let count: usize = headers["twilio-concurrent-requests"].to_str().unwrap().parse().unwrap();
        assert!((1..=2).contains(&count), "{at}: {count}");
    }
    assert_eq!(fake.get(&v1("")).await.headers["twilio-concurrent-requests"], "1");
}

#[tokio::test]
async fn after_the_effect_the_answer_is_lost() {
    let fake = Fake::start().await;
    fake.fault(json!({"after": true, "status": 500, "code": 20500, "times": 1})).await;
    fake.form(&v1(""), "Identity=eve").await.refused(500, 20500);
    fake.form(&v1(""), "Identity=eve").await.refused(409, 50433);
}

#[tokio::test]
async fn a_connection_is_cut() {
    let fake = Fake::start().await;
    let cut = |cut: Cut, after: bool| {
        serde_json::to_value(Fault { times: Some(1), cut: Some(cut), after, ..Fault::default() }).unwrap()
    };
    let create = |identity: &'static str| fake.request("POST", &v1("")).form(&[("Identity", identity)]);

    fake.fault(cut(Cut::Before, false)).await;
    assert!(create("before").send().await.is_err());
    fake.get(&v1("/before")).await.refused(404, 50432);

    fake.fault(cut(Cut::Before, true)).await;
    assert!(create("after").send().await.is_err());
    fake.get(&v1("/after")).await.ok(200);

    for (after, status) in [(true, 201), (false, 200)] {
        fake.fault(cut(Cut::Mid, after)).await;
        let mut response = create(if after { "mid" } else { "none" }).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        let announced = response.content_length().unwrap() as usize;
        let half = response.chunk().await.unwrap().unwrap();
        assert_eq!(half.len(), announced / 2);
        assert!(response.chunk().await.is_err());
    }
    fake.get(&v1("/mid")).await.ok(200);
    fake.get(&v1("/none")).await.refused(404, 50432);
}

#[tokio::test]
async fn held_requests_wait_for_their_release() {
    let fake = Fake::start().await;
    let held = Fault {
        matches: FaultMatch { method: Some("GET".into()), ..FaultMatch::default() },
        times: Some(1),
        hold: true,
        after: true,
        ..Fault::default()
    };
    let held = serde_json::to_value(held).unwrap();
    let alice = v1_one(ALICE);

    // After: it has read the old value. Before: it reads when it is let go.
    for (after, attributes) in [(true, "{}"), (false, r#"{"new":true}"#)] {
        let mut fault = held.clone();
        fault["after"] = json!(after);
        fake.fault(fault).await;
        let waiting = tokio::spawn(answer(fake.request("GET", &v1("/alice"))));
        assert_eq!(fake.control("GET", "held?at_least=1", Value::Null).await["held"], 1);
        fake.form(&alice, r#"Attributes={"new":true}"#).await.ok(200);
        assert_eq!(fake.control("POST", "release", Value::Null).await["released"], 1);
        assert_eq!(waiting.await.unwrap().ok(200)["attributes"], attributes);
        assert_eq!(fake.control("GET", "held", Value::Null).await["held"], 0);
        fake.form(&alice, "Attributes={}").await.ok(200);
    }

    fake.fault(held).await;
    let waiting = tokio::spawn(answer(fake.request("GET", &v1("/alice"))));
    fake.control("GET", "held?at_least=1", Value::Null).await;
    fake.control("DELETE", "faults", Value::Null).await;
    waiting.await.unwrap().ok(200);
}

#[tokio::test]
async fn control_routes_say_what_is_wrong() {
    let fake = Fake::start().await;
    let wrong = [
        ("faults", json!({"statsu": 500}), "statsu"),
        ("faults", json!({"status": "often"}), "status"),
        ("faults", json!({"times": 1}), "does nothing"),
        ("populate", json!({"conversation": V1_CONVERSATION, "count": 998}), "1000"),
        ("populate", json!({"conversation": "nowhere", "count": 1}), "nowhere"),
        ("populate", json!({"account": "AC2", "conversation": V1_CONVERSATION, "count": 1}), "AC2"),
        ("remove", json!({"conversation": V2_CONVERSATION, "participant": NOBODY}), NOBODY),
        ("remove", json!({"conversation": V1_CONVERSATION, "participant": ALICE}), V1_CONVERSATION),
        ("conversations", json!({"account": "AC2"}), "AC2"),
        ("conversations", json!({"status": "closed"}), "status"),
        ("conversations", json!({"state": "open"}), "open"),
        ("conversations", json!({"participants": [{"name": "erin"}]}), "name"),
    ];
    for (route, body, named) in wrong {
        let refused = fake.json("POST", &format!("/_sandbox/{route}"), body).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert!(refused.body["error"].as_str().unwrap().contains(named), "{}", refused.text);
    }
    let wrong = [
        (json!({"auth_token": ["a"]}), "auth_token"),
        (json!({"auth_tokens": []}), "auth_tokens"),
        (json!({"auth_tokens": ["a", "b", "c"]}), "auth_tokens"),
        (json!({"token_ttl_s": -1}), "-1"),
        (json!({"account": "AC2"}), "AC2"),
    ];
    for (body, named) in wrong {
        let refused = fake.json("PUT", "/_sandbox/credentials", body).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert!(refused.body["error"].as_str().unwrap().contains(named), "{}", refused.text);
    }
    let wrong = [
        (json!({"los": 1}), "los"),
        (json!({"loss": "often"}), "loss"),
        (json!({"loss": 1.5}), "loss"),
        (json!({"reorder": -0.5}), "reorder"),
        (json!({"batch": 0}), "batch"),
        (json!({"delay_ms": -1}), "delay_ms"),
        (json!({"url": "events"}), "url"),
        (json!({"url": "https://127.0.0.1/"}), "url"),
        (json!({"url": "http://127.0.0.1/#top"}), "url"),
        (json!({"account": "AC2"}), "AC2"),
        (json!([]), "object"),
    ];
    for (body, named) in wrong {
        let refused = fake.json("PUT", "/_sandbox/events", body).await;
        assert_eq!(refused.status, 400, "{}", refused.text);
        assert!(refused.body["error"].as_str().unwrap().contains(named), "{}", refused.text);
    }
    assert_eq!(fake.get("/_sandbox/events?idle=maybe").await.status, 400);
    assert_eq!(fake.call("POST", "/_sandbox/events/test").await.status, 400);
    assert_eq!(fake.get("/_sandbox/nothing").await.status, 404);
    assert_eq!(fake.control("GET", "requests", Value::Null).await["total"], 0);
    let nonsense = Settings { faults: vec![Fault::default()], ..Settings::default() };
    assert_eq!(Sandbox::bind(nonsense).await.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn reset_brings_everything_back() {
    let fake = Fake::start().await;
    let before = fake.get(&v1("")).await.ok(200);
    fake.call("DELETE", &v1_one(ALICE)).await.ok(204);
    fake.populate("CH000000000000000000000000000000aa", 1).await;
    fake.fault(json!({"status": 500})).await;
    fake.control("POST", "reset", Value::Null).await;
    assert_eq!(fake.get(&v1("")).await.ok(200), before);
    fake.call("GET", "/v1/Conversations/CH000000000000000000000000000000aa/Participants")
        .await
        .refused(404, 20404);
    assert_eq!(fake.control("GET", "requests", Value::Null).await["total"], 2);
}

#[tokio::test]
async fn it_ends_at_once_with_requests_open() {
    let fake = Fake::start().await;
    fake.fault(json!({"hold": true})).await;
    let waiting = tokio::spawn(fake.request("GET", &v1("")).send());
    fake.control("GET", "held?at_least=1", Value::Null).await;
    fake.shutdown.cancel();
    fake.running.await.unwrap();
    assert!(waiting.await.unwrap().is_err());
}
