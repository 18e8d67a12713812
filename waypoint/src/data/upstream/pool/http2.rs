//! Connections of HTTP/2 to endpoints, of one thread: each carries many requests at once, of whichever clients.
//!
//! Bounded in number and time. Requests that need a connection while one is being made wait for that one.

use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use identity::origination::Speaks;
use model::identity::Identity;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::{Carrier, Key, key};
use crate::data::Context;
use crate::data::upstream::{self, Aimed, Io};
use crate::http2::{self, Link, Upstream};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Connections to one endpoint on one thread. Each carries a hundred requests at once; where that is not enough, the requests wait
/// for each other.
const LINKS_MAX: usize = 16;

/// How long one may be idle, as for HTTP/1.1.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The connections. The locks are this thread's alone; only [`Endpoint::dialling`] is ever waited for.
#[derive(Default)]
pub(crate) struct Links(Mutex<HashMap<Key, Arc<Endpoint>>>);

/// Those to one endpoint.
#[derive(Default)]
struct Endpoint {
    links: Mutex<Vec<Open>>,
    /// Held by who makes a connection. When that failed last.
    dialling: tokio::sync::Mutex<Option<Instant>>,
}

struct Open {
    link: Link,
    /// Who answers at its end, and until when that is proven.
    proof: Option<(Identity, Instant)>,
    /// Since when it carries nothing, as far as was looked.
    idle: Option<Instant>,
}

impl Open {
    fn is_good(&self, now: Instant) -> bool {
        self.link.is_open() && self.proof.as_ref().is_none_or(|(_, until)| *until > now)
    }

    fn lend(&mut self, facts: &mut Facts) -> Upstream {
        self.idle = None;
        facts.destination.identity = self.proof.as_ref().map(|(who, _)| who.clone());
        self.link.lend()
    }
}

impl Links {
    fn to(&self, aimed: &Aimed) -> Arc<Endpoint> {
        Arc::clone(self.0.lock().entry(key(aimed)).or_default())
    }

    /// Closes those that were idle for too long. To be called now and then.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.0.lock().retain(|_, endpoint| {
            let mut links = endpoint.links.lock();
            links.retain_mut(|open| {
                if open.link.lent() > 0 {
                    open.idle = None;
                    return true;
                }
                let since = *open.idle.get_or_insert(now);
                open.is_good(now) && now - since < IDLE_MAX
            });
            !links.is_empty() || Arc::strong_count(endpoint) > 1
        });
    }
}

impl Endpoint {
    /// The connection that carries most and takes one more, so that others become idle; unless a new one is better.
    fn lend(&self, facts: &mut Facts) -> Option<Upstream> {
        let now = Instant::now();
        let mut links = self.links.lock();
        links.retain(|open| open.link.lent() > 0 || open.is_good(now));
        let full = links.len() >= LINKS_MAX;
        let good = links.iter_mut().filter(|open| open.is_good(now));
        if full {
            return good.min_by_key(|open| open.link.lent()).map(|open| open.lend(facts));
        }
        let roomy = good.filter(|open| open.link.has_room()).max_by_key(|open| open.link.lent());
        roomy.map(|open| open.lend(facts))
    }

    async fn dial(
        &self,
        context: &Arc<Context>,
        aimed: &Aimed,
        facts: &mut Facts,
    ) -> Result<Upstream, Refusal> {
        let reached = upstream::connect(context, aimed, Speaks::Http2, facts).await?;
        let proof = reached.proof();
        let begun = http2::connect(Io::from(reached)).await;
        let (link, drive) = begun.map_err(|error| Refusal::Broken(std::io::Error::other(error)))?;
        let until = proof.as_ref().map(|(_, until)| *until);
        tokio::spawn(async move {
            match until {
                Some(until) => tokio::select! { () = drive => {} () = sleep_until(until) => {} },
                None => drive.await,
            }
        });
        let mut open = Open { link, proof, idle: None };
        let lent = open.lend(facts);
        self.links.lock().push(open);
        Ok(lent)
    }
}

impl Carrier for Upstream {
    const PROTOCOL: &'static str = "HTTP/2";

    /// There is no need for a fresh one: those that are broken are not lent.
    async fn reach(
        context: &Arc<Context>,
        aimed: &Aimed,
        facts: &mut Facts,
        _fresh: bool,
    ) -> Result<Self, Refusal> {
        let endpoint = context.links.to(aimed);
        if let Some(lent) = endpoint.lend(facts) {
            return Ok(lent);
        }
        let asked = Instant::now();
        let mut failed = endpoint.dialling.lock().await;
        if let Some(lent) = endpoint.lend(facts) {
            return Ok(lent);
        }
        // Who waited for an attempt that failed does not wait for the next one as well.
        if failed.is_some_and(|failed| failed >= asked) {
            let error = std::io::Error::other("the connection that was being made failed");
            return Err(Refusal::Connect { to: aimed.target.app.0, error });
        }
        // Apart, because most requests do without and are not to be as large as it is.
        let dialled = Box::pin(endpoint.dial(context, aimed, facts)).await;
        if dialled.is_err() {
            *failed = Some(Instant::now());
        }
        dialled
    }

    fn keep(self, _: &Context, _: Key, _: Option<&Identity>) {}
}
