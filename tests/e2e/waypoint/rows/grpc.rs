//! Rows about GRPCRoutes. The servers say what they saw of a call instead of answering it as gRPC would.

use lab::ServiceSpec;

use super::{Check, Guarded, SOON, Seen};
use crate::mesh::serve;

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: calls}]
  rules:
  - matches: [{method: {service: lab.Echo, method: Two}}]
    backendRefs: [{name: two-grpc, port: 80}]
  - matches: [{method: {service: lab.Echo}, headers: [{name: version, value: two}]}]
    backendRefs: [{name: two-grpc, port: 80}]
  - name: named
    matches: [{method: {service: lab.Edited}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-remove]}
    backendRefs: [{name: one-grpc, port: 80}]
  - matches: [{method: {service: lab.Shared}}]
    backendRefs:
    - {name: one-grpc, port: 80, weight: 70}
    - {name: two-grpc, port: 80, weight: 30}
    - {name: missing, port: 80, weight: 0}
  - matches: [{method: {service: lab.Nowhere}}]
    backendRefs: [{name: missing, port: 80}]
  - matches: [{method: {service: lab.Echo}}]
    backendRefs: [{name: one-grpc, port: 80}]
---
";

/// Makes servers and Services and returns the route.
pub(super) fn prepare(guarded: &Guarded) -> String {
    let lab = &guarded.mesh.lab;
    for (pod, name) in guarded.servers.iter().zip(["one", "two"]) {
        serve(pod, &["http", "--http2", "--listen", "[::]:8083", "--name", name]);
        let spec = ServiceSpec::new("shop", format!("{name}-grpc")).selector("version", name);
        lab.add_service(spec.port("grpc", 80, 8083)).expect("a service");
    }
    let spec = ServiceSpec::new("shop", "calls").selector("app", "server").port("grpc", 80, 8083);
    lab.add_service(spec.label("istio.io/use-waypoint", "waypoint")).expect("a service");
    ROUTE.to_owned()
}

/// What makes a call of curl's request, with these headers, whose path follows.
fn call<'a>(more: &[&'a str], path: &'a str) -> Vec<&'a str> {
    let words = [
        "--http2-prior-knowledge",
        "-X",
        "POST",
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
    ];
    let more = more.iter().flat_map(|header| ["-H", *header]);
    words.into_iter().chain(more).chain([path]).collect()
}

/// GRPCExactMethodMatching, GRPCRouteHeaderMatching, GRPCRouteNamedRule, MeshGRPCRouteRequestHeaderModifier, MeshGRPCRouteWeight.
pub(super) fn hold(guarded: &Guarded) {
    let (client, host) = (&guarded.client, "calls.shop");
    let is = |more: &[&str], path: &str, facts: &[&str]| {
        let check = Check(&call(more, path), facts);
        Seen::of(client, host, check.0).complaint(host, &check)
    };
    let nothing = || is(&[], "/lab.None/One", &["grpc-status=12"]);
    lab::wait_until("a GRPCRoute", SOON, nothing).expect("a route in force");
    let rows: [(&[&str], &str, &[&str]); 7] = [
        (&[], "/lab.Echo/One", &["server=one", "method=POST"]),
        (&[], "/lab.Echo/Two", &["server=two"]),
        (&["version: two"], "/lab.Echo/One", &["server=two", ">version=two"]),
        (&["version: three"], "/lab.Echo/One", &["server=one"]),
        (
            &["x-set: old", "x-add: old", "x-remove: old"],
            "/lab.Edited/Any",
            &["server=one", ">x-set=s", ">x-add=old,a", ">x-remove=", ">te=trailers"],
        ),
        (&[], "/lab.Nowhere/One", &["grpc-status=14"]),
        (&[], "/lab.echo/One", &["grpc-status=12"]),
    ];
    for (more, path, facts) in rows {
        is(more, path, facts).expect("a row");
    }
    // On one connection.
    let words = ["grpc-count", "--to", "calls.shop:80", "--calls", "500", "--path", "/lab.Shared/One"];
    let answered = &crate::mesh::client(client, &words)["answered_by"];
    let [one, two] = ["one", "two"].map(|name| answered[name].as_u64().unwrap_or_default());
    assert_eq!(one + two, 500, "{answered}");
    assert!((99..=201).contains(&two), "{one} and {two} by 70 and 30");
}
