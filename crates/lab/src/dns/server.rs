//! The sockets of the cluster's DNS: UDP and TCP port 53 in the control namespace, served by one thread of this process.

use std::io::{self, PipeWriter, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::{Transport, Zone, answer};
use crate::error::{LabError, cannot};
use crate::netns::Netns;

/// TCP clients served at once; more are closed. A lab has tens of pods and TCP is for answers that were cut.
const TCP_CLIENTS: usize = 64;

/// How long a TCP client may be silent.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// The zone that is served; replaced whole.
pub(crate) type Current = Arc<Mutex<Arc<Zone>>>;

/// A running server. Dropping it closes its sockets.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(netns: &Netns, addresses: &[IpAddr], zone: Current) -> Result<Self, LabError> {
        let listen = |ip: &IpAddr| Ok((UdpSocket::bind((*ip, 53))?, TcpListener::bind((*ip, 53))?));
        let sockets: io::Result<Vec<_>> = netns.run(|| addresses.iter().map(listen).collect())?;
        let sockets = sockets.map_err(cannot("listen on port 53 of the control namespace"))?;
        for (udp, tcp) in &sockets {
            // What poll announces may be gone when it is read.
            udp.set_nonblocking(true)
                .and_then(|()| tcp.set_nonblocking(true))
                .map_err(cannot("set up DNS"))?;
        }
        let (stopped, stop) = io::pipe().map_err(cannot("make a pipe"))?;
        let thread = thread::spawn(move || {
            let clients = Arc::new(AtomicUsize::new(0));
            loop {
                let mut fds = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                for (udp, tcp) in &sockets {
                    fds.push(PollFd::new(udp.as_fd(), PollFlags::POLLIN));
                    fds.push(PollFd::new(tcp.as_fd(), PollFlags::POLLIN));
                }
                if poll(&mut fds, PollTimeout::NONE).is_err() {
                    continue; // Only a signal ends it early.
                }
                if fds[0].any().unwrap_or(true) {
                    return;
                }
                for (udp, tcp) in &sockets {
                    serve_udp(udp, &zone);
                    accept_tcp(tcp, &zone, &clients);
                }
            }
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve_udp(socket: &UdpSocket, zone: &Current) {
    let mut query = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut query) {
        let zone = Arc::clone(&zone.lock());
        if let Some(reply) = answer(&zone, &query[..length], Transport::Udp) {
            // A reply that cannot be sent is a lost datagram; clients ask again.
            drop(socket.send_to(&reply, client));
        }
    }
}

fn accept_tcp(listener: &TcpListener, zone: &Current, clients: &Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept() {
        if clients.fetch_add(1, Ordering::Relaxed) >= TCP_CLIENTS {
            clients.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (zone, clients) = (Arc::clone(zone), Arc::clone(clients));
        thread::spawn(move || {
            // Its end, however it comes, is the client's business.
            drop(serve_tcp(stream, &zone));
            clients.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// RFC 1035 section 4.2.2: each message is preceded by its length in two bytes.
fn serve_tcp(mut stream: TcpStream, zone: &Current) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TCP_IDLE))?;
    stream.set_write_timeout(Some(TCP_IDLE))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let zone = Arc::clone(&zone.lock());
        let Some(reply) = answer(&zone, &query, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())?;
    }
}
