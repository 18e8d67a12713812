//! Every limit of a tunnel, with the reason for its default. Holds values only.

use std::time::Duration;

/// TLS handshake, HTTP/2 preface and SETTINGS together. A healthy peer needs milliseconds; ten seconds is one lost
/// SYN and a few lost segments, and what a slow-loris peer can hold a slot for.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a tunnel may be silent before it is asked whether it is alive. Data counts as an answer, so a busy tunnel
/// is never asked.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer may take. Peers in the field use the same, so both ends agree on when a path is dead.
pub const PING_DEADLINE: Duration = Duration::from_secs(20);

/// Unread bytes that a peer may send ahead on one stream. One MiB fills 8 Gbit/s at a millisecond; more only
/// makes a stalled application pin more memory.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// Streams that a peer may have open at once on a tunnel of ours; peers in the field advertise the same.
pub const MAX_STREAMS: u32 = 200;

/// Streams that we open at most on one tunnel, however many the peer allows: spreading more over several tunnels
/// lets several cores work, and one lost packet stall fewer streams.
pub const MAX_STREAMS_OPENED: usize = 100;

/// Decoded header bytes per request or answer. The largest that peers send (baggage, forwarded, traceparent) is
/// about one KiB.
pub const HEADER_LIST: u32 = 16 * 1024;

/// The largest frame that we accept: the protocol's minimum. Larger frames were measured and gain nothing, and a
/// frame is the unit in which streams take turns.
pub const FRAME: u32 = 16 * 1024;

/// Bytes that one stream may have given to the tunnel and not yet seen sent: one large read, and a second one so that
/// the tunnel does not run dry.
pub const SEND_BUFFER: usize = 512 * 1024;

/// A server closes a tunnel without streams after this time. Longer than the clients' own idle time (five minutes), so
/// that the end that would be surprised by the closing is the one that closes.
pub const SERVER_IDLE: Duration = Duration::from_secs(6 * 60);

/// Streams that may be reset while they wait to be accepted: as many as may be open.
pub const PENDING_RESETS: usize = MAX_STREAMS as usize;

/// Streams that we reset and still remember, so that what the peer sent before it knew is ignored, not punished.
pub const REMEMBERED_RESETS: usize = 1000;

/// Streams cancelled before we answered that are forgiven at once, and per second. An application that gives up
/// on a slow server does this now and then; a rapid-reset attack does nothing else.
pub const CANCELLED_BURST: u32 = 500;
/// See [`CANCELLED_BURST`].
pub const CANCELLED_PER_SECOND: u32 = 50;

/// A client pool closes a tunnel without streams after this time; peers in the field use the same.
pub const CLIENT_IDLE: Duration = Duration::from_secs(5 * 60);

/// Tunnels to one peer and key: enough for 1,600 streams at the usual 100 each. Beyond that new streams wait.
pub const MAX_TUNNELS: usize = 16;

/// Streams that may wait for a tunnel to one key before further ones are refused.
pub const MAX_WAITING: usize = 4096;

/// What both ends of a tunnel need to know.
#[derive(Debug, Clone)]
pub struct TunnelLimits {
    /// See [`HANDSHAKE`].
    pub handshake: Duration,
    /// See [`PING_INTERVAL`].
    pub ping_interval: Duration,
    /// See [`PING_DEADLINE`].
    pub ping_deadline: Duration,
    /// See [`STREAM_WINDOW`].
    pub stream_window: u32,
    /// See [`HEADER_LIST`].
    pub header_list: u32,
    /// See [`FRAME`].
    pub frame: u32,
    /// See [`SEND_BUFFER`].
    pub send_buffer: usize,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        TunnelLimits {
            handshake: HANDSHAKE,
            ping_interval: PING_INTERVAL,
            ping_deadline: PING_DEADLINE,
            stream_window: STREAM_WINDOW,
            header_list: HEADER_LIST,
            frame: FRAME,
            send_buffer: SEND_BUFFER,
        }
    }
}

impl TunnelLimits {
    /// The connection's window: every stream may fill its own, so a stalled stream never takes another's share.
    pub(crate) fn connection_window(&self, streams: usize) -> u32 {
        // The protocol's ceiling is 2^31 - 1.
        let ceiling = (1u64 << 31) - 1;
        let window = u64::from(self.stream_window).saturating_mul(streams as u64).clamp(65_535, ceiling);
        u32::try_from(window).unwrap_or(u32::MAX >> 1)
    }
}

/// Limits of the end that dials.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// What both ends share.
    pub tunnel: TunnelLimits,
    /// See [`MAX_STREAMS_OPENED`]. The peer's own limit counts too.
    pub max_streams: usize,
}

impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits { tunnel: TunnelLimits::default(), max_streams: MAX_STREAMS_OPENED }
    }
}

/// Limits of the end that accepts.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// What both ends share.
    pub tunnel: TunnelLimits,
    /// See [`MAX_STREAMS`].
    pub max_streams: u32,
    /// See [`SERVER_IDLE`].
    pub idle: Duration,
    /// See [`PENDING_RESETS`].
    pub pending_resets: usize,
    /// See [`CANCELLED_BURST`].
    pub cancelled_burst: u32,
    /// See [`CANCELLED_PER_SECOND`].
    pub cancelled_per_second: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            tunnel: TunnelLimits::default(),
            max_streams: MAX_STREAMS,
            idle: SERVER_IDLE,
            pending_resets: PENDING_RESETS,
            cancelled_burst: CANCELLED_BURST,
            cancelled_per_second: CANCELLED_PER_SECOND,
        }
    }
}

/// Limits of a pool.
#[derive(Debug, Clone)]
pub struct PoolLimits {
    /// See [`CLIENT_IDLE`].
    pub idle: Duration,
    /// See [`MAX_TUNNELS`].
    pub max_tunnels: usize,
    /// See [`MAX_WAITING`].
    pub max_waiting: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        PoolLimits { idle: CLIENT_IDLE, max_tunnels: MAX_TUNNELS, max_waiting: MAX_WAITING }
    }
}
