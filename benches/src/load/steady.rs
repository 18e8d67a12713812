//! Loads that are not measured by themselves: idle connections, and a slow stream of new ones.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use super::{CONNECT_WITHIN, MESSAGE};

/// Between two probes: short beside what is timed with them, and no load to speak of.
const PROBE_EVERY: Duration = Duration::from_millis(1);

/// Opens connections, uses each once so that it is open end to end, says so, and holds them until it is killed.
pub(crate) fn idle(to: SocketAddr, connections: usize) -> io::Result<()> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        held.push(exchange(to)?);
    }
    println!("holding {} connections", held.len());
    loop {
        thread::park();
    }
}

/// Opens a connection per millisecond, uses it once and closes it, until it is killed. Failures are not its business:
/// it is there so that there is traffic at any time.
pub(crate) fn probe(to: SocketAddr) -> io::Result<()> {
    // The first one must work, or nothing is there to be observed.
    drop(exchange(to)?);
    println!("probing");
    loop {
        drop(exchange(to));
        thread::sleep(PROBE_EVERY);
    }
}

fn exchange(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_WITHIN)?;
    stream.set_read_timeout(Some(CONNECT_WITHIN))?;
    stream.write_all(&[0x5a; MESSAGE])?;
    stream.read_exact(&mut [0; MESSAGE])?;
    Ok(stream)
}
