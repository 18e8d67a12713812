//! Who is guarded by which waypoint: labels, accounts, namespaces, and what happens where the waypoint can't be used.

use controller::index::WAYPOINT_BOUND;
use model::service::GatewayAddress;
use model::workload::TunnelProtocol;

use crate::support::{Mesh, SHOP_AMBIENT, Silence, pod, upserts};

/// A waypoint of `shop` that is ready; `more` goes into its metadata, `from` into its listener.
fn waypoint(name: &str, more: &str, from: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{namespace: shop, name: {name}, {more}}}
spec:
  gatewayClassName: airglow-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]
status: {{addresses: [{{type: Hostname, value: {name}.shop.svc.cluster.local}}]}}
"
    )
}

/// A service of the pods called `app`, with these labels.
fn service(namespace: &str, name: &str, app: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}
spec: {{clusterIP: 10.1.0.1, selector: {{app: {app}}}, ports: [{{port: 80}}]}}
"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

fn spelt(address: &GatewayAddress) -> String {
    format!("{}:{}", address.destination, address.hbone_port)
}

/// Where connections to the address of a service are led.
fn guard(mesh: &Mesh, service: &str) -> Option<String> {
    mesh.service(service).waypoint.as_ref().map(spelt)
}

/// Where connections to the address of a pod are led.
fn guard_of_pod(mesh: &Mesh, pod: &str) -> Option<String> {
    mesh.workload(pod).waypoint.as_ref().map(spelt)
}

/// The reason of the condition, with a sign for whether it is true.
fn bound(mesh: &Mesh, name: &str) -> Option<(String, String)> {
    let judgements = mesh.index.judgements(&[], &Silence, true);
    let judged = judgements.iter().find(|it| it.about == WAYPOINT_BOUND && it.key.name == name)?;
    let [condition] = &judged.conditions[..] else { panic!("nothing was said before") };
    let sign = if condition.status == "True" { '+' } else { '-' };
    Some((format!("{sign}{}", condition.reason), condition.message.clone()))
}

fn reason(mesh: &Mesh, name: &str) -> Option<String> {
    bound(mesh, name).map(|(reason, _)| reason)
}

const WP: Option<&str> = Some("shop/wp.shop.svc.cluster.local:15008");
const NOWHERE: Option<&str> = Some("shop/wp.not-attached.invalid:15008");

#[test]
fn the_object_speaks_before_its_namespace() {
    let mesh = Mesh::of(
        &[
            namespace("shop", "istio.io/use-waypoint: wp"),
            waypoint("wp", "", "Same"),
            waypoint("other", "labels: {istio.io/waypoint-for: all}", "Same"),
            service("shop", "plain", "x", ""),
            service("shop", "own", "x", "istio.io/use-waypoint: other"),
            service("shop", "out", "x", "istio.io/use-waypoint: none"),
        ]
        .concat(),
    );
    assert_eq!(guard(&mesh, "plain").as_deref(), WP);
    assert_eq!(guard(&mesh, "own").as_deref(), Some("shop/other.shop.svc.cluster.local:15008"));
    assert_eq!(guard(&mesh, "out"), None);
    assert_eq!(reason(&mesh, "plain").as_deref(), Some("+WaypointAccepted"));
    assert_eq!(reason(&mesh, "out"), None, "nothing was asked for");
}

#[test]
fn a_waypoint_guards_what_it_is_for() {
    for (kind, services, workloads) in [
        ("", true, false),
        ("istio.io/waypoint-for: service", true, false),
        ("istio.io/waypoint-for: workload", false, true),
        ("istio.io/waypoint-for: all", true, true),
        ("istio.io/waypoint-for: none", false, false),
    ] {
        let labels = format!("labels: {{{kind}}}");
        let text = [
            namespace("shop", "istio.io/use-waypoint: wp"),
            waypoint("wp", &labels, "Same"),
            service("shop", "web", "x", ""),
            pod("shop", "a", "10.0.0.1"),
        ];
        let mesh = Mesh::of(&text.concat());
        assert_eq!(guard(&mesh, "web").is_some(), services, "{kind}");
        assert_eq!(guard_of_pod(&mesh, "a").is_some(), workloads, "{kind}");
        let expected = if services { "+WaypointAccepted" } else { "-UnsupportedTrafficType" };
        assert_eq!(reason(&mesh, "web").as_deref(), Some(expected), "{kind}");
    }
}

