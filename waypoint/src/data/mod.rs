//! The data plane: threads that carry bytes.
//!
//! Each thread is a runtime of its own; a client's tunnel, its streams and the tunnels to endpoints live on one thread. Reads
//! immutable snapshots only and waits for no lock of the control side.
//!
//! `downstream` takes streams in and hands each to `requests` or to `opaque`, which do not know each other. Both stand on
//! `upstream`, and all on what is beside these folders. [`Shared`] and [`Context`] hold what each of them keeps.

mod authorization;
mod budgets;
pub(crate) mod downstream;
mod opaque;
pub(crate) mod requests;
#[cfg(test)]
mod tests;
mod tunnel_io;
mod upstream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use daemon::drain;
use identity::{Certificate, Certificates};
use model::Str;
use model::l7::Moment;
use model::route::Behind;
use model::store::Mesh;
use model::workload::Workload;
use proxy::handshakes::Handshakes;
use proxy::mesh::MeshState;
use proxy::tunnels::Tunnels;
use tokio::sync::watch;
use tokio::time::Instant;

use self::budgets::Budgets;
use self::downstream::{Clients, Past};
use self::requests::mirror::{Copies, Counts};
use self::requests::revoked::Revocations;
use self::upstream::endpoints::Cache;
use self::upstream::pool::{Kept, Links};
use crate::balance::Registry;
use crate::config::Own;
use crate::http2::Stalls;
use crate::refusal::Refusal;
use crate::rules::Book;
use crate::telemetry::{Seen, Telemetry};
use crate::watched::Watched;

/// What every thread shares: snapshots and handles, no locks that anyone waits for.
pub(crate) struct Shared {
    pub(crate) own: Own,
    pub(crate) mesh: Arc<MeshState>,
    pub(crate) clients: Clients,
    /// The mesh as it was a moment ago.
    pub(crate) past: Past,
    /// Routes and traffic policies.
    pub(crate) book: Arc<ArcSwap<Book>>,
    pub(crate) certificates: Certificates,
    pub(crate) telemetry: Telemetry,
    /// What became of copies of requests.
    pub(crate) mirrors: Arc<Counts>,
    pub(crate) watched: Arc<Watched>,
    /// Moves when policies have changed.
    pub(crate) policies: watch::Receiver<u64>,
    pub(crate) endpoints: Registry,
    pub(crate) budgets: Arc<Budgets>,
    pub(crate) drain: drain::Watch,
    /// What balancing counts time from.
    pub(crate) epoch: Instant,
}

impl Shared {
    /// The network that this waypoint is in, as far as it is known.
    pub(crate) fn network(&self, mesh: &Mesh) -> Str {
        mesh.workload(&self.own.workload).map(|own| own.network.clone()).unwrap_or_default()
    }

    /// The time as balancing counts it.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// A time as balancing counts it.
    pub(crate) fn at(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The same, as retries count it.
    pub(crate) fn since(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Our certificate, waiting a bounded time for the CA if there is none yet.
    pub(crate) async fn certificate(&self) -> Result<Arc<Certificate>, Refusal> {
        let identity = &self.own.identity;
        if let Some(certificate) = self.certificates.current(identity) {
            return Ok(certificate);
        }
        let certificate = self.certificates.get(identity).await;
        certificate.map_err(|error| Refusal::Certificate(error.to_string()))
    }
}

/// A stream that asks for something that we guard.
#[derive(Clone)]
pub(crate) struct Asked {
    /// Our own workload.
    pub(crate) local: Arc<Workload>,
    /// What is asked for.
    pub(crate) behind: Behind,
}

/// What a connection on one thread works with.
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tunnels: Tunnels,
    pub(crate) handshakes: Handshakes,
    pub(crate) endpoints: Cache,
    pub(crate) kept: Kept,
    pub(crate) seen: Seen,
    pub(crate) copies: Copies,
    pub(crate) links: Links,
    pub(crate) stalls: Arc<Stalls>,
    pub(crate) revocations: Arc<Revocations>,
}

impl Context {
    /// Of a thread that has served nothing yet.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            tunnels: Tunnels::default(),
            handshakes: Handshakes::default(),
            endpoints: Cache::default(),
            kept: Kept::default(),
            seen: Seen::default(),
            copies: Copies::default(),
            links: Links::default(),
            stalls: Arc::default(),
            revocations: Arc::default(),
        }
    }
}

/// The time of day, as faults count it.
pub(crate) fn time_of_day() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Moment(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
