//! gRPC through a waypoint, between two nodes: real messages, codes and trailers, and long streams with their checksums.

use std::time::Duration;

use lab::{Pod, Program, ServiceSpec};

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

/// What passes to the server in one call.
const UP: u64 = 1 << 30;
/// And both ways in another, meanwhile. Less, for the time that it takes builds that are not optimised.
const BOTH_WAYS: u64 = 128 << 20;

/// Seconds on an idle machine; never a measurement.
const TRANSFERRED: Duration = Duration::from_secs(240);

fn caller(args: &[&str]) -> Program {
    Program::new("lab-app").args(["grpc-client", "--to", "calls.shop:90"]).args(args)
}

/// Whether all calls ended as they should.
fn called(client: &Pod, args: &[&str]) -> Result<(), String> {
    let output = client.run_within(caller(args), SOON).expect("a client that ends");
    if output.success() { Ok(()) } else { Err(format!("{args:?}: {output:?}")) }
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
        lab::wait_until(what, SOON, || called(client, args)).expect("calls");
    };
    until("calls without a route", &["--calls", "20"]);
    mesh.lab.apply_yaml("calls.yaml", ROUTE).expect("a route");
    until("a method that no rule is about", &["--method", "/lab.None/Echo", "--status", "12"]);
    called(client, &["--calls", "200", "--size", "30000"]).expect("calls");

    let before = guarded.resident();
    let streams = [("--sum", UP), ("--stream", BOTH_WAYS)]
        .map(|(how, bytes)| client.spawn(caller(&[how, &bytes.to_string()])).expect("a client"));
    for stream in streams {
        let output = stream.wait(TRANSFERRED).expect("a stream that ends");
        assert!(output.success(), "{output:?}");
    }
    let grown = guarded.resident().saturating_sub(before);
    assert!(grown < 128 << 20, "two streams cost {grown} bytes");
    for version in ["one", "two"] {
        guarded.logged(&[("path", "/lab.Echo/Echo"), ("protocol", "HTTP/2"), ("dst.workload", version)]);
    }
}
