//! Traffic capture: the BPF programs (`programs/*.bpf.c`) and their loader.
//!
//! [`Node`] attaches to a node once; [`Node::prepare`] and [`Node::capture`] enrol a pod, [`Node::stop_new`] and
//! [`Node::remove`] undo it. [`reconcile()`] does both from kernel facts, by the pure [`plan()`]. [`Node::open`] finds what is
//! left of it, [`Node::uninstall`] takes it away.
//! Everything is pinned and outlives the process; without a listener, captured traffic is refused.
//! It knows no identities, policies or workloads, and opens no connection.

mod bpf;
pub mod cgroup;
mod diag;
mod dns;
mod feature;
pub mod layout;
mod maps;
mod netlink;
mod netns;
mod network;
mod node;
mod observe;
mod pins;
mod plan;
mod pod;
mod programs;
mod reconcile;
mod record;
mod rtnetlink;
pub mod socket;
mod sysctl;

pub use cgroup::CgroupError;
pub use layout::{
    MARK_CAPTURE, MARK_PROXY, MARK_RETURN, MAX_ADDRESSES, MAX_PODS, MAX_UID, PORT_DNS, PORT_HBONE,
    PORT_OUTBOUND, PORT_PLAINTEXT,
};
pub use netns::{Netns, NetnsError};
pub use network::{NetworkError, NetworkFacts};
pub use node::{AttachError, Node, NodeConfig};
pub use observe::{LinkState, Observed};
pub use pins::PinsError;
pub use plan::{Action, Step, Want, Wanted, plan};
pub use pod::{EnrolError, Sandbox};
pub use programs::LoadError;
pub use reconcile::{Listeners, Outcome, State, Wish, reconcile};

/// What a captured connection is to the proxy, and which listener gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A connection of the pod's applications. Its local address is the original destination.
    Outbound = 0,
    /// A connection into the pod that is not HBONE.
    Plaintext = 1,
    /// A connection into the pod's port 15008.
    Hbone = 2,
    /// A DNS query of the pod's applications over UDP.
    Dns = 3,
}

impl Kind {
    /// Every kind, in the order of the places in the kernel's map.
    pub const ALL: [Self; 4] = [Self::Outbound, Self::Plaintext, Self::Hbone, Self::Dns];

    /// The port of this kind's listeners in every pod.
    pub fn port(self) -> u16 {
        match self {
            Self::Outbound => PORT_OUTBOUND,
            Self::Plaintext => PORT_PLAINTEXT,
            Self::Hbone => PORT_HBONE,
            Self::Dns => PORT_DNS,
        }
    }
}
