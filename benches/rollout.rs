//! A rolling update under load, with processes: how many calls fail of a client that repeats none.
//!
//! `cargo bench --bench rollout`. Three replicas serve behind a round robin in the client, which follows their health as
//! endpoints of Kubernetes do, a while late. Each in turn gets a successor (maxSurge 1, maxUnavailable 0), then SIGTERM. It
//! fails where a call fails; and where none fails without the drain's delay, because then it would prove nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::proto::participant_service_server::SERVICE_NAME;
use participant_gateway::proto::{
    ConversationRef, GetParticipantRequest, Participant, ReadOptions, UpdateParticipantRequest,
};
use participant_gateway::sandbox::{ACCOUNT_SID, AUTH_TOKEN, Sandbox, Settings, V1_CONVERSATION};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const REPLICAS: usize = 3;
const CALLERS: u64 = 32;
const CALLS: u64 = 100_000;
/// So long after a replica says that it is not ready, calls still go there: what endpoints take to travel.
const REMOVAL: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);
const ALICE: &str = "MB00000000000000000000000000000001";

type Client = ParticipantServiceClient<Channel>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    println!("{REPLICAS} replicas, {CALLERS} callers, no retries; endpoints are {REMOVAL:?} late\n");
    println!("drain.delay   replaced     calls    failed   calls/s   longest");
    let with_delay = runtime.block_on(rollout("1s", CALLS));
    let without_delay = runtime.block_on(rollout("0s", 0));
    if with_delay == 0 && without_delay > 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("with the delay no call may fail, and without it some have to");
    ExitCode::FAILURE
}

/// Replaces all replicas, and goes on until so many calls are answered: how many failed.
async fn rollout(drain_delay: &str, calls: u64) -> u64 {
    let fake = Sandbox::bind(Settings::default()).await.expect("a sandbox");
    let (upstream, end_of_fake) =
        (format!("--upstream-url=http://{}", fake.local_addr()), CancellationToken::new());
    let mut tasks = JoinSet::new();
    let end = end_of_fake.clone();
    tasks.spawn(async move { fake.run(end).await });

    let balancer = Arc::new(Balancer::default());
    let load = Arc::new(Load::default());
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(Replica::start(&upstream, drain_delay, &balancer, &mut tasks).await);
    }
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let (balancer, load) = (balancer.clone(), load.clone());
        callers.spawn(async move { load.call(caller, &balancer).await });
    }
    let mut replaced = 0;
    while replaced < REPLICAS || load.answered() < calls {
        let successor = Replica::start(&upstream, drain_delay, &balancer, &mut tasks).await;
        let old = std::mem::replace(&mut replicas[replaced % REPLICAS], successor);
        old.terminate().await;
        replaced += 1;
    }
    load.is_over.store(true, Ordering::SeqCst);
    callers.join_all().await;
    let took = began.elapsed();
    end_of_fake.cancel();
    load.show(drain_delay, replaced, took)
}

/// The replicas that calls go to, in turns.
#[derive(Default)]
struct Balancer {
    ready: watch::Sender<Vec<(u32, Client)>>,
    turn: AtomicUsize,
}

impl Balancer {
    fn pick(&self) -> Option<Client> {
        let ready = self.ready.borrow();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (!ready.is_empty()).then(|| ready[turn % ready.len()].1.clone())
    }

    /// Follows the health of a replica, from its own connection, to the end of the replica.
    async fn follow(self: Arc<Self>, id: u32, address: String) {
        let request = HealthCheckRequest { service: SERVICE_NAME.into() };
        let mut health = HealthClient::new(connect(&address).await);
        let mut told = health.watch(request).await.expect("health is served").into_inner();
        while let Ok(Some(answer)) = told.message().await {
            if answer.status() != ServingStatus::Serving {
                break;
            }
            let client = ParticipantServiceClient::new(connect(&address).await);
            self.ready.send_modify(|ready| ready.push((id, client)));
        }
        tokio::time::sleep(REMOVAL).await;
        self.ready.send_modify(|ready| ready.retain(|(other, _)| *other != id));
    }
}

async fn connect(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("a connection")
}

/// A gateway of this bench's own, killed with it.
struct Replica(Child);

