//! What a DNS question of an enrolled pod is answered with: mesh names here, everything else by the pod's own resolver.
//!
//! A function of the question and the mesh snapshot. Owns no sockets and no cache.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::service::{HealthPolicy, IpFamilies, Service, Visibility};
use model::store::Mesh;
use model::workload::{Health, Workload};

/// Half a minute, as cluster DNS serves: a service's address changes rarely, a headless service's endpoints do.
const TTL_SECONDS: u32 = 30;
/// What a client without EDNS can take over UDP (RFC 1035 4.2.1).
const PLAIN_UDP: u16 = 512;
/// The most that we say in one UDP datagram, whatever the client offers: what crosses any path unfragmented.
const MOST_UDP: u16 = 1232;

/// What becomes of a question.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The reply.
    Reply(Box<Message>),
    /// Not a name of the mesh: ask the resolver that the pod asked.
    Forward,
}

/// Answers `question`, asked by `client`, for a cluster whose domain is `domain` (`cluster.local`).
pub(crate) fn answer(mesh: &Mesh, client: &Workload, domain: &str, question: &Message) -> Answer {
    let [query] = question.queries.as_slice() else { return Answer::Forward };
    if question.metadata.op_code != OpCode::Query || query.query_class != DNSClass::IN {
        return Answer::Forward;
    }
    let family = if query.query_type == RecordType::A {
        Family::V4
    } else if query.query_type == RecordType::AAAA {
        Family::V6
    } else {
        // Other types are the resolver's: it knows the cluster's SRV and PTR records.
        return Answer::Forward;
    };
    let asked = query.name.to_ascii().to_ascii_lowercase();
    let asked = asked.trim_end_matches('.');
    let Some(found) = find(mesh, client, domain, asked) else { return Answer::Forward };
    let Some(addresses) = addresses(mesh, client, &found.service, family) else { return Answer::Forward };
    let mut reply = reply_to(question);
    let owner = match &found.canonical {
        Some(host) => {
            let Ok(target) = Name::from_ascii(format!("{host}.")) else { return Answer::Forward };
            let cname = RData::CNAME(CNAME(target.clone()));
            reply.answers.push(Record::from_rdata(query.name.clone(), TTL_SECONDS, cname));
            target
        }
        None => query.name.clone(),
    };
    reply.answers.extend(addresses.into_iter().map(|address| {
        let data = match address {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        Record::from_rdata(owner.clone(), TTL_SECONDS, data)
    }));
    Answer::Reply(Box::new(reply))
}

/// The service that a name stands for when a pod asks, and its addresses as that pod is told; `None` when the mesh has
/// nothing to say of it.
pub(crate) fn resolve(
    mesh: &Mesh,
    client: &Workload,
    domain: &str,
    name: &str,
) -> Option<(Arc<Service>, Vec<IpAddr>)> {
    let Found { service, .. } = find(mesh, client, domain, &name.to_ascii_lowercase())?;
    let families = [Family::V4, Family::V6];
    let told = families.into_iter().filter_map(|family| addresses(mesh, client, &service, family)).flatten();
    let told: Vec<IpAddr> = told.collect();
    (!told.is_empty()).then_some((service, told))
}

/// A reply that says only that we could not help.
pub(crate) fn failure(question: &Message, code: ResponseCode) -> Message {
    let mut reply = reply_to(question);
    reply.metadata.response_code = code;
    reply.metadata.authoritative = false;
    reply
}

/// How many bytes of reply the asker takes over UDP.
pub(crate) fn udp_limit(question: &Message) -> usize {
    let offered = question.edns.as_ref().map_or(PLAIN_UDP, Edns::max_payload);
    usize::from(offered.clamp(PLAIN_UDP, MOST_UDP))
}

fn reply_to(question: &Message) -> Message {
    let mut reply = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.queries = question.queries.clone();
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MOST_UDP);
        reply.edns = Some(edns);
    }
    reply
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, ip: &IpAddr) -> bool {
        (self == Self::V4) == ip.is_ipv4()
    }

    fn is_offered(self, families: IpFamilies) -> bool {
        match families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::V4 => self == Self::V4,
            IpFamilies::V6 => self == Self::V6,
        }
    }
}

struct Found {
    service: Arc<Service>,
    /// The name without the search domain that the client's resolver appended; `None` when it was asked for as it is.
    canonical: Option<String>,
}

