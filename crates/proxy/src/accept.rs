//! Tunnels that come in: the handshakes, who the peer is, and a task per stream until the tunnel ends.
//!
//! What becomes of a stream, and when tunnels are told to go, is the caller's.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;

use hbone::{AcceptError, Incoming, ServerConnection, ServerLimits};
use identity::{BadPeer, Certificate, peer_expiry, peer_identity};
use model::identity::Identity;
use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::expiry::{GRACE, first_of};

/// Streams of one tunnel that are begun before others of the thread get their turn: a packet may open a hundred, which take a
/// millisecond.
const STREAMS_AT_ONCE: usize = 16;

/// A tunnel whose peer has proven who it is.
pub struct Accepted {
    /// The tunnel.
    pub connection: ServerConnection,
    /// Who is at its other end.
    pub peer: Identity,
    /// When the first certificate expires that it was made with, ours too: the peer would not believe it any more.
    pub expires: Instant,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NotAccepted {
    /// TLS or HTTP/2 did not come about.
    #[error(transparent)]
    Handshake(#[from] AcceptError),
    /// The peer's certificate says nothing that is believed.
    #[error(transparent)]
    Peer(#[from] BadPeer),
}

/// The TLS and HTTP/2 handshakes, who the peer is, and until when that is proven.
///
/// # Errors
/// When the peer does not come so far.
pub async fn accept(
    tunnel: TcpStream,
    certificate: &Certificate,
    limits: &ServerLimits,
) -> Result<Accepted, NotAccepted> {
    let (connection, chain) = hbone::accept(tunnel, certificate.server_config(), limits).await?;
    let peer = peer_identity(&chain)?;
    let expires = first_of([peer_expiry(&chain)?, certificate.not_after]);
    Ok(Accepted { connection, peer, expires })
}

/// Serves a tunnel until it ends, a task per stream, and waits for the streams. When `leave` resolves the peer is told to go,
/// and streams that race with the message are still served; so it is when a certificate has expired.
pub async fn serve<F>(
    tunnel: Accepted,
    client: SocketAddr,
    leave: impl Future<Output = ()>,
    mut handle: impl FnMut(Incoming) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Accepted { mut connection, peer, expires } = tunnel;
    let mut streams = JoinSet::new();
    let mut over = pin!(sleep_until(expires));
    let mut leave = pin!(leave);
    let mut leaving = false;
    let mut begun = 0_usize;
    loop {
        tokio::select! {
            incoming = connection.next() => match incoming {
                Some(Ok(incoming)) => {
                    drop(streams.spawn(handle(incoming)));
                    begun += 1;
                    if begun.is_multiple_of(STREAMS_AT_ONCE) {
                        yield_now().await;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%client, %peer, %error, "a tunnel ended");
                    break;
                }
                None => break,
            },
            Some(ended) = streams.join_next() => report_panic(ended),
            () = leave.as_mut(), if !leaving => {
                leaving = true;
                connection.drain();
            }
            () = over.as_mut() => {
                if over.deadline() > expires {
                    tracing::info!(%client, %peer, "a tunnel is cut: its certificates expired a day ago");
                    break;
                }
                connection.drain();
                over.as_mut().reset(expires + GRACE);
            }
        }
    }
    drop(connection);
    while let Some(ended) = streams.join_next().await {
        report_panic(ended);
    }
}

fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a tunnel's stream ended by a fault of ours; please report it");
    }
}
