//! Who may do what: each method for each kind of caller, what is cached for others, and a policy that changes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::json;
use tempfile::NamedTempFile;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::events::{Event, Watcher};
use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;

const METHODS: [&str; 9] = [
    "GetParticipant",
    "ListParticipants",
    "StreamParticipants",
    "BatchGetParticipants",
    "ListParticipantConversations",
    "WatchParticipants",
    "CreateParticipant",
    "UpdateParticipant",
    "DeleteParticipant",
];
const WRITES: [&str; 3] = ["CreateParticipant", "UpdateParticipant", "DeleteParticipant"];

/// A gateway under a policy, before a sandbox of two accounts. Its callers are told apart by where they connect from.
pub struct Policed {
    pub gateway: Gateway,
    twilio: SocketAddr,
    file: NamedTempFile,
    settings: String,
}

impl Policed {
    pub async fn by(rules: &str) -> Self {
        let other = account_id('1');
        let settings = sandbox::Settings {
            accounts: vec![sandbox::Account { sid: other.clone(), auth_token: "other".into() }],
            ..Default::default()
        };
        let (fake, end) = sandbox(settings).await;
        let settings = format!(
            "upstream.url = \"http://{fake}\"\nevents.listen = \"127.0.0.1:0\"\n\
             events.public_url = {:?}\nsecrets.reload_interval = \"20ms\"\nlog.access = true\n\
             [[accounts]]\naccount_sid = {:?}\nauth_token = {:?}\n\
             [[accounts]]\naccount_sid = {other:?}\nauth_token = \"other\"\n",
            crate::events::PUBLIC_URL,
            sandbox::ACCOUNT_SID,
            sandbox::AUTH_TOKEN,
        );
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{settings}{rules}")).unwrap();
        let path = file.path().to_str().unwrap();
        let gateway = Gateway::launch(&["--config", path], &[], Some((fake, Some(end)))).await;
        Self { gateway, twilio: fake, file, settings }
    }

    /// Whoever connects from 127.0.0.`last`.
    pub async fn caller(&self, last: u8) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.gateway.addresses.grpc)).unwrap();
        let address = IpAddr::from([127, 0, 0, last]);
        ParticipantServiceClient::new(endpoint.local_address(Some(address)).connect().await.unwrap())
    }

    /// Writes the file anew, and waits until that has this outcome.
    async fn change(&self, rules: &str, outcome: &str) {
        let labels = [("participant_policy_reload_outcome", outcome)];
        let count = async || Scrape::of(&self.gateway).await.sum("participant_policy_reloads_total", &labels);
        let before = count().await;
        let new = NamedTempFile::new().unwrap();
        std::fs::write(new.path(), format!("{}{rules}", self.settings)).unwrap();
        std::fs::rename(new.path(), self.file.path()).unwrap();
        let changed = async { while count().await == before {} };
        tokio::time::timeout(PATIENCE, changed).await.expect("the file is read again");
    }
}

/// A rule for 127.0.0.`last`, of all accounts unless `rest` says which.
pub fn rule(last: u8, rest: &str) -> String {
    let accounts = if rest.contains("accounts") { "" } else { "accounts = [\"*\"]\n" };
    format!("[[policy.rules]]\ncallers = [\"address:127.0.0.{last}\"]\n{accounts}{rest}\n")
}

pub fn everything(last: u8) -> String {
    rule(last, "methods = [\"*\"]\npii = \"shown\"")
}

fn in_account(reference: ConversationRef, account: &str) -> ConversationRef {
    ConversationRef { account_id: account.into(), ..reference }
}

fn person() -> ListParticipantConversationsRequest {
    ListParticipantConversationsRequest { identity: "alice".into(), ..Default::default() }
}

