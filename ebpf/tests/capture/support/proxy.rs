//! A stand-in for the proxy: listeners in one pod, threads that accept, and greetings that say what was seen.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ebpf::socket::{self, DnsReplier};
use ebpf::{Kind, Listeners, Netns, Sandbox};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

/// Accepts on all kinds of one pod. Every TCP connection is greeted with "KIND LOCAL PEER" and its lines are sent back
/// behind "KIND " until "bye"; every DNS query is answered with "KIND CLIENT RESOLVER TEXT".
pub(crate) struct Proxy {
    listeners: [Arc<OwnedFd>; 4],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    relay: bool,
}

impl Proxy {
    pub(crate) fn start(sandbox: &Sandbox) -> Self {
        Self::start_as(sandbox, false)
    }

    /// Inbound connections are carried to the application that they were meant for, with their own address.
    pub(crate) fn relaying(sandbox: &Sandbox) -> Self {
        Self::start_as(sandbox, true)
    }

    fn start_as(sandbox: &Sandbox, relay: bool) -> Self {
        let open = |kind| Arc::new(socket::listen(&sandbox.netns, kind).expect("a listener"));
        let listeners = Kind::ALL.map(open);
        let mut proxy = Self { listeners, stop: Arc::default(), threads: Vec::new(), relay };
        for kind in Kind::ALL {
            proxy.serve(kind, &sandbox.netns);
        }
        proxy
    }

    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 4] {
        self.listeners.each_ref().map(|listener| listener.as_fd())
    }

    /// Stops accepting and closes the listeners; connections that were accepted go on.
    pub(crate) fn stop(mut self) {
        self.stop_now();
    }

    fn stop_now(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic in the proxy");
        }
    }

    fn serve(&mut self, kind: Kind, netns: &Arc<Netns>) {
        let listener = Arc::clone(&self.listeners[kind as usize]);
        let (stop, netns, relay) = (Arc::clone(&self.stop), Arc::clone(netns), self.relay);
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                if poll(&mut waiting, PollTimeout::from(20u8)).unwrap_or(0) == 0 {
                    continue;
                }
                let _ = if kind == Kind::Dns {
                    answer(&listener, &netns)
                } else {
                    accept(&listener, kind, &netns, relay)
                };
            }
        }));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop_now();
    }
}

impl Listeners for Proxy {
    fn listeners(&mut self, _: &Sandbox) -> io::Result<[BorrowedFd<'_>; 4]> {
        Ok(self.fds())
    }
}

fn accept(listener: &OwnedFd, kind: Kind, netns: &Arc<Netns>, relay: bool) -> io::Result<()> {
    let listener: Socket = listener.try_clone()?.into();
    let (socket, _) = listener.accept()?;
    socket.set_nonblocking(false)?;
    let stream = TcpStream::from(socket);
    let netns = Arc::clone(netns);
    std::thread::spawn(move || {
        let carry = relay && kind != Kind::Outbound;
        if carry { carry_to_app(&stream, &netns) } else { greet(stream, kind) }
    });
    Ok(())
}

fn greet(mut stream: TcpStream, kind: Kind) -> io::Result<()> {
    let (local, peer) = (mapped(stream.local_addr()?), mapped(stream.peer_addr()?));
    stream.write_all(format!("{kind:?} {local} {peer}\n").as_bytes())?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        stream.write_all(format!("{kind:?} {line}\n").as_bytes())?;
        if line == "bye" {
            break;
        }
    }
    Ok(())
}

fn carry_to_app(stream: &TcpStream, netns: &Netns) -> io::Result<()> {
    let (app, client) = (mapped(stream.local_addr()?), mapped(stream.peer_addr()?));
    let socket = socket::to_app(netns, client.ip(), app)?;
    socket.set_nonblocking(false)?;
    socket.connect(&app.into())?;
    let app = TcpStream::from(socket);
    let there = (stream.try_clone()?, app.try_clone()?);
    std::thread::spawn(move || copy(&there.0, &there.1));
    copy(&app, stream)
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.shutdown(std::net::Shutdown::Write),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) => {
                let _ = to.shutdown(std::net::Shutdown::Both);
                return Err(error);
            }
        }
    }
}

fn answer(listener: &OwnedFd, netns: &Netns) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let query = socket::receive_query(listener.as_fd(), &mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..query.length]);
    let answer = format!("Dns {} {} {text}", query.client, query.resolver);
    DnsReplier::open(netns)?.reply(&query, answer.as_bytes())
}

/// An address without the mapped form.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