#[test]
fn a_waypoint_may_take_its_kind_from_its_class() {
    let class = "---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: airglow-waypoint, labels: {istio.io/waypoint-for: all}}
spec: {controllerName: airglow.dev/waypoint-controller}
";
    let text = [
        namespace("shop", "istio.io/use-waypoint: wp"),
        waypoint("wp", "", "Same"),
        pod("shop", "a", "10.0.0.1"),
    ];
    let mut mesh = Mesh::of(&text.concat());
    assert_eq!(guard_of_pod(&mesh, "a"), None);
    mesh.apply(upserts(class));
    assert_eq!(guard_of_pod(&mesh, "a").as_deref(), WP);
}

#[test]
fn what_names_an_absent_waypoint_is_not_reached_without_it() {
    let text = [service("shop", "web", "a", "istio.io/use-waypoint: wp"), SHOP_AMBIENT.to_owned()];
    let mut mesh = Mesh::of(&text.concat());
    assert_eq!(guard(&mesh, "web").as_deref(), WP, "where it would be, and is not");
    let (reason, message) = bound(&mesh, "web").expect("it was asked for");
    assert_eq!(reason, "-WaypointIsNotReady");
    assert!(message.contains("shop/wp") && message.contains("refused"), "{message}");
    mesh.apply(upserts(&waypoint("wp", "", "Same")));
    assert_eq!(guard(&mesh, "web").as_deref(), WP);
    assert_eq!(bound(&mesh, "web").expect("said").0, "+WaypointAccepted");
}

#[test]
fn a_gateway_that_is_no_waypoint_guards_nothing_and_lets_nothing_pass() {
    let other = waypoint("wp", "", "Same").replace("HBONE", "HTTP");
    let mesh = Mesh::of(&(service("shop", "web", "a", "istio.io/use-waypoint: wp") + &other));
    assert_eq!(guard(&mesh, "web").as_deref(), WP);
    assert_eq!(reason(&mesh, "web").as_deref(), Some("-WaypointIsNotReady"));
}

#[test]
fn other_namespaces_attach_where_the_listener_allows_it() {
    let labels = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop";
    let selector = |label: &str| {
        format!("Selector, selector: {{matchExpressions: [{{key: {label}, operator: Exists}}]}}")
    };
    for (from, attached) in [
        ("Same".to_owned(), false),
        ("All".to_owned(), true),
        ("None".to_owned(), false),
        (selector("team"), true),
        (selector("none"), false),
    ] {
        let text = [
            namespace("shop", ""),
            namespace("away", "team: x"),
            waypoint("wp", "", &from),
            service("away", "web", "x", labels),
        ];
        let mesh = Mesh::of(&text.concat());
        assert_eq!(guard(&mesh, "web").as_deref(), if attached { WP } else { NOWHERE }, "{from}");
        let expected = if attached { "+WaypointAccepted" } else { "-AttachmentDenied" };
        assert_eq!(reason(&mesh, "web").as_deref(), Some(expected), "{from}");
    }
}

#[test]
fn what_names_a_waypoint_itself_gets_it_or_nothing() {
    let text = [
        waypoint("wp", "labels: {istio.io/waypoint-for: workload}", "Same"),
        service("shop", "web", "x", "istio.io/use-waypoint: wp"),
    ];
    let mesh = Mesh::of(&text.concat());
    assert_eq!(guard(&mesh, "web").as_deref(), NOWHERE);
    assert_eq!(reason(&mesh, "web").as_deref(), Some("-UnsupportedTrafficType"));
}

#[test]
fn a_waypoint_for_an_account_guards_its_pods_and_their_services() {
    let of_account = "annotations: {istio.io/for-service-account: reviews}";
    let mut mesh = Mesh::of(
        &[
            namespace("shop", "istio.io/use-waypoint: other"),
            waypoint("other", "labels: {istio.io/waypoint-for: all}", "Same"),
            pod("shop", "reviews", "10.0.0.1"),
            pod("shop", "ratings", "10.0.0.2"),
            service("shop", "of-reviews", "reviews", ""),
            service("shop", "of-ratings", "ratings", ""),
            service("shop", "out", "reviews", "istio.io/use-waypoint: none"),
        ]
        .concat(),
    );
    let other = Some("shop/other.shop.svc.cluster.local:15008");
    assert_eq!(guard_of_pod(&mesh, "reviews").as_deref(), other);
    mesh.apply(upserts(&waypoint("wp", of_account, "Same")));
    assert_eq!(guard_of_pod(&mesh, "reviews").as_deref(), WP);
    assert_eq!(guard(&mesh, "of-reviews").as_deref(), WP);
    assert_eq!(guard_of_pod(&mesh, "ratings").as_deref(), other);
    assert_eq!(guard(&mesh, "of-ratings").as_deref(), other);
    assert_eq!(guard(&mesh, "out"), None, "the object speaks first");
    // Another pod behind the service is enough: whoever answers may be of the account.
    mesh.apply(upserts(
        &pod("shop", "reviews", "10.0.0.3")
            .replace("name: reviews, uid: uid-reviews", "name: more, uid: uid-more")
            .replace("{app: reviews}", "{app: ratings}"),
    ));
    assert_eq!(guard(&mesh, "of-ratings").as_deref(), WP);
}

