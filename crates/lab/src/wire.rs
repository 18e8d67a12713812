//! What crosses the bridge between nodes: a reader of every packet, searching it for what tests watch for.
//!
//! It never loses packets silently: an answer about what was *not* seen is an error if anything was missed.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use memchr::memmem::Finder;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};

use crate::error::{LabError, cannot};
use crate::netns::Netns;

mod ledger;
mod packet;
mod socket;
mod stream;

use ledger::{Ledger, What};
pub use ledger::{Sighting, Traffic, WireStats};
use socket::{Frame, PacketSocket};
use stream::MAX_PATTERN;

/// How long the reader may take to catch up with what is on the wire already.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);

/// Two processors may queue packets in another order than their time stamps say, by far less than this.
const STAMP_SKEW: Duration = Duration::from_millis(10);

/// Frames between two looks at whether somebody waits for the reader.
const BATCH: usize = 256;

/// Why nothing can be said about the wire.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Packets were dropped or searched only in part, so their absence proves nothing.
    #[error("the capture is incomplete: {lost} packets lost, {incomplete} searched in part")]
    Incomplete {
        /// Frames that the kernel dropped.
        lost: u64,
        /// Frames or segments that were searched in part.
        incomplete: u64,
    },
    /// The reader did not catch up, or ended.
    #[error("the wire's reader has not caught up within {CATCH_UP_WITHIN:?}; it is overloaded or failed")]
    Behind,
    /// What was waited for was not seen.
    #[error("{what} was not seen between nodes within {within:?}")]
    Unseen {
        /// The pattern or port.
        what: String,
        /// How long was waited.
        within: Duration,
    },
}

/// The capture of everything that enters the bridge, each packet once.
#[derive(Debug)]
pub struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Something that is watched for, from the moment of its making on.
#[derive(Clone, Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    number: usize,
    what: String,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the reader; taken away to end it.
    wake: Mutex<Option<PipeWriter>>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// All that was on the wire before this time has been entered.
    complete_to: SystemTime,
}

impl Wire {
    /// Begins to capture in the switch's namespace; `members` are its ports.
    pub(crate) fn start(switch: &Netns, members: &[(&str, &Netns)]) -> Result<Self, LabError> {
        let opened = switch.run(|| {
            let ports: Result<HashMap<_, _>, _> = members
                .iter()
                .map(|(name, _)| Ok((if_nametoindex(*name)? as usize, (*name).to_owned())))
                .collect();
            io::Result::Ok((PacketSocket::open()?, ports.map_err(|errno: nix::errno::Errno| errno)?))
        })?;
        let (socket, ports) = opened.map_err(cannot("capture on the bridge"))?;
        let (woken, wake) = io::pipe().map_err(cannot("make a pipe"))?;
        let state = State { ledger: Ledger::new(), complete_to: SystemTime::UNIX_EPOCH };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            wake: Mutex::new(Some(wake)),
        });
        let reader = Reader { shared: Arc::clone(&shared), socket, ports, woken };
        let thread = thread::spawn(move || reader.run());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches for a byte string in any packet, and across segments of TCP connections.
    ///
    /// # Panics
    /// When the string is empty or longer than 256 bytes.
    pub fn watch(&self, pattern: impl AsRef<[u8]>) -> Watch {
        let pattern = pattern.as_ref();
        assert!((1..=MAX_PATTERN).contains(&pattern.len()), "a pattern has 1 to {MAX_PATTERN} bytes");
        let what = format!("\"{}\"", pattern.escape_ascii());
        self.add(what, What::Bytes(Box::new(Finder::new(pattern).into_owned())))
    }

    /// Watches for payload on TCP connections between pods that have this port at either end.
    pub fn watch_port(&self, port: u16) -> Watch {
        self.add(format!("payload on TCP port {port}"), What::Port(port))
    }

    /// Everything that was on the wire until now, in numbers. An incomplete capture is told by its `lost` and `incomplete`.
    pub fn stats(&self) -> Result<WireStats, WireError> {
        self.shared.catch_up()?;
        Ok(self.shared.state.lock().ledger.stats.clone())
    }

    /// Fails if any packet since the lab's start was lost or searched only in part.
    pub fn check_complete(&self) -> Result<(), WireError> {
        self.shared.catch_up()?;
        self.shared.check_complete()
    }

    fn add(&self, what: String, kind: What) -> Watch {
        let number = self.shared.state.lock().ledger.watch(kind);
        Watch { shared: Arc::clone(&self.shared), number, what }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.shared.wake.lock().take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Watch {
    /// The sightings until now, the first thousand of them. An error if the capture missed anything: then an empty
    /// answer would mean nothing.
    pub fn sightings(&self) -> Result<Vec<Sighting>, WireError> {
        self.shared.catch_up()?;
        self.shared.check_complete()?;
        Ok(self.shared.state.lock().ledger.sightings(self.number).0.to_vec())
    }

    /// How many sightings there were until now.
    pub fn count(&self) -> Result<u64, WireError> {
        self.shared.catch_up()?;
        self.shared.check_complete()?;
        Ok(self.shared.state.lock().ledger.sightings(self.number).1)
    }

    /// Waits for the first sighting.
    pub fn wait(&self, within: Duration) -> Result<Sighting, WireError> {
        let deadline = Instant::now() + within;
        let mut state = self.shared.state.lock();
        loop {
            if let Some(first) = state.ledger.sightings(self.number).0.first() {
                return Ok(first.clone());
            }
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(WireError::Unseen { what: self.what.clone(), within });
            }
        }
    }
}

