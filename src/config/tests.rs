use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::Write as _;

use super::*;

const SID: &str = "AC11111111111111111111111111111111";
const OTHER_SID: &str = "AC22222222222222222222222222222222";
const TOKEN: &str = "planted-auth-token";
const ACCOUNT: [(&str, &str); 2] = [("TWILIO_ACCOUNT_SID", SID), ("TWILIO_AUTH_TOKEN", TOKEN)];

fn parsed(args: &[&str], env: &[(&str, &str)]) -> Result<Command, Exit> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    let args = ["participant-gateway"].iter().chain(args).map(OsString::from);
    parse(args, &|name| env.get(name).map(|value| (*value).to_owned()))
}

/// `serve` with these flags and variables.
fn report(flags: &[&str], env: &[(&str, &str)]) -> Report {
    let args: Vec<&str> = ["serve"].iter().chain(flags).copied().collect();
    match parsed(&args, env) {
        Ok(Command::Serve(report)) => report,
        other => panic!("these are arguments of serve: {other:?}"),
    }
}

/// With an account, these flags and variables: a configuration.
fn config(flags: &[&str], env: &[(&str, &str)]) -> Config {
    report(flags, &[&ACCOUNT, env].concat()).outcome.expect("the configuration is valid")
}

fn problems(flags: &[&str], env: &[(&str, &str)]) -> Vec<String> {
    let problems = report(flags, env).outcome.expect_err("the configuration is wrong");
    assert!(!problems.is_empty(), "it is refused without a word");
    problems.iter().map(ToString::to_string).collect()
}

/// What is wrong with these, beside an account that is right.
fn problems_beside_an_account(flags: &[&str], env: &[(&str, &str)]) -> Vec<String> {
    problems(flags, &[&ACCOUNT, env].concat())
}

fn accounts(config: &Config) -> &[Account] {
    match &config.upstream {
        Upstream::Twilio(accounts) => accounts,
        Upstream::Sandbox(_) => panic!("the upstream is Twilio"),
    }
}

/// What the account signs in with: the values in use.
fn secrets(account: &Account) -> Vec<String> {
    account.credentials.secrets().iter().map(|secret| secret.value().to_string()).collect()
}

/// A configuration file, which lives as long as the value.
struct File(tempfile::NamedTempFile);

impl File {
    fn new(text: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Self(file)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

/// That each of these has a problem which names it and says what is legal, and that there are no others.
#[track_caller]
fn assert_problems(problems: &[String], expected: &[(&str, &str)]) {
    for (name, legal) in expected {
        assert!(
            problems.iter().any(|problem| problem.contains(name) && problem.contains(legal)),
            "none of {problems:#?} names {name} and says {legal:?}"
        );
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
}

#[test]
fn an_account_is_all_that_has_to_be_set() {
    let config = config(&[], &[]);
    assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9464");
    assert_eq!(config.ready_file, None);
    assert_eq!((config.drain.delay, config.drain.timeout), (Duration::from_secs(5), Duration::from_secs(20)));
    assert_eq!(config.call_timeout, Duration::from_secs(30));
    assert_eq!((config.log.filter.as_str(), config.log.format), ("info", LogFormat::Auto));
    let [account] = accounts(&config) else { panic!("there is one account") };
    assert_eq!(account.id.as_str(), SID);
    assert_eq!(account.v1_url.as_str(), "https://conversations.twilio.com/");
    assert_eq!(account.v2_url, account.v1_url);
}

#[test]
fn calls_and_connections_are_bounded_unless_more_is_allowed() {
    let default = config(&[], &[]);
    assert_eq!((default.calls_in_flight, default.watchers), (4096, 16384));
    let Connections { max, max_per_peer, max_age, .. } = default.connections;
    assert_eq!((max, max_per_peer, max_age), (4096, 256, None));
    let set = config(&[], &[("GATEWAY_CONNECTIONS_MAX_AGE", "30m"), ("GATEWAY_LIMITS_WATCHERS", "1")]);
    assert_eq!((set.connections.max_age, set.watchers), (Some(Duration::from_secs(1800)), 1));
    let wrong = [
        "LIMITS_CALLS_IN_FLIGHT",
        "LIMITS_WATCHERS",
        "CONNECTIONS_MAX",
        "CONNECTIONS_MAX_PER_PEER",
        "CONNECTIONS_HANDSHAKE_TIMEOUT",
        "CONNECTIONS_KEEPALIVE_INTERVAL",
        "CONNECTIONS_KEEPALIVE_TIMEOUT",
    ]
    .map(|name| format!("GATEWAY_{name}"));
    let zero: Vec<_> = wrong.iter().map(|name| (name.as_str(), "0")).collect();
    let expected: Vec<_> = wrong.iter().map(|name| (name.as_str(), "must be a")).collect();
    assert_problems(&problems_beside_an_account(&[], &zero), &expected);
}

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_that_over_the_default() {
    let file = File::new("drain.delay = \"1s\"\n");
    let path = file.path();
    let variable = ("GATEWAY_DRAIN_DELAY", "2s");
    for (flags, env, expected) in [
        (vec!["--config", path, "--drain-delay", "3s"], vec![variable], 3),
        (vec!["--config", path], vec![variable], 2),
        (vec!["--config", path], vec![], 1),
        (vec![], vec![], 5),
    ] {
        assert_eq!(config(&flags, &env).drain.delay, Duration::from_secs(expected), "{flags:?} {env:?}");
    }
}

#[test]
fn the_file_is_named_by_flag_or_variable_and_the_flag_wins() {
    let (by_flag, by_variable) = (File::new("cache.ttl = \"1s\""), File::new("cache.ttl = \"2s\""));
    let variable = [("GATEWAY_CONFIG", by_variable.path())];
    assert_eq!(config(&[], &variable).cache.ttl, Duration::from_secs(2));
    assert_eq!(config(&["--config", by_flag.path()], &variable).cache.ttl, Duration::from_secs(1));
    assert_eq!(config(&[], &[("GATEWAY_CONFIG", "")]).cache.ttl, Duration::from_secs(300));
}

#[test]
fn a_key_of_the_file_may_stand_in_a_table_and_hold_a_number() {
    let file = File::new("[cache]\nmax_bytes = 4096\nttl = \"3s\"\n[upstream]\nmax_retries = 0\n");
    let config = config(&["--config", file.path()], &[]);
    assert_eq!((config.cache.max_bytes, config.cache.ttl), (4096, Duration::from_secs(3)));
    assert_eq!(config.twilio.max_retries, 0);
}

/// What a deployment template leaves empty is not set: it is neither an error nor a zero.
#[test]
fn an_empty_value_is_none_wherever_it_stands() {
    let file = File::new("limits.call_timeout = \"\"\ngrpc.listen = \"\"\n");
    let config = config(
        &["--config", file.path(), "--admin-listen", ""],
        &[("GATEWAY_CACHE_TTL", ""), ("GATEWAY_GRPC_LISTEN", "")],
    );
    assert_eq!(config.call_timeout, Duration::from_secs(30));
    assert_eq!(config.cache.ttl, Duration::from_secs(300));
    assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9464");
}

#[test]
fn all_problems_are_told_at_once_each_with_its_place_and_what_is_legal() {
    let file = File::new("upstream.max_retries = 11\ndrain.timeout = \"soon\"\nnonsense = 1\n");
    let problems = problems(
        &["--config", file.path(), "--grpc-listen", "localhost", "--drain-delay=2 fortnights"],
        &[
            ("GATEWAY_ADMIN_LISTEN", "9464"),
            ("GATEWAY_CACHE_TTL", "-1s"),
            ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "0s"),
            ("GATEWAY_UPSTREAM_MAX_RESPONSE_BYTES", "1"),
            ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "-1"),
            ("GATEWAY_UPSTREAM_BREAKER_MAX_PAUSE", "0s"),
            ("GATEWAY_LOG_FORMAT", "xml"),
            ("GATEWAY_LOG_FILTER", "a=b=c"),
            ("GATEWAY_PAGE_TOKEN_KEY", "short"),
            ("GATEWAY_UPSTREAM_V1_URL", "ftp://twilio"),
            ("GATEWAY_UPSTREAM_ALLOW_INSECURE", "perhaps"),
            ("TWILIO_ACCOUNT_SID", "AC1"),
            ("TWILIO_AUTH_TOKEN", TOKEN),
        ],
    );
    assert_problems(
        &problems,
        &[
            ("nonsense", "no setting"),
            ("upstream.max_retries", "0 to 10"),
            ("drain.timeout", "duration"),
            ("--grpc-listen", "address:port"),
            ("--drain-delay", "duration"),
            ("GATEWAY_ADMIN_LISTEN", "address:port"),
            ("GATEWAY_CACHE_TTL", "duration"),
            ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "above 0"),
            ("GATEWAY_UPSTREAM_MAX_RESPONSE_BYTES", "1024"),
            ("GATEWAY_UPSTREAM_BREAKER_FAILURES", "0 to 10000"),
            ("GATEWAY_UPSTREAM_BREAKER_MAX_PAUSE", "above 0"),
            ("GATEWAY_LOG_FORMAT", "auto, json or text"),
            ("GATEWAY_LOG_FILTER", "level"),
            ("GATEWAY_PAGE_TOKEN_KEY", "16 characters"),
            ("GATEWAY_UPSTREAM_V1_URL", "https://"),
            ("GATEWAY_UPSTREAM_ALLOW_INSECURE", "true or false"),
            ("TWILIO_ACCOUNT_SID", "32 hex digits"),
        ],
    );
}

