//! Peers that break the rules, in every way that we know of. Each is refused in a bounded and clean way, while another
//! peer of the same server notices nothing.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hbone::{Abuse, Incoming, Reason, ServerLimits, TunnelError, TunnelLimits};
use http::HeaderMap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::raw::*;
use crate::support::*;

/// More than any flood may get rid of before it is refused.
const PATIENCE: usize = 64 << 20;

/// A server under attack, and a good peer of it.
struct Arena {
    pki: Pki,
    address: SocketAddr,
    /// How tunnels ended, in order.
    ended: mpsc::Receiver<Option<TunnelError>>,
    good: hbone::Opener,
    /// Requests that were handed out for port 82, which the good peer never asks for.
    taken: Arc<AtomicUsize>,
    /// How many tunnels have ended.
    closed: Arc<AtomicUsize>,
}

impl Arena {
    async fn new() -> Arena {
        Arena::with(ServerLimits::default()).await
    }

    /// The limits are for the attackers.
    async fn with(limits: ServerLimits) -> Arena {
        let pki = Pki::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, ended) = mpsc::channel(1000);
        let served = pki.clone();
        let taken = Arc::new(AtomicUsize::new(0));
        let counting = taken.clone();
        let closed = Arc::new(AtomicUsize::new(0));
        let closing = closed.clone();
        tokio::spawn(async move {
            // The good peer is the first one.
            let mut next_limits = ServerLimits::default();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let limits = std::mem::replace(&mut next_limits, limits.clone());
                let (pki, sender, counting, closing) =
                    (served.clone(), sender.clone(), counting.clone(), closing.clone());
                tokio::spawn(async move {
                    let handle = move |incoming: Incoming| {
                        let attacker = incoming.authority.port_u16() == Some(82);
                        counting.fetch_add(usize::from(attacker), Ordering::SeqCst);
                        by_port(incoming)
                    };
                    let end = match hbone::accept(tcp, pki.server.clone(), &limits).await {
                        Ok((connection, _)) => serve_connection(connection, handle).await,
                        Err(_) => None,
                    };
                    closing.fetch_add(1, Ordering::SeqCst);
                    let _ = sender.send(end).await;
                });
            }
        });
        let tcp = TcpStream::connect(address).await.unwrap();
        let good = dial(tcp, &pki, &hbone::ClientLimits::default()).await.unwrap();
        Arena { pki, address, ended, good, taken, closed }
    }

    /// Runs the attack on a thread, with the good peer working all the time; then how the attacker's tunnel ended.
    async fn attack<T: Send + 'static>(
        &mut self,
        attack: impl FnOnce(SocketAddr, &Pki) -> T + Send + 'static,
    ) -> (T, Option<TunnelError>) {
        let (address, pki) = (self.address, self.pki.clone());
        let mut attacking = tokio::task::spawn_blocking(move || attack(address, &pki));
        let outcome = loop {
            tokio::select! {
                outcome = &mut attacking => break outcome.unwrap(),
                () = soon("the good peer", echo_once(&self.good, 100_000)) => {}
            }
        };
        let ended = soon("the attacker's tunnel ends", self.ended.recv()).await.unwrap();
        echo_once(&self.good, 100_000).await;
        (outcome, ended)
    }

    /// See [`Arena::attack`]; the tunnel must have been closed for this abuse, and the attacker told to calm down.
    async fn expect_abuse(&mut self, abuse: Abuse, attack: impl FnOnce(&mut Raw) + Send + 'static) {
        let (code, ended) = self
            .attack(move |address, pki| {
                let mut raw = Raw::tunnel(address, &pki.client, &[]);
                attack(&mut raw);
                raw.read_goodbye()
            })
            .await;
        assert!(matches!(ended, Some(TunnelError::Abuse(found)) if found == abuse), "{ended:?}");
        // A flooder that is still writing when we close may find the socket reset before it reads our reason.
        assert!(matches!(code, Some(ENHANCE_YOUR_CALM) | None), "{code:?}");
    }

    /// See [`Arena::attack`]; the tunnel must have been closed for breaking the protocol.
    async fn expect_broken(&mut self, attack: impl FnOnce(&mut Raw) + Send + 'static) -> TunnelError {
        let ((), ended) = self
            .attack(move |address, pki| {
                let mut raw = Raw::tunnel(address, &pki.client, &[]);
                attack(&mut raw);
                raw.read_goodbye();
            })
            .await;
        ended.expect("the tunnel was not closed by agreement")
    }
}

