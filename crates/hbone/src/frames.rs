//! Watches HTTP/2 frames pass by (their nine-byte heads, nothing else) and keeps the budgets that the HTTP/2 engine
//! does not: control frames that make us answer, and streams that we had to reset. Decides, and touches no socket.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Control frames (PING, SETTINGS, PRIORITY, unknown types) that a peer may send in one burst.
/// A working peer sends a PING every ten seconds; a flood sends a hundred thousand a second.
const BURST: f64 = 1000.0;
/// Control frames per second that are forgiven, beside one for each frame of data that the peer was sent: some measure their
/// bandwidth by a PING for each round trip in which data comes.
const REFILL_PER_SECOND: f64 = 100.0;
/// What one SETTINGS frame costs: it makes us visit every open stream and write an answer.
const SETTINGS_COST: f64 = 10.0;
/// What a stream that broke the rules costs: we had to notice it, reset it and remember it.
const RESET_COST: f64 = 5.0;

/// Bytes of a frame head.
const HEAD: usize = 9;
/// The client connection preface (RFC 9113, section 3.4), which is not a frame.
const PREFACE: usize = 24;

/// Frame types (RFC 9113, section 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// The ACK flag of SETTINGS and PING.
const ACK: u8 = 1;
/// The END_STREAM flag of HEADERS and DATA.
const END_STREAM: u8 = 1;

/// A DATA frame smaller than this pins more memory (the buffer that it was read into) than it carries. Once a stream
/// is answered its reader copies such pieces together; before that nobody does.
const SMALL_DATA: usize = 8 * 1024;
/// How many such pieces may be held at once on streams of one tunnel that are not answered yet. A connection that begins
/// has one, of which hundreds a second are ordinary; what they pin, some megabytes, is given back with each answer.
const EARLY_PIECES: usize = 1000;

/// Error codes with which the engine ends streams that broke the rules: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED,
/// FRAME_SIZE_ERROR, REFUSED_STREAM. With others we end streams that did nothing wrong.
const BLAMING: [u32; 5] = [0x1, 0x3, 0x5, 0x6, 0x7];

/// One frame's head, and for RST_STREAM its error code.
#[derive(Clone, Copy)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
    code: u32,
}

/// Finds the frames in one direction of a tunnel's plaintext.
#[derive(Default)]
struct Scanner {
    skip: usize,
    head: [u8; HEAD + 4],
    have: usize,
}

impl Scanner {
    fn new(skip: usize) -> Self {
        Scanner { skip, ..Scanner::default() }
    }

    /// Calls `found` for every frame whose head is complete.
    fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let want = if self.have >= HEAD { self.wanted() } else { HEAD };
            let count = (want - self.have).min(bytes.len());
            self.head[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have >= HEAD && self.have >= self.wanted() {
                self.skip = HEAD + self.length() - self.have;
                self.have = 0;
                found(self.frame());
            }
        }
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }

    /// The head, and the error code too where there is one.
    fn wanted(&self) -> usize {
        if self.head[3] == kind::RST_STREAM { HEAD + self.length().min(4) } else { HEAD }
    }

    fn frame(&self) -> Frame {
        let [_, _, _, kind, flags, s, t, u, v, a, b, c, d] = self.head;
        let stream = u32::from_be_bytes([s, t, u, v]) & (u32::MAX >> 1);
        Frame { length: self.length(), kind, flags, stream, code: u32::from_be_bytes([a, b, c, d]) }
    }
}

/// What a peer did too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abuse {
    /// Frames that carry nothing and make us answer.
    ControlFrames,
    /// Streams that broke the protocol, so that we had to reset them.
    BrokenStreams,
    /// Streams that it cancelled before we could answer.
    CancelledStreams,
    /// Small pieces of data on streams that were not answered yet.
    EarlyData,
}

impl std::fmt::Display for Abuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ControlFrames => "it sent too many control frames",
            Self::BrokenStreams => "too many of its streams broke the protocol",
            Self::EarlyData => "it sent too many small pieces on streams that were not answered yet",
            Self::CancelledStreams => "it cancelled too many streams before they were answered",
        })
    }
}

/// An allowance that refills with time.
pub struct Budget {
    left: f64,
    capacity: f64,
    per_second: f64,
    at: Instant,
}

impl Budget {
    /// Full at first.
    pub fn new(capacity: f64, per_second: f64, now: Instant) -> Self {
        Budget { left: capacity, capacity, per_second, at: now }
    }

    /// False when there is not enough left.
    pub fn spend(&mut self, cost: f64, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.left = (self.left + passed.as_secs_f64() * self.per_second).min(self.capacity);
        self.at = now;
        self.left -= cost;
        self.left >= 0.0
    }

    /// Gives so much back.
    fn earn(&mut self, amount: f64) {
        self.left = (self.left + amount).min(self.capacity);
    }
}

