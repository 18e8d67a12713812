//! Connections to endpoints that are idle between requests, of one thread.
//!
//! Bounded in number and time; opens none and chooses none.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::task::{Context, Waker};
use std::time::Duration;

use model::workload::WorkloadUid;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::io::Io;
use crate::http1::Upstream;

/// Idle connections to one endpoint that one thread keeps: as many as there are rarely requests at once to one endpoint on one
/// thread; what is beyond it is closed and costs a new one later.
const KEPT_MAX: usize = 64;

/// How long one may be idle. Less than servers usually keep one (60 s and more), so that we close first and no request meets a
/// connection that is just being closed.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Which endpoint: a workload, and where its application listens.
pub(crate) type Key = (WorkloadUid, SocketAddr);

/// The connections. The lock is this thread's alone and so never waited for.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<Key, Vec<Idle>>>);

struct Idle {
    since: Instant,
    upstream: Upstream<Io>,
}

impl Kept {
    /// The connection that was used last, if there is one that still can be.
    pub(crate) fn take(&self, key: &Key) -> Option<Upstream<Io>> {
        let mut all = self.0.lock();
        let idle = all.get_mut(key)?;
        let oldest = Instant::now() - IDLE_MAX;
        let found = std::iter::from_fn(|| idle.pop()).find_map(|mut one| {
            let usable = one.since > oldest && is_usable(&mut one.upstream);
            usable.then_some(one.upstream)
        });
        if idle.is_empty() {
            all.remove(key);
        }
        found
    }

    /// Keeps a connection for another request.
    pub(crate) fn put(&self, key: Key, upstream: Upstream<Io>) {
        let mut all = self.0.lock();
        let idle = all.entry(key).or_default();
        if idle.len() < KEPT_MAX {
            idle.push(Idle { since: Instant::now(), upstream });
        }
    }

    /// Closes those that were idle for too long, or that their servers have closed. To be called now and then.
    pub(crate) fn sweep(&self) {
        let oldest = Instant::now() - IDLE_MAX;
        self.0.lock().retain(|_, idle| {
            idle.retain_mut(|one| one.since > oldest && is_usable(&mut one.upstream));
            !idle.is_empty()
        });
    }
}

fn is_usable(upstream: &mut Upstream<Io>) -> bool {
    upstream.poll_unusable(&mut Context::from_waker(Waker::noop())).is_pending()
}
