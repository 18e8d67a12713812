//! Copies between a TCP connection and a stream, both ways in one task: large reads while the source is busy, gathered
//! writes, half-closes passed on, and an abort on one side made an abort on the other.

use std::borrow::Borrow;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use tokio::net::TcpStream;

use crate::buffers::{LARGE, MEDIUM, SMALL};
use crate::queue::Queue;
use crate::share::Beside;
use crate::stream::{FillError, Received, Stream, StreamError};

/// Slices of one `writev`: beyond this the kernel's own loop costs as much as a second call.
const SLICES: usize = 64;

/// Reads (or writes) in one turn, before other tasks of the thread get theirs.
const TURNS: usize = 8;

/// The read size grows by this factor while reads come back full.
const GROWTH: usize = 4;

/// A read of bulk data while small messages wait for its turns: measured, a message arrives in two thirds of the time that
/// it takes beside reads of 64 KiB, for a seventh of the bulk throughput.
const HURRIED: usize = 24 * 1024;

/// Told of every byte that has left this side, as it happens. Called from one task, often: atomics, no locks.
pub trait Progress: Send + Sync {
    /// Bytes read from the TCP connection and given to the tunnel.
    fn to_tunnel(&self, bytes: u64);
    /// Bytes from the tunnel that the TCP connection has taken.
    fn to_tcp(&self, bytes: u64);
}

/// The simplest [`Progress`]: two counters.
#[derive(Debug, Default)]
pub struct Counters {
    /// See [`Progress::to_tunnel`].
    pub to_tunnel: AtomicU64,
    /// See [`Progress::to_tcp`].
    pub to_tcp: AtomicU64,
}

impl Progress for Counters {
    fn to_tunnel(&self, bytes: u64) {
        self.to_tunnel.fetch_add(bytes, Ordering::Relaxed);
    }

    fn to_tcp(&self, bytes: u64) {
        self.to_tcp.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Why a relay ended before both sides had finished. The other side has been told by an abort.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The TCP connection broke.
    #[error("application connection failed: {0}")]
    Tcp(#[from] io::Error),
    /// The stream broke.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Copies until both directions have ended. An end that the peer signals by cancelling a stream it has no more use for
/// (CANCEL or NO_ERROR, as peers in the field do) counts as an ordinary end.
///
/// A caller that lends the connection can still ask the kernel about it afterwards. Dropping the future before it resolves
/// aborts both sides.
pub async fn relay(
    tcp: impl Borrow<TcpStream>,
    stream: Stream,
    progress: &impl Progress,
) -> Result<(), RelayError> {
    let tcp = tcp.borrow();
    let mut ends = Ends { tcp, stream, over: false };
    let result = {
        let mut relay = Relay { tcp, stream: &mut ends.stream, up: Up::default(), down: Down::default() };
        poll_fn(|cx| relay.poll(cx, progress)).await
    };
    ends.over = true;
    match &result {
        Ok(()) => {}
        // RFC 9113, section 8.5: what a proxy answers when its TCP connection fails.
        Err(RelayError::Tcp(_)) => ends.stream.reset(Reason::CONNECT_ERROR),
        // The application must not take a cut stream for a finished one.
        Err(RelayError::Stream(_)) => {
            let _ = tcp.set_zero_linger();
        }
    }
    result
}

/// What a relay has in hand. A relay that is given up must not look like one that is over, and a stream that is merely
/// dropped would: it is cancelled, which is an ordinary end.
struct Ends<'a> {
    tcp: &'a TcpStream,
    stream: Stream,
    over: bool,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.stream.reset(Reason::CONNECT_ERROR);
            let _ = self.tcp.set_zero_linger();
        }
    }
}

struct Relay<'a> {
    tcp: &'a TcpStream,
    stream: &'a mut Stream,
    up: Up,
    down: Down,
}

/// From the TCP connection to the stream.
struct Up {
    want: usize,
    done: bool,
}

impl Default for Up {
    fn default() -> Self {
        Up { want: SMALL, done: false }
    }
}

