//! Every limit of a tunnel, with the reason for its default. Holds values only.

use std::time::Duration;

use crate::budget::Budget;

/// TLS handshake, HTTP/2 preface and SETTINGS together. A healthy peer needs milliseconds; ten seconds is one lost
/// SYN and a few lost segments, and what a slow-loris peer can hold a slot for.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a tunnel may be silent before it is asked whether it is alive. Data counts as an answer, so a busy tunnel
/// is never asked.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer may take. Peers in the field use the same, so both ends agree on when a path is dead.
pub const PING_DEADLINE: Duration = Duration::from_secs(20);

/// Unread bytes that a peer may send ahead on one stream while it is alone in its tunnel (beside others it uses a part,
/// down to a quarter). One MiB fills 8 Gbit/s at a millisecond; more only makes a stalled application pin more memory.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// The largest window of a stream from a far peer: what peers in the field grant everybody.
pub const FAR_STREAM_WINDOW: u32 = 4 << 20;

/// What a far stream should be able to carry, in bytes per second: 10 Gbit/s.
const FAR_RATE: f64 = 1.25e9;

/// The ceiling of a tunnel's window, whatever its streams add up to: a peer that fills it without anybody reading
/// costs this much memory.
pub const TUNNEL_WINDOW: u32 = 256 << 20;

/// Streams that a peer may have open at once on a tunnel of ours; peers in the field advertise the same.
pub const MAX_STREAMS: u32 = 200;

/// Streams that we open at most on one tunnel, however many the peer allows: spreading more over several tunnels
/// lets several cores work, and one lost packet stall fewer streams.
pub const MAX_STREAMS_OPENED: usize = 100;

/// Decoded header bytes per request or answer. The largest that peers send (baggage, forwarded, traceparent) is
/// about one KiB.
pub const HEADER_LIST: u32 = 16 * 1024;

/// The largest frame that we accept, and the unit in which streams take turns: what a stream beside others reads at once.
/// The protocol's minimum, a quarter of it, costs a twentieth more processor time in bulk.
pub const FRAME: u32 = 64 * 1024;

/// Bytes that one stream may have given to the tunnel and not yet seen sent: one large read, and a second one so that
/// the tunnel does not run dry.
pub const SEND_BUFFER: usize = 512 * 1024;

/// What the streams of one workload may hold together, in all its tunnels and threads: bytes that came and its applications
/// have not read, and bytes read from them that tunnels have not taken. With more than a quarter of it held, streams get
/// a quarter of their windows and send buffers; with more than half, a sixteenth; with three quarters, a 64th.
/// So 32 streams may stall with full windows, or 64 send at full speed to peers that are slower, before anybody gets less;
/// some thousand may stall before any must end; and a node that is given half a GiB survives one workload that does its
/// worst, which may cost up to three times the bytes that are counted.
pub const BUDGET: usize = 128 << 20;

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

/// Tunnels to one peer and key: at the usual 100 streams each enough for the 16,384 connections that a node proxy lets a
/// pod have on one thread, all to one peer. Fewer would make a busy client's connections wait for each other to end.
pub const MAX_TUNNELS: usize = 164;

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
    /// See [`BUDGET`]. Tunnels share it whose limits are clones of each other.
    pub budget: Budget,
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
            budget: Budget::default(),
        }
    }
}

impl TunnelLimits {
    /// With a window that fits a peer at this distance (see [`crate::socket::round_trip`]).
    #[must_use]
    pub fn at_distance(self, round_trip: Duration) -> Self {
        let needed = (round_trip.as_secs_f64() * FAR_RATE).min(f64::from(FAR_STREAM_WINDOW));
        TunnelLimits { stream_window: self.stream_window.max(needed as u32), ..self }
    }

    /// The tunnel's window: every stream may fill its own, so a stalled stream never takes another's share (with
    /// the default window up to 256 streams; with far peers' larger ones from 64 fully stalled streams on they share).
    pub(crate) fn tunnel_window(&self, streams: usize) -> u32 {
        let streams = u32::try_from(streams).unwrap_or(u32::MAX);
        // 65,535 is what the protocol starts with; less cannot be said.
        self.stream_window.saturating_mul(streams).clamp(65_535, TUNNEL_WINDOW)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_peer_gets_a_larger_window_and_a_tunnel_is_bounded() {
        let near = TunnelLimits::default().at_distance(Duration::from_micros(100));
        assert_eq!(near.stream_window, STREAM_WINDOW);
        assert_eq!(near.tunnel_window(200), 200 * STREAM_WINDOW);
        let far = TunnelLimits::default().at_distance(Duration::from_millis(2));
        assert_eq!(far.stream_window, 2_500_000);
        let farther = TunnelLimits::default().at_distance(Duration::from_millis(80));
        assert_eq!(farther.stream_window, FAR_STREAM_WINDOW);
        assert_eq!(farther.tunnel_window(200), TUNNEL_WINDOW);
    }
}
