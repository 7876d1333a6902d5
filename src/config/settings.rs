//! Every setting, once: its key in the file, its flag, its variable, its default and its help. The command line, the
//! reader, `check-config` and docs/configuration.md are made from this table.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the configuration file, such as `cache.ttl`.
    pub key: &'static str,
    /// Its flag without the dashes.
    pub flag: Option<&'static str>,
    /// Its environment variable.
    pub env: &'static str,
    /// What holds where nothing is set; empty: nothing.
    pub default: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Whether its value is a secret.
    pub is_secret: bool,
    /// Whether its flag stands alone, for `true`.
    pub is_switch: bool,
}

const fn setting(
    key: &'static str,
    flag: Option<&'static str>,
    env: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, flag, env, default, help, is_secret: false, is_switch: false }
}

/// All settings but the accounts, in the order in which they are shown.
pub const SETTINGS: &[Setting] = &[
    setting(
        "grpc.listen",
        Some("grpc-listen"),
        "GATEWAY_GRPC_LISTEN",
        "127.0.0.1:50051",
        "Address of the gRPC listener (API, health, reflection); port 0 takes a free one",
    ),
    setting(
        "auth.mode",
        Some("auth-mode"),
        "GATEWAY_AUTH_MODE",
        "",
        "How callers prove who they are, with commas between: mtls, jwt, tokens, mesh, open; not set: not at all, and the gRPC listener has to be on loopback",
    ),
    setting(
        "auth.tokens_file",
        None,
        "GATEWAY_AUTH_TOKENS_FILE",
        "",
        "For tokens: TOML file of lines name = \"sha256:…\", the hash of the token of this caller; it is read again while the gateway runs",
    ),
    setting(
        "tls.cert_file",
        None,
        "GATEWAY_TLS_CERT_FILE",
        "",
        "File with the certificate's chain, in PEM: with it the gRPC listener speaks TLS only; the files of TLS are read again while the gateway runs",
    ),
    setting(
        "tls.key_file",
        None,
        "GATEWAY_TLS_KEY_FILE",
        "",
        "File with its private key, in PEM, not encrypted",
    ),
    setting(
        "tls.client_ca_file",
        None,
        "GATEWAY_TLS_CLIENT_CA_FILE",
        "",
        "File with the certificates of the authorities that vouch for clients, in PEM: mutual TLS",
    ),
    setting(
        "tls.client_auth",
        None,
        "GATEWAY_TLS_CLIENT_AUTH",
        "",
        "Whether a client has to show a certificate: required, which holds where tls.client_ca_file is set, or optional",
    ),
    setting(
        "tls.allow_plaintext",
        None,
        "GATEWAY_TLS_ALLOW_PLAINTEXT",
        "false",
        "Take jwt and tokens in plain text on another address than loopback: something in front of the gateway does TLS",
    ),
    setting(
        "admin.listen",
        Some("admin-listen"),
        "GATEWAY_ADMIN_LISTEN",
        "127.0.0.1:9464",
        "Address of the admin listener (/livez, /readyz, /metrics); port 0 takes a free one",
    ),
    setting(
        "ready_file",
        Some("ready-file"),
        "GATEWAY_READY_FILE",
        "",
        "File that is written with the bound addresses, as JSON, once the gateway serves",
    ),
    setting(
        "upstream.url",
        Some("upstream-url"),
        "GATEWAY_UPSTREAM_URL",
        "https://conversations.twilio.com",
        "Base URL of Twilio; TWILIO_EDGE and TWILIO_REGION change the default's host",
    ),
    setting(
        "upstream.v1_url",
        None,
        "GATEWAY_UPSTREAM_V1_URL",
        "",
        "Base URL of the v1 API, where it differs",
    ),
    setting(
        "upstream.v2_url",
        None,
        "GATEWAY_UPSTREAM_V2_URL",
        "",
        "Base URL of the v2 API, where it differs",
    ),
    setting(
        "upstream.token_url",
        None,
        "GATEWAY_UPSTREAM_TOKEN_URL",
        "https://oauth.twilio.com/v2/token",
        "Where OAuth clients get their access tokens",
    ),
    Setting {
        is_switch: true,
        ..setting(
            "upstream.allow_insecure",
            Some("allow-insecure-upstream"),
            "GATEWAY_UPSTREAM_ALLOW_INSECURE",
            "false",
            "Accept a plain-http upstream that is not on loopback: credentials and PII travel readable",
        )
    },
    setting(
        "upstream.connect_timeout",
        None,
        "GATEWAY_UPSTREAM_CONNECT_TIMEOUT",
        "1s",
        "Limit to connect to Twilio, TLS included",
    ),
    setting(
        "upstream.attempt_timeout",
        None,
        "GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT",
        "5s",
        "Limit of one attempt at a request to Twilio",
    ),
    setting(
        "upstream.total_timeout",
        None,
        "GATEWAY_UPSTREAM_TOTAL_TIMEOUT",
        "15s",
        "Limit of a request to Twilio with all its retries",
    ),
    setting(
        "upstream.pool_idle_timeout",
        None,
        "GATEWAY_UPSTREAM_POOL_IDLE_TIMEOUT",
        "15s",
        "Idle connections to Twilio are closed after it; keep it below the peer's own limit",
    ),
    setting(
        "upstream.max_retries",
        None,
        "GATEWAY_UPSTREAM_MAX_RETRIES",
        "2",
        "Maximum number of retries of a request to Twilio; 0 turns retries off",
    ),
    setting(
        "upstream.max_concurrency",
        None,
        "GATEWAY_UPSTREAM_MAX_CONCURRENCY",
        "100",
        "Maximum number of an account's requests under way at Twilio, each on a connection of its own; Twilio's 429 lowers it for a while",
    ),
    setting(
        "upstream.max_queue",
        None,
        "GATEWAY_UPSTREAM_MAX_QUEUE",
        "1000",
        "Maximum number of an account's requests that wait until another one ends; one caller's may be half of them. What cannot be sent in time is refused at once",
    ),
    setting(
        "upstream.breaker_failures",
        None,
        "GATEWAY_UPSTREAM_BREAKER_FAILURES",
        "20",
        "So many failures of an account's API in a row, and it is left alone but for probes; 0 turns that off",
    ),
    setting(
        "upstream.breaker_max_pause",
        None,
        "GATEWAY_UPSTREAM_BREAKER_MAX_PAUSE",
        "2s",
        "The longest pause between two probes: so long at most it takes to see that Twilio is well again",
    ),
    setting(
        "upstream.max_response_bytes",
        None,
        "GATEWAY_UPSTREAM_MAX_RESPONSE_BYTES",
        "4194304",
        "The largest answer of Twilio that is accepted, in bytes",
    ),
    setting(
        "upstream.propagate_trace",
        None,
        "GATEWAY_UPSTREAM_PROPAGATE_TRACE",
        "false",
        "Send the trace's ids to Twilio, in the header traceparent",
    ),
    setting(
        "cache.ttl",
        None,
        "GATEWAY_CACHE_TTL",
        "5m",
        "How long a participant or a page is served from the cache where Twilio's events tell of changes; 0s turns the cache off",
    ),
    setting(
        "cache.ttl_without_events",
        None,
        "GATEWAY_CACHE_TTL_WITHOUT_EVENTS",
        "10s",
        "The same where no events are known to arrive: changes made elsewhere become visible only after it",
    ),
    setting(
        "cache.stale_while_revalidate",
        None,
        "GATEWAY_CACHE_STALE_WHILE_REVALIDATE",
        "5s",
        "So long after its lifetime, and half the lifetime at most, a cached answer is told while it is read anew; 0s: never",
    ),
    setting(
        "cache.stale_on_error",
        None,
        "GATEWAY_CACHE_STALE_ON_ERROR",
        "1m",
        "So long after its lifetime a cached answer is told where Twilio cannot be read; 0s: not past its lifetime",
    ),
    setting(
        "cache.stale_on_outage",
        None,
        "GATEWAY_CACHE_STALE_ON_OUTAGE",
        "1h",
        "The same while the circuit of the account's API version is open. Cached answers, PII among them, stay in memory so long \
         after cache.ttl; 0s: as cache.stale_on_error",
    ),
    setting(
        "cache.allow_stale_on_error",
        None,
        "GATEWAY_CACHE_ALLOW_STALE_ON_ERROR",
        "true",
        "Whether that holds for reads which say neither max_age nor allow_stale_on_error",
    ),
    setting(
        "cache.negative_ttl",
        None,
        "GATEWAY_CACHE_NEGATIVE_TTL",
        "5s",
        "How long it is remembered that there is no such participant or conversation",
    ),
    setting(
        "cache.max_bytes",
        None,
        "GATEWAY_CACHE_MAX_BYTES",
        "67108864",
        "The cache's weight, by estimate; the least recently used leaves first",
    ),
    setting(
        "limits.call_timeout",
        None,
        "GATEWAY_LIMITS_CALL_TIMEOUT",
        "30s",
        "Limit of a call whose caller sets no deadline, or a later one; streams end by their caller's deadline only. So long, too, may a caller read nothing of an answer",
    ),
    setting(
        "limits.stream_stall",
        None,
        "GATEWAY_LIMITS_STREAM_STALL",
        "5m",
        "So long may the caller of a stream read nothing of what is there for it; then the stream is reset",
    ),
    setting(
        "limits.calls_in_flight",
        None,
        "GATEWAY_LIMITS_CALLS_IN_FLIGHT",
        "4096",
        "So many calls are served at once, watchers apart, and of one caller's address as many as are left; more are answered RESOURCE_EXHAUSTED, LOCAL_CONCURRENCY at once",
    ),
    setting(
        "limits.watchers",
        None,
        "GATEWAY_LIMITS_WATCHERS",
        "16384",
        "So many watchers at once; more are answered in the same way",
    ),
    setting(
        "connections.max",
        None,
        "GATEWAY_CONNECTIONS_MAX",
        "4096",
        "So many connections the gRPC listener holds, and never more than half of the files that the process may open; more are closed at once",
    ),
    setting(
        "connections.max_per_peer",
        None,
        "GATEWAY_CONNECTIONS_MAX_PER_PEER",
        "256",
        "So many of them from one address: 25,600 calls at once. Behind a proxy all callers share its address",
    ),
    setting(
        "connections.max_age",
        None,
        "GATEWAY_CONNECTIONS_MAX_AGE",
        "0s",
        "A connection as old as that, give or take a tenth, is asked to end (GOAWAY), so that its client looks for other replicas; 0s: never, which is right behind a mesh or a proxy that balances calls",
    ),
    setting(
        "connections.handshake_timeout",
        None,
        "GATEWAY_CONNECTIONS_HANDSHAKE_TIMEOUT",
        "5s",
        "A connection that has not begun to speak HTTP/2 by then, after its handshake of TLS, is closed",
    ),
    setting(
        "connections.keepalive_interval",
        None,
        "GATEWAY_CONNECTIONS_KEEPALIVE_INTERVAL",
        "10s",
        "How often a silent client is asked whether it is still there; not more often than a mesh's proxy asks",
    ),
    setting(
        "connections.keepalive_timeout",
        None,
        "GATEWAY_CONNECTIONS_KEEPALIVE_TIMEOUT",
        "3s",
        "A client that does not answer by then is gone: its connection is closed, its calls end",
    ),
    setting(
        "events.listen",
        Some("events-listen"),
        "GATEWAY_EVENTS_LISTEN",
        "",
        "Address of the events listener (POST /events, for Twilio); port 0 takes a free one; not set: off, but for --sandbox",
    ),
    setting(
        "events.public_url",
        Some("events-public-url"),
        "GATEWAY_EVENTS_PUBLIC_URL",
        "",
        "The URL under which Twilio calls it, as it stands in the sink or the status callback: signatures cover it",
    ),
    setting(
        "events.tls.cert_file",
        None,
        "GATEWAY_EVENTS_TLS_CERT_FILE",
        "",
        "File with a certificate's chain, in PEM: with it the events listener speaks TLS only",
    ),
    setting(
        "events.tls.key_file",
        None,
        "GATEWAY_EVENTS_TLS_KEY_FILE",
        "",
        "File with its private key, in PEM, not encrypted",
    ),
    setting(
        "events.max_body_bytes",
        None,
        "GATEWAY_EVENTS_MAX_BODY_BYTES",
        "1048576",
        "The largest delivery of events that is accepted, in bytes",
    ),
    setting(
        "events.live_window",
        None,
        "GATEWAY_EVENTS_LIVE_WINDOW",
        "1h",
        "So long after a delivery an account's events count as arriving",
    ),
    setting(
        "kinesis.stream",
        Some("kinesis-stream"),
        "GATEWAY_KINESIS_STREAM",
        "",
        "Kinesis stream of Twilio's events, by name or ARN, for all accounts; AWS's own variables say the rest (docs/kinesis.md)",
    ),
    setting(
        "kinesis.poll_interval",
        None,
        "GATEWAY_KINESIS_POLL_INTERVAL",
        "1s",
        "How often each shard is asked; all replicas that read it together may ask 5 times a second",
    ),
    setting(
        "watch.heartbeat",
        None,
        "GATEWAY_WATCH_HEARTBEAT",
        "15s",
        "A watcher that is told nothing else gets a heartbeat so often",
    ),
    setting(
        "watch.events_kept",
        None,
        "GATEWAY_WATCH_EVENTS_KEPT",
        "10000",
        "So many events are kept for watchers to resume from; one that is half as many behind has lagged",
    ),
    setting(
        "watch.bytes_kept",
        None,
        "GATEWAY_WATCH_BYTES_KEPT",
        "67108864",
        "So many bytes of them, by estimate: where events are large, the oldest leave sooner, and half of it is a lag, too",
    ),
    setting(
        "redis.url",
        Some("redis-url"),
        "GATEWAY_REDIS_URL",
        "",
        "Redis or Valkey through which replicas tell each other what they are told: redis://[user:password@]host[:port][/database], or rediss:// for TLS; without it, each process stands alone",
    ),
    setting(
        "redis.url_file",
        None,
        "GATEWAY_REDIS_URL_FILE",
        "",
        "File that holds it; it is read again for each connection",
    ),
    setting(
        "redis.key_prefix",
        None,
        "GATEWAY_REDIS_KEY_PREFIX",
        "participant-gateway",
        "The names of all keys in Redis begin with it, in braces; replicas that belong together share it",
    ),
    setting(
        "redis.max_len",
        None,
        "GATEWAY_REDIS_MAX_LEN",
        "100000",
        "About so many entries are kept in Redis at most",
    ),
    setting(
        "redis.retention",
        None,
        "GATEWAY_REDIS_RETENTION",
        "1h",
        "So long what events told, PII included, and their ids stay in Redis",
    ),
    Setting {
        is_secret: true,
        ..setting(
            "page_token_key",
            None,
            "GATEWAY_PAGE_TOKEN_KEY",
            "",
            "Secret that seals page tokens, the same on all replicas; without it, it is derived from the account's secret",
        )
    },
    setting(
        "page_token_key_file",
        None,
        "GATEWAY_PAGE_TOKEN_KEY_FILE",
        "",
        "File that holds it; it is read again while the gateway runs",
    ),
    setting(
        "secrets.reload_interval",
        None,
        "GATEWAY_SECRETS_RELOAD_INTERVAL",
        "5s",
        "How often the files of secrets and of TLS are read again; a secret that Twilio refuses is read at once",
    ),
    setting(
        "drain.delay",
        Some("drain-delay"),
        "GATEWAY_DRAIN_DELAY",
        "5s",
        "After SIGTERM, how long the gateway serves on while balancers notice that it is not ready",
    ),
    setting(
        "drain.timeout",
        Some("drain-timeout"),
        "GATEWAY_DRAIN_TIMEOUT",
        "20s",
        "After that, how long calls in flight may take to finish",
    ),
    setting(
        "log.filter",
        None,
        "GATEWAY_LOG_FILTER",
        "info",
        "Which log lines are written: a level, or target=level, separated by commas",
    ),
    setting(
        "log.slow_call",
        None,
        "GATEWAY_LOG_SLOW_CALL",
        "5s",
        "A call that succeeds but takes longer has a log line; 0s: none. Streams count from begin to end",
    ),
    setting(
        "log.access",
        None,
        "GATEWAY_LOG_ACCESS",
        "false",
        "Whether every call that succeeds has a log line",
    ),
    setting(
        "log.format",
        None,
        "GATEWAY_LOG_FORMAT",
        "auto",
        "json, text, or auto: text on a terminal, else JSON",
    ),
];

/// The settings as rows of a Markdown table.
pub fn markdown() -> String {
    let mut table =
        "| key in the file | variable | flag | default | what it is |\n|---|---|---|---|---|\n".to_owned();
    for Setting { key, flag, env, default, help, .. } in SETTINGS {
        let flag = flag.map_or("–".to_owned(), |flag| format!("`--{flag}`"));
        let default = if default.is_empty() { "–".to_owned() } else { format!("`{default}`") };
        table.push_str(&format!("| `{key}` | `{env}` | {flag} | {default} | {help} |\n"));
    }
    table
}
