//! How much of a tunnel a stream may use: of the window by which the peer sends to it, and of its thread's turn when it
//! sends. Alone in its tunnel, all of it, because long runs of one stream's bytes cost least; beside others a part, so that
//! a small message does not queue behind everybody's bulk. Counts bytes, not time: owns no clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::budget::{Account, Budget};
use crate::buffers::SMALL;
use crate::limits::TunnelLimits;

/// Bytes of a tunnel after which its streams are counted anew: some milliseconds of a busy tunnel, long enough
/// for a ping-pong to show up beside bulk data.
const ROUND: usize = 4 << 20;

/// Rounds without a large piece after which a stream's small ones are taken for messages.
const CALM: u32 = 2;

/// The smallest part of its window that a stream keeps. With the default window that is 256 KiB: measured, less
/// costs throughput and gains nothing.
const SMALLEST_PART: u32 = 4;

/// Bytes taken by the application are reported to the peer in steps of this size: each report takes a lock.
const STEP: u32 = 32 * 1024;

/// Which of a tunnel's streams are at work.
#[derive(Debug)]
struct Activity {
    round: AtomicU32,
    bytes: AtomicUsize,
    /// Streams that were in this round, and in the last.
    now: AtomicU32,
    last: AtomicU32,
}

impl Default for Activity {
    fn default() -> Self {
        // Rounds begin at one, so that a stream that was never at work is not counted in the first.
        Activity {
            round: AtomicU32::new(1),
            bytes: AtomicUsize::new(0),
            now: AtomicU32::new(0),
            last: AtomicU32::new(0),
        }
    }
}

impl Activity {
    /// Streams at work beside the one that moved these `count` bytes, which was last at work in round `mine`.
    fn beside(&self, mine: &mut u32, count: usize, at_work: bool) -> u32 {
        // Threads may race here; a stream counted twice or not at all in one round does no harm.
        let mut round = self.round.load(Relaxed);
        if self.bytes.fetch_add(count, Relaxed) + count >= ROUND {
            self.bytes.store(0, Relaxed);
            self.last.store(self.now.swap(0, Relaxed), Relaxed);
            round = round.wrapping_add(1);
            self.round.store(round, Relaxed);
        }
        if at_work && *mine != round {
            *mine = round;
            self.now.fetch_add(1, Relaxed);
        }
        let busy = self.now.load(Relaxed).max(self.last.load(Relaxed));
        busy.saturating_sub(u32::from(*mine == round))
    }
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
    /// Those that receive.
    receivers: Activity,
    /// Those that move large pieces in either direction.
    bulk: Activity,
    /// Those that have moved none for a while, and small ones now.
    light: Activity,
}

/// What else is at work in a stream's tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nothing that a long turn would hold up for long.
    Nothing,
    /// Streams that move large pieces.
    Bulk,
    /// Such, and streams that move small messages, which wait for the turns of all the others.
    BulkAndLight,
}

/// One stream's view of it.
#[derive(Debug)]
pub(crate) struct Credit {
    share: Share,
    /// The window that it last went by.
    window: u32,
    /// The last rounds in which this stream was counted.
    received_in: u32,
    bulk_in: u32,
    light_in: u32,
    beside: Beside,
    /// Taken by the application, and not reported to the peer.
    kept: usize,
    /// Taken since the engine was told anything.
    unseen: u32,
}

