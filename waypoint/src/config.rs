//! What an operator can set, from raw variables to valid values.
//!
//! Parses only: opens no file and asks no kernel.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::config::{Mistakes, Parser, Vars};
use daemon::logs::Format;

/// Connections and streams may go on for this long after the process was told to stop: less than the 30 s that Kubernetes
/// gives a pod by default, so that we close before we are killed.
const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the admin socket is made.
    pub run_dir: PathBuf,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where readiness is served.
    pub readiness: SocketAddr,
    /// How long what is open may go on after the process was told to stop.
    pub drain_deadline: Duration,
    /// The log's form and filter.
    pub log: (Format, String),
}

/// Reads every setting.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(vars: &dyn Vars) -> Result<Config, Mistakes> {
    let p = Parser::new(vars);
    let run_dir = p.or("AIRGLOW_RUN_DIR", PathBuf::from("/run/airglow"));
    let metrics = p.or("AIRGLOW_METRICS", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], 15020)));
    let readiness = p.or("AIRGLOW_READINESS", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], 15021)));
    let drain_deadline = p.or("AIRGLOW_DRAIN_DEADLINE", DRAIN_DEADLINE);
    let format = p.or_as("AIRGLOW_LOG_FORMAT", "`plain` or `json`", Format::Plain);
    let filter = p.or("AIRGLOW_LOG", "info".to_owned());
    p.finish(|| {
        Some(Config {
            run_dir: run_dir?,
            metrics: metrics?,
            readiness: readiness?,
            drain_deadline: drain_deadline?,
            log: (format?, filter?),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_mistake_is_named() {
        let vars: BTreeMap<&str, &str> =
            [("AIRGLOW_METRICS", "everywhere"), ("AIRGLOW_LOG_FORMAT", "xml"), ("AIRGLOW_RUNDIR", "/r")]
                .into();
        let text = load(&vars).unwrap_err().to_string();
        for part in ["AIRGLOW_METRICS", "`plain` or `json`", "AIRGLOW_RUN_DIR"] {
            assert!(text.contains(part), "{text} should mention {part}");
        }
    }
}
