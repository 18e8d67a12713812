//! `istio.workload.Workload` to and from `model::workload::Workload`.

use std::collections::BTreeMap;

use model::identity::Identity;
use model::policy::PolicyName;
use model::service::{PortMapping, ServiceName};
use model::workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType, WorkloadUid,
};

use super::{DEFAULT_TRUST_DOMAIN, halves, ip, ip_bytes, known, optional_port, port, required};
use crate::invalid::{InvalidField, Problem};
use crate::workload as wire;

/// What an empty service account on the wire stands for.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// What an absent capacity on the wire stands for.
const DEFAULT_CAPACITY: u32 = 1;

impl TryFrom<wire::Workload> for Workload {
    type Error = InvalidField;

    fn try_from(workload: wire::Workload) -> Result<Self, InvalidField> {
        let wire::Workload {
            name,
            namespace,
            addresses,
            network,
            tunnel_protocol,
            trust_domain,
            service_account,
            waypoint,
            node,
            canonical_name,
            canonical_revision,
            workload_type,
            workload_name,
            native_tunnel,
            authorization_policies,
            status,
            cluster_id,
            network_gateway,
            uid,
            hostname,
            services,
            application_tunnel,
            locality,
            network_mode,
            extensions: _, // Istio defines none, and what a proxy may do with a workload does not hang on them.
            capacity,
        } = workload;
        Ok(Self {
            uid: WorkloadUid(required(uid).map_err(|p| p.of("uid"))?),
            name: name.into(),
            identity: identity(trust_domain, namespace, service_account).map_err(|p| p.of("identity"))?,
            addresses: addresses
                .iter()
                .map(|a| ip(a).map_err(|p| p.of("addresses")))
                .collect::<Result<_, _>>()?,
            network: network.into(),
            tunnel: tunnel(tunnel_protocol).map_err(|p| p.of("tunnel_protocol"))?,
            native_tunnel,
            node: node.into(),
            canonical_name: canonical_name.into(),
            canonical_revision: canonical_revision.into(),
            workload_type: kind(workload_type),
            workload_name: workload_name.into(),
            cluster_id: cluster_id.into(),
            hostname: hostname.into(),
            services: backed(services).map_err(|p| p.of("services"))?,
            authorization_policies: policies(&authorization_policies)
                .map_err(|p| p.of("authorization_policies"))?,
            health: health(status).map_err(|p| p.of("status"))?,
            locality: locality.map(Into::into).unwrap_or_default(),
            network_mode: mode(network_mode).map_err(|p| p.of("network_mode"))?,
            waypoint: waypoint.map(TryInto::try_into).transpose().map_err(|p: Problem| p.of("waypoint"))?,
            network_gateway: network_gateway
                .map(TryInto::try_into)
                .transpose()
                .map_err(|p: Problem| p.of("network_gateway"))?,
            application_tunnel: application_tunnel
                .map(TryInto::try_into)
                .transpose()
                .map_err(|p: Problem| p.of("application_tunnel"))?,
            capacity: capacity.unwrap_or(DEFAULT_CAPACITY),
        })
    }
}

impl From<&Workload> for wire::Workload {
    fn from(workload: &Workload) -> Self {
        let Workload {
            uid,
            name,
            identity: Identity { trust_domain, namespace, service_account, .. },
            addresses,
            network,
            tunnel,
            native_tunnel,
            node,
            canonical_name,
            canonical_revision,
            workload_type,
            workload_name,
            cluster_id,
            hostname,
            services,
            authorization_policies,
            health,
            locality,
            network_mode,
            waypoint,
            network_gateway,
            application_tunnel,
            capacity,
        } = workload;
        Self {
            name: name.to_string(),
            namespace: namespace.to_string(),
            addresses: addresses.iter().copied().map(ip_bytes).collect(),
            network: network.to_string(),
            tunnel_protocol: wire_tunnel(*tunnel).into(),
            trust_domain: unless_default(trust_domain, DEFAULT_TRUST_DOMAIN),
            service_account: unless_default(service_account, DEFAULT_SERVICE_ACCOUNT),
            waypoint: waypoint.as_ref().map(Into::into),
            node: node.to_string(),
            canonical_name: canonical_name.to_string(),
            canonical_revision: canonical_revision.to_string(),
            workload_type: wire_kind(*workload_type).into(),
            workload_name: workload_name.to_string(),
            native_tunnel: *native_tunnel,
            authorization_policies: authorization_policies.iter().map(ToString::to_string).collect(),
            status: wire_health(*health).into(),
            cluster_id: cluster_id.to_string(),
            network_gateway: network_gateway.as_ref().map(Into::into),
            uid: uid.to_string(),
            hostname: hostname.to_string(),
            services: services.iter().map(|(name, ports)| (name.to_string(), wire_ports(ports))).collect(),
            application_tunnel: application_tunnel.map(Into::into),
            locality: (*locality != Locality::default()).then(|| locality.into()),
            network_mode: wire_mode(*network_mode).into(),
            extensions: Vec::new(),
            capacity: (*capacity != DEFAULT_CAPACITY).then_some(*capacity),
        }
    }
}

