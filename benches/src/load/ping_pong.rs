//! One small message back and forth on each of several connections.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{EVENTS, Load, MESSAGE, Tally, connect, timeout, would_block};

#[derive(Debug)]
pub(crate) struct PingPong {
    epoll: Epoll,
    exchanges: Vec<Exchange>,
    events: Vec<EpollEvent>,
    tally: Tally,
}

#[derive(Debug)]
struct Exchange {
    stream: TcpStream,
    began: Instant,
    received: usize,
}

impl PingPong {
    pub(crate) fn new(to: SocketAddr, connections: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut exchanges = Vec::with_capacity(connections);
        for number in 0..connections {
            let stream = connect(to)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
            exchanges.push(Exchange { stream, began: Instant::now(), received: 0 });
        }
        for exchange in &mut exchanges {
            exchange.send(Instant::now())?;
        }
        Ok(Self { epoll, exchanges, events: vec![EpollEvent::empty(); EVENTS], tally: Tally::default() })
    }
}

impl Load for PingPong {
    fn turn(&mut self, at_most: Duration) -> io::Result<()> {
        let ready = match self.epoll.wait(&mut self.events, timeout(at_most)) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &self.events[..ready] {
            let exchange = &mut self.exchanges[event.data() as usize];
            if exchange.receive()? {
                let now = Instant::now();
                self.tally.operation(exchange.began, now);
                exchange.send(now)?;
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

impl Exchange {
    fn send(&mut self, now: Instant) -> io::Result<()> {
        self.began = now;
        self.received = 0;
        // Always fits: nothing else is on the way.
        self.stream.write_all(&[0x5a; MESSAGE])
    }

    /// Whether the message is complete now.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; MESSAGE];
        match self.stream.read(&mut buffer[self.received..]) {
            Ok(0) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed a connection in use"))
            }
            Ok(read) => {
                self.received += read;
                Ok(self.received == MESSAGE)
            }
            Err(error) if would_block(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
