//! Services: addresses, ports, families, and how endpoints are chosen.

use model::service::LoadBalancingMode::{Any, Failover, Strict};
use model::service::{Affinity, AppProtocol, HealthPolicy, IpFamilies, LoadBalancingMode, Scope};

use crate::support::Mesh;

fn service(spec: &str) -> Mesh {
    Mesh::of(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: cart}}\nspec: {{{spec}}}\n"
    ))
}

#[test]
fn names_and_addresses() {
    let mesh = service("clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1, 'fd00::1']");
    let cart = mesh.service("cart");
    assert_eq!(cart.id.to_string(), "shop/cart.shop.svc.cluster.local");
    let vips: Vec<_> = cart.vips.iter().map(|vip| vip.block.to_string()).collect();
    assert_eq!(vips, ["10.1.0.1/32", "fd00::1/128"]);
    assert!(cart.canonical);
    assert!(service("clusterIP: None").service("cart").vips.is_empty(), "headless");
    assert_eq!(service("clusterIP: 10.1.0.1").service("cart").vips.len(), 1, "without clusterIPs");
    assert!(service("type: ExternalName, externalName: example.com").seen.services.is_empty());
    let bad = service("clusterIPs: [10.1.0.1, 10.1.0]");
    assert_eq!(bad.service("cart").vips.len(), 1);
    assert!(bad.findings("cart")[0].message.contains("10.1.0"));
}

#[test]
fn ports() {
    let mesh = service(
        "ports: [{port: 80}, {port: 81, targetPort: 8081, name: http-web}, {port: 82, targetPort: web, appProtocol: grpc},
                 {port: 53, protocol: UDP}]",
    );
    let ports: Vec<_> =
        mesh.service("cart").ports.iter().map(|port| (port.port, port.target_port, port.protocol)).collect();
    assert_eq!(
        ports,
        [
            (80, Some(80), AppProtocol::Unknown),
            (81, Some(8081), AppProtocol::Http1),
            (82, None, AppProtocol::Grpc),
        ]
    );
    assert!(mesh.findings("cart")[0].message.contains("TCP"));
}

#[test]
fn families() {
    for (text, families) in [
        ("", IpFamilies::Automatic),
        ("ipFamilies: [IPv4]", IpFamilies::V4),
        ("ipFamilies: [IPv6]", IpFamilies::V6),
        ("ipFamilies: [IPv4, IPv6]", IpFamilies::Dual),
    ] {
        assert_eq!(service(text).service("cart").ip_families, families, "{text}");
    }
}

#[test]
fn how_endpoints_are_chosen() {
    let zone = vec![Scope::Network, Scope::Region, Scope::Zone];
    let node = vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];
    let check =
        |of_namespace: &str, annotation: &str, spec: &str, mode: LoadBalancingMode, preference: &[Scope]| {
            let key = "networking.istio.io/traffic-distribution";
            let mesh = Mesh::of(&format!(
                "
apiVersion: v1
kind: Namespace
metadata: {{name: shop, annotations: {{{}}}}}
---
apiVersion: v1
kind: Service
metadata: {{namespace: shop, name: cart, annotations: {{{}}}}}
spec: {{{spec}}}
",
                if of_namespace.is_empty() { String::new() } else { format!("{key}: {of_namespace}") },
                if annotation.is_empty() { String::new() } else { format!("{key}: {annotation}") },
            ));
            let balancing = &mesh.service("cart").load_balancing;
            assert_eq!(
                (balancing.mode, &balancing.preference[..]),
                (mode, preference),
                "{of_namespace} {annotation} {spec}"
            );
        };
    check("", "", "", Any, &[]);
    check("", "", "internalTrafficPolicy: Local, trafficDistribution: PreferClose", Strict, &[Scope::Node]);
    check("", "", "internalTrafficPolicy: Cluster, trafficDistribution: PreferClose", Failover, &zone);
    check("", "", "trafficDistribution: PreferSameZone", Failover, &zone);
    check("", "", "trafficDistribution: PreferSameNode", Failover, &node);
    check("", "prefersamenode", "", Failover, &node);
    check("PreferClose", "", "", Failover, &zone);
    check("PreferClose", "PreferSameNode", "", Failover, &node);
    check("PreferClose", "Whatever", "", Any, &[]);
    for (spec, affinity) in [
        ("", Affinity::None),
        ("sessionAffinity: None", Affinity::None),
        ("sessionAffinity: ClientIP, internalTrafficPolicy: Local", Affinity::Client),
    ] {
        assert_eq!(service(spec).service("cart").load_balancing.affinity, affinity, "{spec}");
    }
    let mesh = service("publishNotReadyAddresses: true");
    assert_eq!(mesh.service("cart").load_balancing.health, HealthPolicy::AllowAll);
}

#[test]
fn the_root_namespace_names_the_network() {
    let text = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec: {clusterIP: 10.1.0.1}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: east}}
";
    assert_eq!(&*Mesh::of(text).service("cart").vips[0].network, "east");
}
