//! The process: arguments, configuration, logging, the gateway, a signal, an exit code.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use participant_gateway::app::{self, App, Signals, greeting};
use participant_gateway::config::{self, Command, Config, Problem, Upstream};
use participant_gateway::telemetry::{self, Telemetry};
use participant_gateway::{probe, sandbox, secret};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let settled = match config::parse(std::env::args_os(), &env) {
        Ok(Command::Serve(report)) => report.outcome.map(|config| run(serve(config))),
        Ok(Command::Sandbox(settings)) => settings.map(|settings| run(fake(settings))),
        Ok(Command::Probe(settings)) => {
            settings.map(|settings| run(async { Ok(probe::run(settings, say).await?) }))
        }
        Ok(Command::CheckConfig(report)) => {
            say(report.lines.join("\n"));
            report.outcome.map(|_| ExitCode::SUCCESS)
        }
        Err(exit) => {
            // Where the stream is closed, there is no one left to tell.
            let _ = exit.message.print();
            return if exit.is_usage_error { BAD_CONFIGURATION.into() } else { ExitCode::SUCCESS };
        }
    };
    settled.unwrap_or_else(|problems: Vec<Problem>| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        fail(lines.join("\n"), BAD_CONFIGURATION.into())
    })
}

async fn serve(config: Config) -> Outcome {
    let telemetry = telemetry::init(&config.log, config.export.traces)?;
    secret::forbid_core_dumps();
    let result = gateway(config, &telemetry).await;
    telemetry.flush().await;
    result
}

async fn gateway(config: Config, telemetry: &Telemetry) -> Outcome {
    let (stop, abort) = Signals::new()?.first_and_second();
    let is_sandboxed = matches!(config.upstream, Upstream::Sandbox(_));
    let app = App::build(config).await?.with_telemetry(telemetry);
    if is_sandboxed {
        say(greeting(&app));
    }
    tokio::select! {
        result = app.run(stop) => Ok(result?),
        () = abort => Err("stopped by a second signal, without waiting for calls in flight".into()),
    }
}

async fn fake(settings: sandbox::Settings) -> Outcome {
    let mut signals = Signals::new()?;
    let announce = |address| say(format!("The sandbox fakes Twilio at http://{address}"));
    Ok(app::run_sandbox(settings, announce, signals.next()).await?)
}

fn run(work: impl Future<Output = Outcome>) -> ExitCode {
    let result = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(work);
        // A name look-up that hangs must not hold the exit.
        runtime.shutdown_background();
        result
    });
    result.map_or_else(|error| fail(error, ExitCode::FAILURE), |()| ExitCode::SUCCESS)
}

/// A closed or full stream is no reason to fail.
fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// As a log line where lines are logged, so that standard error stays of one form.
fn fail(text: impl Display, code: ExitCode) -> ExitCode {
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{text}");
    } else {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    code
}
