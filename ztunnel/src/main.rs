//! `ztunnel`, the node proxy: reads the environment, starts the process, says why it ends.
//!
//! Composition is `app`'s.

mod admin;
mod app;
mod config;
mod data;
mod discovery;
mod dns;
mod flow;
mod node;
mod pod;
mod ports;
mod ready;
mod refusal;
mod tcp_info;
mod telemetry;
mod vitals;

use std::process::ExitCode;

fn main() -> ExitCode {
    let environment = daemon::config::Environment::read();
    let outcome = match std::env::args().nth(1).as_deref() {
        None => config::load(&environment).map(app::run),
        Some("ready") => config::load_uninstall(&environment).map(|config| ready::ready(&config.run_dir)),
        Some("uninstall") => config::load_uninstall(&environment).map(|config| app::uninstall(&config)),
        Some(other) => {
            eprintln!(
                "ztunnel {other}: no such command. Without one it serves this node; `ready` says whether it does, `uninstall` takes \
                 from the node all that outlives a ztunnel"
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Err(mistakes) => {
            eprintln!("ztunnel can't start:\n{mistakes}");
            ExitCode::from(2)
        }
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
