//! The byte stream that the HTTP/2 engine sees. Its flush does nothing: the tunnel's task flushes once per poll, so
//! that the frames of all streams share records and system calls. Owns the read quantum and the write gate.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::buffers::LARGE;
use crate::frames::{Abuse, Guard};
use crate::record_error::RecordError;
use crate::records::Records;
use crate::session::Session;

/// Plaintext that may wait to be sent before the engine has to wait: measured, 64 KiB costs an eighth more
/// processor time, 1 MiB gains nothing, and this much is what one slow tunnel can pin.
const GATE: usize = LARGE;

/// Plaintext read per poll of a tunnel. After this much the streams' tasks get a turn while the data is hot in the
/// cache; a quarter of it costs a fifth more processor time.
const QUANTUM: usize = 512 * 1024;

/// What a frame costs of the quantum beside its bytes, so that a peer sending tiny frames gets the same share of
/// time as one sending full ones.
const FRAME_COST: usize = 128;

struct Shared<Io, S: Session> {
    records: Records<Io, S>,
    guard: Guard,
    /// What is left of this poll's quantum.
    quantum: usize,
    /// The engine was told to wait for room.
    gated: bool,
    /// The first error; the engine only keeps its kind.
    failure: Option<RecordError>,
}

/// The engine's end.
pub(crate) struct TunnelIo<Io, S: Session> {
    shared: Arc<Mutex<Shared<Io, S>>>,
}

/// The tunnel task's end. Never contended: the engine is polled by the same task.
pub(crate) struct Control<Io, S: Session> {
    shared: Arc<Mutex<Shared<Io, S>>>,
}

/// What the tunnel's task wants to know after a poll.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) received: u64,
    pub(crate) abuse: Option<Abuse>,
    pub(crate) goaway_seen: bool,
}

/// Both ends of a tunnel's byte stream.
pub(crate) fn split<Io, S: Session>(
    records: Records<Io, S>,
    guard: Guard,
) -> (TunnelIo<Io, S>, Control<Io, S>) {
    let shared = Shared { records, guard, quantum: QUANTUM, gated: false, failure: None };
    let shared = Arc::new(Mutex::new(shared));
    (TunnelIo { shared: shared.clone() }, Control { shared })
}

impl<Io, S> Control<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    /// Before each poll of the engine.
    pub(crate) fn begin(&self) {
        self.shared.lock().quantum = QUANTUM;
    }

    /// After each poll of the engine, whatever it answered.
    pub(crate) fn flush(&self, cx: &mut Context<'_>) -> Result<(), RecordError> {
        let shared = &mut *self.shared.lock();
        if let Some(failure) = &shared.failure {
            return Err(failure.clone());
        }
        match shared.records.flush(cx) {
            Poll::Ready(Err(error)) => return Err(shared.fail(error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        // The engine waits for room that has appeared meanwhile: nobody else would tell it.
        if shared.gated && shared.records.pending() < GATE {
            shared.gated = false;
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let shared = self.shared.lock();
        Snapshot {
            received: shared.records.received(),
            abuse: shared.guard.abuse(),
            goaway_seen: shared.guard.goaway_seen(),
        }
    }

    /// Why the byte stream failed, if it did.
    pub(crate) fn failure(&self) -> Option<RecordError> {
        self.shared.lock().failure.clone()
    }
}

impl<Io, S> Shared<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    fn fail(&mut self, error: RecordError) -> RecordError {
        self.failure.get_or_insert(error).clone()
    }

    /// Keeps the cause for the tunnel's task, and gives the engine what it can carry.
    fn fail_io(&mut self, error: RecordError) -> io::Error {
        let error = self.fail(error);
        let kind = match &error {
            RecordError::Io(error) => error.kind(),
            RecordError::Tls(_) => io::ErrorKind::InvalidData,
            RecordError::Truncated => io::ErrorKind::UnexpectedEof,
        };
        io::Error::new(kind, error)
    }

    fn fail_tls(&mut self, cx: &mut Context<'_>, error: rustls::Error) -> io::Error {
        self.records.flush_alert(cx, &error);
        self.fail_io(RecordError::Tls(error))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            // A peer that is to be thrown out is not listened to any more; the tunnel's task throws it out next.
            if self.guard.abuse().is_some() {
                return Poll::Pending;
            }
            if self.quantum == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let before = buf.filled().len();
            match self.records.next_plain(buf) {
                Err(error) => return Poll::Ready(Err(self.fail_tls(cx, error))),
                Ok(0) => {}
                Ok(count) => {
                    let frames = self.guard.frames();
                    self.guard.inbound(&buf.filled()[before..], Instant::now);
                    let frames = usize::try_from(self.guard.frames() - frames).unwrap_or(usize::MAX);
                    let cost = count.saturating_add(frames.saturating_mul(FRAME_COST));
                    self.quantum = self.quantum.saturating_sub(cost);
                    return Poll::Ready(Ok(()));
                }
            }
            if self.records.peer_closed() {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.records.fill(cx)) {
                Ok(0) => return Poll::Ready(Err(self.fail_io(RecordError::Truncated))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.fail_io(error))),
            }
        }
    }

    /// How many bytes the gate lets through now.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.records.pending() >= GATE {
            match self.records.flush(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.fail_io(error))),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let room = GATE.saturating_sub(self.records.pending());
        self.gated = room == 0;
        if room == 0 { Poll::Pending } else { Poll::Ready(Ok(room)) }
    }

    fn put(&mut self, cx: &mut Context<'_>, data: &[u8]) -> io::Result<()> {
        self.guard.outbound(data, Instant::now);
        self.records.put(data).map_err(|error| self.fail_tls(cx, error))
    }
}

impl<Io, S> AsyncRead for TunnelIo<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().poll_read(cx, buf)
    }
}

impl<Io, S> AsyncWrite for TunnelIo<Io, S>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    S: Session,
{
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let shared = &mut *self.shared.lock();
        let mut room = ready!(shared.poll_room(cx))?;
        let mut written = 0;
        for buf in bufs {
            let count = buf.len().min(room);
            shared.put(cx, &buf[..count])?;
            room -= count;
            written += count;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The engine flushes after every DATA frame; the tunnel's task flushes once per poll instead.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.shared.lock();
        match ready!(shared.records.shutdown(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(shared.fail_io(error))),
        }
    }
}
