//! A WorkloadEntry, or an endpoint of a ServiceEntry, in; a workload that is no pod out.
//!
//! No ztunnel is where such a workload runs: nobody enforces policies for it, and it is tunnelled to only if it says that it speaks
//! HBONE itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::Str;
use model::identity::Identity;
use model::membership::is_native;
use model::service::{PortMapping, ServiceName};
use model::workload::{Health, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadType, WorkloadUid};

use super::Config;
use super::attachment::{self, Attachment, Bound};
use super::cluster::{Cluster, name_of, selects, within};
use super::finding::{Finding, Reason};
use super::service::{has_endpoints, service_name};
use super::service_entry;
use super::workload::{CANONICAL_NAME, CANONICAL_REVISION, first, ports_of};
use crate::source::objects::{Labels, Metadata, WorkloadEntry, WorkloadEntrySpec};

/// A program on another machine.
pub(crate) struct Machine<'a> {
    pub(crate) uid: WorkloadUid,
    /// Of the object that describes it.
    pub(crate) metadata: &'a Metadata,
    pub(crate) labels: &'a Labels,
    pub(crate) spec: &'a WorkloadEntrySpec,
    pub(crate) services: BTreeMap<ServiceName, Vec<PortMapping>>,
}

/// What a WorkloadEntry becomes.
#[derive(Default)]
pub(crate) struct Converted {
    pub(crate) workload: Option<Workload>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) bound: Option<Bound>,
}

/// The workload of an entry, and what there is to say about it.
pub(crate) fn convert(config: &Config, cluster: &Cluster, entry: &WorkloadEntry) -> Converted {
    let Metadata { namespace, name, .. } = &entry.metadata;
    let labels = labels(entry);
    let described = Machine {
        uid: WorkloadUid(
            format!("{}/networking.istio.io/WorkloadEntry/{namespace}/{name}", config.cluster_id).into(),
        ),
        metadata: &entry.metadata,
        labels: &labels,
        spec: &entry.spec,
        services: services(config, cluster, entry, &labels),
    };
    match machine(config, cluster, described) {
        Ok(workload) => {
            let Attachment { waypoint, bound, .. } =
                attachment::of_workload(config, cluster, &entry.metadata, account(&entry.spec));
            let findings = vec![Finding::accepted("known to node proxies")];
            Converted { workload: Some(Workload { waypoint, ..workload }), findings, bound }
        }
        Err((reason, why)) => {
            Converted { findings: vec![Finding::refused(reason, why)], ..Converted::default() }
        }
    }
}

/// What selectors look at: what the entry says of the workload, and the labels of the entry itself.
pub(crate) fn labels(entry: &WorkloadEntry) -> Labels {
    let mut labels = entry.metadata.labels.clone();
    labels.extend(entry.spec.labels.clone());
    labels
}

/// The service account that it runs as.
pub(crate) fn account(spec: &WorkloadEntrySpec) -> &str {
    match spec.service_account.as_str() {
        "" => "default",
        named => named,
    }
}

fn services(
    config: &Config,
    cluster: &Cluster,
    entry: &WorkloadEntry,
    labels: &Labels,
) -> BTreeMap<ServiceName, Vec<PortMapping>> {
    let namespace = &entry.metadata.namespace;
    let own = |port: &str| entry.spec.ports.get(port).copied();
    let kubernetes = within(&cluster.services, namespace).filter(|(_, service)| {
        let selector = &service.spec.selector;
        has_endpoints(service) && !selector.is_empty() && selects(selector, labels)
    });
    let mut services: BTreeMap<_, _> =
        kubernetes.map(|(name, service)| (service_name(config, name), ports_of(service, own))).collect();
    let entries = service_entry::selecting(config, cluster, namespace, labels);
    services.extend(entries.map(|(id, entry)| (id, service_entry::ports(entry, own))));
    services
}

/// A workload by its address, or why it can't be one.
pub(crate) fn machine(
    config: &Config,
    cluster: &Cluster,
    described: Machine<'_>,
) -> Result<Workload, (Reason, String)> {
    let Machine { uid, metadata, labels, spec, services } = described;
    let address = match spec.address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical(),
        Err(_) if spec.address.is_empty() => {
            let why = "it has no address, and gateways to other networks are not supported; give its address";
            return Err((Reason::UnsupportedValue, why.to_owned()));
        }
        Err(_) => {
            let why = "node proxies look no names up; give its address";
            return Err((Reason::UnsupportedValue, why.to_owned()));
        }
    };
    let identity = Identity::new(config.trust_domain.clone(), metadata.namespace.as_str(), account(spec))
        .map_err(|error| (Reason::Invalid, format!("it can't have an identity: {error}")))?;
    let network = match spec.network.as_str() {
        "" => config.network_of_mesh(cluster).into(),
        own => Str::from(own),
    };
    let native_tunnel = is_native(labels);
    let name: Str = name_of(metadata).1.into();
    Ok(Workload {
        uid,
        name: name.clone(),
        identity,
        addresses: vec![address],
        network,
        tunnel: if native_tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None },
        native_tunnel,
        node: "".into(),
        canonical_name: first(labels, &CANONICAL_NAME).unwrap_or(&name).into(),
        canonical_revision: first(labels, &CANONICAL_REVISION).unwrap_or("latest").into(),
        workload_type: WorkloadType::Pod,
        workload_name: name,
        cluster_id: config.cluster_id.clone(),
        hostname: "".into(),
        services,
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        locality: locality(&spec.locality),
        // Whoever wrote the entry says that the address is the workload's; without a tunnel nothing proves it.
        network_mode: if native_tunnel { NetworkMode::Standard } else { NetworkMode::HostNetwork },
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        capacity: spec.weight.max(1),
    })
}

/// Region, zone and subzone, as far as they are given.
pub(crate) fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/');
    let mut next = || Str::from(parts.next().unwrap_or_default());
    Locality { region: next(), zone: next(), subzone: next() }
}
