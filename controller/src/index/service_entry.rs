//! A ServiceEntry in, a service for each of its hosts and workloads for its endpoints out.
//!
//! Nobody on a node looks names up: what is to be found by DNS alone is refused, in words. A Kubernetes Service beats an entry of
//! its hostname and address, and of two entries the older one counts.

use std::net::IpAddr;

use ipnet::IpNet;
use model::service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, PortMapping, Service, ServiceName,
    ServicePort, Vip, Visibility,
};
use model::workload::{Workload, WorkloadUid};

use super::Config;
use super::attachment::{self, Bound};
use super::cluster::{Cluster, Name, age, name_of, selects, within};
use super::finding::{Finding, Reason};
use super::service::{balancing, has_endpoints, protocol_of};
use super::workload_entry::{self, Machine, machine};
use crate::source::objects::{EntryPort, Labels, Metadata, Resolution, ServiceEntry, WorkloadEntrySpec};

/// What a ServiceEntry becomes.
#[derive(Default)]
pub(crate) struct Converted {
    pub(crate) services: Vec<Service>,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) bound: Option<Bound>,
}

/// The services and workloads of an entry, and what there is to say about it.
pub(crate) fn convert(config: &Config, cluster: &Cluster, entry: &ServiceEntry) -> Converted {
    let mut converted = Converted::default();
    if let Some(refused) = refusal(entry) {
        converted.findings.push(refused);
        return converted;
    }
    let mut findings = hidden_hosts(config, cluster, entry);
    let hosts = hosts(config, cluster, entry);
    if !hosts.is_empty() {
        let vips = vips(config, cluster, entry, &mut findings);
        let selector = entry.spec.workload_selector.as_ref();
        let accounts = selector.map_or_else(Vec::new, |selector| {
            attachment::accounts(cluster, &entry.metadata.namespace, &selector.labels)
        });
        let attachment = attachment::of_entry(config, cluster, &entry.metadata, accounts);
        let service = |host: &&str| Service {
            waypoint: attachment.waypoint.clone(),
            weighted_waypoints: attachment.weighted.clone(),
            ..service(config, cluster, entry, host, vips.clone())
        };
        converted.services = hosts.iter().map(service).collect();
        converted.bound = attachment.bound;
        converted.workloads = endpoints(config, cluster, entry, &hosts, &mut findings);
    }
    if entry.spec.ports.iter().any(|port| !is_tcp(port)) {
        let message = "the mesh carries TCP; other ports bypass it";
        findings.push(Finding::partial(Reason::UnsupportedValue, message));
    }
    if visibility(entry) == Some(Visibility::Public) && entry.spec.export_to.iter().any(|to| to != "*") {
        let message =
            "exportTo names namespaces: node proxies know only its own (.) or all (*), and take all";
        findings.push(Finding::partial(Reason::UnsupportedValue, message));
    }
    if findings.is_empty() {
        findings.push(Finding::accepted("known to node proxies"));
    }
    converted.findings = findings;
    converted
}

/// The services of entries that select a workload of these labels, each with its entry.
pub(crate) fn selecting<'a>(
    config: &'a Config,
    cluster: &'a Cluster,
    namespace: &str,
    labels: &'a Labels,
) -> impl Iterator<Item = (ServiceName, &'a ServiceEntry)> {
    let all = within(&cluster.entries, namespace).map(|(_, entry)| &**entry);
    let selecting = all.filter(|entry| {
        refusal(entry).is_none() && selector(entry).is_some_and(|selector| selects(selector, labels))
    });
    selecting.flat_map(|entry| {
        let hosts = hosts(config, cluster, entry);
        hosts.into_iter().map(move |host| (id(entry, host), entry))
    })
}

/// Whom an entry selects, if it selects at all.
pub(crate) fn selector(entry: &ServiceEntry) -> Option<&Labels> {
    let selector = entry.spec.workload_selector.as_ref();
    selector.map(|selector| &selector.labels).filter(|labels| !labels.is_empty())
}

/// Where a workload serves the ports of an entry. `own`: what the workload says of a port of that name.
pub(crate) fn ports(entry: &ServiceEntry, own: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    let mapping = |port: &EntryPort| PortMapping {
        service_port: port.number,
        target_port: own(&port.name).or(port.target_port).unwrap_or(port.number),
    };
    entry.spec.ports.iter().filter(|port| is_tcp(port)).map(mapping).collect()
}

