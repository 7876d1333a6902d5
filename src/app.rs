//! Assembly: from the configuration to bound listeners, and from those to a clean end.

mod accept;
mod admin;
mod connections;
mod error;
mod events;
mod greeting;
mod public;
mod ready_file;
mod server;
mod signals;
mod stream;

#[cfg(feature = "kinesis")]
use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService as _;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};
use url::Url;

pub use error::{BuildError, RunError};
pub use greeting::greeting;
pub use signals::Signals;

use crate::access::Access;
use crate::config::{Bus, Config, Connections, Drain, Upstream};
use crate::events::webhook::TIME_LIMIT;
#[cfg(feature = "kinesis")]
use crate::events::{Receiver, kinesis};
use crate::grpc::{self, CallLimits, Calls, Service};
use crate::ids::{AccountId, Accounts};
use crate::participants::{Feed, Freshness, PageTokens, Participants};
use crate::proto::participant_service_server::ParticipantServiceServer;
use crate::sandbox::{self, Sandbox};
use crate::secret::Secret;
use crate::telemetry::{LogFilter, Metrics, Telemetry};
use crate::tls::Tls;
use crate::twilio::{Account, Credentials, Twilio};
use admin::Readiness;
use connections::Front;

/// Names the service in the health protocol.
pub const SERVICE_NAME: &str = ParticipantServiceServer::<Service>::NAME;

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Serve on until balancers have noticed: SIGTERM.
    WhenNoticed,
    /// A person is waiting: SIGINT.
    Promptly,
}

/// Where the gateway can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// API, health, reflection.
    pub grpc: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub admin: SocketAddr,
    /// `/events`, for Twilio.
    pub events: Option<SocketAddr>,
    /// The embedded sandbox.
    pub sandbox: Option<SocketAddr>,
}

/// The gateway, bound and not yet serving: connections queue up until it runs.
pub struct App {
    addresses: Addresses,
    grpc: TcpListener,
    front: Front,
    admin: TcpListener,
    events: Option<(TcpListener, Option<Tls>, axum::Router)>,
    /// What reads its files again.
    tls: Vec<Tls>,
    sandbox: Option<Sandbox>,
    participants: Participants,
    #[cfg(feature = "kinesis")]
    kinesis: Option<(kinesis::Settings, HashSet<AccountId>)>,
    /// Secrets of files that nobody else reads again, and how often they are read.
    files: Vec<Secret>,
    reload_interval: Duration,
    access: Access,
    calls: Calls,
    health: HealthReporter,
    ready_file: Option<PathBuf>,
    drain: Drain,
    tasks: TaskTracker,
    metrics: Metrics,
    /// Changes the process's log, where there is one to change.
    log_filter: Option<LogFilter>,
    /// Ends streams, which a graceful shutdown would else wait for.
    end_streams: CancellationToken,
}

impl App {
    /// Binds every listener before any work begins.
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let Config {
            grpc_listen,
            tls: grpc_tls,
            ways,
            admin_listen,
            ready_file,
            upstream,
            twilio,
            cache,
            lifetimes,
            events,
            watch,
            #[cfg(feature = "kinesis")]
            kinesis,
            bus,
            page_token_key,
            call_timeout,
            stream_stall,
            calls_in_flight,
            watchers,
            connections,
            drain,
            log,
            export,
        } = config;
        if let Some(path) = &ready_file {
            ready_file::remove(path).map_err(BuildError::ReadyFile)?;
        }
        let (grpc, grpc_address) = bind("gRPC", "--grpc-listen", grpc_listen).await?;
        let (admin, admin_address) = bind("admin", "--admin-listen", admin_listen).await?;
        let events = events::bind(events).await?;
        let (sandbox, accounts) = match upstream {
            Upstream::Twilio(accounts) => (None, accounts),
            Upstream::Sandbox(settings) => {
                let sandbox = bind_sandbox(settings).await?;
                let account = sandbox_account(sandbox.local_addr())?;
                (Some(sandbox), vec![account])
            }
        };
        if let (Some(sandbox), Some(url)) = (&sandbox, events.as_ref().and_then(events::Bound::sandbox_url)) {
            sandbox.deliver_events_to(url);
        }
        let addresses = Addresses {
            grpc: grpc_address,
            admin: admin_address,
            events: events.as_ref().map(|bound| bound.address),
            sandbox: sandbox.as_ref().map(Sandbox::local_addr),
        };

        let page_tokens = PageTokens::new(accounts.iter().map(|account| {
            let secrets = match &page_token_key {
                Some(key) => vec![key.clone()],
                None => account.credentials.secrets().to_vec(),
            };
            (account.id.clone(), secrets)
        }));
        let default = accounts.first().ok_or(BuildError::NoAccount)?.id.clone();
        let known = Accounts::new(default, accounts.iter().map(|account| account.id.clone()));
        let (tasks, end_streams) = (TaskTracker::new(), CancellationToken::new());
        let metrics = Metrics::new(export.metrics)?;
        let client = Twilio::new(&twilio, accounts.clone(), metrics.clone())?;
        let feed = match bus {
            Bus::Local => Feed::local(watch.kept),
            Bus::Redis(settings) => Feed::shared(watch.kept, settings, metrics.clone()),
        };
        let freshness = Freshness::new(lifetimes, known.all(), feed.current_since());
        let participants =
            Participants::new(client, &cache, page_tokens, (feed, freshness), tasks.clone(), metrics.clone());

