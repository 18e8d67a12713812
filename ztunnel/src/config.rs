//! What an operator can set, from raw variables to valid values.
//!
//! Parses only: opens no file and asks no kernel.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use daemon::config::{Mistakes, Parser, Vars};
use daemon::logs::Format;
use model::Str;
use proxy::control::Controller;
use proxy::process::Settings as ProcessSettings;

use crate::data::Settings;

/// What a cluster and the mesh itself need to come up, so that they can't be waited for.
const ALWAYS_START: &str = "kube-system,airglow-system";

/// All settings.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data: Settings,
    pub(crate) controller: ControllerConfig,
    pub(crate) capture: CaptureConfig,
    /// `None` where no container runtime calls a CNI plugin.
    pub(crate) cni: Option<CniConfig>,
    /// The container runtime's CRI socket, if there is one.
    pub(crate) cri_socket: Option<PathBuf>,
    /// What it has in common with other proxies.
    pub(crate) process: ProcessSettings,
    /// A port of the node's loopback where root can read what the admin socket tells; `None` for none.
    pub(crate) admin_port: Option<u16>,
}

/// How the controller is reached, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct ControllerConfig {
    /// Where it is.
    pub(crate) reach: Controller,
    /// Ask for addresses as they are needed, instead of holding all of them.
    pub(crate) on_demand: bool,
    /// The namespace whose policies guard every workload.
    pub(crate) root_namespace: Str,
}

/// Where traffic is captured.
#[derive(Clone, Debug)]
pub(crate) struct CaptureConfig {
    /// The cgroup v2 folder whose processes' connections are captured; `None` for the root of the mount.
    pub(crate) cgroup: Option<PathBuf>,
    /// The cgroup of the pods: its processes in the node's own network namespace are not the kubelet.
    pub(crate) kubepods: Option<PathBuf>,
    /// Where programs, links and maps are pinned.
    pub(crate) pins: PathBuf,
}

/// Where the CNI plugin is installed.
#[derive(Clone, Debug)]
pub(crate) struct CniConfig {
    /// The host's folder of network configurations.
    pub(crate) conf_dir: PathBuf,
    /// The host's folder of plugins.
    pub(crate) bin_dir: PathBuf,
    /// Namespaces whose pods start without a ztunnel.
    pub(crate) always_start: Vec<String>,
}

/// What is to be taken from the node.
#[derive(Clone, Debug)]
pub(crate) struct Uninstall {
    /// Where programs, links and maps are pinned.
    pub(crate) pins: PathBuf,
    /// As in [`Config`].
    pub(crate) cni: Option<CniConfig>,
    pub(crate) run_dir: PathBuf,
    pub(crate) log: (Format, String),
}

/// Reads what `ztunnel uninstall` and `ready` need. They take every setting of a ztunnel that serves, so that all can have the
/// same environment, and demand none.
pub(crate) fn load_uninstall(vars: &dyn Vars) -> Result<Uninstall, Mistakes> {
    let Config { capture, cni, process, .. } = load(&Undemanding(vars))?;
    Ok(Uninstall { pins: capture.pins, cni, run_dir: process.run_dir, log: process.log })
}

/// Variables, with a stand-in for each that [`load`] demands.
struct Undemanding<'a>(&'a dyn Vars);

impl Vars for Undemanding<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let stand_in = match name {
            "AIRGLOW_CONTROLLER" => Some("https://nobody"),
            "AIRGLOW_NODE" | "AIRGLOW_ROOT_CERT" | "AIRGLOW_TOKEN" => Some("none"),
            _ => None,
        };
        self.0.get(name).or_else(|| stand_in.map(str::to_owned))
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }
}

/// Reads every setting, or says everything that is wrong.
pub(crate) fn load(vars: &dyn Vars) -> Result<Config, Mistakes> {
    let p = Parser::new(vars);
    let controller = controller(&p);
    let capture = capture(&p);
    let cni = cni(&p);
    let cri_socket = p.optional("AIRGLOW_CRI_SOCKET");
    let node = p.required::<String>("AIRGLOW_NODE");
    let network = p.or("AIRGLOW_NETWORK", String::new());
    let cluster_domain = p.or("AIRGLOW_CLUSTER_DOMAIN", "cluster.local".to_owned());
    let local = p.or_as("AIRGLOW_LOCAL_PATH", "`direct` or `tunnel`", LocalPath::Direct);
    let local_congestion = p.or("AIRGLOW_LOCAL_CONGESTION", "reno".to_owned());
    let process = ProcessSettings::load(&p);
    let admin_port = p.optional_as::<NonZeroU16>("AIRGLOW_ADMIN_PORT", "a port, from 1 to 65535");
    p.finish(|| {
        Some(Config {
            data: Settings {
                node: node?.into(),
                network: network?.into(),
                cluster_domain: cluster_domain?.into(),
                force_tunnel: local? == LocalPath::Tunnel,
                local_congestion: Some(local_congestion?).filter(|name| name != "host").map(Into::into),
            },
            controller: controller?,
            capture: capture?,
            cni: cni?,
            cri_socket: cri_socket?,
            process: process?,
            admin_port: admin_port?.map(NonZeroU16::get),
        })
    })
}

