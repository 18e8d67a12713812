//! A body on its way from one stream to another: data as long as there is room for it, then trailers. Holds one piece at most, so
//! that who does not take it holds up who sends it, and nobody else.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

use super::head;

/// Looks at a body that passes.
pub(super) trait Tap {
    /// A piece, as it passes for the first time.
    fn data(&mut self, bytes: &Bytes);
    /// What stands at the end.
    fn trailers(&mut self, fields: &HeaderMap);
}

/// Why a body does not go on.
pub(super) enum Broken {
    /// Its trailers have fields that must not be there.
    Malformed,
    /// The other side takes no more.
    Sink,
    /// It broke off.
    Source(h2::Error),
}

/// A body on its way.
pub(super) struct Flow {
    from: RecvStream,
    /// What was received and not sent.
    piece: Bytes,
    /// How it ends, once that is known.
    end: Option<End>,
    bytes: u64,
    /// The end may have to be sent again.
    repeats: bool,
}

enum End {
    Data,
    Trailers(HeaderMap),
}

impl Flow {
    pub(super) fn new(from: RecvStream, repeats: bool) -> Self {
        let end = from.is_end_stream().then_some(End::Data);
        Self { from, piece: Bytes::new(), end, bytes: 0, repeats }
    }

    /// Bytes that have passed.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is left to send.
    pub(super) fn is_empty(&self) -> bool {
        self.piece.is_empty() && matches!(self.end, Some(End::Data))
    }

    /// Whether something is held that nobody takes.
    pub(super) fn is_blocked(&self) -> bool {
        !self.piece.is_empty()
    }

    /// Begins anew, with what was received so far.
    pub(super) fn again(&mut self, so_far: Bytes) {
        self.piece = so_far;
    }

    /// Sends on what there is; resolves when all of it was sent.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut SendStream<Bytes>,
        tap: &mut impl Tap,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while !self.piece.is_empty() {
                let Some(room) = ready!(poll_room(cx, to, self.piece.len())) else {
                    return Poll::Ready(Err(Broken::Sink));
                };
                let part = self.piece.split_to(room.min(self.piece.len()));
                let last = self.is_empty();
                if to.send_data(part, last).is_err() {
                    return Poll::Ready(Err(Broken::Sink));
                }
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            if let Some(end) = &mut self.end {
                let sent = match end {
                    End::Data => to.send_data(Bytes::new(), true),
                    End::Trailers(fields) if self.repeats => to.send_trailers(fields.clone()),
                    End::Trailers(fields) => to.send_trailers(std::mem::take(fields)),
                };
                return Poll::Ready(sent.map_err(|_| Broken::Sink));
            }
            ready!(self.poll_more(cx, tap))?;
        }
    }

    /// The next piece, or the end.
    fn poll_more(&mut self, cx: &mut Context<'_>, tap: &mut impl Tap) -> Poll<Result<(), Broken>> {
        match ready!(self.from.poll_data(cx)) {
            Some(Ok(piece)) => {
                self.bytes += piece.len() as u64;
                // It is ours now, and the next one is only asked for when it has gone.
                let _ = self.from.flow_control().release_capacity(piece.len());
                tap.data(&piece);
                self.piece = piece;
                self.end = self.from.is_end_stream().then_some(End::Data);
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => Poll::Ready(Err(Broken::Source(error))),
            None => {
                let trailers = ready!(self.from.poll_trailers(cx)).map_err(Broken::Source)?;
                self.end = Some(match trailers {
                    Some(fields) if !head::are_trailers(&fields) => {
                        return Poll::Ready(Err(Broken::Malformed));
                    }
                    Some(fields) => {
                        tap.trailers(&fields);
                        End::Trailers(fields)
                    }
                    None => End::Data,
                });
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// How many bytes may be sent, at most `want`; `None` when none ever will be.
pub(super) fn poll_room(
    cx: &mut Context<'_>,
    to: &mut SendStream<Bytes>,
    want: usize,
) -> Poll<Option<usize>> {
    to.reserve_capacity(want);
    let mut room = to.capacity();
    while room == 0 {
        match ready!(to.poll_capacity(cx)) {
            Some(Ok(capacity)) => room = capacity,
            Some(Err(_)) | None => return Poll::Ready(None),
        }
    }
    Poll::Ready(Some(room))
}
