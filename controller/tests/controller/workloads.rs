//! Workloads of pods and of endpoint slices.

use model::service::PortMapping;
use model::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};

use crate::support::{Mesh, pod, upserts};

#[test]
fn a_pod_in_full() {
    let mesh = Mesh::of(
        "
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}
---
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: cart-5d8-x
  uid: u
  labels: {app: basket, pod-template-hash: 5d8, version: v2}
  ownerReferences: [{kind: ReplicaSet, name: cart-5d8, controller: true}]
spec: {nodeName: n1, serviceAccountName: carter}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}
",
    );
    let workload = mesh.workload("cart-5d8-x");
    assert_eq!(workload.uid.to_string(), "Kubernetes//Pod/shop/cart-5d8-x");
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/carter");
    let addresses: Vec<_> = workload.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    assert_eq!((&*workload.node, &*workload.cluster_id, &*workload.network), ("n1", "Kubernetes", ""));
    assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), ("basket", "v2"));
    assert_eq!((workload.workload_type, &*workload.workload_name), (WorkloadType::Deployment, "cart"));
    let locality = &workload.locality;
    assert_eq!((&*locality.region, &*locality.zone, &*locality.subzone), ("r", "z", "s"));
    assert_eq!((workload.health, workload.tunnel), (Health::Healthy, TunnelProtocol::None));
}

#[test]
fn which_pods_are_workloads() {
    for (change, expected) in [
        ("phase: Running", 1),
        ("phase: Pending", 1),
        ("phase: Unknown", 1),
        ("phase: Succeeded", 0),
        ("phase: Failed", 0),
    ] {
        let mesh = Mesh::of(&pod("shop", "p", "10.0.0.1").replace("phase: Running", change));
        assert_eq!(mesh.seen.workloads.len(), expected, "{change}");
    }
    assert_eq!(Mesh::of(&pod("shop", "p", "''")).seen.workloads.len(), 0, "no address");
    let mesh = Mesh::of(&pod("shop", "p", "10.0.0.300"));
    assert_eq!(mesh.seen.workloads.len(), 0, "a bad address");
    assert!(mesh.findings("p")[0].message.contains("10.0.0.300"));
    let mesh = Mesh::of(&pod("shop", "p", "'::ffff:10.0.0.1'"));
    assert_eq!(mesh.workload("p").addresses[0].to_string(), "10.0.0.1", "canonical");
}

#[test]
fn health_and_mode() {
    let good = pod("shop", "p", "10.0.0.1");
    assert_eq!(Mesh::of(&good.replace("'True'", "'False'")).workload("p").health, Health::Unhealthy);
    assert_eq!(Mesh::of(&good.replace("Ready", "Initialized")).workload("p").health, Health::Unhealthy);
    let leaving = good.replace("uid: uid-p", "uid: uid-p, deletionTimestamp: '2026-01-01T00:00:00Z'");
    assert_eq!(Mesh::of(&leaving).workload("p").health, Health::Unhealthy);
    let host = good.replace("nodeName: n1", "nodeName: n1, hostNetwork: true");
    assert_eq!(Mesh::of(&host).workload("p").network_mode, NetworkMode::HostNetwork);
}

#[test]
fn owners() {
    let check = |owner: &str, kind: WorkloadType, name: &str| {
        let text = pod("shop", "p", "10.0.0.1").replace(
            "labels: {app: p}",
            &format!("labels: {{pod-template-hash: 5d8}}, ownerReferences: [{owner}]"),
        );
        let mesh = Mesh::of(&text);
        let workload = mesh.workload("p");
        assert_eq!((workload.workload_type, &*workload.workload_name), (kind, name), "{owner}");
        assert_eq!(&*workload.canonical_name, name, "without labels, the owner's name stands in");
        assert_eq!(&*workload.canonical_revision, "latest");
    };
    check("{kind: ReplicaSet, name: cart-5d8, controller: true}", WorkloadType::Deployment, "cart");
    check("{kind: ReplicaSet, name: by-hand, controller: true}", WorkloadType::Pod, "by-hand");
    check("{kind: StatefulSet, name: db, controller: true}", WorkloadType::Pod, "db");
    check("{kind: Job, name: migrate, controller: true}", WorkloadType::Job, "migrate");
    check("{kind: Job, name: nightly-29012345, controller: true}", WorkloadType::CronJob, "nightly");
    check("{kind: Job, name: nightly-123, controller: true}", WorkloadType::Job, "nightly-123");
    check("{kind: ReplicaSet, name: cart-5d8}", WorkloadType::Pod, "p");
}

