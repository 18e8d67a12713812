//! Puts the parts together and takes them apart again: start, ready, drain, end.
//!
//! The control side runs on this thread's runtime, connections on the data threads. Holds no logic of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use api::type_url;
use arc_swap::ArcSwap;
use daemon::admin::{metrics_routes, readiness_routes};
use daemon::drain::Outcome;
use daemon::http::{Routes, bind_unix, serve_tcp, serve_unix};
use daemon::readiness::Latch;
use daemon::tasks::TaskGroup;
use identity::Certificates;
use model::identity::Identity;
use model::store::Mesh;
use proxy::control::Control;
use proxy::mesh::MeshState;
use proxy::process::Process;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use xds::{Demand, Mode, Subscription};

use crate::admin;
use crate::balance::Registry;
use crate::config::Config;
use crate::data::Shared;
use crate::data::downstream::{self, Clients, Door, Past, Plain, Thread, Tunnels};
use crate::data::requests::mirror::Counts;
use crate::discovery::Discovery;
use crate::rules::{Book, Rules};
use crate::spans::Tracer;
use crate::telemetry::Telemetry;
use crate::watched::{Board, Watched};

/// What is asked for, in this order: what is to be guarded is not told before what holds for it, when a session begins either.
const KINDS: [&str; 5] = [
    type_url::AUTHORIZATION,
    type_url::L7_BACKEND_TLS,
    type_url::L7_POLICY,
    type_url::L7_RULE,
    type_url::ADDRESS,
];

/// Runs the waypoint until it is told to stop.
///
/// # Errors
/// What it can't do without, in words for an operator.
pub fn run(config: Config) -> anyhow::Result<()> {
    behind(&config, (&[config.listen], Tunnels))
}

/// Runs one that anybody can ask without a tunnel, at these addresses of services, and that takes everybody for `client`. It is
/// what `benches` compare with proxies that take plain connections, and nothing else may call it (`tests/tidy.rs` looks).
///
/// # Errors
/// As [`run`].
pub fn run_plain(config: &Config, services: &[SocketAddr], client: Identity) -> anyhow::Result<()> {
    behind(config, (services, Plain(client)))
}

/// Runs one that is asked by this door, at these addresses.
fn behind(config: &Config, door: (&[SocketAddr], impl Door)) -> anyhow::Result<()> {
    let process = Process::start(&config.process)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config, &process, door));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "waypoint ends");
    }
    process.flush();
    outcome
}

async fn serve(config: &Config, process: &Process, door: (&[SocketAddr], impl Door)) -> anyhow::Result<()> {
    let mut tasks = TaskGroup::new();
    let (shared, board) = control_side(config, process, &mut tasks)?;
    data_side(config, process, &shared, door, &mut tasks).await?;
    outside(config, process, admin::routes(process, &shared, board), &mut tasks).await?;
    tracing::info!(identity = %config.own.identity, threads = config.process.threads, "waypoint has started");
    tokio::select! {
        outcome = process.drain.finished() => {
            if let Outcome::Cut { left } = outcome {
                tracing::warn!(left, "tunnels were cut: they did not end within AIRGLOW_DRAIN_DEADLINE");
            }
        }
        Some(ended) = tasks.next() => ended.outcome.with_context(|| format!("the task {:?} ended", ended.name))?,
    }
    tracing::info!("waypoint has stopped");
    Ok(())
}

