//! Puts the parts together and takes them apart again: start, ready, drain, end.
//!
//! The control side runs on this thread's runtime, connections on the data threads. Holds no logic of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daemon::admin::{metrics_routes, readiness_routes};
use daemon::http::serve_tcp;
use daemon::logs;
use daemon::tasks::TaskGroup;
use model::Str;
use model::store::Mesh;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy::control::Control;
use proxy::mesh::MeshState;
use proxy::process::{FLUSH, Process};
use tokio::sync::watch;
use xds::{Client, Mode, Node, client};

use crate::admin::{self, Sources};
use crate::config::{Config, Uninstall};
use crate::data::Shared;
use crate::data::thread::Thread;
use crate::discovery::{Discovery, Wanted, subscriptions};
use crate::flow::Flows;
use crate::node::cni::{self, Installer};
use crate::node::manager::{Manager, Parts};
use crate::node::report::Reporter;
use crate::node::runtime::Finder;
use crate::node::sandbox::{self, Sandboxes};
use crate::node::uninstall;
use crate::pod::Pods;
use crate::ports;
use crate::telemetry::Telemetry;
use crate::vitals;

/// How often bytes of live connections are taken over into metrics: below any scrape interval.
const COLLECT: Duration = Duration::from_secs(1);

/// Runs ztunnel until it is told to stop.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    let process = Process::start(&config.process)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(&config, &process));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "ztunnel ends");
    }
    process.flush();
    outcome
}

/// Takes from the node what ztunnels put there and what outlives them.
pub(crate) fn uninstall(config: &Uninstall) -> anyhow::Result<()> {
    let logs = logs::init(config.log.0, &config.log.1, io::stdout())?;
    let outcome = uninstall::uninstall(config);
    logs.flush(FLUSH);
    outcome
}

async fn serve(config: &Config, process: &Process) -> anyhow::Result<()> {
    let mut tasks = TaskGroup::new();
    let control = Control::new(&config.controller.reach)?;
    let (shared, wanted) = data_side(config, process, &control, &mut tasks)?;
    let manager = node_side(config, process, &control, (&shared, wanted), &mut tasks)?;
    outside(config, process, &mut tasks)?;

    tracing::info!(node = %config.data.node, threads = config.process.threads, "ztunnel has started");
    tokio::select! {
        outcome = manager.run(process.drain.clone()) => outcome?,
        Some(ended) = tasks.next() => ended.outcome.with_context(|| format!("the task {:?} ended", ended.name))?,
    }
    tracing::info!("ztunnel has stopped");
    Ok(())
}

/// What the data threads share, fed by discovery and the CA.
fn data_side(
    config: &Config,
    process: &Process,
    control: &Control,
    tasks: &mut TaskGroup,
) -> anyhow::Result<(Arc<Shared>, watch::Receiver<Wanted>)> {
    let (certificates, driver) = control.certificates(&config.controller.reach)?;
    tasks.spawn_infallible("certificates", driver.run());
    let flows = Flows::new();
    let (mesh, writer) = MeshState::new(Mesh::new(config.controller.root_namespace.clone()));
    let subscriptions =
        subscriptions(if config.controller.on_demand { Mode::OnDemand } else { Mode::Wildcard });
    let unasked = subscriptions.iter().filter(|subscription| subscription.mode == Mode::Wildcard);
    let latch = |kind| (kind, process.readiness.latch(format!("discovery of {kind}")));
    let latches = unasked.map(|subscription| latch(subscription.type_url)).collect();
    let (sink, wanted) = Discovery::new((Arc::clone(&mesh), writer), Arc::clone(&flows), latches);
    let node = own_node(&config.data.node);
    let asked = client::Config::new(node, subscriptions.to_vec());
    let (client, demand) = Client::new(asked, control.clone(), sink);
    let session = client.status();
    tasks.spawn_infallible("discovery", client.run());
    let shared = Arc::new(Shared {
        mesh,
        pods: Pods::default(),
        certificates,
        flows,
        telemetry: Telemetry::new(&process.metrics, process.access.clone()),
        demand: config.controller.on_demand.then_some(demand),
        settings: config.data.clone(),
    });
    vitals::register(&process.metrics, &shared, session);
    tasks.spawn_infallible("metrics of live connections", collect(Arc::clone(&shared)));
    Ok((shared, wanted))
}

