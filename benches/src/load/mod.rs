//! The programs that make and take load in pods: one thread each, on epoll, the same for every variant.
//!
//! Knows nothing of meshes. What it costs itself is measured and reported beside the proxies' cost.

pub(crate) mod bulk;
pub(crate) mod client;
pub(crate) mod connect;
pub(crate) mod meter;
pub(crate) mod ping_pong;
pub(crate) mod server;
pub(crate) mod steady;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollTimeout;

/// Where the server discards what it gets.
pub(crate) const SINK_PORT: u16 = 7001;
/// Where the server returns what it gets.
pub(crate) const ECHO_PORT: u16 = 7002;

/// Bytes of a message of the ping-pong, which is also the request and the answer of a new connection.
pub(crate) const MESSAGE: usize = 64;
/// Bytes of a read or a write of bulk data: enough that system calls are not what is measured.
const BUFFER: usize = 256 * 1024;
/// Events that are taken from the kernel at once.
const EVENTS: usize = 256;
/// How long a connection may take before anything is measured.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// What a load did since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) bytes: u64,
    pub(crate) operations: u64,
    /// Connections that ended before their answer was complete.
    pub(crate) failed: u64,
    /// How the first of these failed.
    pub(crate) failure: Option<String>,
    /// Nanoseconds of each operation.
    pub(crate) latencies: Vec<u64>,
}

impl Tally {
    /// One more that was answered.
    pub(crate) fn operation(&mut self, began: Instant, now: Instant) {
        self.operations += 1;
        self.latencies.push(u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Something that keeps connections busy from one thread.
pub(crate) trait Load {
    /// Does what there is to do; waits for at most `at_most` when there is nothing.
    fn turn(&mut self, at_most: Duration) -> io::Result<()>;

    /// What was done since the last call.
    fn take(&mut self) -> Tally;
}

/// An established connection that does not block from now on.
fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Rounded up, so that the last turn of a window does not spin.
fn timeout(at_most: Duration) -> EpollTimeout {
    EpollTimeout::try_from(at_most.saturating_add(Duration::from_millis(1))).unwrap_or(EpollTimeout::MAX)
}

/// Nothing to do right now, rather than a failure.
fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