/// The service that a name stands for: as asked, by Kubernetes' short forms, and with a search domain taken off again.
fn find(mesh: &Mesh, client: &Workload, domain: &str, asked: &str) -> Option<Found> {
    let namespace = client.namespace();
    for host in expansions(asked, namespace, domain) {
        if let Some(service) = visible(mesh, client, &host) {
            return Some(Found { service, canonical: None });
        }
    }
    let searched = [format!(".{namespace}.svc.{domain}"), format!(".svc.{domain}"), format!(".{domain}")];
    for suffix in &searched {
        let Some(stripped) = asked.strip_suffix(suffix.as_str()) else { continue };
        if let Some(service) = visible(mesh, client, stripped) {
            return Some(Found { service, canonical: Some(stripped.to_owned()) });
        }
    }
    wildcard(mesh, client, asked)
}

/// `cart`, `cart.shop` and `cart.shop.svc` stand for `cart.shop.svc.cluster.local`.
fn expansions(asked: &str, namespace: &str, domain: &str) -> Vec<String> {
    let mut hosts = vec![asked.to_owned()];
    let labels: Vec<&str> = asked.split('.').collect();
    match labels.as_slice() {
        [_] => hosts.push(format!("{asked}.{namespace}.svc.{domain}")),
        [_, _] => hosts.push(format!("{asked}.svc.{domain}")),
        [_, _, "svc"] => hosts.push(format!("{asked}.{domain}")),
        _ => {}
    }
    hosts
}

/// `*.example.com` answers for every name below it, the longest wildcard first.
fn wildcard(mesh: &Mesh, client: &Workload, asked: &str) -> Option<Found> {
    let mut rest = asked;
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some(service) = visible(mesh, client, &format!("*.{parent}")) {
            return Some(Found { service, canonical: None });
        }
        rest = parent;
    }
    None
}

/// Among services of one hostname: the client's namespace first, then the canonical one, then the first by namespace.
fn visible(mesh: &Mesh, client: &Workload, host: &str) -> Option<Arc<Service>> {
    mesh.services_by_hostname(host)
        .into_iter()
        .filter(|service| {
            service.visibility == Visibility::Public || service.id.namespace == *client.namespace()
        })
        .min_by_key(|service| {
            (service.id.namespace != *client.namespace(), !service.canonical, service.id.namespace.clone())
        })
}

/// `None` when the mesh has nothing to say of the service's addresses; empty when it has none of this family.
fn addresses(mesh: &Mesh, client: &Workload, service: &Service, family: Family) -> Option<Vec<IpAddr>> {
    let offered = family.is_offered(service.ip_families);
    if service.vips.is_empty() {
        // Headless: the addresses of its endpoints, of those that are ready unless it wants all.
        let endpoints =
            mesh.endpoints(&service.id).filter(|endpoint| takes_clients(service, endpoint.workload));
        let mut addresses: Vec<IpAddr> = endpoints
            .filter(|endpoint| endpoint.workload.network == client.network)
            .filter_map(|endpoint| endpoint.workload.addresses.iter().find(|ip| family.has(ip)).copied())
            .filter(|_| offered)
            .collect();
        if addresses.is_empty() && mesh.endpoints(&service.id).next().is_none() {
            return None;
        }
        fastrand::shuffle(&mut addresses);
        return Some(addresses);
    }
    let hosts = service.vips.iter().filter(|vip| vip.network == client.network && is_host(&vip.block));
    let ips: Vec<IpAddr> = hosts.map(|vip| vip.block.addr()).collect();
    if ips.is_empty() {
        return None;
    }
    Some(ips.into_iter().filter(|ip| offered && family.has(ip)).collect())
}

fn takes_clients(service: &Service, endpoint: &Workload) -> bool {
    match service.load_balancing.health {
        HealthPolicy::AllowAll => true,
        HealthPolicy::OnlyHealthy => endpoint.health == Health::Healthy,
    }
}

