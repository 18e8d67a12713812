//! A connection to an endpoint as bytes to read and write, whatever it goes through.
//!
//! One that is dropped before it was shut down looks broken to its peer, not ended. Speaks no protocol.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use identity::origination::Secured;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::data::tunnel_io::TunnelIo;

/// A connection.
pub(crate) enum Io {
    /// TLS that a policy wants.
    Secured(Box<Secured<Io>>),
    /// Plain TCP.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Tunnel(Box<TunnelIo>),
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // Nobody takes what comes, and what TLS would open goes nowhere: it waits where it is counted.
            Self::Secured(io) if buffer.remaining() == 0 => Pin::new(io.get_mut().0).poll_read(cx, buffer),
            Self::Secured(io) => Pin::new(&mut **io).poll_read(cx, buffer),
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buffer),
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Secured(io) => Pin::new(&mut **io).poll_write(cx, bytes),
            Self::Tcp(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Secured(io) => Pin::new(&mut **io).poll_write_vectored(cx, slices),
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Secured(io) => Pin::new(&mut **io).poll_flush(cx),
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Secured(io) => Pin::new(&mut **io).poll_shutdown(cx),
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
