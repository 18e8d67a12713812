//! One CONNECT stream as the rest of the system sees it: batches of shared bytes in, shared bytes out, with the flow
//! control of both directions in the caller's hand. Another tunnel engine can stand behind the same methods.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use crate::budget::{Account, Unsent};
use crate::buffers::Buffer;
use crate::share::{Beside, Credit};

/// Chunks handed out by one `poll_recv`: one `writev` takes 64 slices and four of those are a good turn.
const BATCH: usize = 256;

/// Bytes of such copies that a stream may have under way before they count against its budget: counting takes memory too,
/// and messages one at a time are on their way at once.
const LOOSE: usize = 4 * 1024;

/// Why a stream broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Our own side had finished or reset the stream before.
    #[error("the stream was already finished on this side")]
    Finished,
    /// We reset it, to bound memory.
    #[error(
        "reset to bound memory: what this workload's connections hold unread or unsent has used up its budget, and this one \
         had stood still longest"
    )]
    Hoarded,
    /// The tunnel under it broke: the cause is in the tunnel's own error.
    #[error("the tunnel was lost ({0})")]
    Lost(io::ErrorKind),
    /// The stream was reset, or the tunnel was closed with this reason.
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        if let Some(error) = error.get_io() {
            return Self::Lost(error.kind());
        }
        error.reason().map_or(Self::Finished, Self::Reset)
    }
}

/// What `Stream::send_with` could not do.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The caller's own function failed; `WouldBlock` is the usual case.
    #[error("nothing to send: {0}")]
    Fill(#[from] io::Error),
    /// The stream does not take bytes any more.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What came from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes were appended to the batch.
    Data(usize),
    /// The peer finished its direction; nothing follows.
    End,
}

/// Gives a stream's place back to whoever counts places.
pub(crate) trait Places: Send + Sync {
    fn release(&self, id: u64);
}

/// A place in somebody's count, given back when dropped.
pub(crate) struct Place {
    owner: Arc<dyn Places>,
    id: u64,
}

impl Place {
    pub(crate) fn new(owner: Arc<dyn Places>, id: u64) -> Self {
        Place { owner, id }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.owner.release(self.id);
    }
}

/// Both directions of one CONNECT stream.
///
/// Dropping it before both directions have ended resets it (CANCEL).
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    credit: Credit,
    account: Account,
    headers: HeaderMap,
    /// Fields drop in order: the engine's state goes first, then the place.
    place: Option<Place>,
}

