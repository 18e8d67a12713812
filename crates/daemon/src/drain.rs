//! Drain: one signal from "stop taking new work" to "the last work is done, or the deadline has passed".
//!
//! [`Drain`] is the side that decides, [`Watch`] the side that obeys, [`Hold`] one piece of live work. It knows no sockets: what
//! stopping means is up to whoever holds a watch.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// Where the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Working.
    Running,
    /// No new work; live work may finish until the deadline.
    Draining {
        /// When patience ends.
        deadline: Instant,
    },
    /// Patience has ended: live work is to be cut.
    Forced,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All work had finished.
    Empty,
    /// The deadline passed, or [`Drain::force`] was called, with so many pieces of work left.
    Cut {
        /// Live holds at that moment.
        left: usize,
    },
}

/// The deciding side. Clones share the signal.
#[derive(Clone, Debug)]
pub struct Drain {
    stage: Arc<watch::Sender<Stage>>,
    live: Arc<Live>,
}

/// The obeying side. Each clone waits on its own.
#[derive(Clone, Debug)]
pub struct Watch {
    stage: watch::Receiver<Stage>,
    live: Arc<Live>,
}

/// One piece of live work; dropping it says that the work has ended.
#[derive(Debug)]
#[must_use = "the work counts as ended when its hold is dropped"]
pub struct Hold(Arc<Live>);

#[derive(Debug, Default)]
struct Live {
    count: AtomicUsize,
    emptied: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A process that runs.
    pub fn new() -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Running)), live: Arc::default() }
    }

    /// A watch for one part of the process.
    pub fn watch(&self) -> Watch {
        Watch { stage: self.stage.subscribe(), live: self.live.clone() }
    }

    /// Tells every watch to take no new work and to finish within `patience`. A later call changes nothing: the first
    /// deadline is the one that live work was promised.
    pub fn begin(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.stage.send_if_modified(|stage| {
            let running = *stage == Stage::Running;
            if running {
                *stage = Stage::Draining { deadline };
            }
            running
        });
    }

    /// Ends patience now.
    pub fn force(&self) {
        self.stage.send_replace(Stage::Forced);
    }

    /// Where we are.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Live pieces of work.
    pub fn live(&self) -> usize {
        self.live.count.load(Ordering::SeqCst)
    }

    /// Waits for a drain to begin and to end. At the deadline every watch is told that patience has ended
    /// ([`Watch::forced`]), then this returns.
    pub async fn finished(&self) -> Outcome {
        let mut watch = self.watch();
        watch.begun().await;
        let outcome = tokio::select! {
            biased;
            () = self.live.emptied() => Outcome::Empty,
            () = watch.forced() => Outcome::Cut { left: self.live() },
        };
        self.force();
        outcome
    }
}

impl Watch {
    /// Resolves when the drain begins; at once when it has.
    pub async fn begun(&mut self) {
        if self.stage.wait_for(|stage| *stage != Stage::Running).await.is_err() {
            // Every Drain is gone without having begun: nobody will ever ask us to stop.
            pending::<()>().await;
        }
    }

    /// Resolves when patience has ended: at the deadline or at [`Drain::force`], whichever is first.
    pub async fn forced(&mut self) {
        self.begun().await;
        let deadline = match *self.stage.borrow() {
            Stage::Draining { deadline } => deadline,
            Stage::Running | Stage::Forced => return,
        };
        tokio::select! {
            () = sleep_until(deadline) => {}
            forced = self.stage.wait_for(|stage| *stage == Stage::Forced) => {
                if forced.is_err() {
                    // Nobody is left to force us; the deadline still holds. (The guard is dropped with `forced`.)
                    drop(forced);
                    sleep_until(deadline).await;
                }
            }
        }
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        *self.stage.borrow() != Stage::Running
    }

    /// Counts one piece of live work. Allowed while draining too: work that raced the signal is still work.
    pub fn hold(&self) -> Hold {
        self.live.count.fetch_add(1, Ordering::SeqCst);
        Hold(self.live.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

impl Live {
    async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            tokio::pin!(notified);
            // Registered before the check, so that a hold dropped in between is not missed.
            notified.as_mut().enable();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_last_hold_is_dropped() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        let hold = watch.hold();
        let worker = tokio::spawn(async move {
            watch.begun().await;
            drop(hold);
        });
        assert_eq!(drain.live(), 1);
        let began = Instant::now();
        drain.begin(PATIENCE);
        assert_eq!(drain.finished().await, Outcome::Empty);
        assert_eq!(Instant::now(), began);
        worker.await.unwrap();
        assert_eq!(drain.stage(), Stage::Forced);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_deadline_counts_and_cuts() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        let _hold = watch.hold();
        let began = Instant::now();
        drain.begin(PATIENCE);
        drain.begin(PATIENCE * 5);
        assert!(watch.has_begun());
        let (outcome, ()) = tokio::join!(drain.finished(), watch.forced());
        assert_eq!(outcome, Outcome::Cut { left: 1 });
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn force_ends_patience_at_once() {
        let drain = Drain::new();
        let _hold = drain.watch().hold();
        let began = Instant::now();
        drain.begin(PATIENCE);
        let other = drain.clone();
        let (outcome, ()) = tokio::join!(drain.finished(), async move { other.force() });
        assert_eq!(outcome, Outcome::Cut { left: 1 });
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_outlives_the_deciding_side() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drain.begin(PATIENCE);
        drop(drain);
        let began = Instant::now();
        watch.forced().await;
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn never_begun_never_resolves() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drop(drain);
        assert!(tokio::time::timeout(PATIENCE, watch.begun()).await.is_err());
    }
}
