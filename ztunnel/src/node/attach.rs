//! What capture needs once per node.
//!
//! Finds out where the node is and leaves the rest to `ebpf`. Pods are `capture`'s.

use std::sync::Arc;

use anyhow::Context;
use ebpf::{Netns, Node, NodeConfig};

use crate::config::CaptureConfig;

/// Attaches to the node, or takes over what an earlier process attached.
pub(super) fn attach(config: &CaptureConfig) -> anyhow::Result<Node> {
    let cgroup = match &config.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => ebpf::cgroup::mount()?,
    };
    let config = NodeConfig {
        cgroup,
        kubepods: config.kubepods.clone(),
        kubelet: None,
        pins: config.pins.clone(),
        own_cgroup: ebpf::cgroup::own()?,
        host: Arc::new(Netns::current()?),
    };
    Node::attach(&config).context("can't capture traffic on this node")
}
