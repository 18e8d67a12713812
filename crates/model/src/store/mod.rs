//! Everything that is known of the mesh, indexed for the questions that the proxies ask.
//!
//! [`Mesh`] is an immutable snapshot: cloning it is O(1) and readers never wait. [`Mesh::apply`] makes the next one and
//! says what changed. Owns no publication (the binaries swap snapshots) and no choice among endpoints (that is `route`).

mod list;
mod policies;
mod services;
mod workloads;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Str;
use crate::address::NetworkAddress;
use crate::policy::{self, Connection, Policy, PolicyName, Verdict};
use crate::service::{PortMapping, Service, ServiceName};
use crate::store::policies::Policies;
use crate::store::services::{Client, Services};
use crate::store::workloads::Workloads;
use crate::workload::{Workload, WorkloadUid};

/// The namespace whose policies reach every namespace, unless the installation says otherwise.
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";

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

/// What a batch of updates touched. Updates that change nothing leave no trace here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Policies, or what says which of them guard a workload, changed: live connections must be judged again. A workload
    /// that is gone does not count; what happens to connections to it is the caller's to say.
    pub policies: bool,
    /// Workloads added, changed or removed; each once, in order.
    pub workloads: Vec<WorkloadUid>,
    /// Services whose definition or endpoints changed; each once, in order.
    pub services: Vec<ServiceName>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { policies, workloads, services } = self;
        !policies && workloads.is_empty() && services.is_empty()
    }
}

/// One workload that backs a service.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// The workload; healthy or not.
    pub workload: &'a Arc<Workload>,
    /// Where it serves the service's ports, as far as it says so itself.
    pub ports: &'a [PortMapping],
}

/// A snapshot of the mesh.
#[derive(Clone)]
pub struct Mesh {
    workloads: Workloads,
    services: Services,
    policies: Policies,
}

impl Default for Mesh {
    /// Empty, with [`DEFAULT_ROOT_NAMESPACE`].
    fn default() -> Self {
        Self::new(DEFAULT_ROOT_NAMESPACE)
    }
}

impl Mesh {
    /// An empty mesh. A policy of the root namespace that can't be enforced denies everywhere.
    #[must_use]
    pub fn new(root_namespace: impl Into<Str>) -> Self {
        Self {
            workloads: Workloads::default(),
            services: Services::default(),
            policies: Policies::new(root_namespace.into()),
        }
    }

