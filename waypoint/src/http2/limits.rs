//! What one HTTP/2 connection may take: streams, bytes, fields and time, each with its reason.

use std::time::Duration;

/// Streams that a client may have open at once on its connection. Clients of gRPC hold hundreds of calls that only wait for news on
/// one connection, and would wait for each other beyond this; an idle stream costs some kilobytes.
pub const CLIENT_STREAMS_MAX: u32 = 1000;

/// Streams that we open at once on a connection to an endpoint before we make another: RFC 9113 recommends no fewer to servers,
/// and each may fill a window.
pub const STREAMS_MAX: u32 = 100;

/// Bytes that a peer may send ahead on one stream. At a round trip of half a millisecond it fills 2 Gbit/s; a reader that stalls
/// costs this much.
pub const STREAM_WINDOW: u32 = 128 * 1024;

/// Bytes that an endpoint may send ahead on all streams of a connection together: each may fill its own window, so that one that
/// stalls takes nothing from the others, who may be other clients'.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;

/// The same for a client: sixteen of its requests may stand still before they hold up others of its own connection.
pub const CLIENT_WINDOW: u32 = STREAM_WINDOW * 16;

/// Bytes of one stream that wait to be sent: enough for the time between two turns.
pub const SEND_BUFFER: usize = 64 * 1024;

/// Bodies that may wait as long as they like for somebody to read, of all connections on one thread. With full windows they hold
/// 96 MiB.
pub const STALLED_ANYWAY: usize = 512;

/// How long one may wait beyond that, without that a byte moves: a garbage collection, or a radio link that is lost and found.
pub const STALLED_FOR: Duration = Duration::from_secs(10);

/// Bodies that may wait at all, on one thread: with full windows they hold 384 MiB.
pub const STALLED_MAX: usize = 2048;

/// The largest frame that we take, the protocol's own: streams take turns by frames.
pub const FRAME: u32 = 16 * 1024;

/// Bytes of a head or of trailers, counted as RFC 9113, section 6.5.2, does. As for HTTP/1.1: what passed another mesh passes this
/// one. What is larger is answered with 431; the engine bounds the CONTINUATION frames that it takes by it.
pub const HEAD_BYTES_MAX: u32 = 60 * 1024;

/// Fields of a head, as for HTTP/1.1.
pub const FIELDS_MAX: usize = 100;

/// Fields of trailers, as for HTTP/1.1.
pub const TRAILERS_MAX: usize = 32;

/// Responses that may precede the final one (100, 102, 103). Servers send one or two.
pub const INTERIMS_MAX: u32 = 16;

/// Streams that a peer may have reset before we came to look at them. More are a rapid reset, and end the connection.
pub const PENDING_RESETS: usize = 100;

/// Requests of one connection that are begun before others of the thread get their turn. A packet may hold a hundred, which take
/// two milliseconds; as many as a busy connection has at once are begun together, so that what they say leaves together.
pub const REQUESTS_AT_ONCE: usize = 32;

/// Streams that we reset and still remember, so that what the peer sent before it knew is ignored, not punished.
pub const REMEMBERED_RESETS: usize = 1000;

/// Requests cancelled before they were answered that are forgiven at once: a browser's page that is left, a deadline that was too
/// short. A rapid reset does nothing else.
pub const CANCELLED_BURST: f64 = 500.0;

/// The same per second.
pub const CANCELLED_PER_SECOND: f64 = 50.0;

/// Bytes that may wait for the byte stream below before the engine has to wait: several frames share a write, and a peer that
/// does not read costs this much and no more.
pub const GATE: usize = 64 * 1024;

/// Bytes of the buffer that is kept while nothing waits to be written.
pub const GATHERED_KEPT: usize = 4 * 1024;

/// From the preface to its end, and without progress of a request whose answer is complete, as for HTTP/1.1.
pub const HEAD_TIME: Duration = Duration::from_secs(30);

/// A client's connection without a request, as for HTTP/1.1. A stream has no such limit, for calls that only wait for news are
/// what gRPC is used for; whether their ends are alive is asked by the tunnels and by TCP.
pub const IDLE: Duration = Duration::from_secs(60 * 60);

/// A client's connection without a request while the process drains: long enough that a request that is on its way arrives.
pub const DRAINING_IDLE: Duration = Duration::from_secs(5);

/// How long a peer that is thrown out is told why.
pub const GOODBYE: Duration = Duration::from_secs(1);
