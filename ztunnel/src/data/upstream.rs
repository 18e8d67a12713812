//! Sockets and tunnels towards the other end.
//!
//! Towards the network: in the source pod's namespace, with its address, so that the CNI's routes and NetworkPolicies see
//! the pod. Towards an application: with the client's address, and only with a permit. Chooses no destination.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use ebpf::socket;
use hbone::{
    ClientLimits, ClientTls, Connect, DialError, Driver, OpenError, Opener, Pool, PoolLimits, Progress,
    RelayError, ServerLimits, Stream, StreamError, TunnelLimits,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use identity::{Certificate, peer_expiry, peer_identity};
use model::address::ClientAddr;
use model::identity::Identity;
use model::policy::Permit;
use model::route::Target;
use model::workload::WorkloadUid;
use parking_lot::Mutex;
use socket2::{SockRef, Socket, TcpKeepalive};
use std::sync::Arc;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::expiry::{GRACE, first_of};
use super::{CONNECT_TIMEOUT, PodContext};
use crate::baggage;
use crate::flow::Traffic;
use crate::pod::Pod;
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Noticed within twelve minutes that a peer vanished without a word, which is what Istio's users are used to.
pub(crate) static KEEPALIVE: LazyLock<TcpKeepalive> = LazyLock::new(|| {
    let interval = Duration::from_secs(60);
    TcpKeepalive::new().with_time(Duration::from_secs(180)).with_interval(interval).with_retries(9)
});

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

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Which tunnel a stream may share: same far end, same expectation of who that is, same proof of who we are, and a proof of
/// who the other is that has not expired. A pod that has another's address has tunnels of its own: those of the one before,
/// which vanished without a word, look alive until a PING is not answered. A renewed certificate makes new tunnels; those
/// made with the old one end when they are idle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Peer {
    address: SocketAddr,
    workload: WorkloadUid,
    identities: Vec<Identity>,
    certificate: String,
    epoch: u64,
}

/// Who answered at an address, in tunnels of one epoch: until the first of the certificates that they presented expires.
struct Found {
    identity: Identity,
    epoch: u64,
    expires: Instant,
}

#[derive(Default)]
struct Answers {
    by: HashMap<SocketAddr, Found>,
    /// The epoch of whoever has not answered yet; beyond those of answers that are forgotten.
    first_epoch: u64,
}

/// The tunnels of one pod on one thread.
pub(crate) struct Tunnels {
    pool: Pool<Peer>,
    answers: Mutex<Answers>,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnels")
    }
}

impl Tunnels {
    pub(crate) fn new() -> Self {
        Self { pool: Pool::new(&PoolLimits::default()), answers: Mutex::default() }
    }

    /// Closes the tunnels that no connection uses now.
    pub(crate) fn close_idle(&self) {
        self.pool.close_idle();
    }

    fn epoch(&self, address: SocketAddr, now: Instant) -> u64 {
        let answers = self.answers.lock();
        let found = answers.by.get(&address);
        found.map_or(answers.first_epoch, |found| found.epoch + u64::from(found.expires <= now))
    }

    fn dialled(&self, peer: &Peer, identity: Identity, expires: Instant, now: Instant) {
        let mut answers = self.answers.lock();
        let Answers { by, first_epoch } = &mut *answers;
        by.retain(|_, found| {
            let kept = found.expires + GRACE > now;
            *first_epoch = if kept { *first_epoch } else { (*first_epoch).max(found.epoch + 1) };
            kept
        });
        let others = by.get(&peer.address).filter(|found| found.epoch == peer.epoch);
        let expires = others.map_or(expires, |found| found.expires.min(expires));
        by.insert(peer.address, Found { identity, epoch: peer.epoch, expires });
    }

