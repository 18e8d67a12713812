//! A process that outlives the lab's owner and removes the run when the owner is gone, however it went.
//!
//! It holds the reading end of a pipe whose writing end only the owner has; the kernel closes that one for a killed
//! owner too.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::SigSet;
use nix::unistd::setsid;

use crate::error::{LabError, cannot};
use crate::run::Run;

/// The owner's side: dropping it lets the reaper go, and waits for it. Holds the run's lock, which the reaper takes before it
/// removes anything.
#[derive(Debug)]
pub(crate) struct Reaper {
    process: Child,
    life: Option<ChildStdin>,
    lock: Option<File>,
}

impl Reaper {
    pub(crate) fn start(lab_run: &Path, run: &str, lock: File) -> Result<Self, LabError> {
        let mut process = Command::new(lab_run)
            .args(["reap", run])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(cannot(format!("start {} reap", lab_run.display())))?;
        let life = process.stdin.take();
        let mut ready = [0];
        let mut said = process.stdout.take().expect("stdout is piped");
        said.read_exact(&mut ready).map_err(cannot("hear from the reaper"))?;
        Ok(Self { process, life, lock: Some(lock) })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.lock.take());
        drop(self.life.take());
        drop(self.process.wait());
    }
}

/// The body of `lab-run reap <run>`: waits for the owner's end, then removes what it left.
pub fn reap(run: &str) -> Result<(), String> {
    let run = Run::named(run).map_err(|error| error.to_string())?;
    // Ctrl-C reaches every process of a terminal's foreground group; the reaper must be the last one.
    SigSet::all().thread_block().map_err(|errno| errno.to_string())?;
    // Fails only for a leader of a group, which has no terminal to lose anyway.
    let _ = setsid();
    println!("1");
    let mut nothing = Vec::new();
    io::stdin().read_to_end(&mut nothing).map_err(|error| error.to_string())?;
    // Two removals at once would trip over each other; an owner that removed all left no lock either.
    let lock = File::open(run.lock());
    if let Ok(lock) = &lock {
        lock.lock().map_err(|error| error.to_string())?;
    }
    run.remove().map_err(|failures| failures.join("; "))
}
