//! The server of every load: discards on one port, returns on the other. One thread, as the client is.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::{BUFFER, ECHO_PORT, EVENTS, SINK_PORT, would_block};

/// Connections that may wait to be accepted; the kernel's own limit (`net.core.somaxconn`) is the same by default.
const BACKLOG: i32 = 4096;
/// Reads from one connection before the next gets its turn.
const READS_PER_TURN: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Service {
    Echo,
    Sink,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    service: Service,
}

#[derive(Debug)]
struct Server {
    epoll: Epoll,
    listeners: [(TcpListener, Service); 2],
    /// Numbered as in epoll, after the listeners. A gap is used again.
    connections: Vec<Option<Connection>>,
    gaps: Vec<usize>,
    buffer: Vec<u8>,
}

/// Serves until it is killed.
pub(crate) fn run() -> io::Result<()> {
    let listeners = [(listen(SINK_PORT)?, Service::Sink), (listen(ECHO_PORT)?, Service::Echo)];
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for ((listener, _), number) in listeners.iter().zip(0..) {
        epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
    }
    println!("serving");
    let buffer = vec![0; BUFFER];
    let mut server = Server { epoll, listeners, connections: Vec::new(), gaps: Vec::new(), buffer };
    let mut events = vec![EpollEvent::empty(); EVENTS];
    loop {
        let ready = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for event in &events[..ready] {
            server.turn(event.data() as usize)?;
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Server {
    fn turn(&mut self, number: usize) -> io::Result<()> {
        match number.checked_sub(self.listeners.len()) {
            None => self.accept(number),
            Some(number) => {
                // An event may outlive its connection within one batch.
                if let Some(Some(connection)) = self.connections.get_mut(number)
                    && !connection.turn(&mut self.buffer)
                {
                    self.connections[number] = None;
                    self.gaps.push(number);
                }
                Ok(())
            }
        }
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        loop {
            let (listener, service) = &self.listeners[listener];
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let number = self.gaps.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let event = EpollEvent::new(EpollFlags::EPOLLIN, (number + self.listeners.len()) as u64);
            self.epoll.add(&stream, event)?;
            self.connections[number] = Some(Connection { stream, service: *service });
        }
    }
}

impl Connection {
    /// Whether the connection stays open.
    fn turn(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..READS_PER_TURN {
            let read = match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(read) => read,
                Err(error) => return would_block(&error),
            };
            match self.service {
                // A client has at most one message on the way, so the answer always fits.
                Service::Echo => return self.stream.write_all(&buffer[..read]).is_ok(),
                Service::Sink if read < buffer.len() => return true,
                Service::Sink => {}
            }
        }
        true
    }
}
