//! What the user sees while something takes its time: a moving line on a terminal, plain lines otherwise.
//!
//! Owns the line at the bottom of the terminal and the thread that moves it. Text goes to one place: standard output, or
//! standard error when standard output is for a program.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::term::{self, Style};

/// Between two pictures of the moving line: fast enough to look alive, slow enough to cost nothing.
const FRAME: Duration = Duration::from_millis(100);

const PICTURES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Stdout,
    Stderr,
}

/// Writes to standard output. A reader that has read enough (`airglow pods | head`) is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// The output of a command that takes its time.
#[derive(Debug)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// How text may look.
    pub(crate) style: Style,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    to: To,
    live: bool,
    style: Style,
}

#[derive(Debug)]
struct State {
    doing: Option<(String, Instant)>,
    frame: usize,
    over: bool,
}

impl Progress {
    /// `live`: whether there is a terminal on which a line can move.
    pub(crate) fn new(to: To, live: bool, style: Style) -> Self {
        let state = Mutex::new(State { doing: None, frame: 0, over: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), to, live, style });
        let thread = live.then(|| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.animate())
        });
        Self { shared, thread, style }
    }

    /// Says what is being done or waited for, until the next line is written.
    pub(crate) fn doing(&self, what: &str) {
        let mut state = self.shared.state.lock();
        state.doing = Some((what.to_owned(), Instant::now()));
        if self.shared.live {
            self.shared.draw(&state);
        } else {
            self.shared.write(&format!("  ... {what}\n"));
        }
    }

    /// Writes a line that stays.
    pub(crate) fn line(&self, text: &str) {
        let state = self.shared.state.lock();
        if self.shared.live {
            self.shared.write(&format!("\r\x1b[2K{text}\n"));
            self.shared.draw(&state);
        } else {
            self.shared.write(&format!("{text}\n"));
        }
    }

    /// Nothing is being done any more: the moving line goes.
    pub(crate) fn rest(&self) {
        let mut state = self.shared.state.lock();
        if state.doing.take().is_some() && self.shared.live {
            self.shared.write("\r\x1b[2K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.rest();
        self.shared.state.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn animate(&self) {
        let mut state = self.state.lock();
        while !state.over {
            state.frame = (state.frame + 1) % PICTURES.len();
            self.draw(&state);
            self.changed.wait_for(&mut state, FRAME);
        }
    }

    fn draw(&self, state: &State) {
        let Some((what, since)) = &state.doing else { return };
        let picture = self.style.cyan(PICTURES[state.frame]);
        let passed = since.elapsed();
        let time = if passed < Duration::from_secs(1) { String::new() } else { term::duration(passed) };
        self.write(&format!("\r\x1b[2K  {picture} {what} {}", self.style.dim(&time)));
    }

    /// A reader that has gone away (a closed pipe) is no reason to stop: the exit status still tells.
    fn write(&self, text: &str) {
        let result = match self.to {
            To::Stdout => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
            To::Stderr => io::stderr().write_all(text.as_bytes()),
        };
        drop(result);
    }
}
