//! The window that a tunnel grants each of its streams: smaller while its workload's budget fills, larger again when
//! that has emptied. The engine changes it for all streams at once, by SETTINGS, and counts by the new value only
//! when the peer has acknowledged it; nothing tells us when that is, except that the engine takes the next value.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::part;
use crate::limits::TunnelLimits;
use crate::share::Share;

/// A window that shrank stays for so long, and grows by one step at a time: a workload that reads in fits and starts must
/// not cost two frames of SETTINGS for each of them, which peers count.
const GROWTH_EVERY: Duration = Duration::from_secs(1);

/// What one tunnel grants, and what it has asked its peer to go by.
pub(crate) struct Windows {
    share: Share,
    full: u32,
    /// The level of the budget that the engine's value is for.
    level: u32,
    /// The peer may not have heard of that value.
    unconfirmed: bool,
    changed: Instant,
}

impl Windows {
    /// For a new tunnel.
    pub(crate) fn new(limits: &TunnelLimits, now: Instant) -> Windows {
        let full = limits.stream_window;
        let level = limits.budget.level();
        let share = Share::new(limits, window(full, level));
        Windows { share, full, level, unconfirmed: false, changed: now }
    }

    /// What the tunnel's streams share.
    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// What the engine is to start with.
    pub(crate) fn first(&self) -> u32 {
        self.share.window()
    }

    /// After each poll of the engine. `set` gives it a new value, and fails while the last one is not acknowledged.
    pub(crate) fn follow<E>(&mut self, cx: &mut Context<'_>, set: impl FnOnce(u32) -> Result<(), E>) {
        let wanted = self.wanted();
        if wanted == self.level && !self.unconfirmed || set(window(self.full, wanted)).is_err() {
            return;
        }
        // What was just taken has still to be sent.
        cx.waker().wake_by_ref();
        if self.unconfirmed {
            self.share.set_window(window(self.full, self.level));
        }
        self.unconfirmed = wanted != self.level;
        if self.unconfirmed {
            self.level = wanted;
            self.changed = Instant::now();
        }
    }

    fn wanted(&self) -> u32 {
        let budget = self.share.budget();
        let level = budget.level();
        if level >= self.level {
            return level;
        }
        let grows = budget.eases(self.level) && self.changed.elapsed() >= GROWTH_EVERY;
        if grows { self.level - 1 } else { self.level }
    }
}

fn window(full: u32, level: u32) -> u32 {
    // A part of a `u32` is one.
    u32::try_from(part(full as usize, level)).unwrap_or(full)
}
