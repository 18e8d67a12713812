//! A program that runs in the lab: its output (bounded), its end, signals to it.
//!
//! Handles are cheap copies; dropping one does not end the program. The lab's removal ends them all.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};

/// Bytes of each output stream that are kept (the newest). A test reads summaries; a chatty program must not fill memory.
const KEPT_OUTPUT: usize = 1 << 20;

/// How long a program that was asked to end may take before it is killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How long output may arrive after a program's end: a child of it may hold the pipe open for ever.
const LAST_OUTPUT_WITHIN: Duration = Duration::from_secs(1);

/// What to run: a program with its arguments and environment. The name `lab-app` means the lab's own program.
#[derive(Clone, Debug)]
pub struct Program {
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
}

impl Program {
    /// A program found in `PATH`, or by its path.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        Self { args: vec![name.as_ref().to_owned()], env: Vec::new() }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn display(&self) -> String {
        self.args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

impl From<&str> for Program {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl<S: AsRef<OsStr>> From<&[S]> for Program {
    /// # Panics
    /// When the slice is empty: there is no program in it.
    fn from(words: &[S]) -> Self {
        let (name, args) = words.split_first().expect("a program has a name");
        Self::new(name).args(args)
    }
}

impl<S: AsRef<OsStr>, const N: usize> From<[S; N]> for Program {
    fn from(words: [S; N]) -> Self {
        Self::from(words.as_slice())
    }
}

/// Why waiting for a program did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The deadline passed. What it had printed by then comes along.
    #[error("`{command}` {what} within {within:?}; stdout: {stdout:?}, stderr: {stderr:?}")]
    Deadline {
        /// The program and its arguments.
        command: String,
        /// "did not end", or the like.
        what: String,
        /// How long was waited.
        within: Duration,
        /// The newest output.
        stdout: String,
        /// The newest complaints.
        stderr: String,
    },
    /// The program ended while something else was expected of it.
    #[error("`{command}` ended early ({status}); stdout: {stdout:?}, stderr: {stderr:?}")]
    Ended {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The newest output.
        stdout: String,
        /// The newest complaints.
        stderr: String,
    },
    /// The program could not be started or signalled.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was attempted.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended; absent while it runs.
    pub status: Option<ExitStatus>,
    /// The newest mebibyte of its output, invalid UTF-8 replaced.
    pub stdout: String,
    /// The newest mebibyte of its complaints.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with code 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its exit code; absent while it runs or when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }
}

/// A program that was started in the lab.
#[derive(Clone, Debug)]
pub struct Process(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    command: String,
    pid: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    open_streams: u8,
    status: Option<ExitStatus>,
}

#[derive(Clone, Copy)]
enum StreamName {
    Stdout,
    Stderr,
}

impl Process {
    /// Starts `launcher` (which becomes the program) and threads that read its output and wait for its end.
    pub(crate) fn start(mut launcher: Command, command: String) -> Result<Self, ProcessError> {
        launcher.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = launcher
            .spawn()
            .map_err(|source| ProcessError::System { doing: format!("start `{command}`"), source })?;
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits a pid_t"));
        let state = Mutex::new(State { open_streams: 2, ..State::default() });
        let shared = Arc::new(Shared { command, pid, state, changed: Condvar::new() });
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.collect(stdout, StreamName::Stdout)
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.collect(stderr, StreamName::Stderr)
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.await_end(child)
        });
        Ok(Self(shared))
    }

    /// The process id, as every namespace of this machine sees it.
    pub fn pid(&self) -> u32 {
        self.0.pid.as_raw().unsigned_abs()
    }

    /// The program and its arguments.
    pub fn command(&self) -> &str {
        &self.0.command
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.0.state.lock().status.is_none()
    }

    /// What it printed so far, and its end if it has.
    pub fn output(&self) -> Output {
        self.0.state.lock().output()
    }

    /// Waits until it ends and its output is complete.
    pub fn wait(&self, within: Duration) -> Result<Output, ProcessError> {
        let deadline = Instant::now() + within;
        let mut state = self.0.state.lock();
        while state.status.is_none() {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() && state.status.is_none() {
                return Err(self.late("did not end", within, &state));
            }
        }
        let deadline = Instant::now() + LAST_OUTPUT_WITHIN;
        while state.open_streams > 0 && !self.0.changed.wait_until(&mut state, deadline).timed_out() {}
        Ok(state.output())
    }

    /// Waits until a line of its output contains `text`, and returns that line, which is whole.
    pub fn wait_for_line(&self, text: &str, within: Duration) -> Result<String, ProcessError> {
        let deadline = Instant::now() + within;
        let mut state = self.0.state.lock();
        loop {
            let output = state.output();
            // The rest of a line that has not ended yet may be on its way.
            let is_whole = |line: &&str| line.ends_with('\n') || state.open_streams == 0;
            let lines = output.stdout.split_inclusive('\n').chain(output.stderr.split_inclusive('\n'));
            if let Some(line) = lines.filter(is_whole).find(|line| line.contains(text)) {
                return Ok(line.trim_end_matches(['\n', '\r']).to_owned());
            }
            if let (Some(status), 0) = (state.status, state.open_streams) {
                let command = self.0.command.clone();
                return Err(ProcessError::Ended {
                    command,
                    status,
                    stdout: output.stdout,
                    stderr: output.stderr,
                });
            }
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(self.late(&format!("did not print {text:?}"), within, &state));
            }
        }
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        // Under the lock the process is not reaped, so its number cannot belong to another.
        let state = self.0.state.lock();
        if state.status.is_some() {
            return Ok(());
        }
        kill(self.0.pid, signal).map_err(|errno| ProcessError::System {
            doing: format!("send {signal} to `{}`", self.0.command),
            source: errno.into(),
        })
    }

    /// Kills it at once (SIGKILL) and waits for its end.
    pub fn kill(&self) -> Result<Output, ProcessError> {
        self.signal(Signal::SIGKILL)?;
        self.wait(END_WITHIN)
    }

    /// Asks it to end (SIGTERM) and waits; kills it, and says so, when it does not.
    pub fn terminate(&self) -> Result<Output, ProcessError> {
        self.signal(Signal::SIGTERM)?;
        self.wait(END_WITHIN).inspect_err(|_| drop(self.kill()))
    }

    fn late(&self, what: &str, within: Duration, state: &State) -> ProcessError {
        let Output { stdout, stderr, .. } = state.output();
        ProcessError::Deadline { command: self.0.command.clone(), what: what.into(), within, stdout, stderr }
    }
}

