//! Three replicas behind a round robin in the client, which follows their health as endpoints of Kubernetes do, a while late. Each
//! in turn gets a successor (maxSurge 1, maxUnavailable 0), then SIGTERM.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use participant_gateway::proto::participant_service_server::SERVICE_NAME;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::load::{Client, Load};
use crate::replica::{self, PATIENCE, Process, connect};

const REPLICAS: usize = 3;
const CALLERS: u64 = 32;
const CALLS: u64 = 100_000;
/// So long after a replica says that it is not ready, calls still go there: what endpoints take to travel.
const REMOVAL: Duration = Duration::from_millis(500);

/// Whether no call was lost, and some are without the delay.
pub(crate) async fn run() -> bool {
    println!("{REPLICAS} replicas, {CALLERS} callers, no retries; endpoints are {REMOVAL:?} late\n");
    println!("drain.delay   replaced     calls    failed   calls/s   longest");
    let with_delay = rollout("1s", CALLS).await;
    let without_delay = rollout("0s", 0).await;
    with_delay == 0 && without_delay > 0
}

/// Replaces all replicas, and goes on until so many calls are answered: how many failed.
async fn rollout(drain_delay: &str, calls: u64) -> u64 {
    let mut tasks = JoinSet::new();
    let upstream = replica::twilio(&mut tasks).await;
    let (balancer, load) = (Arc::new(Balancer::default()), Arc::new(Load::default()));
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(add(upstream, drain_delay, &balancer, &mut tasks).await);
    }
    let (began, is_over, mut callers) = (Instant::now(), Arc::new(AtomicBool::new(false)), JoinSet::new());
    for caller in 0..CALLERS {
        let (balancer, load, is_over) = (balancer.clone(), load.clone(), is_over.clone());
        callers.spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                if !load.call(caller, balancer.pick()).await {
                    // Who cannot connect does not spin.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    let mut replaced = 0;
    while replaced < REPLICAS || load.answered() < calls {
        let successor = add(upstream, drain_delay, &balancer, &mut tasks).await;
        let old = std::mem::replace(&mut replicas[replaced % REPLICAS], successor);
        old.terminate().await;
        replaced += 1;
    }
    is_over.store(true, Ordering::SeqCst);
    callers.join_all().await;
    show(&load, drain_delay, replaced, began.elapsed());
    load.failed()
}

fn show(load: &Load, drain_delay: &str, replaced: usize, took: Duration) {
    let failed = load.failed();
    let (calls, longest) = (load.answered() + failed, load.longest().as_millis());
    let rate = calls as f64 / took.as_secs_f64();
    println!("{drain_delay:<11}{replaced:>11}{calls:>10}{failed:>10}{rate:>10.0}{longest:>7} ms");
    for (what, times) in load.failures() {
        println!("    {times} × {what}");
    }
}

/// Starts a replica, and waits until calls go there.
async fn add(
    upstream: SocketAddr,
    drain_delay: &str,
    balancer: &Arc<Balancer>,
    tasks: &mut JoinSet<()>,
) -> Process {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (process, address) = replica::start(upstream, drain_delay, anywhere).await;
    let id = process.0.id();
    tasks.spawn(balancer.clone().follow(id, address));
    let mut ready = balancer.ready.subscribe();
    let is_there = |ready: &Vec<(u32, Client)>| ready.iter().any(|(other, _)| *other == id);
    let waiting = tokio::time::timeout(PATIENCE, ready.wait_for(is_there));
    waiting.await.expect("a replica is not added").expect("the balancer is there");
    process
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
    async fn follow(self: Arc<Self>, id: u32, address: SocketAddr) {
        let request = HealthCheckRequest { service: SERVICE_NAME.into() };
        let mut health = HealthClient::new(connect(address).await);
        let mut told = health.watch(request).await.expect("health is served").into_inner();
        while let Ok(Some(answer)) = told.message().await {
            if answer.status() != ServingStatus::Serving {
                break;
            }
            let client = Client::new(connect(address).await);
            self.ready.send_modify(|ready| ready.push((id, client)));
        }
        tokio::time::sleep(REMOVAL).await;
        self.ready.send_modify(|ready| ready.retain(|(other, _)| *other != id));
    }
}
