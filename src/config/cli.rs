//! The command line, made from the settings.

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::{Arg, ArgAction, ArgMatches};
use http::uri::Authority;

use super::settings::SETTINGS;
use super::{Flags, Lookup, Problem, Report, limit, load, parse_faults};
use crate::ids::{AccountId, Segment};
use crate::proto::{ApiVersion, ConversationRef};
use crate::{probe, sandbox};

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Run the gateway.
    Serve(Report),
    /// Run the fake Twilio alone.
    Sandbox(Result<sandbox::Settings, Vec<Problem>>),
    /// Ask a running gateway whether it serves.
    Probe(Result<probe::Settings, Vec<Problem>>),
    /// Report the configuration.
    CheckConfig(Report),
}

/// The command line asks for nothing to be run: it wants help, or it is wrong.
#[derive(Debug)]
pub struct Exit {
    /// What to print, with colour where the stream is a terminal.
    pub message: clap::error::Error,
    /// Whether the command line is wrong.
    pub is_usage_error: bool,
}

/// Reads the command line, the environment and the file.
pub fn parse(args: impl IntoIterator<Item = OsString>, env: Lookup<'_>) -> Result<Command, Exit> {
    let matches = command().try_get_matches_from(args).map_err(|message| {
        let is_usage_error = message.use_stderr();
        Exit { message, is_usage_error }
    })?;
    Ok(match matches.subcommand() {
        Some(("sandbox", matches)) => Command::Sandbox(sandbox_alone(matches)),
        Some(("probe", matches)) => Command::Probe(probe_settings(matches)),
        Some(("check-config", matches)) => Command::CheckConfig(load(flags(matches), env)),
        Some((_, matches)) => Command::Serve(load(flags(matches), env)),
        // clap has required a subcommand.
        None => Command::Serve(load(Flags::default(), env)),
    })
}

fn command() -> clap::Command {
    let settings = SETTINGS.iter().filter_map(|setting| {
        let flag = setting.flag?;
        let arg = Arg::new(setting.key).long(flag);
        let help = match setting.default {
            "" => format!("{} [env: {}]", setting.help, setting.env),
            default => format!("{} [env: {}] [default: {default}]", setting.help, setting.env),
        };
        Some(if setting.is_switch {
            arg.help(help).action(ArgAction::SetTrue)
        } else {
            arg.help(help).value_name("VALUE")
        })
    });
    let fault = |name: &'static str| {
        Arg::new("fault").long(name).value_name("FAULT").action(ArgAction::Append).help(
            "A fault of the sandbox, such as status=503,times=2 or latency=200ms; may be repeated [docs/sandbox.md]",
        )
    };
    let configured = |name: &'static str| {
        let config = Arg::new("config").long("config").value_name("FILE");
        let sandbox = Arg::new("sandbox").long("sandbox").action(ArgAction::SetTrue);
        clap::Command::new(name)
            .args(settings.clone())
            .arg(config.help("Configuration file, TOML [env: GATEWAY_CONFIG]"))
            .arg(sandbox.help("Use the embedded fake Twilio as upstream: no account is needed"))
            .arg(fault("sandbox-fault"))
            .after_help(
                "Accounts come from TWILIO_ACCOUNT_SID with TWILIO_AUTH_TOKEN, with TWILIO_API_KEY and \
                 TWILIO_API_SECRET, or with TWILIO_CLIENT_ID and TWILIO_CLIENT_SECRET, and from the file. \
                 Settings without a flag: docs/configuration.md.",
            )
    };
    let listen = Arg::new("listen").long("listen").value_name("ADDRESS").default_value("127.0.0.1:8080");
    clap::Command::new("participant-gateway")
        .about("One gRPC Participant service over Twilio Conversations v1 and v2")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(configured("serve").about("Run the gateway"))
        .subcommand(
            clap::Command::new("sandbox")
                .about("Run the fake Twilio alone")
                .arg(listen.help("Address to listen on; port 0 takes a free one"))
                .arg(fault("fault")),
        )
        .subcommand(probe_command())
        .subcommand(
            configured("check-config").about("Read and report the configuration, with every problem at once"),
        )
}