/// From the stream to the TCP connection.
#[derive(Default)]
struct Down {
    queue: Queue,
    arrived: Vec<Bytes>,
    /// The peer sends nothing more.
    ended: bool,
    done: bool,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, progress: &impl Progress) -> Poll<Result<(), RelayError>> {
        // Nobody receives any more, and what is held may still be too much.
        if self.down.ended
            && let Poll::Ready(error) = self.stream.poll_called(cx)
        {
            return Poll::Ready(Err(error.into()));
        }
        let down = self.poll_down(cx, progress)?;
        let up = self.poll_up(cx, progress)?;
        if down.is_ready() && up.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, progress: &impl Progress) -> Poll<Result<(), RelayError>> {
        for _ in 0..self.turns() {
            if self.up.done {
                return Poll::Ready(Ok(()));
            }
            let room = match self.stream.poll_capacity(cx, self.up.want) {
                Poll::Ready(Ok(room)) => room,
                Poll::Ready(Err(error)) => return self.cut_off(error),
                Poll::Pending => return Poll::Pending,
            };
            if let Poll::Ready(error) = self.poll_reset(cx) {
                return self.cut_off(error);
            }
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.stream.send_with(room, |buffer| self.tcp.try_read(buffer)) {
                Ok(0) => {
                    self.up.done = true;
                    // A peer that has gone meanwhile needs no end.
                    let _ = self.stream.finish();
                }
                Ok(count) => {
                    progress.to_tunnel(count as u64);
                    let full = count == room && room == self.up.want;
                    let most = at_once(self.stream.beside());
                    self.up.want = if full { (self.up.want * GROWTH).min(most) } else { SMALL };
                }
                // Only this says that the socket is empty. A short read does not: the kernel also ends one before urgent
                // data, and does not announce again what comes after.
                Err(FillError::Fill(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(FillError::Fill(error)) => return Poll::Ready(Err(error.into())),
                Err(FillError::Stream(error)) => return self.cut_off(error),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn turns(&self) -> usize {
        turns(self.stream.beside())
    }

    /// Nobody reads the stream any more once the peer has finished, so nobody would notice a reset.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if self.down.ended { self.stream.poll_reset(cx) } else { Poll::Pending }
    }

    /// The stream takes no more bytes.
    fn cut_off(&mut self, error: StreamError) -> Poll<Result<(), RelayError>> {
        self.up.done = true;
        if ordinary_end(error) { Poll::Ready(Ok(())) } else { Poll::Ready(Err(error.into())) }
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, progress: &impl Progress) -> Poll<Result<(), RelayError>> {
        for _ in 0..self.turns() {
            if self.down.done {
                return Poll::Ready(Ok(()));
            }
            let news = self.poll_arrivals(cx)?;
            let written = self.poll_write(cx, progress)?;
            if self.down.queue.is_empty() && self.down.ended {
                self.down.done = true;
                shutdown_write(self.tcp)?;
                return Poll::Ready(Ok(()));
            }
            if news.is_pending() && (written.is_pending() || self.down.queue.is_empty()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what has arrived, also while the application does not read: the window bounds it, and in our queue it
    /// is packed.
    fn poll_arrivals(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        if self.down.ended {
            return Poll::Pending;
        }
        let received = self.stream.poll_recv(cx, &mut self.down.arrived);
        self.down.queue.extend(self.down.arrived.drain(..));
        match ready!(received) {
            Ok(Received::Data(_)) => {}
            Ok(Received::End) => self.down.ended = true,
            Err(error) if ordinary_end(error) => self.down.ended = true,
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, progress: &impl Progress) -> Poll<Result<(), RelayError>> {
        while !self.down.queue.is_empty() {
            if self.tcp.poll_write_ready(cx)?.is_pending() {
                self.down.queue.pack();
                return Poll::Pending;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let used = self.down.queue.slices(&mut slices);
            match self.tcp.try_write_vectored(&slices[..used]) {
                Ok(count) => {
                    self.down.queue.advance(count);
                    self.stream.consumed(count);
                    progress.to_tcp(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Beside bulk data one is enough: a small message waits for the turns of all.
pub(crate) fn turns(beside: Beside) -> usize {
    if beside == Beside::Nothing { TURNS } else { 1 }
}

/// Bytes of bulk data that one turn moves.
pub(crate) fn at_once(beside: Beside) -> usize {
    match beside {
        Beside::Nothing => LARGE,
        Beside::Bulk => MEDIUM,
        Beside::BulkAndLight => HURRIED,
    }
}

pub(crate) fn ordinary_end(error: StreamError) -> bool {
    matches!(error, StreamError::Reset(Reason::NO_ERROR | Reason::CANCEL))
}

fn shutdown_write(tcp: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write) {
        // The application closed its side meanwhile: there is nobody to tell.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
