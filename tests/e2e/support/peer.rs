//! A peer of a tunnel that says what it is told to say, from inside a pod, past everything that would capture it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use lab::Pod;
use rustls::ClientConfig;

use super::raw::{
    ACK, END_HEADERS, Frame, GOAWAY, HEADERS, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block, frame,
};

/// SETTINGS_HEADER_TABLE_SIZE = 0 (RFC 9113 section 6.5.2): answers spell everything out. SETTINGS_INITIAL_WINDOW_SIZE is
/// the largest: whatever an application has to say may be sent at once, read or not.
const OWN_SETTINGS: [u8; 12] = [0, 1, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A status.
    Status(u16),
    /// The stream was reset, with this code.
    Reset(u32),
    /// The tunnel was closed, with this code.
    Closed(u32),
}

/// Dials from the pod's network namespace. The thread stays in this process's cgroup, so that no program of the node takes
/// it for the pod's: what it does is what a stolen namespace could.
pub(crate) fn dial(pod: &Pod, to: SocketAddr, tls: &Arc<ClientConfig>) -> Raw {
    pod.netns().run(|| Raw::dial(to, tls)).expect("entered")
}

/// A tunnel that is ready for requests, or why the other end did not want it.
pub(crate) fn tunnel(pod: &Pod, to: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<Raw> {
    let mut raw = dial(pod, to, tls);
    raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    raw.write(&frame(SETTINGS, 0, 0, &OWN_SETTINGS))?;
    // In TLS 1.3 a client learns that its certificate was refused when it reads.
    match raw.read_frame()?.kind {
        SETTINGS => {
            raw.write(&frame(SETTINGS, ACK, 0, &[]))?;
            // The tunnel's own window, from the protocol's 65,535 to the largest, too.
            raw.write(&frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()))?;
            Ok(raw)
        }
        other => Err(io::Error::other(format!("began with frame {other}"))),
    }
}

/// A CONNECT's header block.
pub(crate) fn connect_to(authority: &str) -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", authority)])
}

/// Sends a request and waits for its answer.
pub(crate) fn ask(raw: &mut Raw, stream: u32, headers: &[u8]) -> Answer {
    let mut bytes = Vec::new();
    let mut chunks = headers.chunks(16_000).peekable();
    let mut kind = HEADERS;
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags, stream, chunk));
        kind = super::raw::CONTINUATION;
    }
    if raw.write(&bytes).is_err() {
        return Answer::Closed(raw.read_goodbye().unwrap_or_default());
    }
    answer(raw, stream)
}

/// Waits for the answer on a stream.
pub(crate) fn answer(raw: &mut Raw, stream: u32) -> Answer {
    loop {
        match raw.read_frame() {
            Ok(found) if found.kind == HEADERS && found.stream == stream => {
                return Answer::Status(status(&found));
            }
            Ok(found) if found.kind == RST_STREAM && found.stream == stream => {
                return Answer::Reset(found.code());
            }
            Ok(found) if found.kind == GOAWAY => return Answer::Closed(found.code()),
            Ok(_) => {}
            Err(_) => return Answer::Closed(0),
        }
    }
}

/// The status that a header block begins with (RFC 7541: static table, or a Huffman-coded literal).
fn status(headers: &Frame) -> u16 {
    let block = headers.payload.as_slice();
    // A size update may come first: section 6.3.
    let block = block.strip_prefix(&[0x20]).unwrap_or(block);
    match block {
        [0x88, ..] => 200,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x08 | 0x18 | 0x48, 0x82, 0x68, 0x01, ..] => 401,
        [0x08 | 0x18 | 0x48, 0x83, 0x69, 0x90, 0xff, ..] => 431,
        [0x08 | 0x18 | 0x48, 0x83, 0x6c, 0x0c, 0xff, ..] => 503,
        other => panic!("no status that is known: {other:02x?}"),
    }
}
