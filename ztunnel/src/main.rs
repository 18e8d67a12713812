//! `ztunnel`, the node proxy: reads the environment, starts the process, says why it ends.
//!
//! Composition is `app`'s.

mod admin;
mod app;
mod baggage;
mod config;
mod data;
mod discovery;
mod dns;
mod flow;
mod memory;
mod mesh;
mod node;
mod pod;
mod refusal;
mod tcp_info;
mod telemetry;
mod vitals;

use std::process::ExitCode;

fn main() -> ExitCode {
    let environment = daemon::config::Environment::read();
    let config = match config::load(&environment) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("ztunnel can't start:\n{mistakes}");
            return ExitCode::from(2);
        }
    };
    let outcome = match std::env::args().nth(1).as_deref() {
        None => app::run(config),
        Some("uninstall") => app::uninstall(&config),
        Some(other) => {
            eprintln!(
                "ztunnel {other}: no such command. Without one it serves this node; `uninstall` takes from it what outlives a ztunnel"
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}
