//! Through a waypoint: who dials a guarded service reaches it through the waypoint only, encrypted all the way, and under the
//! policies of both.

mod abuse;
mod bodies;
mod examples;
mod revoked;
mod rollout;
mod rows;
mod websockets;

use lab::{Env, LabConfig, Pod, PodSpec, Process, Program, ServiceSpec, Signal};
use serde_json::Value;

use crate::mesh::{Mesh, SOON, comes_from, curl, get, refused, serve};

/// The Gateway that asks for the waypoint `waypoint` of namespace `shop`.
const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: airglow-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// A client on one node, a waypoint and two servers on the other, and a service of the servers that names the waypoint.
pub(crate) struct Guarded {
    pub(crate) mesh: Mesh,
    pub(crate) client: Pod,
    pub(crate) servers: [Pod; 2],
    waypoint: Pod,
    process: Process,
}

impl Guarded {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// `changes` are set over the waypoint's environment.
    fn start_with(changes: &[(&str, &str)]) -> Self {
        let json = Env::from([("AIRGLOW_LOG_FORMAT".to_owned(), "json".to_owned())]);
        let mesh = Mesh::start_with(LabConfig::default(), &json);
        let client = mesh.pod(0, "client");
        let servers = ["one", "two"].map(|name| {
            let spec = PodSpec::new("shop", name).service_account("server").label("app", "server");
            let spec = spec.label("version", name);
            let pod = mesh.node(1).add_pod(spec).expect("a pod");
            serve(&pod, &["http", "--name", name]);
            pod
        });
        let service = ServiceSpec::new("shop", "server")
            .selector("app", "server")
            .port("tcp", 80, 8080)
            .port("http", 81, 8080)
            .port("tls", 443, 8443)
            .port("plain", 82, 8080);
        let service = service.label("istio.io/use-waypoint", "waypoint");
        mesh.lab.add_service(service).expect("a service");

        mesh.lab.apply_yaml("gateway.yaml", GATEWAY).expect("a manifest");
        mesh.lab.add_service(ServiceSpec::waypoint("shop", "waypoint")).expect("a service");
        let spec = PodSpec::waypoint("shop", "waypoint", "waypoint-0");
        let waypoint = mesh.node(1).add_pod(spec).expect("a pod");
        let mut environment = json;
        environment.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let process = waypoint.start_waypoint(environment).expect("a waypoint");

        let [one, two] = &servers;
        mesh.enrol("shop", &[&client, one, two]);
        mesh.until_dumps("the service names its waypoint", |dump| {
            let services = dump["services"].as_array().into_iter().flatten();
            let named = services.into_iter().any(|service| {
                service["name"] == "server"
                    && service["waypoint"].as_object().is_some_and(|way| !way.is_empty())
            });
            let reached =
                crate::mesh::workload(dump, &waypoint).is_some_and(|own| own["protocol"] == "HBONE");
            if named && reached { Ok(()) } else { Err(format!("service {named}, waypoint {reached}")) }
        });
        Self { mesh, client, servers, waypoint, process }
    }

    /// A guarded service of the first server, at port 81.
    fn service(&self, name: &str, target: u16) {
        let spec = ServiceSpec::new("shop", name).selector("version", "one").port("http", 81, target);
        let spec = spec.label("istio.io/use-waypoint", "waypoint");
        self.mesh.lab.add_service(spec).expect("a service");
        self.mesh.until_dumps(name, |dump| {
            let services = dump["services"].as_array().into_iter().flatten();
            let known = services.into_iter().any(|service| service["name"] == name);
            if known { Ok(()) } else { Err("it is not known".to_owned()) }
        });
    }

    /// The waypoint's resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()));
        let status = status.expect("the waypoint runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
        let kilobytes = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        kilobytes.expect("kilobytes") << 10
    }

    /// Waits for an access-log line of the waypoint that has all these values.
    pub(crate) fn logged(&self, wanted: &[(&str, &str)]) {
        let what = format!("an access-log line of the waypoint with {wanted:?}");
        lab::wait_until(&what, SOON, || self.has_logged(wanted)).expect("a line");
    }

