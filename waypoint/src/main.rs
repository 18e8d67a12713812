//! `waypoint`, the L7 proxy: reads the environment, starts the process, says why it ends.
//!
//! Composition is `app`'s.

use std::process::ExitCode;

use waypoint::{app, config};

fn main() -> ExitCode {
    match config::load(&daemon::config::Environment::read()).map(app::run) {
        Err(mistakes) => {
            eprintln!("waypoint can't start:\n{mistakes}");
            ExitCode::from(2)
        }
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("waypoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}
