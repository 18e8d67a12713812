//! A cluster of network namespaces on one machine: nodes, pods, services, DNS, and a look at the wire between nodes.
//!
//! Used by tests, benches and `airglow demo`. Everything is real (kernel, routing, processes) except Kubernetes itself: the
//! lab writes the manifests that an API server would serve, and does what kube-proxy, CNI and kubelet would do. It starts
//! our executables but knows none of their code, and holds no opinion on what the mesh should do.
//!
//! Begin at [`Lab::start`]. Needs root; refuses to run without. Leaves nothing behind, however its owner ends.

mod binaries;
mod cgroup;
mod cluster;
mod dns;
mod enter;
mod error;
mod inner;
mod kubeproxy;
mod lab;
mod manifests;
mod mesh;
mod netns;
mod node;
mod node_api;
mod pod;
mod process;
mod reaper;
mod run;
mod spec;
mod state;
mod tool;
mod topology;
mod wait;
mod waypoint;
mod wire;
mod wiring;

use std::time::Duration;

pub use cluster::helper;
pub use cluster::{
    APP_IMAGE, Cluster, ClusterConfig, ClusterNode, Component, Conformance, ControlPlane, Image,
};
pub use enter::Entry;
pub use error::{LabError, RunError};
pub use lab::{Lab, LabConfig, Service};
pub use mesh::{Env, Handover};
pub use netns::Netns;
pub use nix::sys::signal::Signal;
pub use node::{Node, Slice};
pub use pod::Pod;
pub use process::{Output, Process, ProcessError, Program};
pub use reaper::reap;
pub use spec::{ContainerPort, Map, PodSpec, Protocol, ServicePort, ServiceSpec, TargetPort};
pub use topology::{DNS_VIP, MAX_NODES, OUTSIDE, Pair};
pub use wait::{wait_looking_every, wait_until};
pub use wire::{Sighting, Traffic, Watch, Wire, WireError, WireStats};
pub use wiring::Tuning;

/// How long a program that is run to its end may take unless the caller says otherwise.
const RUN_WITHIN: Duration = Duration::from_secs(30);
