//! The lab's helper process: becomes a program inside a pod or node (`exec`), or removes a run when its owner is gone
//! (`reap`). Started by the lab; its arguments are nobody's interface.

use std::process::ExitCode;

/// What shells say for a program that could not be run.
const CANNOT_RUN: u8 = 126;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let failure = match command.to_str() {
        Some("exec") => match lab::Entry::from_args(args) {
            Some((entry, program)) => entry.exec(&program),
            None => "exec: not the arguments that the lab makes".to_owned(),
        },
        Some("reap") => {
            let run = args.next().unwrap_or_default();
            match lab::reap(&run.to_string_lossy()) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(failure) => failure,
            }
        }
        _ => "lab-run is started by the lab, with `exec` or `reap`".to_owned(),
    };
    eprintln!("lab-run: {failure}");
    ExitCode::from(CANNOT_RUN)
}
