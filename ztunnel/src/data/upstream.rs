//! Sockets and tunnels towards the other end.
//!
//! Towards the network: in the source pod's namespace, with its address, so that the CNI's routes and NetworkPolicies see
//! the pod. Towards an application: with the client's address, and only with a permit. Chooses no destination.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use ebpf::socket;
use hbone::{
    ClientLimits, Connect, DialError, Progress, RelayError, ServerLimits, Stream, StreamError, TunnelLimits,
};
use identity::Certificate;
use model::address::ClientAddr;
use model::policy::Permit;
use model::route::Target;
use proxy::headers;
use proxy::reach;
use proxy::tunnels::{KEEPALIVE, Means, Opened};
use socket2::{SockRef, Socket};
use tokio::net::{TcpSocket, TcpStream};

use super::PodContext;
use crate::flow::Traffic;
use crate::pod::Pod;
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// The limits of tunnels that a pod accepts. All its tunnels share its budget.
pub(crate) fn server_limits(pod: &Pod) -> ServerLimits {
    ServerLimits { tunnel: tunnel_limits(pod), ..ServerLimits::default() }
}

fn client_limits(pod: &Pod) -> ClientLimits {
    ClientLimits { tunnel: tunnel_limits(pod), ..ClientLimits::default() }
}

fn tunnel_limits(pod: &Pod) -> TunnelLimits {
    TunnelLimits { budget: pod.budget.clone(), ..TunnelLimits::default() }
}

/// The certificate of the pod, waiting a bounded time for the CA if there is none yet.
pub(crate) async fn certificate(context: &PodContext) -> Result<Arc<Certificate>, Refusal> {
    let identity = &context.pod.identity;
    if let Some(certificate) = context.shared.certificates.current(identity) {
        return Ok(certificate);
    }
    let certificate = context.shared.certificates.get(identity).await;
    certificate
        .map_err(|error| Refusal::Certificate { identity: identity.clone(), reason: error.to_string() })
}

/// A stream to `target` in a tunnel that it may share.
///
/// `early` is what the application has said already; it travels with the request and is lost if that is refused, so the
/// caller keeps it.
pub(crate) async fn open(
    context: &Arc<PodContext>,
    target: &Target,
    facts: &Facts,
    early: Bytes,
) -> Result<Opened, Refusal> {
    let means = Means { certificate: certificate(context).await?, limits: client_limits(&context.pod) };
    if context.pod.budget.is_exceeded() {
        return Err(Refusal::Hoarded);
    }
    let host = facts.service.as_deref().map(|service| &service.id.hostname);
    let headers = headers::request(facts.source.workload.as_deref(), facts.client, host);
    let connect = Connect { authority: target.authority.clone(), headers, early };
    // TCP from the pod's namespace.
    let dial = {
        let (context, client) = (Arc::clone(context), facts.client);
        move |to| {
            let context = Arc::clone(&context);
            async move { plain(&context, client, to).await.map_err(DialError::rejected) }
        }
    };
    Ok(context.tunnels.open(target, means, connect, dial).await?)
}

/// Plain TCP from the pod's namespace to the network.
pub(crate) async fn plain(
    context: &PodContext,
    client: ClientAddr,
    to: SocketAddr,
) -> Result<TcpStream, Refusal> {
    let made = socket::to_network(&context.pod.netns, client.0.ip(), to);
    let made = made.and_then(|socket| socket.set_tcp_keepalive(&KEEPALIVE).map(|()| socket));
    connect(made, to).await.map_err(|error| Refusal::Connect { to, error })
}

/// TCP to the application that policy permitted, with the client's address.
pub(crate) async fn to_app(context: &PodContext, pod: &Pod, permit: &Permit) -> Result<TcpStream, Refusal> {
    let connection = permit.connection();
    let to = connection.app.0;
    let made = socket::to_app(&pod.netns, connection.client.0.ip(), to);
    if let Ok(socket) = &made {
        unpaced(context, socket);
    }
    connect(made, to).await.map_err(|error| Refusal::Connect { to, error })
}

/// Chooses the congestion control of a socket towards an application of this node: nothing is lost there and no queue is
/// shared, so pacing (a host's bbr) would only cost timers.
pub(crate) fn unpaced(context: &PodContext, socket: &impl AsFd) {
    if let Some(name) = &context.shared.settings.local_congestion {
        // A kernel that lacks it keeps the host's choice, which works too.
        let _ = SockRef::from(socket).set_tcp_congestion(name.as_bytes());
    }
}

async fn connect(socket: io::Result<Socket>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket?;
    socket.set_tcp_nodelay(true)?;
    reach::in_time(TcpSocket::from_std_stream(socket.into()).connect(to)).await
}

/// Copies between an application and a stream; `outbound` says which of the two opened the connection.
pub(crate) async fn relay(
    app: &TcpStream,
    stream: Stream,
    traffic: &Traffic,
    end: End,
) -> Result<(), Refusal> {
    let outcome = match end {
        End::Client => hbone::relay(app, stream, &ClientEnd(traffic)).await,
        End::Server => hbone::relay(app, stream, &ServerEnd(traffic)).await,
    };
    outcome.map_err(|error| match error {
        RelayError::Stream(StreamError::Hoarded) => Refusal::Hoarded,
        error @ (RelayError::Stream(_) | RelayError::Tcp(_)) => Refusal::Relay(io::Error::other(error)),
    })
}

/// Which end of the connection the application here is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Client,
    Server,
}

struct ClientEnd<'a>(&'a Traffic);

impl Progress for ClientEnd<'_> {
    fn to_tunnel(&self, bytes: u64) {
        self.0.add_to_server(bytes);
    }

    fn to_tcp(&self, bytes: u64) {
        self.0.add_to_client(bytes);
    }
}

struct ServerEnd<'a>(&'a Traffic);

impl Progress for ServerEnd<'_> {
    fn to_tunnel(&self, bytes: u64) {
        self.0.add_to_client(bytes);
    }

    fn to_tcp(&self, bytes: u64) {
        self.0.add_to_server(bytes);
    }
}

#[cfg(test)]
mod tests {
    use hbone::PoolLimits;

    use super::*;
    use crate::data::serve::MAX_CONNECTIONS;

    #[test]
    fn a_pool_carries_as_many_streams_to_one_peer_as_a_pod_may_have_connections() {
        let streams = PoolLimits::default().max_tunnels * ClientLimits::default().max_streams;
        assert!(streams >= MAX_CONNECTIONS, "{streams} streams, {MAX_CONNECTIONS} connections");
    }
}
