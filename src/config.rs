//! The configuration: flags, environment and file, read once, resolved into types, every problem reported together. The
//! only reader of the environment, which is an argument, so that tests never change the process's own.

mod accounts;
mod auth;
mod bus;
mod cache;
mod cli;
mod events;
mod exposure;
mod settings;
mod source;
mod tls;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use cli::{Command, Exit, parse};
pub use events::Events;
pub use settings::{SETTINGS, Setting, markdown};

use crate::access::Way;
#[cfg(feature = "kinesis")]
use crate::events::kinesis;
use crate::participants::{CacheSettings, Capacity, Lifetimes, RedisSettings};
use crate::sandbox;
use crate::secret::Secret;
use crate::telemetry::{CallLog, Export, LogFormat, LogSettings, Protocol};
use crate::tls::Tls;
use crate::twilio::{self, Account, Credentials};
use source::Sources;

/// How the environment is looked up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Everything that `serve` needs.
#[derive(Debug)]
pub struct Config {
    /// Address of the gRPC listener.
    pub grpc_listen: SocketAddr,
    /// Its TLS, where it has any.
    pub tls: Option<Tls>,
    /// The ways in which callers prove who they are, best first; none: they need not.
    pub ways: Vec<Way>,
    /// Address of the admin listener.
    pub admin_listen: SocketAddr,
    /// Written once the gateway serves.
    pub ready_file: Option<PathBuf>,
    /// Who holds the participants.
    pub upstream: Upstream,
    /// How Twilio is asked.
    pub twilio: twilio::Settings,
    /// The cache's bounds.
    pub cache: CacheSettings,
    /// How old a cached answer may be.
    pub lifetimes: Lifetimes,
    /// How Twilio's events come in.
    pub events: Events,
    /// What watchers are told, and how.
    pub watch: Watch,
    /// The stream that tells Twilio's events.
    #[cfg(feature = "kinesis")]
    pub kinesis: Option<kinesis::Settings>,
    /// Whether replicas tell each other what they are told.
    pub bus: Bus,
    /// Seals page tokens in place of the accounts' secrets.
    pub page_token_key: Option<Secret>,
    /// Bounds a call with one answer.
    pub call_timeout: Duration,
    /// So long may the caller of a stream take nothing of it.
    pub stream_stall: Duration,
    /// Bounds the calls at once, watchers apart.
    pub calls_in_flight: usize,
    /// Bounds the watchers.
    pub watchers: usize,
    /// What the gRPC listener's connections may take.
    pub connections: Connections,
    /// How the gateway stops.
    pub drain: Drain,
    /// Which log lines are written, and how.
    pub log: LogSettings,
    /// What goes to an OpenTelemetry collector.
    pub export: Export,
}

/// Who holds the participants.
#[derive(Debug)]
pub enum Upstream {
    /// Twilio, by these accounts, of which the first is the default.
    Twilio(Vec<Account>),
    /// The embedded sandbox, by its own account.
    Sandbox(sandbox::Settings),
}

/// What watchers are told, and how.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// A watcher hears nothing for so long at most.
    pub heartbeat: Duration,
    /// So much is kept to be resumed from.
    pub kept: Capacity,
}

/// Whether replicas tell each other what they are told.
#[derive(Clone, Debug)]
pub enum Bus {
    /// There is one process, or each is told for itself.
    Local,
    /// They share a stream of Redis.
    Redis(RedisSettings),
}

/// What the gRPC listener's connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// How many there may be.
    pub max: usize,
    /// How many of them from one address.
    pub max_per_peer: usize,
    /// How old one may get, a tenth more or less.
    pub max_age: Option<Duration>,
    /// From connecting until the client has said that it speaks HTTP/2.
    pub handshake_timeout: Duration,
    /// How often a client is asked whether it is there.
    pub keepalive_interval: Duration,
    /// How long it may take to say so.
    pub keepalive_timeout: Duration,
}

/// How the gateway stops.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// It serves on so long after SIGTERM.
    pub delay: Duration,
    /// Then calls in flight may take so long.
    pub timeout: Duration,
}