/// Calls a method; the first message of a stream is its answer.
async fn call(
    client: &mut Client,
    method: &str,
    conversation: ConversationRef,
    face: Face,
) -> Result<(), Status> {
    let (account_id, service_id) = (conversation.account_id.clone(), conversation.service_id.clone());
    let conversation = Some(conversation);
    let id = face.participant().to_owned();
    match method {
        "GetParticipant" => {
            client.get_participant(GetParticipantRequest { conversation, ..face.get() }).await.map(drop)
        }
        "ListParticipants" => client
            .list_participants(ListParticipantsRequest { conversation, ..Default::default() })
            .await
            .map(drop),
        "StreamParticipants" => {
            let request = StreamParticipantsRequest { conversation, page_size: 0 };
            client.stream_participants(request).await?.into_inner().message().await.map(drop)
        }
        "BatchGetParticipants" => {
            let request =
                BatchGetParticipantsRequest { conversation, participant_ids: vec![id], ..Default::default() };
            client.batch_get_participants(request).await.map(drop)
        }
        "ListParticipantConversations" => {
            let request = ListParticipantConversationsRequest { account_id, service_id, ..person() };
            client.list_participant_conversations(request).await.map(drop)
        }
        "WatchParticipants" => {
            let request = WatchParticipantsRequest {
                conversations: conversation.into_iter().collect(),
                ..Default::default()
            };
            client.watch_participants(request).await?.into_inner().message().await.map(drop)
        }
        "CreateParticipant" => {
            let request = CreateParticipantRequest { conversation, ..face.create(face.newcomer(1)) };
            client.create_participant(request).await.map(drop)
        }
        "UpdateParticipant" => {
            let request = UpdateParticipantRequest { conversation, ..face.update(face.marked("new")) };
            client.update_participant(request).await.map(drop)
        }
        "DeleteParticipant" => {
            let request = DeleteParticipantRequest { conversation, ..face.delete() };
            client.delete_participant(request).await.map(drop)
        }
        other => panic!("no method: {other}"),
    }
}

fn is_denied(result: &Result<(), Status>) -> bool {
    result.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied)
}

#[track_caller]
fn assert_denied(result: Result<impl std::fmt::Debug, Status>) {
    assert_eq!(told(&result.unwrap_err()), (Code::PermissionDenied, "NOT_ALLOWED".into()));
}

/// What there is of a person that a masked answer must not hold.
#[track_caller]
fn assert_masked(answer: &impl prost::Message) {
    let text = String::from_utf8_lossy(&answer.encode_to_vec()).into_owned();
    for pii in ["alice", "+1555", "Sandbox", "Dana", "Customer", "newcomer", "mark", "@"] {
        assert!(!text.contains(pii), "{pii} in an answer");
    }
    assert!(text.contains("***"), "nothing is masked");
}