    /// Whether the waypoint has written such an access-log line; what it has written instead.
    pub(crate) fn has_logged(&self, wanted: &[(&str, &str)]) -> Result<(), String> {
        let output = self.process.output().stdout;
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_it = |line: &Value| wanted.iter().all(|(key, value)| line[*key] == *value);
        if lines.into_iter().any(|line| is_it(&line)) { Ok(()) } else { Err(output) }
    }
}

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

#[test]
fn a_guarded_service_is_reached_through_its_waypoint_only() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, servers, waypoint, process } = &guarded;
    let canary = "canary-of-the-waypoint";
    let seen = mesh.lab.wire().watch(canary);
    let url = format!("http://server.shop/{canary}");

    let names = (0..40).map(|_| {
        let answer = get(client, &url);
        assert!(comes_from(&answer, waypoint), "the server is dialled by the waypoint: {answer}");
        answer["name"].as_str().expect("a name").to_owned()
    });
    let names: std::collections::BTreeSet<_> = names.collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["one", "two"], "both servers are used");
    assert_eq!(seen.count().expect("a whole capture"), 0, "no byte of the canary crosses the wire");
    guarded.logged(&[
        ("src.identity", CLIENT),
        ("src.workload", "client"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/server"),
        ("dst.service", "server.shop.svc.cluster.local"),
    ]);

    // What does not name the waypoint is reached without it, as ever.
    let direct = get(client, &format!("http://{}:8080/{canary}", servers[0].ip()));
    assert!(comes_from(&direct, client), "{direct}");

    process.terminate().expect("the waypoint ends in good order");
    refused(client, &url);
    let restarted = waypoint.start_waypoint(Env::new()).expect("a waypoint");
    lab::wait_until("the service is reached again", SOON, || {
        let output = curl(client, &[&url]);
        if output.success() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .expect("the service");
    restarted.kill().expect("a kill");
    refused(client, &url);
    assert_eq!(seen.count().expect("a whole capture"), 0, "no byte of the canary crosses the wire");
}

/// A DENY of the client on the servers, which let the waypoint in.
const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-the-client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";

#[test]
fn nobody_gets_around_a_deny_by_way_of_a_waypoint() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, .. } = &guarded;
    let other = mesh.pod(0, "other");
    other.wait_for_state("enrolled", SOON).expect("enrolment");
    let url = "http://server.shop/";
    get(client, url);
    mesh.lab.apply_yaml("deny.yaml", DENY).expect("a policy");
    lab::wait_until("the policy is known", SOON, || {
        let output = curl(client, &[url]);
        if output.success() { Err("the client still gets an answer".to_owned()) } else { Ok(()) }
    })
    .expect("a refusal");
    refused(client, url);
    guarded.logged(&[("src.identity", CLIENT), ("code", "policy-denied")]);
    get(&other, url);
    mesh.lab.delete_yaml("deny.yaml").expect("no policy");
    lab::wait_until("the policy is gone", SOON, || {
        let output = curl(client, &[url]);
        if output.success() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .expect("an answer");
}

#[test]
fn a_guarded_pod_refuses_who_comes_around_its_waypoint() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, waypoint, .. } = &guarded;
    let stranger = mesh.pod_in("wild", 0, "stranger");
    let spec = PodSpec::new("shop", "lone").service_account("lone");
    let lone = mesh.node(1).add_pod(spec.label("istio.io/use-waypoint", "waypoint")).expect("a pod");
    serve(&lone, &["http"]);
    lone.wait_for_state("enrolled", SOON).expect("enrolment");
    let url = format!("http://{}:8080/", lone.ip());
    lab::wait_until("the pod is reached through its waypoint", SOON, || {
        let output = curl(client, &[&url]);
        let answer: Option<Value> = serde_json::from_str(&output.stdout).ok();
        match answer.filter(|answer| comes_from(answer, waypoint)) {
            Some(_) => Ok(()),
            None => Err(format!("{output:?}")),
        }
    })
    .expect("an answer");
    refused(&stranger, &url);
    crate::mesh::logged(&mesh.node(1), &["around-waypoint"]);
}

