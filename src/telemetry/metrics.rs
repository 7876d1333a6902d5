//! What the gateway counts: one set of instruments, read by `/metrics` and pushed to a collector. Every label takes its
//! values from a closed set (accounts: those that are configured), but for the names of unknown keys, which are plain and at
//! most a hundred for each API.

mod table;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    AsyncInstrument, BoundCounter, BoundHistogram, BoundUpDownCounter, Counter, Gauge, Histogram, Meter,
    MeterProvider as _, UpDownCounter,
};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::metrics::periodic_reader_with_async_runtime::PeriodicReader;
use opentelemetry_sdk::runtime::Tokio;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::time::timeout;

use super::Protocol;
use super::traces::{FLUSH_TIMEOUT, SpanCounts};
use table::*;
pub use table::{METRICS, Row, markdown};

/// The labels of one API of an account.
fn api(account: &str, version: &'static str) -> [KeyValue; 2] {
    [
        KeyValue::new("participant.api.version", version),
        KeyValue::new("participant.account", account.to_owned()),
    ]
}

fn turn(account: &str, version: &'static str, state: CircuitState) -> [KeyValue; 3] {
    let [version, account] = api(account, version);
    [version, account, KeyValue::new("participant.circuit.state", state.as_str())]
}

/// Seconds, as the semantic conventions advise for calls and requests.
const DURATIONS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Seconds, up to the longest lifetimes that make sense.
const AGES: [f64; 9] = [0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];

/// Seconds, from what is usual to what only an outage explains.
const LAGS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0];

/// The instruments of one gateway. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    calls: Histogram<f64>,
    in_flight: UpDownCounter<i64>,
    shed: Counter<u64>,
    failed: Counter<u64>,
    cut: Counter<u64>,
    connections: UpDownCounter<i64>,
    refused: Counter<u64>,
    callers: Counter<u64>,
    jwks: Counter<u64>,
    requests: Histogram<f64>,
    retries: Counter<u64>,
    queue_wait: Histogram<f64>,
    refusals: Counter<u64>,
    circuit: Gauge<u64>,
    circuit_turns: Counter<u64>,
    circuit_refusals: Counter<u64>,
    unknown_keys: Counter<u64>,
    unknown_values: Counter<u64>,
    bad_secrets: UpDownCounter<i64>,
    tls_reloads: Counter<u64>,
    tls_expiry: Gauge<u64>,
    policy_reloads: Counter<u64>,
    lookups: Counter<u64>,
    hits: BoundCounter<u64>,
    refreshes: Counter<u64>,
    age: Histogram<f64>,
    bus: Gauge<u64>,
    bus_lag: Histogram<f64>,
    events: Counter<u64>,
    event_age: Histogram<f64>,
    meter: Meter,
    registry: Registry,
    provider: SdkMeterProvider,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// The instruments of one method's calls, found once and not at each call: to find one is to hash all its labels.
pub struct MethodMetrics {
    calls: Histogram<f64>,
    in_flight: BoundUpDownCounter<i64>,
    shed: Counter<u64>,
    failed: Counter<u64>,
    labels: [KeyValue; 2],
    /// Of the calls that succeed. From when it is bound its series is there, so it is when the first one does.
    succeeded: OnceLock<BoundHistogram<f64>>,
}

impl MethodMetrics {
    /// A call has begun.
    pub fn began(&self) {
        self.in_flight.add(1);
    }

    /// A call that had begun is over.
    pub fn ended(&self) {
        self.in_flight.add(-1);
    }

    /// A call that had begun was refused, because there were too many.
    pub fn shed(&self, limit: CallShed) {
        let method = self.labels[1].clone();
        self.shed.add(1, &[method, KeyValue::new("participant.calls.limit", limit.as_str())]);
    }

    /// A call failed for this reason, one of the catalogue's.
    pub fn failed(&self, reason: String) {
        let method = self.labels[1].clone();
        self.failed.add(1, &[method, KeyValue::new("participant.calls.reason", reason)]);
    }