impl Stream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, credit: Credit) -> Self {
        let account = credit.share().account();
        Stream { send, recv, credit, account, headers: HeaderMap::new(), place: None }
    }

    pub(crate) fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = headers;
        self
    }

    pub(crate) fn with_place(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// The headers of the peer's answer (empty on the accepting side).
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Appends everything that has arrived to `batch`, up to 256 chunks. Bytes count against the peer's window until
    /// [`Stream::consumed`] says that they are gone, so take them also while there is nowhere to put them: a small
    /// chunk pins the buffer that it arrived in, and only its owner can copy small chunks together.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Vec<Bytes>,
    ) -> Poll<Result<Received, StreamError>> {
        if let Poll::Ready(error) = self.poll_called(cx) {
            return Poll::Ready(Err(error));
        }
        let received = self.poll_chunks(cx, batch);
        match received {
            Poll::Ready(Ok(Received::Data(count))) => self.account.received(count),
            // The caller has what there is: what it still holds now is held up.
            Poll::Ready(Ok(Received::End) | Err(_)) | Poll::Pending => self.account.show(),
        }
        received
    }

    /// Hears what concerns the streams of a tunnel or a workload together; [`Stream::poll_recv`] does it too, so that
    /// only who has received the end still needs to ask. Resolves when the stream has been reset to bound memory.
    pub fn poll_called(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.account.register(cx.waker());
        if let Some(report) = self.credit.resettle() {
            let _ = self.recv.flow_control().release_capacity(report);
        }
        if self.account.is_condemned() {
            // RFC 9113, section 8.5: it is as if its TCP connection had failed, and must not look like an end.
            self.send.send_reset(Reason::CONNECT_ERROR);
            return Poll::Ready(StreamError::Hoarded);
        }
        Poll::Pending
    }

    fn poll_chunks(
        &mut self,
        cx: &mut Context<'_>,
        batch: &mut Vec<Bytes>,
    ) -> Poll<Result<Received, StreamError>> {
        let mut count = 0;
        for _ in 0..BATCH {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => {}
                Poll::Ready(Some(Ok(chunk))) => {
                    count += chunk.len();
                    batch.push(chunk);
                }
                // What arrived first is handed out first; the engine repeats its answer.
                _ if count > 0 => return Poll::Ready(Ok(Received::Data(count))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(Received::End)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if count > 0 {
            return Poll::Ready(Ok(Received::Data(count)));
        }
        // Only empty frames, and maybe more of them: let others have a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// `count` received bytes have left: the peer may send as many more.
    pub fn consumed(&mut self, count: usize) {
        self.account.taken(count);
        if let Some(report) = self.credit.taken(count) {
            // It only fails when more is reported than was received, which is a bug of the caller.
            let result = self.recv.flow_control().release_capacity(report);
            debug_assert!(result.is_ok(), "more bytes consumed than were received");
        }
    }

    /// Waits until some bytes may be sent, and answers how many (at most `want`). What a stream wants is kept for it
    /// out of the window that all streams of the tunnel share: want little while there is little to send.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, StreamError>> {
        let share = self.credit.share();
        let room = ready!(self.account.poll_room(cx, share.send_buffer(), share.budget().level()));
        let want = want.min(room);
        let mut have = self.send.capacity();
        if have != want {
            self.send.reserve_capacity(want);
            have = self.send.capacity();
        }
        while have == 0 {
            have = match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            };
        }
        Poll::Ready(Ok(have.min(want)))
    }

    /// Sends bytes. Beyond the capacity they wait in memory: ask [`Stream::poll_capacity`] first.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let unsent = self.account.unsent(bytes.len());
        self.give(Bytes::from_owner(Followed { bytes, _unsent: unsent }))
    }

    /// What else is at work in the tunnel: turns should be short beside others.
    pub(crate) fn beside(&self) -> Beside {
        self.credit.beside()
    }

    /// Lets `fill` write up to `room` bytes into a buffer of the engine's choice, and sends what it wrote.
    pub fn send_with(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<usize, FillError> {
        let mut buffer = Buffer::with_room(room);
        let count = fill(&mut buffer.as_mut()[..room])?;
        let bytes = self.follow(buffer, count);
        self.give(bytes)?;
        Ok(count)
    }

    /// The first `count` bytes of the buffer, counted until they have been sent.
    fn follow(&mut self, buffer: Buffer, count: usize) -> Bytes {
        if buffer.is_filled_by(count) {
            // They pin all of it.
            let unsent = self.account.unsent(buffer.as_ref().len());
            return Bytes::from_owner(Followed { bytes: buffer, _unsent: unsent }).slice(..count);
        }
        let copy = buffer.into_bytes(count);
        match self.account.loose(count, LOOSE) {
            0 => copy,
            loose => Bytes::from_owner(Followed { bytes: copy, _unsent: self.account.unsent(loose) }),
        }
    }

    fn give(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        if bytes.is_empty() {
            // Empty frames look like an attack to some peers.
            return Ok(());
        }
        self.credit.moved(bytes.len());
        self.send.send_data(bytes, false).map_err(StreamError::from)
    }

    /// Ends our direction; the peer's may go on.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.send.send_data(Bytes::new(), true).map_err(StreamError::from)
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }

    /// Resolves when the stream is reset although nobody reads or writes it.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(StreamError::Reset(reason)),
            Err(error) => Poll::Ready(error.into()),
        }
    }

    fn why_closed(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_reset(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Finished,
        }
    }
}

/// Bytes that count as long as somebody has them.
struct Followed<T> {
    bytes: T,
    _unsent: Unsent,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Followed<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.send.stream_id()).finish_non_exhaustive()
    }
}