#[test]
fn each_request_of_a_connection_goes_its_own_way() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, waypoint, .. } = &guarded;
    let canary = "canary-of-requests";
    let seen = mesh.lab.wire().watch(canary);
    let url = format!("http://server.shop:81/{canary}");
    let urls: Vec<&str> = std::iter::repeat_n(url.as_str(), 40).collect();
    let lab = mesh.node(0).run_dir().parent().expect("the lab's directory").display().to_string();
    let args = ["trace", "-n", "shop", "pod/client", "--json", "--count", "40", "--run-dir", &lab];
    let trace = mesh.lab.spawn_outside(Program::new(crate::mesh::beside("airglow")).args(args));
    let trace = trace.expect("airglow trace");
    trace.wait_for_line("listening to", SOON).expect("it listens");
    let output = curl(client, &urls);
    assert!(output.success(), "{output:?}");
    let answers = serde_json::Deserializer::from_str(&output.stdout).into_iter::<Value>();
    let answers: Vec<Value> = answers.collect::<Result<_, _>>().expect("answers");
    assert_eq!(answers.len(), 40);
    assert!(answers.iter().all(|answer| comes_from(answer, waypoint)), "{answers:?}");
    let names: std::collections::BTreeSet<_> =
        answers.iter().filter_map(|answer| answer["name"].as_str()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["one", "two"], "one connection, both servers");
    assert_eq!(seen.count().expect("a whole capture"), 0, "no byte of the canary crosses the wire");
    let traced = trace.wait(SOON).expect("it ends after so many");
    let traced: Vec<Value> =
        traced.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(traced.len(), 40);
    let answered = |name: &str| traced.iter().filter(|one| one["destination"]["workload"] == name).count();
    assert!(answered("one") > 0 && answered("two") > 0, "{traced:?}");
    assert!(
        traced.iter().all(|one| one["status"] == 200 && one["source"]["identity"] == CLIENT),
        "{traced:?}"
    );
    assert!(traced[0]["steps"].as_array().is_some_and(|steps| steps.len() > 2), "{}", traced[0]);
}

/// What is asked of `server:81`: a header leads to one version, a path is moved, another rewritten, and the rest is shared out.
/// `x-weights` says which weights answered.
fn route(one: u32, two: u32) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: canary, namespace: shop}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: server, port: 81}}]
  rules:
  - matches: [{{headers: [{{name: x-canary, value: please}}]}}]
    backendRefs: [{{name: two, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /old}}}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {{statusCode: 301, hostname: new.shop, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /new}}}}
  - matches: [{{path: {{type: PathPrefix, value: /api}}}}]
    filters:
    - {{type: URLRewrite, urlRewrite: {{hostname: inner.shop, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}}}}
    - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: api}}], remove: [x-secret]}}}}
    backendRefs: [{{name: one, port: 80}}]
  - filters:
    - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-weights, value: \"{one}-{two}\"}}]}}}}
    backendRefs: [{{name: one, port: 80, weight: {one}}}, {{name: two, port: 80, weight: {two}}}]
"
    )
}

/// Breaks what one user asks for.
const FAULT: &str = "\
apiVersion: airglow.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: not-for-jane, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: server}]
  fault:
    until: \"2099-01-01T00:00:00Z\"
    matches: [{headers: [{name: x-user, value: jane}], clients: [{serviceAccount: client}]}]
    abort: {httpStatus: 418}
";

const URL: &str = "http://server.shop:81";

/// What curl was answered, as `format` has it.
fn told(client: &Pod, format: &str, args: &[&str]) -> String {
    let words: Vec<&str> =
        ["-o", "/dev/null", "-w", format].into_iter().chain(args.iter().copied()).collect();
    let output = curl(client, &words);
    assert!(output.success(), "{args:?}: {output:?}");
    output.stdout
}

fn until_told(client: &Pod, format: &str, args: &[&str], wanted: &str) {
    lab::wait_until(&format!("{args:?} is answered with {wanted}"), SOON, || {
        let told = told(client, format, args);
        if told == wanted { Ok(()) } else { Err(told) }
    })
    .expect("an answer");
}

/// The load's last words, once it has ended by itself or was told to.
pub(crate) fn account(load: &Process) -> Value {
    let output = load.wait(SOON).expect("an end");
    let last = output.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {output:?}"))
}

