//! A gateway of its own for every test, on free ports, and the words in which tests speak to it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use participant_gateway::app::{Addresses, App, RunError, Stop};
use participant_gateway::config::{self, Command};
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::*;
use participant_gateway::sandbox;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Far longer than anything here takes: a test that waits for ever fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Client = ParticipantServiceClient<tonic::transport::Channel>;

/// Runs one body on v1 and on v2.
#[macro_export]
macro_rules! on_both_versions {
    ($($(#[$attribute:meta])* async fn $name:ident($face:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($face: Face) $body

            $(#[$attribute])*
            #[tokio::test]
            async fn v1() {
                tokio::time::timeout(PATIENCE, body(Face::V1)).await.expect("the test takes too long");
            }

            $(#[$attribute])*
            #[tokio::test]
            async fn v2() {
                tokio::time::timeout(PATIENCE, body(Face::V2)).await.expect("the test takes too long");
            }
        }
    )*};
}

/// One of the two API versions, and what the sandbox has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    V1,
    V2,
}

impl Face {
    pub fn conversation(self) -> ConversationRef {
        Self::named(match self {
            Self::V1 => sandbox::V1_CONVERSATION,
            Self::V2 => sandbox::V2_CONVERSATION,
        })
    }

    pub fn missing_conversation(self) -> ConversationRef {
        Self::named(match self {
            Self::V1 => "CH00000000000000000000000000000099",
            Self::V2 => "conv_conversation_00000000000000000000000099",
        })
    }

    pub fn named(id: &str) -> ConversationRef {
        ConversationRef { conversation_id: id.into(), ..Default::default() }
    }

    /// A seeded participant: alice, or the customer.
    pub fn participant(self) -> &'static str {
        match self {
            Self::V1 => "MB00000000000000000000000000000001",
            Self::V2 => "conv_participant_00000000000000000000000001",
        }
    }

    pub fn missing_participant(self) -> &'static str {
        match self {
            Self::V1 => "MB00000000000000000000000000000099",
            Self::V2 => "conv_participant_00000000000000000000000099",
        }
    }

    /// What the sandbox's faults call it.
    pub fn api(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// A participant that is not there yet, told apart by `number`.
    pub fn newcomer(self, number: u16) -> Participant {
        let (channel, address) = match self {
            Self::V1 => (Channel::Chat, format!("newcomer-{number}")),
            Self::V2 => (Channel::Sms, format!("+1555011{number:04}")),
        };
        let address = Address { channel: channel.into(), address, ..Default::default() };
        Participant { addresses: vec![address], ..Default::default() }
    }

    /// An update that changes what `mark` reads.
    pub fn marked(self, mark: &str) -> Participant {
        match self {
            Self::V1 => Participant { attributes: json!({ "mark": mark }).to_string(), ..Default::default() },
            Self::V2 => Participant { display_name: mark.into(), ..Default::default() },
        }
    }

    pub fn mark(self, participant: &Participant) -> String {
        match self {
            Self::V1 => {
                let attributes: Value = serde_json::from_str(&participant.attributes).unwrap();
                attributes["mark"].as_str().unwrap_or_default().to_owned()
            }
            Self::V2 => participant.display_name.clone(),
        }
    }

    pub fn get(self) -> GetParticipantRequest {
        GetParticipantRequest {
            conversation: Some(self.conversation()),
            participant_id: self.participant().into(),
            read_options: None,
        }
    }

    pub fn get_fresh(self) -> GetParticipantRequest {
        GetParticipantRequest { read_options: max_age(Duration::ZERO), ..self.get() }
    }

    pub fn list(self) -> ListParticipantsRequest {
        ListParticipantsRequest { conversation: Some(self.conversation()), ..Default::default() }
    }

    pub fn create(self, participant: Participant) -> CreateParticipantRequest {
        CreateParticipantRequest {
            conversation: Some(self.conversation()),
            participant: Some(participant),
            webhook_enabled: None,
            ..Default::default()
        }
    }

    pub fn update(self, participant: Participant) -> UpdateParticipantRequest {
        UpdateParticipantRequest {
            conversation: Some(self.conversation()),
            participant_id: self.participant().into(),
            participant: Some(participant),
            ..Default::default()
        }
    }

    pub fn delete(self) -> DeleteParticipantRequest {
        DeleteParticipantRequest {
            conversation: Some(self.conversation()),
            participant_id: self.participant().into(),
            webhook_enabled: None,
        }
    }
}

