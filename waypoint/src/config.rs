//! What an operator can set, from raw variables to valid values.
//!
//! Parses only: opens no file and asks no kernel.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::config::{Mistakes, Parser, Vars};
use daemon::logs::Format;
use model::Str;
use model::address::HBONE_PORT;
use model::identity::Identity;
use model::workload::WorkloadUid;
use proxy::control::Controller;

/// Connections and streams may go on for this long after the process was told to stop: less than the 30 s that Kubernetes
/// gives a pod by default, so that we close before we are killed.
const DRAIN_DEADLINE: Duration = Duration::from_secs(25);
/// One thread per core up to this many: larger waypoints are better several.
const THREADS_MAX: usize = 64;

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this waypoint is.
    pub own: Own,
    /// How the controller is reached.
    pub controller: Controller,
    /// The namespace whose policies guard every workload.
    pub root_namespace: Str,
    /// Where tunnels are accepted.
    pub listen: SocketAddr,
    /// Data threads.
    pub threads: usize,
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
    /// Whether each connection is logged.
    pub access_log: bool,
}

/// Who this waypoint is: the pod that it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// What it proves to be.
    pub identity: Identity,
    /// What discovery calls it.
    pub workload: WorkloadUid,
}

impl Own {
    /// The Gateway that this waypoint was made for, by namespace and name: its pods run as an account of the same name.
    #[must_use]
    pub fn gateway(&self) -> (Str, Str) {
        (self.identity.namespace.clone(), self.identity.service_account.clone())
    }
}

/// Reads every setting.
///
/// # Errors
/// Everything that is wrong, at once.
pub fn load(vars: &dyn Vars) -> Result<Config, Mistakes> {
    let p = Parser::new(vars);
    let any = |port| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], port));
    let controller = Controller::load(&p);
    let own = own(&p, controller.as_ref().map(|controller| &controller.cluster));
    let root_namespace = p.or("AIRGLOW_ROOT_NAMESPACE", "istio-system".to_owned());
    let listen = p.or("AIRGLOW_LISTEN", any(HBONE_PORT));
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let threads = p.or_within("AIRGLOW_THREADS", cores, 1..=THREADS_MAX);
    let run_dir = p.or("AIRGLOW_RUN_DIR", PathBuf::from("/run/airglow"));
    let metrics = p.or("AIRGLOW_METRICS", any(15020));
    let readiness = p.or("AIRGLOW_READINESS", any(15021));
    let drain_deadline = p.or("AIRGLOW_DRAIN_DEADLINE", DRAIN_DEADLINE);
    let format = p.or_as("AIRGLOW_LOG_FORMAT", "`plain` or `json`", Format::Plain);
    let filter = p.or("AIRGLOW_LOG", "info".to_owned());
    let access_log = p.or("AIRGLOW_ACCESS_LOG", true);
    p.finish(|| {
        Some(Config {
            own: own?,
            controller: controller?,
            root_namespace: root_namespace?.into(),
            listen: listen?,
            threads: threads?,
            run_dir: run_dir?,
            metrics: metrics?,
            readiness: readiness?,
            drain_deadline: drain_deadline?,
            log: (format?, filter?),
            access_log: access_log?,
        })
    })
}

fn own(p: &Parser<'_>, cluster: Option<&Str>) -> Option<Own> {
    let trust_domain = p.or("AIRGLOW_TRUST_DOMAIN", "cluster.local".to_owned());
    let namespace = p.required::<String>("AIRGLOW_NAMESPACE");
    let account = p.required::<String>("AIRGLOW_SERVICE_ACCOUNT");
    let pod = p.required::<String>("AIRGLOW_POD");
    let (trust_domain, namespace, account, pod) = (trust_domain?, namespace?, account?, pod?);
    // The empty piece is the API group of pods.
    let workload = WorkloadUid(format!("{}//Pod/{namespace}/{pod}", cluster?).into());
    match Identity::new(trust_domain, namespace, account) {
        Ok(identity) => Some(Own { identity, workload }),
        Err(error) => {
            p.conflict("AIRGLOW_SERVICE_ACCOUNT", format!("makes no identity: {error}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const REQUIRED: [(&str, &str); 6] = [
        ("AIRGLOW_CONTROLLER", "https://10.0.0.1:15012"),
        ("AIRGLOW_ROOT_CERT", "/root.pem"),
        ("AIRGLOW_TOKEN", "/token"),
        ("AIRGLOW_NAMESPACE", "shop"),
        ("AIRGLOW_SERVICE_ACCOUNT", "waypoint"),
        ("AIRGLOW_POD", "waypoint-7d9f"),
    ];

    fn load_with(extra: &[(&'static str, &'static str)]) -> Result<Config, String> {
        let vars: BTreeMap<&str, &str> = REQUIRED.into_iter().chain(extra.iter().copied()).collect();
        load(&vars).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_waypoint_is_the_pod_that_it_runs_in() {
        let config = load_with(&[("AIRGLOW_CLUSTER_ID", "east")]).unwrap();
        assert_eq!(config.own.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/waypoint");
        assert_eq!(&*config.own.workload.0, "east//Pod/shop/waypoint-7d9f");
        assert_eq!(config.listen.port(), 15008);
    }

    #[test]
    fn every_mistake_is_named() {
        let text = load_with(&[
            ("AIRGLOW_CONTROLLER", "http://10.0.0.1:15012"),
            ("AIRGLOW_SERVICE_ACCOUNT", "a/b"),
            ("AIRGLOW_METRICS", "everywhere"),
            ("AIRGLOW_LOG_FORMAT", "xml"),
            ("AIRGLOW_RUNDIR", "/r"),
        ])
        .unwrap_err();
        for part in
            ["https://", "makes no identity", "AIRGLOW_METRICS", "`plain` or `json`", "AIRGLOW_RUN_DIR"]
        {
            assert!(text.contains(part), "{text} should mention {part}");
        }
        let nothing: BTreeMap<&str, &str> = BTreeMap::new();
        let text = load(&nothing).unwrap_err().to_string();
        assert!(REQUIRED.iter().all(|(name, _)| text.contains(name)), "{text}");
    }
}