fn probe_command() -> clap::Command {
    let arg = |name: &'static str, value: &'static str| Arg::new(name).long(name).value_name(value);
    let of_read = |arg: Arg| arg.requires("conversation");
    let expect_not_found = Arg::new("expect-not-found").long("expect-not-found").action(ArgAction::SetTrue);
    clap::Command::new("probe")
        .about("Ask a running gateway whether it serves: health, reflection, and one read through to Twilio")
        .arg(arg("address", "HOST:PORT").required(true).help("The gateway's gRPC listener"))
        .arg(arg("timeout", "DURATION").default_value("5s").help("All steps together may take so long"))
        .arg(arg("conversation", "ID").help("Conversation whose participants are listed, past the cache"))
        .arg(of_read(arg("api-version", "VERSION").value_parser(["v1", "v2"]).help("API that holds it")))
        .arg(of_read(arg("account-id", "SID").help("Account that holds it, if not the default one")))
        .arg(of_read(expect_not_found.help("Pass if Twilio says that there is no such conversation")))
        .after_help("Exits with 0 if every step passes, with 1 at the first that fails.")
}

fn flags(matches: &ArgMatches) -> Flags {
    let mut flags = Flags {
        config: matches.get_one::<String>("config").map(Into::into),
        sandbox: matches.get_flag("sandbox"),
        faults: faults(matches),
        ..Flags::default()
    };
    for setting in SETTINGS.iter().filter(|setting| setting.flag.is_some()) {
        let value = if setting.is_switch {
            matches.get_flag(setting.key).then(|| "true".to_owned())
        } else {
            matches.get_one::<String>(setting.key).cloned()
        };
        flags.values.extend(value.map(|value| (setting.key, value)));
    }
    flags
}

fn faults(matches: &ArgMatches) -> Vec<String> {
    matches.get_many::<String>("fault").unwrap_or_default().cloned().collect()
}

fn sandbox_alone(matches: &ArgMatches) -> Result<sandbox::Settings, Vec<Problem>> {
    let mut problems = Vec::new();
    let faults = parse_faults("--fault", &faults(matches), &mut problems);
    let listen = matches.get_one::<String>("listen").map_or("", String::as_str).parse::<SocketAddr>();
    if listen.is_err() {
        problems.push(Problem {
            at: "--listen".into(),
            text: "must be address:port, such as 127.0.0.1:8080".into(),
        });
    }
    match listen {
        Ok(listen) if problems.is_empty() => {
            Ok(sandbox::Settings { listen, faults, ..sandbox::Settings::default() })
        }
        _ => Err(problems),
    }
}

fn probe_settings(matches: &ArgMatches) -> Result<probe::Settings, Vec<Problem>> {
    let mut problems = Vec::new();
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let mut checked = |flag: &str, problem: Option<&str>| {
        let problem = problem.map(|text| Problem { at: format!("--{flag}"), text: text.to_owned() });
        problems.extend(problem);
    };
    let address = grpc_address(text("address"));
    checked("address", address.as_ref().err().copied());
    let timeout = limit(text("timeout"));
    checked("timeout", timeout.as_ref().err().copied());
    let read = matches.contains_id("conversation").then(|| {
        checked("conversation", Segment::parse(text("conversation")).err());
        let account_id = text("account-id");
        let is_account = account_id.is_empty() || AccountId::parse(account_id).is_some();
        checked("account-id", (!is_account).then_some("must be AC and 32 hex digits"));
        let api_version = match text("api-version") {
            "v1" => ApiVersion::V1,
            "v2" => ApiVersion::V2,
            _ => ApiVersion::Unspecified,
        };
        let conversation = ConversationRef {
            conversation_id: text("conversation").to_owned(),
            service_id: String::new(),
            account_id: account_id.to_owned(),
            api_version: api_version.into(),
        };
        probe::Read { conversation, expects_not_found: matches.get_flag("expect-not-found") }
    });
    match (address, timeout) {
        (Ok(address), Ok(timeout)) if problems.is_empty() => Ok(probe::Settings { address, timeout, read }),
        _ => Err(problems),
    }
}

fn grpc_address(text: &str) -> Result<Authority, &'static str> {
    let address: Option<Authority> = text.parse().ok();
    let address = address.filter(|address| {
        let is_whole = !address.host().is_empty() && address.port_u16().is_some_and(|port| port > 0);
        is_whole && !address.as_str().contains('@')
    });
    address.ok_or("must be host:port, such as 127.0.0.1:50051")
}
