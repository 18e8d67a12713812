//! Watches a Kubernetes API server and says what is different.
//!
//! Nothing is said before every kind was listed once: nodes would take "not listed yet" for "gone". When the API server is
//! away, what was known stays. ConfigMaps are watched from the first BackendTLSPolicy on. Owns no meaning of an object and
//! writes nothing.

mod closed;
mod failing;
mod held;
mod stand_in;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use daemon::readiness::{Latch, Readiness};
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::objects::Kind;
use super::{Batch, Misunderstood};
pub use failing::Failing;
use held::{Held, Said};
use watch::Watch;

/// What watches have said and is not looked at yet. Each waits when it is full, and the API server with it.
const WAITING: usize = 1024;

/// What is handed over at once: the hub publishes once for all of it.
const TOGETHER: usize = 1024;

/// The source.
pub struct Kube {
    client: Client,
    failing: Failing,
    /// One for each kind that was not listed yet.
    latches: BTreeMap<Kind, Latch>,
}

impl Kube {
    /// A source that reads by `client`. Until everything was listed, `readiness` says what is waited for.
    #[must_use]
    pub fn new(client: Client, readiness: &Readiness) -> Self {
        let latch = |kind: Kind| (kind, readiness.latch(format!("source: first list of kind {kind}")));
        Self { client, failing: Failing::default(), latches: Kind::ALL.into_iter().map(latch).collect() }
    }

    /// Which watches fail at present.
    #[must_use]
    pub fn failing(&self) -> Failing {
        self.failing.clone()
    }

    /// Watches until the receiver of `out` is gone. The first batch is complete, the others are differences.
    pub async fn run(mut self, out: mpsc::Sender<Batch>) {
        let (said, mut heard) = mpsc::channel(WAITING);
        // Ended with us.
        let mut watches = JoinSet::new();
        let mut watched = BTreeSet::new();
        let mut held = Held::default();
        let (mut complete, mut told) = (false, Vec::<Misunderstood>::new());
        loop {
            for kind in Kind::ALL.into_iter().filter(|kind| held.wants(*kind) && watched.insert(*kind)) {
                let watch = Watch::new(self.client.clone(), kind, said.clone(), self.failing.clone());
                watches.spawn(watch.run());
            }
            let mut news: Vec<(Kind, Said)> = Vec::new();
            tokio::select! {
                _ = heard.recv_many(&mut news, TOGETHER) => {}
                () = out.closed() => return,
            }
            let events: Vec<_> = news.into_iter().flat_map(|(kind, said)| held.take(kind, said)).collect();
            self.latches.retain(|kind, _| held.awaits(*kind));
            let misunderstood = held.misunderstood();
            let first = !complete && held.is_complete();
            if first || complete && (!events.is_empty() || misunderstood != told) {
                complete = true;
                told = misunderstood.clone();
                if out.send(Batch { events, problems: Vec::new(), misunderstood }).await.is_err() {
                    return;
                }
            }
        }
    }
}