/// Port 80 echoes, port 81 is refused late, port 82 never answers, port 83 never reads.
async fn by_port(mut incoming: Incoming) {
    match incoming.authority.port_u16() {
        Some(82) => incoming.cancelled().await,
        Some(83) => {
            let stream = incoming.accept(HeaderMap::new());
            std::future::pending::<()>().await;
            drop(stream);
        }
        _ => echo(incoming).await,
    }
}

fn connect_to(port: u16) -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", &format!("10.0.0.1:{port}"))])
}

#[tokio::test]
async fn a_ping_flood_is_refused() {
    let mut arena = Arena::new().await;
    arena
        .expect_abuse(Abuse::ControlFrames, |raw| {
            raw.flood(|_| frame(PING, 0, 0, &[0; 8]).repeat(50), PATIENCE)
        })
        .await;
}

#[tokio::test]
async fn a_settings_flood_is_refused() {
    let mut arena = Arena::new().await;
    let unit = |round: u32| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, (round % 2) as u8].repeat(20)).repeat(20);
    arena.expect_abuse(Abuse::ControlFrames, move |raw| raw.flood(unit, PATIENCE)).await;
}

#[tokio::test]
async fn a_flood_of_frames_that_mean_nothing_is_refused() {
    let mut arena = Arena::new().await;
    arena
        .expect_abuse(Abuse::ControlFrames, |raw| raw.flood(|_| frame(0x77, 0, 0, &[]).repeat(50), PATIENCE))
        .await;
    arena
        .expect_abuse(Abuse::ControlFrames, |raw| {
            raw.flood(|_| frame(PRIORITY, 0, 1, &[0; 5]).repeat(50), PATIENCE)
        })
        .await;
}

