//! Rows that take more than one request and its answer: shares, and who is meant by a route.

use lab::{Pod, PodSpec, ServiceSpec};

use super::{Check, Guarded, SOON, Seen, repeated, service};
use crate::waypoint::shares_of;

/// The Services that these rows are about.
const PARENTS: [&str; 7] = ["weights", "addressed", "other", "one-port", "consumed", "half", "across"];

/// What a route without anything else is told by.
fn marking(mark: &str) -> String {
    format!(
        "  - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-route, value: {mark}}}]}}}}]\n    \
             backendRefs: [{{name: one, namespace: shop, port: 80}}]\n"
    )
}

/// Makes the Services and returns the routes.
pub(super) fn prepare(guarded: &Guarded) -> String {
    let lab = &guarded.mesh.lab;
    for name in PARENTS {
        lab.add_service(service(name)).expect("a service");
    }
    let headless = ServiceSpec::new("shop", "headless").selector("version", "two").port("http", 80, 8080);
    lab.add_service(headless.headless()).expect("a service");
    let weights = "
  - backendRefs:
    - {name: one, port: 80, weight: 70, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: one}]}}]}
    - {name: two, port: 80, weight: 30, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: two}]}}]}
    - {name: missing, port: 80, weight: 0}
";
    let half = "  - backendRefs: [{name: one, port: 80}, {name: missing, port: 80}]\n";
    let prefix = |path: &str, to: &str| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n    backendRefs: [{{name: {to}, port: 80}}]\n"
        )
    };
    let named = |name: &str, namespace: &str, parent: &str, rules: &str| {
        let parent = format!("group: \"\", kind: Service, namespace: shop, name: {parent}");
        let spec = format!("spec:\n  parentRefs: [{{{parent}}}]\n  rules:\n{rules}---\n");
        let head = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute";
        format!("{head}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{spec}")
    };
    [
        named("weights", "shop", "weights", weights),
        named("half", "shop", "half", half),
        named("addressed", "shop", "addressed", &marking("addressed")),
        named("one-port", "shop", "one-port, port: 80", &marking("one-port")),
        named("consumed", "consumer", "consumed", &marking("consumer")),
        named("across-a", "shop", "across", &(prefix("/", "one") + &prefix("/a", "two"))),
        named("across-b", "shop", "across", &prefix("/a/b", "one")),
        named(
            "across-c",
            "shop",
            "across",
            &(prefix("/headless", "headless") + &prefix("/by-hand", "by-hand")),
        ),
        by_hand(&guarded.servers[0]),
    ]
    .concat()
}

