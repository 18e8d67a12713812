//! What was seen on the wire: counters, flows and the sightings of what is watched for. Pure; frames in, facts out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use memchr::memmem::Finder;

use super::WireError;
use super::packet::{Packet, Segment, Transport};
use super::stream::Stream;
use crate::topology;

/// Directions of TCP connections that are followed at once. Tests hold some thousands of connections.
const MAX_STREAMS: usize = 1 << 16;

/// Sightings of one watch that are kept; all are counted.
const KEPT_SIGHTINGS: usize = 1000;

/// Something that was watched for was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// When the kernel saw the packet.
    pub at: SystemTime,
    /// Who put it on the bridge: a node's name, or `control`.
    pub node: String,
    /// Its source; port 0 where the protocol has none.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
}

/// Packets and bytes of one kind. A packet may be as large as 64 KiB here: it has not met a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets, those without payload included.
    pub packets: u64,
    /// Bytes above TCP or UDP (above IP for other protocols).
    pub payload: u64,
    /// The first packet with payload.
    pub first: Option<SystemTime>,
    /// The last packet with payload.
    pub last: Option<SystemTime>,
}

/// Everything since the lab's start.
#[derive(Clone, Debug, Default)]
pub struct WireStats {
    /// TCP from a pod address to a pod address, all of it.
    pub pods_tcp: Traffic,
    /// Everything else from a pod address to a pod address.
    pub pods_other: Traffic,
    /// What has a node or the control namespace at one end: discovery, DNS, probes.
    pub rest: Traffic,
    by_port: HashMap<u16, Traffic>,
    /// Frames that the kernel dropped before they were searched.
    pub lost: u64,
    /// Segments or frames that could be searched only in part.
    pub incomplete: u64,
}

impl WireStats {
    /// TCP between pod addresses with this port at either end.
    pub fn pods_tcp_port(&self, port: u16) -> Traffic {
        self.by_port.get(&port).copied().unwrap_or_default()
    }
}

#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) stats: WireStats,
    watches: Vec<Watched>,
    streams: HashMap<(SocketAddr, SocketAddr), Stream>,
}

#[derive(Debug)]
struct Watched {
    what: What,
    kept: Vec<Sighting>,
    number: u64,
}

#[derive(Debug)]
pub(crate) enum What {
    Bytes(Box<Finder<'static>>),
    /// Payload on a TCP connection between pods with this port at either end.
    Port(u16),
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { stats: WireStats::default(), watches: Vec::new(), streams: HashMap::new() }
    }

    /// Begins to watch; the number identifies the watch.
    pub(crate) fn watch(&mut self, what: What) -> usize {
        self.watches.push(Watched { what, kept: Vec::new(), number: 0 });
        self.watches.len() - 1
    }

    /// The sightings kept, and how many there were.
    pub(crate) fn sightings(&self, watch: usize) -> (&[Sighting], u64) {
        let watched = &self.watches[watch];
        (&watched.kept, watched.number)
    }

    pub(crate) fn check_complete(&self) -> Result<(), WireError> {
        match self.stats {
            WireStats { lost: 0, incomplete: 0, .. } => Ok(()),
            WireStats { lost, incomplete, .. } => Err(WireError::Incomplete { lost, incomplete }),
        }
    }

    pub(crate) fn enter(&mut self, at: SystemTime, node: &str, packet: &Packet<'_>) {
        let (from_port, to_port, payload) = match &packet.transport {
            Transport::Tcp(segment) => (segment.from, segment.to, segment.payload),
            Transport::Udp { from, to, payload } => (*from, *to, *payload),
            Transport::Other { payload } => (0, 0, *payload),
        };
        let (from, to) = (SocketAddr::new(packet.from, from_port), SocketAddr::new(packet.to, to_port));
        let sighting = || Sighting { at, node: node.to_owned(), from, to };
        self.count(at, packet, (from, to), payload.len());
        match &packet.transport {
            Transport::Tcp(segment) => {
                if !payload.is_empty() && between_pods(packet.from, packet.to) {
                    self.note_port(from_port, to_port, sighting);
                }
                self.enter_segment((from, to), segment, sighting);
            }
            Transport::Udp { .. } | Transport::Other { .. } => {
                for watched in &mut self.watches {
                    watched.search(payload, sighting);
                }
            }
        }
    }

