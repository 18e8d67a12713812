//! What the streams of one workload may hold together: bytes that came and were not taken, and bytes that wait to be sent.
//! Counts them, says how much a stream may have while they add up, and when that does not suffice names the streams
//! that must end, the longest stalled first. Whoever hands one budget to several tunnels makes them share it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::buffers::SMALL;
use crate::limits::BUDGET;

/// A budget is used up in this many steps; each divides what a stream may have by four.
const STEPS: usize = 4;

/// When streams must end, so many that the budget is free by one part in this many: looking for them visits them all.
const SPARE_PART: usize = 8;

/// A shared allowance in bytes. Clones are the same budget.
#[derive(Clone)]
pub struct Budget {
    ledger: Arc<Ledger>,
}

struct Ledger {
    limit: usize,
    held: AtomicUsize,
    /// Of that, what streams hold that were told to end.
    condemned: AtomicUsize,
    start: Instant,
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    next: u64,
    meters: HashMap<u64, Arc<Meter>>,
}

/// What one stream holds, as others may see it.
pub(crate) struct Meter {
    ledger: Arc<Ledger>,
    /// Which tunnel it is in, by a number that only means "the same".
    tunnel: usize,
    unread: Side,
    unsent: Side,
    /// It waits until something of what it holds unsent has gone.
    wants_room: AtomicBool,
    /// What it held when it was told to end; zero if it was not.
    condemned: AtomicUsize,
    task: AtomicWaker,
}

/// One direction of a stream.
#[derive(Default)]
struct Side {
    held: AtomicUsize,
    /// When it last moved while something was held, in milliseconds of the budget's life.
    moved: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(BUDGET)
    }
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: usize) -> Self {
        let ledger = Ledger {
            limit: limit.max(STEPS),
            held: AtomicUsize::new(0),
            condemned: AtomicUsize::new(0),
            start: Instant::now(),
            streams: Mutex::default(),
        };
        Budget { ledger: Arc::new(ledger) }
    }

    /// Bytes held now. What came in the last moments, and a few KiB per stream of messages that are being sent, are not in it.
    pub fn held(&self) -> usize {
        self.ledger.held.load(Relaxed)
    }

    /// More is held than may be, and it will not do that streams which were told to end have ended: nothing new should begin.
    pub fn is_exceeded(&self) -> bool {
        self.ledger.standing() > self.ledger.limit
    }

    /// How many steps of the budget are used up.
    pub(crate) fn level(&self) -> u32 {
        // At most STEPS - 1, which fits.
        (self.held() / (self.ledger.limit / STEPS)).min(STEPS - 1) as u32
    }

    /// So little is held that streams could have what they had one level below without coming back to this one.
    pub(crate) fn eases(&self, level: u32) -> bool {
        let entered_at = self.ledger.limit / STEPS * level as usize;
        // One level below, the same streams may hold four times as much.
        self.held().saturating_mul(4) < entered_at
    }

    /// Lets the streams of a tunnel look again at what they may have.
    pub(crate) fn rouse(&self, tunnel: usize) {
        for meter in self.ledger.streams.lock().meters.values().filter(|meter| meter.tunnel == tunnel) {
            meter.task.wake();
        }
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("limit", &self.ledger.limit).field("held", &self.held()).finish()
    }
}

/// What a stream may have of `full` at this level. Never less than a quiet read, so that every stream moves.
pub(crate) fn part(full: usize, level: u32) -> usize {
    (full >> (2 * level)).max(SMALL).min(full)
}

impl Ledger {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What is held by streams that may go on.
    fn standing(&self) -> usize {
        self.held.load(Relaxed).saturating_sub(self.condemned.load(Relaxed))
    }

