//! Once per node: the maps, and the four programs on the node's cgroup. Pinned, so that a restart finds them in place.
//! An upgrade replaces the programs of the links that stand: no moment without capture.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::bpf::{self, AttachType, Link, ProgramTag};
use crate::cgroup::{self, CgroupError};
use crate::feature;
use crate::layout::LAYOUT_VERSION;
use crate::maps::{self, Maps};
use crate::netns::Netns;
use crate::pins::{Pins, PinsError, remove_file};
use crate::programs::{self, LoadError};

/// What a node is.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The cgroup v2 directory below which all processes of the node's pods run: the programs' place.
    pub cgroup: PathBuf,
    /// The directory below which all pods' containers run, hostNetwork pods included: none of them is a prober.
    /// Without it every process of the node's own network namespace is one.
    pub kubepods: Option<PathBuf>,
    /// If given, only processes below this directory are probers.
    pub kubelet: Option<PathBuf>,
    /// Where to pin; on a BPF file system, such as `/sys/fs/bpf/airglow/NODE`. No dots in it: bpffs refuses them.
    pub pins: PathBuf,
    /// The proxy's own directory. Everything that runs directly in it passes uncaptured, so that it must run alone.
    pub own_cgroup: PathBuf,
    /// The node's own network namespace, from which probes come.
    pub host: Arc<Netns>,
}

