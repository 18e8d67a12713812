//! A node: programs of its own (in its host namespace, in the cgroup where a real node has them), and adding pods.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::LabError;
use crate::inner::{Inner, Site, set};
use crate::netns::Netns;
use crate::pod::{self, Pod};
use crate::process::{Output, Process, Program};
use crate::spec::PodSpec;
use crate::{RUN_WITHIN, RunError};

/// A node of the lab.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
    index: usize,
}

/// In which cgroup of the node a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slice {
    /// `system/<process>`: daemons of the host.
    System,
    /// `kubelet`: health probes come from here.
    Kubelet,
    /// `kubepods/<process>`: as a pod with hostNetwork.
    Kubepods,
}

impl Node {
    pub(crate) fn new(inner: Arc<Inner>, index: usize) -> Self {
        Self { inner, index }
    }

    /// Its name in the cluster: n1, n2, ...
    pub fn name(&self) -> &str {
        &self.site().name
    }

    /// Its addresses on the bridge, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        crate::topology::node(self.site().number).ips(self.inner.config.ipv6)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.site().netns
    }

    /// Its cgroup v2 directory; `kubepods`, `system` and `kubelet` are below.
    pub fn cgroup(&self) -> &Path {
        &self.site().cgroup
    }

    /// Where its ztunnel keeps its sockets (`node.sock`, `admin.sock`).
    pub fn run_dir(&self) -> &Path {
        &self.site().dir
    }

    /// Where its ztunnel pins its programs and maps.
    pub fn pins(&self) -> PathBuf {
        self.inner.run.pins(self.name())
    }

    /// Sets or removes a label of the Node object, such as `topology.kubernetes.io/zone`.
    pub fn label(&self, key: &str, value: Option<&str>) -> Result<(), LabError> {
        self.inner.change(|cluster| {
            set(&mut cluster.state.nodes[self.index].labels, key, value);
            Ok(())
        })
    }

    /// Adds a pod: namespace, addresses, routes, manifests, and the announcement to the node's ztunnel if one runs. The pod
    /// is ready and its first program has not started yet.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Pod, LabError> {
        pod::add(&self.inner, self.index, spec)
    }

    /// Starts a program in the node's own network namespace.
    pub fn spawn(&self, slice: Slice, program: impl Into<Program>) -> Result<Process, LabError> {
        let number = self.inner.next_number();
        let below = match slice {
            Slice::System => format!("system/p{number}"),
            Slice::Kubelet => "kubelet".to_owned(),
            Slice::Kubepods => format!("kubepods/p{number}"),
        };
        self.inner.spawn(&self.site().entry(&below), program.into())
    }

    /// Runs a program in the node's own network namespace to its end.
    pub fn run(&self, slice: Slice, program: impl Into<Program>) -> Result<Output, RunError> {
        Ok(self.spawn(slice, program)?.wait(RUN_WITHIN)?)
    }

    pub(crate) fn site(&self) -> &Site {
        &self.inner.nodes[self.index]
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }
}
