//! Bytes between a client's stream and an endpoint that is spoken to in TLS of ours.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hbone::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::time::sleep_until;

use super::io::TunnelIo;
use super::upstream::Inside;
use crate::refusal::Refusal;
use crate::telemetry::Live;

/// Carries bytes both ways, to their end. What was `said` is not consumed; what was `answered` is read already.
pub(crate) async fn secured(
    (stream, said): (Stream, Vec<Bytes>),
    (mut inside, answered): (Inside, Vec<Bytes>),
    live: &Live,
) -> Result<(), Refusal> {
    let mut client = Counted { io: TunnelIo::new(stream, said), live };
    let copied = async {
        for bytes in answered {
            client.write_all(&bytes).await?;
        }
        copy_bidirectional(&mut client, &mut inside.io).await.map(drop)
    };
    let proven = async {
        match &inside.proof {
            Some((_, until)) => sleep_until(*until).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        copied = copied => copied.map_err(Refusal::Broken),
        () = proven => {
            Err(Refusal::Broken(io::Error::other("the certificates of its tunnel expired a day ago")))
        }
    }
}

/// A client's stream whose bytes are counted as they pass.
struct Counted<'a> {
    io: TunnelIo,
    live: &'a Live,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.live.forth((buffer.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.live.back(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        self.live.back(written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