fn controller(p: &Parser<'_>) -> Option<ControllerConfig> {
    let reach = Controller::load(p);
    let mode = p.or_as("AIRGLOW_XDS_MODE", "`wildcard` or `on-demand`", XdsMode::Wildcard);
    let root_namespace = p.or("AIRGLOW_ROOT_NAMESPACE", "istio-system".to_owned());
    Some(ControllerConfig {
        reach: reach?,
        on_demand: mode? == XdsMode::OnDemand,
        root_namespace: root_namespace?.into(),
    })
}

fn capture(p: &Parser<'_>) -> Option<CaptureConfig> {
    let cgroup = p.optional("AIRGLOW_CGROUP");
    let kubepods = p.optional("AIRGLOW_KUBEPODS");
    let pins = p.or("AIRGLOW_PINS", PathBuf::from("/sys/fs/bpf/airglow"));
    Some(CaptureConfig { cgroup: cgroup?, kubepods: kubepods?, pins: pins? })
}

fn cni(p: &Parser<'_>) -> Option<Option<CniConfig>> {
    let conf_dir = p.optional::<PathBuf>("AIRGLOW_CNI_CONF_DIR");
    let bin_dir = p.optional::<PathBuf>("AIRGLOW_CNI_BIN_DIR");
    let always_start = p.or("AIRGLOW_CNI_ALWAYS_START", ALWAYS_START.to_owned());
    let always_start = always_start?.split(',').filter(|name| !name.is_empty()).map(Into::into).collect();
    match (conf_dir?, bin_dir?) {
        (Some(conf_dir), Some(bin_dir)) => Some(Some(CniConfig { conf_dir, bin_dir, always_start })),
        (None, None) => Some(None),
        (Some(_), None) => {
            p.conflict("AIRGLOW_CNI_CONF_DIR", "goes only with AIRGLOW_CNI_BIN_DIR: set both or none");
            None
        }
        (None, Some(_)) => {
            p.conflict("AIRGLOW_CNI_BIN_DIR", "goes only with AIRGLOW_CNI_CONF_DIR: set both or none");
            None
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LocalPath {
    Direct,
    Tunnel,
}

impl FromStr for LocalPath {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "direct" => Ok(Self::Direct),
            "tunnel" => Ok(Self::Tunnel),
            _ => Err(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum XdsMode {
    OnDemand,
    Wildcard,
}

impl FromStr for XdsMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "on-demand" => Ok(Self::OnDemand),
            "wildcard" => Ok(Self::Wildcard),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const REQUIRED: [(&str, &str); 4] = [
        ("AIRGLOW_NODE", "n1"),
        ("AIRGLOW_CONTROLLER", "https://10.0.0.1:15012"),
        ("AIRGLOW_ROOT_CERT", "/root.pem"),
        ("AIRGLOW_TOKEN", "/token"),
    ];

    fn load_with(extra: &[(&'static str, &'static str)]) -> Result<Config, String> {
        let vars: BTreeMap<&str, &str> = REQUIRED.into_iter().chain(extra.iter().copied()).collect();
        load(&vars).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn defaults_need_only_what_can_not_be_guessed() {
        let config = load_with(&[]).unwrap();
        assert_eq!(&*config.data.node, "n1");
        assert!(!config.data.force_tunnel && !config.controller.on_demand);
        assert_eq!(config.process.metrics.port(), 15020);
        assert!(config.cni.is_none() && config.cri_socket.is_none());
    }

    #[test]
    fn a_plugin_is_installed_where_both_folders_are_named() {
        let folders = [("AIRGLOW_CNI_CONF_DIR", "/host/net.d"), ("AIRGLOW_CNI_BIN_DIR", "/host/bin")];
        let cni = load_with(&folders).unwrap().cni.unwrap();
        assert_eq!(cni.always_start, ["kube-system", "airglow-system"]);
    }

    #[test]
    fn to_uninstall_nothing_is_demanded_and_the_same_settings_are_taken() {
        let none: BTreeMap<&str, &str> = BTreeMap::new();
        let config = load_uninstall(&none).unwrap();
        assert_eq!(config.pins, PathBuf::from("/sys/fs/bpf/airglow"));
        assert_eq!(config.run_dir, PathBuf::from("/run/airglow"));
        assert!(config.cni.is_none());

        let more = [("AIRGLOW_PINS", "/sys/fs/bpf/other"), ("AIRGLOW_THREADS", "2")];
        let all: BTreeMap<&str, &str> = REQUIRED.into_iter().chain(more).collect();
        assert_eq!(load_uninstall(&all).unwrap().pins, PathBuf::from("/sys/fs/bpf/other"));
        let misspelt: BTreeMap<&str, &str> = [("AIRGLOW_PIN", "/sys/fs/bpf/other")].into();
        let text = load_uninstall(&misspelt).unwrap_err().to_string();
        assert!(text.contains("did you mean AIRGLOW_PINS?"), "{text}");
    }

    #[test]
    fn every_mistake_is_named() {
        let text = load_with(&[
            ("AIRGLOW_CONTROLLER", "http://10.0.0.1:15012"),
            ("AIRGLOW_THREADS", "0"),
            ("AIRGLOW_LOCAL_PATH", "fast"),
            ("AIRGLOW_CNI_BIN_DIR", "/opt/cni/bin"),
            ("AIRGLOW_THREDS", "2"),
        ])
        .unwrap_err();
        for part in
            ["https://", "set both or none", "AIRGLOW_THREADS", "`direct` or `tunnel`", "AIRGLOW_THREDS"]
        {
            assert!(text.contains(part), "{text} should mention {part}");
        }
    }
}
