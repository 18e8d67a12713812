//! A client that writes frames as it likes, and reads what it is told.

use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::support::soon;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK writes them without any of its tables.
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte says how long it is");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// How a stream or the connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// A response; the first byte of its block, which says its status where that is common.
    Answered(u8),
    /// The stream was reset.
    Reset(Reason),
    /// The connection ended.
    GoAway(Reason),
    /// Without a word.
    Closed,
}

pub(crate) struct Raw(pub(crate) DuplexStream);

impl Raw {
    pub(crate) async fn begin(mut io: DuplexStream) -> Self {
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self(io)
    }

    /// What is sent to a peer that has gone is nobody's concern.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Reads frames until something ends.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            let mut head = [0; 9];
            if soon("a frame", self.0.read_exact(&mut head)).await.is_err() {
                return End::Closed;
            }
            let [a, b, c, kind, ..] = head;
            let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
            self.0.read_exact(&mut payload).await.unwrap();
            let code = |at: usize| Reason::from(u32::from_be_bytes(payload[at..at + 4].try_into().unwrap()));
            match kind {
                HEADERS => return End::Answered(payload[0]),
                RST_STREAM => return End::Reset(code(0)),
                GOAWAY if code(4) != Reason::NO_ERROR => return End::GoAway(code(4)),
                _ => {}
            }
        }
    }
}
