//! The certificates of this node's workloads: a cache that the data path reads without a lock, and the driver that
//! fills it by doing what the rotation core says.
//!
//! Whoever has no certificate gets an error within a bounded time, never an old or a foreign one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use model::Str;
use model::identity::Identity;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::BoxFuture;
use crate::ca::{Ca, CaError};
use crate::certificate::Certificate;
use crate::clock::Clock;
use crate::csr::KeyRequest;
use crate::rotation::{self, Next, Now, Priority, Rotation};
use crate::tls::TrustDomains;

/// How long a connection waits for a certificate. It covers a request that hangs until its deadline and another try,
/// and several tries where the CA answers (a new pod may reach us before it reaches the CA). Applications that wait
/// longer for a first byte are rare, and each that waits holds a socket.
const GET_WAIT: Duration = Duration::from_secs(8);

/// How long the CA may take over one request. A signature takes it milliseconds, and its queue is eight per node: this
/// ends only what hangs.
const CA_DEADLINE: Duration = Duration::from_secs(5);

/// The driver looks at the wall clock at least this often, because a clock that is set wakes no timer.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// What is left of a certificate's life when one that can't be renewed is worth telling, as a part of it: attempts began at half of
/// it, and have failed for as long again as is left.
const SOON: u32 = 4;

/// What a cache is made with.
#[derive(Clone, Debug)]
pub struct CertificatesConfig {
    /// The validity to ask the CA for. A day: long enough to outlast a night without a CA, short enough that a stolen
    /// key is worthless soon without any revocation.
    pub validity: Duration,
    /// Other trust domains whose workloads are let in, beside each certificate's own.
    pub trust_domain_aliases: Arc<[Str]>,
    /// When to renew and how to retry.
    pub rotation: rotation::Config,
    /// Decides all jitter; give each node its own.
    pub seed: u64,
}

