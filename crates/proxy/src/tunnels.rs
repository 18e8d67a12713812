//! Tunnels that go out: pooled by who must be at the other end, made when there is none, and believed for as long as the
//! certificates that they were made with.
//!
//! Chooses no destination, and makes no TCP connection: that is the caller's closure.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hbone::{ClientLimits, ClientTls, Connect, DialError, Driver, Opener, Pool, PoolLimits, Stream};
use identity::{Certificate, peer_expiry, peer_identity};
use model::identity::Identity;
use model::route::Target;
use model::workload::WorkloadUid;
use parking_lot::Mutex;
use socket2::TcpKeepalive;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::expiry::{GRACE, first_of};
use crate::reach::NotOpened;

/// Noticed within twelve minutes that a peer vanished without a word, which is what Istio's users are used to.
pub static KEEPALIVE: LazyLock<TcpKeepalive> = LazyLock::new(|| {
    let interval = Duration::from_secs(60);
    TcpKeepalive::new().with_time(Duration::from_secs(180)).with_interval(interval).with_retries(9)
});

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

/// Tunnels of one owner (a pod, or a waypoint) on one thread. Clones share them.
#[derive(Clone)]
pub struct Tunnels {
    pool: Pool<Peer>,
    answers: Arc<Mutex<Answers>>,
}

/// What a tunnel is made with.
#[derive(Clone, Debug)]
pub struct Means {
    /// Who we are.
    pub certificate: Arc<Certificate>,
    /// The tunnel's limits.
    pub limits: ClientLimits,
}

/// A stream to a target.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// Who answers at the tunnel's end.
    pub identity: Identity,
    /// When the stream must be over.
    pub until: Instant,
}

/// Somebody else than the target answered.
#[derive(Debug, thiserror::Error)]
#[error("{to} answered as {found}, expected {}", .expected.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "))]
pub struct Stranger {
    /// Where the tunnel goes.
    pub to: SocketAddr,
    /// Who should have answered.
    pub expected: Vec<Identity>,
    /// Who did.
    pub found: Identity,
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnels")
    }
}

impl Default for Tunnels {
    fn default() -> Self {
        Self { pool: Pool::new(&PoolLimits::default()), answers: Arc::default() }
    }
}

impl Tunnels {
    /// Closes the tunnels that no connection uses now.
    pub fn close_idle(&self) {
        self.pool.close_idle();
    }

    /// A stream to `target` in a tunnel that it may share; `dial` makes the TCP connection if there is none.
    ///
    /// What `connect` says early is lost if the stream is refused, so the caller keeps it.
    ///
    /// # Errors
    /// When there is no tunnel, or its peer takes no stream.
    pub async fn open<D, F>(
        &self,
        target: &Target,
        means: Means,
        connect: Connect,
        dial: D,
    ) -> Result<Opened, NotOpened>
    where
        D: Fn(SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<TcpStream, DialError>> + Send + 'static,
    {
        let peer = Peer {
            address: target.peer.0,
            workload: target.workload.uid.clone(),
            identities: target.identities.clone(),
            certificate: means.certificate.serial.clone(),
            epoch: self.epoch(target.peer.0, Instant::now()),
        };
        let own_expiry = first_of([means.certificate.not_after]);
        let make = {
            let (answers, peer) = (Arc::clone(&self.answers), peer.clone());
            move || establish(Arc::clone(&answers), peer.clone(), means.clone(), dial(peer.address))
        };
        let stream = self.pool.open(&peer, connect, make).await;
        let stream = stream.map_err(|error| NotOpened::new(peer.address, error))?;
        let (identity, expires) = self.answered(target);
        let until = expires.map_or(own_expiry, |expires| expires.min(own_expiry)) + GRACE;
        Ok(Opened { stream, identity, until })
    }

    fn epoch(&self, address: SocketAddr, now: Instant) -> u64 {
        self.answers.lock().epoch(address, now)
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

impl Answers {
    fn epoch(&self, address: SocketAddr, now: Instant) -> u64 {
        let found = self.by.get(&address);
        found.map_or(self.first_epoch, |found| found.epoch + u64::from(found.expires <= now))
    }

    fn dialled(&mut self, peer: &Peer, identity: Identity, expires: Instant, now: Instant) {
        let Self { by, first_epoch } = self;
        by.retain(|_, found| {
            let kept = found.expires + GRACE > now;
            *first_epoch = if kept { *first_epoch } else { (*first_epoch).max(found.epoch + 1) };
            kept
        });
        let others = by.get(&peer.address).filter(|found| found.epoch == peer.epoch);
        let expires = others.map_or(expires, |found| found.expires.min(expires));
        by.insert(peer.address, Found { identity, epoch: peer.epoch, expires });
    }
}

/// A new tunnel: mutual TLS over a TCP connection, and a look at who answered.
async fn establish(
    answers: Arc<Mutex<Answers>>,
    peer: Peer,
    Means { certificate, limits }: Means,
    dialling: impl Future<Output = Result<TcpStream, DialError>>,
) -> Result<(Opener, Driver), DialError> {
    let tcp = dialling.await?;
    hbone::socket::prepare(&tcp)?;
    // The name is not sent and not checked: who may answer is decided by identity, below.
    let tls = ClientTls { config: certificate.client_config(), server_name: peer.address.ip().into() };
    let (opener, driver, chain) = hbone::connect(tcp, tls, &limits).await?;
    let found = peer_identity(&chain).map_err(DialError::rejected)?;
    let expires = first_of([peer_expiry(&chain).map_err(DialError::rejected)?]);
    if !peer.identities.contains(&found) {
        let stranger = Stranger { to: peer.address, expected: peer.identities, found };
        return Err(DialError::rejected(stranger));
    }
    answers.lock().dialled(&peer, found, expires, Instant::now());
    Ok((opener, driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tunnel_is_shared_until_the_first_certificate_of_its_epoch_expires() {
        let mut answers = Answers::default();
        let start = Instant::now();
        let at = |hours: u64| start + Duration::from_secs(3600 * hours);
        let [address, other] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 15008)));
        let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let dialled = |answers: &mut Answers, address, now, expires| {
            let epoch = answers.epoch(address, now);
            let (identities, workload) = (Vec::new(), WorkloadUid("w".into()));
            let peer = Peer { address, workload, identities, certificate: String::new(), epoch };
            answers.dialled(&peer, identity.clone(), expires, now);
            epoch
        };
        let epochs = [4, 2, 6].map(|hours| dialled(&mut answers, address, at(0), at(hours)));
        assert_eq!(epochs, [0, 0, 0]);
        assert_eq!(answers.epoch(address, at(1)), 0, "all are good");
        assert_eq!(answers.epoch(address, at(2)), 1, "one is not");
        assert_eq!(dialled(&mut answers, address, at(3), at(4)), 1);
        assert_eq!(answers.epoch(address, at(3)), 1, "it has proven itself anew");
        dialled(&mut answers, other, at(4 + 24), at(48));
        assert_eq!(answers.by.len(), 1, "those that are long expired are forgotten");
        assert_eq!(answers.epoch(address, at(4 + 24)), 2, "and never shared again");
    }
}