pub fn max_age(age: Duration) -> Option<ReadOptions> {
    Some(ReadOptions { max_age: Some(prost_types::Duration::try_from(age).unwrap()), ..Default::default() })
}

/// Sets this runtime's clock on, in one step.
pub fn jump(by: Duration) {
    tokio::time::pause();
    // It is done when it is asked; what it would wait for are the timers.
    let _ = tokio::time::advance(by).now_or_never();
    tokio::time::resume();
}

pub fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

/// The code and the reason of an error, after a look at what every error of the contract promises.
pub fn told(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().expect("every error carries an ErrorInfo");
    assert_eq!(info.domain, "participant-gateway");
    assert!(status.message().len() <= 1024 && status.details().len() <= 4096, "{status:?}");
    (status.code(), info.reason)
}

/// The fields that a refusal names, in order.
pub fn refused_fields(status: &Status) -> Vec<String> {
    assert_eq!(told(status), (Code::InvalidArgument, "INVALID_REQUEST".into()));
    let bad = status.get_details_bad_request().expect("a refusal lists its fields");
    bad.field_violations.into_iter().map(|violation| violation.field).collect()
}

/// A running gateway, and the sandbox that it asks. Dropped, both end.
pub struct Gateway {
    pub client: Client,
    pub addresses: Addresses,
    pub sandbox: Control,
    stop: Option<oneshot::Sender<Stop>>,
    running: JoinHandle<Result<(), RunError>>,
    _sandbox: Option<DropGuard>,
}

/// Writes all lines of all gateways, and their spans, to a file where one is named: `.ci/run` looks there for what no line may hold.
fn write_lines() {
    let Some(path) = std::env::var_os("SUITE_LINES").filter(|_| !tracing::dispatcher::has_been_set()) else {
        return;
    };
    let file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    let lines = tracing_subscriber::fmt().json().with_writer(std::sync::Mutex::new(file));
    // Another test may have been faster.
    let _ = lines.with_env_filter("warn,participant_gateway=trace").try_init();
}

impl Gateway {
    /// With its embedded sandbox and default settings.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With its embedded sandbox and these variables. It is told no events, which would forget what a test has just read.
    pub async fn with(env: &[(&str, &str)]) -> Self {
        let gateway = Self::told(env).await;
        gateway.sandbox.events(json!({ "url": null })).await;
        gateway
    }

    /// With its embedded sandbox, which tells it of every change.
    pub async fn told(env: &[(&str, &str)]) -> Self {
        Self::launch(&["--sandbox"], env, None).await
    }

    /// With a sandbox of several accounts, each named by its last digit; the first is the default one.
    pub async fn with_accounts(digits: &[char], env: &[(&str, &str)]) -> Self {
        let accounts: Vec<_> = digits.iter().map(|digit| account_id(*digit)).collect();
        let settings = sandbox::Settings {
            accounts: accounts
                .iter()
                .map(|sid| sandbox::Account { sid: sid.clone(), auth_token: format!("token-{sid}") })
                .collect(),
            ..Default::default()
        };
        let (fake, end) = sandbox(settings).await;
        let mut file = format!("upstream.url = \"http://{fake}\"\n");
        for sid in &accounts {
            file += &format!("[[accounts]]\naccount_sid = \"{sid}\"\nauth_token = \"token-{sid}\"\n");
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file).unwrap();
        let config = path.path().to_str().unwrap();
        Self::launch(&["--config", config], env, Some((fake, Some(end)))).await
    }