    fn enter_segment(
        &mut self,
        flow: (SocketAddr, SocketAddr),
        segment: &Segment<'_>,
        sighting: impl Fn() -> Sighting,
    ) {
        if !self.streams.contains_key(&flow) && self.streams.len() >= MAX_STREAMS {
            let any = *self.streams.keys().next().expect("the table is full");
            self.streams.remove(&any);
            self.stats.incomplete += 1;
        }
        let stream = self.streams.entry(flow).or_default();
        let mut sequence = segment.sequence;
        if segment.syn {
            stream.begin(sequence);
            sequence = sequence.wrapping_add(1);
        }
        let brought = stream.take(sequence, segment.payload);
        let over = segment.end && !stream.is_waiting();
        self.stats.incomplete += u64::from(brought.gave_up);
        for watched in &mut self.watches {
            watched.search(brought.fresh, &sighting);
            for border in &brought.borders {
                if let What::Bytes(finder) = &watched.what {
                    watched.search(border.window(finder.needle().len()), &sighting);
                }
            }
        }
        if over {
            self.streams.remove(&flow);
        }
    }

    fn note_port(&mut self, from: u16, to: u16, sighting: impl Fn() -> Sighting) {
        for watched in &mut self.watches {
            if matches!(watched.what, What::Port(port) if port == from || port == to) {
                watched.note(sighting());
            }
        }
    }

    fn count(&mut self, at: SystemTime, packet: &Packet<'_>, ends: (SocketAddr, SocketAddr), payload: usize) {
        let stats = &mut self.stats;
        let is_tcp = matches!(packet.transport, Transport::Tcp(_));
        if !between_pods(packet.from, packet.to) {
            return stats.rest.add(at, payload);
        }
        if !is_tcp {
            return stats.pods_other.add(at, payload);
        }
        stats.pods_tcp.add(at, payload);
        let (from, to) = (ends.0.port(), ends.1.port());
        stats.by_port.entry(from).or_default().add(at, payload);
        if to != from {
            stats.by_port.entry(to).or_default().add(at, payload);
        }
    }
}

impl Watched {
    fn search(&mut self, bytes: &[u8], sighting: impl Fn() -> Sighting) {
        let What::Bytes(finder) = &self.what else { return };
        for _ in 0..finder.find_iter(bytes).count() {
            self.note(sighting());
        }
    }

    fn note(&mut self, sighting: Sighting) {
        self.number += 1;
        if self.kept.len() < KEPT_SIGHTINGS {
            self.kept.push(sighting);
        }
    }
}

impl Traffic {
    fn add(&mut self, at: SystemTime, payload: usize) {
        self.packets += 1;
        if payload > 0 {
            self.payload += payload as u64;
            self.first.get_or_insert(at);
            self.last = Some(at);
        }
    }
}

fn between_pods(from: IpAddr, to: IpAddr) -> bool {
    topology::is_pod(from) && topology::is_pod(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment<'a>(sequence: u32, syn: bool, payload: &'a [u8]) -> Packet<'a> {
        let segment = Segment { from: 5000, to: 15008, sequence, syn, end: false, payload };
        let [from, to] = [1, 2].map(|node| topology::pod(node, 2).v4.into());
        Packet { from, to, transport: Transport::Tcp(segment) }
    }

    #[test]
    fn what_was_lost_is_never_taken_for_nothing() {
        let mut ledger = Ledger::new();
        ledger.check_complete().expect("nothing happened yet");
        ledger.stats.lost = 1;
        assert!(matches!(ledger.check_complete(), Err(WireError::Incomplete { lost: 1, incomplete: 0 })));
    }

    #[test]
    fn a_connection_that_cannot_be_followed_any_more_makes_the_capture_incomplete() {
        let mut ledger = Ledger::new();
        let now = SystemTime::UNIX_EPOCH;
        ledger.enter(now, "n1", &segment(0, true, b""));
        let chunk = vec![0; 1 << 20];
        for hole in 1..6 {
            ledger.enter(now, "n1", &segment(hole << 21, false, &chunk));
        }
        assert!(ledger.check_complete().is_err());
    }

    #[test]
    fn a_canary_across_segments_of_one_connection_is_one_sighting() {
        let mut ledger = Ledger::new();
        let watch = ledger.watch(What::Bytes(Box::new(Finder::new(b"canary").into_owned())));
        let port = ledger.watch(What::Port(15008));
        let now = SystemTime::UNIX_EPOCH;
        for packet in [segment(9, true, b""), segment(10, false, b"..cana"), segment(16, false, b"ry..")] {
            ledger.enter(now, "n1", &packet);
        }
        assert_eq!(ledger.sightings(watch).1, 1);
        assert_eq!(ledger.sightings(port).1, 2, "the SYN carries nothing");
        let expected = Traffic { packets: 3, payload: 10, first: Some(now), last: Some(now) };
        assert_eq!(ledger.stats.pods_tcp_port(15008), expected);
    }
}