#[tokio::test]
async fn a_rapid_reset_in_one_breath_is_refused() {
    let mut arena = Arena::new().await;
    let unit = |round: u32| {
        let ids = (0..100).map(|index| (round * 100 + index) * 2 + 1);
        let pair = |id| {
            let open = frame(HEADERS, END_HEADERS, id, &connect_to(82));
            [open, frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
        };
        ids.flat_map(pair).collect::<Vec<_>>()
    };
    let error = arena.expect_broken(move |raw| raw.flood(unit, PATIENCE)).await;
    let refused = matches!(
        error,
        TunnelError::Broken(Reason::ENHANCE_YOUR_CALM) | TunnelError::Abuse(Abuse::CancelledStreams)
    );
    assert!(refused, "{error:?}");
    let taken = arena.taken.load(Ordering::SeqCst);
    assert!(taken < 5000, "{taken} requests were handed out");
}

#[tokio::test]
async fn a_patient_rapid_reset_is_refused() {
    // What time forgives depends on how fast this machine is.
    let limits = ServerLimits { cancelled_per_second: 0, ..ServerLimits::default() };
    // A cancelled one is counted when its task has noticed.
    let most = limits.cancelled_burst * 2;
    let mut arena = Arena::with(limits).await;
    let (taken, closed) = (arena.taken.clone(), arena.closed.clone());
    arena
        .expect_abuse(Abuse::CancelledStreams, move |raw| {
            for round in 0..most {
                let id = round * 2 + 1;
                let before = taken.load(Ordering::SeqCst);
                if raw.write(&frame(HEADERS, END_HEADERS, id, &connect_to(82))).is_err() {
                    return;
                }
                // Every one is handed out before it is cancelled.
                while taken.load(Ordering::SeqCst) == before {
                    if closed.load(Ordering::SeqCst) > 0 {
                        return;
                    }
                    std::thread::yield_now();
                }
                if raw.write(&frame(RST_STREAM, 0, id, &8u32.to_be_bytes())).is_err() {
                    return;
                }
            }
            panic!("twice as many cancelled streams were taken as the burst allows");
        })
        .await;
}

#[tokio::test]
async fn streams_that_make_us_reset_them_are_refused() {
    let mut arena = Arena::new().await;
    // A window update of zero on a fresh stream obliges us to reset it: the peer never resets anything itself.
    let unit = |round: u32| {
        let ids = (0..20).map(|index| (round * 20 + index) * 2 + 1);
        let pair = |id| {
            let open = frame(HEADERS, END_HEADERS, id, &connect_to(80));
            [open, frame(WINDOW_UPDATE, 0, id, &0x7fff_ffffu32.to_be_bytes())].concat()
        };
        ids.flat_map(pair).collect::<Vec<_>>()
    };
    arena.expect_abuse(Abuse::BrokenStreams, move |raw| raw.flood(unit, PATIENCE)).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_then_the_tunnel() {
    let mut arena = Arena::new().await;
    let unit = |round: u32| {
        let ids = (0..20).map(|index| (round * 20 + index) * 2 + 1);
        ids.flat_map(|id| frame(HEADERS, END_HEADERS, id, &connect_to(82))).collect::<Vec<_>>()
    };
    arena.expect_abuse(Abuse::BrokenStreams, move |raw| raw.flood(unit, PATIENCE)).await;
    assert!(arena.taken.load(Ordering::SeqCst) <= 1000, "the limit holds");
}

#[tokio::test]
async fn a_continuation_flood_is_refused() {
    let mut arena = Arena::new().await;
    for payload in [vec![], block(&[("x", &"y".repeat(4000))])] {
        let error = arena
            .expect_broken(move |raw| {
                raw.write(&frame(HEADERS, 0, 1, &connect_block())).unwrap();
                raw.flood(|_| frame(CONTINUATION, 0, 1, &payload), PATIENCE);
            })
            .await;
        assert!(matches!(error, TunnelError::Broken(_)), "{error:?}");
    }
}

#[tokio::test]
async fn an_unfinished_header_block_does_not_hold_a_place_for_ever() {
    let limits = ServerLimits { idle: Duration::from_millis(300), ..ServerLimits::default() };
    let tunnel = TunnelLimits { ping_interval: Duration::from_millis(100), ..limits.tunnel.clone() };
    let mut arena = Arena::with(ServerLimits { tunnel, ..limits }).await;
    // It says a byte of its one header now and then.
    let error = arena
        .expect_broken(|raw| {
            raw.write(&frame(HEADERS, 0, 1, &connect_block())).unwrap();
            raw.write(&frame(CONTINUATION, END_HEADERS, 1, &[0; 16_000])[..9]).unwrap();
            let deadline = std::time::Instant::now() + Duration::from_secs(75);
            while std::time::Instant::now() < deadline {
                if raw.write(&[0]).is_err() {
                    return;
                }
                // The pace of the attack.
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("a place was held for 75 seconds");
        })
        .await;
    assert!(matches!(error, TunnelError::Idle), "{error:?}");
}

#[tokio::test]
async fn header_bombs_are_refused() {
    let mut arena = Arena::new().await;
    let (refused, ended) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            for round in 0..20u32 {
                // One entry of 4,000 bytes in the dynamic table, and 3,000 references of one byte: twelve MB decoded.
                let mut bomb = connect_to(82);
                bomb.push(0x40);
                bomb.extend(&block(&[("bomb", &"b".repeat(4000))])[1..]);
                bomb.extend(std::iter::repeat_n(0x80 | 62, 3000));
                if raw.write(&frame(HEADERS, END_HEADERS, round * 2 + 1, &bomb)).is_err() {
                    break;
                }
            }
            raw.half_close();
            let mut refused = false;
            while let Ok(frame) = raw.read_frame() {
                refused |= matches!(frame.kind, RST_STREAM | GOAWAY);
            }
            refused
        })
        .await;
    assert!(refused || matches!(ended, Some(TunnelError::Broken(_))), "{ended:?}");
    assert_eq!(arena.taken.load(Ordering::SeqCst), 0, "none was handed out");
}

#[tokio::test]
async fn a_header_list_over_the_limit_is_refused_with_a_status() {
    let mut arena = Arena::new().await;
    let (answer, _) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            let large =
                block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:82"), ("x", &"y".repeat(20_000))]);
            let (first, second) = large.split_at(16_000);
            raw.write(&frame(HEADERS, 0, 1, first)).unwrap();
            raw.write(&frame(CONTINUATION, END_HEADERS, 1, second)).unwrap();
            let answer = raw.read_until(HEADERS).unwrap();
            raw.tls.conn.send_close_notify();
            raw.tls.flush().unwrap();
            answer
        })
        .await;
    assert_eq!(answer.flags & END_STREAM, END_STREAM);
    assert_eq!(arena.taken.load(Ordering::SeqCst), 0, "it was not handed out");
}

