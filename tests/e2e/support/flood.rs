//! Many connections at once, of kinds that a well-behaved client never makes. They come from a pod's network namespace, past
//! everything that would capture them.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::Pod;
use socket2::{Domain, SockRef, Socket, Type};

use crate::mesh::SOON;

/// Between two looks at a few thousand connections.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What takes nothing for so long is full: on the way are two queues that a busy machine empties in milliseconds.
pub(crate) const FULL: Duration = Duration::from_secs(1);

/// Connections that say nothing, without those that are reset as soon as they stand.
pub(crate) fn connect(pod: &Pod, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let made = each(pod, count, || match TcpStream::connect_timeout(&to, SOON) {
        Ok(stream) => stream.set_nonblocking(true).map(|()| Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error),
    });
    made.into_iter().flatten().collect()
}

/// Connections to elsewhere that the pod's ztunnel carries: as if a process of the pod had made them, they bear the mark that
/// the capture sets.
pub(crate) fn captured(pod: &Pod, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    each(pod, count, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_mark(MARK_CAPTURE)?;
        // The kernel would give each some MiB, and a thousand full ones all there is for TCP on this machine.
        socket.set_send_buffer_size(SEND_BUFFER)?;
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

/// What waits in a captured connection to be read by its ztunnel.
const SEND_BUFFER: usize = 64 * 1024;
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

/// Writes to each as long as it takes anything, until none has for a second.
pub(crate) fn fill(streams: &mut [TcpStream]) {
    let deadline = Instant::now() + 4 * SOON;
    let mut last = Instant::now();
    while last.elapsed() < FULL {
        assert!(Instant::now() < deadline, "what nobody reads is still taken");
        for stream in &mut *streams {
            if stream.write(&[7; 64 * 1024]).is_ok_and(|count| count > 0) {
                last = Instant::now();
            }
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// A server in the pod that accepts and never reads, until it is dropped.
pub(crate) struct Deaf(TcpListener);

impl Deaf {
    pub(crate) fn listen(pod: &Pod, port: u16) -> Self {
        let listener = pod.netns().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
        let listener = listener.expect("entered").expect("a listener");
        let accepting = listener.try_clone().expect("a descriptor");
        thread::spawn(move || accepting.incoming().map_while(Result::ok).collect::<Vec<_>>());
        Self(listener)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        // The thread's accept fails, and it lets go of everything.
        drop(SockRef::from(&self.0).shutdown(Shutdown::Both));
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
