//! `controller`, the control plane's process: reads the environment, starts, waits to be told to stop, says why it ends.
//!
//! Composition is `app`'s.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use controller::app::Controller;
use controller::config::{self, Config};
use daemon::config::Environment;
use daemon::logs::{self, Logs};
use daemon::signal::Terminate;

/// How long logs may take to be written at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// The one argument that is understood.
const DEFINITIONS: &str = "definitions";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => serving(),
        // What charts carry; asks for no settings.
        [one] if one == DEFINITIONS => {
            print!("{}", controller::definitions::yaml());
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "usage: controller, which takes its settings from the environment; or `controller {DEFINITIONS}`, which prints the \
                 definitions of the kinds that it reads, for `kubectl apply --server-side -f -`"
            );
            ExitCode::from(2)
        }
    }
}

fn serving() -> ExitCode {
    let config = match config::load(&Environment::read()) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("controller can't start:\n{mistakes}");
            return ExitCode::from(2);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("controller ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let logs = logs::init(config.log.0, &config.log.1, io::stdout())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config, logs.clone()));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "controller ends");
    }
    logs.flush(FLUSH);
    outcome
}

async fn serve(config: Config, logs: Logs) -> anyhow::Result<()> {
    let mut terminate = Terminate::listen()?;
    let controller = tokio::select! {
        started = Controller::start(config, Some(logs)) => started?,
        signal = terminate.next() => {
            tracing::info!(signal, "stopping before having started");
            return Ok(());
        }
    };
    let told = async {
        let signal = terminate.next().await;
        tracing::info!(signal, "stopping");
    };
    controller.run(told).await
}
