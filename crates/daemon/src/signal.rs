//! Termination signals: the first asks to drain, the second ends patience.
//!
//! Decides nothing else: it does not exit the process and closes nothing.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::drain::Drain;

/// SIGTERM and SIGINT, listened to from the moment this is made (a signal that arrives before anybody waits is not lost).
#[derive(Debug)]
pub struct Terminate {
    term: Signal,
    int: Signal,
}

impl Terminate {
    /// Starts listening. Call it first thing in `main`, inside a runtime.
    ///
    /// # Errors
    /// The operating system refuses the handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal; its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }

    /// Drives `drain` until dropped: begins it, with `patience`, at the first signal, and forces it at every later one.
    pub async fn drive(mut self, drain: Drain, patience: Duration) {
        let name = self.next().await;
        tracing::info!(signal = name, ?patience, "draining");
        drain.begin(patience);
        loop {
            let name = self.next().await;
            tracing::warn!(signal = name, "asked again: cutting live work");
            drain.force();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Outcome;
    use nix::sys::signal::{Signal, raise};

    #[tokio::test]
    async fn first_drains_second_forces() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        let _hold = watch.hold();
        let terminate = Terminate::listen().unwrap();
        let driver = tokio::spawn(terminate.drive(drain.clone(), Duration::from_secs(3600)));
        raise(Signal::SIGTERM).unwrap();
        watch.begun().await;
        raise(Signal::SIGINT).unwrap();
        assert_eq!(drain.finished().await, Outcome::Cut { left: 1 });
        driver.abort();
    }
}
