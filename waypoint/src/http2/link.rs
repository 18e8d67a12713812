//! Connections to servers, each shared by many requests: opened over a byte stream, lent for one request at a time.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use hbone::Guard;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::io;
use super::limits::{
    CONNECTION_WINDOW, FRAME, HEAD_BYTES_MAX, REMEMBERED_RESETS, SEND_BUFFER, STREAM_WINDOW, STREAMS_MAX,
};

/// A connection to a server.
pub struct Link {
    send: SendRequest<Bytes>,
    live: Arc<Live>,
}

#[derive(Default)]
struct Live {
    /// Requests that it is lent to.
    lent: AtomicUsize,
    /// A request was answered over it.
    used: AtomicBool,
    ended: AtomicBool,
}

/// A connection, for one request.
pub struct Upstream {
    pub(super) send: SendRequest<Bytes>,
    live: Arc<Live>,
    used: bool,
}

/// Begins a connection. It moves only while the future is polled, which ends when nobody has the connection any more, or its
/// server has gone.
pub async fn connect<Io>(io: Io) -> Result<(Link, impl Future<Output = ()> + Send + use<Io>), h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (engine, control) = io::split(io, Guard::client(Instant::now()));
    let (send, mut connection) = builder().handshake::<_, Bytes>(engine).await?;
    let live = Arc::new(Live::default());
    let link = Link { send, live: Arc::clone(&live) };
    let drive = poll_fn(move |cx| {
        let over = std::pin::Pin::new(&mut connection).poll(cx).is_ready();
        if over || control.flush(cx).is_err() || control.abuse().is_some() {
            live.ended.store(true, Relaxed);
            return Poll::Ready(());
        }
        Poll::Pending
    });
    Ok((link, drive))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        // Nobody opens streams towards a client.
        .max_concurrent_streams(0)
        // Until the server says how many it takes.
        .initial_max_send_streams(STREAMS_MAX as usize)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // The engine counts these for life, which a long-lived connection would use up: the guard counts them by time.
        .max_local_error_reset_streams(None);
    builder
}

impl Link {
    /// Whether a request could be sent over it, now or when another is over.
    pub fn is_open(&self) -> bool {
        let gone = || self.send.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        !self.live.ended.load(Relaxed) && !matches!(gone(), Poll::Ready(Err(_)))
    }

    /// Whether its server takes another request now.
    pub fn has_room(&self) -> bool {
        let most = self.send.current_max_send_streams().min(STREAMS_MAX as usize);
        self.lent() < most
    }

    /// Requests that it is lent to.
    pub fn lent(&self) -> usize {
        self.live.lent.load(Relaxed)
    }

    /// For one request. Beyond what the server takes, it waits until another is over.
    pub fn lend(&self) -> Upstream {
        self.live.lent.fetch_add(1, Relaxed);
        let used = self.live.used.load(Relaxed);
        Upstream { send: self.send.clone(), live: Arc::clone(&self.live), used }
    }
}

impl Upstream {
    /// Whether a request was answered over the connection before it was lent.
    pub fn is_used(&self) -> bool {
        self.used
    }

    pub(super) fn answered(&self) {
        self.live.used.store(true, Relaxed);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.live.lent.fetch_sub(1, Relaxed);
    }
}
