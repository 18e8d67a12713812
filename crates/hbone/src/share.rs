//! How much of the tunnel's window a stream may really use. Alone in its tunnel, all of it, because long runs of one stream's
//! bytes cost least; beside others a part, so that a small message does not queue behind everybody's bulk. Counts
//! bytes, not time: owns no clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::budget::{Account, Budget};
use crate::limits::TunnelLimits;

/// Bytes of a tunnel after which its streams are counted anew: some milliseconds of a busy tunnel, long enough
/// for a ping-pong to show up beside bulk data.
const ROUND: usize = 4 << 20;

/// The smallest part of its window that a stream keeps. With the default window that is 256 KiB: measured, less
/// costs throughput and gains nothing.
const SMALLEST_PART: u32 = 4;

/// Bytes taken by the application are reported to the peer in steps of this size: each report takes a lock.
const STEP: u32 = 32 * 1024;

/// Which of a tunnel's streams receive.
#[derive(Debug, Default)]
struct Activity {
    round: AtomicU32,
    bytes: AtomicUsize,
    /// Streams that received in this round, and in the last.
    now: AtomicU32,
    last: AtomicU32,
}

/// What the streams of one tunnel share.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    tunnel: Arc<Tunnel>,
}

#[derive(Debug)]
struct Tunnel {
    /// What a stream gets in the best of times; the part that it keeps beside others is a part of this.
    full: u32,
    /// What it gets now, by the peer's knowledge too.
    window: AtomicU32,
    send_buffer: usize,
    budget: Budget,
    activity: Activity,
}

/// One stream's view of it.
#[derive(Debug)]
pub(crate) struct Credit {
    share: Share,
    /// The window that it last went by.
    window: u32,
    /// The last round in which this stream was counted.
    round: u32,
    /// Taken by the application, and not reported to the peer.
    kept: usize,
}

impl Share {
    /// Of a tunnel with these limits, whose streams start with this window.
    pub(crate) fn new(limits: &TunnelLimits, window: u32) -> Self {
        // Rounds begin at one, so that a stream that never received is not counted in the first.
        let activity = Activity { round: AtomicU32::new(1), ..Activity::default() };
        let tunnel = Tunnel {
            full: limits.stream_window,
            window: AtomicU32::new(window),
            send_buffer: limits.send_buffer,
            budget: limits.budget.clone(),
            activity,
        };
        Share { tunnel: Arc::new(tunnel) }
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.tunnel.budget
    }

    /// What a stream may send ahead of its peer's reading, in the best of times.
    pub(crate) fn send_buffer(&self) -> usize {
        self.tunnel.send_buffer
    }

    pub(crate) fn window(&self) -> u32 {
        self.tunnel.window.load(Relaxed)
    }

    /// The peer goes by another window now. Every stream hears of it: one that kept credits back, or whose window is below
    /// zero now though nothing of it is unread, would otherwise wait for bytes that its peer may not send.
    pub(crate) fn set_window(&self, window: u32) {
        self.tunnel.window.store(window, Relaxed);
        self.tunnel.budget.rouse(self.number());
    }

    pub(crate) fn credit(&self) -> Credit {
        Credit { share: self.clone(), window: self.window(), round: 0, kept: 0 }
    }

    /// Where a stream of this tunnel counts what it holds.
    pub(crate) fn account(&self) -> Account {
        Account::open(self.budget(), self.number())
    }

    /// Differs between the tunnels that there are.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.tunnel) as usize
    }
}

impl Credit {
    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// The application took `count` bytes; answers how many to report to the peer now.
    pub(crate) fn taken(&mut self, count: usize) -> usize {
        self.kept += count;
        let busy = self.count_in(count);
        let window = self.share.window();
        let step = step(window);
        // More than one step (with a sensible window, eight and more), so that what is kept never stops the peer.
        let part = (self.share.tunnel.full / busy.clamp(1, SMALLEST_PART)).max(step + 1).min(window);
        let hold = (window - part) as usize;
        if self.kept >= hold + step as usize {
            let report = self.kept - hold;
            self.kept = hold;
            return report;
        }
        0
    }