on_both_versions! {
    /// Each role says which methods it may call; all others are refused before anything is asked of Twilio.
    async fn each_role_may_call_its_methods_and_no_other(face) {
        let reads: Vec<_> = METHODS.into_iter().filter(|method| !WRITES.contains(method)).collect();
        let mut roles: Vec<(String, Vec<&str>)> = METHODS.iter().map(|one| (format!("methods = [{one:?}]"), vec![*one])).collect();
        roles.push(("methods = [\"read\"]".into(), reads.clone()));
        roles.push(("read_only = true".into(), reads));
        roles.push(("methods = [\"write\"]".into(), WRITES.to_vec()));
        roles.push(("methods = [\"write\", \"GetParticipant\"]".into(), [&WRITES[..], &["GetParticipant"]].concat()));
        roles.push(("methods = [\"*\"]".into(), METHODS.to_vec()));
        let first = 10;
        let rules: String = (first..).zip(&roles).map(|(last, (role, _))| rule(last, role)).collect();
        let policed = Policed::by(&rules).await;
        roles.push(("no rule".into(), Vec::new()));
        for (last, (role, methods)) in (first..).zip(roles) {
            let mut client = policed.caller(last).await;
            for method in METHODS {
                let before = policed.gateway.sandbox.count().await;
                let result = call(&mut client, method, face.conversation(), face).await;
                assert_eq!(!is_denied(&result), methods.contains(&method), "{role} calls {method}: {result:?}");
                if is_denied(&result) {
                    assert_denied(result);
                    assert_eq!(policed.gateway.sandbox.count().await, before, "{role} calls {method}");
                }
            }
        }
    }

    async fn who_may_not_see_it_is_not_served_what_was_cached_for_another(face) {
        let policed = Policed::by(&everything(1)).await;
        let (mut a, mut b) = (policed.caller(1).await, policed.caller(2).await);
        let page = a.list_participants(ListParticipantsRequest { page_size: 1, ..face.list() }).await.unwrap().into_inner();
        for _ in 0..2 {
            a.get_participant(face.get()).await.unwrap();
        }
        let before = policed.gateway.sandbox.count().await;
        assert_denied(b.get_participant(face.get()).await);
        assert_denied(b.list_participants(ListParticipantsRequest { page_size: 1, ..face.list() }).await);
        let next = ListParticipantsRequest { page_token: page.next_page_token, page_size: 1, ..face.list() };
        assert_denied(b.list_participants(next.clone()).await);
        let batch = BatchGetParticipantsRequest {
            conversation: Some(face.conversation()),
            participant_ids: vec![face.participant().into()],
            return_partial_success: true,
            ..Default::default()
        };
        assert_denied(b.batch_get_participants(batch).await);
        assert_eq!(policed.gateway.sandbox.count().await, before);
        let hits = Scrape::of(&policed.gateway).await.sum("participant_cache_lookups_total", &[("participant_cache_outcome", "hit")]);
        assert_eq!(hits, 1.0, "the first caller's own");
        a.list_participants(next).await.unwrap();
    }

    async fn a_load_is_joined_by_those_only_who_may_see_it(face) {
        let policed = Policed::by(&[everything(1), rule(2, "read_only = true")].concat()).await;
        policed.gateway.sandbox.fault(json!({ "hold": true, "times": 1 })).await;
        let (mut a, mut b, mut c) = (policed.caller(1).await, policed.caller(2).await, policed.caller(3).await);
        let whole = tokio::spawn(async move { a.get_participant(face.get()).await });
        policed.gateway.sandbox.held(1).await;
        assert_denied(c.get_participant(face.get()).await);
        let masked = tokio::spawn(async move { b.get_participant(face.get()).await });
        while Scrape::of(&policed.gateway).await.sum("participant_calls_in_flight", &[]) < 2.0 {}
        policed.gateway.sandbox.release().await;
        let whole = whole.await.unwrap().unwrap().into_inner().participant.unwrap();
        let masked = masked.await.unwrap().unwrap().into_inner();
        assert!(whole.addresses.iter().all(|address| !address.address.is_empty() && address.address != "***"));
        assert_masked(&masked);
        assert_eq!(policed.gateway.sandbox.count().await, 1);
    }

    /// Ids, channels, roles and times stay, and so does what is not there.
    async fn a_masked_caller_sees_who_without_learning_whom(face) {
        let policed = Policed::by(&[everything(1), rule(2, "methods = [\"*\"]")].concat()).await;
        let (mut a, mut b) = (policed.caller(1).await, policed.caller(2).await);
        let whole = a.get_participant(face.get()).await.unwrap().into_inner().participant.unwrap();
        let get = b.get_participant(face.get()).await.unwrap().into_inner();
        assert_eq!(get.read_info.unwrap().cache_status(), CacheStatus::Hit);
        assert_masked(&get);
        let masked = get.participant.unwrap();
        let mut expected = whole.clone();
        expected.etag.clear();
        for (text, mask) in [(&mut expected.display_name, "***"), (&mut expected.attributes, "\"***\"")] {
            if !text.is_empty() {
                *text = mask.into();
            }
        }
        for address in &mut expected.addresses {
            for text in [&mut address.address, &mut address.proxy_address, &mut address.projected_address, &mut address.display_name] {
                if !text.is_empty() {
                    *text = "***".into();
                }
            }
        }
        assert_eq!(masked, expected);

        assert_masked(&b.list_participants(face.list()).await.unwrap().into_inner());
        let conversation = Some(face.conversation());
        let batch = BatchGetParticipantsRequest {
            conversation: conversation.clone(), participant_ids: vec![face.participant().into()], ..Default::default()
        };
        assert_masked(&b.batch_get_participants(batch).await.unwrap().into_inner());
        let mut stream = b.stream_participants(StreamParticipantsRequest { conversation, page_size: 0 }).await.unwrap().into_inner();
        assert_masked(&stream.message().await.unwrap().unwrap());
        let created = b.create_participant(face.create(face.newcomer(1))).await.unwrap().into_inner();
        assert_masked(&created);
        let updated = b.update_participant(face.update(face.marked("mark"))).await.unwrap().into_inner();
        assert_masked(&updated);
        // The write itself is whole.
        let (written, _) = (a.get_participant(face.get()).await.unwrap().into_inner().participant.unwrap(), ());
        assert_eq!(face.mark(&written), "mark");
    }

    async fn what_is_masked_is_not_written_back(face) {
        let policed = Policed::by(&rule(2, "methods = [\"*\"]")).await;
        let mut client = policed.caller(2).await;
        let masked = client.get_participant(face.get()).await.unwrap().into_inner().participant.unwrap();
        let before = policed.gateway.sandbox.count().await;
        let refused = client.update_participant(face.update(masked)).await.unwrap_err();
        let expected = match face {
            Face::V1 => vec!["participant.addresses[0].address", "participant.attributes"],
            Face::V2 => vec!["participant.display_name", "participant.addresses[0].address"],
        };
        assert_eq!(refused_fields(&refused), expected);
        assert_eq!(policed.gateway.sandbox.count().await, before);
    }

    async fn an_account_is_known_to_those_only_who_may_see_it(face) {
        let (own, other, none) = (sandbox::ACCOUNT_SID.to_owned(), account_id('1'), account_id('9'));
        let limited = rule(2, &format!("methods = [\"*\"]\naccounts = [{own:?}]"));
        let policed = Policed::by(&[everything(1), limited].concat()).await;
        let (mut all, mut one) = (policed.caller(1).await, policed.caller(2).await);
        for method in METHODS {
            for account in ["", &own] {
                let result = call(&mut one, method, in_account(face.conversation(), account), face).await;
                assert!(!is_denied(&result), "{method} in {account:?}: {result:?}");
            }
            // One that there is, one that there is not, and what is none.
            for account in [&other, &none, "nonsense"] {
                assert_denied(call(&mut one, method, in_account(face.conversation(), account), face).await);
            }
            assert!(!is_denied(&call(&mut all, method, in_account(face.conversation(), &other), face).await));
            let unknown = call(&mut all, method, in_account(face.conversation(), &none), face).await;
            assert_eq!(told(&unknown.unwrap_err()).1, "ACCOUNT_UNKNOWN", "{method}");
        }
    }

    async fn a_watcher_hears_of_its_accounts_and_as_its_rules_say(face) {
        let own = sandbox::ACCOUNT_SID;
        let limited = rule(2, &format!("methods = [\"WatchParticipants\"]\naccounts = [{own:?}]"));
        let mut policed = Policed::by(&[everything(1), limited].concat()).await;
        let mut all = Watcher::of(&policed.gateway).await;
        policed.gateway.client = policed.caller(2).await;
        let mut one = Watcher::of(&policed.gateway).await;
        let elsewhere = Event { account: account_id('1'), ..Event::new(face, "elsewhere") };
        assert_eq!(elsewhere.delivery("other").post(&policed.gateway).await, 200);
        Event { mark: "alice".into(), ..Event::new(face, "here") }.deliver(&policed.gateway).await;
        assert_eq!(all.ids(2).await, ["elsewhere", "here"]);
        let (event, token) = one.told().await;
        assert_eq!(event.id, "here");
        assert_masked(&event);
        // Its token opens no more than its filter did, and nobody else's does.
        let resumed = WatchParticipantsRequest { resume_token: token, ..Default::default() };
        let mut stranger = policed.caller(3).await;
        assert_denied(stranger.watch_participants(resumed.clone()).await);
        let there = in_account(face.conversation(), &account_id('1'));
        let mixed = WatchParticipantsRequest { conversations: vec![face.conversation(), there], ..resumed };
        assert_denied(policed.caller(2).await.watch_participants(mixed).await);
    }

    async fn a_watch_ends_where_the_policy_no_longer_allows_it(face) {
        let mut policed = Policed::by(&[everything(1), everything(2)].concat()).await;
        let mut stays = Watcher::of(&policed.gateway).await;
        policed.gateway.client = policed.caller(2).await;
        let mut goes = Watcher::of(&policed.gateway).await;
        let here = WatchParticipantsRequest { conversations: vec![face.conversation()], ..Default::default() };
        let mut filtered = Watcher::with(&policed.gateway, here).await;

        policed.change(&[everything(1), rule(2, "methods = [\"GetParticipant\"]")].concat(), "taken").await;
        for watcher in [&mut goes, &mut filtered] {
            let ended = watcher.0.message().await.unwrap_err();
            assert_eq!(told(&ended), (Code::PermissionDenied, "NOT_ALLOWED".into()));
        }
        Event::new(face, "after").deliver(&policed.gateway).await;
        assert_eq!(stays.event().await.id, "after");
    }

    async fn a_policy_changes_with_its_file_and_a_bad_one_is_not_taken(face) {
        let policed = Policed::by(&everything(1)).await;
        let (mut a, mut b) = (policed.caller(1).await, policed.caller(2).await);
        a.get_participant(face.get()).await.unwrap();
        assert_denied(b.get_participant(face.get()).await);

        policed.change(&everything(2), "taken").await;
        assert_denied(a.get_participant(face.get()).await);
        b.get_participant(face.get()).await.unwrap();
        for bad in ["[[policy.rules]]\ncallers = 1\n", "[policy", "[policy]\nrule = []\n", ""] {
            policed.change(bad, "refused").await;
            assert_denied(a.get_participant(face.get()).await);
            b.get_participant(face.get()).await.unwrap();
        }
        policed.change(&everything(2), "unchanged").await;
        policed.change(&[everything(1), everything(2)].concat(), "taken").await;
        a.get_participant(face.get()).await.unwrap();
    }

    async fn without_a_policy_everything_is_allowed_until_there_is_one(face) {
        let policed = Policed::by("").await;
        let mut a = policed.caller(1).await;
        for method in METHODS {
            let result = call(&mut a, method, face.conversation(), face).await;
            assert!(!is_denied(&result), "{method}: {result:?}");
        }
        policed.change("[policy]\n", "taken").await;
        for method in METHODS {
            assert_denied(call(&mut a, method, face.conversation(), face).await);
        }
    }

    async fn a_trial_needs_the_right_of_its_write(face) {
        let policed = Policed::by(&[rule(1, "methods = [\"UpdateParticipant\"]"), rule(2, "read_only = true")].concat()).await;
        let create = CreateParticipantRequest { validate_only: true, ..face.create(face.newcomer(1)) };
        let update = UpdateParticipantRequest { validate_only: true, ..face.update(face.marked("new")) };
        for last in [1, 2] {
            assert_denied(policed.caller(last).await.create_participant(create.clone()).await);
        }
        assert_denied(policed.caller(2).await.update_participant(update.clone()).await);
        policed.caller(1).await.update_participant(update).await.unwrap();
    }
}