/// Watches both directions of one connection.
pub struct Guard {
    inbound: Scanner,
    outbound: Scanner,
    budget: Budget,
    abuse: Option<Abuse>,
    goaway_seen: bool,
    frames: u64,
    /// We are the end that answers.
    answers: bool,
    /// Streams that the peer opened and we have not answered, each with its small pieces. The engine's stream limit
    /// bounds it.
    unanswered: HashMap<u32, usize>,
    /// The small pieces of all of them.
    early: usize,
}

impl Guard {
    /// For the end that dials: it sends the preface.
    pub fn client(now: Instant) -> Self {
        Guard::new(Scanner::default(), Scanner::new(PREFACE), false, now)
    }

    /// For the end that accepts: it receives the preface, and owes answers.
    pub fn server(now: Instant) -> Self {
        Guard::new(Scanner::new(PREFACE), Scanner::default(), true, now)
    }

    /// For the end that accepts, and passes data on before it answers: no small piece stays with it.
    pub fn forwarder(now: Instant) -> Self {
        Guard::new(Scanner::new(PREFACE), Scanner::default(), false, now)
    }

    fn new(inbound: Scanner, outbound: Scanner, answers: bool, now: Instant) -> Self {
        Guard {
            inbound,
            outbound,
            budget: Budget::new(BURST, REFILL_PER_SECOND, now),
            abuse: None,
            goaway_seen: false,
            frames: 0,
            answers,
            unanswered: HashMap::new(),
            early: 0,
        }
    }

    /// Looks at plaintext from the peer.
    pub fn inbound(&mut self, bytes: &[u8], now: impl Fn() -> Instant) {
        let Self { inbound, budget, abuse, goaway_seen, frames, answers, unanswered, early, .. } = self;
        inbound.scan(bytes, |frame| {
            *frames += 1;
            let (cost, kind) = match frame.kind {
                kind::DATA if frame.length < SMALL_DATA => {
                    if let Some(pieces) = unanswered.get_mut(&frame.stream) {
                        *pieces += 1;
                        *early += 1;
                        if *early > EARLY_PIECES {
                            abuse.get_or_insert(Abuse::EarlyData);
                        }
                    }
                    return;
                }
                kind::DATA | kind::WINDOW_UPDATE | kind::CONTINUATION => return,
                // Trailers name their stream again, and end it.
                kind::HEADERS if *answers && frame.flags & END_STREAM == 0 => {
                    unanswered.entry(frame.stream).or_default();
                    return;
                }
                kind::HEADERS => return,
                kind::RST_STREAM => {
                    *early -= unanswered.remove(&frame.stream).unwrap_or(0);
                    return;
                }
                kind::SETTINGS | kind::PING if frame.flags & ACK != 0 => return,
                kind::SETTINGS => (SETTINGS_COST, Abuse::ControlFrames),
                kind::GOAWAY => {
                    *goaway_seen = true;
                    (SETTINGS_COST, Abuse::ControlFrames)
                }
                _ => (1.0, Abuse::ControlFrames),
            };
            if !budget.spend(cost, now()) {
                abuse.get_or_insert(kind);
            }
        });
    }

    /// Looks at plaintext that we send.
    pub fn outbound(&mut self, bytes: &[u8], now: impl Fn() -> Instant) {
        let Self { outbound, budget, abuse, unanswered, early, .. } = self;
        outbound.scan(bytes, |frame| {
            if matches!(frame.kind, kind::HEADERS | kind::RST_STREAM) {
                *early -= unanswered.remove(&frame.stream).unwrap_or(0);
            }
            if frame.kind == kind::DATA {
                budget.earn(1.0);
            }
            let blamed = frame.kind == kind::RST_STREAM && BLAMING.contains(&frame.code);
            if blamed && !budget.spend(RESET_COST, now()) {
                abuse.get_or_insert(Abuse::BrokenStreams);
            }
        });
    }

    /// Set once a budget is spent.
    pub fn abuse(&self) -> Option<Abuse> {
        self.abuse
    }

    /// True once the peer said that it takes no new streams.
    pub(crate) fn goaway_seen(&self) -> bool {
        self.goaway_seen
    }