impl Shared {
    /// Waits until all that is on the wire now has been searched.
    fn catch_up(&self) -> Result<(), WireError> {
        let now = SystemTime::now();
        if let Some(wake) = self.wake.lock().as_mut() {
            wake.write_all(&[1]).map_err(|_| WireError::Behind)?;
        }
        let deadline = Instant::now() + CATCH_UP_WITHIN;
        let mut state = self.state.lock();
        while state.complete_to < now {
            if self.changed.wait_until(&mut state, deadline).timed_out() && state.complete_to < now {
                return Err(WireError::Behind);
            }
        }
        Ok(())
    }

    fn check_complete(&self) -> Result<(), WireError> {
        self.state.lock().ledger.check_complete()
    }
}

struct Reader {
    shared: Arc<Shared>,
    socket: PacketSocket,
    /// Names of the bridge's ports by interface number.
    ports: HashMap<usize, String>,
    woken: PipeReader,
}

impl Reader {
    fn run(mut self) {
        while self.round().unwrap_or(false) {}
    }

    /// Waits for frames or a question and deals with them; false when the capture is over.
    fn round(&mut self) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        let asked = fds[1].any().unwrap_or(true);
        if asked && self.woken.read(&mut [0; 64])? == 0 {
            return Ok(false);
        }
        // Before the look at the queue: what is there by now is entered below.
        let complete_to = SystemTime::now();
        let Self { shared, socket, ports, .. } = self;
        loop {
            let mut state = shared.state.lock();
            let mut emptied = false;
            for _ in 0..BATCH {
                let Some(frame) = socket.receive()? else {
                    emptied = true;
                    break;
                };
                state.complete_to = state.complete_to.max(frame.at - STAMP_SKEW);
                enter(&mut state.ledger, ports, &frame);
            }
            state.ledger.stats.lost += socket.take_lost()?;
            if emptied {
                state.complete_to = state.complete_to.max(complete_to);
                shared.changed.notify_all();
                return Ok(true);
            }
            drop(state);
            shared.changed.notify_all();
        }
    }
}

fn enter(ledger: &mut Ledger, ports: &HashMap<usize, String>, frame: &Frame<'_>) {
    // The bridge's own device sees a second copy of what is sent to everybody.
    let Some(node) = ports.get(&frame.interface) else { return };
    ledger.stats.incomplete += u64::from(frame.cut);
    if let Some(packet) = packet::parse(frame.bytes) {
        ledger.enter(frame.at, node, &packet);
    }
}