/// v2 has no services, so that a rule for some allows nothing there.
#[tokio::test]
async fn a_caller_of_some_services_names_one_of_them() {
    let limited = format!("methods = [\"*\"]\nservices = [{:?}]", sandbox::SERVICE_SID);
    let policed = Policed::by(&rule(2, &limited)).await;
    let mut client = policed.caller(2).await;
    let foreign = format!("IS{}", "9".repeat(32));
    for method in METHODS {
        for service in ["", &foreign, "nonsense"] {
            let conversation = ConversationRef { service_id: service.into(), ..Face::V1.conversation() };
            assert_denied(call(&mut client, method, conversation, Face::V1).await);
        }
        let conversation =
            ConversationRef { service_id: sandbox::SERVICE_SID.into(), ..Face::V1.conversation() };
        let result = call(&mut client, method, conversation, Face::V1).await;
        // Events tell no service.
        assert_eq!(is_denied(&result), method == "WatchParticipants", "{method}: {result:?}");
        if method != "ListParticipantConversations" {
            assert_denied(call(&mut client, method, Face::V2.conversation(), Face::V2).await);
        }
    }
}

#[tokio::test]
async fn the_conversations_of_a_person_are_masked_and_those_of_other_services_left_out() {
    let foreign = format!("IS{}", "9".repeat(32));
    let limited = format!("methods = [\"*\"]\nservices = [{foreign:?}]");
    let policed = Policed::by(&[rule(1, "read_only = true"), rule(2, &limited)].concat()).await;
    let masked = policed.caller(1).await.list_participant_conversations(person()).await.unwrap().into_inner();
    assert_masked(&masked);
    assert_eq!(masked.conversations[0].conversation_id, sandbox::V1_CONVERSATION);
    // Were Twilio to tell those of another service than it was asked for.
    let url = format!("http://{}/v1/ParticipantConversations?Identity=alice", policed.twilio);
    let twilio = reqwest::Client::new().get(url).basic_auth(sandbox::ACCOUNT_SID, Some(sandbox::AUTH_TOKEN));
    let page = twilio.send().await.unwrap().text().await.unwrap();
    assert!(page.contains(sandbox::SERVICE_SID));
    policed.gateway.sandbox.fault(json!({ "body": page })).await;
    let request = ListParticipantConversationsRequest { service_id: foreign, ..person() };
    let left = policed.caller(2).await.list_participant_conversations(request).await.unwrap().into_inner();
    assert!(left.conversations.is_empty());
}

