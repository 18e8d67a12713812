//! Puts the controller together and takes it apart again: state, source, readiness, serving, end. Holds no logic of its own.

mod backend;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use daemon::admin::{metrics_routes, readiness_routes};
use daemon::http::{bind_unix, serve_tcp, serve_unix};
use daemon::logs::Logs;
use daemon::metrics::{Metrics, register_process_metrics};
use daemon::readiness::Readiness;
use daemon::tasks::TaskGroup;
use identity::control::ServerTls;
use identity::signer::{ServingName, Signer};
use identity::{Clock, SystemClock};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin;
use crate::config::{Config, Source};
use crate::hub::{Handle, Hub};
use crate::index::Index;
use crate::proofs::Proofs;
use crate::serve::published::{Published, Publisher};
use crate::serve::{self, Discovery, Gate};
use crate::source::Batch;
use crate::writes::say_statuses;
use backend::{Backend, Begun, ELECTION, Wires};

/// How long sessions may take to end: nodes hold theirs open for as long as we are there.
const GRACE: Duration = Duration::from_secs(2);

/// The task that answers nodes.
const SERVING: &str = "serving";

/// Batches that wait: the hub is quick, and the source merges what it could not hand over.
const BATCHES: usize = 1;

/// Addresses of this machine that the serving certificate names. A machine with more has a name.
const MAX_OWN_ADDRESSES: usize = 64;

/// A controller that serves.
pub struct Controller {
    address: SocketAddr,
    metrics: SocketAddr,
    readiness: Readiness,
    tasks: TaskGroup,
    stop: watch::Sender<bool>,
    /// The tasks that end by themselves when told to stop.
    finish: Vec<&'static str>,
}