/// Why an entry has no effect at all.
fn refusal(entry: &ServiceEntry) -> Option<Finding> {
    let spec = &entry.spec;
    if visibility(entry).is_none() {
        let message = "exportTo is ~, so that nobody sees it";
        return Some(Finding::refused(Reason::Incomplete, message));
    }
    let has_address = |endpoint: &WorkloadEntrySpec| endpoint.address.parse::<IpAddr>().is_ok();
    if spec.resolution == Resolution::None
        || selector(entry).is_some()
        || spec.endpoints.iter().any(has_address)
    {
        return None;
    }
    Some(match spec.resolution {
        Resolution::None | Resolution::Static => {
            Finding::refused(Reason::Incomplete, "none of its endpoints has an address; give one")
        }
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns => Finding::refused(
            Reason::UnsupportedValue,
            "node proxies look no names up: give endpoints with addresses and resolution STATIC; as it is, programs that look \
             the name up themselves reach it outside the mesh",
        ),
    })
}

/// Who sees an entry; `None`: nobody.
fn visibility(entry: &ServiceEntry) -> Option<Visibility> {
    let to = &entry.spec.export_to;
    let is_own = |to: &&String| *to == "." || **to == entry.metadata.namespace;
    let mut seen = to.iter().filter(|to| *to != "~").peekable();
    if to.is_empty() {
        Some(Visibility::Public)
    } else if seen.peek().is_none() {
        None
    } else if seen.all(|to| is_own(&to)) {
        Some(Visibility::Namespace)
    } else {
        Some(Visibility::Public)
    }
}

fn id(entry: &ServiceEntry, host: &str) -> ServiceName {
    ServiceName { namespace: entry.metadata.namespace.as_str().into(), hostname: host.into() }
}

/// The hosts that are the entry's: each once, and none that somebody in its namespace had before.
fn hosts<'a>(config: &Config, cluster: &Cluster, entry: &'a ServiceEntry) -> Vec<&'a str> {
    let mut hosts: Vec<&str> = Vec::new();
    for host in &entry.spec.hosts {
        if is_name(host) && !hosts.contains(&host.as_str()) && owner(config, cluster, entry, host).is_none() {
            hosts.push(host);
        }
    }
    hosts
}

/// What there is to say about the other hosts.
fn hidden_hosts(config: &Config, cluster: &Cluster, entry: &ServiceEntry) -> Vec<Finding> {
    let mut findings = Vec::new();
    for host in &entry.spec.hosts {
        if !is_name(host) {
            let message = format!("host {host:?} is no DNS name in lower case; it is left out");
            findings.push((Reason::Invalid, message));
        } else if let Some(owner) = owner(config, cluster, entry, host) {
            let message = format!("{owner} has the host {host} already; name it in one of them");
            findings.push((Reason::UnsupportedValue, message));
        }
    }
    // With none left it has no effect.
    let is_left = findings.len() < entry.spec.hosts.len();
    if entry.spec.hosts.is_empty() {
        findings.push((Reason::Incomplete, "it names no host; name one".to_owned()));
    }
    let finding = |(reason, message)| match is_left {
        true => Finding::partial(reason, message),
        false => Finding::refused(reason, message),
    };
    findings.into_iter().map(finding).collect()
}

/// Names end up in the names of resources.
fn is_name(host: &str) -> bool {
    let fits = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_' | b'*')
    };
    !host.is_empty() && host.bytes().all(fits)
}

/// Who in the entry's namespace has the host before it.
fn owner(config: &Config, cluster: &Cluster, entry: &ServiceEntry, host: &str) -> Option<String> {
    let own = name_of(&entry.metadata);
    if let Some((namespace, name)) = kubernetes(config, cluster, host).filter(|name| name.0 == own.0) {
        return Some(format!("Service {namespace}/{name}"));
    }
    let others = cluster.entries_with(host).filter(|other| other.metadata.namespace == own.0);
    let first = others.filter(|other| refusal(other).is_none()).min_by_key(|other| age(&other.metadata))?;
    let (namespace, name) = name_of(&first.metadata);
    ((namespace.as_str(), name.as_str()) != (own.0.as_str(), own.1.as_str()))
        .then(|| format!("ServiceEntry {namespace}/{name}"))
}

