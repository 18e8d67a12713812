//! Connections through a waypoint: routes of TCP and TLS, and what a port that declares nothing carries.

use lab::{Pod, Process, Program, ServiceSpec};

use crate::mesh::{SOON, curl, get, is_refusal, serve};
use crate::waypoint::{Guarded, account};

/// Services of the two servers, each of one.
fn versions(guarded: &Guarded) {
    for name in ["one", "two"] {
        let service = ServiceSpec::new("shop", name).selector("version", name);
        let service = service.port("tcp", 80, 8080).port("tls", 443, 8443);
        guarded.mesh.lab.add_service(service).expect("a service");
    }
}

fn tcp_route(backends: &str) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: split, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: server, port: 80}}]
  rules: [{{backendRefs: [{backends}]}}]
"
    )
}

/// How many of 300 connections each version takes.
fn shares(client: &Pod) -> [u64; 2] {
    let args = ["load", "--protocol", "http", "--mode", "new", "--to", "server.shop:80"];
    let program = Program::new("lab-app").args(args).args(["--connections", "4", "--requests", "300"]);
    let account = account(&client.spawn(program).expect("a load"));
    assert_eq!(account["succeeded"], 300, "{account}");
    ["one", "two"].map(|name| account["answered_by"][name].as_u64().unwrap_or_default())
}

#[test]
fn connections_follow_tcp_routes_and_their_changes() {
    let guarded = Guarded::start();
    versions(&guarded);
    let Guarded { mesh, client, .. } = &guarded;
    let url = "http://server.shop/";
    let all_from = |name: &str| {
        lab::wait_until(&format!("connections go to {name}"), SOON, || {
            let names: Vec<_> = (0..8).map(|_| get(client, url)["name"].clone()).collect();
            if names.iter().all(|own| own == name) { Ok(()) } else { Err(format!("{names:?}")) }
        })
        .expect("a route that is followed");
    };
    mesh.lab.apply_yaml("route.yaml", &tcp_route("{name: two, port: 80}")).expect("a route");
    all_from("two");
    guarded.logged(&[("dst.service", "two.shop.svc.cluster.local"), ("dst.workload", "two")]);

    let weights = "{name: one, port: 80, weight: 80}, {name: two, port: 80, weight: 20}";
    mesh.lab.apply_yaml("route.yaml", &tcp_route(weights)).expect("a route");
    lab::wait_until("the weights are followed", SOON, || {
        if (0..4).any(|_| get(client, url)["name"] == "one") { Ok(()) } else { Err("only two answers") }
    })
    .expect("a route that is followed");
    let [one, two] = shares(client);
    // 60 are expected; five standard deviations are 35.
    assert!((25..=95).contains(&two), "{one} and {two} by 80 and 20");

    mesh.lab.apply_yaml("route.yaml", &tcp_route("{name: nobody, port: 80}")).expect("a route");
    lab::wait_until("a backend that is not there takes nothing", SOON, || {
        let output = curl(client, &[url]);
        if output.code().is_some_and(is_refusal) { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .expect("a refusal");
    guarded.logged(&[("code", "route-invalid")]);
    mesh.lab.delete_yaml("route.yaml").expect("no route");
    lab::wait_until("the service's own endpoints are back", SOON, || {
        let output = curl(client, &[url]);
        if output.success() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .expect("an answer");
}

const TLS_ROUTES: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: server, port: 443}]
  hostnames: [one.example]
  rules: [{backendRefs: [{name: one, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: others, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: server, port: 443}]
  hostnames: [\"*.example\"]
  rules: [{backendRefs: [{name: two, port: 443}]}]
";

/// A TLS server with a certificate that says which pod's it is.
fn serve_tls(pod: &Pod) -> Process {
    let name = pod.name();
    let serve = format!(
        "cd $(mktemp -d) && openssl req -config /dev/null -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj \
         /CN={name} -days 1 -keyout key -out crt 2>/dev/null && exec openssl s_server -www -accept 8443 -key key -cert crt"
    );
    let server = pod.spawn(Program::new("sh").args(["-c", &serve])).expect("a server");
    server.wait_for_line("ACCEPT", SOON).expect("a server that listens");
    server
}

#[test]
fn tls_follows_the_name_that_clients_ask_for() {
    let guarded = Guarded::start();
    versions(&guarded);
    let Guarded { mesh, client, servers, .. } = &guarded;
    let _servers = servers.each_ref().map(serve_tls);
    mesh.lab.apply_yaml("tls.yaml", TLS_ROUTES).expect("routes");
    // Whose certificate the client sees, which passes through as it is.
    let subject = |name: &str| {
        let (to, url) = (format!("{name}:443:server.shop:443"), format!("https://{name}/"));
        let output = curl(client, &["-k", "-o", "/dev/null", "-w", "%{certs}", "--connect-to", &to, &url]);
        let subject = output.stdout.lines().find_map(|line| line.strip_prefix("Subject:"));
        subject.map(|text| text.replace(' ', "")).ok_or_else(|| format!("{output:?}"))
    };
    lab::wait_until("a name that no rule is for is refused", SOON, || match subject("one.test") {
        Ok(subject) => Err(subject),
        Err(_) => Ok(()),
    })
    .expect("routes that are followed");
    guarded.logged(&[("code", "route-unmatched")]);
    for (name, version) in [("one.example", "CN=one"), ("two.example", "CN=two"), ("one.example", "CN=one")] {
        assert_eq!(subject(name), Ok(version.to_owned()), "{name}");
    }
    guarded.logged(&[("dst.service", "one.shop.svc.cluster.local"), ("dst.workload", "one")]);
}

/// Names no port, as many do.
const HTTP_ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: moved, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: server}]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 302, hostname: new.shop}}]}]
";

#[test]
fn a_port_that_declares_nothing_follows_routes_and_lets_servers_speak_first() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, servers, .. } = &guarded;
    mesh.lab.apply_yaml("route.yaml", HTTP_ROUTE).expect("a route");
    let told = || {
        let url = "http://server.shop:82/x";
        curl(client, &["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", url]).stdout
    };
    lab::wait_until("the route is followed", SOON, || match told() {
        told if told == "302 http://new.shop:82/x" => Ok(()),
        told => Err(told),
    })
    .expect("a route that is followed");
    let answer = get(client, "http://server.shop/");
    assert!(answer["name"].is_string(), "the route is not about what declares TCP: {answer}");

    let service = ServiceSpec::new("shop", "greeter").selector("app", "server").port("greeting", 70, 7070);
    mesh.lab.add_service(service.label("istio.io/use-waypoint", "waypoint")).expect("a service");
    let _servers = servers.each_ref().map(|pod| serve(pod, &["banner", "--listen", "[::]:7070"]));
    mesh.lab
        .apply_yaml(
            "greeter.yaml",
            &HTTP_ROUTE.replace("name: server", "name: greeter").replace("moved", "greeter"),
        )
        .expect("a route");
    lab::wait_until("the greeter is known", SOON, || {
        let output = client.run(&["lab-app", "greeted", "--to", "greeter.shop:70"][..]);
        match output {
            Ok(output) if output.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .expect("a greeting");
    guarded.logged(&[("dst.service", "greeter.shop.svc.cluster.local"), ("src.workload", "client")]);
}