/// A setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The flag, the variable or the key.
    pub at: String,
    /// What is wrong, and what is legal.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)
    }
}

/// The flags of a command, by the settings' keys, and those that are no settings.
#[derive(Debug, Default)]
struct Flags {
    values: BTreeMap<&'static str, String>,
    config: Option<PathBuf>,
    sandbox: bool,
    faults: Vec<String>,
}

/// What was read, whether it can be used or not.
#[derive(Debug)]
pub struct Report {
    /// The configuration, or everything that is wrong with it.
    pub outcome: Result<Config, Vec<Problem>>,
    /// Each setting with its value and where that stands, secrets masked.
    pub lines: Vec<String>,
}

fn load(flags: Flags, env: Lookup<'_>) -> Report {
    let Flags { values, config, sandbox, faults } = flags;
    let file = config.or_else(|| env("GATEWAY_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    let mut sources = Sources::new(values, env, file.as_deref());
    let mut lines: Vec<_> = SETTINGS.iter().map(|setting| line(setting, sources.raw(setting))).collect();
    let upstream = if sandbox {
        Upstream::Sandbox(sandbox_settings(&mut sources, &faults))
    } else {
        if !faults.is_empty() {
            sources.problem("--sandbox-fault", "means nothing without --sandbox");
        }
        Upstream::Twilio(accounts::read(&mut sources))
    };
    lines.extend(account_lines(&upstream));
    let config = resolve(&mut sources, upstream);
    let problems = sources.problems;
    Report { outcome: if problems.is_empty() { Ok(config) } else { Err(problems) }, lines }
}

fn line(setting: &Setting, (value, at): (String, String)) -> String {
    let value = match value.as_str() {
        "" => "(not set)",
        _ if setting.is_secret => "***",
        // No URL with a password is accepted, but it is reported before it is refused.
        url if setting.key.ends_with("url") && url.contains(['@', '?', '#']) => "***",
        value => value,
    };
    format!("{} = {value}  [{at}]", setting.key)
}

fn account_lines(upstream: &Upstream) -> Vec<String> {
    let accounts = match upstream {
        Upstream::Sandbox(_) => return vec![format!("account {} = the sandbox's", sandbox::ACCOUNT_SID)],
        Upstream::Twilio(accounts) => accounts,
    };
    let line = |(at, account): (usize, &Account)| {
        let Account { id, v1_url, v2_url, credentials, auth_tokens: _ } = account;
        let default = if at == 0 { " (default)" } else { "" };
        let user = match credentials.user() {
            user if user.is_file() => format!("{} [{}]", &*user.value(), user.place()),
            user => user.value().to_string(),
        };
        let secrets = credentials.secrets().iter().map(|secret| format!("{secret} [{}]", secret.place()));
        let secrets = secrets.collect::<Vec<_>>().join(" or ");
        let tokens = match credentials {
            Credentials::Basic { .. } => String::new(),
            Credentials::OAuth(client) => format!(", for tokens of {}", client.token_url),
        };
        format!(
            "account {id}{default} = v1 at {v1_url}, v2 at {v2_url}, signs in as {user} with {secrets}{tokens}"
        )
    };
    accounts.iter().enumerate().map(line).collect()
}

fn sandbox_settings(sources: &mut Sources<'_>, faults: &[String]) -> sandbox::Settings {
    for key in ["upstream.url", "upstream.v1_url", "upstream.v2_url", "upstream.token_url"] {
        if let Some(place) = sources.place(key) {
            sources.problem(place, "cannot be set with --sandbox, which is the upstream");
        }
    }
    sandbox::Settings {
        faults: parse_faults("--sandbox-fault", faults, &mut sources.problems),
        ..sandbox::Settings::default()
    }
}

fn parse_faults(flag: &str, faults: &[String], problems: &mut Vec<Problem>) -> Vec<sandbox::Fault> {
    let mut parsed = Vec::new();
    for fault in faults {
        match fault.parse::<sandbox::Fault>() {
            Ok(fault) => parsed.push(fault),
            Err(error) => problems.push(Problem { at: format!("{flag} {fault:?}"), text: error.to_string() }),
        }
    }
    parsed
}

/// Stands in for an address that is wrong, so that the rest can be checked too.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn listen(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "must be address:port, such as 0.0.0.0:50051")
}

fn resolve(sources: &mut Sources<'_>, upstream: Upstream) -> Config {
    let filter = sources.optional("log.filter", LogSettings::check_filter).unwrap_or_default();
    let format = sources.required("log.format", str::parse::<LogFormat>);
    let calls = CallLog {
        is_access_log: sources.required("log.access", switch),
        slow: Some(sources.required("log.slow_call", duration)).filter(|bound| !bound.is_zero()),
    };
    #[cfg(not(feature = "kinesis"))]
    if let Some(place) = sources.place("kinesis.stream") {
        sources.problem(place, "this build cannot read it: build the gateway with its feature kinesis");
    }
    let (cache, lifetimes) = cache::read(sources);
    let grpc_listen = sources.optional("grpc.listen", listen);
    let tls = tls::read_grpc(sources);
    let modes = auth::modes(sources);
    let ways = auth::ways(sources, modes.as_deref().unwrap_or_default());
    // Modes that are wrong have a problem of their own.
    if let Some(modes) = &modes {
        exposure::check(sources, modes, grpc_listen, tls.as_ref());
    }
    let export = Export { traces: otlp(sources, "TRACES"), metrics: otlp(sources, "METRICS") };
    Config {
        grpc_listen: grpc_listen.unwrap_or(NOWHERE),
        tls,
        ways,
        admin_listen: sources.optional("admin.listen", listen).unwrap_or(NOWHERE),
        ready_file: sources.optional("ready_file", str::parse::<PathBuf>),
        events: events::read(sources, &upstream),
        upstream,
        twilio: twilio::Settings {
            connect_timeout: sources.required("upstream.connect_timeout", limit),
            attempt_timeout: sources.required("upstream.attempt_timeout", limit),
            total_timeout: sources.required("upstream.total_timeout", limit),
            pool_idle_timeout: sources.required("upstream.pool_idle_timeout", duration),
            max_retries: sources.required("upstream.max_retries", |text| number(text, 0, 10)),
            max_concurrency: sources.required("upstream.max_concurrency", |text| number(text, 1, 10_000)),
            max_queue: sources.required("upstream.max_queue", |text| number(text, 0, 100_000)),
            breaker: twilio::BreakerSettings {
                failures: sources.required("upstream.breaker_failures", |text| number(text, 0, 10_000)),
                max_pause: sources.required("upstream.breaker_max_pause", limit),
            },
            propagate_trace: sources.required("upstream.propagate_trace", switch),
            max_response_bytes: sources
                .required("upstream.max_response_bytes", |text| number(text, 1024, 1 << 30)),
            reload_interval: sources.required("secrets.reload_interval", limit),
        },
        lifetimes,
        watch: Watch {
            heartbeat: sources.required("watch.heartbeat", limit),
            kept: Capacity {
                events: sources.required("watch.events_kept", |text| number(text, 2, 1_000_000)),
                bytes: sources.required("watch.bytes_kept", |text| number(text, 1 << 20, 1 << 40)),
            },
        },
        cache,
        #[cfg(feature = "kinesis")]
        kinesis: kinesis(sources),
        bus: bus::read(sources),
        page_token_key: page_token_key(sources),
        call_timeout: sources.required("limits.call_timeout", limit),
        stream_stall: sources.required("limits.stream_stall", limit),
        calls_in_flight: sources.required("limits.calls_in_flight", |text| number(text, 1, 1_000_000)),
        watchers: sources.required("limits.watchers", |text| number(text, 1, 1_000_000)),
        connections: connections(sources),
        drain: Drain {
            delay: sources.required("drain.delay", duration),
            timeout: sources.required("drain.timeout", duration),
        },
        log: LogSettings { filter, format, calls },
        export,
    }
}

fn connections(sources: &mut Sources<'_>) -> Connections {
    Connections {
        max: sources.required("connections.max", |text| number(text, 1, 1_000_000)),
        max_per_peer: sources.required("connections.max_per_peer", |text| number(text, 1, 1_000_000)),
        max_age: Some(sources.required("connections.max_age", duration)).filter(|age| !age.is_zero()),
        handshake_timeout: sources.required("connections.handshake_timeout", limit),
        keepalive_interval: sources.required("connections.keepalive_interval", limit),
        keepalive_timeout: sources.required("connections.keepalive_timeout", limit),
    }
}

#[cfg(feature = "kinesis")]
fn kinesis(sources: &mut Sources<'_>) -> Option<kinesis::Settings> {
    let poll_interval = sources.required("kinesis.poll_interval", poll_interval);
    let stream = sources.optional("kinesis.stream", str::parse)?;
    Some(kinesis::Settings { stream, poll_interval })
}

/// OpenTelemetry's own variables for one signal, of which the SDK reads the rest: headers, sampler, resource attributes,
/// service name, intervals.
fn otlp(sources: &mut Sources<'_>, signal: &str) -> Option<Protocol> {
    let is = |name: &str, value: &str| sources.env(name).is_some_and(|text| text.eq_ignore_ascii_case(value));
    // What is said of one signal comes before what is said of all.
    let both =
        |what: &str| [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
    let is_on = both("ENDPOINT").iter().any(|name| sources.env(name).is_some());
    if !is_on || is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{signal}_EXPORTER"), "none") {
        return None;
    }
    for name in both("PROTOCOL") {
        match sources.env(&name).as_deref() {
            None => {}
            Some("grpc") => return Some(Protocol::Grpc),
            Some("http/protobuf") => return Some(Protocol::Http),
            Some(_) => sources.problem(name, "must be grpc or http/protobuf"),
        }
    }
    // The specification's default.
    Some(Protocol::Http)
}

const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn duration(text: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST);
    duration.ok_or("must be a duration of at most a day, such as 200ms, 5s or 1m")
}

