//! Everything that is known of the mesh, indexed for the questions that the proxies ask.
//!
//! [`Mesh`] is an immutable snapshot: cloning it is O(1) and readers never wait. [`Mesh::apply`] makes the next one and
//! says what changed. Owns no publication (the binaries swap snapshots) and no choice among endpoints (that is `route`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::Str;
use crate::address::NetworkAddress;
use crate::policy::{Connection, Policy, PolicyName, Verdict};
use crate::service::{Service, ServiceName};
use crate::workload::{Workload, WorkloadUid};

/// One change to the mesh, already valid.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// A policy is new or different.
    Policy(Policy),
    /// A policy is gone.
    PolicyRemoved(PolicyName),
    /// A policy exists but was refused, for the reason given. Whatever it may guard is denied until it is mended.
    PolicyUnenforceable(PolicyName, Str),
    /// A service is new or different.
    Service(Service),
    /// A service is gone.
    ServiceRemoved(ServiceName),
    /// A workload is new or different.
    Workload(Workload),
    /// A workload is gone.
    WorkloadRemoved(WorkloadUid),
}

/// What an update touched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Policies, or what a workload names as its policies, changed: live connections must be judged again.
    pub policies: bool,
    /// Workloads added, changed or removed.
    pub workloads: Vec<WorkloadUid>,
    /// Services whose definition or endpoints changed.
    pub services: Vec<ServiceName>,
}