impl Shared {
    fn collect(&self, mut from: impl Read, name: StreamName) {
        let mut chunk = [0; 16 << 10];
        loop {
            let read = match from.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.unwrap_or(0),
            };
            let mut state = self.state.lock();
            let kept = match name {
                StreamName::Stdout => &mut state.stdout,
                StreamName::Stderr => &mut state.stderr,
            };
            kept.extend_from_slice(&chunk[..read]);
            // Trimmed in large steps, so that a flood costs one copy per mebibyte.
            if kept.len() > 2 * KEPT_OUTPUT {
                kept.drain(..kept.len() - KEPT_OUTPUT);
            }
            state.open_streams -= u8::from(read == 0);
            self.changed.notify_all();
            if read == 0 {
                return;
            }
        }
    }

    fn await_end(&self, mut child: Child) {
        // Seen but not reaped, so that `signal` never meets a number that was given away.
        let _ = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let mut state = self.state.lock();
        // Reaping can only fail if somebody else reaped our child; it is gone either way.
        state.status = Some(child.wait().unwrap_or(ExitStatus::from_raw(0)));
        self.changed.notify_all();
    }
}

impl State {
    fn output(&self) -> Output {
        let newest = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(KEPT_OUTPUT)..]).into_owned()
        };
        Output { status: self.status, stdout: newest(&self.stdout), stderr: newest(&self.stderr) }
    }
}
