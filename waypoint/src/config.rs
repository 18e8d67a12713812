//! What an operator can set, from raw variables to valid values.
//!
//! Parses only: opens no file and asks no kernel.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use daemon::config::{Mistakes, Parser, Vars};
use model::Str;
use model::address::HBONE_PORT;
use model::identity::Identity;
use model::workload::WorkloadUid;
use proxy::control::Controller;
use proxy::process::Settings;

use crate::spans::{self, Endpoint, Percent};

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
    /// What it has in common with other proxies.
    pub process: Settings,
    /// A port of the pod's loopback where what the admin socket tells can be read; `None` for none.
    pub admin_port: Option<u16>,
    /// Where spans go, if anywhere.
    pub spans: Option<spans::Settings>,
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
    let controller = Controller::load(&p);
    let own = own(&p, controller.as_ref().map(|controller| &controller.cluster));
    let root_namespace = p.or("AIRGLOW_ROOT_NAMESPACE", "istio-system".to_owned());
    let listen = p.or("AIRGLOW_LISTEN", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], HBONE_PORT)));
    let process = Settings::load(&p);
    let admin_port = p.optional_as::<NonZeroU16>("AIRGLOW_ADMIN_PORT", "a port, from 1 to 65535");
    let spans = spans(&p);
    p.finish(|| {
        Some(Config {
            own: own?,
            controller: controller?,
            root_namespace: root_namespace?.into(),
            listen: listen?,
            process: process?,
            admin_port: admin_port?.map(NonZeroU16::get),
            spans: spans?,
        })
    })
}

fn spans(p: &Parser<'_>) -> Option<Option<spans::Settings>> {
    let expected = "http://host:port or https://host:port of a collector";
    let endpoint = p.optional_as::<Endpoint>("AIRGLOW_TRACING_ENDPOINT", expected);
    let roots = p.optional("AIRGLOW_TRACING_ROOT_CERT");
    let sampling = p.or_as("AIRGLOW_TRACING_SAMPLING", "a percentage, from 0 to 100", Percent::DEFAULT);
    let (endpoint, roots, sampling) = (endpoint?, roots?, sampling?);
    if endpoint.as_ref().is_some_and(Endpoint::is_tls) != roots.is_some() {
        let problem = "goes with AIRGLOW_TRACING_ENDPOINT=https://…: set both, or neither";
        p.conflict("AIRGLOW_TRACING_ROOT_CERT", problem);
        return None;
    }
    Some(endpoint.map(|endpoint| spans::Settings { endpoint, roots, sampling }))
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
            ("AIRGLOW_TRACING_ENDPOINT", "collector:4317"),
            ("AIRGLOW_TRACING_SAMPLING", "101"),
        ])
        .unwrap_err();
        for part in [
            "https://",
            "makes no identity",
            "AIRGLOW_METRICS",
            "`plain` or `json`",
            "AIRGLOW_RUN_DIR",
            "https://host:port",
            "from 0 to 100",
        ] {
            assert!(text.contains(part), "{text} should mention {part}");
        }
        for (endpoint, roots) in
            [("https://collector:4317", None), ("http://collector:4317", Some("/roots.pem"))]
        {
            let mut settings = vec![("AIRGLOW_TRACING_ENDPOINT", endpoint)];
            settings.extend(roots.map(|roots| ("AIRGLOW_TRACING_ROOT_CERT", roots)));
            let text = load_with(&settings).unwrap_err();
            assert!(text.contains("set both, or neither"), "{text}");
        }
        let nothing: BTreeMap<&str, &str> = BTreeMap::new();
        let text = load(&nothing).unwrap_err().to_string();
        assert!(REQUIRED.iter().all(|(name, _)| text.contains(name)), "{text}");
    }
}