/// The Kubernetes Service of a hostname.
fn kubernetes(config: &Config, cluster: &Cluster, host: &str) -> Option<Name> {
    let of_cluster = host.strip_suffix(&config.cluster_domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = of_cluster.split_once('.')?;
    let name = (namespace.to_owned(), name.to_owned());
    cluster.services.get(&name).filter(|service| has_endpoints(service)).map(|_| name)
}

/// Whether the entry's service counts among those of its hostname in all namespaces.
fn is_canonical(config: &Config, cluster: &Cluster, entry: &ServiceEntry, host: &str) -> bool {
    if kubernetes(config, cluster, host).is_some() || visibility(entry) != Some(Visibility::Public) {
        return false;
    }
    let public = cluster
        .entries_with(host)
        .filter(|other| refusal(other).is_none() && visibility(other) == Some(Visibility::Public));
    let first = public.min_by_key(|other| age(&other.metadata));
    first.is_some_and(|first| name_of(&first.metadata) == name_of(&entry.metadata))
}

fn service(config: &Config, cluster: &Cluster, entry: &ServiceEntry, host: &str, vips: Vec<Vip>) -> Service {
    let spec = &entry.spec;
    let port = |port: &EntryPort| ServicePort {
        port: port.number,
        target_port: Some(port.target_port.unwrap_or(port.number)),
        protocol: protocol_of(&port.protocol),
    };
    let load_balancing = match spec.resolution {
        Resolution::None => LoadBalancing {
            mode: LoadBalancingMode::Passthrough,
            health: HealthPolicy::AllowAll,
            ..LoadBalancing::default()
        },
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns | Resolution::Static => {
            balancing(cluster, &entry.metadata, None)
        }
    };
    Service {
        id: id(entry, host),
        name: entry.metadata.name.as_str().into(),
        vips,
        ports: spec.ports.iter().filter(|port| is_tcp(port)).map(port).collect(),
        subject_alt_names: spec.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing,
        ip_families: IpFamilies::Automatic,
        canonical: is_canonical(config, cluster, entry, host),
        ingress_use_waypoint: attachment::ingress_uses_waypoint(cluster, &entry.metadata),
        visibility: visibility(entry).unwrap_or(Visibility::Namespace),
    }
}

fn is_tcp(port: &EntryPort) -> bool {
    !port.protocol.eq_ignore_ascii_case("UDP")
}

fn vips(config: &Config, cluster: &Cluster, entry: &ServiceEntry, findings: &mut Vec<Finding>) -> Vec<Vip> {
    let network = config.network_of_mesh(cluster);
    let mut vips = Vec::new();
    for text in &entry.spec.addresses {
        let block = text.parse::<IpNet>().ok();
        let Some(block) = block.or_else(|| text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical().into()))
        else {
            let message = format!("{text:?} is not an address or CIDR block; it is left out");
            findings.push(Finding::partial(Reason::Invalid, message));
            continue;
        };
        let single = block.prefix_len() == block.max_prefix_len();
        // Or whoever may write an entry anywhere could take a Service's connections.
        if let Some((namespace, name)) = cluster.with_cluster_ip(block.addr()).filter(|_| single) {
            let message = format!("{text} is the address of Service {namespace}/{name}; it is left out");
            findings.push(Finding::partial(Reason::UnsupportedValue, message));
            continue;
        }
        let vip = Vip { network: network.as_str().into(), block: block.trunc() };
        if !vips.contains(&vip) {
            vips.push(vip);
        }
    }
    vips
}

/// One workload for each endpoint with an address.
fn endpoints(
    config: &Config,
    cluster: &Cluster,
    entry: &ServiceEntry,
    hosts: &[&str],
    findings: &mut Vec<Finding>,
) -> Vec<Workload> {
    let Metadata { namespace, name, .. } = &entry.metadata;
    // The entry's own labels are about its services.
    let plain = Metadata { namespace: namespace.clone(), ..Metadata::default() };
    let mut workloads: Vec<Workload> = Vec::new();
    for endpoint in &entry.spec.endpoints {
        let of = format!("{}/networking.istio.io/ServiceEntry/{namespace}/{name}", config.cluster_id);
        let ports = ports(entry, |port| endpoint.ports.get(port).copied());
        let services = hosts.iter().map(|host| (id(entry, host), ports.clone())).collect();
        let described = Machine {
            uid: WorkloadUid(format!("{of}/{}", endpoint.address).into()),
            metadata: &entry.metadata,
            labels: &endpoint.labels,
            spec: endpoint,
            services,
        };
        match machine(config, cluster, described) {
            Ok(workload) if workloads.iter().any(|other| other.uid == workload.uid) => {}
            Ok(workload) => {
                let account = workload_entry::account(endpoint);
                let waypoint = attachment::of_workload(config, cluster, &plain, account).waypoint;
                workloads.push(Workload { waypoint, ..workload });
            }
            Err((reason, why)) => {
                findings.push(Finding::partial(reason, format!("endpoint {:?}: {why}", endpoint.address)));
            }
        }
    }
    workloads
}