/// PII is shown where any rule that allows the call shows it.
#[tokio::test]
async fn rules_add_up() {
    let shown =
        format!("methods = [\"GetParticipant\"]\npii = \"shown\"\naccounts = [{:?}]", sandbox::ACCOUNT_SID);
    let policed = Policed::by(&[rule(2, "read_only = true"), rule(2, &shown)].concat()).await;
    let mut client = policed.caller(2).await;
    let whole = client.get_participant(Face::V1.get()).await.unwrap().into_inner().participant.unwrap();
    assert_eq!(whole.addresses[0].address, "alice");
    assert!(!whole.etag.is_empty());
    assert_masked(&client.list_participants(Face::V1.list()).await.unwrap().into_inner());
    let elsewhere = in_account(Face::V1.conversation(), &account_id('1'));
    let elsewhere = GetParticipantRequest { conversation: Some(elsewhere), ..Face::V1.get() };
    assert_masked(&client.get_participant(elsewhere).await.unwrap().into_inner());
}

/// A stream may last long.
#[tokio::test]
async fn a_stream_ends_where_the_policy_no_longer_allows_it() {
    let policed = Policed::by(&everything(2)).await;
    let (face, mut client) = (Face::V1, policed.caller(2).await);
    policed.gateway.sandbox.populate(&face.conversation(), 5).await;
    policed.gateway.sandbox.fault(json!({ "hold": true })).await;
    let request = StreamParticipantsRequest { conversation: Some(face.conversation()), page_size: 1 };
    let mut stream = client.stream_participants(request).await.unwrap().into_inner();
    policed.gateway.sandbox.held(1).await;
    policed.gateway.sandbox.release().await;
    assert!(stream.message().await.unwrap().is_some());
    policed.gateway.sandbox.held(1).await;
    policed.change(&rule(2, "methods = [\"GetParticipant\"]"), "taken").await;
    policed.gateway.sandbox.release().await;
    assert_denied(tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap());
}
