//! The controller's settings: environment variables to one valid value, with every mistake reported at once.
//!
//! Probes nothing: that a path exists is for those who open it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use daemon::config::{Mistakes, Parser, Vars};
use daemon::logs::{FILTER_DEFAULT, Format};
use identity::signer::ServingName;

use crate::index;
use crate::serve::Accepted;

/// What projected tokens are made for, as in Istio's charts.
const TOKEN_AUDIENCE: &str = "istio-ca";

/// The validity of a certificate when the node asks for none: a night without a controller disturbs nobody.
const CERT_TTL: Duration = Duration::from_secs(24 * 3600);

/// The shortest validity. Nodes renew at half of it: below, a pause of a few seconds would cost them their identities.
const CERT_TTL_MIN: Duration = Duration::from_secs(10);

/// The longest, as in `identity::authority`: whoever must live longer without a control plane plugs in their own signer.
const CERT_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Everything that the controller needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub source: Source,
    /// Where the authority, proofs and the admin socket live. Nobody else may read it.
    pub state_dir: PathBuf,
    /// Where nodes call.
    pub listen: SocketAddr,
    /// What the derivation is told.
    pub index: index::Config,
    /// The validity of a certificate when the node asks for none.
    pub cert_ttl: Duration,
    /// Names and addresses by which nodes call, besides those that are found out.
    pub server_names: Vec<ServingName>,
    /// Where metrics and readiness are served.
    pub metrics: SocketAddr,
    /// A port of the loopback where what the admin socket tells can be read; `None` for none.
    pub admin_port: Option<u16>,
    /// How log lines look, and which there are.
    pub log: (Format, String),
}

/// Where objects come from, and how nodes prove who they are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Directory {
        /// The directory.
        path: PathBuf,
        /// One file per node with its token.
        join_tokens: PathBuf,
    },
    /// The API server of a Kubernetes cluster.
    Kube {
        /// How to reach it; the service account of the pod that we are when unset.
        kubeconfig: Option<PathBuf>,
        /// Which service account tokens are believed.
        accepted: Accepted,
        /// The template of waypoints' pods; without one, none are made.
        waypoint_template: Option<PathBuf>,
    },
}

/// Reads every setting, or says everything that is wrong.
///
/// # Errors
/// With all mistakes.
pub fn load(vars: &dyn Vars) -> Result<Config, Mistakes> {
    let p = Parser::new(vars);
    let index = index(&p);
    let root_namespace = index.as_ref().map(|index| index.root_namespace.clone());
    let source = source(&p, root_namespace.unwrap_or_default());
    let state_dir = p.required("AIRGLOW_STATE_DIR");
    let listen = p.or("AIRGLOW_LISTEN", SocketAddr::from(([0_u16; 8], 15012)));
    let cert_ttl = p.or_within("AIRGLOW_CERT_TTL", CERT_TTL, CERT_TTL_MIN..=CERT_TTL_MAX);
    let server_names = p.or("AIRGLOW_SERVER_NAMES", String::new());
    let metrics = p.or("AIRGLOW_METRICS", SocketAddr::from(([0_u16; 8], 15014)));
    let admin_port = p.optional_as::<NonZeroU16>("AIRGLOW_ADMIN_PORT", "a port, from 1 to 65535");
    let format = p.or_as("AIRGLOW_LOG_FORMAT", "`plain` or `json`", Format::Plain);
    let filter = p.or("AIRGLOW_LOG", FILTER_DEFAULT.to_owned());
    p.finish(|| {
        let source = source?;
        let proofs_on_pods = matches!(source, Source::Kube { .. });
        Some(Config {
            source,
            state_dir: state_dir?,
            listen: listen?,
            index: index::Config { proofs_on_pods, ..index? },
            cert_ttl: cert_ttl?,
            server_names: listed(&server_names?).map(serving_name).collect(),
            metrics: metrics?,
            admin_port: admin_port?.map(NonZeroU16::get),
            log: (format?, filter?),
        })
    })
}