/// What discovery and the CA feed.
fn control_side(
    config: &Config,
    process: &Process,
    tasks: &mut TaskGroup,
) -> anyhow::Result<(Arc<Shared>, Arc<Board>)> {
    let control = Control::new(&config.controller)?;
    let (certificates, driver) = control.certificates(&config.controller)?;
    certificates.want(config.own.identity.clone());
    tasks.spawn_infallible("certificates", driver.run());
    let latch = process.readiness.latch("this waypoint's certificate");
    tasks.spawn_infallible(
        "first certificate",
        first(certificates.clone(), config.own.identity.clone(), latch),
    );

    let (mesh, writer) = MeshState::new(Mesh::new(config.root_namespace.clone()));
    let latches = KINDS.map(|kind| (kind, process.readiness.latch(format!("discovery of {kind}"))));
    let (moved, policies) = watch::channel(0);
    let book = Arc::new(ArcSwap::from_pointee(Book::default()));
    let rules = Rules::new(config.own.gateway());
    let (known, clients) = MeshState::new(Mesh::new(config.root_namespace.clone()));
    let sink = Discovery::new((writer, clients), (rules, Arc::clone(&book)), moved, BTreeMap::from(latches));
    let (client, demand) = discovery(config, control, sink);
    tasks.spawn_infallible("discovery", client.run());

    let mut tracer = None;
    if let Some(settings) = &config.spans {
        let (made, exporter) =
            Tracer::new(settings, &config.own, &process.metrics).context("AIRGLOW_TRACING_ENDPOINT")?;
        // It ends when nobody makes spans any more, which is when the process does.
        tasks.spawn_infallible("spans", exporter.run());
        tracer = Some(made);
    }
    let (watched, board, told) = Watched::new();
    tasks.spawn_infallible("watched requests", Arc::clone(&board).run(told));
    let shared = Arc::new(Shared {
        own: config.own.clone(),
        mesh,
        clients: Clients::new(known, demand),
        past: Past::default(),
        book,
        certificates,
        watched,
        telemetry: Telemetry::new(&process.metrics, process.access.clone(), tracer),
        mirrors: Counts::register(&process.metrics),
        policies,
        endpoints: Registry::default(),
        budgets: Arc::default(),
        drain: process.drain.watch(),
        epoch: Instant::now(),
    });
    tasks.spawn_infallible("past", Past::follow(Arc::clone(&shared)));
    Ok((shared, board))
}

/// The discovery client, and the way to ask it who clients are.
fn discovery(
    config: &Config,
    control: Control,
    sink: Discovery,
) -> (xds::Client<Control, Discovery>, Demand) {
    let node = xds::Node {
        id: format!("waypoint~127.0.0.1~{}~cluster.local", config.own.workload),
        metadata: BTreeMap::new(),
    };
    let wanted = KINDS.map(|type_url| Subscription { type_url, mode: Mode::Wildcard });
    let clients = Subscription { type_url: type_url::CLIENT, mode: Mode::OnDemand };
    let wanted = wanted.into_iter().chain([clients]).collect();
    xds::Client::new(xds::client::Config::new(node, wanted), control, sink)
}

/// Releases `latch` when there is a certificate. Nobody could be served before.
async fn first(certificates: Certificates, identity: Identity, latch: Latch) {
    while let Err(error) = certificates.get(&identity).await {
        tracing::warn!(%error, "there is no certificate yet");
    }
    drop(latch);
    std::future::pending().await
}

/// The data threads, and who hands them connections.
async fn data_side(
    config: &Config,
    process: &Process,
    shared: &Arc<Shared>,
    (addresses, door): (&[SocketAddr], impl Door),
    tasks: &mut TaskGroup,
) -> anyhow::Result<()> {
    let start = |index| Thread::start(index, Arc::clone(shared), door.clone());
    let threads = (0..config.process.threads).map(start);
    let threads = threads.collect::<io::Result<Vec<_>>>().context("can't start the data threads")?;
    for address in addresses {
        let listener = listen(*address).await?;
        let (threads, shared) = (threads.clone(), Arc::clone(shared));
        let readiness = process.readiness.clone();
        tasks.spawn_infallible("connections", async move {
            // Who knows a service and not yet its rules, or the TLS that is wanted, would pass them by.
            readiness.ready().await;
            downstream::accept(listener, threads, shared).await;
        });
    }
    Ok(())
}

/// What others can ask this process, and the signals that end it.
async fn outside(
    config: &Config,
    process: &Process,
    routes: Routes,
    tasks: &mut TaskGroup,
) -> anyhow::Result<()> {
    process.attend(tasks).context("can't listen for signals")?;
    let settings = &config.process;
    let metrics = listen(settings.metrics).await?;
    tasks.spawn_infallible("metrics", serve_tcp(metrics, metrics_routes(&process.metrics)));
    let readiness = listen(settings.readiness).await?;
    tasks.spawn_infallible("readiness", serve_tcp(readiness, readiness_routes(&process.readiness)));
    let socket = bind_unix(&settings.run_dir.join("admin.sock"))?;
    if let Some(port) = config.admin_port {
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        tasks.spawn_infallible("admin port", serve_tcp(listener, routes.clone().reads_only()));
    }
    tasks.spawn_infallible("admin", serve_unix(socket, routes));
    Ok(())
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))
}
