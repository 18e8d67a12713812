//! A peer made of plain rustls and hand-made frames, able to say anything. It blocks, so it runs on a thread of its own.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::support::IN_VAIN;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const FLOW_CONTROL_ERROR: u32 = 0x3;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;

/// One frame as it came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM and GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The bytes of one frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals; names of the static table's first entries are given by index, others by name.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for part in [name, value] {
            // An integer with a seven-bit prefix (RFC 7541, section 5.1).
            let mut length = part.len();
            if length < 127 {
                bytes.push(length as u8);
            } else {
                bytes.push(127);
                length -= 127;
                while length >= 128 {
                    bytes.push((length % 128) as u8 | 128);
                    length /= 128;
                }
                bytes.push(length as u8);
            }
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    bytes
}

/// What a CONNECT says.
pub(crate) fn connect_block() -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:80")])
}

/// A connection that says what it is told to.
pub(crate) struct Raw {
    pub(crate) tls: StreamOwned<ClientConnection, TcpStream>,
}

impl Raw {
    /// TLS, and nothing yet in it.
    pub(crate) fn dial(address: SocketAddr, config: &Arc<ClientConfig>) -> Raw {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_nodelay(true).unwrap();
        // A peer that says nothing for this long is stuck, and the test fails where it reads.
        tcp.set_read_timeout(Some(IN_VAIN)).unwrap();
        tcp.set_write_timeout(Some(IN_VAIN)).unwrap();
        let name = "peer.test".try_into().unwrap();
        Raw { tls: StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), tcp) }
    }

    /// A tunnel whose preface and SETTINGS are exchanged.
    pub(crate) fn tunnel(address: SocketAddr, config: &Arc<ClientConfig>, settings: &[u8]) -> Raw {
        let mut raw = Raw::dial(address, config);
        raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.write(&frame(SETTINGS, 0, 0, settings)).unwrap();
        assert_eq!(raw.read_frame().unwrap().kind, SETTINGS);
        raw.write(&frame(SETTINGS, ACK, 0, &[])).unwrap();
        raw
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.write_all(bytes)?;
        self.tls.flush()
    }

    pub(crate) fn read_frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.tls.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.tls.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The first frame of this kind.
    pub(crate) fn read_until(&mut self, kind: u8) -> io::Result<Frame> {
        loop {
            let frame = self.read_frame()?;
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// Reads to the end of the connection; the code of the GOAWAY, if one came.
    pub(crate) fn read_goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Ok(frame) = self.read_frame() {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }

    /// Writes `unit` until the connection is closed. It fails the test when `most` bytes are taken.
    pub(crate) fn flood(&mut self, unit: impl Fn(u32) -> Vec<u8>, most: usize) {
        let mut sent = 0;
        for round in 0.. {
            let bytes = unit(round);
            sent += bytes.len();
            if self.write(&bytes).is_err() {
                return;
            }
            assert!(sent < most, "the flood was still taken after {sent} bytes");
        }
    }

    /// Ends our direction without a goodbye; a socket that the other end has reset already has nothing to end.
    pub(crate) fn half_close(&self) {
        let _ = self.tls.sock.shutdown(Shutdown::Write);
    }
}