    /// A second gateway before the same sandbox.
    pub async fn beside(other: &Self) -> Self {
        let url = format!("http://{}", other.sandbox.address);
        let account =
            [("TWILIO_ACCOUNT_SID", sandbox::ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", sandbox::AUTH_TOKEN)];
        Self::launch(&["--upstream-url", &url], &account, Some((other.sandbox.address, None))).await
    }

    /// With this configuration file, in front of a sandbox of its own, whose URL `file` is told.
    pub async fn configured(settings: sandbox::Settings, file: impl FnOnce(&str) -> String) -> Self {
        let (fake, end) = sandbox(settings).await;
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file(&format!("http://{fake}"))).unwrap();
        let config = path.path().to_str().unwrap();
        Self::launch(&["--config", config], &[], Some((fake, Some(end)))).await
    }

    /// With these flags, and a sandbox of the test's own, which may end with the gateway.
    pub async fn launch(
        flags: &[&str],
        env: &[(&str, &str)],
        fake: Option<(SocketAddr, Option<DropGuard>)>,
    ) -> Self {
        let fixed =
            ["participant-gateway", "serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];
        let args = fixed.iter().chain(flags).map(OsString::from);
        let env: HashMap<String, String> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let Ok(Command::Serve(report)) = config::parse(args, &|name| env.get(name).cloned()) else {
            panic!("the arguments are those of serve");
        };
        write_lines();
        let config = report.outcome.expect("the configuration is valid");
        let is_tls = config.tls.is_some();
        let app = App::build(config).await.unwrap();
        let addresses = app.addresses();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::Promptly) }));
        // Where there is TLS, a test brings a client of its own.
        let endpoint = Endpoint::from_shared(format!("http://{}", addresses.grpc)).unwrap();
        let channel = if is_tls { endpoint.connect_lazy() } else { endpoint.connect().await.unwrap() };
        let upstream = fake.as_ref().map(|(address, _)| *address).or(addresses.sandbox).unwrap();
        Self {
            client: ParticipantServiceClient::new(channel),
            addresses,
            sandbox: Control::new(upstream),
            stop: Some(stop),
            running,
            _sandbox: fake.and_then(|(_, end)| end),
        }
    }

    /// Begins to stop; `ended` waits for the end.
    pub fn stop(&mut self, how: Stop) {
        self.stop.take().expect("it is stopped once").send(how).unwrap();
    }

    pub async fn ended(mut self) -> Result<(), RunError> {
        (&mut self.running).await.unwrap()
    }

    pub async fn get(
        &mut self,
        request: GetParticipantRequest,
    ) -> Result<(Participant, CacheStatus), Status> {
        let answer = self.client.get_participant(request).await?.into_inner();
        let status = answer.read_info.unwrap().cache_status();
        Ok((answer.participant.unwrap(), status))
    }

    pub async fn list(
        &mut self,
        request: ListParticipantsRequest,
    ) -> Result<ListParticipantsResponse, Status> {
        Ok(self.client.list_participants(request).await?.into_inner())
    }

    pub async fn create(&mut self, request: CreateParticipantRequest) -> Result<Participant, Status> {
        Ok(self.client.create_participant(request).await?.into_inner().participant.unwrap())
    }

    pub async fn update(&mut self, request: UpdateParticipantRequest) -> Result<Participant, Status> {
        Ok(self.client.update_participant(request).await?.into_inner().participant.unwrap())
    }

    pub async fn delete(&mut self, request: DeleteParticipantRequest) -> Result<(), Status> {
        self.client.delete_participant(request).await.map(|_| ())
    }

    /// Every participant of the stream, and how it ended.
    pub async fn stream(
        &mut self,
        request: StreamParticipantsRequest,
    ) -> (Vec<Participant>, Result<(), Status>) {
        let mut stream = match self.client.stream_participants(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return (Vec::new(), Err(status)),
        };
        let mut participants = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => participants.extend(message.participant),
                Ok(None) => return (participants, Ok(())),
                Err(status) => return (participants, Err(status)),
            }
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.running.abort();
    }
}

pub async fn connect(address: SocketAddr) -> Client {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    ParticipantServiceClient::new(channel)
}

/// A sandbox of the test's own, which ends with the guard.
pub async fn sandbox(settings: sandbox::Settings) -> (SocketAddr, DropGuard) {
    let sandbox = sandbox::Sandbox::bind(settings).await.unwrap();
    let (address, end) = (sandbox.local_addr(), CancellationToken::new());
    tokio::spawn(sandbox.run(end.clone()));
    (address, end.drop_guard())
}

