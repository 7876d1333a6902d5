//! The process: arguments, configuration, logging, the gateway, a signal, an exit code.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use participant_gateway::app::{App, Stop, greeting};
use participant_gateway::config::{self, Command, Config, Problem, Upstream};
use participant_gateway::{sandbox, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    match config::parse(std::env::args_os(), &env) {
        Ok(Command::Serve(report)) => report.outcome.map_or_else(misconfigured, |config| run(serve(config))),
        Ok(Command::Sandbox(settings)) => settings.map_or_else(misconfigured, |settings| run(fake(settings))),
        Ok(Command::CheckConfig(report)) => {
            say(report.lines.join("\n"));
            report.outcome.map_or_else(misconfigured, |_| ExitCode::SUCCESS)
        }
        Err(exit) => {
            // Where the stream is closed, there is no one left to tell.
            let _ = exit.message.print();
            if exit.is_usage_error { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS }
        }
    }
}

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    telemetry::init(&config.log)?;
    let is_sandboxed = matches!(config.upstream, Upstream::Sandbox(_));
    let (mut terminate, mut interrupt) = signals()?;
    let app = App::build(config).await?;
    if is_sandboxed {
        say(greeting(&app.addresses()));
    }
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let running = app.run(async { stopped.await.unwrap_or(Stop::Promptly) });
    let signalled = async {
        let stop = tokio::select! {
            _ = terminate.recv() => Stop::WhenNoticed,
            _ = interrupt.recv() => Stop::Promptly,
        };
        // The receiver is gone where the gateway has ended by itself, and its own result counts.
        let _ = stopping.send(stop);
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    tokio::select! {
        result = running => Ok(result?),
        () = signalled => Err("stopped by a second signal, without waiting for calls in flight".into()),
    }
}

async fn fake(settings: sandbox::Settings) -> Result<(), Box<dyn std::error::Error>> {
    let (mut terminate, mut interrupt) = signals()?;
    let sandbox = sandbox::Sandbox::bind(settings).await?;
    say(format!("The sandbox fakes Twilio at http://{}", sandbox.local_addr()));
    let end = CancellationToken::new();
    tokio::select! {
        () = sandbox.run(end) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

fn run(work: impl Future<Output = Result<(), Box<dyn std::error::Error>>>) -> ExitCode {
    let result = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(work);
        // A name look-up that hangs must not hold the exit.
        runtime.shutdown_background();
        result
    });
    result.map_or_else(|error| complain(error, ExitCode::FAILURE), |()| ExitCode::SUCCESS)
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_or_else wants")]
fn misconfigured(problems: Vec<Problem>) -> ExitCode {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    complain(lines.join("\n"), ExitCode::from(BAD_CONFIGURATION))
}

/// A closed or full stream is no reason to fail.
fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn complain(text: impl Display, code: ExitCode) -> ExitCode {
    let _ = writeln!(io::stderr(), "{text}");
    code
}
