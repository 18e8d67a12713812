//! Clients that come without a tunnel, for `benches` alone: what they cost is compared with proxies that take plain connections.
//!
//! Nothing is proven here, so `waypoint` has no such door and no setting for one. What becomes of requests is what becomes of
//! them in tunnels.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use model::address::canonical;
use model::identity::Identity;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use super::stream::{self, Client};
use super::thread::Door;
use crate::data::Context;
use crate::data::requests;
use crate::data::requests::first_bytes::{self, PREFACE};
use crate::refusal::Refusal;

/// Clients connect to a service's own address, and whoever does is taken for this one.
#[derive(Clone, Debug)]
pub(crate) struct Plain(pub(crate) Identity);

impl Door for Plain {
    async fn serve(self, context: Arc<Context>, tcp: TcpStream, client: SocketAddr) {
        let _hold = context.shared.drain.hold();
        let telemetry = &context.shared.telemetry;
        let address = canonical(client);
        let share = context.shared.budgets.client(address.ip());
        let client = Client { identity: self.0, address, share };
        let (dialled, is_http2) = match prepare(&tcp).await {
            Ok((dialled, is_http2)) => (dialled.to_string(), is_http2),
            Err(error) => return telemetry.turned_away(address, &Refusal::Broken(error)),
        };
        let (facts, asked) = stream::introduced(&context, &client, (&dialled, None)).await;
        match asked {
            Ok(asked) => requests::over(&context, (tcp, is_http2), asked, facts).await,
            Err(refusal) => telemetry.refused(&facts, &refusal),
        }
    }
}

/// What was dialled, and whether HTTP/2 is spoken.
async fn prepare(tcp: &TcpStream) -> io::Result<(SocketAddr, bool)> {
    hbone::socket::prepare(tcp)?;
    let dialled = canonical(tcp.local_addr()?);
    let mut first = [0; PREFACE.len()];
    loop {
        let count = tcp.peek(&mut first).await?;
        match first_bytes::is_http2(&first[..count]) {
            Some(is_http2) => return Ok((dialled, is_http2)),
            None if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // The rest is on its way.
            None => yield_now().await,
        }
    }
}
