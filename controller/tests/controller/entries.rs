//! ServiceEntries and WorkloadEntries: services and workloads that Kubernetes does not know.

use controller::index::{Outcome, Reason};
use controller::source::objects::{Event, Key, Kind};
use model::service::{HealthPolicy, LoadBalancingMode, PortMapping, Visibility};
use model::workload::{NetworkMode, TunnelProtocol};

use crate::support::{Mesh, pod, upserts};

fn entry(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{namespace: {namespace}, name: {name}}}
spec: {spec}
"
    )
}

fn machine(namespace: &str, name: &str, spec: &str) -> String {
    entry(namespace, name, spec).replace("kind: ServiceEntry", "kind: WorkloadEntry")
}

const PORT: &str = "ports: [{number: 80, name: http, protocol: HTTP}]";

fn outcome(mesh: &Mesh, name: &str) -> (Outcome, Reason, String) {
    let findings = mesh.findings(name);
    let worst = findings.iter().max_by_key(|finding| finding.outcome).expect("something is said");
    (worst.outcome, worst.reason, worst.message.clone())
}

#[test]
fn an_entry_is_a_service_per_host_and_a_workload_per_endpoint() {
    let mesh = Mesh::of(&entry(
        "shop",
        "db",
        "{hosts: [a.example.com, b.example.com, a.example.com], addresses: [192.0.2.1, 198.51.100.7/24], location: MESH_INTERNAL,
          resolution: STATIC, subjectAltNames: ['spiffe://x/ns/y/sa/z'],
          ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 53, name: dns, protocol: UDP}],
          endpoints: [{address: 203.0.113.1, locality: r/z, weight: 3}, {address: 203.0.113.2, ports: {http: 9090},
          labels: {networking.istio.io/tunnel: http}, serviceAccount: db}, {address: db.example.com}]}",
    ));
    assert_eq!(mesh.seen.services.len(), 2);
    let service = mesh.service("db");
    assert_eq!(&*service.id.hostname, "a.example.com");
    let blocks: Vec<_> = service.vips.iter().map(|vip| vip.block.to_string()).collect();
    assert_eq!(blocks, ["192.0.2.1/32", "198.51.100.0/24"]);
    assert_eq!(service.ports.len(), 1, "TCP");
    assert!(service.canonical && service.visibility == Visibility::Public);
    assert_eq!(service.load_balancing.mode, LoadBalancingMode::Any);

    let mut workloads: Vec<_> = mesh.seen.workloads.values().collect();
    workloads.sort_by_key(|workload| workload.addresses.clone());
    let [plain, native] = &workloads[..] else { panic!("{workloads:?}") };
    assert_eq!(plain.uid.to_string(), "Kubernetes/networking.istio.io/ServiceEntry/shop/db/203.0.113.1");
    assert_eq!((plain.capacity, &*plain.locality.zone), (3, "z"));
    assert_eq!((plain.tunnel, plain.network_mode), (TunnelProtocol::None, NetworkMode::HostNetwork));
    assert_eq!((native.tunnel, native.network_mode), (TunnelProtocol::Hbone, NetworkMode::Standard));
    assert_eq!(native.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/db");
    let ports = |target_port| vec![PortMapping { service_port: 80, target_port }];
    assert!(plain.services.len() == 2 && plain.services.values().all(|of| *of == ports(8080)));
    assert!(native.services.values().all(|of| *of == ports(9090)));
    let said: Vec<_> = mesh.findings("db").iter().map(|finding| finding.message.clone()).collect();
    assert!(said.iter().any(|said| said.contains("look no names up")), "{said:?}");
    assert!(said.iter().any(|said| said.contains("TCP")), "{said:?}");
}

#[test]
fn what_needs_dns_is_refused_in_words() {
    for resolution in ["DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] {
        let mesh = Mesh::of(&entry(
            "shop",
            "api",
            &format!("{{hosts: [api.example.com], resolution: {resolution}, {PORT}}}"),
        ));
        assert!(mesh.seen.services.is_empty());
        let (outcome, reason, message) = outcome(&mesh, "api");
        assert_eq!((outcome, reason), (Outcome::Refused, Reason::UnsupportedValue));
        assert!(message.contains("resolution STATIC"), "{message}");
    }
    let mesh = Mesh::of(&machine("shop", "vm", "{address: vm.example.com}"));
    assert_eq!(outcome(&mesh, "vm").0, Outcome::Refused);
    let mesh = Mesh::of(&machine("shop", "vm", "{network: west}"));
    assert!(outcome(&mesh, "vm").2.contains("gateways"));
}

