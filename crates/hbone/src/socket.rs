//! Socket options for the TCP connection under a tunnel. They keep its queue short, so that a small message never
//! waits behind megabytes of somebody's bulk data. Sets and reads options and nothing else.

use std::io;
use std::mem::{self, size_of};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::SockRef;

/// Bytes that may wait unsent in the kernel. What waits there is in order and cannot be overtaken; what waits in the
/// tunnel takes turns by stream.
pub const NOTSENT_LOWAT: u32 = 128 * 1024;

/// The receive buffer of a near peer's tunnel (the kernel doubles it). Both options are needed: measured beside four
/// bulk streams, one of them halves the latency of a small message, both together divide it by five, for at most
/// a fifth of the bulk throughput.
pub const RECEIVE_BUFFER: usize = 256 * 1024;

/// A peer this near is near: 256 KiB fill 10 Gbit/s at this distance. Farther away a fixed buffer would bound the
/// throughput of the whole tunnel, and the kernel's own sizing is better.
pub const NEAR: Duration = Duration::from_micros(200);

/// Prepares a socket for a tunnel: no Nagle, a short queue in both directions. Call it on a connected socket: how
/// near the peer is decides about the receive buffer, and an unconnected one keeps the kernel's.
pub fn prepare(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    if round_trip(&*socket)?.is_some_and(|time| time <= NEAR) {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    Ok(())
}

/// The round-trip time that the kernel has measured, from the handshake on; `None` before.
pub fn round_trip(socket: &impl AsFd) -> io::Result<Option<Duration>> {
    let micros = tcp_info(socket)?.tcpi_rtt;
    Ok((micros > 0).then(|| Duration::from_micros(micros.into())))
}

#[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper in the libraries that we use")]
fn tcp_info(socket: &impl AsFd) -> io::Result<libc::tcp_info> {
    // SAFETY: tcp_info consists of plain numbers, and all zeroes is a value of it.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `length` bytes to `info`,
    // which is that large, and sets `length`. Both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_near_peer_gets_short_queues() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        for socket in [&dialled, &accepted] {
            prepare(socket).unwrap();
            let near = round_trip(socket).unwrap().expect("the handshake was measured") <= NEAR;
            let socket = SockRef::from(socket);
            assert!(socket.tcp_nodelay().unwrap());
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
            // A busy machine may make even loopback look far; then the kernel sizes the buffer.
            assert!(!near || socket.recv_buffer_size().unwrap() <= 2 * RECEIVE_BUFFER);
        }
    }
}