impl Controller {
    /// Starts everything, and returns when nodes are served: after the source was read once, because nodes would take
    /// "not read yet" for "gone".
    ///
    /// # Errors
    /// When a part can't start; the text says which and why.
    pub async fn start(config: Config, logs: Option<Logs>) -> anyhow::Result<Self> {
        let readiness = Readiness::new();
        let (source_read, serving) = (readiness.latch("source"), readiness.latch("serving"));
        let mut tasks = TaskGroup::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // Listening first: whoever asks for readiness learns what is waited for.
        let metrics = Metrics::new();
        register_process_metrics(&metrics);
        let scraped = TcpListener::bind(config.metrics)
            .await
            .with_context(|| format!("can't listen on {}", config.metrics))?;
        let metrics_address = scraped.local_addr()?;
        let routes = metrics_routes(&metrics).merge(readiness_routes(&readiness));
        tasks.spawn_infallible("metrics", serve_tcp(scraped, routes));

        let (publisher, published) = Publisher::new();
        let opened = Backend::open(&config, &readiness, &metrics, published.clone(), clock.clone());
        let backend = opened.await?;
        let (stop, stopped) = watch::channel(false);
        let Started { hub, ready, begun } =
            start_hub(&config, backend, publisher, stopped.clone(), &mut tasks)?;
        ready.await.context("the source ended before it was read")?;
        drop(source_read);

        let Begun { nodes, root, statuses } = begun;
        let gate = Gate::new(nodes);
        let discovery = Discovery::new(gate.clone(), published.clone());
        if let Some((client, leader)) = statuses {
            let statuses = say_statuses(client, hub.clone(), discovery.clone(), leader);
            tasks.spawn_infallible("statuses", statuses);
        }
        let issued = Arc::new(AtomicU64::new(0));
        register_metrics(&metrics, &gate, &discovery, &published, &issued);
        let socket = bind_unix(&config.state_dir.join("admin.sock"))?;
        let parts = admin::Parts {
            hub: hub.clone(),
            discovery: discovery.clone(),
            root: root.clone(),
            metrics,
            readiness: readiness.clone(),
            logs,
        };
        let routes = admin::routes(parts);
        if let Some(port) = config.admin_port {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
            let listener =
                listener.with_context(|| format!("can't listen on port {port} of the loopback"))?;
            tasks.spawn_infallible("admin port", serve_tcp(listener, routes.clone().reads_only()));
        }
        tasks.spawn_infallible("admin", serve_unix(socket, routes));

        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("can't listen on {}", config.listen))?;
        let address = listener.local_addr()?;
        let names = serving_names(&config)?;
        tracing::info!(%address, ?names, "serving nodes");
        let signer: Arc<dyn Signer> = root.authority().clone();
        let tls = ServerTls::new(signer.clone(), names, clock).await.context("no serving certificate")?;
        let parts = serve::Parts { gate, published, signer, hub, issued, discovery };
        let served = serve::serve(listener, tls, parts, told_to_stop(stopped));
        tasks.spawn(SERVING, served);
        drop(serving);
        let elects = matches!(config.source, Source::Kube { .. });
        let finish = [SERVING].into_iter().chain(elects.then_some(ELECTION)).collect();
        Ok(Self { address, metrics: metrics_address, readiness, tasks, stop, finish })
    }

    /// Where nodes call.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and readiness are served.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        self.metrics
    }

    /// What is not ready.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Serves until `until` resolves or a part ends, which none does by itself; then ends the rest in good order.
    ///
    /// # Errors
    /// When a part ended by itself.
    pub async fn run(mut self, until: impl Future<Output = ()>) -> anyhow::Result<()> {
        let outcome = tokio::select! {
            () = until => Ok(()),
            ended = self.tasks.next() => match ended {
                Some(ended) => Err(match ended.outcome {
                    Ok(()) => anyhow::anyhow!("{} ended", ended.name),
                    Err(error) => anyhow::anyhow!("{}: {error}", ended.name),
                }),
                None => Err(anyhow::anyhow!("nothing is left to run")),
            },
        };
        // Whether someone still listens does not matter: all of it ends.
        let _ = self.stop.send(true);
        let in_good_order = async {
            while let Some(ended) = self.tasks.next().await {
                self.finish.retain(|name| *name != ended.name);
                if self.finish.is_empty() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(GRACE, in_good_order).await;
        self.tasks.shutdown().await;
        outcome
    }
}

struct Started {
    hub: Handle,
    /// Hears when the source was read once.
    ready: oneshot::Receiver<()>,
    begun: Begun,
}

fn start_hub(
    config: &Config,
    backend: Backend,
    publisher: Publisher,
    stopped: watch::Receiver<bool>,
    tasks: &mut TaskGroup,
) -> anyhow::Result<Started> {
    // On Kubernetes the record is on the pods, where every replica sees it.
    let proofs = (!config.index.proofs_on_pods).then(|| Proofs::new(&config.state_dir));
    let proven = proofs.as_ref().map(Proofs::load).transpose()?.unwrap_or_default();
    let index = Index::new(config.index.clone(), proven);
    let (writer, hub, ready) = Hub::new(index, proofs, publisher);
    tasks.spawn_infallible("hub", writer.run());
    let (batches, received) = mpsc::channel(BATCHES);
    let begun = backend.start(config, &hub, Wires { batches, stopped }, tasks);
    tasks.spawn("source events", forward(received, hub.clone()));
    Ok(Started { hub, ready, begun })
}

/// Resolves when the controller is to end.
async fn told_to_stop(mut stopped: watch::Receiver<bool>) {
    // An error means that nobody is left who could tell, which is the end as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn forward(mut batches: mpsc::Receiver<Batch>, hub: Handle) -> Result<(), crate::hub::Stopped> {
    while let Some(batch) = batches.recv().await {
        hub.batch(batch).await?;
    }
    Ok(())
}

fn register_metrics(
    metrics: &Metrics,
    gate: &Gate,
    discovery: &Discovery,
    published: &Published,
    issued: &Arc<AtomicU64>,
) {
    let (gate, discovery, issued) = (gate.clone(), discovery.clone(), issued.clone());
    let (addresses, policies) = (published.clone(), published.clone());
    metrics.register_counter_fn(
        "airglow_calls_refused",
        "Calls of nodes or strangers that were refused",
        move || gate.refusals(),
    );
    metrics.register_counter_fn("airglow_certificates_issued", "Certificates issued to nodes", move || {
        issued.load(Ordering::Relaxed)
    });
    metrics.register_gauge_fn("airglow_discovery_sessions", "Connected discovery clients", move || {
        discovery.sessions().len() as u64
    });
    metrics.register_gauge_fn("airglow_addresses", "Workloads and services that are published", move || {
        addresses.now().addresses.len() as u64
    });
    metrics.register_gauge_fn("airglow_policies", "Policies that are published", move || {
        policies.now().authorizations.len() as u64
    });
}

/// What nodes may call us: names by convention, this machine's addresses, and what the settings add.
fn serving_names(config: &Config) -> anyhow::Result<Vec<ServingName>> {
    let root = &config.index.root_namespace;
    let mut names = vec![ServingName::Dns("localhost".into())];
    for service in ["airglow-controller", "istiod"] {
        names.push(ServingName::Dns(format!("{service}.{root}.svc")));
    }
    let ip = config.listen.ip();
    if ip.is_unspecified() {
        names.extend(own_addresses()?.into_iter().map(ServingName::Ip));
    } else {
        names.push(ServingName::Ip(ip));
    }
    for name in &config.server_names {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

fn own_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("can't list this machine's addresses")?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for interface in interfaces {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        // A link-local address means something else on every link.
        let v6 = address
            .as_sockaddr_in6()
            .map(|a| a.ip())
            .filter(|ip| !ip.is_unicast_link_local())
            .map(IpAddr::V6);
        if let Some(ip) = v4.or(v6).filter(|ip| !addresses.contains(ip))
            && addresses.len() < MAX_OWN_ADDRESSES
        {
            addresses.push(ip);
        }
    }
    Ok(addresses)
}
