//! Connections to endpoints: in a tunnel to the endpoint's node, or plainly where the endpoint is in no mesh.
//!
//! Chooses no endpoint.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hbone::{Connect, DialError};
use model::address::PROXY_PORTS;
use model::route::Target;
use model::workload::TunnelProtocol;
use proxy::headers;
use proxy::reach;
use proxy::tunnels::{KEEPALIVE, Means, Opened};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{Context, opaque};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// A connection to an endpoint.
pub(crate) enum Upstream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A stream in mutual TLS.
    Tunnel(Box<Opened>),
}

/// Endpoints tried before anything was sent: two that fail are bad luck, three are an outage that a fourth won't mend.
pub(crate) const ATTEMPTS: usize = 3;

/// Notes that `target` was chosen for the client that `facts` are of, unless it is denied there.
pub(crate) fn aim(context: &Context, target: &Target, facts: &mut Facts) -> Result<(), Refusal> {
    facts.destination.workload = Some(Arc::clone(&target.workload));
    facts.destination.identity = None;
    facts.app = Some(target.app);
    let mesh = context.shared.mesh.snapshot();
    opaque::denied(&mesh, &target.workload, target.app, facts).map_or(Ok(()), |denial| Err(denial.into()))
}

/// Connects to `target` on behalf of the client that `facts` are of, and notes who answers.
pub(crate) async fn connect(
    context: &Arc<Context>,
    target: &Target,
    facts: &mut Facts,
) -> Result<Upstream, Refusal> {
    let app = target.app.0;
    if PROXY_PORTS.contains(&app.port()) {
        return Err(Refusal::OwnPort(app));
    }
    match target.tunnel {
        TunnelProtocol::Hbone => {
            let opened = tunnel(context, target, facts).await?;
            facts.destination.identity = Some(opened.identity.clone());
            Ok(Upstream::Tunnel(Box::new(opened)))
        }
        TunnelProtocol::None => {
            let plain = dial(app).await;
            plain.map(Upstream::Tcp).map_err(|error| Refusal::Connect { to: app, error })
        }
    }
}

async fn tunnel(context: &Context, target: &Target, facts: &Facts) -> Result<Opened, Refusal> {
    let certificate = context.shared.certificate().await?;
    let budgets = &context.shared.budgets;
    if budgets.is_exceeded() {
        return Err(Refusal::Hoarded);
    }
    let means = Means { certificate, limits: budgets.limits() };
    // The endpoint's node learns who the client is, beside us.
    let host = facts.service.as_deref().map(|service| &service.id.hostname);
    let headers = headers::request(facts.source.workload.as_deref(), facts.client, host);
    let connect = Connect { authority: target.authority.clone(), headers, ..Connect::default() };
    let dial = |to| async move { dial(to).await.map_err(DialError::from) };
    Ok(context.tunnels.open(target, means, connect, dial).await?)
}

async fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let tcp = reach::in_time(TcpStream::connect(to)).await?;
    tcp.set_nodelay(true)?;
    SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE)?;
    Ok(tcp)
}