/// A Service without a selector, whose endpoint is written by hand.
fn by_hand(pod: &Pod) -> String {
    let port = "name: http, port";
    format!(
        "\
apiVersion: v1
kind: Service
metadata: {{name: by-hand, namespace: shop}}
spec: {{clusterIP: 10.96.250.3, clusterIPs: [10.96.250.3], ports: [{{{port}: 80, targetPort: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: by-hand-1, namespace: shop, labels: {{kubernetes.io/service-name: by-hand}}}}
addressType: IPv4
endpoints: [{{addresses: [{}], conditions: {{ready: true}}}}]
ports: [{{{port}: 8080, protocol: TCP}}]
---
",
        pod.ip()
    )
}

fn check(guarded: &Guarded, host: &str, check: &Check<'_>) -> Result<(), String> {
    Seen::of(&guarded.client, host, check.0).complaint(host, check)
}

/// MeshHTTPRouteWeight, HTTPRouteBackendRequestHeaderModifierWeights: by request, not by connection, and a backend's filters for its
/// own share.
pub(super) fn weights(guarded: &Guarded) {
    let client = &guarded.client;
    let host = "weights.shop";
    let of_route = || match Seen::of(client, host, &["/"]).value(">x-backend").as_str() {
        "" => Err("no route yet"),
        _ => Ok(()),
    };
    lab::wait_until("the weights", SOON, of_route).expect("a route in force");
    for _ in 0..10 {
        let seen = Seen::of(client, host, &["/"]);
        assert_eq!(seen.value("server"), seen.value(">x-backend"));
    }
    let [one, two] = shares_of(client, "weights.shop:80", 1, 500);
    assert!((99..=201).contains(&two), "{one} and {two} by 70 and 30");
}

/// HTTPRouteInvalidBackendRefs in part: the share of what leads nowhere is answered with 500.
pub(super) fn shares_of_what_leads_nowhere(guarded: &Guarded) {
    let told = repeated(&guarded.client, "http://half.shop/", 100);
    let count = |wanted: &str| told.lines().filter(|line| *line == wanted).count();
    let failed = count("500 ");
    assert_eq!(failed + count("200 one"), 100, "{told}");
    assert!((25..=75).contains(&failed), "{failed} of 100 were answered with 500");
}

/// MeshFrontend, MeshFrontendHostname: a route is chosen by the address that is dialled, whatever the Host says.
pub(super) fn addresses(guarded: &Guarded) {
    let wait = || check(guarded, "addressed.shop", &Check(&["/"], &["<x-route=addressed"]));
    lab::wait_until("the route of an address", SOON, wait).expect("a route in force");
    let holds = |host: &str, one: Check<'_>| check(guarded, host, &one).expect("a row");
    holds(
        "addressed.shop",
        Check(&["-H", "Host: other.shop", "/"], &["<x-route=addressed", "host=other.shop"]),
    );
    holds("other.shop", Check(&["-H", "Host: addressed.shop", "/"], &["<x-route=", "host=addressed.shop"]));
    let pod = format!("{}:8080", guarded.servers[0].ip());
    holds(
        &pod,
        Check(&["-H", "Host: addressed.shop", "/"], &["<x-route=", "host=addressed.shop", "server=one"]),
    );
}

/// MeshPorts: a parent's port, and no other.
pub(super) fn ports(guarded: &Guarded) {
    let wait = || check(guarded, "one-port.shop", &Check(&["/"], &["<x-route=one-port"]));
    lab::wait_until("the route of a port", SOON, wait).expect("a route in force");
    check(guarded, "one-port.shop:81", &Check(&["/"], &["<x-route="])).expect("the other port has no route");
    check(guarded, "addressed.shop:81", &Check(&["/"], &["<x-route=addressed"]))
        .expect("a route of all ports");
}

/// HTTPRouteMatchingAcrossRoutes; HTTPRouteServiceTypes, a backend that is headless, and one whose endpoints are written by hand.
pub(super) fn across(guarded: &Guarded) {
    let wait = || check(guarded, "across.shop", &Check(&["/a"], &["server=two"]));
    lab::wait_until("several routes of one parent", SOON, wait).expect("routes in force");
    for (path, server) in [
        ("/", "server=one"),
        ("/a/c", "server=two"),
        ("/a/b/c", "server=one"),
        ("/headless", "server=two"),
        ("/by-hand", "server=one"),
    ] {
        check(guarded, "across.shop", &Check(&[path], &[server])).expect("a row");
    }
}

/// MeshConsumerRoute: a route of another namespace is for that namespace's clients.
pub(super) fn consumers(guarded: &Guarded) {
    let spec = PodSpec::new("consumer", "consumer").service_account("consumer");
    let consumer = guarded.mesh.node(0).add_pod(spec).expect("a pod");
    guarded.mesh.enrol("consumer", &[&consumer]);
    let wanted = Check(&["/"], &["<x-route=consumer", "server=one"]);
    let wait = || Seen::of(&consumer, "consumed.shop", &["/"]).complaint("consumed.shop", &wanted);
    lab::wait_until("the consumer's route", SOON, wait).expect("a route in force");
    check(guarded, "consumed.shop", &Check(&["/"], &["<x-route="])).expect("others have no route");
}