#[tokio::test]
async fn empty_data_frames_are_refused() {
    let mut arena = Arena::new().await;
    for port in [80, 83] {
        let error = arena
            .expect_broken(move |raw| {
                raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(port))).unwrap();
                raw.flood(|_| frame(DATA, 0, 1, &[]).repeat(50), PATIENCE);
            })
            .await;
        assert!(matches!(error, TunnelError::Broken(Reason::ENHANCE_YOUR_CALM)), "{error:?}");
    }
}

#[tokio::test]
async fn a_flood_of_small_pieces_before_the_answer_is_refused() {
    let mut arena = Arena::new().await;
    arena
        .expect_abuse(Abuse::EarlyData, |raw| {
            raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(82))).unwrap();
            // Below the engine's own limit, which large frames elsewhere would refill.
            raw.flood(|_| frame(DATA, 0, 1, &[1; 300]).repeat(10), PATIENCE);
        })
        .await;
}

#[tokio::test]
async fn data_beyond_the_window_costs_the_stream() {
    let mut arena = Arena::new().await;
    let (reset, _) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(83))).unwrap();
            // The stream's window is one MiB.
            for _ in 0..=64 {
                raw.write(&frame(DATA, 0, 1, &[7; 16_384])).unwrap();
            }
            let reset = raw.read_until(RST_STREAM).unwrap();
            raw.tls.conn.send_close_notify();
            raw.tls.flush().unwrap();
            reset
        })
        .await;
    assert_eq!((reset.stream, reset.code()), (1, FLOW_CONTROL_ERROR));
}

#[tokio::test]
async fn a_peer_that_gives_no_window_stalls_only_itself() {
    let mut arena = Arena::new().await;
    let (got, _) = arena
        .attack(|address, pki| {
            // SETTINGS_INITIAL_WINDOW_SIZE = 0: the echo has nowhere to go.
            let mut raw = Raw::tunnel(address, &pki.client, &[0, 4, 0, 0, 0, 0]);
            raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(80))).unwrap();
            assert_eq!(raw.read_until(HEADERS).unwrap().stream, 1);
            raw.write(&frame(DATA, 0, 1, b"hello")).unwrap();
            // One byte at a time, then everything.
            let mut got = Vec::new();
            for _ in 0..3 {
                raw.write(&frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes())).unwrap();
                got.extend(raw.read_until(DATA).unwrap().payload);
            }
            // A window that shrinks below zero, and comes back.
            raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10])).unwrap();
            raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
            raw.write(&frame(WINDOW_UPDATE, 0, 1, &100u32.to_be_bytes())).unwrap();
            while got.len() < 5 {
                got.extend(raw.read_until(DATA).unwrap().payload);
            }
            raw.tls.conn.send_close_notify();
            raw.tls.flush().unwrap();
            got
        })
        .await;
    assert_eq!(got, b"hello");
}

#[tokio::test]
async fn a_peer_that_never_reads_is_soon_not_read_either() {
    let mut arena = Arena::new().await;
    let (sent, _) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            raw.tls.sock.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut sent = 0usize;
            for round in 0..u32::MAX {
                // Every request obliges us to an answer, which stays with us.
                let open = frame(HEADERS, END_HEADERS, round * 2 + 1, &connect_to(80));
                let unit = [open, frame(DATA, END_STREAM, round * 2 + 1, &[1; 100])].concat();
                if sent > PATIENCE || raw.write(&unit).is_err() {
                    break;
                }
                sent += unit.len();
            }
            sent
        })
        .await;
    assert!(sent < PATIENCE, "{sent} bytes of requests were read, and nobody reads the answers");
}