fn is_host(block: &ipnet::IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use model::identity::Identity;
    use model::service::{AppProtocol, LoadBalancing, ServiceName, ServicePort, Vip};
    use model::store::Update;
    use model::workload::{Locality, NetworkMode, TunnelProtocol, WorkloadType, WorkloadUid};

    use super::*;

    fn workload(name: &str, namespace: &str, ips: &[&str], services: &[&str]) -> Workload {
        let service = |host: &&str| {
            let id = ServiceName { namespace: namespace.into(), hostname: (*host).into() };
            (id, Vec::new())
        };
        Workload {
            uid: WorkloadUid(format!("Kubernetes//Pod/{namespace}/{name}").into()),
            name: name.into(),
            identity: Identity::new("cluster.local", namespace, "default").unwrap(),
            addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            network: "".into(),
            tunnel: TunnelProtocol::Hbone,
            native_tunnel: false,
            node: "n1".into(),
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_type: WorkloadType::Pod,
            workload_name: name.into(),
            cluster_id: "Kubernetes".into(),
            hostname: "".into(),
            services: services.iter().map(service).collect(),
            authorization_policies: Vec::new(),
            health: Health::Healthy,
            locality: Locality::default(),
            network_mode: NetworkMode::Standard,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            capacity: 1,
        }
    }

    fn service(namespace: &str, host: &str, vips: &[&str]) -> Service {
        Service {
            id: ServiceName { namespace: namespace.into(), hostname: host.into() },
            name: host.split('.').next().unwrap().into(),
            vips: vips.iter().map(|ip| Vip { network: "".into(), block: ip.parse().unwrap() }).collect(),
            ports: vec![ServicePort { port: 80, target_port: Some(8080), protocol: AppProtocol::Unknown }],
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: true,
            ingress_use_waypoint: false,
            visibility: Visibility::Public,
        }
    }

    fn mesh() -> (Mesh, Workload) {
        let client = workload("client", "shop", &["10.0.0.9"], &[]);
        let mut mesh = Mesh::default();
        let headless = "db.shop.svc.cluster.local";
        mesh.apply([
            Update::Workload(client.clone()),
            Update::Service(service("shop", "cart.shop.svc.cluster.local", &["10.96.0.1/32", "fd00::1/128"])),
            Update::Service(service("shop", headless, &[])),
            Update::Workload(workload("db-0", "shop", &["10.0.0.1", "fd01::1"], &[headless])),
            Update::Workload(workload("db-1", "shop", &["10.0.0.2"], &[headless])),
            Update::Workload(Workload {
                health: Health::Unhealthy,
                ..workload("db-2", "shop", &["10.0.0.3"], &[headless])
            }),
            Update::Service(service("bank", "api.example.com", &["240.0.0.1/32"])),
            Update::Service(service("bank", "*.example.org", &["240.0.0.2/32"])),
        ]);
        (mesh, client)
    }

    /// Asks and writes the answers down: addresses sorted, `forward`, or `empty`.
    fn check(name: &str, kind: RecordType, expected: &str) {
        let (mesh, client) = mesh();
        let mut question = Message::query();
        question.add_query(hickory_proto::op::Query::query(Name::from_ascii(name).unwrap(), kind));
        let said = match answer(&mesh, &client, "cluster.local", &question) {
            Answer::Forward => "forward".to_owned(),
            Answer::Reply(reply) => {
                assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
                let mut data: Vec<String> =
                    reply.answers.iter().map(|record| record.data.to_string()).collect();
                data.sort();
                if data.is_empty() { "empty".to_owned() } else { data.join(" ") }
            }
        };
        assert_eq!(said, expected, "{name} {kind}");
    }

    #[test]
    fn mesh_names_are_answered_in_all_their_forms() {
        check("cart.shop.svc.cluster.local.", RecordType::A, "10.96.0.1");
        check("Cart.Shop.svc.cluster.local.", RecordType::AAAA, "fd00::1");
        check("cart.", RecordType::A, "10.96.0.1");
        check("cart.shop.", RecordType::A, "10.96.0.1");
        check("cart.shop.svc.", RecordType::A, "10.96.0.1");
        check("api.example.com.", RecordType::A, "240.0.0.1");
        check("api.example.com.", RecordType::AAAA, "empty");
        check("anything.example.org.", RecordType::A, "240.0.0.2");
    }

    #[test]
    fn headless_services_answer_with_their_ready_endpoints() {
        check("db.shop.svc.cluster.local.", RecordType::A, "10.0.0.1 10.0.0.2");
        check("db.shop.svc.cluster.local.", RecordType::AAAA, "fd01::1");
    }

    #[test]
    fn a_search_domain_is_taken_off_again() {
        check("api.example.com.shop.svc.cluster.local.", RecordType::A, "240.0.0.1 api.example.com.");
    }

    #[test]
    fn everything_else_is_the_resolvers() {
        check("kubernetes.default.svc.cluster.local.", RecordType::A, "forward");
        check("example.net.", RecordType::A, "forward");
        check("cart.shop.svc.cluster.local.", RecordType::SRV, "forward");
        check("pod-1.db.shop.svc.cluster.local.", RecordType::A, "forward");
    }

    #[test]
    fn udp_answers_respect_what_the_client_takes() {
        let mut question = Message::query();
        assert_eq!(udp_limit(&question), 512);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        question.set_edns(edns);
        assert_eq!(udp_limit(&question), 1232);
    }
}
