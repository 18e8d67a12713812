//! A new connection per request: connect, one message, its answer, close; several of them at a time.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::{EVENTS, Load, MESSAGE, Tally, timeout, would_block};

#[derive(Debug)]
pub(crate) struct Connect {
    epoll: Epoll,
    to: SocketAddr,
    attempts: Vec<Attempt>,
    events: Vec<EpollEvent>,
    tally: Tally,
}

#[derive(Debug)]
struct Attempt {
    socket: Socket,
    began: Instant,
    sent: bool,
    received: usize,
}

enum Progress {
    Waiting,
    Answered,
    Failed(String),
}

impl Connect {
    pub(crate) fn new(to: SocketAddr, clients: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let attempts = (0..clients).map(|number| begin(&epoll, to, number)).collect::<Result<_, _>>()?;
        Ok(Self { epoll, to, attempts, events: vec![EpollEvent::empty(); EVENTS], tally: Tally::default() })
    }
}

impl Load for Connect {
    fn turn(&mut self, at_most: Duration) -> io::Result<()> {
        let ready = match self.epoll.wait(&mut self.events, timeout(at_most)) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &self.events[..ready] {
            let number = event.data() as usize;
            let attempt = &mut self.attempts[number];
            match attempt.progress(&self.epoll, number)? {
                Progress::Waiting => continue,
                Progress::Answered => self.tally.operation(attempt.began, Instant::now()),
                Progress::Failed(why) => {
                    self.tally.failed += 1;
                    self.tally.failure.get_or_insert(why);
                }
            }
            // The old socket is closed by this, and thereby forgotten by epoll.
            *attempt = begin(&self.epoll, self.to, number)?;
        }
        Ok(())
    }

    fn take(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

/// Starts a connection. Between namespaces of one machine it is usually established when `connect` returns, so the
/// request goes out at once.
fn begin(epoll: &Epoll, to: SocketAddr, number: usize) -> io::Result<Attempt> {
    let began = Instant::now();
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
        _ => {}
    }
    let mut attempt = Attempt { socket, began, sent: false, received: 0 };
    let sent = attempt.send().unwrap_or(false);
    let flags = if sent { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT };
    epoll.add(&attempt.socket, EpollEvent::new(flags, number as u64))?;
    Ok(attempt)
}

impl Attempt {
    /// Whether the request is on its way now.
    fn send(&mut self) -> io::Result<bool> {
        match self.socket.write(&[0x5a; MESSAGE]) {
            Ok(written) => self.sent = written == MESSAGE,
            Err(error) if would_block(&error) || error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => return Err(error),
        }
        Ok(self.sent)
    }

    fn progress(&mut self, epoll: &Epoll, number: usize) -> io::Result<Progress> {
        if !self.sent {
            return match self.send() {
                Ok(false) => Ok(Progress::Waiting),
                Ok(true) => {
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
                    epoll.modify(&self.socket, &mut event)?;
                    Ok(Progress::Waiting)
                }
                Err(error) => Ok(Progress::Failed(format!("no request was sent: {error}"))),
            };
        }
        let mut buffer = [0; MESSAGE];
        Ok(match self.socket.read(&mut buffer[self.received..]) {
            Ok(0) => Progress::Failed(format!("it ended after {} bytes of the answer", self.received)),
            Ok(read) => {
                self.received += read;
                if self.received == MESSAGE { Progress::Answered } else { Progress::Waiting }
            }
            Err(error) if would_block(&error) => Progress::Waiting,
            Err(error) => Progress::Failed(format!("after {} bytes of the answer: {error}", self.received)),
        })
    }
}