/// A duration that bounds something, which 0 would forbid altogether.
fn limit(text: &str) -> Result<Duration, &'static str> {
    duration(text)
        .ok()
        .filter(|limit| !limit.is_zero())
        .ok_or("must be a duration above 0 and of at most a day")
}

/// More often than five times a second AWS allows nobody; less often than it keeps an iterator, each would have expired.
#[cfg(feature = "kinesis")]
fn poll_interval(text: &str) -> Result<Duration, &'static str> {
    duration(text)
        .ok()
        .filter(|interval| (Duration::from_millis(200)..=Duration::from_secs(60)).contains(interval))
        .ok_or("must be a duration from 200ms to 1m")
}

fn number<T: FromStr + PartialOrd + Display + Copy>(text: &str, min: T, max: T) -> Result<T, String> {
    let in_range = text.parse().ok().filter(|number| (&min..=&max).contains(&number));
    in_range.ok_or_else(|| format!("must be a whole number from {min} to {max}"))
}

fn switch(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "must be true or false")
}

/// The shortest key of page tokens.
const MIN_KEY_BYTES: usize = 16;

fn page_token_key(sources: &mut Sources<'_>) -> Option<Secret> {
    let (key, file) = ("page_token_key", "page_token_key_file");
    let (place, file_place) = (sources.place(key), sources.place(file));
    if let (Some(place), Some(file_place)) = (&place, &file_place) {
        sources.problem(place, format!("cannot be set beside {file_place}"));
    }
    let fixed = |text: &str| {
        let is_long = text.len() >= MIN_KEY_BYTES;
        let key = is_long.then(|| Secret::new(place.clone().unwrap_or_default(), text));
        key.ok_or("must be at least 16 characters long")
    };
    let read = |path: &str| Secret::read(file_place.clone().unwrap_or_default(), path, MIN_KEY_BYTES);
    sources.optional(key, fixed).or(sources.optional(file, read))
}

#[cfg(test)]
mod tests;
