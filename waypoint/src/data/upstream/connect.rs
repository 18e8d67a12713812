//! Connections to endpoints: in a tunnel to the endpoint's node, or plainly where the endpoint is in no mesh.
//!
//! Chooses no endpoint.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hbone::{Connect, DialError};
use identity::origination::{Secured, Speaks};
use model::address::PROXY_PORTS;
use model::identity::Identity;
use model::route::Target;
use model::workload::TunnelProtocol;
use proxy::headers;
use proxy::reach::{self, CONNECT_TIMEOUT};
use proxy::tunnels::{KEEPALIVE, Means, Opened};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::io::Io;
use crate::data::tunnel_io::TunnelIo;
use crate::data::{Context, authorization};
use crate::refusal::Refusal;
use crate::rules::Secure;
use crate::telemetry::Facts;

/// An endpoint, and the TLS that is begun with it.
#[derive(Clone)]
pub(crate) struct Aimed {
    pub(crate) target: Arc<Target>,
    /// `None`: what the client says is sent as it is.
    pub(crate) tls: Option<Arc<Secure>>,
}

/// A connection to an endpoint.
pub(crate) enum Upstream {
    /// TLS that a policy wants, inside one of the others.
    Secured(Box<Inside>),
    /// Plain TCP.
    Tcp(TcpStream),
    /// A stream in mutual TLS.
    Tunnel(Box<Opened>),
}

/// A connection in TLS.
pub(crate) struct Inside {
    pub(crate) io: Secured<Io>,
    /// Of the tunnel that it is in: who answers at its end, and until when that is proven.
    pub(crate) proof: Option<(Identity, Instant)>,
}

impl Upstream {
    /// Who answers at the end of a tunnel, and until when that is proven.
    pub(crate) fn proof(&self) -> Option<(Identity, Instant)> {
        match self {
            Self::Secured(inside) => inside.proof.clone(),
            Self::Tcp(_) => None,
            Self::Tunnel(opened) => Some((opened.identity.clone(), opened.until)),
        }
    }
}

impl From<Upstream> for Io {
    fn from(upstream: Upstream) -> Self {
        match upstream {
            Upstream::Secured(inside) => Self::Secured(Box::new(inside.io)),
            Upstream::Tcp(tcp) => Self::Tcp(tcp),
            Upstream::Tunnel(opened) => Self::Tunnel(Box::new(TunnelIo::new(opened.stream, Vec::new()))),
        }
    }
}

/// Endpoints tried before anything was sent: two that fail are bad luck, three are an outage that a fourth won't mend.
pub(crate) const ATTEMPTS: usize = 3;

/// Notes that `target` was chosen for the client that `facts` are of, unless it is denied there.
pub(crate) fn aim(context: &Context, target: &Target, facts: &mut Facts) -> Result<(), Refusal> {
    facts.destination.workload = Some(Arc::clone(&target.workload));
    facts.destination.identity = None;
    facts.app = Some(target.app);
    let mesh = context.shared.mesh.snapshot();
    authorization::denied(&mesh, &target.workload, target.app, facts)
        .map_or(Ok(()), |denial| Err(denial.into()))
}

/// Connects to an endpoint on behalf of the client that `facts` are of, and notes who answers. In TLS where that is wanted, in which
/// the client `speaks` so.
pub(crate) async fn connect(
    context: &Arc<Context>,
    Aimed { target, tls }: &Aimed,
    speaks: Speaks,
    facts: &mut Facts,
) -> Result<Upstream, Refusal> {
    let plain = reach_plain(context, target, facts).await?;
    let Some(tls) = tls else { return Ok(plain) };
    let proof = plain.proof();
    // A server may take as long to prove itself as to accept the connection.
    let begun = timeout(CONNECT_TIMEOUT, tls.originator.begin(Io::from(plain), speaks)).await;
    let begun = begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let io = begun.map_err(|error| Refusal::BackendTls { to: target.app.0, error })?;
    Ok(Upstream::Secured(Box::new(Inside { io, proof })))
}

async fn reach_plain(
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
