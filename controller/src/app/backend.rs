//! What the rest of the controller stands on, by the kind of source: objects, who nodes are, and the authority.
//!
//! Holds no logic of its own.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use daemon::metrics::Metrics;
use daemon::readiness::Readiness;
use daemon::tasks::TaskGroup;
use identity::Clock;
use identity::authority::{Authority, AuthorityConfig};
use kube::Client;
use tokio::sync::{mpsc, watch};

use super::told_to_stop;
use crate::config::{Config, Source};
use crate::hub::Handle;
use crate::root::Root;
use crate::serve::published::Published;
use crate::serve::{Authenticator, JoinTokens, TokenReviews};
use crate::source::kube::Kube;
use crate::source::{Batch, directory};
use crate::writes::{
    Leader, SecretError, SharedAuthority, lead, make_waypoints, mark_pods, publish_roots, say_events,
};

/// How often the authority of a directory does what time has made due.
const MAINTENANCE: Duration = Duration::from_secs(3600);

/// How often to ask for the authority's Secret while the API server does not hand it out.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The task that runs for the Lease, and gives it back at the end.
pub(super) const ELECTION: &str = "election";

/// What joins it to the rest.
pub(super) struct Wires {
    /// Where what is read goes.
    pub(super) batches: mpsc::Sender<Batch>,
    /// True when the controller is to end.
    pub(super) stopped: watch::Receiver<bool>,
}

/// What the rest stands on.
pub(super) struct Backend {
    input: Input,
    /// Who judges what nodes present.
    pub(super) nodes: Box<dyn Authenticator>,
    /// The authority.
    pub(super) root: Root,
}

/// What the rest is given back by what was started.
pub(super) struct Begun {
    /// Who judges what nodes present.
    pub(super) nodes: Box<dyn Authenticator>,
    /// The authority.
    pub(super) root: Root,
    /// With what statuses are written, where there are any, and who may.
    pub(super) statuses: Option<(Client, Leader)>,
}

/// What objects are read from.
enum Input {
    Directory { path: PathBuf, copies: PathBuf },
    Kube { source: Kube, client: Client, waypoint_template: Option<PathBuf> },
}

impl Backend {
    /// Opens what `config` names. On Kubernetes this takes until the API server answers.
    pub(super) async fn open(
        config: &Config,
        readiness: &Readiness,
        metrics: &Metrics,
        published: Published,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let granted =
            AuthorityConfig { ttl: config.cert_ttl, ..AuthorityConfig::new(&*config.index.trust_domain) };
        match &config.source {
            Source::Directory { path, join_tokens } => {
                // The authority lives in the state directory itself: its lock keeps a second controller out, and its
                // `roots.pem` is the file that nodes verify us with.
                let authority = Authority::open_or_create(&config.state_dir, granted, clock)?;
                Ok(Self {
                    input: Input::Directory {
                        path: path.clone(),
                        copies: config.state_dir.join("last-good"),
                    },
                    nodes: Box::new(JoinTokens::new(join_tokens.clone(), published)),
                    root: Root::Directory(Arc::new(authority)),
                })
            }
            Source::Kube { kubeconfig, accepted, waypoint_template } => {
                let state = &config.state_dir;
                let made = DirBuilder::new().recursive(true).mode(0o700).create(state);
                made.with_context(|| format!("can't make the directory {}", state.display()))?;
                let client = apiserver::connect(kubeconfig.as_slice(), None).await?;
                let _waiting = readiness.latch("root: the authority's Secret");
                let namespace = &config.index.root_namespace;
                let shared = open_shared(&client, namespace, granted, clock.clone()).await?;
                let source = Kube::new(client.clone(), readiness);
                let failing = source.failing();
                let help = "Kinds of objects that can't be watched at present";
                metrics.register_gauge_fn("airglow_source_kinds_failing", help, move || failing.count());
                Ok(Self {
                    nodes: Box::new(TokenReviews::new(client.clone(), accepted.clone(), published, clock)),
                    root: Root::Secret(Arc::new(shared)),
                    input: Input::Kube { source, client, waypoint_template: waypoint_template.clone() },
                })
            }
        }
    }

    /// Starts what reads, and what writes and need not know what nodes say.
    pub(super) fn start(self, config: &Config, hub: &Handle, wires: Wires, tasks: &mut TaskGroup) -> Begun {
        let Self { input, nodes, root } = self;
        let mut statuses = None;
        let Wires { batches, stopped } = wires;
        match input {
            Input::Directory { path, copies } => {
                tasks.spawn_infallible("root maintenance", maintain(root.authority().clone()));
                tasks.spawn_infallible("source", directory::run(path, copies, batches));
            }
            Input::Kube { source, client, waypoint_template } => {
                tasks.spawn_infallible("source", source.run(batches));
                let namespace = &config.index.root_namespace;
                let (leader, election) = lead(client.clone(), namespace, replica(), told_to_stop(stopped));
                tasks.spawn_infallible(ELECTION, election);
                tasks.spawn_infallible("marks", mark_pods(client.clone(), hub.clone(), leader.clone()));
                statuses = Some((client.clone(), leader.clone()));
                let made = make_waypoints(client.clone(), hub.clone(), waypoint_template, leader.clone());
                tasks.spawn_infallible("waypoints", made);
                if let Root::Secret(shared) = &root {
                    let events = say_events(client.clone(), hub.clone(), shared.clone(), leader.clone());
                    tasks.spawn_infallible("events", events);
                }
                let roots = publish_roots(client, hub.clone(), root.authority().clone(), leader);
                tasks.spawn_infallible("root publication", roots);
            }
        }
        if let Root::Secret(shared) = &root {
            tasks.spawn_infallible("root maintenance", shared.clone().run());
        }
        Begun { nodes, root, statuses }
    }
}

/// Asks until the API server answers: it may start after us.
async fn open_shared(
    client: &Client,
    namespace: &str,
    granted: AuthorityConfig,
    clock: Arc<dyn Clock>,
) -> Result<SharedAuthority, SecretError> {
    let mut said = false;
    loop {
        let opened = SharedAuthority::open(client.clone(), namespace, granted.clone(), clock.clone()).await;
        match opened {
            Err(error @ (SecretError::Api(..) | SecretError::Contended(_))) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, "there is no authority yet; it is asked for again");
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

/// What no other replica is called, not even the one that was here before us.
fn replica() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), fastrand::u64(..))
}

async fn maintain(authority: Arc<Authority>) {
    let mut ticks = tokio::time::interval(MAINTENANCE);
    loop {
        ticks.tick().await;
        if let Err(error) = authority.maintain() {
            tracing::error!(%error, "the root could not be maintained; it is tried again in an hour");
        }
    }
}