fn load(to: &str, mode: &str, connections: u32) -> Program {
    let connections = connections.to_string();
    let args = ["load", "--protocol", "http", "--mode", mode, "--to", to, "--connections", &connections];
    Program::new("lab-app").args(args)
}

/// How many of so many requests each version answers.
fn shares_of(client: &Pod, to: &str, connections: u32, requests: u64) -> [u64; 2] {
    let load = load(to, "keep", connections).args(["--requests", &requests.to_string()]);
    let account = account(&client.spawn(load).expect("a load"));
    assert_eq!(account["succeeded"], requests, "{account}");
    ["one", "two"].map(|name| account["answered_by"][name].as_u64().unwrap_or_default())
}

fn shares(client: &Pod) -> [u64; 2] {
    shares_of(client, "server.shop:81", 4, 600)
}

#[test]
fn requests_follow_routes_and_their_changes() {
    let guarded = Guarded::start();
    let Guarded { mesh, client, .. } = &guarded;
    for name in ["one", "two"] {
        let service = ServiceSpec::new("shop", name).selector("version", name).port("http", 80, 8080);
        mesh.lab.add_service(service).expect("a service");
    }
    const WEIGHTS: &str = "%header{x-weights}";
    mesh.lab.apply_yaml("route.yaml", &route(90, 10)).expect("a route");
    until_told(client, WEIGHTS, &[URL], "90-10");

    // What is expected, and five standard deviations to either side.
    let [one, two] = shares(client);
    assert!((23..=97).contains(&two), "{one} and {two} by 90 and 10");
    let steady =
        client.spawn(load("server.shop:81", "keep", 4).args(["--interval-ms", "5"])).expect("a load");
    steady.wait_for_line("working", SOON).expect("a load that works");
    mesh.lab.apply_yaml("route.yaml", &route(50, 50)).expect("a route");
    until_told(client, WEIGHTS, &[URL], "50-50");
    let [one, two] = shares(client);
    assert!((239..=361).contains(&two), "{one} and {two} by 50 and 50");
    steady.signal(Signal::SIGTERM).expect("a signal");
    let account = account(&steady);
    assert_eq!(account["failed"], 0, "no request suffers from the change: {account}");
    assert!(account["succeeded"].as_u64().is_some_and(|count| count > 0), "{account}");

    let answer = |args: &[&str]| -> Value {
        let output = curl(client, args);
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{output:?}: {error}"))
    };
    for _ in 0..10 {
        assert_eq!(answer(&["-H", "x-canary: please", URL])["name"], "two");
    }
    let old = format!("{URL}/old/page?q=1");
    assert_eq!(
        told(client, "%{http_code} %{redirect_url}", &[&old]),
        "301 http://new.shop:81/new/page?q=1",
        "where the client is sent"
    );
    let seen = answer(&["-H", "x-secret: s", &format!("{URL}/api/x%2Fy?q=1")]);
    assert_eq!((&seen["name"], &seen["path"]), (&"one".into(), &"/v1/x%2Fy?q=1".into()), "{seen}");
    let headers = &seen["headers"];
    assert_eq!((&headers["host"], &headers["x-rule"]), (&"inner.shop".into(), &"api".into()), "{seen}");
    assert_eq!(headers["x-secret"], Value::Null, "{seen}");

    mesh.lab.apply_yaml("fault.yaml", FAULT).expect("a policy");
    const STATUS: &str = "%{http_code}";
    let jane = ["-H", "x-user: jane", URL];
    until_told(client, STATUS, &jane, "418");
    for _ in 0..10 {
        assert_eq!(told(client, STATUS, &jane), "418");
        assert_eq!(told(client, STATUS, &["-H", "x-user: john", URL]), "200", "the others have no trouble");
    }
    mesh.lab.delete_yaml("fault.yaml").expect("no policy");
    until_told(client, STATUS, &jane, "200");
    mesh.lab.delete_yaml("route.yaml").expect("no route");
    until_told(client, WEIGHTS, &[URL], "");
    assert_eq!(told(client, STATUS, &[&old]), "200", "no route is left");
}