fn source(p: &Parser<'_>, root_namespace: String) -> Option<Source> {
    let kind = p.required_as::<SourceKind>(
        "AIRGLOW_SOURCE",
        "`kube`, or `directory:` and the path of a directory of manifests",
    );
    let kubeconfig = p.optional::<PathBuf>("AIRGLOW_KUBECONFIG");
    let audience = p.optional::<String>("AIRGLOW_TOKEN_AUDIENCE");
    let accounts = p.optional::<String>("AIRGLOW_NODE_ACCOUNTS");
    let waypoint_template = p.optional::<PathBuf>("AIRGLOW_WAYPOINT_TEMPLATE");
    let of_no_use = |variable: &str, source: &str| {
        p.conflict(variable, format!("only AIRGLOW_SOURCE={source} has a use for it"));
    };
    match kind {
        Some(SourceKind::Kube) => {
            if p.optional::<PathBuf>("AIRGLOW_JOIN_TOKENS")?.is_some() {
                of_no_use("AIRGLOW_JOIN_TOKENS", "directory:...");
            }
            let audience = audience?.unwrap_or_else(|| TOKEN_AUDIENCE.to_owned()).into();
            let accounts = accounts?.unwrap_or_else(|| format!("{root_namespace}/ztunnel"));
            let accounts = listed(&accounts).map(str::to_owned).collect();
            check_accounts(p, &accounts);
            let accepted = Accepted { audience, accounts };
            Some(Source::Kube { kubeconfig: kubeconfig?, accepted, waypoint_template: waypoint_template? })
        }
        directory => {
            let join_tokens = p.required("AIRGLOW_JOIN_TOKENS");
            for (variable, is_set) in [
                ("AIRGLOW_KUBECONFIG", kubeconfig?.is_some()),
                ("AIRGLOW_TOKEN_AUDIENCE", audience?.is_some()),
                ("AIRGLOW_NODE_ACCOUNTS", accounts?.is_some()),
                ("AIRGLOW_WAYPOINT_TEMPLATE", waypoint_template?.is_some()),
            ] {
                if is_set {
                    of_no_use(variable, "kube");
                }
            }
            let Some(SourceKind::Directory(path)) = directory else { return None };
            Some(Source::Directory { path, join_tokens: join_tokens? })
        }
    }
}

fn check_accounts(p: &Parser<'_>, accounts: &BTreeSet<String>) {
    let is_account = |account: &String| {
        account.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
    };
    if accounts.is_empty() || !accounts.iter().all(is_account) {
        p.conflict("AIRGLOW_NODE_ACCOUNTS", "expected `namespace/name` of service accounts, with commas");
    }
}

fn index(p: &Parser<'_>) -> Option<index::Config> {
    let default = index::Config::default();
    let trust_domain = p.or("AIRGLOW_TRUST_DOMAIN", default.trust_domain.to_string());
    if let Some(domain) = &trust_domain
        && let Err(error) = model::identity::Identity::new(domain.as_str(), "namespace", "account")
    {
        p.conflict("AIRGLOW_TRUST_DOMAIN", format!("no identity can have it: {error}"));
    }
    let cluster_id = p.or("AIRGLOW_CLUSTER_ID", default.cluster_id.to_string());
    let root_namespace = p.or("AIRGLOW_ROOT_NAMESPACE", default.root_namespace);
    let network = p.or("AIRGLOW_NETWORK", default.network);
    let cluster_domain = p.or("AIRGLOW_CLUSTER_DOMAIN", default.cluster_domain);
    let excluded = p.optional::<String>("AIRGLOW_EXCLUDED_NAMESPACES");
    Some(index::Config {
        trust_domain: trust_domain?.into(),
        cluster_id: cluster_id?.into(),
        root_namespace: root_namespace?,
        network: network?,
        cluster_domain: cluster_domain?,
        excluded_namespaces: match excluded? {
            Some(text) => listed(&text).map(str::to_owned).collect(),
            None => default.excluded_namespaces,
        },
        proofs_on_pods: default.proofs_on_pods,
    })
}

/// The parts of a comma-separated list, without empty ones.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn serving_name(text: &str) -> ServingName {
    text.parse().map_or_else(|_| ServingName::Dns(text.to_owned()), ServingName::Ip)
}

enum SourceKind {
    Directory(PathBuf),
    Kube,
}

