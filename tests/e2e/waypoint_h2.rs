//! gRPC through a waypoint, between two nodes: real messages, codes and trailers, and a long stream both ways.

use lab::{Pod, Program, ServiceSpec};
use serde_json::Value;

use crate::mesh::{SOON, serve};
use crate::waypoint::Guarded;

/// Calls of `lab.Echo` at `calls:90`, shared out between two versions.
const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: calls, port: 90}]
  rules:
  - matches: [{method: {service: lab.Echo}}]
    backendRefs: [{name: calls-one, port: 90, weight: 1}, {name: calls-two, port: 90, weight: 1}]
";

/// What passes both ways in one call, through builds that are not optimised.
const STREAM: u64 = 128 << 20;

/// The client's account, if all its calls ended as they should.
fn called(client: &Pod, args: &[&str]) -> Result<Value, String> {
    let program = Program::new("lab-app").args(["grpc-client", "--to", "calls.shop:90"]).args(args);
    let output = client.run_within(program, SOON).expect("a client that ends");
    if !output.success() {
        return Err(format!("{args:?}: {output:?}"));
    }
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|error| format!("{error} in {output:?}"))
}

#[test]
fn calls_pass_with_their_messages_codes_and_trailers() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, servers, .. } = &guarded;
    for (server, name) in servers.iter().zip(["one", "two"]) {
        serve(server, &["grpc", "--listen", "[::]:9090"]);
        let version = ServiceSpec::new("shop", format!("calls-{name}")).selector("version", name);
        mesh.lab.add_service(version.port("grpc", 90, 9090)).expect("a service");
    }
    let calls = ServiceSpec::new("shop", "calls").selector("app", "server").port("grpc", 90, 9090);
    mesh.lab.add_service(calls.label("istio.io/use-waypoint", "waypoint")).expect("a service");
    let until = |what: &str, args: &[&str]| {
        lab::wait_until(what, SOON, || called(client, args).map(drop)).expect("calls");
    };
    until("calls without a route", &["--calls", "20"]);
    mesh.lab.apply_yaml("calls.yaml", ROUTE).expect("a route");
    until("a method that no rule is about", &["--method", "/lab.None/Echo", "--status", "12"]);
    called(client, &["--calls", "200", "--size", "30000"]).expect("calls");
    let stream = STREAM.to_string();
    let account = called(client, &["--method", "/lab.Echo/Stream", "--stream", &stream]).expect("a stream");
    assert_eq!(account["bytes"], STREAM, "{account}");
    for version in ["one", "two"] {
        guarded.logged(&[("path", "/lab.Echo/Echo"), ("protocol", "HTTP/2"), ("dst.workload", version)]);
    }
}
