//! Arbitrary model values, such as a control plane could hold them.

use std::net::IpAddr;

use api::{Enrolment, PodReport, PodState};
use ipnet::IpNet;
use model::Str;
use model::address::NetworkAddress;
use model::identity::Identity;
use model::policy::{
    Action, Clause, Match, Policy, PolicyName, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};
use model::service::{
    Affinity, AppProtocol, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing,
    LoadBalancingMode, PortMapping, Scope, Service, ServiceName, ServicePort, Vip, Visibility,
    WeightedWaypoint,
};
use model::workload::{
    ApplicationProtocol, ApplicationTunnel, Health, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadType, WorkloadUid,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = Str> {
    prop_oneof![Just("default"), Just("cluster.local"), Just("cart"), Just("shop"), Just("n1")]
        .prop_map(Str::from)
}

fn text() -> impl Strategy<Value = Str> {
    "\\PC{0,6}".prop_map(Str::from)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_canonical()),
    ]
}

fn block() -> impl Strategy<Value = IpNet> {
    (ip(), 0..=128u8).prop_map(|(ip, length)| {
        let bits = if ip.is_ipv4() { length % 33 } else { length };
        // Clearing host bits may leave the mapped range's prefix; the wire's block is canonical as well.
        let net = IpNet::new(ip, bits).expect("within the address").trunc();
        if net.addr().to_canonical() == net.addr() { net } else { IpNet::from(net.addr().to_canonical()) }
    })
}

fn identity() -> impl Strategy<Value = Identity> {
    (name(), name(), name()).prop_map(|(td, ns, sa)| Identity::new(td, ns, sa).expect("valid parts"))
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (name(), name()).prop_map(|(namespace, hostname)| ServiceName { namespace, hostname })
}

fn policy_name() -> impl Strategy<Value = PolicyName> {
    (name(), name()).prop_map(|(namespace, name)| PolicyName { namespace, name })
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let address = (name(), ip()).prop_map(|(network, ip)| NetworkAddress { network, ip });
    let destination = prop_oneof![
        service_name().prop_map(GatewayDestination::Service),
        address.prop_map(GatewayDestination::Address)
    ];
    (destination, 1..=u16::MAX)
        .prop_map(|(destination, hbone_port)| GatewayAddress { destination, hbone_port })
}

fn mapping() -> impl Strategy<Value = PortMapping> {
    (1..=u16::MAX, 1..=u16::MAX)
        .prop_map(|(service_port, target_port)| PortMapping { service_port, target_port })
}

fn workload_type() -> impl Strategy<Value = WorkloadType> {
    prop_oneof![
        Just(WorkloadType::CronJob),
        Just(WorkloadType::Deployment),
        Just(WorkloadType::Job),
        Just(WorkloadType::Pod)
    ]
}

fn application_tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    let protocol = prop_oneof![Just(ApplicationProtocol::None), Just(ApplicationProtocol::Proxy)];
    (protocol, option::of(1..=u16::MAX)).prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