#[test]
fn without_resolution_connections_go_where_they_were_dialled_to() {
    let mesh = Mesh::of(&entry(
        "shop",
        "net",
        &format!("{{hosts: [net.example.com], addresses: [192.0.2.0/24], {PORT}}}"),
    ));
    let balancing = &mesh.service("net").load_balancing;
    assert_eq!((balancing.mode, balancing.health), (LoadBalancingMode::Passthrough, HealthPolicy::AllowAll));
    assert_eq!(outcome(&mesh, "net").0, Outcome::Accepted);
}

#[test]
fn pods_and_machines_are_selected_by_both_kinds_of_services() {
    let mut mesh = Mesh::of(
        &[
            entry("shop", "db", &format!("{{hosts: [db.example.com], resolution: STATIC, {PORT}, workloadSelector: {{labels: {{app: db}}}}}}")),
            "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: sql}\n\
             spec: {clusterIP: 10.1.0.1, selector: {app: db}, ports: [{port: 5432, targetPort: sql}]}\n"
                .to_owned(),
            machine("shop", "vm", "{address: 203.0.113.1, labels: {app: db}, ports: {sql: 6000, http: 81}}"),
            machine("away", "other", "{address: 203.0.113.2, labels: {app: db}}"),
            pod("shop", "db", "10.0.0.1"),
        ]
        .concat(),
    );
    let ports = |mesh: &Mesh, name: &str| -> Vec<String> {
        let services = mesh.workload(name).services.iter();
        let of =
            |ports: &[PortMapping]| ports.iter().map(|port| port.target_port.to_string()).collect::<Vec<_>>();
        services.map(|(id, ports)| format!("{}:{}", id.hostname, of(ports).join(","))).collect()
    };
    assert_eq!(ports(&mesh, "vm"), ["db.example.com:81", "sql.shop.svc.cluster.local:6000"]);
    assert_eq!(ports(&mesh, "db"), ["db.example.com:80", "sql.shop.svc.cluster.local:"]);
    assert!(ports(&mesh, "other").is_empty(), "another namespace");
    mesh.apply([Event::Delete(Key {
        kind: Kind::ServiceEntry,
        namespace: "shop".into(),
        name: "db".into(),
    })]);
    assert_eq!(ports(&mesh, "vm"), ["sql.shop.svc.cluster.local:6000"]);
}

#[test]
fn a_host_belongs_to_one_and_a_service_beats_an_entry() {
    let spec = |more: &str| format!("{{hosts: [a.example.com], addresses: [192.0.2.1], {PORT}{more}}}");
    let born = |text: String, at: &str| {
        text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{at}', "))
    };
    let mut mesh = Mesh::of(
        &[
            born(entry("shop", "young", &spec("")), "2"),
            born(entry("shop", "old", &spec("")), "1"),
            born(entry("away", "third", &spec("")), "3"),
        ]
        .concat(),
    );
    assert_eq!(mesh.seen.services.len(), 2, "one per namespace");
    assert!(mesh.service("old").canonical && !mesh.service("third").canonical);
    assert!(outcome(&mesh, "young").2.contains("ServiceEntry shop/old has the host"));
    mesh.apply(upserts(&born(entry("shop", "old", &spec(", exportTo: ['~']")), "1")));
    assert!(mesh.service("young").canonical);
    assert_eq!(outcome(&mesh, "old").0, Outcome::Refused);
    mesh.apply(upserts(&born(entry("shop", "young", &spec(", exportTo: [.]")), "2")));
    assert_eq!(mesh.service("young").visibility, Visibility::Namespace);
    assert!(mesh.service("third").canonical, "the first that all see");

    // Nobody takes a Service's name or address by an entry.
    mesh.apply(upserts(
        "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: web}\nspec: {clusterIP: 192.0.2.1, ports: [{port: 80}]}\n",
    ));
    assert!(mesh.service("third").vips.is_empty());
    assert!(outcome(&mesh, "third").2.contains("the address of Service shop/web"));
    mesh.apply(upserts(&entry(
        "shop",
        "web-too",
        &format!("{{hosts: [web.shop.svc.cluster.local], {PORT}}}"),
    )));
    assert_eq!(outcome(&mesh, "web-too").0, Outcome::Refused);
    mesh.apply([Event::Delete(Key { kind: Kind::Service, namespace: "shop".into(), name: "web".into() })]);
    assert_eq!(mesh.service("third").vips.len(), 1);
    assert_eq!(outcome(&mesh, "web-too").0, Outcome::Accepted);
}