/// The data threads, and the manager that tells them what to serve.
fn node_side(
    config: &Config,
    process: &Process,
    control: &Control,
    (shared, wanted): (&Arc<Shared>, watch::Receiver<Wanted>),
    tasks: &mut TaskGroup,
) -> anyhow::Result<Manager> {
    let latch = process.readiness.latch("enrolment of this node's pods");
    let threads = (0..config.process.threads).map(|index| Thread::start(index, Arc::clone(shared)));
    let threads = threads.collect::<io::Result<Vec<_>>>().context("can't start the data threads")?;
    let (pods, pods_shown) = watch::channel(Arc::default());
    let (reports, reported) = watch::channel(None);
    let reporter = Reporter {
        node: config.data.node.clone(),
        channel: control.channel.clone(),
        token: Arc::clone(&control.token),
        reports: reported,
    };
    tasks.spawn_infallible("reports", reporter.run());
    let sandboxes = Sandboxes::open(config.process.run_dir.join(sandbox::FOLDER))
        .context("can't read the known sandboxes")?;
    let shared = Arc::clone(shared);
    let sources = Sources { shared: Arc::clone(&shared), pods: pods_shown, process: process.clone() };
    let admin = (admin::routes(&sources), config.admin_port);
    let run_dir = config.process.run_dir.clone();
    let parts = Parts { threads, shared, sandboxes, run_dir, admin, wanted, pods, reports, latch };
    let (known, in_charge) = (parts.pods.subscribe(), parts.reports.subscribe());
    let manager = Manager::start(&config.capture, parts)?;
    manager.register_metrics(&process.metrics);
    if let Some(cni) = &config.cni {
        let installer = Installer::new(cni, &config.process.run_dir, plugin()?);
        let latch = process.readiness.latch("the CNI plugin on this node");
        tasks.spawn_infallible("CNI plugin", installer.run(in_charge.clone(), latch));
    }
    if let Some(socket) = config.cri_socket.clone() {
        let finder = Finder { socket, commands: manager.commands(), pods: known, reports: in_charge };
        tasks.spawn_infallible("container runtime", finder.run());
    }
    Ok(manager)
}

/// The CNI plugin's program, which is delivered beside this one.
fn plugin() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("can't find this program's folder")?;
    Ok(own.with_file_name(cni::PLUGIN))
}

/// What others can ask this process at any time, and the signals that end it.
fn outside(config: &Config, process: &Process, tasks: &mut TaskGroup) -> anyhow::Result<()> {
    let metrics = serve_tcp(ports::shared(config.process.metrics)?, metrics_routes(&process.metrics));
    tasks.spawn_infallible("metrics", until_drain(process.drain.watch(), metrics));
    let readiness = serve_tcp(ports::shared(config.process.readiness)?, readiness_routes(&process.readiness));
    tasks.spawn_infallible("readiness", until_drain(process.drain.watch(), readiness));
    process.attend(tasks).context("can't listen for signals")
}

/// Serves until the drain begins. The kernel spreads connections over all who listen: from then on only a successor does.
async fn until_drain(mut drain: daemon::drain::Watch, serving: impl Future<Output = ()>) {
    tokio::select! {
        () = serving => {}
        () = drain.begun() => {}
    }
    std::future::pending().await
}

async fn collect(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(COLLECT);
    loop {
        ticks.tick().await;
        shared.telemetry.collect(&shared.flows);
    }
}

/// Each connection takes two descriptors; the usual soft limit of 1024 would be the mesh's limit for a whole node.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "can't raise the limit of open files; connections are limited by it");
    }
}

/// Who this is to the controller.
fn own_node(name: &Str) -> Node {
    Node {
        id: format!("ztunnel~127.0.0.1~{name}.airglow~cluster.local"),
        metadata: BTreeMap::from([("NODE_NAME".to_owned(), name.to_string())]),
    }
}
