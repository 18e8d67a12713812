//! What one HTTP/1.1 connection may take: bytes, fields, attempts and time, each with its reason.

use std::time::Duration;

/// Bytes of a head, from the first byte of its first line to the empty line. As many as Envoy takes by default: what
/// passed another mesh passes this one, and the longest head fits a buffer of 64 KiB.
pub const HEAD_BYTES_MAX: usize = 60 * 1024;

/// Bytes of a head's first line. RFC 9112 asks for 8,000 at least; queries of 16 KiB are seen, and a target must leave
/// room for the fields.
pub const START_LINE_MAX: usize = 32 * 1024;

/// Fields of a head. Browsers send 20 to 30 and proxies add a dozen; hyper and Envoy stop at 100 as well.
pub const FIELDS_MAX: usize = 100;

/// Empty lines before a request line. RFC 9112 asks to ignore at least one, which old clients sent after a body.
pub const EMPTY_LINES_MAX: u8 = 2;

/// Options in the Connection fields of a head. Each is compared with each field; real heads have two.
pub const CONNECTION_OPTIONS_MAX: usize = 16;

/// Digits of a chunk's size: fifteen are an exabyte, and no arithmetic on them overflows.
pub const CHUNK_DIGITS_MAX: u8 = 15;

/// Bytes of chunk extensions in one body. Nobody uses them but attackers, who hide bytes in them.
pub const EXTENSION_BYTES_MAX: usize = 4 * 1024;

/// Bytes of a trailer section. It is held until it is complete; digests, signatures and gRPC statuses take hundreds.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Fields of a trailer section, by the same measure.
pub const TRAILERS_MAX: usize = 32;

/// Bytes of a request's body that are read and thrown away after a local answer, to keep the connection. A connection
/// costs its client about as much as sending so many.
pub const DISCARDED_BYTES_MAX: u64 = 64 * 1024;

/// From the first byte of a head to its last, and without progress of a body whose answer is complete. A head is one
/// packet; this is what a bad radio link may need, and what an attacker may hold a buffer for.
pub const HEAD_TIME: Duration = Duration::from_secs(30);

/// A connection without a request. Whoever closes first races with the client's next request, so the server behind
/// should be first, and servers close after a minute or so; an idle connection costs a few kilobytes.
pub const IDLE: Duration = Duration::from_secs(60 * 60);

/// A request, a response or an upgraded connection without a byte in either direction. Long polls and quiet
/// WebSockets live long; what is silent for an hour has lost its peer.
pub const EXCHANGE_IDLE: Duration = Duration::from_secs(60 * 60);

/// A connection without a request while the process drains: long enough that a request that is on its way arrives.
pub const DRAINING_IDLE: Duration = Duration::from_secs(5);

/// How long a closed connection is still read from, so that the last answer is not lost to a reset: a few round trips.
pub const LINGER: Duration = Duration::from_secs(1);

/// The times of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// See [`HEAD_TIME`].
    pub head: Duration,
    /// See [`IDLE`].
    pub idle: Duration,
    /// See [`EXCHANGE_IDLE`].
    pub exchange: Duration,
    /// See [`DRAINING_IDLE`].
    pub draining: Duration,
    /// See [`LINGER`].
    pub linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            head: HEAD_TIME,
            idle: IDLE,
            exchange: EXCHANGE_IDLE,
            draining: DRAINING_IDLE,
            linger: LINGER,
        }
    }
}
