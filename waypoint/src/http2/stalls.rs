//! Bodies that wait for somebody to read: each holds windows full of bytes, so that few may wait for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::flow::Flow;
use super::limits::{STALLED_ANYWAY, STALLED_FOR, STALLED_MAX};

/// How many wait, of all connections that share it.
#[derive(Debug, Default)]
pub struct Stalls(AtomicUsize);

impl Stalls {
    /// How long one may wait; `None`: as long as it likes.
    fn patience(&self) -> Option<Duration> {
        match self.0.load(Relaxed) {
            count if count > STALLED_MAX => Some(Duration::ZERO),
            count if count > STALLED_ANYWAY => Some(STALLED_FOR),
            _ => None,
        }
    }
}

/// One that may wait.
pub(super) struct Stall {
    stalls: Arc<Stalls>,
    waits: bool,
    since: Instant,
    bytes: u64,
}

impl Stall {
    pub(super) fn new(stalls: &Arc<Stalls>) -> Self {
        Self { stalls: Arc::clone(stalls), waits: false, since: Instant::now(), bytes: 0 }
    }

    /// When it must end, if nothing of it moves before.
    pub(super) fn deadline(&mut self, flow: &Flow) -> Option<Instant> {
        if self.waits != flow.is_blocked() {
            self.turn();
        }
        if !self.waits {
            return None;
        }
        if self.bytes != flow.bytes() {
            (self.bytes, self.since) = (flow.bytes(), Instant::now());
        }
        self.stalls.patience().map(|patience| self.since + patience)
    }

    fn turn(&mut self) {
        self.waits = !self.waits;
        if self.waits {
            self.stalls.0.fetch_add(1, Relaxed);
            self.since = Instant::now();
        } else {
            self.stalls.0.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        if self.waits {
            self.turn();
        }
    }
}