/// Empty parts stand for their defaults, as Istio's control plane leaves those out.
fn identity(trust_domain: String, namespace: String, service_account: String) -> Result<Identity, Problem> {
    let or = |value: String, default: &str| if value.is_empty() { default.to_owned() } else { value };
    Ok(Identity::new(
        or(trust_domain, DEFAULT_TRUST_DOMAIN),
        namespace,
        or(service_account, DEFAULT_SERVICE_ACCOUNT),
    )?)
}

fn unless_default(value: &str, default: &str) -> String {
    if value == default { String::new() } else { value.to_owned() }
}

fn policies(names: &[String]) -> Result<Vec<PolicyName>, Problem> {
    let name = |name: &String| {
        let (namespace, name) = halves(name)?;
        Ok(PolicyName { namespace: namespace.into(), name: name.into() })
    };
    names.iter().map(name).collect()
}

fn backed(
    services: BTreeMap<String, wire::PortList>,
) -> Result<BTreeMap<ServiceName, Vec<PortMapping>>, Problem> {
    let entry = |(name, wire::PortList { ports }): (String, wire::PortList)| {
        let (namespace, hostname) = halves(&name)?;
        let mappings =
            ports.into_iter().map(mapping).filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok((ServiceName { namespace: namespace.into(), hostname: hostname.into() }, mappings))
    };
    services.into_iter().map(entry).collect()
}

/// A target port of zero maps nothing: the service's own target port holds.
fn mapping(ports: wire::Port) -> Result<Option<PortMapping>, Problem> {
    let wire::Port { service_port, target_port, app_protocol: _ } = ports; // The service says what is spoken.
    let service_port = port(service_port)?;
    let target_port = optional_port(target_port)?;
    Ok(target_port.map(|target_port| PortMapping { service_port, target_port }))
}

fn wire_ports(ports: &[PortMapping]) -> wire::PortList {
    let port = |PortMapping { service_port, target_port }: &PortMapping| wire::Port {
        service_port: u32::from(*service_port),
        target_port: u32::from(*target_port),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    wire::PortList { ports: ports.iter().map(port).collect() }
}

fn tunnel(number: i32) -> Result<TunnelProtocol, Problem> {
    match known(number)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        // A sidecar's tunnel: sending plaintext to it, or HBONE, would be wrong in different ways.
        wire::TunnelProtocol::LegacyIstioMtls => Err(Problem::Enum { number }),
    }
}

fn wire_tunnel(tunnel: TunnelProtocol) -> wire::TunnelProtocol {
    match tunnel {
        TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        TunnelProtocol::None => wire::TunnelProtocol::None,
    }
}

/// The owner's kind is a word in telemetry. A kind that we do not know must not cost the workload: an unknown address
/// would be dialled in plaintext.
fn kind(number: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(number) {
        Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    }
}

fn wire_kind(kind: WorkloadType) -> wire::WorkloadType {
    match kind {
        WorkloadType::CronJob => wire::WorkloadType::Cronjob,
        WorkloadType::Deployment => wire::WorkloadType::Deployment,
        WorkloadType::Job => wire::WorkloadType::Job,
        WorkloadType::Pod => wire::WorkloadType::Pod,
    }
}

fn health(number: i32) -> Result<Health, Problem> {
    Ok(match known(number)? {
        wire::WorkloadStatus::Healthy => Health::Healthy,
        wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
    })
}

fn wire_health(health: Health) -> wire::WorkloadStatus {
    match health {
        Health::Healthy => wire::WorkloadStatus::Healthy,
        Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
    }
}

fn mode(number: i32) -> Result<NetworkMode, Problem> {
    Ok(match known(number)? {
        wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        wire::NetworkMode::Standard => NetworkMode::Standard,
    })
}

fn wire_mode(mode: NetworkMode) -> wire::NetworkMode {
    match mode {
        NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        NetworkMode::Standard => wire::NetworkMode::Standard,
    }
}

impl From<wire::Locality> for Locality {
    fn from(wire::Locality { region, zone, subzone }: wire::Locality) -> Self {
        Self { region: region.into(), zone: zone.into(), subzone: subzone.into() }
    }
}

impl From<&Locality> for wire::Locality {
    fn from(Locality { region, zone, subzone }: &Locality) -> Self {
        Self { region: region.to_string(), zone: zone.to_string(), subzone: subzone.to_string() }
    }
}

impl TryFrom<wire::ApplicationTunnel> for ApplicationTunnel {
    type Error = Problem;

    fn try_from(
        wire::ApplicationTunnel { protocol, port }: wire::ApplicationTunnel,
    ) -> Result<Self, Problem> {
        let protocol = match known(protocol)? {
            wire::application_tunnel::Protocol::None => ApplicationProtocol::None,
            wire::application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
        };
        Ok(Self { protocol, port: optional_port(port)? })
    }
}

impl From<ApplicationTunnel> for wire::ApplicationTunnel {
    fn from(ApplicationTunnel { protocol, port }: ApplicationTunnel) -> Self {
        let protocol = match protocol {
            ApplicationProtocol::None => wire::application_tunnel::Protocol::None,
            ApplicationProtocol::Proxy => wire::application_tunnel::Protocol::Proxy,
        };
        Self { protocol: protocol.into(), port: port.map_or(0, u32::from) }
    }
}