impl Default for CertificatesConfig {
    fn default() -> Self {
        Self {
            validity: Duration::from_secs(24 * 3600),
            trust_domain_aliases: Arc::default(),
            rotation: rotation::Config::default(),
            seed: fastrand::u64(..),
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// [`Certificates::want`] was not called, or [`Certificates::forget`] was: no pod here runs as this identity.
    #[error("no workload on this node runs as {0}, so no certificate is kept for it")]
    NotWanted(Identity),
    /// The CA was asked and gave none.
    #[error("no certificate for {identity}: {cause}")]
    Failed {
        /// For whom.
        identity: Identity,
        /// How the last attempt ended.
        cause: Arc<CaError>,
    },
    /// No attempt has ended yet.
    #[error("no certificate for {identity} within {waited:?}: the CA has not answered yet")]
    TimedOut {
        /// For whom.
        identity: Identity,
        /// How long the caller waited.
        waited: Duration,
    },
}

/// What is known about one wanted identity, for people to look at.
#[derive(Clone, Debug)]
pub struct CertificateState {
    /// Whose.
    pub identity: Identity,
    /// The certificate in use; it may have expired.
    pub certificate: Option<Arc<Certificate>>,
    /// How the last attempt failed, if it did.
    pub failure: Option<Arc<CaError>>,
}

impl CertificateState {
    /// Why the certificate in use, which expires soon, can't be renewed; `None` while it can, or there is time.
    #[must_use]
    pub fn expires_soon(&self, now: SystemTime) -> Option<&CaError> {
        let Certificate { not_before, not_after, .. } = **self.certificate.as_ref()?;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(now).unwrap_or_default();
        self.failure.as_deref().filter(|_| left < life / SOON)
    }
}

/// The cache. Clones are handles to the same one.
#[derive(Clone)]
pub struct Certificates {
    shared: Arc<Shared>,
}

/// Fills the cache; spawn [`Driver::run`] on the control runtime.
pub struct Driver {
    shared: Arc<Shared>,
    ca: Arc<dyn Ca>,
    config: CertificatesConfig,
}

struct Shared {
    clock: Arc<dyn Clock>,
    /// The start of `uptime`.
    start: Instant,
    /// What readers see. Written only with `inner` locked.
    held: ArcSwap<HashMap<Identity, Arc<Certificate>>>,
    inner: Mutex<Inner>,
    /// Wakes the driver: something was wanted, or wanted more urgently.
    work: Notify,
    /// Wakes waiting callers: an attempt has ended.
    ended: watch::Sender<u64>,
}

struct Inner {
    rotation: Rotation,
    failures: HashMap<Identity, Arc<CaError>>,
    /// How many callers wait for each identity.
    waiting: HashMap<Identity, usize>,
}

impl Certificates {
    /// An empty cache and the driver that fills it from `ca`.
    pub fn new(ca: Arc<dyn Ca>, config: CertificatesConfig, clock: Arc<dyn Clock>) -> (Self, Driver) {
        let inner = Inner {
            rotation: Rotation::new(config.rotation.clone(), config.seed),
            failures: HashMap::new(),
            waiting: HashMap::new(),
        };
        let shared = Arc::new(Shared {
            clock,
            start: Instant::now(),
            held: ArcSwap::default(),
            inner: Mutex::new(inner),
            work: Notify::new(),
            ended: watch::Sender::new(0),
        });
        (Self { shared: shared.clone() }, Driver { shared, ca, config })
    }

    /// Keep a certificate for `identity`, and get it now rather than when the first connection needs it. Idempotent.
    pub fn want(&self, identity: Identity) {
        let now = self.shared.now();
        self.shared.lock().rotation.want(identity, Priority::WarmUp, now);
        self.shared.work.notify_one();
    }

    /// Stop keeping one: call it when the last workload of this identity has left. Idempotent, effective at once.
    pub fn forget(&self, identity: &Identity) {
        let mut inner = self.shared.lock();
        inner.rotation.forget(identity);
        inner.failures.remove(identity);
        self.shared.publish(|held| held.remove(identity));
        drop(inner);
        self.shared.ended.send_modify(|count| *count += 1);
        self.shared.work.notify_one();
    }

    /// The certificate in use, if there is one that has not expired. Takes no lock: this is the data path's call.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Certificate>> {
        let held = self.shared.held.load();
        held.get(identity).filter(|it| it.is_valid_at(self.shared.clock.now())).cloned()
    }

    /// [`Certificates::current`], or else the result of pressing the CA for one, within eight seconds.
    /// Only for identities that are wanted.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Certificate>, CertificateError> {
        if let Some(certificate) = self.current(identity) {
            return Ok(certificate);
        }
        let _waiting = Waiting::new(&self.shared, identity)?;
        match timeout(GET_WAIT, self.wait(identity)).await {
            Ok(result) => result,
            Err(_) => Err(match self.shared.lock().failures.get(identity) {
                Some(cause) => CertificateError::Failed { identity: identity.clone(), cause: cause.clone() },
                None => CertificateError::TimedOut { identity: identity.clone(), waited: GET_WAIT },
            }),
        }
    }

    async fn wait(&self, identity: &Identity) -> Result<Arc<Certificate>, CertificateError> {
        let mut ended = self.shared.ended.subscribe();
        loop {
            // Subscribed first, looked second: what ends in between wakes the next line.
            if let Some(certificate) = self.current(identity) {
                return Ok(certificate);
            }
            if !self.shared.lock().rotation.wants(identity) {
                return Err(CertificateError::NotWanted(identity.clone()));
            }
            // The sender lives in `shared`, which we hold.
            let _ = ended.changed().await;
        }
    }