pub fn account_id(digit: char) -> String {
    format!("AC{}", digit.to_string().repeat(32))
}

/// The sandbox's control routes.
#[derive(Clone)]
pub struct Control {
    address: SocketAddr,
    base: String,
    http: reqwest::Client,
}

/// A request that the sandbox received.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Value,
    pub body: String,
    pub account: String,
}

impl Received {
    /// The body of a form, decoded.
    pub fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Control {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, base: format!("http://{address}/_sandbox"), http: reqwest::Client::new() }
    }

    /// Adds a fault; see docs/sandbox.md.
    pub async fn fault(&self, fault: Value) {
        let answer = self.http.post(format!("{}/faults", self.base)).json(&fault).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }

    pub async fn clear_faults(&self) {
        self.http.delete(format!("{}/faults", self.base)).send().await.unwrap().error_for_status().unwrap();
    }

    /// Waits until so many requests are held.
    pub async fn held(&self, at_least: u32) {
        let url = format!("{}/held?at_least={at_least}", self.base);
        self.http.get(url).send().await.unwrap().error_for_status().unwrap();
    }

    pub async fn release(&self) {
        self.http.post(format!("{}/release", self.base)).send().await.unwrap().error_for_status().unwrap();
    }

    /// Makes v1 conversations, or changes one; their SIDs. See docs/sandbox.md.
    pub async fn arrange(&self, wanted: Value) -> Vec<String> {
        let answer =
            self.http.post(format!("{}/conversations", self.base)).json(&wanted).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{wanted}");
        serde_json::from_value(answer.json::<Value>().await.unwrap()["conversations"].take()).unwrap()
    }

    /// Store, faults and log as at the start.
    pub async fn reset(&self) {
        self.http.post(format!("{}/reset", self.base)).send().await.unwrap().error_for_status().unwrap();
    }

    pub async fn populate(&self, conversation: &ConversationRef, count: u32) {
        let body = json!({ "conversation": conversation.conversation_id, "count": count });
        let answer = self.http.post(format!("{}/populate", self.base)).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    async fn log(&self) -> Value {
        self.http.get(format!("{}/requests", self.base)).send().await.unwrap().json().await.unwrap()
    }

    /// How many requests came in.
    pub async fn count(&self) -> u64 {
        self.log().await["total"].as_u64().unwrap()
    }

    /// The last requests, oldest first.
    pub async fn requests(&self) -> Vec<Received> {
        let log = self.log().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let requests = log["last"].as_array().unwrap().iter();
        requests
            .map(|request| Received {
                method: text(&request["method"]),
                path: text(&request["path"]),
                query: text(&request["query"]),
                headers: request["headers"].clone(),
                body: text(&request["body"]),
                account: text(&request["account"]),
            })
            .collect()
    }

    /// Changes what an account of the sandbox signs in with; see docs/sandbox.md.
    pub async fn credentials(&self, change: Value) {
        let answer = self.http.put(format!("{}/credentials", self.base)).json(&change).send().await.unwrap();
        assert_eq!(answer.status(), 204, "{}", answer.text().await.unwrap());
    }

    /// Changes where events go, and what happens to them on the way; see docs/sandbox.md.
    pub async fn events(&self, change: Value) {
        let answer = self.http.put(format!("{}/events", self.base)).json(&change).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    /// Waits until every event so far has been taken or given up; the counts.
    pub async fn events_told(&self) -> Value {
        let answer = self.http.post(format!("{}/events/flush", self.base)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// How many requests for an access token came in.
    pub async fn token_requests(&self) -> u64 {
        let log = self.log().await;
        let mut kinds = log["by"].as_array().unwrap().iter();
        let tokens = kinds.find(|kind| kind["path_template"] == "/v2/token");
        tokens.map_or(0, |kind| kind["count"].as_u64().unwrap())
    }

    /// Forgets the requests so far.
    pub async fn forget_requests(&self) {
        self.http.delete(format!("{}/requests", self.base)).send().await.unwrap().error_for_status().unwrap();
    }
}