impl Share {
    /// Of a tunnel with these limits, whose streams start with this window.
    pub(crate) fn new(limits: &TunnelLimits, window: u32) -> Self {
        let tunnel = Tunnel {
            full: limits.stream_window,
            window: AtomicU32::new(window),
            send_buffer: limits.send_buffer,
            budget: limits.budget.clone(),
            receivers: Activity::default(),
            bulk: Activity::default(),
            light: Activity::default(),
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
        let (share, window) = (self.clone(), self.window());
        Credit {
            share,
            window,
            received_in: 0,
            bulk_in: 0,
            light_in: 0,
            beside: Beside::Nothing,
            kept: 0,
            unseen: 0,
        }
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

    /// The application took `count` bytes; answers how many to report to the engine now, none included: what it was told before it
    /// announces when that is half of what the peer has left, and it only looks when it is told something. A peer that waits for
    /// what was told and not announced would wait forever.
    pub(crate) fn taken(&mut self, count: usize) -> Option<usize> {
        self.kept += count;
        self.unseen = self.unseen.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.moved(count);
        let busy = 1 + self.share.tunnel.receivers.beside(&mut self.received_in, count, true);
        let window = self.share.window();
        let step = step(window);
        // More than one step (with a sensible window, eight and more), so that what is kept never stops the peer.
        let part = (self.share.tunnel.full / busy.clamp(1, SMALLEST_PART)).max(step + 1).min(window);
        let hold = (window - part) as usize;
        if self.kept >= hold + step as usize {
            let report = self.kept - hold;
            (self.kept, self.unseen) = (hold, 0);
            return Some(report);
        }
        (self.unseen >= step).then(|| {
            self.unseen = 0;
            0
        })
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

    /// The stream moves `count` bytes at once, in either direction. `taken` knows of those that it is told of.
    pub(crate) fn moved(&mut self, count: usize) {
        let Tunnel { bulk, light, .. } = &*self.share.tunnel;
        let others_bulk = bulk.beside(&mut self.bulk_in, count, count >= SMALL) > 0;
        // Bulk data comes in small pieces too, now and then.
        let is_light = bulk.round.load(Relaxed).wrapping_sub(self.bulk_in) > CALM;
        let others_light = light.beside(&mut self.light_in, count, is_light) > 0;
        self.beside = match (others_bulk, others_light) {
            (false, _) => Beside::Nothing,
            (true, false) => Beside::Bulk,
            (true, true) => Beside::BulkAndLight,
        };
    }

    pub(crate) fn beside(&self) -> Beside {
        self.beside
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

    /// The engine's side of a window, as h2 does it.
    struct Engine {
        peer_has: usize,
        unannounced: usize,
    }

    impl Engine {
        fn comes_and_is_taken(&mut self, count: usize, credit: &mut Credit) {
            assert!(self.peer_has >= count, "the peer waits, {} kept back", credit.kept);
            self.peer_has -= count;
            if let Some(report) = credit.taken(count) {
                self.unannounced += report;
                if self.unannounced >= self.peer_has / 2 {
                    self.peer_has += std::mem::take(&mut self.unannounced);
                }
            }
        }
    }

    #[test]
    fn a_stream_that_others_come_beside_goes_on_wherever_it_was() {
        const PIECE: usize = 1024;
        for alone in (0..1024).step_by(7) {
            let share = share(WINDOW);
            let mut others: Vec<Credit> = (0..8).map(|_| share.credit()).collect();
            let mut credit = share.credit();
            let mut engine = Engine { peer_has: WINDOW as usize, unannounced: 0 };
            (0..alone).for_each(|_| engine.comes_and_is_taken(PIECE, &mut credit));
            for _ in 0..2048 {
                engine.comes_and_is_taken(PIECE, &mut credit);
                others.iter_mut().for_each(|other| {
                    other.taken(PIECE);
                });
            }
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

    /// Streams that move `count` bytes in turns, for three rounds each.
    fn move_all(streams: &mut [Credit], count: usize) {
        (0..3 * ROUND / count).for_each(|_| streams.iter_mut().for_each(|stream| stream.moved(count)));
    }

    #[test]
    fn a_stream_knows_of_others_that_move_large_pieces() {
        let share = share(WINDOW);
        let mut streams: Vec<Credit> = (0..4).map(|_| share.credit()).collect();
        move_all(&mut streams, 64);
        assert!(
            streams.iter().all(|stream| stream.beside() == Beside::Nothing),
            "small messages crowd nobody"
        );
        move_all(&mut streams[..1], SMALL);
        assert_eq!(streams[0].beside(), Beside::Nothing, "not by itself");
        streams[1].moved(64);
        assert_eq!(streams[1].beside(), Beside::Bulk);
        move_all(&mut streams[..2], SMALL);
        assert!(
            streams[..2].iter().all(|stream| stream.beside() == Beside::Bulk),
            "the others say nothing now"
        );
        move_all(&mut streams[2..], 64);
        streams[0].moved(64);
        assert!(
            streams[2..].iter().all(|stream| stream.beside() == Beside::Nothing),
            "the others have stopped"
        );
        for _ in 0..3 {
            streams[3].taken(SMALL);
        }
        streams[2].moved(64);
        assert_ne!(streams[2].beside(), Beside::Nothing, "also by what is received");
    }

    #[test]
    fn bulk_knows_of_messages_that_wait_for_it() {
        let share = share(WINDOW);
        let mut streams: Vec<Credit> = (0..3).map(|_| share.credit()).collect();
        let (bulk, message) = streams.split_at_mut(2);
        for _ in 0..4 {
            move_all(bulk, SMALL);
            message[0].moved(64);
        }
        move_all(bulk, ROUND / 16);
        assert!(bulk.iter().all(|stream| stream.beside() == Beside::Bulk), "the messages have stopped");
        message[0].moved(64);
        bulk.iter_mut().for_each(|stream| stream.moved(SMALL));
        assert!(bulk.iter().all(|stream| stream.beside() == Beside::BulkAndLight));
        assert_eq!(message[0].beside(), Beside::Bulk);
    }

    #[test]
    fn small_pieces_of_bulk_data_are_no_messages() {
        let share = share(WINDOW);
        let mut streams: Vec<Credit> = (0..3).map(|_| share.credit()).collect();
        for _ in 0..4 {
            move_all(&mut streams, SMALL);
            streams.iter_mut().for_each(|stream| stream.moved(64));
        }
        assert!(streams.iter().all(|stream| stream.beside() == Beside::Bulk));
    }

    #[test]
    fn a_tiny_window_still_moves() {
        for window in [1, 5, 64, 1000, 65_535] {
            let share = share(window);
            let mut credits: Vec<Credit> = (0..10).map(|_| share.credit()).collect();
            for credit in &mut credits {
                let reported: usize = (0..window * 4).filter_map(|_| credit.taken(1)).sum();
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
