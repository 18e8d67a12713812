//! Connections of HTTP/1.1 to endpoints that are idle between requests, of one thread.
//!
//! Bounded in number and time; opens none and chooses none.

use std::sync::Arc;
use std::task::{Context as Task, Waker};
use std::time::Duration;

use foldhash::HashMap;
use identity::origination::Speaks;
use model::identity::Identity;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Carrier, Key, key};
use crate::data::Context;
use crate::data::upstream::{self, Aimed, Io};
use crate::http1::Upstream;
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Idle connections to one endpoint that one thread keeps: as many as there are rarely requests at once to one endpoint on one
/// thread; what is beyond it is closed and costs a new one later.
const KEPT_MAX: usize = 64;

/// How long one may be idle. Less than servers usually keep one (60 s and more), so that we close first and no request meets a
/// connection that is just being closed.
const IDLE_MAX: Duration = Duration::from_secs(30);

impl Carrier for Upstream<Io> {
    const PROTOCOL: &'static str = "HTTP/1.1";

    async fn reach(
        context: &Arc<Context>,
        aimed: &Aimed,
        facts: &mut Facts,
        fresh: bool,
    ) -> Result<Self, Refusal> {
        let kept = (!fresh).then(|| context.kept.take(&key(aimed)));
        if let Some((upstream, who)) = kept.flatten() {
            facts.destination.identity = who;
            return Ok(upstream);
        }
        // Apart, because most requests do without and are not to be as large as it is.
        let reached = Box::pin(upstream::connect(context, aimed, Speaks::Http1, facts)).await?;
        Ok(Self::new(reached.into()))
    }

    fn keep(self, context: &Context, key: Key, who: Option<&Identity>) {
        context.kept.put(key, self, who.cloned());
    }
}

/// The connections. The lock is this thread's alone and so never waited for.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<Key, Vec<Idle>>>);

struct Idle {
    since: Instant,
    upstream: Upstream<Io>,
    /// Who answers at its end.
    who: Option<Identity>,
}

impl Kept {
    /// The connection that was used last, if there is one that still can be.
    fn take(&self, key: &Key) -> Option<(Upstream<Io>, Option<Identity>)> {
        let mut all = self.0.lock();
        let idle = all.get_mut(key)?;
        let oldest = Instant::now() - IDLE_MAX;
        std::iter::from_fn(|| idle.pop()).find_map(|mut one| {
            let usable = one.since > oldest && is_usable(&mut one.upstream);
            usable.then_some((one.upstream, one.who))
        })
    }

    /// Keeps a connection for another request.
    fn put(&self, key: Key, upstream: Upstream<Io>, who: Option<Identity>) {
        let mut all = self.0.lock();
        let idle = all.entry(key).or_default();
        if idle.len() < KEPT_MAX {
            idle.push(Idle { since: Instant::now(), upstream, who });
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
    upstream.poll_unusable(&mut Task::from_waker(Waker::noop())).is_pending()
}