/// Why a node cannot be attached to.
#[derive(Debug, Error)]
pub enum AttachError {
    /// This process may not do it.
    #[error("missing privileges: {0}. Run as root, or add the capabilities to the container")]
    Unprivileged(String),
    /// The kernel lacks something.
    #[error("Linux {running} lacks what capture needs: {missing}. Linux 5.18 or newer has it all")]
    Unsupported {
        /// The running kernel.
        running: String,
        /// The features, with the release that brought them.
        missing: String,
    },
    /// A program was refused although the kernel has every feature that can be asked for.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The cgroup directories are not as they should be.
    #[error("{0}")]
    Cgroup(#[from] CgroupError),
    /// The proxy has no cgroup of its own.
    #[error(
        "{0} holds more than the proxy: whatever runs in it would pass uncaptured. Start the proxy in a cgroup of its own"
    )]
    SharedCgroup(PathBuf),
    /// Someone else's program allows none beside it.
    #[error(
        "another program holds the cgroup exclusively: {held}. Find it with `bpftool cgroup show {cgroup}`; detach it, or have its owner attach with the multi flag"
    )]
    Exclusive {
        /// The directory we attach to.
        cgroup: PathBuf,
        /// Where, which attach type, and the program ids.
        held: String,
    },
    /// The pins cannot be used.
    #[error("{0}")]
    Pins(#[from] PinsError),
    /// Another version pinned its maps there; or the kernel refused one step.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An attached node. Dropping it changes nothing: everything is pinned. [`Node::uninstall`] takes it away.
#[derive(Debug)]
pub struct Node {
    pub(crate) pins: Pins,
    pub(crate) maps: Maps,
    /// What the current version of the per-pod program looks like: links with another one are out of date. None if it was
    /// not loaded, because nothing is to be captured.
    pub(crate) pod_program: Option<ProgramTag>,
}

impl Node {
    /// Attaches, or takes over what an earlier process left attached.
    ///
    /// # Errors
    /// Each names what is missing and how to mend it. What an earlier process attached stays in force.
    pub fn attach(config: &NodeConfig) -> Result<Self, AttachError> {
        let lacking = feature::missing_capabilities();
        if !lacking.is_empty() {
            return Err(AttachError::Unprivileged(lacking.join(", ")));
        }
        let cgroup = cgroup::id(&config.cgroup)?;
        let own = own_cgroup(config, cgroup)?;
        let kubepods = optional_id(config.kubepods.as_deref())?;
        let kubelet = optional_id(config.kubelet.as_deref())?;
        let pins = Pins::create(&config.pins)?;
        check_version(&pins)?;
        let programs = programs::load_node(&pins).map_err(explain)?;
        let probe = programs::load_pod(&pins, u32::MAX, 0).map_err(explain)?;
        let pod_program = bpf::program_tag(probe.as_fd()).map_err(kernel("read the program's tag"))?;
        let maps = Maps::open(&pins).map_err(kernel("open the pinned maps"))?;

        // All that the programs consult stands before they do.
        maps.set_config(kubepods, kubelet).map_err(kernel("write the configuration"))?;
        maps.set_host(config.host.cookie()).map_err(kernel("name the node's namespace"))?;
        maps.keep_ztunnels(&cgroup::ids_below(&config.cgroup)).map_err(kernel("forget old proxies"))?;
        maps.add_ztunnel(own).map_err(kernel("name the proxy's cgroup"))?;
        let target = CgroupDirectory::open(&config.cgroup, cgroup)?;
        target.attach(&pins, "connect4", AttachType::Connect4, programs.connect4.as_fd())?;
        target.attach(&pins, "connect6", AttachType::Connect6, programs.connect6.as_fd())?;
        target.attach(&pins, "set_option", AttachType::SetSockOpt, programs.set_option.as_fd())?;
        target.attach(&pins, "sockops", AttachType::SockOps, programs.sockops.as_fd())?;
        tracing::info!(cgroup = %config.cgroup.display(), pins = %config.pins.display(), "capture is attached");
        Ok(Self { pins, maps, pod_program: Some(pod_program) })
    }

    /// What an earlier process left attached, to be taken away: attaches nothing and changes nothing, and needs no cgroup.
    /// None if no pod can be known there, because nothing is pinned or not everything: [`Node::clear`] removes that.
    ///
    /// # Errors
    /// When the pins can't be read, or are another version's: only that one knows what it did in pods.
    pub fn open(pins: &Path) -> Result<Option<Self>, AttachError> {
        let Some(pins) = Pins::find(pins)?.filter(|pins| maps::NAMES.iter().all(|name| pins.has_map(name)))
        else {
            return Ok(None);
        };
        let maps = Maps::open(&pins).map_err(unprivileged("open the pinned maps"))?;
        let version = maps.config().map_err(kernel("read the pinned configuration"))?.version;
        if version != 0 && version != u64::from(LAYOUT_VERSION) {
            let found = format!(
                "they have layout {version}, this version knows {LAYOUT_VERSION}; take the ztunnel that was here last"
            );
            return Err(kernel("read the pinned maps")(io::Error::other(found)));
        }
        Ok(Some(Self { pins, maps, pod_program: None }))
    }

    /// Removes what [`Node::open`] finds too little of: what an attach or an uninstall left that was cut short.
    ///
    /// # Errors
    /// Names the pods that are captured although the maps that say how are gone; nothing is changed then.
    pub fn clear(pins: &Path) -> Result<(), AttachError> {
        let Some(pins) = Pins::find(pins)? else { return Ok(()) };
        let mut captured = Vec::new();
        for uid in pins.pods()? {
            match open_node_link(&pins.pod_link(&uid))? {
                Some(link) if link.info().map_err(kernel("ask about a link"))?.netns != 0 => {
                    captured.push(uid)
                }
                _ => pins.remove_pod(&uid)?,
            }
        }
        if !captured.is_empty() {
            let found = format!(
                "maps are missing that say what was done in pods; delete these, and try again: {}",
                captured.join(", ")
            );
            return Err(kernel("uninstall")(io::Error::other(found)));
        }
        detach(&pins)
    }

    /// Takes everything away: links, maps, pins. Pods must have been removed before.
    ///
    /// # Errors
    /// Names the pods that are still enrolled; nothing is changed then.
    pub fn uninstall(self) -> Result<(), AttachError> {
        let records = self.maps.records().map_err(kernel("list the pods"))?;
        if !records.is_empty() {
            let uids: Vec<String> = records.into_iter().map(|(_, record)| record.uid).collect();
            let source = io::Error::other(format!("still enrolled: {}", uids.join(", ")));
            return Err(AttachError::Kernel { action: "uninstall".to_owned(), source });
        }
        detach(&self.pins)
    }

    /// Probe connections in flight that are exempt from capture; a gauge.
    pub fn probes_in_flight(&self) -> io::Result<usize> {
        self.maps.probe_count()
    }
}

/// Takes the node's programs from its cgroup, at once rather than some time after their pins are gone, and removes all pins.
fn detach(pins: &Pins) -> Result<(), AttachError> {
    for name in ["connect4", "connect6", "set_option", "sockops"] {
        if let Some(link) = open_node_link(&pins.link(name))? {
            link.detach().map_err(kernel("detach a program"))?;
        }
    }
    Ok(pins.remove()?)
}

fn open_node_link(pin: &Path) -> Result<Option<Link>, AttachError> {
    match Link::open(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(kernel("open a link")(error)),
    }
}

/// The proxy's cgroup, which nothing but the proxy may share.
fn own_cgroup(config: &NodeConfig, node: u64) -> Result<u64, AttachError> {
    let own = cgroup::id(&config.own_cgroup)?;
    let shared = own == node || config.kubepods.as_deref().is_some_and(|path| config.own_cgroup == path);
    if shared { Err(AttachError::SharedCgroup(config.own_cgroup.clone())) } else { Ok(own) }
}

fn optional_id(path: Option<&Path>) -> Result<u64, CgroupError> {
    path.map_or(Ok(0), cgroup::id)
}

/// Maps that another version pinned are left as they are, in force.
fn check_version(pins: &Pins) -> Result<(), AttachError> {
    if !pins.map("config").exists() || !pins.map("records").exists() {
        return Ok(());
    }
    let config =
        Maps::open(pins).and_then(|maps| maps.config()).map_err(kernel("take over the pinned maps"))?;
    if config.version == 0 || config.version == u64::from(LAYOUT_VERSION) {
        return Ok(());
    }
    let found = format!(
        "they have layout {}, this version needs {LAYOUT_VERSION}; drain the node and uninstall first",
        config.version
    );
    Err(kernel("take over the pinned maps")(io::Error::other(found)))
}

/// A refused program is explained by a missing feature, if there is one.
fn explain(error: LoadError) -> AttachError {
    let missing = feature::missing_features();
    if missing.is_empty() {
        return AttachError::Load(error);
    }
    AttachError::Unsupported { running: feature::running(), missing: missing.join(", ") }
}

struct CgroupDirectory<'a> {
    path: &'a Path,
    file: File,
    id: u64,
}