    /// Applies changes in order. Snapshots cloned before are not affected.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>) -> Changes {
        let mut touched = Touched::default();
        for update in updates {
            match update {
                Update::Policy(policy) => touched.policies |= self.policies.insert(policy),
                Update::PolicyRemoved(name) => touched.policies |= self.policies.remove(&name),
                Update::PolicyUnenforceable(name, reason) => {
                    touched.policies |= self.policies.refuse(name, reason);
                }
                Update::Service(service) => touched.service(self.services.insert(service)),
                Update::ServiceRemoved(name) => touched.service(self.services.remove(&name)),
                Update::Workload(workload) => touched.workload(self.workloads.insert(workload)),
                Update::WorkloadRemoved(uid) => touched.workload(self.workloads.remove(&uid)),
            }
        }
        touched.into_changes()
    }

    /// The workload of that name.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.workloads.get(uid).cloned()
    }

    /// The workload that owns an address. Workloads on the host's network own none. Where several claim one, pods come
    /// first, then those that are reached by tunnel, then the smallest uid.
    #[must_use]
    pub fn workload_by_address(&self, addr: &NetworkAddress) -> Option<Arc<Workload>> {
        self.workload_at(&addr.network, addr.ip).cloned()
    }

    /// The workloads that run on a node, by uid. None run on the node without a name.
    #[must_use]
    pub fn workloads_on(&self, node: &str) -> Vec<Arc<Workload>> {
        self.workloads.on(node).cloned().collect()
    }

    /// Every workload, in no particular order.
    pub fn all_workloads(&self) -> impl Iterator<Item = Arc<Workload>> + '_ {
        self.workloads.iter().cloned()
    }

    /// The service of that name.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<Arc<Service>> {
        self.services.get(name).cloned()
    }

    /// The service that a client of `client_namespace` means by a virtual address. Services that the client may not see
    /// do not count. A single address comes before a block that holds it; then the client's own namespace; then the
    /// longer block; then the canonical service; then the smallest name.
    #[must_use]
    pub fn service_by_vip(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<Arc<Service>> {
        self.services.by_vip(network, ip, Client::Namespace(client_namespace)).cloned()
    }

    /// The services of a hostname, one per namespace, by name. Hostnames are compared byte for byte: lower case.
    #[must_use]
    pub fn services_by_hostname(&self, hostname: &str) -> Vec<Arc<Service>> {
        self.services.by_hostname(hostname).to_vec()
    }

    /// Every service, in no particular order.
    pub fn all_services(&self) -> impl Iterator<Item = Arc<Service>> + '_ {
        self.services.iter().cloned()
    }

    /// The workloads that say they back a service, by uid, whether the service is known or not, healthy or not.
    pub fn endpoints<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = Endpoint<'a>> + 'a {
        self.workloads.backing(service).map(|workload| Endpoint {
            workload,
            ports: workload.services.get(service).map_or(&[], Vec::as_slice),
        })
    }

    /// The policy of that name.
    #[must_use]
    pub fn policy(&self, name: &PolicyName) -> Option<Arc<Policy>> {
        self.policies.get(name).cloned()
    }

    /// Every policy, in no particular order.
    pub fn all_policies(&self) -> impl Iterator<Item = Arc<Policy>> + '_ {
        self.policies.iter().cloned()
    }

    /// Every policy that was refused, with the reason, in no particular order.
    pub fn all_unenforceable(&self) -> impl Iterator<Item = (&PolicyName, &Str)> + '_ {
        self.policies.unenforceable()
    }

    /// Judges a connection to a workload by every policy that guards it.
    #[must_use]
    pub fn authorize(&self, destination: &Workload, connection: Connection) -> Verdict {
        policy::evaluate(self.policies.guards(destination), connection)
    }

    /// Like [`Mesh::workload_by_address`], without making a key.
    pub(crate) fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.at(network, ip)
    }

    /// Like [`Mesh::service_by_vip`], for references made by the control plane: no client, so nothing is hidden.
    pub(crate) fn service_at(&self, network: &str, ip: IpAddr) -> Option<&Arc<Service>> {
        self.services.by_vip(network, ip, Client::Mesh)
    }

    /// Like [`Mesh::service_by_vip`], borrowed.
    pub(crate) fn service_for(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        self.services.by_vip(network, ip, Client::Namespace(client_namespace))
    }

    /// Like [`Mesh::service`], borrowed.
    pub fn service_named(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Like [`Mesh::services_by_hostname`], borrowed.
    pub(crate) fn services_called(&self, hostname: &str) -> &[Arc<Service>] {
        self.services.by_hostname(hostname)
    }
}

/// Sizes, not contents: a mesh has a hundred thousand of everything.
impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workloads", &self.workloads.len())
            .field("services", &self.services.len())
            .field("policies", &self.policies.len())
            .finish()
    }
}

/// What one update of a workload touched.
#[derive(Default)]
struct WorkloadChange {
    uid: Option<WorkloadUid>,
    policies: bool,
    services: BTreeSet<ServiceName>,
}

/// [`Changes`] while a batch is applied.
#[derive(Default)]
struct Touched {
    policies: bool,
    workloads: BTreeSet<WorkloadUid>,
    services: BTreeSet<ServiceName>,
}

impl Touched {
    fn service(&mut self, name: Option<ServiceName>) {
        self.services.extend(name);
    }

    fn workload(&mut self, change: WorkloadChange) {
        self.policies |= change.policies;
        self.workloads.extend(change.uid);
        self.services.extend(change.services);
    }

    fn into_changes(self) -> Changes {
        Changes {
            policies: self.policies,
            workloads: self.workloads.into_iter().collect(),
            services: self.services.into_iter().collect(),
        }
    }
}
