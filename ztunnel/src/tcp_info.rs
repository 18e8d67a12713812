//! What the kernel knows of a TCP connection: round trip and retransmits, read when it ends.
//!
//! Reads only (`TCP_INFO`, tcp(7)).

use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

use daemon::access::TcpFacts;
use tokio::net::TcpStream;

/// The facts of `socket`; `None` when the kernel does not give them.
#[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper in the libraries that we use")]
pub(crate) fn of(socket: &TcpStream) -> Option<TcpFacts> {
    // SAFETY: tcp_info is plain numbers, for which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = libc::socklen_t::try_from(mem::size_of_val(&info)).ok()?;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the kernel writes at most `length` bytes into
    // `info`, which is that large.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    (answer == 0).then(|| TcpFacts {
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
        retransmits: info.tcpi_total_retrans,
    })
}
