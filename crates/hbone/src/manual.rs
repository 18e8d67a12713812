//! How the crate is built and what it promises. No code.
//!
//! # From the socket up
//!
//! | layer | what it does |
//! |---|---|
//! | `records` | TLS records by rustls' unbuffered API: opens and seals in batches, sends only when flushed |
//! | `io` | the byte stream that the HTTP/2 engine sees; its flush does nothing |
//! | tunnel task | begins a read quantum, polls the engine, flushes once. [`Driver`](crate::Driver) on the dialling end, [`ServerConnection::next`](crate::ServerConnection::next) on the accepting end |
//! | [`Stream`](crate::Stream) | batches of shared bytes both ways, with flow control in the caller's hand |
//! | [`relay`](crate::relay()) | one task that copies between a stream and a TCP connection |
//! | [`Pool`](crate::Pool) | which tunnel a new stream takes; a pure core decides |
//!
//! The engine (the `h2` crate) would flush after every frame; that costs two thirds more processor time per byte.
//! The tunnel task flushes instead, once per poll, so that the frames of all streams that had something to say share TLS
//! records and system calls. Everything is `Send`; nothing needs a multi-threaded runtime.
//!
//! Only `Stream`, `Opener`, `Driver`, `ServerConnection` and `Incoming` know the engine: another one can take its place
//! behind the same methods.
//!
//! # Order of things
//!
//! - [`connect`](crate::connect()) returns when the peer has sent its SETTINGS: it has accepted our certificate, and
//!   its stream limit is known. A refusal is an error of the dial, never of a stream.
//! - A CONNECT may carry bytes along ([`Connect::early`](crate::Connect)); the accepting end's application gets them
//!   only if the request is accepted. Only status 200 is an acceptance.
//! - [`OpenError::Unprocessed`](crate::OpenError) says that the peer certainly did nothing: the pool tries again by
//!   itself, and when it gives up the caller may try another peer. Other errors do not say so.
//! - After [`drain`](crate::ServerConnection::drain) keep calling `next`: requests that were on their way are still
//!   handed out.
//! - A stream that its application aborts is reset with CONNECT_ERROR, and becomes an abort at the other application.
//!   CANCEL and NO_ERROR are ordinary ends, because peers in the field end streams so.
//!
//! # Memory
//!
//! An idle tunnel holds no buffers: about 25 KiB per end, most of it the TLS session and the engine. An idle stream
//! with its relay holds about two KiB per end. A tunnel that works holds beside that at most:
//!
//! - 288 KiB received and not opened, 288 KiB opened and not parsed, 288 KiB sealed and not sent (all three at
//!   once only while the socket is full); recycled per thread, at most 8.5 MiB of free ones per thread;
//! - per stream: what the peer may send ahead and the application has not read,
//!   [`STREAM_WINDOW`](crate::limits::STREAM_WINDOW), for all streams together
//!   [`TUNNEL_WINDOW`](crate::limits::TUNNEL_WINDOW) at most. While the application does not keep up, small pieces are
//!   copied together, so that they never pin more than about three times their size;
//! - per stream: what we read from the application and the peer has not made room for,
//!   [`SEND_BUFFER`](crate::limits::SEND_BUFFER), in buffers of at most four times what is in them;
//! - per stream that waits for its answer: its headers, [`HEADER_LIST`](crate::limits::HEADER_LIST).
//!
//! With [`MAX_STREAMS`](crate::limits::MAX_STREAMS) streams that all stall in both directions that is some 300 MiB: a
//! peer needs a valid certificate to get there, and the caller bounds the tunnels of one peer.
//!
//! # Fairness
//!
//! Streams of a tunnel take turns frame by frame. What cannot be overtaken is kept short: the kernel's queues
//! ([`socket`](crate::socket)), one sealed batch of 256 KiB, and the part of its window that a stream uses beside
//! others. A stalled stream costs its own window and nothing else.
//!
//! # Hostile peers
//!
//! | what | answer |
//! |---|---|
//! | no or slow handshake, garbage | closed within [`HANDSHAKE`](crate::limits::HANDSHAKE) |
//! | floods of PING, SETTINGS, PRIORITY, unknown frames | a budget by time; ENHANCE_YOUR_CALM |
//! | rapid reset | the engine's limit on streams reset before we see them, a budget by time on those cancelled before they are answered, and a limit on streams in hand |
//! | resets that it makes us send | a budget by time |
//! | CONTINUATION floods, header bombs, empty DATA frames, many tiny DATA frames | the engine's limits |
//! | small pieces of data on streams that are not answered yet (each pins a read buffer) | a budget by time |
//! | malformed CONNECT | 400 or a reset of that stream; the tunnel goes on |
//! | windows of zero, windows that shrink, no reading | stalls itself; what we hold is bounded as above |
//! | headers that never end | closed after the idle time |
//! | silence | a PING after ten seconds without a byte, closed after twenty more |