impl<'a> CgroupDirectory<'a> {
    fn open(path: &'a Path, id: u64) -> Result<Self, AttachError> {
        let file = File::open(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })?;
        Ok(Self { path, file, id })
    }

    /// Puts the program into the link that stands here, or makes one.
    fn attach(
        &self,
        pins: &Pins,
        name: &str,
        kind: AttachType,
        program: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let pin = pins.link(name);
        // One that hangs on another cgroup, or on one that is gone, loses its name to the new one once that works.
        if let Some(link) = open_node_link(&pin)?
            && link.info().map_err(kernel("ask about a link"))?.cgroup == self.id
        {
            return link.update(program).map_err(kernel("replace a program"));
        }
        let link =
            Link::create(program, self.file.as_fd(), kind).map_err(|error| self.refused(kind, error))?;
        let fresh = pins.link(&format!("{name}_new"));
        remove_file(&fresh)?;
        link.pin(&fresh).map_err(kernel("pin a link"))?;
        std::fs::rename(&fresh, &pin).map_err(kernel("name a pinned link"))
    }

    fn refused(&self, kind: AttachType, error: io::Error) -> AttachError {
        if error.raw_os_error() != Some(libc::EPERM) {
            return kernel("attach to the cgroup")(error);
        }
        let held: Vec<String> =
            self.path.ancestors().filter_map(|path| held_exclusively(path, kind)).collect();
        AttachError::Exclusive {
            cgroup: self.path.to_owned(),
            held: if held.is_empty() {
                format!("{kind:?}, by a program that cannot be listed")
            } else {
                held.join("; ")
            },
        }
    }
}

fn held_exclusively(path: &Path, kind: AttachType) -> Option<String> {
    let directory = File::open(path).ok()?;
    let programs = bpf::exclusive_programs(directory.as_fd(), kind).ok()?;
    let ids: Vec<String> = programs.iter().map(|id| format!("program {id}")).collect();
    (!ids.is_empty()).then(|| format!("{} has {} at {kind:?}", path.display(), ids.join(", ")))
}

/// A refusal for lack of a capability names it.
fn unprivileged(action: &str) -> impl FnOnce(io::Error) -> AttachError {
    let other = kernel(action);
    move |source| {
        let lacking = feature::missing_capabilities();
        if source.kind() == io::ErrorKind::PermissionDenied && !lacking.is_empty() {
            return AttachError::Unprivileged(lacking.join(", "));
        }
        other(source)
    }
}

fn kernel(action: &str) -> impl FnOnce(io::Error) -> AttachError {
    let action = action.to_owned();
    move |source| AttachError::Kernel { action, source }
}
