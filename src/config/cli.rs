//! The command line, made from the settings.

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::{Arg, ArgAction, ArgMatches};

use super::settings::SETTINGS;
use super::{Flags, Lookup, Problem, Report, load, parse_faults};
use crate::sandbox;

/// What the process is to do.
#[derive(Debug)]
pub enum Command {
    /// Run the gateway.
    Serve(Report),
    /// Run the fake Twilio alone.
    Sandbox(Result<sandbox::Settings, Vec<Problem>>),
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
        .subcommand(
            configured("check-config").about("Read and report the configuration, with every problem at once"),
        )
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
