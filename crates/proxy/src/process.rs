//! The process around either proxy: its settings, what it logs and counts, and how it is told to end.
//!
//! Serves nothing: where its routes stand is the programs'.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::access::AccessLog;
use daemon::config::Parser;
use daemon::drain::Drain;
use daemon::logs::{self, Format, InitError, Logs};
use daemon::metrics::{EXPIRY_PERIOD, Metrics, register_process_metrics};
use daemon::readiness::Readiness;
use daemon::signal::Terminate;
use daemon::tasks::TaskGroup;

use crate::memory;

/// Connections may go on for this long after the process was told to stop: less than the 30 s that Kubernetes gives a pod by
/// default, so that we close before we are killed.
const DRAIN_DEADLINE: Duration = Duration::from_secs(25);
/// One thread per core up to this many: beyond it a node's cores are its pods', and larger waypoints are better several.
const THREADS_MAX: usize = 64;
/// How long logs may take to be written at the end.
pub const FLUSH: Duration = Duration::from_secs(2);

/// What an operator can set of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Data threads.
    pub threads: usize,
    /// Where the admin socket is made.
    pub run_dir: PathBuf,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where readiness is served.
    pub readiness: SocketAddr,
    /// How long connections may go on after the process was told to stop.
    pub drain_deadline: Duration,
    /// The log's form and filter.
    pub log: (Format, String),
    /// Whether each connection is logged.
    pub access_log: bool,
}

impl Settings {
    /// Reads them.
    pub fn load(p: &Parser<'_>) -> Option<Self> {
        let any = |port| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], port));
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let threads = p.or_within("AIRGLOW_THREADS", cores, 1..=THREADS_MAX);
        let run_dir = p.or("AIRGLOW_RUN_DIR", PathBuf::from("/run/airglow"));
        let metrics = p.or("AIRGLOW_METRICS", any(15020));
        let readiness = p.or("AIRGLOW_READINESS", any(15021));
        let drain_deadline = p.or("AIRGLOW_DRAIN_DEADLINE", DRAIN_DEADLINE);
        let format = p.or_as("AIRGLOW_LOG_FORMAT", "`plain` or `json`", Format::Plain);
        let filter = p.or("AIRGLOW_LOG", "info".to_owned());
        let access_log = p.or("AIRGLOW_ACCESS_LOG", true);
        Some(Self {
            threads: threads?,
            run_dir: run_dir?,
            metrics: metrics?,
            readiness: readiness?,
            drain_deadline: drain_deadline?,
            log: (format?, filter?),
            access_log: access_log?,
        })
    }
}

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The access log has no thread.
    #[error("can't start the access log: {0}")]
    AccessLog(io::Error),
    /// The log can't be made.
    #[error(transparent)]
    Logs(#[from] InitError),
    /// There is no place for the admin socket.
    #[error("can't make {}, which AIRGLOW_RUN_DIR names: {error}", at.display())]
    RunDir {
        /// Where it should be.
        at: PathBuf,
        /// What happened.
        error: io::Error,
    },
}

/// What makes a proxy a process. Clones share it.
#[derive(Clone, Debug)]
pub struct Process {
    /// The log.
    pub logs: Logs,
    /// Everything that is counted.
    pub metrics: Metrics,
    /// What is waited for.
    pub readiness: Readiness,
    /// The way out.
    pub drain: Drain,
    /// The access log.
    pub access: AccessLog,
    /// How long connections may go on after the drain has begun.
    pub patience: Duration,
}

impl Process {
    /// Begins to log to standard output, and makes the run directory.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let (format, filter) = &settings.log;
        let logs = logs::init(*format, filter, io::stdout())?;
        if !memory::refuses_huge_pages() {
            tracing::warn!("can't turn huge pages off; this process will hold more memory than it uses");
        }
        std::fs::create_dir_all(&settings.run_dir)
            .map_err(|error| StartError::RunDir { at: settings.run_dir.clone(), error })?;
        let access = match settings.access_log {
            true => AccessLog::start(*format, io::stdout()).map_err(StartError::AccessLog)?,
            false => AccessLog::off(),
        };
        let metrics = Metrics::new();
        register_process_metrics(&metrics);
        let lines = access.clone();
        metrics.register_counter_fn("airglow_access_log_lost_lines", "Access-log lines lost", move || {
            lines.lost()
        });
        let patience = settings.drain_deadline;
        Ok(Self { logs, metrics, readiness: Readiness::new(), drain: Drain::new(), access, patience })
    }

    /// Starts what every proxy has running beside its work: heeding signals, forgetting idle metrics, giving memory back.
    ///
    /// # Errors
    /// Signals can't be listened for.
    pub fn attend(&self, tasks: &mut TaskGroup) -> io::Result<()> {
        let signals = Terminate::listen()?.drive(self.drain.clone(), self.patience);
        tasks.spawn_infallible("signals", signals);
        tasks.spawn_infallible("metrics expiry", self.metrics.clone().expire_forever(EXPIRY_PERIOD));
        tasks.spawn_infallible("free memory", memory::give_back_forever());
        Ok(())
    }

    /// Waits a moment for what was logged to be written. For the end of `main`.
    pub fn flush(&self) {
        self.access.flush(FLUSH);
        self.logs.flush(FLUSH);
    }
}