impl Replica {
    /// Starts one, and waits until calls go there.
    async fn start(
        upstream: &str,
        drain_delay: &str,
        balancer: &Arc<Balancer>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ready.json");
        let replica = Self::spawn(upstream, drain_delay, &file);
        let end = Instant::now() + PATIENCE;
        let address = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                let addresses: serde_json::Value =
                    serde_json::from_str(&text).expect("the ready file is JSON");
                break addresses["grpc"].as_str().expect("it tells the address").to_owned();
            }
            assert!(Instant::now() < end, "a replica does not get ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let id = replica.0.id();
        tasks.spawn(balancer.clone().follow(id, address));
        let mut ready = balancer.ready.subscribe();
        let is_there = |ready: &Vec<(u32, Client)>| ready.iter().any(|(other, _)| *other == id);
        let waiting = tokio::time::timeout(PATIENCE, ready.wait_for(is_there));
        waiting.await.expect("a replica is not added").expect("the balancer is there");
        replica
    }

    fn spawn(upstream: &str, drain_delay: &str, ready_file: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_participant-gateway"))
            .args(["serve", "--grpc-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", upstream])
            .args(["--drain-delay", drain_delay, "--ready-file"])
            .arg(ready_file)
            .env_clear()
            .envs([("TWILIO_ACCOUNT_SID", ACCOUNT_SID), ("TWILIO_AUTH_TOKEN", AUTH_TOKEN)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("the binary starts"))
    }

    /// As a pod ends.
    async fn terminate(mut self) {
        let killed = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(killed.is_ok_and(|status| status.success()), "SIGTERM cannot be sent");
        let ended = tokio::task::spawn_blocking(move || self.0.wait()).await.expect("it waits");
        assert!(ended.is_ok_and(|status| status.success()), "a replica ended badly");
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It has ended already, or is to end now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the callers see.
#[derive(Default)]
struct Load {
    answered: AtomicU64,
    longest_us: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
    is_over: AtomicBool,
}

impl Load {
    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Half of the callers read from the cache, the others read past it and write.
    async fn call(&self, caller: u64, balancer: &Balancer) {
        while !self.is_over.load(Ordering::SeqCst) {
            let began = Instant::now();
            let result = match (balancer.pick(), caller % 4) {
                (None, _) => Err(Status::unavailable("no replica is ready")),
                (Some(client), 0) => update(client, caller).await,
                (Some(client), 1) => get(client, true).await,
                (Some(client), _) => get(client, false).await,
            };
            self.longest_us.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
            if self.is_failure(result) {
                // Who cannot connect does not spin.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Counts it.
    fn is_failure(&self, result: Result<(), Status>) -> bool {
        let Err(status) = result else {
            self.answered.fetch_add(1, Ordering::SeqCst);
            return false;
        };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed.entry(format!("{:?}: {}", status.code(), status.message())).or_default() += 1;
        true
    }

    fn show(&self, drain_delay: &str, replaced: usize, took: Duration) -> u64 {
        let failures = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let failed: u64 = failures.values().sum();
        let (calls, longest) = (self.answered() + failed, self.longest_us.load(Ordering::Relaxed) / 1000);
        let rate = calls as f64 / took.as_secs_f64();
        println!("{drain_delay:<11}{replaced:>11}{calls:>10}{failed:>10}{rate:>10.0}{longest:>7} ms");
        for (what, times) in failures.iter() {
            println!("    {times} × {what}");
        }
        failed
    }
}

fn conversation() -> Option<ConversationRef> {
    Some(ConversationRef { conversation_id: V1_CONVERSATION.into(), ..Default::default() })
}

async fn get(mut client: Client, is_fresh: bool) -> Result<(), Status> {
    let max_age = is_fresh.then(prost_types::Duration::default);
    let request = GetParticipantRequest {
        conversation: conversation(),
        participant_id: "alice".into(),
        read_options: Some(ReadOptions { max_age, ..Default::default() }),
    };
    let answer = client.get_participant(request).await?.into_inner();
    is_alice(answer.participant)
}

async fn update(mut client: Client, caller: u64) -> Result<(), Status> {
    let attributes = format!("{{\"by\":{caller}}}");
    let request = UpdateParticipantRequest {
        conversation: conversation(),
        participant_id: ALICE.into(),
        participant: Some(Participant { attributes, ..Default::default() }),
        ..Default::default()
    };
    let answer = client.update_participant(request).await?.into_inner();
    is_alice(answer.participant)
}

fn is_alice(participant: Option<Participant>) -> Result<(), Status> {
    let is_alice = participant.is_some_and(|participant| participant.id == ALICE);
    is_alice.then_some(()).ok_or_else(|| Status::new(Code::DataLoss, "another participant was answered"))
}