    /// Every wanted identity and how it stands, for the admin interface and for metrics.
    pub fn states(&self) -> Vec<CertificateState> {
        let inner = self.shared.lock();
        let held = self.shared.held.load();
        let state = |identity: &Identity| CertificateState {
            identity: identity.clone(),
            certificate: held.get(identity).cloned(),
            failure: inner.failures.get(identity).cloned(),
        };
        inner.rotation.wanted().map(state).collect()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("held", &self.shared.held.load().len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A caller that waits, counted so that failed attempts stay urgent for as long as somebody does.
struct Waiting<'a> {
    shared: &'a Shared,
    identity: &'a Identity,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, identity: &'a Identity) -> Result<Self, CertificateError> {
        let now = shared.now();
        let mut inner = shared.lock();
        if !inner.rotation.wants(identity) {
            return Err(CertificateError::NotWanted(identity.clone()));
        }
        inner.rotation.want(identity.clone(), Priority::RealTime, now);
        *inner.waiting.entry(identity.clone()).or_default() += 1;
        drop(inner);
        shared.work.notify_one();
        Ok(Self { shared, identity })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        if let Some(count) = inner.waiting.get_mut(self.identity) {
            *count -= 1;
            if *count == 0 {
                inner.waiting.remove(self.identity);
            }
        }
    }
}

impl Shared {
    fn now(&self) -> Now {
        Now { wall: self.clock.now(), uptime: self.start.elapsed() }
    }

    /// Nothing is left half done by a panic while it is held, so a poisoned lock is taken all the same.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what readers see. Callers hold `inner`.
    fn publish<T>(&self, change: impl FnOnce(&mut HashMap<Identity, Arc<Certificate>>) -> T) {
        let mut held = HashMap::clone(&self.held.load());
        change(&mut held);
        self.held.store(Arc::new(held));
    }
}

impl Driver {
    /// Keeps every wanted certificate fresh, until dropped.
    pub async fn run(self) {
        let mut signing = FuturesUnordered::new();
        loop {
            let wait = loop {
                match self.next() {
                    Next::Sign(identity) => signing.push(self.sign(identity)),
                    Next::Wait(wait) => break wait.map_or(LOOK_MAX, |wait| wait.min(LOOK_MAX)),
                }
            };
            tokio::select! {
                Some((identity, result)) = signing.next() => self.finish(&identity, result),
                () = self.shared.work.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    fn next(&self) -> Next {
        let now = self.shared.now();
        self.shared.lock().rotation.poll(now)
    }

    fn sign(&self, identity: Identity) -> BoxFuture<'_, (Identity, Result<Certificate, CaError>)> {
        Box::pin(async move {
            let result = self.certify(&identity).await;
            (identity, result)
        })
    }

    async fn certify(&self, identity: &Identity) -> Result<Certificate, CaError> {
        let request = KeyRequest::for_workload(identity)?;
        let answer = self.ca.sign(identity, request.csr_pem.clone(), self.config.validity);
        let signed = timeout(CA_DEADLINE, answer).await.map_err(|_| CaError::Deadline(CA_DEADLINE))??;
        let aliases = self.config.trust_domain_aliases.clone();
        let trust_domains = TrustDomains::new(identity.trust_domain.clone(), aliases);
        Ok(Certificate::new(identity.clone(), request, signed, trust_domains, self.shared.clock.clone())?)
    }

    fn finish(&self, identity: &Identity, result: Result<Certificate, CaError>) {
        let now = self.shared.now();
        let mut inner = self.shared.lock();
        match result {
            Ok(certificate) => {
                let (not_after, serial) = (certificate.not_after, certificate.serial.clone());
                if inner.rotation.signed(identity, not_after, now) {
                    inner.failures.remove(identity);
                    self.shared.publish(|held| held.insert(identity.clone(), Arc::new(certificate)));
                    tracing::info!(%identity, serial, "certificate obtained");
                }
            }
            Err(error) => {
                inner.rotation.failed(identity, now);
                if inner.rotation.wants(identity) {
                    let in_use = inner.rotation.holds_good(identity, now);
                    tracing::warn!(%identity, %error, in_use, "no new certificate");
                    inner.failures.insert(identity.clone(), Arc::new(error));
                    if inner.waiting.contains_key(identity) {
                        inner.rotation.want(identity.clone(), Priority::RealTime, now);
                    }
                }
            }
        }
        drop(inner);
        self.shared.ended.send_modify(|count| *count += 1);
    }
}
