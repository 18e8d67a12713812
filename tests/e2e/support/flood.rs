//! Many connections at once, of kinds that a well-behaved client never makes. They come from a pod's network namespace, past
//! everything that would capture them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::Pod;
use socket2::{Domain, Socket, Type};

use crate::mesh::SOON;

/// Between two looks at a few thousand connections.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Connections that say nothing.
pub(crate) fn connect(pod: &Pod, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    each(pod, count, || {
        let stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })
}

/// Connections to elsewhere that the pod's ztunnel carries: as if a process of the pod had made them, they bear the mark that
/// the capture sets.
pub(crate) fn captured(pod: &Pod, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    each(pod, count, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(MARK_CAPTURE)?;
        socket.connect_timeout(&to.into(), SOON)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    })
}

/// Connections that are reset as soon as they stand. Refused ones count too.
pub(crate) fn connect_and_reset(pod: &Pod, to: SocketAddr, count: usize) {
    let sockets = each(pod, count, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        drop(socket.connect_timeout(&to.into(), SOON));
        Ok(())
    });
    drop(sockets);
}

/// Connections whose last packet of the handshake never comes, nor any other after it.
pub(crate) fn half_open(pod: &Pod, to: SocketAddr, count: usize) -> Vec<Socket> {
    let rules = "table inet mute {\nchain out {\ntype filter hook output priority 0\n\
                 tcp flags & (syn | ack) == ack drop\n}\n}\n";
    let muted = pod.run(["nft", rules]).expect("nft ends");
    assert!(muted.success(), "{muted:?}");
    each(pod, count, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => Ok(socket),
            other => other.map(|()| socket),
        }
    })
}

/// Of captured connections.
const MARK_CAPTURE: u32 = 0x53a;
/// `errno(3)`, on every architecture that we build for.
const EINPROGRESS: i32 = 115;

/// Writes `bytes` to each, until it is full or gone.
pub(crate) fn write(streams: &mut [TcpStream], bytes: &[u8]) {
    for stream in streams {
        let _ = stream.write(bytes);
    }
}

/// Waits until the other end has closed every one, doing `meanwhile` between two looks.
pub(crate) fn until_closed(
    what: &str,
    mut streams: Vec<TcpStream>,
    within: Duration,
    mut meanwhile: impl FnMut(&mut [TcpStream]),
) {
    let deadline = Instant::now() + within;
    while !streams.is_empty() {
        assert!(Instant::now() < deadline, "{what}: {} are open after {within:?}", streams.len());
        meanwhile(&mut streams);
        streams.retain_mut(|stream| !is_closed(stream));
        thread::sleep(LOOK_EVERY);
    }
}

/// Waits until the other end has cut every one, writing all the time and reading nothing.
pub(crate) fn until_cut(what: &str, mut streams: Vec<TcpStream>, within: Duration, bytes: &[u8]) {
    let deadline = Instant::now() + within;
    while !streams.is_empty() {
        assert!(Instant::now() < deadline, "{what}: {} are open after {within:?}", streams.len());
        streams.retain_mut(|stream| match stream.write(bytes) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        thread::sleep(LOOK_EVERY);
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

fn each<T: Send>(pod: &Pod, count: usize, one: impl Fn() -> io::Result<T> + Sync) -> Vec<T> {
    let made = pod.netns().run(|| (0..count).map(|_| one()).collect::<io::Result<Vec<T>>>());
    made.expect("entered").expect("connections")
}