#[test]
fn a_bad_address_does_not_hide_what_else_is_wrong() {
    let problems =
        problems_beside_an_account(&["--grpc-listen=nowhere"], &[("GATEWAY_LIMITS_CALL_TIMEOUT", "never")]);
    assert_problems(
        &problems,
        &[("--grpc-listen", "address:port"), ("GATEWAY_LIMITS_CALL_TIMEOUT", "duration")],
    );
}

#[test]
fn a_setting_is_checked_with_the_sandbox_too() {
    let env = [("GATEWAY_UPSTREAM_ALLOW_INSECURE", "perhaps"), ("GATEWAY_CACHE_TTL", "x")];
    assert_problems(
        &problems(&["--sandbox"], &env),
        &[("GATEWAY_UPSTREAM_ALLOW_INSECURE", "true or false"), ("GATEWAY_CACHE_TTL", "duration")],
    );
}

#[test]
fn the_ends_of_a_range_are_legal_and_what_lies_beyond_is_not() {
    for (variable, legal, illegal) in [
        ("GATEWAY_UPSTREAM_MAX_RETRIES", vec!["0", "10"], vec!["-1", "11", "two", "1.5"]),
        ("GATEWAY_UPSTREAM_MAX_CONCURRENCY", vec!["1", "10000"], vec!["0", "10001", "many"]),
        ("GATEWAY_UPSTREAM_MAX_QUEUE", vec!["0", "100000"], vec!["-1", "100001"]),
        ("GATEWAY_UPSTREAM_MAX_RESPONSE_BYTES", vec!["1024", "1073741824"], vec!["1023", "1073741825"]),
        ("GATEWAY_CACHE_TTL", vec!["0s", "1day"], vec!["1day 1s", "5", "∞"]),
        ("GATEWAY_CACHE_STALE_WHILE_REVALIDATE", vec!["0s", "1day"], vec!["2days", "-1s"]),
        ("GATEWAY_CACHE_STALE_ON_ERROR", vec!["0s", "1day"], vec!["2days", "-1s"]),
        ("GATEWAY_CACHE_STALE_ON_OUTAGE", vec!["0s", "1day"], vec!["2days", "-1s"]),
        ("GATEWAY_CACHE_ALLOW_STALE_ON_ERROR", vec!["true", "false"], vec!["yes", "1"]),
        ("GATEWAY_LIMITS_CALL_TIMEOUT", vec!["1ns", "1day"], vec!["0s", "2days"]),
        ("GATEWAY_SECRETS_RELOAD_INTERVAL", vec!["100ms", "1day"], vec!["0s", "2days"]),
        ("GATEWAY_PAGE_TOKEN_KEY", vec!["0123456789abcdef"], vec!["0123456789abcde"]),
        ("GATEWAY_LOG_FORMAT", vec!["auto", "json", "text"], vec!["JSON"]),
        (
            "GATEWAY_REDIS_URL",
            vec!["redis://cache", "rediss://:secret@[::1]:1/2"],
            vec!["cache:6379", "http://cache"],
        ),
        ("GATEWAY_REDIS_MAX_LEN", vec!["1000", "100000000"], vec!["999", "100000001"]),
        ("GATEWAY_REDIS_RETENTION", vec!["1m", "1day"], vec!["59s", "2days"]),
        ("GATEWAY_REDIS_KEY_PREFIX", vec!["a:b"], vec!["{a}", "a b"]),
        ("GATEWAY_GRPC_LISTEN", vec!["[::1]:0", "127.9.9.9:0"], vec!["::1", "127.0.0.1:65536", ":50051"]),
    ] {
        for value in legal {
            config(&[], &[(variable, value)]);
        }
        for value in illegal {
            let problems = problems_beside_an_account(&[], &[(variable, value)]);
            assert_problems(&problems, &[(variable, "must be")]);
        }
    }
}

#[test]
fn the_cache_keeps_answers_for_the_longest_grace_and_no_longer() {
    let off = [
        ("GATEWAY_CACHE_STALE_WHILE_REVALIDATE", "0s"),
        ("GATEWAY_CACHE_STALE_ON_ERROR", "0s"),
        ("GATEWAY_CACHE_STALE_ON_OUTAGE", "0s"),
    ];
    assert_eq!(config(&[], &[]).cache.grace, Duration::from_secs(3600));
    assert_eq!(config(&[], &off).cache.grace, Duration::ZERO);
    for (at, (variable, _)) in off.iter().enumerate() {
        let mut one = off;
        one[at] = (variable, "2h");
        assert_eq!(config(&[], &one).cache.grace, Duration::from_secs(7200), "{variable}");
    }
}

#[test]
fn the_url_of_redis_may_stand_in_a_file_and_its_password_is_shown_nowhere() {
    let is_shared = |config: Config| match config.bus {
        Bus::Redis(settings) => !format!("{settings:?}").contains("planted"),
        Bus::Local => false,
    };
    let (url, file) = ("redis://:planted@cache", File::new("redis://:planted@cache\n"));
    assert!(is_shared(config(&[], &[("GATEWAY_REDIS_URL", url)])));
    assert!(is_shared(config(&[], &[("GATEWAY_REDIS_URL_FILE", file.path())])));
    assert!(matches!(config(&[], &[]).bus, Bus::Local));

    let both = [("GATEWAY_REDIS_URL", url), ("GATEWAY_REDIS_URL_FILE", file.path())];
    assert_problems(
        &problems_beside_an_account(&[], &both),
        &[("GATEWAY_REDIS_URL", "GATEWAY_REDIS_URL_FILE")],
    );
    let wrong = [("GATEWAY_REDIS_URL", "redis://:planted@cache/nonsense")];
    assert_problems(&problems_beside_an_account(&[], &wrong), &[("GATEWAY_REDIS_URL", "must be redis://")]);
    let missing = [("GATEWAY_REDIS_URL_FILE", "/nowhere")];
    assert_problems(&problems_beside_an_account(&[], &missing), &[("GATEWAY_REDIS_URL_FILE", "must")]);
    let lines = report(&[], &[("GATEWAY_REDIS_URL", url)]).lines.join("\n");
    assert!(lines.contains("redis.url = ***") && !lines.contains("planted"), "{lines}");
}

#[test]
fn an_unknown_key_of_the_file_is_named() {
    for (text, key) in [
        ("cache.tttl = \"1s\"", "cache.tttl"),
        ("[grpc]\nlisten = \"127.0.0.1:1\"\nport = 5", "grpc.port"),
        ("[typo]", "typo"),
        ("accounts = 3", "accounts"),
        ("default_account = 3", "default_account"),
        ("accounts = [\"AC1\"]", "accounts"),
    ] {
        let file = File::new(text);
        let problems = problems_beside_an_account(&["--config", file.path()], &[]);
        assert_problems(&problems, &[(key, file.path())]);
    }
}

