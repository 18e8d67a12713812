//! Bulk data from client to server on several connections.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{BUFFER, EVENTS, Load, Tally, connect, timeout, would_block};

/// Writes to one connection before the next gets its turn: as much as socket buffers hold, give or take.
const WRITES_PER_TURN: usize = 4;

#[derive(Debug)]
pub(crate) struct Bulk {
    epoll: Epoll,
    streams: Vec<TcpStream>,
    data: Vec<u8>,
    events: Vec<EpollEvent>,
    tally: Tally,
}

impl Bulk {
    pub(crate) fn new(to: SocketAddr, connections: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let streams: Vec<_> = (0..connections).map(|_| connect(to)).collect::<Result<_, _>>()?;
        for (stream, number) in streams.iter().zip(0..) {
            epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLOUT, number))?;
        }
        let events = vec![EpollEvent::empty(); EVENTS];
        Ok(Self { epoll, streams, data: vec![0x5a; BUFFER], events, tally: Tally::default() })
    }
}

impl Load for Bulk {
    fn turn(&mut self, at_most: Duration) -> io::Result<()> {
        let ready = match self.epoll.wait(&mut self.events, timeout(at_most)) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &self.events[..ready] {
            let mut stream = &self.streams[event.data() as usize];
            for _ in 0..WRITES_PER_TURN {
                match stream.write(&self.data) {
                    Ok(written) => self.tally.bytes += written as u64,
                    Err(error) if would_block(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}