    /// Who answers, and until when that is proven.
    fn answered(&self, target: &Target) -> (Identity, Option<Instant>) {
        let answers = self.answers.lock();
        let found = answers.by.get(&target.peer.0);
        let identity = match target.identities.as_slice() {
            [only] => only,
            _ => found.map_or(&target.workload.identity, |found| &found.identity),
        };
        (identity.clone(), found.map(|found| found.expires))
    }
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

/// A stream to `target` in a tunnel that it may share, who answers at the tunnel's end, and when the stream must be over.
///
/// `early` is what the application has said already; it travels with the request and is lost if that is refused, so the
/// caller keeps it.
pub(crate) async fn open(
    context: &Arc<PodContext>,
    target: &Target,
    facts: &Facts,
    early: Bytes,
) -> Result<(Stream, Identity, Instant), Refusal> {
    let certificate = certificate(context).await?;
    if context.pod.budget.is_exceeded() {
        return Err(Refusal::Hoarded);
    }
    let address = target.peer.0;
    let (identities, serial) = (target.identities.clone(), certificate.serial.clone());
    let own_expiry = first_of([certificate.not_after]);
    let epoch = context.tunnels.epoch(address, Instant::now());
    let workload = target.workload.uid.clone();
    let peer = Peer { address, workload, identities, certificate: serial, epoch };
    let connect = Connect { authority: target.authority.clone(), headers: headers(facts), early };
    let dial = {
        let (context, peer, client) = (Arc::clone(context), peer.clone(), facts.client);
        move || dial(Arc::clone(&context), peer.clone(), client, Arc::clone(&certificate))
    };
    let opened = context.tunnels.pool.open(&peer, connect, dial).await;
    let stream = opened.map_err(|error| {
        if let OpenError::Refused(status) = error {
            return Refusal::RefusedByPeer { to: address, status };
        }
        Refusal::Tunnel { to: address, reason: error.to_string() }
    })?;
    let (found, expires) = context.tunnels.answered(target);
    Ok((stream, found, expires.map_or(own_expiry, |expires| expires.min(own_expiry)) + GRACE))
}

/// A new tunnel: TCP from the pod's namespace, mutual TLS, and a look at who answered.
async fn dial(
    context: Arc<PodContext>,
    peer: Peer,
    client: ClientAddr,
    certificate: Arc<Certificate>,
) -> Result<(Opener, Driver), DialError> {
    let tcp = plain(&context, client, peer.address).await.map_err(DialError::rejected)?;
    hbone::socket::prepare(&tcp)?;
    // The name is not sent and not checked: who may answer is decided by identity, below.
    let tls = ClientTls { config: certificate.client_config(), server_name: peer.address.ip().into() };
    let (opener, driver, chain) = hbone::connect(tcp, tls, &client_limits(&context.pod)).await?;
    let found = peer_identity(&chain).map_err(DialError::rejected)?;
    let expires = first_of([peer_expiry(&chain).map_err(DialError::rejected)?]);
    if !peer.identities.contains(&found) {
        let stranger = Refusal::Stranger { to: peer.address, expected: peer.identities, found };
        return Err(DialError::rejected(stranger));
    }
    context.tunnels.dialled(&peer, found, expires, Instant::now());
    Ok((opener, driver))
}

/// What a CONNECT says beside its authority: for the peer's telemetry, never for its decisions.
fn headers(facts: &Facts) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    let source = facts.source.workload.as_deref().map(baggage::of).unwrap_or_default();
    let host = facts.service.as_deref().map(|service| format!(";host={}", service.id.hostname));
    let forwarded = format!("for=\"{}\"{}", facts.client, host.unwrap_or_default());
    let trace =
        format!("00-{:016x}{:016x}-{:016x}-00", fastrand::u64(1..), fastrand::u64(..), fastrand::u64(1..));
    for (name, value) in
        [(HeaderName::from_static(baggage::HEADER), source), (FORWARDED, forwarded), (TRACEPARENT, trace)]
    {
        // Names from discovery that no header can carry are left out: the peer needs none of this.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers
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
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => {
            let text =
                format!("no answer within {} s; does a NetworkPolicy drop it?", CONNECT_TIMEOUT.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
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
    use super::*;
    use crate::data::serve::MAX_CONNECTIONS;

    #[tokio::test]
    async fn a_tunnel_is_shared_until_the_first_certificate_of_its_epoch_expires() {
        let tunnels = Tunnels::new();
        let start = Instant::now();
        let at = |hours: u64| start + Duration::from_secs(3600 * hours);
        let [address, other] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 15008)));
        let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let dialled = |address, now, expires| {
            let epoch = tunnels.epoch(address, now);
            let workload = WorkloadUid("Kubernetes//Pod/a/b".into());
            let peer = Peer { address, workload, identities: Vec::new(), certificate: String::new(), epoch };
            tunnels.dialled(&peer, identity.clone(), expires, now);
            epoch
        };
        assert_eq!([4, 2, 6].map(|hours| dialled(address, at(0), at(hours))), [0, 0, 0]);
        assert_eq!(tunnels.epoch(address, at(1)), 0, "all are good");
        assert_eq!(tunnels.epoch(address, at(2)), 1, "one is not");
        assert_eq!(dialled(address, at(3), at(4)), 1);
        assert_eq!(tunnels.epoch(address, at(3)), 1, "it has proven itself anew");
        dialled(other, at(4 + 24), at(48));
        assert_eq!(tunnels.answers.lock().by.len(), 1, "those that are long expired are forgotten");
        assert_eq!(tunnels.epoch(address, at(4 + 24)), 2, "and never shared again");
    }

    #[test]
    fn a_pool_carries_as_many_streams_to_one_peer_as_a_pod_may_have_connections() {
        let streams = PoolLimits::default().max_tunnels * ClientLimits::default().max_streams;
        assert!(streams >= MAX_CONNECTIONS, "{streams} streams, {MAX_CONNECTIONS} connections");
    }
}