    /// A call was answered, or left by its caller.
    pub fn answered(&self, code: &'static str, duration: Duration) {
        let labels = || {
            let [system, method] = self.labels.clone();
            [system, method, KeyValue::new("rpc.response.status_code", code)]
        };
        if code == "OK" {
            self.succeeded.get_or_init(|| self.calls.bind(&labels())).record(duration.as_secs_f64());
        } else {
            self.calls.record(duration.as_secs_f64(), &labels());
        }
    }
}

impl fmt::Debug for MethodMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MethodMetrics")
    }
}

/// The registry could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("set up the metrics: {0}")]
pub struct MetricsError(String);

impl From<OTelSdkError> for MetricsError {
    fn from(error: OTelSdkError) -> Self {
        Self(error.to_string())
    }
}

impl From<ExporterBuildError> for MetricsError {
    fn from(error: ExporterBuildError) -> Self {
        Self(error.to_string())
    }
}

impl From<prometheus::Error> for MetricsError {
    fn from(error: prometheus::Error) -> Self {
        Self(error.to_string())
    }
}

/// What the governor of an account has under way.
#[derive(Clone, Debug)]
pub struct GovernorLoad {
    /// The account.
    pub account: String,
    /// How many requests may be under way.
    pub limit: usize,
    /// How many are.
    pub in_flight: usize,
    /// Reads that wait.
    pub queued_reads: usize,
    /// Writes that wait.
    pub queued_writes: usize,
}

/// Where the circuit of an account's API stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// Requests are sent.
    Closed,
    /// One is sent, to see.
    HalfOpen,
    /// None are.
    Open,
}

impl CircuitState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// How an attempt at a request to Twilio went.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The path with placeholders.
    pub template: &'static str,
    /// The host.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// What went wrong, out of a closed set.
    pub error: Option<&'static str>,
}

fn proof_labels(proof: &'static str, is_ok: bool) -> [KeyValue; 2] {
    let outcome = if is_ok { "ok" } else { "refused" };
    [KeyValue::new("participant.auth.proof", proof), KeyValue::new("participant.auth.outcome", outcome)]
}

fn tls_labels(listener: &'static str, outcome: &'static str) -> [KeyValue; 2] {
    [KeyValue::new("participant.listener", listener), KeyValue::new("participant.tls.outcome", outcome)]
}

fn queue_labels(account: &str, is_write: bool) -> [KeyValue; 2] {
    [
        KeyValue::new("participant.account", account.to_owned()),
        KeyValue::new("participant.upstream.kind", if is_write { "write" } else { "read" }),
    ]
}

/// Why a connection was closed that nobody had used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionRefused {
    /// There were as many as there may be.
    Total,
    /// So there were of its peer's.
    Peer,
    /// It shook no hands, or not as it should.
    Tls,
    /// It said nothing.
    Silent,
}

impl ConnectionRefused {
    fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Peer => "peer",
            Self::Tls => "tls",
            Self::Silent => "silent",
        }
    }
}

/// The limit for which a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallShed {
    /// Of the calls of all callers.
    Total,
    /// What is left of it to one of them.
    Share,
    /// Of a caller's calls.
    Caller,
    /// Of how often it calls.
    Rate,
}

impl CallShed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Share => "share",
            Self::Caller => "caller",
            Self::Rate => "rate",
        }
    }
}

