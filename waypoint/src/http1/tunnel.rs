//! A connection that changed its protocol: bytes both ways, with half-closes, until both sides have ended.

use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::client::Client;
use super::framing::Framing;
use super::pump::{Broken, Pump, Shape};
use super::wire::Wire;
use crate::decide::{Exchange, Failure, Outcome};

/// Relays; answers the bytes from the client and those to it as well. A side that breaks breaks the other, and both are cut when
/// `hooks` say that the client is not let through any more.
pub(super) async fn relay<A, B, F>(
    client: &mut Client<'_, A, F>,
    server: &mut Wire<B>,
    hooks: &mut impl Exchange,
) -> (Outcome, (u64, u64))
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
{
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut last = Instant::now();
    let outcome = poll_fn(|cx| {
        let mut moved = false;
        let there = match up.poll(cx, (&mut client.wire, server), &mut moved) {
            Poll::Ready(Err(Broken::Sink(error))) => {
                return Poll::Ready(Outcome::ResponseLost(Failure::Io(error)));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Outcome::ClientGone),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let back = match down.poll(cx, (server, &mut client.wire), &mut moved) {
            Poll::Ready(Err(Broken::Source(error))) => {
                return Poll::Ready(Outcome::ResponseLost(Failure::Io(error)));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Outcome::ClientGone),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if there && back {
            return Poll::Ready(Outcome::Forwarded);
        }
        if hooks.poll_revoked(cx).is_ready() {
            return Poll::Ready(Outcome::Aborted);
        }
        if moved {
            last = Instant::now();
        }
        client.timer.poll(cx, last + client.timeouts.exchange).map(|()| Outcome::TimedOut)
    })
    .await;
    (outcome, (up.pump.payload(), down.pump.payload()))
}

/// Carries bytes between two streams that were never anything else, until both have ended. One that breaks breaks the other.
pub(crate) async fn carry<A, B>(one: A, other: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut one, mut other) = (Wire::new(one), Wire::new(other));
    let (mut there, mut back) = (Way::default(), Way::default());
    let carried = poll_fn(|cx| {
        let there = there.poll(cx, (&mut one, &mut other), &mut false)?;
        let back = back.poll(cx, (&mut other, &mut one), &mut false)?;
        if there.is_ready() && back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    carried.await.map_err(|broken| match broken {
        Broken::Sink(error) | Broken::Source(error) => error,
        // Bytes without framing break no rules.
        Broken::Malformed(_) | Broken::Truncated => io::ErrorKind::InvalidData.into(),
    })
}

/// One direction.
struct Way {
    pump: Pump,
    /// Everything was written, and the end is to be told.
    ended: bool,
    done: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self { pump: Pump::new(Framing::UntilClose, Shape::AsItIs), ended: false, done: false }
    }
}

impl Way {
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&mut Wire<A>, &mut Wire<B>),
        moved: &mut bool,
    ) -> Poll<Result<(), Broken>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        if !self.ended {
            ready!(self.pump.poll(cx, (from, to), &mut (), moved))?;
            self.ended = true;
        }
        if !self.done {
            ready!(to.poll_shutdown(cx)).map_err(Broken::Sink)?;
            self.done = true;
        }
        Poll::Ready(Ok(()))
    }
}