    /// After a change of the window: how many bytes to report, none included, because the engine then sees for itself
    /// whether the peer waits for a word.
    pub(crate) fn resettle(&mut self) -> Option<usize> {
        let window = self.share.window();
        (self.window != window).then(|| {
            self.window = window;
            std::mem::take(&mut self.kept)
        })
    }

    /// Streams of the tunnel that receive, this one included.
    fn count_in(&mut self, count: usize) -> u32 {
        // Threads may race here; a stream counted twice or not at all in one round does no harm.
        let activity = &self.share.tunnel.activity;
        let mut round = activity.round.load(Relaxed);
        if activity.bytes.fetch_add(count, Relaxed) + count >= ROUND {
            activity.bytes.store(0, Relaxed);
            activity.last.store(activity.now.swap(0, Relaxed), Relaxed);
            round = round.wrapping_add(1);
            activity.round.store(round, Relaxed);
        }
        if self.round != round {
            self.round = round;
            activity.now.fetch_add(1, Relaxed);
        }
        activity.now.load(Relaxed).max(activity.last.load(Relaxed))
    }
}

fn step(window: u32) -> u32 {
    STEP.min(window / (SMALLEST_PART * 8)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u32 = 1 << 20;

    fn share(window: u32) -> Share {
        Share::new(&TunnelLimits { stream_window: window, ..TunnelLimits::default() }, window)
    }

    /// Lets every stream take everything it may, for a while; answers the largest credit each ever lacked.
    fn run(streams: usize, bytes: usize) -> Vec<usize> {
        let share = share(WINDOW);
        let mut credits: Vec<Credit> = (0..streams).map(|_| share.credit()).collect();
        for _ in 0..bytes / 16_384 {
            for credit in &mut credits {
                credit.taken(16_384);
                assert!(credit.kept < WINDOW as usize, "the peer can always send");
            }
        }
        credits.iter().map(|credit| credit.kept).collect()
    }

    #[test]
    fn a_stream_alone_uses_its_whole_window() {
        assert!(run(1, 64 << 20).iter().all(|kept| *kept < STEP as usize));
    }

    #[test]
    fn streams_side_by_side_use_a_part() {
        let quarter = (WINDOW / SMALLEST_PART) as usize;
        for kept in run(8, 16 << 20) {
            assert!(
                (WINDOW as usize - quarter..WINDOW as usize - quarter + STEP as usize).contains(&kept),
                "{kept}"
            );
        }
    }

    #[test]
    fn a_stream_that_is_left_alone_gets_its_window_back() {
        let share = share(WINDOW);
        let (mut stays, mut goes) = (share.credit(), share.credit());
        for _ in 0..1000 {
            stays.taken(16_384);
            goes.taken(16_384);
        }
        assert!(stays.kept >= (WINDOW / 2) as usize);
        for _ in 0..1000 {
            stays.taken(16_384);
        }
        assert!(stays.kept < STEP as usize, "{}", stays.kept);
    }

    #[test]
    fn a_tiny_window_still_moves() {
        for window in [1, 5, 64, 1000, 65_535] {
            let share = share(window);
            let mut credits: Vec<Credit> = (0..10).map(|_| share.credit()).collect();
            for credit in &mut credits {
                let reported: usize = (0..window * 4).map(|_| credit.taken(1)).sum();
                assert!(reported > 0, "window {window}");
                assert!(credit.kept < window as usize, "window {window}: {} kept", credit.kept);
            }
        }
    }

    #[test]
    fn what_was_kept_back_is_reported_when_the_window_shrinks() {
        let share = share(WINDOW);
        let mut credits: Vec<Credit> = (0..8).map(|_| share.credit()).collect();
        for _ in 0..100 {
            for credit in &mut credits {
                credit.taken(16_384);
            }
        }
        assert!(credits.iter().all(|credit| credit.kept >= (WINDOW / 2) as usize));
        assert!(credits.iter_mut().all(|credit| credit.resettle().is_none()), "nothing has changed");
        share.set_window(WINDOW / 4);
        for credit in &mut credits {
            assert!(credit.resettle().is_some_and(|report| report >= (WINDOW / 2) as usize));
            assert_eq!(credit.resettle(), None);
            for _ in 0..100 {
                credit.taken(16_384);
                assert!(credit.kept < STEP as usize, "a quarter is what it would have beside others");
            }
        }
    }
}
