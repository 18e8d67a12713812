//! When requests are due: at once, or on a fixed schedule that does not wait for answers.
//!
//! On a schedule a request's time counts from when it was due, so that one that had to wait for others is not flattered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

/// Requests that are due and that nobody has taken yet; all of a second's at 100,000 per second. More is a proxy that does not
/// keep up, whose figures mean nothing.
const BEHIND_MAX: usize = 100_000;

/// Requests that are due.
#[derive(Debug)]
pub(crate) struct Pace {
    due: RefCell<VecDeque<Instant>>,
    more: Notify,
}

impl Pace {
    /// So many requests per second from now on, evenly, in bursts of so many at once.
    pub(crate) fn start(per_second: u32, burst: u32) -> anyhow::Result<Rc<Self>> {
        let interval = Duration::from_secs(1) * burst / per_second.max(1);
        // The runtime's own timers are too coarse: a thread waits for one of the kernel's, and wakes us.
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC).context("make a timer")?;
        let every = Expiration::Interval(TimeSpec::from_duration(interval));
        timer.set(every, TimerSetTimeFlags::empty()).context("set a timer")?;
        let next = Instant::now() + interval;
        let (mut here, there) = UnixStream::pair()?;
        there.set_nonblocking(true)?;
        let there = tokio::net::UnixStream::from_std(there)?;
        thread::spawn(move || while timer.wait().is_ok() && here.write_all(&[0]).is_ok() {});
        let pace = Rc::new(Self { due: RefCell::default(), more: Notify::new() });
        tokio::task::spawn_local(Rc::clone(&pace).tick(there, next, (interval, burst)));
        Ok(pace)
    }

    /// Waits for the next request's turn, and says when it was due.
    pub(crate) async fn next(&self) -> Instant {
        loop {
            let due = self.due.borrow_mut().pop_front();
            match due {
                Some(due) => return due,
                None => self.more.notified().await,
            }
        }
    }

    /// Requests that are due and were not sent.
    pub(crate) fn behind(&self) -> usize {
        self.due.borrow().len()
    }

    async fn tick(
        self: Rc<Self>,
        mut ticks: tokio::net::UnixStream,
        mut next: Instant,
        (interval, burst): (Duration, u32),
    ) {
        // How many there were is told by the clock, which misses none.
        while ticks.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {
            let now = Instant::now();
            while next <= now && self.behind() < BEHIND_MAX {
                for _ in 0..burst {
                    self.due.borrow_mut().push_back(next);
                    self.more.notify_one();
                }
                next += interval;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_schedule_waits_for_nobody() {
        let local = tokio::task::LocalSet::new();
        let rest = local.run_until(async {
            let pace = Pace::start(1000, 1).expect("a timer");
            let first = pace.next().await;
            while pace.behind() < 10 {
                tokio::task::yield_now().await;
            }
            let mut before = first;
            for _ in 0..10 {
                let due = pace.next().await;
                assert_eq!(due - before, Duration::from_millis(1), "evenly, however late they are taken");
                before = due;
            }
        });
        rest.await;
    }
}
