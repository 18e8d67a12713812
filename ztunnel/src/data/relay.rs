//! Copies bytes between two TCP sockets: the plaintext and node-local paths.
//!
//! Reads and writes of up to 256 KiB through buffers that a connection holds only while bytes are on their way, so that an
//! idle connection costs none, and one of many that wait for a slow reader costs little. A half-close is passed on as one, a reset as a reset. Knows nothing of policy or routes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::flow::Traffic;

/// One read: larger ones gain nothing, smaller ones cost a third of the throughput (a read and a write per 16 KiB).
const BUFFER: usize = 256 * 1024;
/// Large buffers that one pod may hold on one thread: 32 MiB. More connections than this that wait for their readers at
/// once are an outage or an attack, and the memory is the node's.
const LARGE_BUFFERS: usize = 128;
/// One read beyond that. With every connection of a pod stalled both ways it adds up to 512 MiB, and not to 8 GiB.
const SMALL_BUFFER: usize = 16 * 1024;
/// Buffers that a thread keeps for the next connection: as many as are typically busy within one turn of its loop.
const SPARE_BUFFERS: usize = 16;
/// Reads in one turn before other connections of this thread get theirs: 2 MiB, about a millisecond.
const READS_PER_TURN: u32 = 8;

/// How many large buffers the connections of one pod hold on one thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<AtomicUsize>);

/// Copies both ways until both ends have finished, counting into `traffic`. `early` was read from the client before.
///
/// # Errors
/// The first failure of either socket. A reset by one end has then been passed on to the other.
pub(crate) async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    traffic: &Traffic,
    early: Bytes,
    buffers: &Buffers,
) -> io::Result<()> {
    let outcome = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        traffic.add_to_server(early.len() as u64);
        let mut request = Direction::new(early, buffers);
        let mut response = Direction::new(Bytes::new(), buffers);
        poll_fn(|cx| {
            let request = request.poll(cx, &mut from_client, &mut to_server, |n| traffic.add_to_server(n))?;
            let response =
                response.poll(cx, &mut from_server, &mut to_client, |n| traffic.add_to_client(n))?;
            if request.is_ready() && response.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    };
    if outcome.is_err() {
        reset(client);
        reset(server);
    }
    outcome
}

/// Makes the close of `socket` a reset, so that its peer learns that the other end failed.
pub(crate) fn reset(socket: &TcpStream) {
    // The socket is about to be closed; if the option can't be set the peer sees an orderly end, which is no worse.
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

/// One direction of a connection.
struct Direction<'a> {
    buffers: &'a Buffers,
    early: Bytes,
    buffer: Option<Buffer>,
    from: usize,
    until: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reader has ended; what is buffered is still to be written.
    Draining,
    /// The writer has been told.
    Closed,
}

impl<'a> Direction<'a> {
    fn new(early: Bytes, buffers: &'a Buffers) -> Self {
        Self { buffers, early, buffer: None, from: 0, until: 0, state: State::Open }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadHalf<'_>,
        writer: &mut WriteHalf<'_>,
        count: impl Fn(u64),
    ) -> Poll<io::Result<()>> {
        let mut reads = 0;
        loop {
            ready!(self.write(cx, writer))?;
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Draining => {
                    self.buffer = None;
                    self.state = State::Closed;
                    // A TCP socket's shutdown never waits.
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).or_else(already_closed)?;
                }
                State::Open if reads == READS_PER_TURN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Open => {
                    ready!(self.read(cx, reader))?;
                    count((self.until - self.from) as u64);
                    reads += 1;
                }
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, reader: &mut ReadHalf<'_>) -> Poll<io::Result<()>> {
        let buffer = self.buffer.get_or_insert_with(|| Buffer::take(self.buffers));
        let mut filled = ReadBuf::new(buffer.bytes());
        match Pin::new(reader).poll_read(cx, &mut filled) {
            Poll::Ready(Ok(())) => {
                (self.from, self.until) = (0, filled.filled().len());
                if self.until == 0 {
                    self.state = State::Draining;
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.buffer = None;
                Poll::Pending
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, writer: &mut WriteHalf<'_>) -> Poll<io::Result<()>> {
        while !self.early.is_empty() {
            let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.early))?;
            self.early.advance(written);
        }
        while self.from < self.until {
            let buffer = self.buffer.as_mut().expect("what is not yet written is in the buffer");
            self.from +=
                ready!(Pin::new(&mut *writer).poll_write(cx, &buffer.bytes()[self.from..self.until]))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// A peer that is gone already has nothing left to be told.
fn already_closed(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer; a large one counts against its pod, and goes back to its thread's stock.
struct Buffer {
    bytes: Box<[u8]>,
    large: Option<Buffers>,
}

impl Buffer {
    fn take(buffers: &Buffers) -> Self {
        if buffers.0.load(Ordering::Relaxed) >= LARGE_BUFFERS {
            return Self { bytes: vec![0; SMALL_BUFFER].into_boxed_slice(), large: None };
        }
        buffers.0.fetch_add(1, Ordering::Relaxed);
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let bytes = spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
        Self { bytes, large: Some(buffers.clone()) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(Buffers(held)) = self.large.take() {
            held.fetch_sub(1, Ordering::Relaxed);
            let bytes = std::mem::take(&mut self.bytes);
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_BUFFERS {
                    spare.push(bytes);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    async fn relayed(
        early: &'static [u8],
    ) -> (TcpStream, TcpStream, tokio::task::JoinHandle<(io::Result<()>, u64, u64)>) {
        let (client, mut inner_client) = pair().await;
        let (mut inner_server, server) = pair().await;
        let task = tokio::spawn(async move {
            let traffic = Traffic::default();
            let (early, buffers) = (Bytes::from_static(early), Buffers::default());
            let outcome = relay(&mut inner_client, &mut inner_server, &traffic, early, &buffers).await;
            (outcome, traffic.to_server(), traffic.to_client())
        });
        (client, server, task)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_are_counted() {
        let (mut client, mut server, task) = relayed(b"early").await;
        let sent: Vec<u8> = (5..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = [b"early", sent.as_slice()].concat();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == expected, "3 MB arrive unchanged after a half-close");
        server.write_all(b"answer after half-close").await.unwrap();
        drop(server);
        assert_eq!(writer.await.unwrap(), b"answer after half-close");
        let (outcome, to_server, to_client) = task.await.unwrap();
        outcome.unwrap();
        assert_eq!((to_server, to_client), (3_000_000, 23), "early bytes count too");
    }

    #[test]
    fn a_pod_that_holds_many_buffers_gets_small_ones() {
        let (buffers, others) = (Buffers::default(), Buffers::default());
        let mut held: Vec<Buffer> = (0..LARGE_BUFFERS).map(|_| Buffer::take(&buffers)).collect();
        assert!(held.iter_mut().all(|buffer| buffer.bytes().len() == BUFFER));
        assert_eq!(Buffer::take(&buffers).bytes().len(), SMALL_BUFFER);
        assert_eq!(Buffer::take(&others).bytes().len(), BUFFER, "another pod's affair");
        held.pop();
        assert_eq!(Buffer::take(&buffers).bytes().len(), BUFFER);
        drop(held);
        assert_eq!(buffers.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_reset_is_passed_on() {
        let (client, mut server, task) = relayed(b"").await;
        reset(&client);
        drop(client);
        let mut one = [0];
        let error = server.read(&mut one).await.expect_err("the server learns of the reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        task.await.unwrap().0.expect_err("the relay reports the reset");
    }
}