    fn free(&self) {
        let target = self.limit - self.limit / SPARE_PART;
        let streams = self.streams.lock();
        let standing = self.standing();
        if standing <= self.limit {
            return;
        }
        let innocent = streams.meters.values().filter(|meter| meter.condemned.load(Relaxed) == 0);
        let mut holders: Vec<_> =
            innocent.filter_map(|meter| Some((meter.stalled_since()?, meter))).collect();
        holders.sort_unstable_by_key(|(since, _)| *since);
        let mut excess = standing - target;
        for (_, meter) in holders {
            let held = meter.unread.held.load(Relaxed) + meter.unsent.held.load(Relaxed);
            meter.condemned.store(held, Relaxed);
            self.condemned.fetch_add(held, Relaxed);
            meter.task.wake();
            excess = excess.saturating_sub(held);
            if excess == 0 {
                return;
            }
        }
    }
}

impl Meter {
    fn add(&self, side: &Side, count: usize) {
        if side.held.fetch_add(count, SeqCst) == 0 {
            side.moved.store(self.ledger.now(), Relaxed);
        }
        let held = self.ledger.held.fetch_add(count, Relaxed) + count;
        if held > self.ledger.limit && self.ledger.standing() > self.ledger.limit {
            self.ledger.free();
        }
    }

    fn subtract(&self, side: &Side, count: usize) {
        side.held.fetch_sub(count, SeqCst);
        side.moved.store(self.ledger.now(), Relaxed);
        self.ledger.held.fetch_sub(count, Relaxed);
    }

    /// Since when the direction stands still that has stood longest, of those in which something is held.
    fn stalled_since(&self) -> Option<u64> {
        let sides = [&self.unread, &self.unsent].into_iter();
        sides.filter(|side| side.held.load(Relaxed) > 0).map(|side| side.moved.load(Relaxed)).min()
    }
}

/// A stream's own view of what it holds.
pub(crate) struct Account {
    meter: Arc<Meter>,
    id: u64,
    /// Received and not taken; the meter shows it once nothing else came and it is still there.
    unread: usize,
    shown: usize,
    /// Sent in pieces too small to be followed one by one.
    loose: usize,
}

impl Account {
    pub(crate) fn open(budget: &Budget, tunnel: usize) -> Account {
        let ledger = budget.ledger.clone();
        let meter = Arc::new(Meter {
            ledger,
            tunnel,
            unread: Side::default(),
            unsent: Side::default(),
            wants_room: AtomicBool::new(false),
            condemned: AtomicUsize::new(0),
            task: AtomicWaker::new(),
        });
        let mut streams = budget.ledger.streams.lock();
        let id = streams.next;
        streams.next += 1;
        streams.meters.insert(id, meter.clone());
        Account { meter, id, unread: 0, shown: 0, loose: 0 }
    }

    /// Whose task is told when there is something to look at.
    pub(crate) fn register(&self, waker: &Waker) {
        self.meter.task.register(waker);
    }

    /// The stream must end, because all together hold too much and it has stalled longest.
    pub(crate) fn is_condemned(&self) -> bool {
        self.meter.condemned.load(Relaxed) > 0
    }

    pub(crate) fn received(&mut self, count: usize) {
        self.unread += count;
    }

    /// Nothing more has come: what is still held now is held up.
    pub(crate) fn show(&mut self) {
        if self.unread > self.shown {
            self.meter.add(&self.meter.unread, self.unread - self.shown);
            self.shown = self.unread;
        }
    }

    pub(crate) fn taken(&mut self, count: usize) {
        self.unread = self.unread.saturating_sub(count);
        if self.shown > self.unread {
            self.meter.subtract(&self.meter.unread, self.shown - self.unread);
            self.shown = self.unread;
        }
    }

    /// Waits until some bytes may be sent, and answers how many: of `full` in the best of times, less at a higher level.
    pub(crate) fn poll_room(&self, cx: &Context<'_>, full: usize, level: u32) -> Poll<usize> {
        let room = || part(full, level).saturating_sub(self.meter.unsent.held.load(SeqCst));
        let now = room();
        if now > 0 {
            return Poll::Ready(now);
        }
        self.register(cx.waker());
        self.meter.wants_room.store(true, SeqCst);
        // Something may have gone meanwhile.
        match room() {
            0 => Poll::Pending,
            room => Poll::Ready(room),
        }
    }