pub(crate) fn workload() -> impl Strategy<Value = Workload> {
    let who = (name(), name(), identity(), vec(ip(), 0..3), name());
    let texts = (text(), text(), text(), text(), text(), text());
    let kinds = (workload_type(), any::<[bool; 4]>(), any::<u32>());
    let lists = (btree_map(service_name(), vec(mapping(), 0..3), 0..3), vec(policy_name(), 0..3));
    let gateways = (option::of(gateway()), option::of(gateway()), option::of(application_tunnel()));
    let place = (text(), text(), text());
    (who, texts, kinds, lists, gateways, place).prop_map(|(who, texts, kinds, lists, gateways, place)| {
        Workload {
            uid: WorkloadUid(who.0),
            name: who.1,
            identity: who.2,
            addresses: who.3,
            network: who.4,
            tunnel: if kinds.1[0] { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            native_tunnel: kinds.1[1],
            node: texts.0,
            canonical_name: texts.1,
            canonical_revision: texts.2,
            workload_type: kinds.0,
            workload_name: texts.3,
            cluster_id: texts.4,
            hostname: texts.5,
            services: lists.0,
            authorization_policies: lists.1,
            health: if kinds.1[2] { Health::Healthy } else { Health::Unhealthy },
            locality: Locality { region: place.0, zone: place.1, subzone: place.2 },
            network_mode: if kinds.1[3] { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            waypoint: gateways.0,
            network_gateway: gateways.1,
            application_tunnel: gateways.2,
            capacity: kinds.2,
        }
    })
}

fn protocol() -> impl Strategy<Value = AppProtocol> {
    prop_oneof![
        Just(AppProtocol::Grpc),
        Just(AppProtocol::Http1),
        Just(AppProtocol::Http2),
        Just(AppProtocol::Tcp),
        Just(AppProtocol::Tls),
        Just(AppProtocol::Unknown)
    ]
}

fn load_balancing() -> impl Strategy<Value = LoadBalancing> {
    let scope = prop_oneof![
        Just(Scope::Cluster),
        Just(Scope::Network),
        Just(Scope::Node),
        Just(Scope::Region),
        Just(Scope::Subzone),
        Just(Scope::Zone)
    ];
    let mode = prop_oneof![
        Just(LoadBalancingMode::Any),
        Just(LoadBalancingMode::Failover),
        Just(LoadBalancingMode::Passthrough),
        Just(LoadBalancingMode::Strict)
    ];
    let health = prop_oneof![Just(HealthPolicy::AllowAll), Just(HealthPolicy::OnlyHealthy)];
    let affinity = prop_oneof![Just(Affinity::Client), Just(Affinity::None)];
    (vec(scope, 0..3), mode, health, affinity)
        .prop_map(|(preference, mode, health, affinity)| LoadBalancing { preference, mode, health, affinity })
}

pub(crate) fn service() -> impl Strategy<Value = Service> {
    let vip = (name(), block()).prop_map(|(network, block)| Vip { network, block });
    let port = (1..=u16::MAX, option::of(1..=u16::MAX), protocol())
        .prop_map(|(port, target_port, protocol)| ServicePort { port, target_port, protocol });
    let weighted =
        (gateway(), any::<u32>()).prop_map(|(destination, weight)| WeightedWaypoint { destination, weight });
    let families = prop_oneof![
        Just(IpFamilies::Automatic),
        Just(IpFamilies::Dual),
        Just(IpFamilies::V4),
        Just(IpFamilies::V6)
    ];
    let names = (service_name(), text(), vec(text(), 0..3));
    let lists = (vec(vip, 0..3), vec(port, 0..3), vec(weighted, 0..3));
    let rest = (option::of(gateway()), load_balancing(), families, any::<[bool; 3]>());
    (names, lists, rest).prop_map(|(names, lists, rest)| Service {
        id: names.0,
        name: names.1,
        vips: lists.0,
        ports: lists.1,
        subject_alt_names: names.2,
        waypoint: rest.0,
        weighted_waypoints: lists.2,
        load_balancing: rest.1,
        ip_families: rest.2,
        canonical: rest.3[0],
        ingress_use_waypoint: rest.3[1],
        visibility: if rest.3[2] { Visibility::Namespace } else { Visibility::Public },
    })
}

fn conditions() -> impl Strategy<Value = Match> {
    let string = || {
        let one = prop_oneof![
            text().prop_map(StringMatch::Exact),
            text().prop_map(StringMatch::Prefix),
            Just(StringMatch::Presence),
            text().prop_map(StringMatch::Suffix)
        ];
        vec(one, 0..2)
    };
    let blocks = || vec(block(), 0..2);
    let ports = || vec(any::<u16>(), 0..2);
    let accounts = || {
        let one = (name(), name())
            .prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
        vec(one, 0..2)
    };
    let strings = (string(), string(), string(), string());
    let places = (blocks(), blocks(), blocks(), blocks(), ports(), ports());
    (strings, places, accounts(), accounts(), proptest::bool::weighted(0.2)).prop_map(
        |(s, p, yes, no, odd)| Match {
            namespaces: s.0,
            not_namespaces: s.1,
            principals: s.2,
            not_principals: s.3,
            source_ips: p.0,
            not_source_ips: p.1,
            destination_ips: p.2,
            not_destination_ips: p.3,
            destination_ports: p.4,
            not_destination_ports: p.5,
            service_accounts: yes,
            not_service_accounts: no,
            unintelligible: odd,
        },
    )
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let one = prop_oneof![3 => conditions(), 1 => any::<bool>().prop_map(|unintelligible| Match { unintelligible, ..Match::default() })];
    let clause = vec(one, 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope =
        prop_oneof![Just(PolicyScope::Global), Just(PolicyScope::Namespace), Just(PolicyScope::Selector)];
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    (policy_name(), scope, action, vec(rule, 0..3), any::<bool>())
        .prop_map(|(id, scope, action, rules, dry_run)| Policy { id, scope, action, rules, dry_run })
}

pub(crate) fn enrolment() -> impl Strategy<Value = Enrolment> {
    (name(), name(), identity(), vec(ip(), 0..3), any::<bool>(), text(), name()).prop_map(
        |(uid, name, identity, addresses, enrol, reason, workload)| Enrolment {
            uid,
            name,
            identity,
            addresses,
            enrol,
            reason,
            workload: WorkloadUid(workload),
        },
    )
}

pub(crate) fn report() -> impl Strategy<Value = PodReport> {
    let state = prop_oneof![
        Just(PodState::Enrolled),
        Just(PodState::Failed),
        Just(PodState::Pending),
        Just(PodState::Unknown)
    ];
    (name(), state, text(), text()).prop_map(|(uid, state, message, certificate_failure)| PodReport {
        uid,
        state,
        message,
        certificate_failure,
    })
}
