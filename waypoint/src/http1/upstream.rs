//! A connection to send requests over: lent for one exchange, given back when another may follow.

use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::Wire;

/// A connection to a server.
pub struct Upstream<Io> {
    pub(super) wire: Wire<Io>,
    used: bool,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Upstream<Io> {
    /// A connection that nothing was sent over yet.
    pub fn new(io: Io) -> Self {
        Self { wire: Wire::new(io), used: false }
    }

    /// Whether a request was answered over it before.
    pub fn is_used(&self) -> bool {
        self.used
    }

    /// Resolves when an idle connection can't be used any more: its server closed it, or said something unasked.
    pub fn poll_unusable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.wire.input.is_empty() || self.wire.has_ended() {
            return Poll::Ready(());
        }
        self.wire.poll_fill(cx).map(|_| ())
    }

    pub(super) fn is_usable(&mut self) -> bool {
        self.poll_unusable(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// It has carried an exchange and is idle now.
    pub(super) fn rested(mut self) -> Self {
        self.used = true;
        self.wire.rest();
        self
    }
}
