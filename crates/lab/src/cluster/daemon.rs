//! A component of the cluster: a program that runs for ever and writes to a log file. Asked to end, it does or is killed;
//! whatever the owner does, the run's cgroup takes it along.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use crate::error::{LabError, cannot};
use crate::wait::wait_until;

/// How long a component may take to end after SIGTERM. The API server finishes its requests first.
const END_WITHIN: Duration = Duration::from_secs(20);

/// Lines of a log that a failure shows. What a component says last is mostly why it ended.
const TAIL: usize = 25;

/// A running component.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Daemon {
    /// Starts it; output is added to `<logs>/<name>.log`.
    pub(crate) fn start(mut launcher: Command, name: &str, logs: &Path) -> Result<Self, LabError> {
        let path = logs.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(cannot(format!("open {}", path.display())))?;
        let second = log.try_clone().map_err(cannot("duplicate a file descriptor"))?;
        launcher.stdin(Stdio::null()).stdout(log).stderr(second);
        let child = launcher.spawn().map_err(cannot(format!("start {name}")))?;
        Ok(Self { name: name.to_owned(), log: path, child: Mutex::new(child) })
    }

    /// The process that it has started, which must be the only one.
    pub(crate) fn only_child(&self) -> Result<u32, LabError> {
        let pid = self.child.lock().id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(&path).map_err(cannot(format!("read {path}")))?;
        let number = children.trim().parse();
        number.map_err(|_| LabError::Refused(format!("{} has children {children:?}, not one", self.name)))
    }

    /// Says that it runs, or how it ended and what it said last.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.child.lock().try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended ({status}); {}", self.name, self.tail())),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Sends a signal; nothing happens when it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let mut child = self.child.lock();
        let doing = || format!("send {signal} to {}", self.name);
        // Not reaped before the lock is given back, so that its number cannot belong to another.
        if child.try_wait().map_err(cannot(doing()))?.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).map_err(cannot(doing()))
    }

    /// Ends it with this signal, and with SIGKILL when that does not help.
    pub(crate) fn stop(&self, signal: Signal) -> Result<(), LabError> {
        self.signal(signal)?;
        let ended = wait_until(&format!("the end of {}", self.name), END_WITHIN, || match self.check() {
            Ok(()) => Err("it runs"),
            Err(_) => Ok(()),
        });
        if ended.is_err() {
            self.signal(Signal::SIGKILL)?;
        }
        self.child.lock().wait().map(drop).map_err(cannot(format!("wait for {}", self.name)))
    }

    /// The newest lines of its log.
    pub(crate) fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// The newest lines of a log, with its path.
pub(crate) fn tail(log: &Path) -> String {
    let text = match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return format!("{}: {error}", log.display()),
    };
    let lines: Vec<_> = text.lines().collect();
    let newest = &lines[lines.len().saturating_sub(TAIL)..];
    format!("end of {}:\n{}", log.display(), newest.join("\n"))
}