impl Metrics {
    /// Instruments and a registry of their own: many gateways can run side by side in one process. `push` also sends them
    /// to a collector, as the standard `OTEL_*` variables say; then it is to be called within the runtime.
    pub fn new(push: Option<Protocol>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let reader =
            opentelemetry_prometheus::exporter().with_registry(registry.clone()).without_target_info();
        let mut provider = SdkMeterProvider::builder()
            .with_reader(reader.scope_info_enabled(false).build()?)
            .with_resource(Resource::builder().build());
        if let Some(protocol) = push {
            let exporter = match protocol {
                Protocol::Grpc => MetricExporter::builder().with_tonic().build()?,
                Protocol::Http => MetricExporter::builder().with_http().build()?,
            };
            provider = provider.with_reader(PeriodicReader::builder(exporter, Tokio).build());
        }
        let provider = provider.build();
        let meter = provider.meter(env!("CARGO_PKG_NAME"));
        let histogram = |row: &Row, boundaries: &[f64]| {
            let builder = meter.f64_histogram(row.name).with_description(row.help).with_unit(row.unit);
            builder.with_boundaries(boundaries.to_vec()).build()
        };
        let counter = |row: &Row| meter.u64_counter(row.name).with_description(row.help).build();
        let up_down = |row: &Row| meter.i64_up_down_counter(row.name).with_description(row.help).build();
        let lookups = counter(&LOOKUPS);
        let instruments = Instruments {
            calls: histogram(&CALLS, &DURATIONS),
            in_flight: up_down(&IN_FLIGHT),
            shed: counter(&SHED),
            failed: counter(&FAILED),
            cut: counter(&CUT),
            connections: up_down(&CONNECTIONS),
            refused: counter(&REFUSED),
            callers: counter(&CALLERS),
            jwks: counter(&JWKS),
            requests: histogram(&REQUESTS, &DURATIONS),
            retries: counter(&RETRIES),
            queue_wait: histogram(&QUEUE_WAIT, &LAGS),
            refusals: counter(&REFUSALS),
            circuit: meter.u64_gauge(CIRCUIT.name).with_description(CIRCUIT.help).build(),
            circuit_turns: counter(&CIRCUIT_TURNS),
            circuit_refusals: counter(&CIRCUIT_REFUSALS),
            unknown_keys: counter(&UNKNOWN_KEYS),
            unknown_values: counter(&UNKNOWN_VALUES),
            bad_secrets: up_down(&BAD_SECRETS),
            tls_reloads: counter(&TLS_RELOADS),
            tls_expiry: meter
                .u64_gauge(TLS_EXPIRY.name)
                .with_description(TLS_EXPIRY.help)
                .with_unit(TLS_EXPIRY.unit)
                .build(),
            policy_reloads: counter(&POLICY_RELOADS),
            hits: lookups.bind(&[KeyValue::new("participant.cache.outcome", "hit")]),
            lookups,
            refreshes: counter(&REFRESHES),
            age: histogram(&AGE, &AGES),
            bus: meter.u64_gauge(BUS.name).with_description(BUS.help).build(),
            bus_lag: histogram(&BUS_LAG, &LAGS),
            events: counter(&EVENTS),
            event_age: histogram(&EVENT_AGE, &AGES),
            meter: meter.clone(),
            registry,
            provider,
        };
        // So that they are there before anything is wrong.
        instruments.bad_secrets.add(0, &[]);
        for outcome in ["taken", "refused", "unchanged"] {
            instruments.policy_reloads.add(0, &[KeyValue::new("participant.policy.reload.outcome", outcome)]);
        }
        for outcome in ["renewed", "joined", "failed", "panicked"] {
            instruments.refreshes.add(0, &[KeyValue::new("participant.cache.refresh.outcome", outcome)]);
        }
        instruments.connections.add(0, &[]);
        instruments.cut.add(0, &[]);
        use ConnectionRefused::{Peer, Silent, Tls, Total};
        for why in [Total, Peer, Tls, Silent] {
            instruments.refused.add(0, &[KeyValue::new("participant.connections.reason", why.as_str())]);
        }
        let version = [KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
        meter.u64_gauge(BUILD.name).with_description(BUILD.help).build().record(1, &version);
        Ok(Self(Arc::new(instruments)))
    }

    /// The registry in Prometheus's text format.
    pub fn render(&self) -> Result<String, MetricsError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| MetricsError(error.to_string()))
    }

    /// Sends a collector what was counted since the last push, within a second.
    pub async fn flush(&self) {
        let provider = self.0.provider.clone();
        // The SDK waits by blocking.
        let flush = tokio::task::spawn_blocking(move || provider.force_flush());
        let _ = timeout(FLUSH_TIMEOUT, flush).await;
    }

    /// What counts the calls of a method: one of the contract's, or `_OTHER`.
    pub fn of_method(&self, method: &Arc<str>) -> MethodMetrics {
        let labels = [KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method.clone())];
        MethodMetrics {
            calls: self.0.calls.clone(),
            in_flight: self.0.in_flight.bind(&labels[1..]),
            shed: self.0.shed.clone(),
            failed: self.0.failed.clone(),
            labels,
            succeeded: OnceLock::new(),
        }
    }

    /// The end of the drain cut so many calls.
    pub fn calls_cut(&self, count: usize) {
        self.0.cut.add(u64::try_from(count).unwrap_or(u64::MAX), &[]);
    }

    /// There is one more connection.
    pub fn connection_opened(&self) {
        self.0.connections.add(1, &[]);
    }

    /// There is one less.
    pub fn connection_closed(&self) {
        self.0.connections.add(-1, &[]);
    }

    /// A connection was closed that nobody had used.
    pub fn connection_refused(&self, why: ConnectionRefused) {
        self.0.refused.add(1, &[KeyValue::new("participant.connections.reason", why.as_str())]);
    }

    /// Callers can prove who they are in this way: its series are there before anybody does.
    pub fn proof_made(&self, proof: &'static str) {
        for is_ok in [true, false] {
            self.0.callers.add(0, &proof_labels(proof, is_ok));
        }
    }

    /// A call's caller has proven who it is, or not. The proof is of those that the table lists.
    pub fn caller_judged(&self, proof: &'static str, is_ok: bool) {
        self.0.callers.add(1, &proof_labels(proof, is_ok));
    }

    /// The keys of callers' tokens will be asked for.
    pub fn jwks_made(&self) {
        for outcome in ["ok", "failed"] {
            self.0.jwks.add(0, &[KeyValue::new("participant.jwks.outcome", outcome)]);
        }
    }

    /// The keys of callers' tokens were asked for.
    pub fn jwks_refreshed(&self, is_ok: bool) {
        let outcome = if is_ok { "ok" } else { "failed" };
        self.0.jwks.add(1, &[KeyValue::new("participant.jwks.outcome", outcome)]);
    }

    /// An attempt at a request to Twilio is over.
    pub fn request_ended(&self, attempt: Attempt<'_>, duration: Duration) {
        let Attempt { method, template, host, port, status, error } = attempt;
        let mut labels = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("url.template", template),
            KeyValue::new("server.address", host.to_owned()),
            KeyValue::new("server.port", i64::from(port)),
        ];
        labels.extend(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
        labels.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.0.requests.record(duration.as_secs_f64(), &labels);
    }

    /// A request to Twilio is sent again.
    pub fn request_retried(&self, method: &str, template: &'static str) {
        let labels = [
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("url.template", template),
        ];
        self.0.retries.add(1, &labels);
    }

    /// A request of an account was sent after it had waited so long for its turn.
    pub fn governor_waited(&self, account: &str, is_write: bool, wait: Duration) {
        self.0.queue_wait.record(wait.as_secs_f64(), &queue_labels(account, is_write));
    }

    /// A request of an account was not sent, for one of the reasons that the table lists.
    pub fn governor_refused(&self, account: &str, reason: &'static str) {
        let labels = [
            KeyValue::new("participant.account", account.to_owned()),
            KeyValue::new("participant.upstream.reason", reason),
        ];
        self.0.refusals.add(1, &labels);
    }

    /// Asks for what the governors have under way whenever the registry is read.
    pub fn observe_governors(&self, loads: impl Fn() -> Vec<GovernorLoad> + Send + Sync + 'static) {
        let loads = Arc::new(loads);
        let gauge = |row: &Row| self.0.meter.u64_observable_gauge(row.name).with_description(row.help);
        let account = |load: &GovernorLoad| [KeyValue::new("participant.account", load.account.clone())];
        let of = loads.clone();
        let limits = move |observer: &dyn AsyncInstrument<u64>| {
            of().iter().for_each(|load| observer.observe(load.limit as u64, &account(load)));
        };
        let of = loads.clone();
        let in_flight = move |observer: &dyn AsyncInstrument<u64>| {
            of().iter().for_each(|load| observer.observe(load.in_flight as u64, &account(load)));
        };
        let queued = move |observer: &dyn AsyncInstrument<u64>| {
            for load in loads() {
                observer.observe(load.queued_reads as u64, &queue_labels(&load.account, false));
                observer.observe(load.queued_writes as u64, &queue_labels(&load.account, true));
            }
        };
        // The registry holds the callbacks from here on.
        let _ = gauge(&LIMIT).with_callback(limits).build();
        let _ = gauge(&UNDER_WAY).with_callback(in_flight).build();
        let _ = gauge(&QUEUED).with_callback(queued).build();
    }

    /// A configured account's API has a circuit, which is closed; `version` is `v1` or `v2`.
    pub fn circuit_made(&self, account: &str, version: &'static str) {
        let labels = api(account, version);
        self.0.circuit.record(CircuitState::Closed as u64, &labels);
        // A counter that begins with its first step is none that has stepped.
        self.0.circuit_refusals.add(0, &labels);
        for state in [CircuitState::Closed, CircuitState::HalfOpen, CircuitState::Open] {
            self.0.circuit_turns.add(0, &turn(account, version, state));
        }
    }

    /// Its circuit has turned so.
    pub fn circuit_turned(&self, account: &str, version: &'static str, state: CircuitState) {
        self.0.circuit.record(state as u64, &api(account, version));
        self.0.circuit_turns.add(1, &turn(account, version, state));
    }

    /// A request was not sent because it is open.
    pub fn circuit_refused(&self, account: &str, version: &'static str) {
        self.0.circuit_refusals.add(1, &api(account, version));
    }

    /// An answer had a key that is not known; `version` is `v1` or `v2`. Names come from outside: the caller bounds what they
    /// are and how many.
    pub fn key_unknown(&self, version: &'static str, key: String) {
        let labels = [
            KeyValue::new("participant.api.version", version),
            KeyValue::new("participant.upstream.key", key),
        ];
        self.0.unknown_keys.add(1, &labels);
    }

    /// An answer had a value of this key that is not known.
    pub fn value_unknown(&self, version: &'static str, key: &'static str) {
        let labels = [
            KeyValue::new("participant.api.version", version),
            KeyValue::new("participant.upstream.key", key),
        ];
        self.0.unknown_values.add(1, &labels);
    }

    /// The file of a secret went bad, or is good again.
    pub fn secret_file_turned(&self, is_bad: bool) {
        self.0.bad_secrets.add(if is_bad { 1 } else { -1 }, &[]);
    }

    /// A listener has TLS: its certificate ends then, in seconds of Unix time.
    pub fn certificate_expires(&self, listener: &'static str, at: u64) {
        self.0.tls_expiry.record(at, &[KeyValue::new("participant.listener", listener)]);
        // So that they are there before any file changes.
        for outcome in ["ok", "failed"] {
            self.0.tls_reloads.add(0, &tls_labels(listener, outcome));
        }
    }

    /// The files of a listener's TLS have changed, and are of use or not.
    pub fn tls_reloaded(&self, listener: &'static str, is_good: bool) {
        self.0.tls_reloads.add(1, &tls_labels(listener, if is_good { "ok" } else { "failed" }));
    }

    /// The policy's file has changed; `outcome` is one of those that the table lists.
    pub fn policy_reloaded(&self, outcome: &'static str) {
        self.0.policy_reloads.add(1, &[KeyValue::new("participant.policy.reload.outcome", outcome)]);
    }

    /// A read was served, or not; `outcome` is one of those that the table lists.
    pub fn cache_looked_up(&self, outcome: &'static str) {
        self.0.lookups.add(1, &[KeyValue::new("participant.cache.outcome", outcome)]);
    }

    /// A refresh that nobody waited for is over; `outcome` is one of those that the table lists.
    pub fn cache_refreshed(&self, outcome: &'static str) {
        self.0.refreshes.add(1, &[KeyValue::new("participant.cache.refresh.outcome", outcome)]);
    }

    /// A hit served what is so old.
    pub fn cache_hit(&self, age: Duration) {
        self.0.hits.add(1);
        self.0.age.record(age.as_secs_f64(), &[]);
    }

    /// This replica knows all that is in the shared stream, or cannot tell any more.
    pub fn bus_turned(&self, is_current: bool) {
        self.0.bus.record(is_current.into(), &[]);
    }

    /// An entry of the shared stream was applied so long after it was added.
    pub fn bus_lagged(&self, lag: Duration) {
        self.0.bus_lag.record(lag.as_secs_f64(), &[]);
    }

    /// Asks for the cache's entries and weight whenever the registry is read.
    pub fn observe_cache(&self, size: impl Fn() -> (u64, u64) + Send + Sync + 'static) {
        let size = Arc::new(size);
        let entries = size.clone();
        let meter = &self.0.meter;
        // The registry holds the callbacks from here on.
        let _ = meter
            .u64_observable_gauge(ENTRIES.name)
            .with_description(ENTRIES.help)
            .with_callback(move |observer| observer.observe(entries().0, &[]))
            .build();
        let _ = meter
            .u64_observable_gauge(WEIGHT.name)
            .with_description(WEIGHT.help)
            .with_unit(WEIGHT.unit)
            .with_callback(move |observer| observer.observe(size().1, &[]))
            .build();
    }

    /// An event came in, or a delivery that was refused whole. Source and outcome are of those that the table lists.
    pub fn event_received(&self, source: &'static str, outcome: &'static str) {
        let labels = [
            KeyValue::new("participant.events.source", source),
            KeyValue::new("participant.events.outcome", outcome),
        ];
        self.0.events.add(1, &labels);
    }

    /// An event was applied so long after it happened.
    pub fn event_applied(&self, source: &'static str, age: Duration) {
        self.0.event_age.record(age.as_secs_f64(), &[KeyValue::new("participant.events.source", source)]);
    }

    /// Asks for the sources of events, by API version and configured account, and whether they are live, whenever the
    /// registry is read.
    pub fn observe_sources(
        &self,
        sources: impl Fn() -> Vec<(&'static str, String, bool)> + Send + Sync + 'static,
    ) {
        let gauge = self.0.meter.u64_observable_gauge(SOURCES.name).with_description(SOURCES.help);
        let _ = gauge
            .with_callback(move |observer| {
                for (version, account, is_live) in sources() {
                    let labels = [
                        KeyValue::new("participant.api.version", version),
                        KeyValue::new("participant.account", account),
                    ];
                    observer.observe(is_live.into(), &labels);
                }
            })
            .build();
    }

    /// Asks how far the reading of Kinesis is behind whenever the registry is read.
    pub fn observe_kinesis(&self, behind: impl Fn() -> Duration + Send + Sync + 'static) {
        let gauge = self.0.meter.f64_observable_gauge(KINESIS_BEHIND.name);
        let gauge = gauge.with_description(KINESIS_BEHIND.help).with_unit(KINESIS_BEHIND.unit);
        let _ = gauge.with_callback(move |observer| observer.observe(behind().as_secs_f64(), &[])).build();
    }

    /// Asks for what became of spans whenever the registry is read.
    pub fn observe_spans(&self, counts: SpanCounts) {
        let of = |outcome| [KeyValue::new("participant.telemetry.outcome", outcome)];
        let counter = self.0.meter.u64_observable_counter(SPANS.name).with_description(SPANS.help);
        let _ = counter
            .with_callback(move |observer| {
                observer.observe(counts.exported(), &of("exported"));
                observer.observe(counts.dropped(), &of("dropped"));
            })
            .build();
    }
}