        let events = events.map(|bound| {
            let routes = events::routes(&bound, &accounts, participants.clone(), metrics.clone());
            (bound.listener, bound.tls, routes)
        });
        let of_events = events.as_ref().and_then(|(_, tls, _)| tls.clone());
        let files = accounts.iter().flat_map(Account::spare_tokens).chain(&page_token_key);
        let files = files.filter(|secret| secret.is_file()).cloned().collect();

        let limits =
            CallLimits { longest: call_timeout, stall: stream_stall, in_flight: calls_in_flight, watchers };
        let access = Access::by(ways, metrics.clone());
        let calls = Calls::new(limits, access.clone(), end_streams.clone(), &metrics, log.calls);
        let tls: Vec<Tls> = grpc_tls.iter().cloned().chain(of_events).collect();
        tls.iter().for_each(|tls| tls.tell(&metrics));
        let (health, health_service) = tonic_health::server::health_reporter();
        let service = grpc::service(participants.clone(), known, watch.heartbeat);
        let front = Front {
            services: server::services(calls.clone(), service, health_service)?,
            tls: grpc_tls,
            limits: within_files(connections),
            metrics: metrics.clone(),
        };
        Ok(Self {
            addresses,
            grpc,
            front,
            admin,
            events,
            tls,
            sandbox,
            participants,
            #[cfg(feature = "kinesis")]
            kinesis: kinesis.map(|settings| (settings, accounts.iter().map(|one| one.id.clone()).collect())),
            files,
            reload_interval: twilio.reload_interval,
            access,
            calls,
            health,
            ready_file,
            drain,
            tasks,
            metrics,
            log_filter: None,
            end_streams,
        })
    }

    /// Lets calls have spans, the metrics count what becomes of them, and the admin listener change the process's log.
    pub fn with_telemetry(mut self, telemetry: &Telemetry) -> Self {
        self.metrics.observe_spans(telemetry.spans.clone());
        if let Some(tracer) = telemetry.calls.clone() {
            self.calls.trace_by(tracer);
        }
        self.log_filter = Some(telemetry.filter.clone());
        self
    }

    /// The bound addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `stop` says how to end, and ends so.
    pub async fn run(self, stop: impl Future<Output = Stop>) -> Result<(), RunError> {
        let (readiness, health) = (Readiness::default(), self.health);
        let (goaway, end) = (CancellationToken::new(), CancellationToken::new());
        // These tasks end with this future, whichever way it ends. Loads and writes, which `tasks` owns, end by themselves
        // within the upstream's time limit.
        let mut servers = JoinSet::new();
        let routes = admin::routes(readiness.clone(), self.metrics.clone(), self.log_filter);
        servers.spawn(ending("the admin listener", admin::serve(self.admin, routes, end.clone())));
        if let Some(sandbox) = self.sandbox {
            let end = end.clone();
            servers
                .spawn(async move { ending("the sandbox", sandbox.run(end).map(Ok::<_, Infallible>)).await });
        }
        let mut events = JoinSet::new();
        #[cfg(feature = "kinesis")]
        if let Some((settings, accounts)) = self.kinesis {
            let receiver = Receiver::new(self.participants.clone(), self.metrics.clone());
            let follow = kinesis::follow(settings, receiver, accounts, goaway.clone());
            events.spawn(ending("the reader of Kinesis", follow.map(Ok::<_, Infallible>)));
        }
        let (participants, upkeep_end) = (self.participants.clone(), end.clone());
        servers.spawn(async move {
            ending("the upkeep", participants.upkeep(upkeep_end).map(Ok::<_, Infallible>)).await
        });
        for secret in self.files {
            let (every, metrics, end) = (self.reload_interval, self.metrics.clone(), end.clone());
            servers.spawn(async move {
                let upkeep = secret.upkeep(every, &metrics, end);
                ending("a secret's upkeep", upkeep.map(Ok::<_, Infallible>)).await
            });
        }
        for tls in self.tls {
            let upkeep = tls.upkeep(self.reload_interval, self.metrics.clone(), end.clone());
            servers.spawn(ending("the upkeep of TLS", upkeep.map(Ok::<_, Infallible>)));
        }
        let upkeep = self.access.clone().upkeep(self.reload_interval, end.clone());
        servers.spawn(ending("the upkeep of access", upkeep.map(Ok::<_, Infallible>)));
        if let Some((listener, tls, routes)) = self.events {
            let serving = public::serve(listener, tls, routes, public::Limits::default(), goaway.clone());
            events.spawn(ending("the events listener", serving));
        }
        let mut grpc = JoinSet::new();
        grpc.spawn(ending("the gRPC listener", self.front.serve(self.grpc, goaway.clone())));

        let ready = async {
            // Without the keys of callers' tokens it would refuse who is in the right.
            self.access.ready().await;
            health.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;
            readiness.set(true);
            if let Some(path) = &self.ready_file {
                ready_file::write(path, &self.addresses).map_err(RunError::ReadyFile)?;
            }
            let Addresses { grpc, admin, events, sandbox } = self.addresses;
            let [events, sandbox] = [events, sandbox].map(|it| it.map(tracing::field::display));
            info!(%grpc, %admin, events, sandbox, "serving");
            Ok(())
        };
        let stop = tokio::select! {
            stop = stop => stop,
            Err(error) = ready => return Err(error),
            Some(ended) = servers.join_next() => return Err(ended_early(ended)),
            Some(ended) = events.join_next() => return Err(ended_early(ended)),
            Some(ended) = grpc.join_next() => return Err(ended_early(ended)),
        };
        health.set_service_status(SERVICE_NAME, ServingStatus::NotServing).await;
        readiness.set(false);
        if stop == Stop::WhenNoticed {
            info!(delay = ?self.drain.delay, "not ready; serving on while balancers notice");
            tokio::time::sleep(self.drain.delay).await;
        }
        info!(timeout = ?self.drain.timeout, calls = self.calls.in_flight(), "draining");
        self.end_streams.cancel();
        goaway.cancel();
        let cut = drain(grpc, events, &self.tasks, &self.calls, self.drain.timeout).await;
        self.metrics.calls_cut(cut);
        tokio::join!(self.participants.flush(), self.metrics.flush());
        end.cancel();
        Ok(())
    }
}

