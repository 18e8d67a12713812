//! The data threads: one single-threaded runtime each, handed the connections that they serve.
//!
//! A client's node has few tunnels, each with many streams: connections are handed to the thread that has fewest, because the
//! kernel's spreading over several listeners would often put two on one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use proxy::tunnels::KEEPALIVE;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::data::requests::revoked;
use crate::data::{Context, Shared};
use crate::refusal::Refusal;

/// Connections on their way to a thread: a burst while it is busy. What it can't take the client's node sends elsewhere.
const QUEUE: usize = 256;

/// Tunnels of one thread. Each costs three descriptors' worth and about 30 KiB while idle; sixteen thousand are more nodes and
/// pods than a waypoint's instance should serve, and bound what a flood can take.
const MAX_TUNNELS: usize = 16_384;

/// Pause after a failed accept: descriptors have run out, and only connections that end bring them back.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(20);

/// How often idle connections to endpoints are looked at: they may be idle for half a minute.
const SWEEP: Duration = Duration::from_secs(10);

/// How clients come.
pub(crate) trait Door: Clone + Send + 'static {
    /// Serves one connection until it ends.
    fn serve(
        self,
        context: Arc<Context>,
        tcp: TcpStream,
        client: SocketAddr,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// A handle on one thread.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    connections: mpsc::Sender<(std::net::TcpStream, SocketAddr)>,
    /// Tunnels that it serves.
    live: Arc<AtomicUsize>,
}

impl Thread {
    /// Starts thread number `index`, to which clients come by this door.
    pub(crate) fn start(index: usize, shared: Arc<Shared>, door: impl Door) -> io::Result<Self> {
        let (connections, received) = mpsc::channel(QUEUE);
        let live = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counted = Arc::clone(&live);
        std::thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || runtime.block_on(run(shared, received, (counted, door))))?;
        Ok(Self { connections, live })
    }
}

/// Accepts until the drain begins, and hands each connection to the thread that has fewest.
pub(crate) async fn accept(listener: TcpListener, threads: Vec<Thread>, shared: Arc<Shared>) {
    let mut drain = shared.drain.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => break,
        };
        match accepted {
            Ok((tcp, client)) => hand_over(tcp, client, &threads, &shared),
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(listener);
    std::future::pending().await
}

fn hand_over(tcp: TcpStream, client: SocketAddr, threads: &[Thread], shared: &Shared) {
    let idlest = threads.iter().min_by_key(|thread| thread.live.load(Relaxed)).expect("there is a thread");
    let taken = idlest.live.load(Relaxed) < MAX_TUNNELS
        && SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE).and_then(|()| tcp.into_std()).is_ok_and(|tcp| {
            idlest.live.fetch_add(1, Relaxed);
            let sent = idlest.connections.try_send((tcp, client)).is_ok();
            if !sent {
                idlest.live.fetch_sub(1, Relaxed);
            }
            sent
        });
    if !taken {
        shared.telemetry.turned_away(client, &Refusal::Overload(MAX_TUNNELS));
    }
}

async fn run(
    shared: Arc<Shared>,
    mut connections: mpsc::Receiver<(std::net::TcpStream, SocketAddr)>,
    (live, door): (Arc<AtomicUsize>, impl Door),
) {
    let context = Arc::new(Context::new(shared));
    tokio::spawn(revoked::follow(Arc::clone(&context)));
    let mut tunnels = JoinSet::new();
    let mut sweeps = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = sweeps.tick() => {
                context.kept.sweep();
                context.seen.sweep();
                context.links.sweep();
            }
            connection = connections.recv() => {
                let Some((tcp, client)) = connection else { return };
                let (context, live) = (Arc::clone(&context), Live(Arc::clone(&live)));
                let door = door.clone();
                tunnels.spawn(async move {
                    let _live = live;
                    match TcpStream::from_std(tcp) {
                        Ok(tcp) => door.serve(context, tcp, client).await,
                        Err(error) => tracing::warn!(%error, "a connection can't be served"),
                    }
                });
            }
            Some(ended) = tunnels.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a tunnel ended by a fault of ours; please report it");
                }
            }
        }
    }
}

/// One tunnel of a thread's count.
struct Live(Arc<AtomicUsize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