#[test]
fn a_waypoint_for_an_account_may_be_for_its_services_alone() {
    let metadata =
        "annotations: {istio.io/for-service-account: reviews}, labels: {istio.io/waypoint-for: service}";
    let text = [
        waypoint("wp", metadata, "Same"),
        pod("shop", "reviews", "10.0.0.1"),
        service("shop", "of-reviews", "reviews", ""),
    ];
    let mesh = Mesh::of(&text.concat());
    assert_eq!(guard_of_pod(&mesh, "reviews"), None);
    assert_eq!(guard(&mesh, "of-reviews").as_deref(), WP);
}

#[test]
fn the_waypoint_itself_is_neither_guarded_nor_captured() {
    let instance = pod("shop", "wp-1", "10.0.0.9")
        .replace("{app: wp-1}", "{gateway.networking.k8s.io/gateway-name: wp}");
    let text = [
        namespace("shop", "istio.io/use-waypoint: wp, istio.io/dataplane-mode: ambient"),
        instance,
        service("shop", "wp", "x", "gateway.networking.k8s.io/gateway-name: wp"),
    ];
    let mut mesh = Mesh::of(&text.concat());
    assert!(mesh.enrolment("wp-1").verdict.enrol, "a label alone makes no waypoint");
    mesh.apply(upserts(&waypoint("wp", "labels: {istio.io/waypoint-for: all}", "Same")));
    let verdict = &mesh.enrolment("wp-1").verdict;
    assert!(!verdict.enrol && verdict.reason.contains("waypoint"), "{verdict:?}");
    let workload = mesh.workload("wp-1");
    assert!(workload.native_tunnel && workload.tunnel == TunnelProtocol::Hbone);
    assert_eq!((&workload.waypoint, &mesh.service("wp").waypoint), (&None, &None));
}

#[test]
fn a_canary_takes_its_share_or_none() {
    let canary = "istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: next";
    let shares = |weight: &str, more: &[String]| {
        let labelled = service("shop", "web", "x", canary).replace(
            "labels: {",
            &format!("annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}, labels: {{"),
        );
        let mesh = Mesh::of(&(labelled + &waypoint("wp", "", "Same") + &more.concat()));
        let weighted = &mesh.service("web").weighted_waypoints;
        assert_eq!(guard(&mesh, "web").as_deref(), WP, "for those who know no weights");
        (weighted.iter().map(|it| it.weight).collect::<Vec<_>>(), bound(&mesh, "web").expect("said"))
    };
    let next = [waypoint("next", "", "Same")];
    assert_eq!(shares("0", &next).0, [100, 0]);
    assert_eq!(shares("25", &next).0, [75, 25]);
    for (weight, more) in [("101", &next[..]), ("x", &next[..]), ("25", &[])] {
        let (weights, (reason, message)) = shares(weight, more);
        assert!(weights.is_empty(), "{weight}: {weights:?}");
        assert_eq!(reason, "+WaypointAccepted", "the waypoint itself is there");
        assert!(message.contains("Canary waypoint not attached"), "{message}");
    }
}

#[test]
fn a_wish_that_ends_is_taken_out_of_the_status() {
    let said = service("shop", "web", "x", "")
        + "status: {conditions: [{type: istio.io/WaypointBound, status: 'True', reason: WaypointAccepted, message: m}]}\n";
    let mesh = Mesh::of(&said);
    let judgements = mesh.index.judgements(&[], &Silence, true);
    assert!(matches!(judgements.as_slice(), [it] if it.conditions.is_empty()), "{judgements:?}");
}