#[tokio::test]
async fn malformed_requests_are_refused_and_the_tunnel_goes_on() {
    let mut arena = Arena::new().await;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "not CONNECT",
            block(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")]),
        ),
        ("no authority", block(&[(":method", "CONNECT")])),
        ("a path", block(&[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")])),
        ("a scheme", block(&[(":method", "CONNECT"), (":authority", "a:1"), (":scheme", "https")])),
        (
            "extended CONNECT",
            block(&[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", "/"),
                (":authority", "a:1"),
            ]),
        ),
        ("two authorities", block(&[(":method", "CONNECT"), (":authority", "a:1"), (":authority", "b:1")])),
        ("user information", block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:80@b:1")])),
        ("an authority of spaces", block(&[(":method", "CONNECT"), (":authority", "a b:1")])),
        ("a status", block(&[(":method", "CONNECT"), (":authority", "a:1"), (":status", "200")])),
        ("a late pseudo header", block(&[(":method", "CONNECT"), ("x", "y"), (":authority", "a:1")])),
        (
            "a connection header",
            block(&[(":method", "CONNECT"), (":authority", "a:1"), ("connection", "close")]),
        ),
    ];
    let (answers, _) = arena
        .attack(move |address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            let mut answers = Vec::new();
            for (index, (what, block)) in cases.iter().enumerate() {
                let id = index as u32 * 2 + 1;
                raw.write(&frame(HEADERS, END_HEADERS, id, block)).unwrap();
                raw.write(&frame(DATA, 0, id, b"smuggled")).unwrap();
                let answer = loop {
                    let frame = raw.read_frame().unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_ne!(frame.kind, GOAWAY, "{what}: closes the whole tunnel");
                    if matches!(frame.kind, HEADERS | RST_STREAM) && frame.stream == id {
                        break frame;
                    }
                };
                // A reset, or an answer that ends the stream: 400 is entry 12 of the static table.
                let refused = answer.kind == RST_STREAM
                    || answer.flags & END_STREAM != 0 && answer.payload.first() == Some(&(0x80 | 12));
                answers.push((*what, refused));
            }
            // The same tunnel still serves a proper request.
            let id = cases.len() as u32 * 2 + 1;
            raw.write(&frame(HEADERS, END_HEADERS, id, &connect_to(80))).unwrap();
            raw.write(&frame(DATA, END_STREAM, id, b"hello")).unwrap();
            loop {
                let frame = raw.read_until(DATA).unwrap();
                if frame.stream == id && frame.payload == b"hello" {
                    break;
                }
            }
            raw.tls.conn.send_close_notify();
            raw.tls.flush().unwrap();
            answers
        })
        .await;
    for (what, refused) in answers {
        assert!(refused, "{what}");
    }
}

#[tokio::test]
async fn trailers_end_a_stream() {
    let mut arena = Arena::new().await;
    let (got, _) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(80))).unwrap();
            raw.write(&frame(DATA, 0, 1, b"hello")).unwrap();
            raw.write(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("grpc-status", "0")]))).unwrap();
            let mut got = Vec::new();
            loop {
                let frame = raw.read_until(DATA).unwrap();
                got.extend(frame.payload);
                if frame.flags & END_STREAM != 0 {
                    break;
                }
            }
            raw.tls.conn.send_close_notify();
            raw.tls.flush().unwrap();
            got
        })
        .await;
    assert_eq!(got, b"hello");
}

#[tokio::test]
async fn garbage_in_the_tunnel_is_refused() {
    let mut arena = Arena::new().await;
    for seed in 0..10 {
        arena
            .attack(move |address, pki| {
                let mut raw = Raw::dial(address, &pki.client);
                if seed % 2 == 0 {
                    raw.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
                }
                let _ = raw.write(&pattern(seed, 100_000));
                raw.half_close();
                raw.read_goodbye();
            })
            .await;
    }
}

