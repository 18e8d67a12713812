//! Serves one pod on one thread: accepts from its listeners and runs a task per connection.
//!
//! Bounds how many connections a pod may have here, and ends them in the order that a leaving pod or process needs.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proxy::tunnels::KEEPALIVE;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{PodContext, inbound, outbound, plaintext, relay, upstream};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Connections of one kind that one pod may have open on one thread. Each costs two descriptors and a few KiB while idle;
/// sixteen thousand are more than an address pair's ports allow to most peers, and bound what a flood can take.
pub(super) const MAX_CONNECTIONS: usize = 16_384;
/// Pause after a failed accept: descriptors have run out, and only connections that end bring them back.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(20);

/// How long connections that are cut may take to report their end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where a pod's service on this thread stands. It only ever goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Accepting.
    Serving,
    /// Nothing new is captured. What was on its way is still accepted; tunnels are told to go away.
    Ending,
    /// Not accepting any more; what is open may finish, tunnels are told to go away.
    Leaving,
    /// Everything ends now.
    Cut,
}

/// Resolves when nothing is accepted any more. A phase that nobody can change any more ends it too.
pub(crate) async fn leaving(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase >= Phase::Leaving).await;
}

/// Resolves when everything must end now.
async fn cut(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Cut).await;
}

/// The sockets of one pod on one thread.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) outbound: TcpListener,
    pub(crate) plaintext: TcpListener,
    pub(crate) hbone: TcpListener,
}

/// Serves until the phase is `Cut`, or `Leaving` and the last connection has ended. `listening` is dropped when nothing
/// new is accepted.
pub(crate) async fn serve(
    context: Arc<PodContext>,
    listeners: Listeners,
    phase: watch::Receiver<Phase>,
    listening: watch::Receiver<()>,
) {
    if let Err(error) = configure(&context, &listeners) {
        tracing::warn!(pod = %context.pod.workload, %error, "accepted connections keep the host's TCP settings");
    }
    let hbone_phase = phase.clone();
    let hbone = |context, stream, client| inbound::handle(context, stream, client, hbone_phase.clone());
    let open = |listener| Open { listener, listening: listening.clone() };
    let (outbound, plaintext, tunnels) =
        (open(listeners.outbound), open(listeners.plaintext), open(listeners.hbone));
    drop(listening);
    tokio::join!(
        accept(&context, outbound, phase.clone(), outbound::handle, outbound::seen),
        accept(&context, plaintext, phase.clone(), plaintext::handle, plaintext::seen),
        accept(&context, tunnels, phase.clone(), hbone, inbound::seen),
    );
}

/// A listener, and the sign for others that it is open.
struct Open {
    listener: TcpListener,
    listening: watch::Receiver<()>,
}

/// Accepts and runs a task per connection; `seen` says what is known of one that is refused at once.
async fn accept<F>(
    context: &Arc<PodContext>,
    Open { listener, listening }: Open,
    mut phase: watch::Receiver<Phase>,
    handle: impl Fn(Arc<PodContext>, TcpStream, SocketAddr) -> F,
    seen: impl Fn(&PodContext, &TcpStream, SocketAddr) -> Option<Facts>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    if connections.len() >= MAX_CONNECTIONS {
                        if let Some(facts) = seen(context, &stream, client) {
                            context.shared.telemetry.refused(&facts, &Refusal::Overload(MAX_CONNECTIONS));
                        }
                        relay::reset(&stream);
                    } else {
                        connections.spawn(handle(Arc::clone(context), stream, client));
                    }
                }
                Err(error) => {
                    tracing::warn!(pod = %context.pod.workload, %error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
            Some(ended) = connections.join_next() => surface(ended),
            () = leaving(&mut phase) => break,
        }
    }
    // Closing a listener resets what is in its queue unless another socket of its group takes it over
    // (tcp_migrate_req): a successor's listener does, and nothing is on its way to a pod that has left the mesh.
    drop((listener, listening));
    loop {
        tokio::select! {
            ended = connections.join_next() => match ended {
                Some(ended) => surface(ended),
                None => return,
            },
            () = cut(&mut phase) => break,
        }
    }
    // Each connection ends by itself and is reported; one that is still being made is dropped.
    context.shared.flows.cut(context.pod.generation, "its pod left the mesh or ztunnel stopped");
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// Sets on the listeners what every accepted socket then has from them, at no cost per connection: no delay for small
/// writes, keepalive where the peer is across a network, and no pacing towards applications of this node.
fn configure(context: &PodContext, listeners: &Listeners) -> io::Result<()> {
    for listener in [&listeners.outbound, &listeners.plaintext, &listeners.hbone] {
        SockRef::from(listener).set_tcp_nodelay(true)?;
    }
    for listener in [&listeners.plaintext, &listeners.hbone] {
        SockRef::from(listener).set_tcp_keepalive(&KEEPALIVE)?;
    }
    upstream::unpaced(context, &listeners.outbound);
    Ok(())
}

/// A panic in a connection's task is our fault and must be seen; an aborted one was asked for.
fn surface(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection ended by a fault of ours; please report it");
    }
}
