//! Every metric, once: its names, kind, unit, labels and help. The instruments and docs/metrics.md are made from this table.

/// One metric, as the documentation lists it.
#[derive(Debug)]
pub struct Row {
    /// Its OpenTelemetry name.
    pub name: &'static str,
    /// Its name in `/metrics`, without the suffixes of a histogram's series.
    pub prometheus: &'static str,
    /// Counter, gauge or histogram.
    pub kind: &'static str,
    /// Its unit; empty: a plain number.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

pub(super) const CALLS: Row = Row {
    name: "rpc.server.call.duration",
    prometheus: "rpc_server_call_duration_seconds",
    kind: "histogram",
    unit: "s",
    labels: &["rpc.system.name", "rpc.method", "rpc.response.status_code"],
    help: "Duration of calls, until the last byte of the answer; calls that their caller left count as CANCELLED",
};
pub(super) const IN_FLIGHT: Row = Row {
    name: "participant.calls.in_flight",
    prometheus: "participant_calls_in_flight",
    kind: "gauge",
    unit: "",
    labels: &["rpc.method"],
    help: "Calls that have begun and not ended, open streams among them",
};
pub(super) const SHED: Row = Row {
    name: "participant.calls.shed",
    prometheus: "participant_calls_shed_total",
    kind: "counter",
    unit: "",
    labels: &["rpc.method"],
    help: "Calls that were refused because `limits.calls_in_flight`, a caller's share of it, or `limits.watchers` was reached",
};
pub(super) const CUT: Row = Row {
    name: "participant.calls.cut",
    prometheus: "participant_calls_cut_total",
    kind: "counter",
    unit: "",
    labels: &[],
    help: "Calls that had not ended by the end of `drain.timeout`; a collector learns it, `/metrics` only in the last moment",
};
pub(super) const CONNECTIONS: Row = Row {
    name: "participant.connections.open",
    prometheus: "participant_connections_open",
    kind: "gauge",
    unit: "",
    labels: &[],
    help: "Connections to the gRPC listener",
};
pub(super) const REFUSED: Row = Row {
    name: "participant.connections.refused",
    prometheus: "participant_connections_refused_total",
    kind: "counter",
    unit: "",
    labels: &["participant.connections.reason"],
    help: "Connections to the gRPC listener that it closed: total (there were `connections.max`), peer (their address had \
           `connections.max_per_peer`), tls (the handshake failed, for want of a good certificate, say), silent (no HTTP/2 within \
           `connections.handshake_timeout`)",
};
pub(super) const CALLERS: Row = Row {
    name: "participant.auth.calls",
    prometheus: "participant_auth_calls_total",
    kind: "counter",
    unit: "",
    labels: &["participant.auth.proof", "participant.auth.outcome"],
    help: "Calls whose caller had to prove who it is, by what it brought (certificate, jwt, token, mesh, none) and by whether \
           that was ok or refused. Where a certificate alone decides, calls that it lets in are not counted",
};
pub(super) const JWKS: Row = Row {
    name: "participant.jwks.refreshes",
    prometheus: "participant_jwks_refreshes_total",
    kind: "counter",
    unit: "",
    labels: &["participant.jwks.outcome"],
    help: "Requests for the keys at `auth.jwt.jwks_url`, by whether they brought any (ok, failed); after a failure the last good \
           ones stay in use",
};
pub(super) const REQUESTS: Row = Row {
    name: "http.client.request.duration",
    prometheus: "http_client_request_duration_seconds",
    kind: "histogram",
    unit: "s",
    labels: &[
        "http.request.method",
        "url.template",
        "server.address",
        "server.port",
        "http.response.status_code",
        "error.type",
    ],
    help: "Duration of each attempt at a request to Twilio, those for access tokens (/v2/token) among them",
};
pub(super) const RETRIES: Row = Row {
    name: "participant.upstream.retries",
    prometheus: "participant_upstream_retries_total",
    kind: "counter",
    unit: "",
    labels: &["http.request.method", "url.template"],
    help: "Requests to Twilio that were sent again",
};
pub(super) const LIMIT: Row = Row {
    name: "participant.upstream.concurrency.limit",
    prometheus: "participant_upstream_concurrency_limit",
    kind: "gauge",
    unit: "",
    labels: &["participant.account"],
    help: "How many requests of an account may be under way at Twilio; falls when Twilio says that there are too many",
};
pub(super) const UNDER_WAY: Row = Row {
    name: "participant.upstream.in_flight",
    prometheus: "participant_upstream_in_flight",
    kind: "gauge",
    unit: "",
    labels: &["participant.account"],
    help: "How many are, as far as this process sends them",
};
pub(super) const QUEUED: Row = Row {
    name: "participant.upstream.queued",
    prometheus: "participant_upstream_queued",
    kind: "gauge",
    unit: "",
    labels: &["participant.account", "participant.upstream.kind"],
    help: "Requests that wait until another one ends: read or write",
};
pub(super) const QUEUE_WAIT: Row = Row {
    name: "participant.upstream.queue.wait",
    prometheus: "participant_upstream_queue_wait_seconds",
    kind: "histogram",
    unit: "s",
    labels: &["participant.account", "participant.upstream.kind"],
    help: "How long they waited until they were sent; those that need not wait, and those that are refused, do not count",
};
pub(super) const REFUSALS: Row = Row {
    name: "participant.upstream.refusals",
    prometheus: "participant_upstream_refusals_total",
    kind: "counter",
    unit: "",
    labels: &["participant.account", "participant.upstream.reason"],
    help: "Requests that were not sent, because too many are under way: queue_full (or the caller's share of it is), no_time (the \
           wait would not fit the deadline), waited (in vain)",
};
pub(super) const CIRCUIT: Row = Row {
    name: "participant.upstream.circuit",
    prometheus: "participant_upstream_circuit",
    kind: "gauge",
    unit: "",
    labels: &["participant.api.version", "participant.account"],
    help: "Whether the account's API is asked: 0 as ever, 1 one request tries whether it works, 2 not at all for now; stays where it \
           is until a request succeeds",
};
pub(super) const CIRCUIT_TURNS: Row = Row {
    name: "participant.upstream.circuit.transitions",
    prometheus: "participant_upstream_circuit_transitions_total",
    kind: "counter",
    unit: "",
    labels: &["participant.api.version", "participant.account", "participant.circuit.state"],
    help: "How often the circuit turned closed, half_open or open",
};
pub(super) const CIRCUIT_REFUSALS: Row = Row {
    name: "participant.upstream.circuit.refusals",
    prometheus: "participant_upstream_circuit_refusals_total",
    kind: "counter",
    unit: "",
    labels: &["participant.api.version", "participant.account"],
    help: "Requests to Twilio that were not sent because the circuit was open",
};
pub(super) const UNKNOWN_KEYS: Row = Row {
    name: "participant.upstream.unknown_keys",
    prometheus: "participant_upstream_unknown_keys_total",
    kind: "counter",
    unit: "",
    labels: &["participant.api.version", "participant.upstream.key"],
    help: "Keys in Twilio's answers that this build does not know and ignores: a sign that its API has changed",
};
pub(super) const UNKNOWN_VALUES: Row = Row {
    name: "participant.upstream.unknown_values",
    prometheus: "participant_upstream_unknown_values_total",
    kind: "counter",
    unit: "",
    labels: &["participant.api.version", "participant.upstream.key"],
    help: "Words of an enum that this build does not know and tells as OTHER, and times of `last_read_timestamp` that are no date",
};
pub(super) const BAD_SECRETS: Row = Row {
    name: "participant.secrets.bad_files",
    prometheus: "participant_secrets_bad_files",
    kind: "gauge",
    unit: "",
    labels: &[],
    help: "Files of secrets that are missing or hold none, so that the last good value is used: look at the log",
};
pub(super) const TLS_RELOADS: Row = Row {
    name: "participant.tls.reloads",
    prometheus: "participant_tls_reloads_total",
    kind: "counter",
    unit: "",
    labels: &["participant.listener", "participant.tls.outcome"],
    help: "Changes of the files of TLS, of the listener grpc or events: ok (new connections get what is new), failed (they are of no \
           use, and the last good ones stay; counted at each `secrets.reload_interval` until that is mended)",
};
pub(super) const TLS_EXPIRY: Row = Row {
    name: "participant.tls.certificate.expiry",
    prometheus: "participant_tls_certificate_expiry_seconds",
    kind: "gauge",
    unit: "s",
    labels: &["participant.listener"],
    help: "When the certificate in use ends, or the first of its chain, in Unix time; absent without TLS",
};
pub(super) const LOOKUPS: Row = Row {
    name: "participant.cache.lookups",
    prometheus: "participant_cache_lookups_total",
    kind: "counter",
    unit: "",
    labels: &["participant.cache.outcome"],
    help: "Reads by how the cache served them: hit, miss (loaded), coalesced (joined another's load), bypass, stale_revalidating \
           (past its lifetime, and being refreshed), stale_on_error (because Twilio could not be read), failed",
};
pub(super) const REFRESHES: Row = Row {
    name: "participant.cache.refreshes",
    prometheus: "participant_cache_refreshes_total",
    kind: "counter",
    unit: "",
    labels: &["participant.cache.refresh.outcome"],
    help: "Refreshes of what was served past its lifetime, by how they ended: renewed, joined (another's load), failed, panicked",
};
pub(super) const AGE: Row = Row {
    name: "participant.cache.entry.age",
    prometheus: "participant_cache_entry_age_seconds",
    kind: "histogram",
    unit: "s",
    labels: &[],
    help: "Age of what a hit served",
};
pub(super) const ENTRIES: Row = Row {
    name: "participant.cache.entries",
    prometheus: "participant_cache_entries",
    kind: "gauge",
    unit: "",
    labels: &[],
    help: "Entries in the cache, as of the last upkeep",
};
pub(super) const WEIGHT: Row = Row {
    name: "participant.cache.weight",
    prometheus: "participant_cache_weight_bytes",
    kind: "gauge",
    unit: "By",
    labels: &[],
    help: "Estimated bytes in the cache, as of the last upkeep",
};
pub(super) const BUS: Row = Row {
    name: "participant.bus.current",
    prometheus: "participant_bus_current",
    kind: "gauge",
    unit: "",
    labels: &[],
    help: "1 while this replica knows all that is in Redis's stream, 0 while Redis is away; absent without `redis.url`",
};
pub(super) const BUS_LAG: Row = Row {
    name: "participant.bus.lag",
    prometheus: "participant_bus_lag_seconds",
    kind: "histogram",
    unit: "s",
    labels: &[],
    help: "From when an entry was added to Redis's stream, by Redis's clock, until this replica has applied it",
};
pub(super) const EVENTS: Row = Row {
    name: "participant.events.received",
    prometheus: "participant_events_received_total",
    kind: "counter",
    unit: "",
    labels: &["participant.events.source", "participant.events.outcome"],
    help: "Events of Twilio by what became of them: told, repeated (came before), outdated (older than the removal; with Redis \
           these count as told), test, unknown_type, undecodable (passed over), failed (has to come again); and deliveries \
           that were refused whole: refused (an event of another account), and, whether from a sink or a status callback, \
           under the source webhook: forged, too_large, too_slow",
};
pub(super) const EVENT_AGE: Row = Row {
    name: "participant.events.age",
    prometheus: "participant_events_age_seconds",
    kind: "histogram",
    unit: "s",
    labels: &["participant.events.source"],
    help: "How long after they happened events were applied, by Twilio's clock and the gateway's",
};
pub(super) const SOURCES: Row = Row {
    name: "participant.events.live",
    prometheus: "participant_events_live",
    kind: "gauge",
    unit: "",
    labels: &["participant.api.version", "participant.account"],
    help: "Whether events of an account are known to arrive, 1 or 0: it decides between cache.ttl and cache.ttl_without_events",
};
pub(super) const KINESIS_BEHIND: Row = Row {
    name: "participant.kinesis.behind",
    prometheus: "participant_kinesis_behind_seconds",
    kind: "gauge",
    unit: "s",
    labels: &[],
    help: "How old a change may be of which Kinesis has told nothing yet, by whichever replica reads it; grows while it cannot be \
           read; absent without `kinesis.stream`",
};
pub(super) const SPANS: Row = Row {
    name: "participant.telemetry.spans",
    prometheus: "participant_telemetry_spans_total",
    kind: "counter",
    unit: "",
    labels: &["participant.telemetry.outcome"],
    help: "Spans by what became of them: exported, or dropped (the queue was full, or the collector did not take them)",
};
pub(super) const BUILD: Row = Row {
    name: "participant.build.info",
    prometheus: "participant_build_info",
    kind: "gauge",
    unit: "",
    labels: &["service.version"],
    help: "1, with the version that runs",
};

/// Every metric, in the order in which they are documented. The process's own (`process_*`) come beside them.
pub const METRICS: &[Row] = &[
    CALLS,
    IN_FLIGHT,
    SHED,
    CUT,
    CONNECTIONS,
    REFUSED,
    CALLERS,
    JWKS,
    REQUESTS,
    RETRIES,
    LIMIT,
    UNDER_WAY,
    QUEUED,
    QUEUE_WAIT,
    REFUSALS,
    CIRCUIT,
    CIRCUIT_TURNS,
    CIRCUIT_REFUSALS,
    UNKNOWN_KEYS,
    UNKNOWN_VALUES,
    BAD_SECRETS,
    TLS_RELOADS,
    TLS_EXPIRY,
    LOOKUPS,
    REFRESHES,
    AGE,
    ENTRIES,
    WEIGHT,
    BUS,
    BUS_LAG,
    EVENTS,
    EVENT_AGE,
    SOURCES,
    KINESIS_BEHIND,
    SPANS,
    BUILD,
];

/// The metrics as rows of a Markdown table.
pub fn markdown() -> String {
    let mut table =
        "| metric | in `/metrics` | kind | unit | labels | what it says |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for Row { name, prometheus, kind, unit, labels, help } in METRICS {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
        let unit = if unit.is_empty() { "–" } else { unit };
        table.push_str(&format!("| `{name}` | `{prometheus}` | {kind} | {unit} | {labels} | {help} |\n"));
    }
    table
}
