//! The incremental index against itself from scratch: any order of events ends where the objects alone say.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::index::{Finding, Progress};
use controller::source::objects::{
    Abort, AllowedRoutes, AuthorizationPolicy, BackendRef, BackendTLSPolicy, BackendTlsTarget,
    BackendTlsValidation, Balancing, CaBundle, CertificateRef, ConfigMap, ConnectionRule, Container,
    ContainerPort, Endpoint, EndpointPort, EndpointSlice, EntryPort, EntrySelector, Event, Fault, GRPCRoute,
    Gateway, GatewayClass, GrantFrom, GrantTo, GrpcRule, HTTPRoute, HttpRule, Key, LabelSelector, Labels,
    Listener, Metadata, MutualTls, MutualTlsMode, Namespace, Node, Object, ObjectRef, ParentRef,
    PeerAuthentication, Pod, PodStatus, PolicyAction, PolicyCondition, PolicyRule, PolicyTarget, PortRef,
    Reach, ReferenceGrant, Resolution, RouteNamespaces, RouteSpec, Service, ServiceEntry, ServicePort,
    StatusAddress, TCPRoute, TargetRef, TrafficPolicy, TrafficTarget, WorkloadEntry, WorkloadEntrySpec,
    WorkloadSelector,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::guarding::{naively, told};
use crate::support::{Mesh, Silence};

#[derive(Debug, Clone)]
enum Step {
    Event(Box<Event>),
    Report(&'static str, Vec<&'static str>),
}

// Few names, so that objects meet.
const NAMESPACES: &[&str] = &["shop", "away", "istio-system"];
const NAMES: &[&str] = &["a", "b", "c"];
const NODES: &[&str] = &["", "n1", "n2"];
const UIDS: &[&str] = &["", "u1", "u2", "u3", "u4"];
const CREATED: &[&str] = &["1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z"];
/// A certificate that may sign others.
const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUdL1HSROtJGb8FbXJCTB6dDfvEcswCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjExNTA2MDdaGA8yMTI2MTAyODE1MDYw
N1owDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCZl
aNhMw8nLiKALIUjrpc9EXFbM0Wq4uWGS0NUCqF6ij/AESLdAMk/QL9+MFBWI2taE
NORqLTaLHfHxx9/z47ajUzBRMB0GA1UdDgQWBBTHzBLwqMCsN2ExwatTuevILo2s
tzAfBgNVHSMEGDAWgBTHzBLwqMCsN2ExwatTuevILo2stzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDsKK1ZkF7f3AdJTt1wjQg0iyjDtndln9vs
TQNVcUOydgIgCOi0fiVtiOS2i1a/zQfwfN+7cvF4zI8B/LSc7+psWoo=
-----END CERTIFICATE-----
";
const ADDRESSES: &[&str] = &["", "10.0.0.1", "10.0.0.2", "fd00::1", "nonsense"];

fn labels() -> impl Strategy<Value = Labels> {
    let pair = select(vec![
        ("app", "a"),
        ("app", "b"),
        ("istio.io/dataplane-mode", "ambient"),
        ("istio.io/dataplane-mode", "none"),
        ("topology.kubernetes.io/zone", "z"),
        ("topology.istio.io/network", "west"),
        ("networking.istio.io/tunnel", "http"),
        ("kubernetes.io/service-name", "a"),
        ("kubernetes.io/service-name", "b"),
        ("istio.io/use-waypoint", "a"),
        ("istio.io/use-waypoint", "b"),
        ("istio.io/use-waypoint", "none"),
        ("istio.io/use-waypoint-namespace", "away"),
        ("istio.io/use-waypoint-canary", "c"),
        ("airglow.dev/waypoint", "auto"),
        ("airglow.dev/waypoint", "auto"),
        ("istio.io/waypoint-for", "all"),
        ("istio.io/waypoint-for", "workload"),
        ("gateway.networking.k8s.io/gateway-name", "c"),
    ]);
    let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    prop::collection::vec(pair, 0..5).prop_map(move |pairs| pairs.into_iter().map(text).collect())
}

fn metadata() -> impl Strategy<Value = Metadata> {
    (select(NAMESPACES), select(NAMES), select(UIDS), labels(), prop::option::of(select(CREATED))).prop_map(
        |(namespace, name, uid, labels, created)| Metadata {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            labels,
            creation_timestamp: created.map(Into::into),
            ..Metadata::default()
        },
    )
}

fn of_cluster(metadata: Metadata, name: &str) -> Metadata {
    Metadata { namespace: String::new(), name: name.into(), ..metadata }
}

fn selector() -> impl Strategy<Value = Option<WorkloadSelector>> {
    prop::option::of(labels().prop_map(|match_labels| WorkloadSelector { match_labels }))
}

fn pod() -> impl Strategy<Value = Object> {
    let phases = select(vec!["Running", "Succeeded"]);
    let port = prop::option::of(select(vec![8080, 8081]));
    (metadata(), select(NODES), select(ADDRESSES), phases, any::<bool>(), port).prop_map(
        |(metadata, node, address, phase, host_network, port)| {
            let mut pod = Pod { metadata, ..Pod::default() };
            pod.spec.node_name = node.into();
            pod.spec.host_network = host_network;
            pod.spec.service_account_name = pod.metadata.name.clone();
            let web = |container_port| ContainerPort { name: "web".into(), container_port, protocol: None };
            pod.spec.containers =
                vec![Container { ports: port.map(web).into_iter().collect(), restart_policy: None }];
            pod.status = PodStatus { phase: phase.into(), pod_ip: address.into(), ..PodStatus::default() };
            Object::Pod(Arc::new(pod))
        },
    )
}

fn service() -> impl Strategy<Value = Object> {
    let target = prop::option::of(select(vec![PortRef::Number(1), PortRef::Name("web".into())]));
    let kind = prop::option::of(select(vec!["ClusterIP", "ExternalName"]));
    (metadata(), labels(), target, kind, any::<bool>()).prop_map(
        |(metadata, selector, target_port, kind, attached)| {
            let mut service = Service { metadata, ..Service::default() };
            service.status.conditions.push(condition_attached(attached));
            service.spec.selector = selector;
            service.spec.kind = kind.map(Into::into);
            service.spec.cluster_ip = Some("10.1.0.1".into());
            service.spec.ports =
                vec![ServicePort { name: "p".into(), port: 80, target_port, ..ServicePort::default() }];
            Object::Service(Arc::new(service))
        },
    )
}

fn condition_attached(is_so: bool) -> PolicyCondition {
    PolicyCondition {
        kind: "airglow.dev/Attached".into(),
        status: if is_so { "True" } else { "False" }.into(),
        ..PolicyCondition::default()
    }
}

fn slice() -> impl Strategy<Value = Object> {
    let reference = (select(NAMESPACES), select(NAMES), select(UIDS)).prop_map(|(namespace, name, uid)| {
        TargetRef { kind: "Pod".into(), namespace: namespace.into(), name: name.into(), uid: uid.into() }
    });
    let endpoint = (select(ADDRESSES), prop::option::of(reference)).prop_map(|(address, target_ref)| {
        Endpoint { addresses: vec![address.into()], target_ref, ..Endpoint::default() }
    });
    (metadata(), prop::collection::vec(endpoint, 0..3), any::<bool>()).prop_map(
        |(metadata, endpoints, ported)| {
            let port = EndpointPort { name: "p".into(), port: Some(9), protocol: None };
            let ports = if ported { vec![port] } else { Vec::new() };
            Object::EndpointSlice(Arc::new(EndpointSlice {
                metadata,
                endpoints,
                ports,
                ..EndpointSlice::default()
            }))
        },
    )
}

fn authorization() -> impl Strategy<Value = Object> {
    let actions = select(vec![PolicyAction::Allow, PolicyAction::Deny, PolicyAction::Audit]);
    let target = prop::option::weighted(0.2, Just(PolicyTarget::default()));
    (metadata(), selector(), actions, target).prop_map(|(metadata, selector, action, target_ref)| {
        let mut policy = AuthorizationPolicy { metadata, ..AuthorizationPolicy::default() };
        policy.spec.selector = selector;
        policy.spec.action = action;
        policy.spec.target_ref = target_ref;
        policy.spec.rules = vec![PolicyRule::default()];
        Object::AuthorizationPolicy(Arc::new(policy))
    })
}

fn peer() -> impl Strategy<Value = Object> {
    let mode = || select(vec![MutualTlsMode::Strict, MutualTlsMode::Permissive, MutualTlsMode::Unset]);
    let ports = prop::collection::btree_map(select(vec![80_u16, 90]), mode(), 0..3);
    (metadata(), selector(), mode(), ports).prop_map(|(metadata, selector, mode, ports)| {
        let mut peer = PeerAuthentication { metadata, ..PeerAuthentication::default() };
        peer.spec.selector = selector;
        peer.spec.mtls = MutualTls { mode };
        peer.spec.port_level_mtls =
            ports.into_iter().map(|(port, mode)| (port, MutualTls { mode })).collect();
        Object::PeerAuthentication(Arc::new(peer))
    })
}

fn service_entry() -> impl Strategy<Value = Object> {
    let hosts = prop::collection::vec(
        select(vec!["x.example.com", "y.example.com", "a.shop.svc.cluster.local"]),
        0..3,
    );
    let resolutions = select(vec![Resolution::None, Resolution::Static, Resolution::Dns]);
    let endpoints = prop::collection::vec(select(ADDRESSES), 0..3);
    let to = prop::collection::vec(select(vec![".", "*", "~", "shop"]), 0..2);
    (metadata(), hosts, resolutions, endpoints, prop::option::of(labels()), to).prop_map(
        |(metadata, hosts, resolution, endpoints, selector, to)| {
            let mut entry = ServiceEntry { metadata, ..ServiceEntry::default() };
            entry.spec.hosts = hosts.into_iter().map(Into::into).collect();
            // Also a Service's.
            entry.spec.addresses = vec!["10.1.0.1".into(), "192.0.2.1".into()];
            entry.spec.ports = vec![EntryPort { number: 80, name: "p".into(), ..EntryPort::default() }];
            entry.spec.resolution = resolution;
            let endpoint =
                |address: &str| WorkloadEntrySpec { address: address.into(), ..WorkloadEntrySpec::default() };
            entry.spec.endpoints = endpoints.into_iter().map(endpoint).collect();
            entry.spec.workload_selector = selector.map(|labels| EntrySelector { labels });
            entry.spec.export_to = to.into_iter().map(Into::into).collect();
            Object::ServiceEntry(Arc::new(entry))
        },
    )
}

fn workload_entry() -> impl Strategy<Value = Object> {
    (metadata(), labels(), select(ADDRESSES)).prop_map(|(metadata, labels, address)| {
        let spec = WorkloadEntrySpec { address: address.into(), labels, ..WorkloadEntrySpec::default() };
        Object::WorkloadEntry(Arc::new(WorkloadEntry { metadata, spec, ..WorkloadEntry::default() }))
    })
}

fn gateway() -> impl Strategy<Value = Object> {
    let reaches = select(vec![Reach::All, Reach::Same, Reach::Selector]);
    let account = prop::option::of(select(NAMES));
    (metadata(), reaches, labels(), account, any::<[bool; 5]>()).prop_map(
        |(metadata, from, match_labels, account, [ready, hbone, automatic, attached, ours])| {
            let mut gateway = Gateway { metadata, ..Gateway::default() };
            if automatic {
                gateway.metadata.name = "waypoint-auto".into();
            }
            gateway.status.conditions.push(condition_attached(attached));
            let account =
                account.map(|account| ("istio.io/for-service-account".to_owned(), account.to_owned()));
            gateway.metadata.annotations.extend(account);
            gateway.spec.gateway_class_name = if ours { "airglow-waypoint" } else { "a" }.into();
            let selector = Some(LabelSelector { match_labels, match_expressions: Vec::new() });
            gateway.spec.listeners = vec![Listener {
                port: 15008,
                protocol: if hbone { "HBONE" } else { "HTTP" }.into(),
                allowed_routes: AllowedRoutes { namespaces: RouteNamespaces { from, selector } },
                ..Listener::default()
            }];
            let address = StatusAddress { kind: "IPAddress".into(), value: "10.1.0.1".into() };
            gateway.status.addresses = ready.then_some(address).into_iter().collect();
            Object::Gateway(Arc::new(gateway))
        },
    )
}

fn parent() -> impl Strategy<Value = ParentRef> {
    let namespaces = prop::option::of(select(NAMESPACES));
    let ports = prop::option::of(select(vec![80_u16, 81]));
    let kinds = prop_oneof![3 => Just(("", "Service")), 1 => Just(("gateway.networking.k8s.io", "Gateway"))];
    (namespaces, select(NAMES), ports, kinds).prop_map(|(namespace, name, port, (group, kind))| ParentRef {
        group: Some(group.into()),
        kind: Some(kind.into()),
        namespace: namespace.map(Into::into),
        name: name.into(),
        port,
        ..ParentRef::default()
    })
}

fn backend() -> impl Strategy<Value = BackendRef> {
    let namespaces = prop::option::of(select(NAMESPACES));
    let ports = prop::option::of(select(vec![80_u16, 81]));
    (namespaces, select(NAMES), ports).prop_map(|(namespace, name, port)| BackendRef {
        target: ObjectRef {
            namespace: namespace.map(Into::into),
            name: name.into(),
            port,
            ..ObjectRef::default()
        },
        ..BackendRef::default()
    })
}

fn route() -> impl Strategy<Value = Object> {
    let rule = || (prop::option::of(select(NAMES)), prop::collection::vec(backend(), 0..3));
    let rules = prop::collection::vec(rule(), 0..3);
    (metadata(), 0..3, prop::collection::vec(parent(), 0..3), rules).prop_map(
        |(metadata, kind, parent_refs, rules)| {
            let named = |name: Option<&str>| name.map(str::to_owned);
            fn spec<R>(parent_refs: Vec<ParentRef>, rules: Vec<R>) -> RouteSpec<R> {
                RouteSpec { parent_refs, rules: Some(rules), ..RouteSpec::default() }
            }
            let rules = rules.into_iter();
            match kind {
                0 => {
                    let rule = |(name, backend_refs)| HttpRule {
                        name: named(name),
                        backend_refs,
                        ..HttpRule::default()
                    };
                    let spec = spec(parent_refs, rules.map(rule).collect());
                    Object::HTTPRoute(Arc::new(HTTPRoute { metadata, spec, ..HTTPRoute::default() }))
                }
                1 => {
                    let rule = |(name, backend_refs)| GrpcRule {
                        name: named(name),
                        backend_refs,
                        ..GrpcRule::default()
                    };
                    let spec = spec(parent_refs, rules.map(rule).collect());
                    Object::GRPCRoute(Arc::new(GRPCRoute { metadata, spec, ..GRPCRoute::default() }))
                }
                _ => {
                    let rule = |(name, backend_refs)| ConnectionRule { name: named(name), backend_refs };
                    let spec = spec(parent_refs, rules.map(rule).collect());
                    Object::TCPRoute(Arc::new(TCPRoute { metadata, spec, ..TCPRoute::default() }))
                }
            }
        },
    )
}

fn class() -> impl Strategy<Value = Object> {
    metadata().prop_map(|metadata| {
        let class = GatewayClass { metadata: of_cluster(metadata, "a"), ..GatewayClass::default() };
        Object::GatewayClass(Arc::new(class))
    })
}

fn grant() -> impl Strategy<Value = Object> {
    let to = (select(vec!["Service", "Secret"]), prop::option::of(select(NAMES)));
    (metadata(), select(NAMESPACES), to).prop_map(|(metadata, namespace, (kind, name))| {
        let mut grant = ReferenceGrant { metadata, ..ReferenceGrant::default() };
        let group = "gateway.networking.k8s.io".to_owned();
        grant.spec.from = vec![GrantFrom { group, kind: "HTTPRoute".into(), namespace: namespace.into() }];
        grant.spec.to = vec![GrantTo { group: String::new(), kind: kind.into(), name: name.map(Into::into) }];
        Object::ReferenceGrant(Arc::new(grant))
    })
}

fn traffic_policy() -> impl Strategy<Value = Object> {
    let target = (select(vec!["Service", "HTTPRoute"]), select(NAMES), prop::option::of(select(NAMES)));
    let targets = prop::collection::vec(target, 0..3);
    let until = prop::option::of(select(vec!["2026-12-01T18:00:00Z", "tomorrow"]));
    (metadata(), targets, until, any::<bool>()).prop_map(|(metadata, targets, until, balances)| {
        let mut policy = TrafficPolicy { metadata, ..TrafficPolicy::default() };
        let target = |(kind, name, section): (&str, &str, Option<&str>)| TrafficTarget {
            group: if kind == "Service" { String::new() } else { "gateway.networking.k8s.io".into() },
            kind: kind.into(),
            name: name.into(),
            section_name: section.filter(|_| kind != "Service").map(Into::into),
        };
        policy.spec.target_refs = targets.into_iter().map(target).collect();
        let abort = Some(Abort { reset: Some(true), ..Abort::default() });
        policy.spec.fault = until.map(|until| Fault { until: until.into(), abort, ..Fault::default() });
        policy.spec.balancing = balances.then(Balancing::default);
        Object::TrafficPolicy(Arc::new(policy))
    })
}

fn backend_tls_policy() -> impl Strategy<Value = Object> {
    let target = (select(NAMES), prop::option::of(select(vec!["", "http"])));
    let targets = prop::collection::vec(target, 0..3);
    (metadata(), targets, select(NAMES)).prop_map(|(metadata, targets, roots)| {
        let mut policy = BackendTLSPolicy { metadata, ..BackendTLSPolicy::default() };
        let target = |(name, section): (&str, Option<&str>)| BackendTlsTarget {
            group: String::new(),
            kind: "Service".into(),
            name: name.into(),
            section_name: section.map(Into::into),
        };
        policy.spec.target_refs = targets.into_iter().map(target).collect();
        let found = CertificateRef { group: String::new(), kind: "ConfigMap".into(), name: roots.into() };
        policy.spec.validation = Some(BackendTlsValidation {
            ca_certificate_refs: vec![found],
            hostname: "web.test".into(),
            ..BackendTlsValidation::default()
        });
        Object::BackendTLSPolicy(Arc::new(policy))
    })
}

fn bundle() -> impl Strategy<Value = Object> {
    let pem = prop::option::of(select(vec!["", CA]));
    (metadata(), pem).prop_map(|(metadata, pem)| {
        let data = CaBundle { ca_crt: pem.map(Into::into) };
        Object::ConfigMap(Arc::new(ConfigMap { metadata, data }))
    })
}

fn object() -> impl Strategy<Value = Object> {
    let namespace = (metadata(), select(NAMESPACES)).prop_map(|(metadata, name)| {
        Object::Namespace(Arc::new(Namespace { metadata: of_cluster(metadata, name) }))
    });
    let node = (metadata(), select(NODES))
        .prop_map(|(metadata, name)| Object::Node(Arc::new(Node { metadata: of_cluster(metadata, name) })));
    prop_oneof![4 => pod(), 2 => service(), 2 => slice(), 1 => namespace, 1 => node, 1 => authorization(), 1 => peer(),
        2 => service_entry(), 1 => workload_entry(), 2 => gateway(), 1 => class(), 3 => route(), 1 => grant(),
        2 => traffic_policy(), 2 => backend_tls_policy(), 1 => bundle()]
}

fn step() -> impl Strategy<Value = Step> {
    let event = |event| Step::Event(Box::new(event));
    prop_oneof![
        6 => object().prop_map(move |object| event(Event::Upsert(object))),
        2 => object().prop_map(move |object| event(Event::Delete(object.key()))),
        2 => (select(NODES), prop::collection::vec(select(UIDS), 0..5))
            .prop_map(|(node, pods)| Step::Report(node, pods)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2 * ProptestConfig::default().cases))]

    #[test]
    fn incremental_equals_from_scratch(steps in prop::collection::vec(step(), 0..40), batch in 1_usize..6) {
        let mut mesh = Mesh::of("");
        let mut objects: BTreeMap<Key, Object> = BTreeMap::new();
        let mut pending = Vec::new();
        for step in steps {
            match step {
                Step::Event(event) => {
                    match &*event {
                        Event::Upsert(object) => drop(objects.insert(object.key(), object.clone())),
                        Event::Delete(key) => drop(objects.remove(key)),
                    }
                    pending.push(*event);
                    if pending.len() == batch {
                        mesh.apply(pending.drain(..));
                    }
                }
                Step::Report(node, pods) => {
                    mesh.apply(pending.drain(..));
                    let pods: Vec<_> = pods.into_iter().map(|uid| (uid, Progress::Enrolled)).collect();
                    mesh.report(node, &pods);
                }
            }
        }
        mesh.apply(pending);

        let mut fresh = Mesh::new(mesh.index.proven().clone());
        fresh.apply(objects.into_values().map(Event::Upsert));
        prop_assert_eq!(&mesh.seen, &fresh.seen);
        prop_assert_eq!(findings(&mesh), findings(&fresh));
        for settled in [false, true] {
            for waypoint in mesh.seen.enrolments.values().filter(|enrolment| enrolment.is_waypoint) {
                let (told, needed) = (told(&mesh, waypoint), naively(&mesh, waypoint));
                prop_assert!(needed.is_subset(&told), "{:?} of {:?}", told, needed);
                prop_assert!(!settled || told == needed, "{:?} for {:?}", told, needed);
            }
            mesh.later();
        }
        prop_assert_eq!(mesh.index.judgements(&[], &Silence, true), fresh.index.judgements(&[], &Silence, true));
        prop_assert_eq!(mesh.index.statements(&[]), fresh.index.statements(&[]));
        prop_assert_eq!(mesh.index.wanted_waypoints(), fresh.index.wanted_waypoints());
        prop_assert_eq!(mesh.index.automatic_waypoints(), fresh.index.automatic_waypoints());
        prop_assert_eq!(mesh.index.proven(), fresh.index.proven());
        prop_assert_eq!(mesh.index.enrolments().count(), mesh.seen.enrolments.len());
        let mut late = Mesh::new(Default::default());
        late.seen.take(mesh.index.everything());
        prop_assert_eq!(&mesh.seen, &late.seen);
    }
}

fn findings(mesh: &Mesh) -> Vec<(&Key, &Finding)> {
    mesh.index.findings().collect()
}
