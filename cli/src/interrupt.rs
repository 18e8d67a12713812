//! Ctrl-C and SIGTERM: the first asks the running command to end in good order, the second ends it at once.
//!
//! Owns the signal thread. Removes nothing itself: who waits looks at the flag, and what a killed process leaves is the
//! lab's reaper's to remove.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use daemon::signal::Terminate;

/// What a shell reports for a program that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Signals this close together are one: a shell, `make` and the terminal may each pass the same Ctrl-C on.
const SAME: Duration = Duration::from_secs(1);

/// Between two looks at what is waited for: short beside what a person notices, long beside a look.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Whether somebody asked to end. Clones share the answer.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// Somebody asked to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

impl Interrupt {
    /// Listens to the signals from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        let asked = Self(Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = runtime.block_on(async { Terminate::listen() })?;
        let shared = asked.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                signals.next().await;
                shared.0.store(true, Ordering::Relaxed);
                let asked = Instant::now();
                while asked.elapsed() < SAME {
                    signals.next().await;
                }
                std::process::exit(INTERRUPTED.into());
            });
        })?;
        Ok(asked)
    }

    /// Whether somebody asked to end.
    pub(crate) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails when somebody asked to end.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.asked() { Err(Interrupted) } else { Ok(()) }
    }

    /// Looks until `look` gives a value. `Ok(None)` when it did not within the time.
    pub(crate) fn wait_for<T>(
        &self,
        within: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<Option<T>, Interrupted> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(value) = look() {
                return Ok(Some(value));
            }
            self.check()?;
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for a time, or until somebody asks to end.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Interrupted> {
        self.wait_for(time, || None::<()>).map(drop)
    }
}