#[test]
fn a_value_of_another_type_is_named() {
    for value in ["1.5", "[1]", "{ seconds = 1 }", "1979-05-27"] {
        let file = File::new(&format!("cache.ttl = {value}"));
        let problems = problems_beside_an_account(&["--config", file.path()], &[]);
        assert_problems(&problems, &[("cache.ttl", "must be text")]);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = tempfile::tempdir().unwrap().path().join("none.toml");
    let problems = problems_beside_an_account(&["--config", missing.to_str().unwrap()], &[]);
    assert_problems(&problems, &[(missing.to_str().unwrap(), "cannot be read")]);
}

#[test]
fn bad_toml_is_told_without_the_text_of_its_line() {
    for text in [
        "page_token_key = planted-page-token-key",
        "page_token_key = \"planted-page-token-key",
        "[[accounts]]\nauth_token = 'planted-page-token-key\n",
        "planted-page-token-key",
        "page_token_key = \"planted-page-token-key\"\npage_token_key = \"planted-page-token-key\"",
    ] {
        let file = File::new(text);
        let problems = problems_beside_an_account(&["--config", file.path()], &[]);
        assert_problems(&problems, &[(file.path(), "TOML")]);
        assert!(!problems[0].contains("planted"), "{problems:?}");
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for args in [
        &["serve", "--no-such-flag"][..],
        &["serve", "--drain-delay"],
        &["serve", "stray"],
        &["serve", "--sandbox=yes"],
        &["sandbox", "--grpc-listen=127.0.0.1:0"],
        &["no-such-command"],
        &[],
    ] {
        let exit = parsed(args, &ACCOUNT).expect_err("the command line is wrong");
        assert!(exit.is_usage_error, "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["serve", "--help"], &["sandbox", "--help"]] {
        let exit = parsed(args, &[]).expect_err("it asks for nothing to be run");
        assert!(!exit.is_usage_error, "{args:?}");
    }
}

#[test]
fn without_an_account_the_variables_are_named() {
    let problems = problems(&[], &[]);
    assert_problems(&problems, &[("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN")]);
    assert!(problems[0].contains("TWILIO_API_KEY") && problems[0].contains("--sandbox"), "{problems:?}");
}

#[test]
fn half_an_account_tells_the_other_half() {
    let (sid, token) = (("TWILIO_ACCOUNT_SID", SID), ("TWILIO_AUTH_TOKEN", TOKEN));
    let (key, secret) = (("TWILIO_API_KEY", "SK1"), ("TWILIO_API_SECRET", "planted-api-secret"));
    for (env, missing) in [
        (vec![sid], "TWILIO_AUTH_TOKEN"),
        (vec![token], "TWILIO_ACCOUNT_SID"),
        (vec![sid, key], "TWILIO_API_SECRET"),
        (vec![sid, secret], "TWILIO_API_KEY"),
        (vec![sid, token, key], "TWILIO_API_SECRET"),
        (vec![key, secret], "TWILIO_ACCOUNT_SID"),
    ] {
        assert_problems(&problems(&[], &env), &[(missing, "is required")]);
    }
}

#[test]
fn an_api_key_is_preferred_to_the_auth_token() {
    let key = [("TWILIO_API_KEY", "SK1"), ("TWILIO_API_SECRET", "planted-api-secret")];
    for (env, secret) in [
        ([&ACCOUNT[..], &key].concat(), "planted-api-secret"),
        ([&ACCOUNT[..1], &key].concat(), "planted-api-secret"),
        (ACCOUNT.to_vec(), TOKEN),
    ] {
        let config = report(&[], &env).outcome.unwrap();
        assert_eq!(secrets(&accounts(&config)[0]), [secret]);
    }
}

/// A secret in a file of its own, as a mount has it.
fn secret_file(text: &str) -> File {
    File::new(&format!("{text}\n"))
}

/// What a table of the file with these keys, or these variables, signs in as, and with what.
fn signs_in(env: &[(&str, &str)], keys: &[(&str, &str)]) -> Result<(String, Vec<String>), Vec<String>> {
    let keys: Vec<_> = keys.iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
    let table = if keys.is_empty() { String::new() } else { format!("[[accounts]]\n{}", keys.concat()) };
    let config = report(&["--config", File::new(&table).path()], env).outcome;
    let config = config.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let account = &accounts(&config)[0];
    Ok((account.credentials.user().value().to_string(), secrets(account)))
}

#[test]
fn every_secret_may_stand_in_a_file_and_the_sid_that_goes_with_it() {
    let [first, second] = [secret_file("planted-one"), secret_file("planted-two")];
    let (one, two) = (first.path(), second.path());
    let [key, client] = [secret_file("SK7"), secret_file("OQ7")];
    for (keys, user, expected) in [
        (vec![("auth_token_file", one)], SID, vec!["planted-one"]),
        (
            vec![("auth_token_file", one), ("secondary_auth_token_file", two)],
            SID,
            vec!["planted-one", "planted-two"],
        ),
        (vec![("auth_token", "t"), ("secondary_auth_token_file", two)], SID, vec!["t", "planted-two"]),
        (vec![("auth_token_file", one), ("secondary_auth_token", "t")], SID, vec!["planted-one", "t"]),
        (vec![("api_key", "SK1"), ("api_secret_file", two)], "SK1", vec!["planted-two"]),
        (vec![("client_id", "OQ1"), ("client_secret_file", one)], "OQ1", vec!["planted-one"]),
        (vec![("api_key_file", key.path()), ("api_secret_file", two)], "SK7", vec!["planted-two"]),
        (vec![("client_id_file", client.path()), ("client_secret", "c")], "OQ7", vec!["c"]),
    ] {
        let keys = [&[("account_sid", SID)], &keys[..]].concat();
        let expected = Ok((user.to_owned(), expected.iter().map(|text| (*text).to_owned()).collect()));
        assert_eq!(signs_in(&[], &keys), expected, "{keys:?}");
        let names: Vec<_> = keys.iter().map(|(key, _)| format!("TWILIO_{}", key.to_uppercase())).collect();
        let env: Vec<_> =
            names.iter().map(String::as_str).zip(keys.iter().map(|(_, value)| *value)).collect();
        assert_eq!(signs_in(&env, &[]), expected, "{env:?}");
    }
}

/// What signs in is what can do the least; the auth token beside it is for the signatures of webhooks.
#[test]
fn an_api_key_or_a_client_is_preferred_to_the_auth_token_and_both_are_refused() {
    let token = [("account_sid", SID), ("auth_token", "t")];
    let key = [("api_key", "SK1"), ("api_secret", "s")];
    let client = [("client_id", "OQ1"), ("client_secret", "c")];
    let user = |keys: &[(&str, &str)]| signs_in(&[], keys).unwrap().0;
    assert_eq!(user(&token), SID);
    assert_eq!(user(&[&token[..], &key].concat()), "SK1");
    assert_eq!(user(&[&token[..], &client].concat()), "OQ1");
    let both = signs_in(&[], &[&token[..], &key, &client].concat()).unwrap_err();
    assert_problems(&both, &[("accounts[0].api_key", "accounts[0].client_id")]);
}

#[test]
fn a_secret_and_its_file_beside_each_other_are_refused() {
    let file = secret_file("planted-in-the-file");
    let sid = ("account_sid", SID);
    for (key, others) in [
        ("auth_token", vec![]),
        ("secondary_auth_token", vec![("auth_token", "t")]),
        ("api_secret", vec![("api_key", "SK1")]),
        ("client_secret", vec![("client_id", "OQ1")]),
    ] {
        let file_key = format!("{key}_file");
        let keys = [&[sid, (key, "planted"), (&file_key, file.path())], &others[..]].concat();
        let problems = signs_in(&[], &keys).unwrap_err();
        assert_problems(&problems, &[(&format!("accounts[0].{key}:"), &file_key)]);
        assert!(!problems[0].contains("planted"), "{problems:?}");
    }
    let key = ("GATEWAY_PAGE_TOKEN_KEY", "0123456789abcdef");
    let problems = problems_beside_an_account(&[], &[key, ("GATEWAY_PAGE_TOKEN_KEY_FILE", file.path())]);
    assert_problems(&problems, &[("GATEWAY_PAGE_TOKEN_KEY", "GATEWAY_PAGE_TOKEN_KEY_FILE")]);
}

#[test]
fn a_file_without_a_secret_is_refused_by_its_key_beside_everything_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = folder.path().join("missing");
    let variables = [
        ("TWILIO_AUTH_TOKEN_FILE", missing.to_str().unwrap().to_owned()),
        ("TWILIO_SECONDARY_AUTH_TOKEN_FILE", path("empty", b"\n")),
        ("TWILIO_API_SECRET_FILE", path("lines", b"planted\nplanted")),
        ("TWILIO_CLIENT_SECRET_FILE", path("bytes", b"planted\xff")),
        ("GATEWAY_PAGE_TOKEN_KEY_FILE", path("short", b"planted")),
        ("GATEWAY_CACHE_TTL", "x".to_owned()),
    ];
    let mut env = vec![("TWILIO_ACCOUNT_SID", SID), ("TWILIO_API_KEY", "SK1"), ("TWILIO_CLIENT_ID", "OQ1")];
    env.extend(variables.iter().map(|(name, value)| (*name, value.as_str())));
    let problems = problems(&[], &env);
    assert_problems(
        &problems,
        &[
            ("TWILIO_AUTH_TOKEN_FILE", "cannot be read"),
            ("TWILIO_SECONDARY_AUTH_TOKEN_FILE", "at least 1 character"),
            ("TWILIO_API_SECRET_FILE", "one line"),
            ("TWILIO_CLIENT_SECRET_FILE", "UTF-8"),
            ("GATEWAY_PAGE_TOKEN_KEY_FILE", "at least 16"),
            ("GATEWAY_CACHE_TTL", "duration"),
        ],
    );
    assert!(problems.iter().all(|problem| !problem.contains("planted")), "{problems:?}");
}

#[test]
fn half_of_what_signs_in_tells_the_other_half() {
    let sid = ("account_sid", SID);
    for (keys, missing) in [
        (vec![("client_id", "OQ1")], "client_secret"),
        (vec![("client_secret", "planted")], "client_id"),
        (vec![("secondary_auth_token", "planted")], "auth_token"),
        (vec![("auth_token", "t"), ("api_key", "SK1")], "api_secret"),
    ] {
        let problems = signs_in(&[], &[&[sid], &keys[..]].concat()).unwrap_err();
        assert_problems(&problems, &[(&format!("accounts[0].{missing}:"), "is required")]);
    }
    for (key, secret, wrong) in [
        ("api_key", "api_secret", "planted"),
        ("api_key", "api_secret", "SK1:planted"),
        ("client_id", "client_secret", "SK1"),
    ] {
        let problems = signs_in(&[], &[sid, (key, wrong), (secret, "planted")]).unwrap_err();
        assert_problems(&problems, &[(&format!("accounts[0].{key}:"), "must be the SID")]);
        assert!(!problems[0].contains("planted"), "{problems:?}");
    }
}

#[test]
fn an_accounts_own_edge_and_region_choose_its_host() {
    let hosts = |keys: &str, env: &[(&str, &str)]| {
        let file = File::new(&format!("[[accounts]]\naccount_sid = {SID:?}\nauth_token = \"t\"\n{keys}"));
        let config = report(&["--config", file.path()], env).outcome.unwrap();
        let account = &accounts(&config)[0];
        [&account.v1_url, &account.v2_url].map(|url| url.host_str().unwrap().to_owned())
    };
    let (edge, region) = ("edge = \"dublin\"\n", "region = \"ie1\"\n");
    let (v1, v2) = ("v1_url = \"https://v1.example\"\n", "url = \"https://both.example\"\n");
    let common = [("GATEWAY_UPSTREAM_URL", "https://common.example"), ("TWILIO_EDGE", "sydney")];
    let both = |host: &str| [host.to_owned(), host.to_owned()];
    assert_eq!(hosts("", &common), both("common.example"));
    assert_eq!(hosts("", &common[1..]), both("conversations.sydney.us1.twilio.com"));
    assert_eq!(hosts(edge, &common), both("conversations.dublin.us1.twilio.com"));
    assert_eq!(hosts(region, &common[1..]), both("conversations.ie1.twilio.com"));
    assert_eq!(hosts(&[edge, region].concat(), &[]), both("conversations.dublin.ie1.twilio.com"));
    let own_v1 = ["v1.example", "conversations.ie1.twilio.com"].map(ToOwned::to_owned);
    assert_eq!(hosts(&[v1, region].concat(), &common), own_v1);
    assert_eq!(hosts(&[v1, v2].concat(), &common), ["v1.example", "both.example"].map(ToOwned::to_owned));
}

#[test]
fn a_wrong_url_or_host_of_an_account_is_told_once_by_its_own_key() {
    let sid_and_token = [("account_sid", SID), ("auth_token", "t")];
    for (keys, name, legal) in [
        (vec![("url", "https://a.example"), ("edge", "dublin")], "edge", "accounts[0].url"),
        (vec![("url", "https://a.example"), ("region", "ie1")], "region", "accounts[0].url"),
        (vec![("edge", "evil.example/")], "edge", "must"),
        (vec![("region", "a@evil")], "region", "must"),
        (vec![("url", "twilio")], "url", "URL"),
        (vec![("v2_url", "ftp://a")], "v2_url", "https://"),
        (vec![("token_url", "http://oauth.example")], "token_url", "--allow-insecure-upstream"),
    ] {
        let problems = signs_in(&[], &[&sid_and_token[..], &keys].concat()).unwrap_err();
        assert_problems(&problems, &[(&format!("accounts[0].{name}:"), legal)]);
    }
}

#[test]
fn an_access_token_comes_from_the_accounts_token_url_else_from_that_of_all() {
    let file = File::new(&format!(
        "[[accounts]]\naccount_sid = {SID:?}\nclient_id = \"OQ1\"\nclient_secret = \"c\"\n\
         [[accounts]]\naccount_sid = {OTHER_SID:?}\nclient_id = \"OQ2\"\nclient_secret = \"c\"\n\
         token_url = \"http://127.0.0.1:1/token\"\n"
    ));
    let urls = |env: &[(&str, &str)]| {
        let config = report(&["--config", file.path()], env).outcome.unwrap();
        let url = |account: &Account| match &account.credentials {
            Credentials::OAuth(client) => client.token_url.to_string(),
            Credentials::Basic { .. } => panic!("it is a client: {account:?}"),
        };
        accounts(&config).iter().map(url).collect::<Vec<_>>()
    };
    assert_eq!(urls(&[]), ["https://oauth.twilio.com/v2/token", "http://127.0.0.1:1/token"]);
    let common = [("GATEWAY_UPSTREAM_TOKEN_URL", "https://oauth.example/t")];
    assert_eq!(urls(&common), ["https://oauth.example/t", "http://127.0.0.1:1/token"]);
}

#[test]
fn edge_and_region_choose_the_host() {
    let (edge, region) = (("TWILIO_EDGE", "dublin"), ("TWILIO_REGION", "ie1"));
    for (env, host) in [
        (vec![], "conversations.twilio.com"),
        (vec![edge], "conversations.dublin.us1.twilio.com"),
        (vec![region], "conversations.ie1.twilio.com"),
        (vec![edge, region], "conversations.dublin.ie1.twilio.com"),
        (vec![edge, region, ("GATEWAY_UPSTREAM_URL", "https://proxy.example")], "proxy.example"),
    ] {
        let config = config(&[], &env);
        let [account] = accounts(&config) else { panic!("there is one account") };
        assert_eq!((account.v1_url.host_str(), account.v2_url.host_str()), (Some(host), Some(host)));
    }
}

#[test]
fn an_edge_that_would_change_the_host_is_refused() {
    for value in ["evil.example/", "evil.example#", "a@evil.example", "evil.example?"] {
        for name in ["TWILIO_EDGE", "TWILIO_REGION"] {
            let problems = problems_beside_an_account(&[], &[(name, value)]);
            assert_problems(&problems, &[(name, "must")]);
        }
    }
}

#[test]
fn v1_and_v2_may_be_apart() {
    let config = config(
        &["--upstream-url=https://both.example/base"],
        &[("GATEWAY_UPSTREAM_V2_URL", "https://v2.example")],
    );
    let [account] = accounts(&config) else { panic!("there is one account") };
    assert_eq!(account.v1_url.as_str(), "https://both.example/base");
    assert_eq!(account.v2_url.as_str(), "https://v2.example/");
}

#[test]
fn plain_http_is_for_loopback_unless_it_is_allowed() {
    for url in
        ["http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080", "https://twilio.example"]
    {
        config(&["--upstream-url", url], &[]);
    }
    for url in
        ["http://twilio.example", "http://10.0.0.1", "http://localhost.example", "http://127.0.0.1.example"]
    {
        let refused = problems_beside_an_account(&["--upstream-url", url], &[]);
        assert_problems(&refused, &[("--upstream-url", "--allow-insecure-upstream")]);
        config(&["--upstream-url", url, "--allow-insecure-upstream"], &[]);
        config(&["--upstream-url", url], &[("GATEWAY_UPSTREAM_ALLOW_INSECURE", "true")]);
        let file =
            File::new(&format!("[[accounts]]\naccount_sid = \"{SID}\"\nauth_token = \"t\"\nurl = \"{url}\""));
        let refused = problems(&["--config", file.path()], &[]);
        assert!(refused.iter().all(|problem| problem.contains("accounts[0].")), "{refused:?}");
    }
}

#[test]
fn an_upstream_that_is_no_bare_url_is_refused() {
    for url in [
        "twilio.example",
        "ftp://twilio.example",
        "https://",
        "https://user@twilio.example",
        "https://twilio.example/?a=b",
        "https://twilio.example/#a",
    ] {
        let problems = problems_beside_an_account(&["--upstream-url", url], &[]);
        assert_problems(&problems, &[("--upstream-url", "must")]);
    }
}

fn two_accounts(rest: &str) -> File {
    File::new(&format!(
        "{rest}\n[[accounts]]\naccount_sid = \"{SID}\"\nauth_token = \"one\"\n\
         [[accounts]]\naccount_sid = \"{OTHER_SID}\"\napi_key = \"SK2\"\napi_secret = \"two\"\n\
         v2_url = \"https://v2.example\"\n"
    ))
}

fn sids(config: &Config) -> Vec<&str> {
    accounts(config).iter().map(|account| account.id.as_str()).collect()
}

#[test]
fn the_first_account_is_the_default_unless_another_is_named() {
    let file = two_accounts("");
    let first = report(&["--config", file.path()], &[]).outcome.unwrap();
    assert_eq!(sids(&first), [SID, OTHER_SID]);
    assert_eq!(accounts(&first)[1].v1_url.as_str(), "https://conversations.twilio.com/");
    assert_eq!(accounts(&first)[1].v2_url.as_str(), "https://v2.example/");
    assert_eq!(secrets(&accounts(&first)[1]), ["two"]);

    let file = two_accounts(&format!("default_account = \"{OTHER_SID}\""));
    let named = report(&["--config", file.path()], &[]).outcome.unwrap();
    assert_eq!(sids(&named), [OTHER_SID, SID]);
}

#[test]
fn the_environments_account_comes_before_the_files() {
    let third = "AC33333333333333333333333333333333";
    let file = two_accounts("");
    let env = [("TWILIO_ACCOUNT_SID", third), ("TWILIO_AUTH_TOKEN", TOKEN)];
    let config = report(&["--config", file.path()], &env).outcome.unwrap();
    assert_eq!(sids(&config), [third, SID, OTHER_SID]);
}

#[test]
fn a_wrong_list_of_accounts_is_refused() {
    let stranger = two_accounts("default_account = \"AC99999999999999999999999999999999\"");
    assert_problems(
        &problems(&["--config", stranger.path()], &[]),
        &[("default_account", "one of the accounts")],
    );

    // The environment's account stands in the file, too.
    let twice = two_accounts("");
    let problems_of_twice = problems_beside_an_account(&["--config", twice.path()], &[]);
    assert_problems(&problems_of_twice, &[("accounts", "twice")]);
    assert!(problems_of_twice[0].contains(SID), "{problems_of_twice:?}");

    let file = File::new(
        "[[accounts]]\naccount_sid = \"AC1\"\ntoken = \"planted\"\nauth_token = 7\napi_key = \"SK1\"\n",
    );
    let problems = problems(&["--config", file.path()], &[]);
    assert_problems(
        &problems,
        &[
            ("accounts[0].account_sid", "32 hex digits"),
            ("accounts[0].token", "auth_token"),
            ("accounts[0].auth_token", "string"),
            ("accounts[0].api_secret", "required"),
        ],
    );
}

#[test]
fn the_sandbox_needs_no_account_and_is_never_chosen_by_itself() {
    assert!(matches!(report(&["--sandbox"], &[]).outcome.unwrap().upstream, Upstream::Sandbox(_)));
    assert!(matches!(config(&[], &[]).upstream, Upstream::Twilio(_)));
}

#[test]
fn the_sandbox_is_the_upstream_and_no_other_is() {
    let by_flag = problems(&["--sandbox", "--upstream-url", "http://127.0.0.1:1"], &[]);
    assert_problems(&by_flag, &[("--upstream-url", "--sandbox")]);
    let by_variable = problems(&["--sandbox"], &[("GATEWAY_UPSTREAM_V2_URL", "http://127.0.0.1:1")]);
    assert_problems(&by_variable, &[("GATEWAY_UPSTREAM_V2_URL", "--sandbox")]);
}

#[test]
fn the_sandboxs_faults_are_read_and_refused_by_name() {
    let fault =
        ["--sandbox", "--sandbox-fault", "status=503,times=2", "--sandbox-fault", "latency=200ms,api=v2"];
    let Upstream::Sandbox(settings) = report(&fault, &[]).outcome.unwrap().upstream else {
        panic!("the upstream is the sandbox");
    };
    assert_eq!((settings.faults[0].status, settings.faults[0].times), (Some(503), Some(2)));
    assert_eq!(settings.faults[1].latency_ms, 200);

    let wrong =
        ["--sandbox", "--sandbox-fault=status", "--sandbox-fault=colour=red", "--sandbox-fault=times=1"];
    assert_problems(
        &problems(&wrong, &[]),
        &[
            ("--sandbox-fault", "key=value"),
            ("--sandbox-fault", "colour"),
            ("--sandbox-fault", "does nothing"),
        ],
    );
    let alone = problems_beside_an_account(&["--sandbox-fault=status=503"], &[]);
    assert_problems(&alone, &[("--sandbox-fault", "without --sandbox")]);
}

#[test]
fn the_sandbox_alone_is_told_where_to_listen_and_what_to_break() {
    let alone = |args: &[&str]| match parsed(args, &[]) {
        Ok(Command::Sandbox(settings)) => settings,
        other => panic!("these are arguments of sandbox: {other:?}"),
    };
    let settings = alone(&["sandbox", "--listen", "127.0.0.1:0", "--fault", "status=503"]).unwrap();
    assert_eq!((settings.listen.to_string().as_str(), settings.faults.len()), ("127.0.0.1:0", 1));
    let wrong = alone(&["sandbox", "--listen", "8080", "--fault", "colour=red"]).unwrap_err();
    let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    assert_problems(&wrong, &[("--listen", "address:port"), ("--fault", "colour")]);
}

#[test]
fn no_secret_is_shown_anywhere() {
    let file = File::new(&format!(
        "[[accounts]]\naccount_sid = \"{OTHER_SID}\"\napi_key = \"SK2\"\napi_secret = \"planted-file-secret\"\n\
         auth_token = \"planted-file-token\"\n"
    ));
    let secrets = [
        ("TWILIO_API_KEY", "SK1"),
        ("TWILIO_API_SECRET", "planted-api-secret"),
        ("GATEWAY_PAGE_TOKEN_KEY", "planted-page-token-key"),
    ];
    let key = secret_file("planted-page-token-key");
    let in_files = [
        ("TWILIO_ACCOUNT_SID", SID),
        ("TWILIO_CLIENT_ID", "OQ1"),
        ("TWILIO_CLIENT_SECRET_FILE", key.path()),
        ("GATEWAY_PAGE_TOKEN_KEY_FILE", key.path()),
    ];
    let by_files = report(&["--config", file.path()], &in_files);
    assert!(by_files.outcome.is_ok(), "{by_files:?}");
    let good = report(&["--config", file.path()], &[&ACCOUNT[..], &secrets].concat());
    assert!(good.outcome.is_ok(), "{good:?}");
    // The same where something is wrong, right beside them.
    let bad_file = File::new(
        "[[accounts]]\nauth_token = \"planted-file-token\"\napi_secret = \"planted-file-secret\"\n",
    );
    let wrong = [
        ("TWILIO_AUTH_TOKEN", TOKEN),
        ("TWILIO_API_SECRET", "planted-api-secret"),
        ("GATEWAY_PAGE_TOKEN_KEY", "planted"),
        ("GATEWAY_UPSTREAM_URL", "https://user:planted-password@twilio.example/?key=planted-query"),
        ("GATEWAY_UPSTREAM_V1_URL", "https://planted-user@twilio.example"),
    ];
    let bad = report(&["--config", bad_file.path()], &wrong);
    assert!(bad.outcome.is_err());
    for report in [by_files, good, bad] {
        let shown = format!("{report:?}\n{:?}\n{}", report.outcome, report.lines.join("\n"));
        assert!(!shown.contains("planted"), "{shown}");
    }
}

#[test]
fn the_report_has_each_setting_with_its_value_and_where_that_stands() {
    let file = File::new("drain.timeout = \"7s\"\n");
    let report = report(
        &["--config", file.path(), "--grpc-listen=127.0.0.1:0"],
        &[
            ACCOUNT[0],
            ACCOUNT[1],
            ("GATEWAY_CACHE_TTL", "9s"),
            ("GATEWAY_PAGE_TOKEN_KEY", "planted-page-token-key"),
        ],
    );
    for setting in SETTINGS {
        let begin = format!("{} = ", setting.key);
        assert_eq!(report.lines.iter().filter(|line| line.starts_with(&begin)).count(), 1, "{}", setting.key);
    }
    for line in [
        "drain.timeout = 7s  [drain.timeout in the file]",
        "grpc.listen = 127.0.0.1:0  [--grpc-listen]",
        "cache.ttl = 9s  [GATEWAY_CACHE_TTL]",
        "page_token_key = ***  [GATEWAY_PAGE_TOKEN_KEY]",
        "ready_file = (not set)  [default]",
        "log.filter = info  [default]",
    ] {
        assert!(report.lines.iter().any(|reported| reported == line), "no {line:?} in {:#?}", report.lines);
    }
}

/// Whoever checks a configuration wants to see which accounts the gateway would use, where they live, and what they sign
/// in with.
#[test]
fn the_report_has_each_account_and_where_its_secrets_stand() {
    let file = two_accounts("");
    let secret = secret_file("planted");
    let third = "AC33333333333333333333333333333333";
    let env = [
        ("TWILIO_EDGE", "dublin"),
        ("TWILIO_ACCOUNT_SID", third),
        ("TWILIO_AUTH_TOKEN", TOKEN),
        ("TWILIO_SECONDARY_AUTH_TOKEN_FILE", secret.path()),
    ];
    let lines = report(&["--config", file.path()], &env).lines;
    let at = "https://conversations.dublin.us1.twilio.com/";
    for line in [
        format!(
            "account {third} (default) = v1 at {at}, v2 at {at}, signs in as {third} with \
             *** [TWILIO_AUTH_TOKEN] or *** [TWILIO_SECONDARY_AUTH_TOKEN_FILE: {}]",
            secret.path()
        ),
        format!(
            "account {SID} = v1 at {at}, v2 at {at}, signs in as {SID} with *** [accounts[0].auth_token]"
        ),
        format!(
            "account {OTHER_SID} = v1 at {at}, v2 at https://v2.example/, signs in as SK2 with \
             *** [accounts[1].api_secret]"
        ),
    ] {
        assert!(lines.contains(&line), "no {line:?} in {lines:#?}");
    }
    let id = secret_file("OQ1");
    let client = [ACCOUNT[0], ("TWILIO_CLIENT_ID_FILE", id.path()), ("TWILIO_CLIENT_SECRET", TOKEN)];
    let lines = report(&[], &client).lines;
    let of_tokens = format!(
        "OQ1 [TWILIO_CLIENT_ID_FILE: {}] with *** [TWILIO_CLIENT_SECRET], for tokens of https://oauth.twilio.com/v2/token",
        id.path()
    );
    assert!(lines.iter().any(|line| line.ends_with(&of_tokens)), "no {of_tokens} in {lines:#?}");
}

#[test]
fn check_config_reads_what_serve_reads() {
    let env = [&ACCOUNT[..], &[("GATEWAY_CACHE_TTL", "x")]].concat();
    let Ok(Command::CheckConfig(checked)) = parsed(&["check-config", "--drain-delay=1s"], &env) else {
        panic!("these are arguments of check-config");
    };
    let served = report(&["--drain-delay=1s"], &env);
    assert_eq!(checked.lines, served.lines);
    assert_eq!(checked.outcome.unwrap_err(), served.outcome.unwrap_err());
}

#[test]
fn keys_variables_and_flags_are_each_the_settings_own() {
    let mut names = BTreeSet::new();
    for Setting { key, flag, env, default, help, .. } in SETTINGS {
        assert!(names.insert(format!("key {key}")), "{key}");
        assert!(names.insert(format!("variable {env}")), "{env}");
        if let Some(flag) = flag {
            assert!(names.insert(format!("flag {flag}")), "{flag}");
        }
        // The variable is the key, spelled as variables are; so one can be told from the other.
        assert_eq!(*env, format!("GATEWAY_{}", key.replace('.', "_").to_uppercase()));
        assert!(!help.is_empty() && !help.ends_with('.'), "{key}");
        assert!(markdown().contains(&format!("| `{key}` | `{env}` |")) && !default.contains('|'), "{key}");
    }
    for flag in ["config", "sandbox", "sandbox-fault", "help", "version", "listen"] {
        assert!(!names.contains(&format!("flag {flag}")), "{flag} is another thing's flag");
    }
}

#[test]
fn every_setting_can_be_set_by_variable_and_by_key() {
    for setting in SETTINGS {
        // A value that no setting but a path takes: whoever reads it complains, and so shows that it was read.
        let wrong = "\u{1}";
        let is_read_by_nobody = setting.key == "kinesis.poll_interval" && !cfg!(feature = "kinesis");
        if setting.key == "ready_file" || is_read_by_nobody {
            continue;
        }
        let by_variable = problems_beside_an_account(&[], &[(setting.env, wrong)]);
        assert!(by_variable.iter().all(|problem| problem.starts_with(setting.env)), "{by_variable:?}");
        let file = File::new(&format!("{} = \"\\u0001\"", setting.key));
        let by_key = problems_beside_an_account(&["--config", file.path()], &[]);
        assert!(by_key.iter().all(|problem| problem.starts_with(setting.key)), "{by_key:?}");
    }
}

#[cfg(feature = "kinesis")]
#[test]
fn a_stream_is_checked_and_its_poll_interval_keeps_to_what_aws_allows() {
    let kinesis = config(&["--kinesis-stream", "events"], &[]).kinesis.expect("it is configured");
    assert_eq!(
        (kinesis.stream.to_string(), kinesis.poll_interval),
        ("events".into(), Duration::from_secs(1))
    );
    assert!(config(&[], &[]).kinesis.is_none());
    for interval in ["200ms", "1m"] {
        config(&["--kinesis-stream=events"], &[("GATEWAY_KINESIS_POLL_INTERVAL", interval)]);
    }
    for (stream, interval) in [("a stream", "199ms"), ("arn:aws:sqs:us-east-1:123456789012:stream/x", "61s")]
    {
        let env = [("GATEWAY_KINESIS_STREAM", stream), ("GATEWAY_KINESIS_POLL_INTERVAL", interval)];
        let problems = problems_beside_an_account(&[], &env);
        assert_problems(
            &problems,
            &[("GATEWAY_KINESIS_POLL_INTERVAL", "200ms to 1m"), ("GATEWAY_KINESIS_STREAM", "its ARN")],
        );
    }
}

#[cfg(not(feature = "kinesis"))]
#[test]
fn a_stream_that_this_build_cannot_read_is_a_problem() {
    let problems = problems_beside_an_account(&["--kinesis-stream=events"], &[]);
    assert_problems(&problems, &[("--kinesis-stream", "feature kinesis")]);
}

// === Events

const EVENTS_URL: &str = "https://gateway.example.com/events";

#[test]
fn an_events_listener_needs_the_url_that_twilio_calls_and_an_auth_token() {
    let listen = "--events-listen=127.0.0.1:0";
    assert!(matches!(config(&[], &[]).events, Events::Off));
    let Events::Webhook { public_url, max_body_bytes, .. } =
        config(&[listen, "--events-public-url", EVENTS_URL], &[]).events
    else {
        panic!("the listener is on");
    };
    assert_eq!((public_url.unwrap().to_string().as_str(), max_body_bytes), (EVENTS_URL, 1 << 20));

    let problems = problems_beside_an_account(&[listen], &[]);
    assert_problems(&problems, &[("--events-listen", "events.public_url")]);
    let problems = problems_beside_an_account(&["--events-public-url", EVENTS_URL], &[]);
    assert_problems(&problems, &[("--events-public-url", "events.listen")]);
    let key = [("TWILIO_ACCOUNT_SID", SID), ("TWILIO_API_KEY", "SK1"), ("TWILIO_API_SECRET", "planted")];
    let problems = self::problems(&[listen, "--events-public-url", EVENTS_URL], &key);
    assert_problems(&problems, &[("--events-listen", "auth_token")]);
}

#[test]
fn a_url_that_twilio_could_not_call_is_refused() {
    for (url, legal) in [
        ("http://gateway.example.com/events", "https://"),
        ("https://gateway.example.com/events?a=b", "query"),
        ("https://planted:planted@gateway.example.com/events", "user"),
        ("gateway.example.com", "https://"),
    ] {
        let problems = problems_beside_an_account(
            &["--events-listen=127.0.0.1:0"],
            &[("GATEWAY_EVENTS_PUBLIC_URL", url), ("GATEWAY_EVENTS_MAX_BODY_BYTES", "1")],
        );
        assert_problems(
            &problems,
            &[("GATEWAY_EVENTS_PUBLIC_URL", legal), ("GATEWAY_EVENTS_MAX_BODY_BYTES", "1024")],
        );
        assert!(!problems.concat().contains("planted"));
    }
}

#[test]
fn with_an_api_key_the_auth_tokens_still_check_events() {
    let env = [&ACCOUNT[..], &[("TWILIO_API_KEY", "SK1"), ("TWILIO_API_SECRET", "secret")]].concat();
    let config = report(&[], &env).outcome.unwrap();
    let [account] = accounts(&config) else { panic!("there is one account") };
    let values = |tokens: &mut dyn Iterator<Item = &Secret>| {
        tokens.map(|token| token.value().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(secrets(account), ["secret"]);
    assert_eq!(values(&mut account.auth_tokens.iter()), [TOKEN]);
    assert_eq!(values(&mut account.spare_tokens()), [TOKEN]);
    let config = self::config(&[], &[]);
    let [account] = accounts(&config) else { panic!("there is one account") };
    assert_eq!(values(&mut account.auth_tokens.iter()), [TOKEN]);
    assert!(values(&mut account.spare_tokens()).is_empty(), "who signs in with it reads it again");
}

#[test]
fn the_sandbox_is_listened_to_without_being_asked() {
    let events = |flags: &[&str]| report(&[&["--sandbox"], flags].concat(), &[]).outcome.unwrap().events;
    let Events::Webhook { listen, public_url, .. } = events(&[]) else { panic!("the listener is on") };
    assert_eq!((listen.to_string().as_str(), public_url), ("127.0.0.1:0", None));
    let Events::Webhook { listen, public_url, .. } = events(&["--events-listen=[::1]:0"]) else {
        panic!("the listener is on");
    };
    assert_eq!((listen.to_string().as_str(), public_url), ("[::1]:0", None));
    let Events::Webhook { public_url, .. } = events(&["--events-public-url", EVENTS_URL]) else {
        panic!("the listener is on");
    };
    assert_eq!(public_url.unwrap().to_string(), EVENTS_URL);
}

// === TLS, and who may reach the listener

/// A certificate and its key, in PEM.
fn certificate() -> (File, File) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
    (File::new(&cert.pem()), File::new(&signing_key.serialize_pem()))
}

#[test]
fn a_certificate_its_key_and_the_clients_authorities_are_read() {
    let (cert, key) = certificate();
    let pair = [("GATEWAY_TLS_CERT_FILE", cert.path()), ("GATEWAY_TLS_KEY_FILE", key.path())];
    let tls = |more: &[(&str, &str)]| config(&[], &[&pair, more].concat()).tls.expect("there is TLS");
    assert!(config(&[], &[]).tls.is_none());
    assert!(!tls(&[]).asks_for_certificates());
    assert!(tls(&[("GATEWAY_TLS_CLIENT_CA_FILE", cert.path())]).asks_for_certificates());
    let optional = [("GATEWAY_TLS_CLIENT_CA_FILE", cert.path()), ("GATEWAY_TLS_CLIENT_AUTH", "optional")];
    assert!(format!("{:?}", tls(&optional)).contains("Optional"));

    let of_events = [
        ("GATEWAY_EVENTS_LISTEN", "127.0.0.1:0"),
        ("GATEWAY_EVENTS_PUBLIC_URL", EVENTS_URL),
        ("GATEWAY_EVENTS_TLS_CERT_FILE", cert.path()),
        ("GATEWAY_EVENTS_TLS_KEY_FILE", key.path()),
    ];
    assert!(matches!(config(&[], &of_events).events, Events::Webhook { tls: Some(_), .. }));
}

#[test]
fn files_of_tls_that_are_of_no_use_are_named() {
    let ((cert, key), (_, other_key)) = (certificate(), certificate());
    let (text, broken) = (
        File::new("planted"),
        File::new("-----BEGIN CERTIFICATE-----\nplanted\n-----END CERTIFICATE-----\n"),
    );
    let no_certificate =
        rcgen::KeyPair::generate().unwrap().serialize_pem().replace("PRIVATE KEY", "CERTIFICATE");
    let no_certificate = File::new(&no_certificate);
    let (cert_file, key_file, ca_file) =
        ("GATEWAY_TLS_CERT_FILE", "GATEWAY_TLS_KEY_FILE", "GATEWAY_TLS_CLIENT_CA_FILE");
    for (at, path, told) in [
        (cert_file, "/nowhere", "cannot be read"),
        (cert_file, "/dev/null", "regular file"),
        (cert_file, text.path(), "no certificate"),
        (cert_file, key.path(), "no certificate"),
        (cert_file, broken.path(), "cannot be read"),
        (cert_file, no_certificate.path(), "cannot be read"),
        (key_file, "/nowhere", "cannot be read"),
        (key_file, cert.path(), "no private key"),
        (key_file, other_key.path(), "not that of the certificate"),
        (ca_file, text.path(), "no certificate"),
        (ca_file, no_certificate.path(), "cannot be read"),
    ] {
        let mut env = HashMap::from([(cert_file, cert.path()), (key_file, key.path())]);
        env.insert(at, path);
        let problems = problems_beside_an_account(&[], &env.into_iter().collect::<Vec<_>>());
        assert_problems(&problems, &[(at, told)]);
        assert!(!problems.concat().contains("planted"));
    }
}

#[test]
fn half_of_what_tls_takes_tells_the_other_half() {
    let (cert, key) = certificate();
    for (env, at, told) in [
        (vec![("GATEWAY_TLS_CERT_FILE", cert.path())], "GATEWAY_TLS_CERT_FILE", "tls.key_file"),
        (vec![("GATEWAY_TLS_KEY_FILE", key.path())], "GATEWAY_TLS_KEY_FILE", "tls.cert_file"),
        (vec![("GATEWAY_TLS_CLIENT_CA_FILE", cert.path())], "GATEWAY_TLS_CLIENT_CA_FILE", "tls.cert_file"),
        (vec![("GATEWAY_TLS_CLIENT_AUTH", "optional")], "GATEWAY_TLS_CLIENT_AUTH", "tls.client_ca_file"),
        (
            vec![("GATEWAY_EVENTS_TLS_KEY_FILE", key.path())],
            "GATEWAY_EVENTS_TLS_KEY_FILE",
            "events.tls.cert_file",
        ),
        (
            vec![("GATEWAY_EVENTS_TLS_CERT_FILE", cert.path()), ("GATEWAY_EVENTS_TLS_KEY_FILE", key.path())],
            "GATEWAY_EVENTS_TLS_CERT_FILE",
            "events.listen",
        ),
    ] {
        assert_problems(&problems_beside_an_account(&[], &env), &[(at, told)]);
    }
    assert_problems(
        &problems_beside_an_account(&[], &[("GATEWAY_TLS_CLIENT_AUTH", "perhaps")]),
        &[
            ("GATEWAY_TLS_CLIENT_AUTH", "required or optional"),
            ("GATEWAY_TLS_CLIENT_AUTH", "tls.client_ca_file"),
        ],
    );
}

#[test]
fn another_address_than_loopback_takes_a_choice_of_who_may_call() {
    let (cert, key) = certificate();
    let tls = [("GATEWAY_TLS_CERT_FILE", cert.path()), ("GATEWAY_TLS_KEY_FILE", key.path())];
    let mutual = [&tls[..], &[("GATEWAY_TLS_CLIENT_CA_FILE", cert.path())]].concat();
    let elsewhere = [("GATEWAY_TLS_ALLOW_PLAINTEXT", "true")];
    let (nothing, no_choice, readable) =
        (&[][..], Some("everybody who can reach it"), Some("tls.allow_plaintext"));
    let (tokens, keys) = (File::new(&format!("ci = \"sha256:{}\"", "0f".repeat(32))), File::new(KEYS));
    let tokens = [("GATEWAY_AUTH_TOKENS_FILE", tokens.path())];
    let jwt = [
        ("GATEWAY_AUTH_JWT_ISSUER", "https://issuer.example"),
        ("GATEWAY_AUTH_JWT_AUDIENCE", "gateway"),
        ("GATEWAY_AUTH_JWT_JWKS_FILE", keys.path()),
    ];
    for (modes, more, refused) in [
        ("", nothing, no_choice),
        ("", &tls, no_choice),
        ("", &mutual, no_choice),
        ("mesh", nothing, None),
        ("open", nothing, None),
        ("jwt", nothing, readable),
        ("tokens,jwt", nothing, readable),
        ("jwt", &tls, None),
        ("jwt, tokens", &elsewhere, None),
        ("jwt,mesh", nothing, None),
        ("mtls", &mutual, None),
    ] {
        let own = |mode: &str, settings| if modes.contains(mode) { settings } else { nothing };
        let env = [&[("GATEWAY_AUTH_MODE", modes)], more, own("jwt", &jwt), own("tokens", &tokens)].concat();
        for listen in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            config(&["--grpc-listen", listen], &env);
        }
        for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
            let flag = format!("--grpc-listen={listen}");
            match refused {
                None => drop(config(&[&flag], &env)),
                Some(told) => {
                    assert_problems(&problems_beside_an_account(&[&flag], &env), &[("--grpc-listen", told)]);
                    // The sandbox holds nobody's data, but whoever is used to that takes the gateway along.
                    assert_problems(&problems(&["--sandbox", &flag], &env), &[("--grpc-listen", told)]);
                }
            }
        }
    }
}

#[test]
fn a_choice_of_who_may_call_that_is_none_is_named() {
    let refused =
        |modes| problems_beside_an_account(&["--grpc-listen=[::]:0"], &[("GATEWAY_AUTH_MODE", modes)]);
    for modes in ["mTLS", "none", "jwt,", "jwt tokens", ","] {
        assert_problems(
            &refused(modes),
            &[("GATEWAY_AUTH_MODE", "must be some of mtls, jwt, tokens, mesh and open")],
        );
    }
    assert_problems(&refused("mtls"), &[("GATEWAY_AUTH_MODE", "tls.client_ca_file")]);
}

#[test]
fn callers_need_prove_nothing_unless_a_mode_says_so() {
    use crate::access::Way;
    assert!(config(&[], &[]).ways.is_empty());
    assert!(config(&[], &[("GATEWAY_AUTH_MODE", "open")]).ways.is_empty());
    assert!(matches!(config(&["--auth-mode=mesh"], &[]).ways[..], [Way::Mesh(_)]));
    let hash = "sha256:".to_owned() + &"0f".repeat(32);
    let (tokens, keys) = (File::new(&format!("ci = \"{hash}\"")), File::new(KEYS));
    let all = [
        ("GATEWAY_AUTH_MODE", "mesh, jwt,tokens"),
        ("GATEWAY_AUTH_TOKENS_FILE", tokens.path()),
        ("GATEWAY_AUTH_JWT_ISSUER", "https://issuer.example"),
        ("GATEWAY_AUTH_JWT_AUDIENCE", "gateway"),
        ("GATEWAY_AUTH_JWT_JWKS_FILE", keys.path()),
    ];
    assert!(matches!(config(&[], &all).ways[..], [Way::Mesh(_), Way::Jwt(_), Way::Tokens(_)]));
}

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#;

#[test]
fn every_setting_of_callers_that_is_wrong_is_named() {
    for mode in ["", "mtls,", "jwt tokens", "jwt,jwt", "open,mesh", "none", "JWT"] {
        if !mode.is_empty() {
            let problems = problems_beside_an_account(&[], &[("GATEWAY_AUTH_MODE", mode)]);
            assert_problems(&problems, &[("GATEWAY_AUTH_MODE", "m")]);
        }
    }
    let missing = problems_beside_an_account(&[], &[("GATEWAY_AUTH_MODE", "jwt,tokens")]);
    let at = "GATEWAY_AUTH_MODE";
    assert_problems(
        &missing,
        &[
            (at, "jwt requires auth.jwt.issuer"),
            (at, "jwt requires auth.jwt.audience"),
            (at, "jwt requires auth.jwt.jwks_file or auth.jwt.jwks_url"),
            (at, "tokens requires auth.tokens_file"),
        ],
    );
    let (keys, no_tokens) = (File::new(KEYS), File::new("ci = \"planted-token\""));
    let no_keys = File::new(r#"{"keys":[{"kty":"oct","k":"planted"}]}"#);
    let wrong = [
        ("GATEWAY_AUTH_MODE", "jwt,tokens,mesh"),
        ("GATEWAY_AUTH_TOKENS_FILE", no_tokens.path()),
        ("GATEWAY_AUTH_JWT_ISSUER", "https://issuer.example"),
        ("GATEWAY_AUTH_JWT_AUDIENCE", "gateway"),
        ("GATEWAY_AUTH_JWT_JWKS_FILE", no_keys.path()),
        ("GATEWAY_AUTH_JWT_ALGORITHMS", "RS256,HS256"),
        ("GATEWAY_AUTH_JWT_LEEWAY", "6m"),
        ("GATEWAY_AUTH_MESH_TRUSTED_PROXIES", "127.0.0.1/33"),
        ("GATEWAY_AUTH_MESH_HEADER", "x-forwarded-for"),
        ("GATEWAY_AUTH_MESH_REQUIRE_IDENTITY", "yes"),
    ];
    let problems = problems_beside_an_account(&[], &wrong);
    assert!(!problems.iter().any(|problem| problem.contains("planted")));
    let legal = [
        "sha256:",
        "must hold a public",
        "RS384",
        "at most 5m",
        "127.0.0.0/8",
        "l5d-client-id",
        "true or false",
    ];
    let settings = [1, 4, 5, 6, 7, 8, 9].map(|at| wrong[at].0);
    let expected: Vec<_> = settings.into_iter().zip(legal).collect();
    assert_problems(&problems, &expected);
    let jwt =
        [&wrong[2..4], &[("GATEWAY_AUTH_MODE", "jwt"), ("GATEWAY_AUTH_JWT_JWKS_FILE", keys.path())]].concat();
    for url in [
        "http://issuer.example/keys",
        "https://user@issuer.example",
        "ftp://127.0.0.1",
        "issuer.example",
        "https://a/#b",
    ] {
        let env = [&jwt[..3], &[("GATEWAY_AUTH_JWT_JWKS_URL", url)]].concat();
        assert_problems(&problems_beside_an_account(&[], &env), &[("GATEWAY_AUTH_JWT_JWKS_URL", "https")]);
    }
    let both = [&jwt[..], &[("GATEWAY_AUTH_JWT_JWKS_URL", "https://issuer.example/keys")]].concat();
    let expected = [("GATEWAY_AUTH_JWT_JWKS_URL", "cannot be set beside GATEWAY_AUTH_JWT_JWKS_FILE")];
    assert_problems(&problems_beside_an_account(&[], &both), &expected);
}

#[test]
fn a_setting_of_a_mode_that_is_off_is_a_problem() {
    let keys = File::new(KEYS);
    for (setting, value, mode) in [
        ("GATEWAY_AUTH_TOKENS_FILE", "", "tokens"),
        ("GATEWAY_AUTH_JWT_ISSUER", "a", "jwt"),
        ("GATEWAY_AUTH_JWT_AUDIENCE", "a", "jwt"),
        ("GATEWAY_AUTH_JWT_JWKS_FILE", keys.path(), "jwt"),
        ("GATEWAY_AUTH_JWT_JWKS_URL", "https://issuer.example/keys", "jwt"),
        ("GATEWAY_AUTH_JWT_JWKS_REFRESH", "1m", "jwt"),
        ("GATEWAY_AUTH_JWT_ALGORITHMS", "ES256", "jwt"),
        ("GATEWAY_AUTH_JWT_LEEWAY", "1s", "jwt"),
        ("GATEWAY_AUTH_MESH_TRUSTED_PROXIES", "::1/128", "mesh"),
        ("GATEWAY_AUTH_MESH_HEADER", "l5d-client-id", "mesh"),
        ("GATEWAY_AUTH_MESH_REQUIRE_IDENTITY", "true", "mesh"),
    ] {
        let tokens = File::new(&format!("ci = \"sha256:{}\"", "0f".repeat(32)));
        let value = if value.is_empty() { tokens.path() } else { value };
        let expected = [(setting, &*format!("means nothing without auth.mode={mode}"))];
        assert_problems(&problems_beside_an_account(&[], &[(setting, value)]), &expected);
    }
}