    /// Counts `count` bytes in a small copy. Answers what is to be counted with it: nothing mostly, and now and then the
    /// small copies before it too, because what is sent in order has left in order.
    pub(crate) fn loose(&mut self, count: usize, most: usize) -> usize {
        self.loose += count;
        if self.loose < most { 0 } else { std::mem::take(&mut self.loose) }
    }

    /// Counts `count` bytes until the answer is dropped.
    pub(crate) fn unsent(&self, count: usize) -> Unsent {
        self.meter.add(&self.meter.unsent, count);
        Unsent { meter: self.meter.clone(), count }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.taken(self.unread);
        let ledger = &self.meter.ledger;
        let mut streams = ledger.streams.lock();
        streams.meters.remove(&self.id);
        // Under the lock nobody condemns it any more.
        ledger.condemned.fetch_sub(self.meter.condemned.load(Relaxed), Relaxed);
    }
}

/// Bytes that wait to be sent, until they have been or never will be.
pub(crate) struct Unsent {
    meter: Arc<Meter>,
    count: usize,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.meter.subtract(&self.meter.unsent, self.count);
        if self.meter.wants_room.swap(false, SeqCst) {
            self.meter.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A stream that holds so many bytes unread.
    fn stalled(budget: &Budget, bytes: usize) -> Account {
        let mut account = Account::open(budget, 0);
        account.received(bytes);
        account.show();
        account
    }

    #[test]
    fn each_step_leaves_a_quarter_and_everybody_a_frame() {
        let parts = |full| [0, 1, 2, 3].map(|level| part(full, level));
        assert_eq!(parts(1 << 20), [1 << 20, 256 << 10, 64 << 10, 16 << 10]);
        assert_eq!(parts(512 << 10), [512 << 10, 128 << 10, 32 << 10, 16 << 10]);
        assert_eq!(parts(1000), [1000; 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_stalled_must_end_and_only_as_many_as_it_takes() {
        let budget = Budget::new(1000);
        let mut streams = Vec::new();
        for _ in 0..9 {
            streams.push(stalled(&budget, 100));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let quiet = Account::open(&budget, 0);
        // Its application has taken something just now, and something of what another sends has left.
        streams[0].taken(1);
        drop(streams[1].unsent(1));
        let mut unsent = Account::open(&budget, 1);
        let waiting = unsent.unsent(50);
        assert!(!streams.iter().any(Account::is_condemned) && budget.level() == 3);
        streams.push(stalled(&budget, 100));
        // 1049 are held, 875 may stay. What left of the second's sending does not help what it has not read.
        let told: Vec<_> = streams.iter().map(Account::is_condemned).collect();
        assert_eq!(told, [false, true, true, false, false, false, false, false, false, false]);
        assert!(!quiet.is_condemned() && !unsent.is_condemned());
        assert!(!budget.is_exceeded(), "they are about to end");
        drop(streams);
        assert_eq!(budget.held(), 50);
        unsent.received(1000);
        unsent.show();
        assert!(unsent.is_condemned());
        drop(unsent);
        assert_eq!(budget.held(), 50, "what it sent may still be on its way");
        drop(waiting);
        assert_eq!((budget.held(), budget.level()), (0, 0));
    }

    #[test]
    fn what_is_taken_as_it_comes_is_never_counted() {
        let budget = Budget::new(1000);
        let mut account = Account::open(&budget, 0);
        for _ in 0..100 {
            account.received(900);
            account.taken(900);
            account.show();
            assert_eq!(budget.held(), 0);
        }
    }

    #[test]
    fn there_is_room_again_when_something_has_left() {
        let budget = Budget::default();
        let account = Account::open(&budget, 0);
        let cx = Context::from_waker(Waker::noop());
        let unsent = account.unsent(20_000);
        assert_eq!(account.poll_room(&cx, 1 << 20, 2), Poll::Ready(65_536 - 20_000));
        assert_eq!(account.poll_room(&cx, 1 << 20, 3), Poll::Pending);
        drop(unsent);
        assert_eq!(account.poll_room(&cx, 1 << 20, 3), Poll::Ready(16_384));
    }
}