#[tokio::test]
async fn garbage_instead_of_tls_is_refused() {
    let mut arena = Arena::new().await;
    let inputs: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        pattern(1, 100_000),
        vec![0x16, 3, 1, 0xff, 0xff],
        vec![0x17, 3, 3, 0x40, 0x00],
        vec![],
    ];
    for input in inputs {
        let ((), ended) = arena
            .attack(move |address, _| {
                let mut tcp = std::net::TcpStream::connect(address).unwrap();
                tcp.set_read_timeout(Some(IN_VAIN)).unwrap();
                let _ = tcp.write_all(&input);
                let _ = tcp.shutdown(std::net::Shutdown::Write);
                let mut rest = Vec::new();
                let closed = tcp.read_to_end(&mut rest);
                assert!(!gave_up_reading(&closed), "not closed");
                assert!(rest.len() < 100, "at most an alert: {} bytes", rest.len());
            })
            .await;
        assert!(ended.is_none());
    }
}

#[tokio::test]
async fn a_slow_handshake_ends_at_the_deadline_in_every_phase() {
    let limits = TunnelLimits { handshake: Duration::from_millis(300), ..TunnelLimits::default() };
    let mut arena = Arena::with(ServerLimits { tunnel: limits, ..ServerLimits::default() }).await;
    for phase in 0..3 {
        let (waited, _) = arena
            .attack(move |address, pki| {
                let started = Instant::now();
                let mut raw = Raw::dial(address, &pki.client);
                // On a busy machine the deadline may come before the attacker has got as far as it wants.
                match phase {
                    // Nothing at all; half a client hello; TLS done, and then half a preface.
                    0 => {}
                    1 => {
                        let mut hello = Vec::new();
                        raw.tls.conn.write_tls(&mut hello).unwrap();
                        let _ = raw.tls.sock.write_all(&hello[..hello.len() / 2]);
                    }
                    _ => drop(raw.write(b"PRI * HTTP/2.0")),
                }
                let closed = raw.tls.sock.read_to_end(&mut Vec::new());
                assert!(!gave_up_reading(&closed), "phase {phase}: not closed");
                started.elapsed()
            })
            .await;
        assert!(waited >= Duration::from_millis(290), "phase {phase}: {waited:?}");
    }
}

/// The read timeout passed.
fn gave_up_reading<T>(read: &std::io::Result<T>) -> bool {
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn a_peer_may_renew_its_keys_but_not_without_end() {
    let mut arena = Arena::new().await;
    let (got, _) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(80))).unwrap();
            let mut got = Vec::new();
            for round in 0..20u8 {
                raw.tls.conn.refresh_traffic_keys().unwrap();
                raw.write(&frame(DATA, 0, 1, &[round; 1000])).unwrap();
                while got.len() < (usize::from(round) + 1) * 1000 {
                    got.extend(raw.read_until(DATA).unwrap().payload);
                }
            }
            got
        })
        .await;
    let expected: Vec<u8> = (0..20u8).flat_map(|round| [round; 1000]).collect();
    assert_eq!(got, expected);
    let ((), ended) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            let mut rounds = 0;
            while raw.tls.conn.refresh_traffic_keys().is_ok() && raw.tls.flush().is_ok() {
                rounds += 1;
                assert!(rounds < 1_000_000, "keys were renewed a million times for nothing");
            }
        })
        .await;
    assert!(matches!(ended, Some(TunnelError::Records(_))), "{ended:?}");
}

#[tokio::test]
async fn a_cut_connection_is_not_an_end() {
    let mut arena = Arena::new().await;
    let ((), ended) = arena
        .attack(|address, pki| {
            let mut raw = Raw::tunnel(address, &pki.client, &[]);
            raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_to(80))).unwrap();
            raw.read_until(HEADERS).unwrap();
            raw.half_close();
            raw.read_goodbye();
        })
        .await;
    assert!(matches!(ended, Some(TunnelError::Records(hbone::RecordError::Truncated))), "{ended:?}");
}