/// Waits for the calls and the deliveries in flight and for the writes that outlived their calls; when the time is up, cuts
/// them: how many calls that are.
async fn drain(
    mut grpc: JoinSet<Ended>,
    mut events: JoinSet<Ended>,
    tasks: &TaskTracker,
    calls: &Calls,
    limit: Duration,
) -> usize {
    tasks.close();
    // No delivery takes longer, nor does it to hand the reading of Kinesis over; what is left are connections that never spoke.
    let deliveries = timeout(TIME_LIMIT, async { while events.join_next().await.is_some() {} });
    let calls_and_writes = async {
        if let Some(ended) = grpc.join_next().await
            && let (_, Err(reason)) = ended.unwrap_or_else(|error| ("gRPC", Err(error.to_string())))
        {
            warn!("the gRPC listener failed: {reason}");
        }
        tasks.wait().await;
    };
    match timeout(limit, async { tokio::join!(calls_and_writes, deliveries) }).await {
        Ok(_) => {
            info!("drained");
            0
        }
        Err(_) => {
            let cut = calls.in_flight();
            warn!(calls = cut, writes_and_loads = tasks.len(), "drain timeout: cut what was left");
            cut
        }
    }
}

type Ended = (&'static str, Result<(), String>);

async fn ending<E: Display>(what: &'static str, server: impl Future<Output = Result<(), E>>) -> Ended {
    (what, server.await.map_err(|error| error.to_string()))
}

fn ended_early(ended: Result<Ended, JoinError>) -> RunError {
    match ended {
        Ok((what, result)) => {
            RunError::Ended { what, reason: result.err().unwrap_or_else(|| "no error".into()) }
        }
        Err(error) => RunError::Ended { what: "a task", reason: error.to_string() },
    }
}

/// So many connections as there are files for.
fn within_files(connections: Connections) -> Connections {
    let Some(most) = connections::files_allow().filter(|most| *most < connections.max) else {
        return connections;
    };
    info!(
        connections = most,
        "fewer connections than connections.max: half of the files that the process may open"
    );
    Connections { max: most, ..connections }
}

async fn bind(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), BuildError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    bound.await.map_err(|source| BuildError::Bind { what, flag, address, source })
}

/// Runs the sandbox alone until `stop`; `announce` learns its address.
pub async fn run_sandbox(
    settings: sandbox::Settings,
    announce: impl FnOnce(SocketAddr),
    stop: impl Future<Output = Stop>,
) -> Result<(), BuildError> {
    let sandbox = bind_sandbox(settings).await?;
    announce(sandbox.local_addr());
    tokio::select! {
        () = sandbox.run(CancellationToken::new()) => {}
        _ = stop => {}
    }
    Ok(())
}

async fn bind_sandbox(settings: sandbox::Settings) -> Result<Sandbox, BuildError> {
    let address = settings.listen;
    let bound = Sandbox::bind(settings).await;
    bound.map_err(|source| BuildError::Bind { what: "sandbox", flag: "--listen", address, source })
}

fn sandbox_account(address: SocketAddr) -> Result<Account, BuildError> {
    let id = AccountId::parse(sandbox::ACCOUNT_SID).ok_or(BuildError::NoAccount)?;
    let url = Url::parse(&format!("http://{address}")).map_err(|_| BuildError::NoAccount)?;
    let password = Secret::new("the sandbox's", sandbox::AUTH_TOKEN);
    let user = Secret::new("the sandbox's", sandbox::ACCOUNT_SID);
    let auth_tokens = vec![password];
    let credentials = Credentials::Basic { user, passwords: auth_tokens.clone() };
    Ok(Account { id, v1_url: url.clone(), v2_url: url, credentials, auth_tokens })
}