#[test]
fn canonical_names_in_order() {
    let labels = "app: c, app.kubernetes.io/name: b, service.istio.io/canonical-name: a,
  version: '3', app.kubernetes.io/version: '2', service.istio.io/canonical-revision: '1'";
    let mesh = Mesh::of(&pod("shop", "p", "10.0.0.1").replace("app: p", labels));
    assert_eq!((&*mesh.workload("p").canonical_name, &*mesh.workload("p").canonical_revision), ("a", "1"));
}

#[test]
fn a_pod_may_name_its_own_place_and_network() {
    let mesh = Mesh::of(
        &pod("shop", "p", "10.0.0.1")
            .replace("app: p", "istio-locality: r.z.s, topology.istio.io/network: west"),
    );
    let workload = mesh.workload("p");
    assert_eq!(
        (&*workload.locality.region, &*workload.locality.zone, &*workload.locality.subzone),
        ("r", "z", "s")
    );
    assert_eq!(&*workload.network, "west");
}

#[test]
fn locality_follows_the_node() {
    let mut mesh = Mesh::of(&pod("shop", "p", "10.0.0.1"));
    assert_eq!(&*mesh.workload("p").locality.zone, "");
    mesh.apply(upserts(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z2}}\n",
    ));
    assert_eq!(&*mesh.workload("p").locality.zone, "z2");
}

const CART: &str = "---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec:
  selector: {app: cart}
  ports: [{port: 80}, {port: 81, targetPort: 8081}, {port: 82, targetPort: web}, {port: 83, targetPort: missing}]
";

fn mapped(pairs: &[(u16, u16)]) -> Vec<PortMapping> {
    pairs
        .iter()
        .map(|(service_port, target_port)| PortMapping {
            service_port: *service_port,
            target_port: *target_port,
        })
        .collect()
}

#[test]
fn services_by_selector() {
    let containers = "containers: [{ports: [{name: web, containerPort: 8082}, {name: missing, containerPort: 1, protocol: UDP}]}]";
    let cart =
        pod("shop", "cart", "10.0.0.1").replace("nodeName: n1", &format!("nodeName: n1, {containers}"));
    let mesh = Mesh::of(&format!(
        "{CART}{cart}{}{}",
        pod("shop", "other", "10.0.0.2"),
        pod("away", "cart2", "10.0.0.3").replace("app: cart2", "app: cart")
    ));
    let services = &mesh.workload("cart").services;
    assert_eq!(services.len(), 1);
    let (name, ports) = services.iter().next().expect("there is one");
    assert_eq!(name.to_string(), "shop/cart.shop.svc.cluster.local");
    assert_eq!(
        *ports,
        mapped(&[(80, 80), (81, 8081), (82, 8082)]),
        "a name that no TCP port has is left out"
    );
    assert!(mesh.workload("other").services.is_empty());
    assert!(mesh.workload("cart2").services.is_empty(), "another namespace");
}

#[test]
fn sidecar_containers_name_ports_too() {
    for (policy, expected) in [(", restartPolicy: Always", 3), ("", 2)] {
        let containers = format!("initContainers: [{{ports: [{{name: web, containerPort: 8082}}]{policy}}}]");
        let cart =
            pod("shop", "cart", "10.0.0.1").replace("nodeName: n1", &format!("nodeName: n1, {containers}"));
        let mesh = Mesh::of(&format!("{CART}{cart}"));
        assert_eq!(mesh.workload("cart").services.values().next().map(Vec::len), Some(expected), "{policy}");
    }
}

