//! Puts the parts together and takes them apart again: start, ready, drain, end.
//!
//! The control side runs on this thread's runtime. Holds no logic of its own.

use std::io;
use std::time::Duration;

use anyhow::Context;
use daemon::admin::{metrics_routes, readiness_routes};
use daemon::drain::{Drain, Outcome};
use daemon::http::{bind_unix, serve_tcp, serve_unix};
use daemon::logs::{self, Logs};
use daemon::metrics::{EXPIRY_PERIOD, Metrics, register_process_metrics};
use daemon::readiness::Readiness;
use daemon::signal::Terminate;
use daemon::tasks::TaskGroup;
use tokio::net::TcpListener;

use crate::admin;
use crate::config::Config;

/// How long logs may take to be written at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs the waypoint until it is told to stop.
///
/// # Errors
/// What it can't do without, in words for an operator.
pub fn run(config: Config) -> anyhow::Result<()> {
    let logs = logs::init(config.log.0, &config.log.1, io::stdout())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(config, logs.clone()));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "waypoint ends");
    }
    logs.flush(FLUSH);
    outcome
}

async fn serve(config: Config, logs: Logs) -> anyhow::Result<()> {
    let process = Process { logs, metrics: Metrics::new(), readiness: Readiness::new(), drain: Drain::new() };
    register_process_metrics(&process.metrics);
    let mut tasks = TaskGroup::new();
    outside(&config, &process, &mut tasks).await?;
    tracing::info!("waypoint has started");
    tokio::select! {
        outcome = process.drain.finished() => {
            if let Outcome::Cut { left } = outcome {
                tracing::warn!(left, "connections were cut: they did not end within AIRGLOW_DRAIN_DEADLINE");
            }
        }
        Some(ended) = tasks.next() => ended.outcome.with_context(|| format!("the task {:?} ended", ended.name))?,
    }
    tracing::info!("waypoint has stopped");
    Ok(())
}

/// What makes this a process.
pub(crate) struct Process {
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) drain: Drain,
}

/// What others can ask this process, and the signals that end it.
async fn outside(config: &Config, process: &Process, tasks: &mut TaskGroup) -> anyhow::Result<()> {
    let terminate = Terminate::listen().context("can't listen for signals")?;
    tasks.spawn_infallible("signals", terminate.drive(process.drain.clone(), config.drain_deadline));
    let listen = async |address| {
        TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))
    };
    let metrics = listen(config.metrics).await?;
    tasks.spawn_infallible("metrics", serve_tcp(metrics, metrics_routes(&process.metrics)));
    let readiness = listen(config.readiness).await?;
    tasks.spawn_infallible("readiness", serve_tcp(readiness, readiness_routes(&process.readiness)));
    tasks.spawn_infallible("metrics expiry", process.metrics.clone().expire_forever(EXPIRY_PERIOD));
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("can't make {}", config.run_dir.display()))?;
    let socket = bind_unix(&config.run_dir.join("admin.sock"))?;
    tasks.spawn_infallible("admin", serve_unix(socket, admin::routes(process, config.drain_deadline)));
    Ok(())
}
