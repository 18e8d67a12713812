//! When a silent tunnel is asked whether it is alive, given up, or closed because nobody uses it. Decides by what it
//! is told; the tunnel's task owns the timer and the PING.

use std::time::Duration;

use tokio::time::Instant;

/// What to do at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    /// Look again at this time.
    Wait(Instant),
    /// Send a PING, and look again at this time.
    Ping(Instant),
    /// Nobody used it for the idle time.
    Idle,
    /// It did not answer in time.
    Dead,
}

/// What one tunnel's life signs are.
pub(crate) struct Keepalive {
    interval: Duration,
    deadline: Duration,
    idle: Option<Duration>,
    received: u64,
    heard: Instant,
    asked: Option<Instant>,
    used: Instant,
    /// Used since the last tick, even if only shortly.
    touched: bool,
}

impl Keepalive {
    /// `idle` is for the end that closes unused tunnels.
    pub(crate) fn new(interval: Duration, deadline: Duration, idle: Option<Duration>, now: Instant) -> Self {
        Keepalive {
            interval,
            deadline,
            idle,
            received: 0,
            heard: now,
            asked: None,
            used: now,
            touched: false,
        }
    }

    /// When to look first.
    pub(crate) fn first(&self) -> Instant {
        self.heard + self.interval
    }

    /// Somebody uses the tunnel.
    pub(crate) fn touch(&mut self) {
        self.touched = true;
    }

    /// `received` counts the bytes read so far; `busy` means that streams are open.
    pub(crate) fn tick(&mut self, now: Instant, received: u64, busy: bool) -> Tick {
        if received != self.received {
            self.received = received;
            self.heard = now;
            self.asked = None;
        }
        if std::mem::take(&mut self.touched) || busy {
            self.used = now;
        } else if self.idle.is_some_and(|idle| now >= self.used + idle) {
            return Tick::Idle;
        }
        match self.asked {
            Some(asked) if now >= asked + self.deadline => Tick::Dead,
            Some(asked) => Tick::Wait((asked + self.deadline).min(now + self.interval)),
            None if now >= self.heard + self.interval => {
                self.asked = Some(now);
                Tick::Ping(now + self.interval.min(self.deadline))
            }
            None => Tick::Wait(self.heard + self.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn keepalive(idle: Option<u32>) -> (Keepalive, Instant) {
        let now = Instant::now();
        (Keepalive::new(10 * SECOND, 20 * SECOND, idle.map(|idle| idle * SECOND), now), now)
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        let (mut alive, start) = keepalive(None);
        assert_eq!(alive.tick(start + 10 * SECOND, 0, true), Tick::Ping(start + 20 * SECOND));
        assert_eq!(alive.tick(start + 20 * SECOND, 0, true), Tick::Wait(start + 30 * SECOND));
        assert_eq!(alive.tick(start + 30 * SECOND, 0, true), Tick::Dead);
    }

    #[test]
    fn any_byte_is_an_answer_and_a_busy_tunnel_is_not_asked() {
        let (mut alive, start) = keepalive(None);
        for second in 1..100u32 {
            let tick = alive.tick(start + second * 5 * SECOND, u64::from(second), true);
            assert_eq!(tick, Tick::Wait(start + second * 5 * SECOND + 10 * SECOND));
        }
    }

    #[test]
    fn an_unused_tunnel_is_closed_although_it_answers() {
        let (mut alive, start) = keepalive(Some(60));
        let mut closed_at = None;
        for second in (10..=100).step_by(10) {
            if alive.tick(start + second * SECOND, u64::from(second), second <= 20) == Tick::Idle {
                closed_at.get_or_insert(second);
            }
        }
        assert_eq!(closed_at, Some(80));
    }

    #[test]
    fn a_use_between_two_looks_counts() {
        let (mut alive, start) = keepalive(Some(60));
        for second in (10..=600u32).step_by(10) {
            alive.touch();
            assert_ne!(alive.tick(start + second * SECOND, u64::from(second), false), Tick::Idle);
        }
    }
}