    /// Frames received so far.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = payload.len();
        let mut bytes = vec![(len >> 16) as u8, (len >> 8) as u8, len as u8, kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Without prefaces.
    fn guard(answers: bool, start: Instant) -> Guard {
        Guard::new(Scanner::default(), Scanner::default(), answers, start)
    }

    fn kinds(chunk: usize, bytes: &[u8]) -> Vec<(u8, u32)> {
        let mut scanner = Scanner::new(3);
        let mut found = Vec::new();
        for part in bytes.chunks(chunk) {
            scanner
                .scan(part, |frame| found.push((frame.kind, if frame.kind == 3 { frame.code } else { 0 })));
        }
        found
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = b"abc".to_vec();
        bytes.extend(frame(kind::SETTINGS, 0, &[7; 12]));
        bytes.extend(frame(kind::DATA, 0, &[9; 300]));
        bytes.extend(frame(kind::RST_STREAM, 0, &8u32.to_be_bytes()));
        bytes.extend(frame(kind::DATA, 1, &[]));
        bytes.extend(frame(kind::RST_STREAM, 0, &1u32.to_be_bytes()));
        for chunk in 1..bytes.len() {
            assert_eq!(
                kinds(chunk, &bytes),
                [(4, 0), (0, 0), (3, 8), (0, 0), (3, 1)],
                "cut every {chunk} bytes"
            );
        }
    }

    #[test]
    fn a_ping_flood_is_abuse_and_a_ping_now_and_then_is_not() {
        let start = Instant::now();
        let ping = frame(kind::PING, 0, &[0; 8]);
        let mut calm = guard(true, start);
        for second in 0..10_000 {
            calm.inbound(&ping, || start + Duration::from_secs(second));
        }
        assert_eq!(calm.abuse(), None);
        let mut flood = guard(true, start);
        for _ in 0..=BURST as usize {
            flood.inbound(&ping, || start);
        }
        assert_eq!(flood.abuse(), Some(Abuse::ControlFrames));
        let mut measuring = guard(true, start);
        for _ in 0..10 * BURST as usize {
            measuring.outbound(&frame(kind::DATA, 0, b"data"), || start);
            measuring.inbound(&ping, || start);
        }
        assert_eq!(measuring.abuse(), None, "one for each piece of data");
    }

    #[test]
    fn data_headers_windows_and_answers_are_free() {
        let start = Instant::now();
        let mut guard = self::guard(true, start);
        for (kind, flags) in
            [(kind::DATA, 0), (kind::HEADERS, 4), (kind::WINDOW_UPDATE, 0), (kind::PING, ACK)]
        {
            for _ in 0..5000 {
                guard.inbound(&frame(kind, flags, &[0; 8]), || start);
            }
        }
        assert_eq!(guard.abuse(), None);
        assert_eq!(guard.frames(), 20_000);
    }

    #[test]
    fn small_pieces_count_only_until_the_answer() {
        let start = Instant::now();
        let mut guard = self::guard(true, start);
        let (request, answer) = (frame(kind::HEADERS, 4, &[]), frame(kind::HEADERS, 4, &[]));
        let pieces = frame(kind::DATA, 0, b"x").repeat(EARLY_PIECES);
        guard.inbound(&request, || start);
        guard.inbound(&pieces, || start);
        assert_eq!(guard.abuse(), None, "so many may be held");
        guard.outbound(&answer, || start);
        guard.inbound(&pieces, || start);
        assert_eq!(guard.abuse(), None, "the reader sees to it now");
        assert!(guard.unanswered.is_empty() && guard.early == 0);
        guard.inbound(&request, || start);
        guard.inbound(&frame(kind::DATA, 0, &[0; SMALL_DATA]).repeat(2000), || start);
        assert_eq!(guard.abuse(), None, "large pieces carry what they pin");
        guard.inbound(&pieces, || start);
        guard.inbound(&frame(kind::DATA, 0, b"x"), || start);
        assert_eq!(guard.abuse(), Some(Abuse::EarlyData));
        let mut dials = self::guard(false, start);
        dials.inbound(&request, || start);
        dials.inbound(&pieces.repeat(3), || start);
        assert_eq!(dials.abuse(), None, "what answers us may be small");
    }

    #[test]
    fn any_number_of_connections_may_say_something_early() {
        let start = Instant::now();
        let mut guard = self::guard(true, start);
        let early = [frame(kind::HEADERS, 4, &[]), frame(kind::DATA, 0, b"hello")].concat();
        for _ in 0..10 * EARLY_PIECES {
            guard.inbound(&early, || start);
            guard.outbound(&frame(kind::HEADERS, 4, &[]), || start);
        }
        for _ in 0..10 * EARLY_PIECES {
            guard.inbound(&early, || start);
            guard.inbound(&frame(kind::RST_STREAM, 0, &8u32.to_be_bytes()), || start);
        }
        assert_eq!((guard.abuse(), guard.early), (None, 0));
    }

    #[test]
    fn only_resets_that_the_peer_earned_count() {
        let start = Instant::now();
        let mut guard = self::guard(true, start);
        for _ in 0..5000 {
            guard.outbound(&frame(kind::RST_STREAM, 0, &8u32.to_be_bytes()), || start);
        }
        assert_eq!(guard.abuse(), None);
        for _ in 0..=(BURST / RESET_COST) as usize {
            guard.outbound(&frame(kind::RST_STREAM, 0, &1u32.to_be_bytes()), || start);
        }
        assert_eq!(guard.abuse(), Some(Abuse::BrokenStreams));
    }
}