#[test]
fn a_selector_that_changes_moves_the_endpoints() {
    let mut mesh =
        Mesh::of(&format!("{CART}{}{}", pod("shop", "cart", "10.0.0.1"), pod("shop", "new", "10.0.0.2")));
    mesh.apply(upserts(&CART.replace("app: cart", "app: new")));
    assert!(mesh.workload("cart").services.is_empty());
    assert_eq!(mesh.workload("new").services.len(), 1);
    mesh.apply(upserts("apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: cart}\nspec: {type: ExternalName, selector: {app: new}}\n"));
    assert!(mesh.workload("new").services.is_empty());
}

const BARE: &str = "---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: db}
spec: {ports: [{name: sql, port: 5432}]}
";

fn slice(endpoints: &str) -> String {
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: shop, name: db-1, labels: {{kubernetes.io/service-name: db}}}}
addressType: IPv4
ports: [{{name: sql, port: 15432}}]
endpoints: [{endpoints}]
"
    )
}

#[test]
fn a_slice_attaches_pods_by_reference_and_never_by_address() {
    let p = pod("shop", "p", "10.0.0.1");
    let by = |reference: &str| {
        Mesh::of(&format!("{BARE}{p}{}", slice(&format!("{{addresses: [10.0.0.1], {reference}}}"))))
    };
    let check = |reference: &str, attached: bool| {
        let mesh = by(reference);
        let ports = mesh.workload("p").services.values().next().cloned();
        assert_eq!(ports, attached.then(|| mapped(&[(5432, 15432)])), "{reference}");
    };
    check("targetRef: {kind: Pod, namespace: shop, name: p, uid: uid-p}", true);
    check("targetRef: {kind: Pod, namespace: shop, name: p}", true);
    check("targetRef: {kind: Pod, namespace: shop, name: p, uid: uid-of-before}", false);
    check("targetRef: {kind: Pod, namespace: away, name: p, uid: uid-p}", false);
    check("nodeName: n1", false);
    let with_selector = BARE.replace("spec: {", "spec: {selector: {app: x}, ");
    let reference = slice("{addresses: [10.0.0.1], targetRef: {kind: Pod, namespace: shop, name: p}}");
    assert!(Mesh::of(&format!("{with_selector}{p}{reference}")).workload("p").services.is_empty());
}

#[test]
fn endpoints_that_are_no_pods() {
    let mut mesh = Mesh::of(&format!(
        "{BARE}{}",
        slice(
            "{addresses: [192.0.2.1, 192.0.2.2], nodeName: n9}, {addresses: [192.0.2.3], conditions: {ready: false}}, {addresses: [here]}"
        )
    ));
    let uids: Vec<_> = mesh.seen.workloads.keys().map(ToString::to_string).collect();
    let expected =
        [1, 2, 3].map(|n| format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.{n}"));
    assert_eq!(uids, expected);
    let all: Vec<_> = mesh.seen.workloads.values().collect();
    assert!(all.iter().all(|workload| workload.network_mode == NetworkMode::HostNetwork));
    assert_eq!(
        all.iter().map(|workload| workload.health).collect::<Vec<_>>(),
        [Health::Healthy, Health::Healthy, Health::Unhealthy]
    );
    assert_eq!(all[0].services.values().next(), Some(&mapped(&[(5432, 15432)])));
    assert!(mesh.findings("db-1")[0].message.contains("\"here\""));
    mesh.apply(upserts(&slice("{addresses: [192.0.2.2]}")));
    assert_eq!(mesh.seen.workloads.len(), 1);
}

#[test]
fn slices_without_use() {
    let mesh = Mesh::of(&slice("{addresses: [192.0.2.1]}"));
    assert!(mesh.seen.workloads.is_empty());
    assert!(mesh.findings("db-1")[0].message.contains("no service db"));
    let mesh = Mesh::of(&format!("{BARE}{}", slice("{addresses: [a.example]}").replace("IPv4", "FQDN")));
    assert!(mesh.seen.workloads.is_empty());
    let mut late = Mesh::of(&slice("{addresses: [192.0.2.1]}"));
    late.apply(upserts(BARE));
    assert_eq!(late.seen.workloads.len(), 1, "the service came later");
}
