//! Tunnels of clients: TLS, who the peer is, and a task per stream.
//!
//! What becomes of a stream is `stream`'s.

use std::net::SocketAddr;
use std::sync::Arc;

use model::address::{NetworkAddress, canonical};
use proxy::accept::{self, Accepted, NotAccepted};
use proxy::handshakes::MAX_HANDSHAKES;
use tokio::net::TcpStream;

use super::stream::{self, Client};
use super::thread::Door;
use crate::data::Context;
use crate::data::budgets::Share;
use crate::refusal::Refusal;

/// Clients come in tunnels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnels;

impl Door for Tunnels {
    fn serve(
        self,
        context: Arc<Context>,
        tcp: TcpStream,
        client: SocketAddr,
    ) -> impl Future<Output = ()> + Send + 'static {
        handle(context, tcp, client)
    }
}

/// Serves one tunnel until it ends. When the drain begins its peer is told to go.
async fn handle(context: Arc<Context>, tcp: TcpStream, client: SocketAddr) {
    let _hold = context.shared.drain.hold();
    let address = canonical(client);
    let share = context.shared.budgets.client(address.ip());
    let tunnel = match accept(&context, tcp, address, &share).await {
        Ok(tunnel) => tunnel,
        Err(refusal) => return context.shared.telemetry.turned_away(address, &refusal),
    };
    let mesh = Arc::clone(&context.shared.mesh.snapshot());
    let place = NetworkAddress { network: context.shared.network(&mesh), ip: address.ip() };
    context.shared.clients.meet(&mesh, &place).await;
    drop(mesh);
    let client = Arc::new(Client { identity: tunnel.peer.clone(), address, share });
    let mut drain = context.shared.drain.clone();
    let leave = async move { drain.begun().await };
    accept::serve(tunnel, address, leave, |incoming| {
        let (context, client) = (Arc::clone(&context), Arc::clone(&client));
        async move { stream::serve(&context, incoming, &client).await }
    })
    .await;
}

async fn accept(
    context: &Context,
    tcp: TcpStream,
    from: SocketAddr,
    share: &Share,
) -> Result<Accepted, Refusal> {
    let handshake = context.handshakes.begin(from.ip());
    let _handshake = handshake.ok_or(Refusal::Handshakes { from: from.ip(), most: MAX_HANDSHAKES })?;
    hbone::socket::prepare(&tcp).map_err(Refusal::Broken)?;
    let certificate = context.shared.certificate().await?;
    accept::accept(tcp, &certificate, &share.limits()).await.map_err(|error| match error {
        NotAccepted::Handshake(error) => Refusal::Tunnel { with: from, reason: error.to_string() },
        NotAccepted::Peer(error) => error.into(),
    })
}