impl std::str::FromStr for SourceKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "kube" {
            return Ok(Self::Kube);
        }
        let path = text.strip_prefix("directory:").or_else(|| text.strip_prefix("dir:"));
        let path = path.filter(|path| !path.is_empty()).ok_or(())?;
        Ok(Self::Directory(path.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const LEAST: [(&str, &str); 3] =
        [("AIRGLOW_SOURCE", "dir:/m"), ("AIRGLOW_STATE_DIR", "/s"), ("AIRGLOW_JOIN_TOKENS", "/t")];

    fn with(more: &[(&'static str, &'static str)]) -> Result<Config, Mistakes> {
        let vars: BTreeMap<&str, &str> = LEAST.iter().chain(more).copied().collect();
        load(&vars)
    }

    #[test]
    fn defaults() {
        let config = with(&[]).expect("the least there must be");
        let directory = Source::Directory { path: "/m".into(), join_tokens: "/t".into() };
        assert_eq!(config.source, directory);
        assert_eq!(config.listen.to_string(), "[::]:15012");
        assert_eq!(config.metrics.to_string(), "[::]:15014");
        assert_eq!(config.index, index::Config::default());
    }

    #[test]
    fn sources() {
        let source = |set: &[(&'static str, &'static str)]| {
            let vars: BTreeMap<&str, &str> =
                [("AIRGLOW_STATE_DIR", "/s")].iter().chain(set).copied().collect();
            load(&vars).map(|config| config.source)
        };
        let text = |set: &[(&'static str, &'static str)]| source(set).expect_err("a mistake").to_string();
        let tokens = ("AIRGLOW_JOIN_TOKENS", "/t");
        assert_eq!(
            source(&[("AIRGLOW_SOURCE", "directory:/d"), tokens]).expect("valid"),
            Source::Directory { path: "/d".into(), join_tokens: "/t".into() }
        );
        let kube = |kubeconfig: Option<&str>, audience: &str, accounts: &[&str]| Source::Kube {
            kubeconfig: kubeconfig.map(PathBuf::from),
            accepted: Accepted {
                audience: audience.into(),
                accounts: accounts.iter().map(|account| (*account).to_owned()).collect(),
            },
            waypoint_template: None,
        };
        let inside = source(&[("AIRGLOW_SOURCE", "kube"), ("AIRGLOW_ROOT_NAMESPACE", "mesh")]);
        assert_eq!(inside.expect("valid"), kube(None, "istio-ca", &["mesh/ztunnel"]));
        let set = [
            ("AIRGLOW_SOURCE", "kube"),
            ("AIRGLOW_KUBECONFIG", "/k"),
            ("AIRGLOW_TOKEN_AUDIENCE", "mesh"),
            ("AIRGLOW_NODE_ACCOUNTS", "a/b, c/d"),
        ];
        assert_eq!(source(&set).expect("valid"), kube(Some("/k"), "mesh", &["a/b", "c/d"]));

        let of_no_use = text(&[("AIRGLOW_SOURCE", "dir:/d"), tokens, ("AIRGLOW_KUBECONFIG", "/k")]);
        assert!(of_no_use.contains("AIRGLOW_KUBECONFIG"), "{of_no_use}");
        let of_no_use = text(&[("AIRGLOW_SOURCE", "kube"), tokens]);
        assert!(of_no_use.contains("AIRGLOW_JOIN_TOKENS"), "{of_no_use}");
        let account = text(&[("AIRGLOW_SOURCE", "kube"), ("AIRGLOW_NODE_ACCOUNTS", "ztunnel")]);
        assert!(account.contains("namespace/name"), "{account}");
    }

    #[test]
    fn lists() {
        let config = with(&[
            ("AIRGLOW_SERVER_NAMES", "controller.example, 192.0.2.1,,fd00::1"),
            ("AIRGLOW_EXCLUDED_NAMESPACES", "a,b"),
        ])
        .expect("valid");
        let names = [
            ServingName::Dns("controller.example".into()),
            ServingName::Ip([192, 0, 2, 1].into()),
            ServingName::Ip("fd00::1".parse().expect("a literal")),
        ];
        assert_eq!(config.server_names, names);
        assert_eq!(config.index.excluded_namespaces, ["a".to_owned(), "b".to_owned()].into());
    }

    #[test]
    fn mistakes_are_reported_together() {
        let vars: BTreeMap<&str, &str> = [
            ("AIRGLOW_SOURCE", "/m"),
            ("AIRGLOW_TRUST_DOMAIN", "Not A Domain"),
            ("AIRGLOW_CERT_TTL", "1s"),
            ("AIRGLOW_LISTN", "x"),
        ]
        .into();
        let text = load(&vars).expect_err("all of it is wrong").to_string();
        for part in [
            "AIRGLOW_SOURCE",
            "AIRGLOW_STATE_DIR is not set",
            "AIRGLOW_TRUST_DOMAIN",
            "AIRGLOW_CERT_TTL",
            "did you mean AIRGLOW_LISTEN",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
