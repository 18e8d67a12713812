//! What is known of the mesh in the JSON form that Istio's tools read (`config_dump`).
//!
//! Key names and spellings are that interface's; values come from the snapshot as they are.

use std::collections::BTreeMap;
use std::time::SystemTime;

use identity::Certificates;
use model::policy::{Action, Clause, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};
use model::service::{
    Affinity, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancingMode, Service,
    Visibility,
};
use model::store::Mesh;
use model::workload::{Health, NetworkMode, TunnelProtocol, Workload};
use serde_json::{Map, Value, json};

/// What every proxy knows; each adds what is its own.
#[must_use]
pub fn all(mesh: &Mesh, held: &Certificates) -> Map<String, Value> {
    let version = json!({ "version": env!("CARGO_PKG_VERSION"), "cryptoProvider": "aws-lc-rs" });
    let all = [
        ("workloads", json!(workloads(mesh))),
        ("services", json!(services(mesh))),
        ("policies", json!(policies(mesh))),
        ("certificates", json!(certificates(held))),
        ("version", version),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The workloads known.
#[must_use]
pub fn workloads(mesh: &Mesh) -> Vec<Value> {
    mesh.all_workloads().map(|w| workload(&w)).collect()
}

/// The services known.
#[must_use]
pub fn services(mesh: &Mesh) -> Vec<Value> {
    mesh.all_services().map(|s| service(mesh, &s)).collect()
}

/// The policies known.
#[must_use]
pub fn policies(mesh: &Mesh) -> Vec<Value> {
    mesh.all_policies().map(|p| policy(&p)).collect()
}

/// The certificates held, without keys.
#[must_use]
pub fn certificates(certificates: &Certificates) -> Vec<Value> {
    let seconds =
        |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let states = certificates.states().into_iter();
    let shown = states.map(|state| {
        let status = match (&state.certificate, &state.failure) {
            (Some(_), _) => "Available".to_owned(),
            (None, Some(failure)) => format!("Unavailable: {failure}"),
            (None, None) => "Initializing".to_owned(),
        };
        let chain = state.certificate.map(|certificate| {
            json!({
                "serialNumber": certificate.serial,
                "validFrom": seconds(certificate.not_before),
                "expirationTime": seconds(certificate.not_after),
            })
        });
        json!({
            "identity": state.identity.to_string(),
            "state": status,
            "certChain": chain.into_iter().collect::<Vec<_>>(),
            "lastFailure": state.failure.map(|failure| failure.to_string()),
        })
    });
    shown.collect()
}

fn gateway(address: &GatewayAddress) -> Value {
    let destination = match &address.destination {
        GatewayDestination::Address(address) => address.to_string(),
        GatewayDestination::Service(name) => name.to_string(),
    };
    json!({ "destination": destination, "hboneMtlsPort": address.hbone_port })
}

fn workload(w: &Workload) -> Value {
    let services: BTreeMap<String, BTreeMap<u16, u16>> = w
        .services
        .iter()
        .map(|(name, ports)| {
            (name.to_string(), ports.iter().map(|port| (port.service_port, port.target_port)).collect())
        })
        .collect();
    json!({
        "uid": &*w.uid.0,
        "name": &*w.name,
        "namespace": &**w.namespace(),
        "serviceAccount": &*w.identity.service_account,
        "trustDomain": &*w.identity.trust_domain,
        "workloadIps": w.addresses,
        "network": &*w.network,
        "networkMode": match w.network_mode { NetworkMode::Standard => "Standard", NetworkMode::HostNetwork => "HostNetwork" },
        "protocol": match w.tunnel { TunnelProtocol::Hbone => "HBONE", TunnelProtocol::None => "TCP" },
        "nativeTunnel": w.native_tunnel,
        "node": &*w.node,
        "workloadName": &*w.workload_name,
        "workloadType": w.workload_type.as_str(),
        "canonicalName": &*w.canonical_name,
        "canonicalRevision": &*w.canonical_revision,
        "clusterId": &*w.cluster_id,
        "hostname": &*w.hostname,
        "status": match w.health { Health::Healthy => "Healthy", Health::Unhealthy => "Unhealthy" },
        "authorizationPolicies": w.authorization_policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "locality": { "region": &*w.locality.region, "zone": &*w.locality.zone, "subzone": &*w.locality.subzone },
        "services": services,
        "waypoint": w.waypoint.as_ref().map(gateway),
        "networkGateway": w.network_gateway.as_ref().map(gateway),
        "capacity": w.capacity,
    })
}

fn service(mesh: &Mesh, s: &Service) -> Value {
    let full = |block: &ipnet::IpNet| block.prefix_len() == block.max_prefix_len();
    let (hosts, blocks): (Vec<_>, Vec<_>) = s.vips.iter().partition(|vip| full(&vip.block));
    let endpoints: BTreeMap<String, Value> = mesh
        .endpoints(&s.id)
        .map(|endpoint| {
            let uid = endpoint.workload.uid.to_string();
            let ports: BTreeMap<u16, u16> =
                endpoint.ports.iter().map(|port| (port.service_port, port.target_port)).collect();
            (uid.clone(), json!({ "workloadUid": uid, "port": ports }))
        })
        .collect();
    let weighted = s.weighted_waypoints.iter().map(|waypoint| {
        let mut shown = gateway(&waypoint.destination);
        shown["weight"] = json!(waypoint.weight);
        shown
    });
    json!({
        "name": &*s.name,
        "namespace": &*s.id.namespace,
        "hostname": &*s.id.hostname,
        "vips": hosts.iter().map(|vip| format!("{}/{}", vip.network, vip.block.addr())).collect::<Vec<_>>(),
        "cidrVips": blocks.iter().map(|vip| json!({ "network": &*vip.network, "cidr": vip.block.to_string() })).collect::<Vec<_>>(),
        "ports": s.ports.iter().map(|port| (port.port.to_string(), port.target_port.unwrap_or(0))).collect::<BTreeMap<_, _>>(),
        "endpoints": endpoints,
        "subjectAltNames": s.subject_alt_names.iter().map(|name| &**name).collect::<Vec<_>>(),
        "waypoint": s.waypoint.as_ref().map(gateway),
        "weightedWaypoints": weighted.collect::<Vec<_>>(),
        "loadBalancer": {
            "routingPreferences": s.load_balancing.preference.iter().map(|scope| format!("{scope:?}")).collect::<Vec<_>>(),
            "mode": match s.load_balancing.mode {
                LoadBalancingMode::Any => "Standard",
                LoadBalancingMode::Failover => "Failover",
                LoadBalancingMode::Passthrough => "Passthrough",
                LoadBalancingMode::Strict => "Strict",
            },
            "healthPolicy": match s.load_balancing.health {
                HealthPolicy::AllowAll => "AllowAll",
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
            },
            "clientAffinity": s.load_balancing.affinity == Affinity::Client,
        },
        "ipFamilies": match s.ip_families {
            IpFamilies::Automatic => Value::Null,
            IpFamilies::Dual => json!("Dual"),
            IpFamilies::V4 => json!("IPv4"),
            IpFamilies::V6 => json!("IPv6"),
        },
        "canonical": s.canonical,
        "visibility": match s.visibility { Visibility::Public => "Public", Visibility::Namespace => "Namespace" },
    })
}

fn policy(p: &Policy) -> Value {
    let clause = |clause: &Clause| clause.matches.iter().map(condition).collect::<Vec<_>>();
    let rules = p.rules.iter().map(|rule| rule.clauses.iter().map(clause).collect::<Vec<_>>());
    json!({
        "name": &*p.id.name,
        "namespace": &*p.id.namespace,
        "scope": match p.scope {
            PolicyScope::Global => "Global",
            PolicyScope::Namespace => "Namespace",
            PolicyScope::Selector => "WorkloadSelector",
        },
        "action": match p.action { Action::Allow => "Allow", Action::Deny => "Deny" },
        "rules": rules.collect::<Vec<_>>(),
        "dryRun": p.dry_run,
    })
}

fn condition(m: &Match) -> Value {
    let strings = |list: &[StringMatch]| {
        let shown = list.iter().map(|entry| match entry {
            StringMatch::Exact(text) => json!({ "Exact": &**text }),
            StringMatch::Prefix(text) => json!({ "Prefix": &**text }),
            StringMatch::Presence => json!({ "Presence": [] }),
            StringMatch::Suffix(text) => json!({ "Suffix": &**text }),
        });
        shown.collect::<Vec<_>>()
    };
    let accounts = |list: &[ServiceAccountMatch]| {
        let shown = list.iter().map(
            |entry| json!({ "namespace": &*entry.namespace, "serviceAccount": &*entry.service_account }),
        );
        shown.collect::<Vec<_>>()
    };
    let blocks = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut shown = json!({
        "namespaces": strings(&m.namespaces),
        "notNamespaces": strings(&m.not_namespaces),
        "serviceAccounts": accounts(&m.service_accounts),
        "notServiceAccounts": accounts(&m.not_service_accounts),
        "principals": strings(&m.principals),
        "notPrincipals": strings(&m.not_principals),
        "sourceIps": blocks(&m.source_ips),
        "notSourceIps": blocks(&m.not_source_ips),
        "destinationIps": blocks(&m.destination_ips),
        "notDestinationIps": blocks(&m.not_destination_ips),
        "destinationPorts": m.destination_ports,
        "notDestinationPorts": m.not_destination_ports,
        "unintelligible": m.unintelligible,
    });
    if let Value::Object(fields) = &mut shown {
        // What is not asked for is left out, as Istio's tools expect.
        fields.retain(|_, value| {
            !matches!(value, Value::Array(list) if list.is_empty()) && *value != Value::Bool(false)
        });
    }
    shown
}
