//! Services of every kind answer pods of the mesh as they did before they were in it, and servers see the same clients.

use std::collections::{BTreeMap, BTreeSet};

use lab::Program;
use serde_json::Value;

use crate::install::executable;
use crate::mesh::{Pod, failures, meshed, pod};
use crate::{Namespace, PATIENCE, eventually, shared};

/// Addresses of services, in the range that is never given out by itself.
const PLAIN: &str = "10.96.0.110";
const STICKY: &str = "10.96.0.111";
const LOCAL: &str = "10.96.0.112";
const NEAR: &str = "10.96.0.113";
const MANUAL: &str = "10.96.0.114";
const MANUAL_POD: &str = "10.96.0.115";
const ALONE: &str = "10.96.0.116";
const PORT: u16 = 30111;
const LOCAL_PORT: u16 = 30112;

/// Where a server listens on the second node, outside of any pod.
const HOST_PORT: u16 = 18081;

/// Connections by which a choice among servers is judged: two servers would both be met but once in 500 runs.
const ENOUGH: usize = 10;

fn manifests() -> String {
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: kinds}}\nspec: {{{spec}}}\n"
        )
    };
    let web = "selector: {set: web}, ports: [{port: 80, targetPort: 8080}]";
    let by_node = |port: u16| {
        format!(
            "type: NodePort, selector: {{set: web}}, ports: [{{port: 80, targetPort: 8080, nodePort: {port}}}]"
        )
    };
    let slice = |name: &str, address: &str, port: u16| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: kinds, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nendpoints: [{{addresses: [{address}]}}]\nports: [{{port: {port}}}]\n"
        )
    };
    let server = |name: &str, node: &str, set: &str| {
        pod("kinds", name, node, &["http", "--name", name])
            .replace(&format!("labels: {{app: {name}}}"), &format!("labels: {{app: {name}, set: {set}}}"))
    };
    [
        server("near", "n1", "web"),
        server("far", "n2", "web"),
        server("alone", "n1", "alone"),
        pod("kinds", "client", "n1", &["echo"]),
        service("plain", &format!("clusterIP: {PLAIN}, {web}")),
        service("sticky", &format!("clusterIP: {STICKY}, sessionAffinity: ClientIP, {web}")),
        service("local", &format!("clusterIP: {LOCAL}, internalTrafficPolicy: Local, {web}")),
        service("close", &format!("clusterIP: {NEAR}, trafficDistribution: PreferSameNode, {web}")),
        service("port", &by_node(PORT)),
        service("local-port", &format!("externalTrafficPolicy: Local, {}", by_node(LOCAL_PORT))),
        service("headless", "clusterIP: None, selector: {set: web}, ports: [{port: 8080}]"),
        service("external", "type: ExternalName, externalName: plain.kinds.svc.cluster.local"),
        service("manual", &format!("clusterIP: {MANUAL}, ports: [{{port: 80}}]")),
        slice("manual", &shared().node(1).ips()[0].to_string(), HOST_PORT),
        service(
            "alone",
            &format!("clusterIP: {ALONE}, selector: {{set: alone}}, ports: [{{port: 80, targetPort: 8080}}]"),
        ),
    ]
    .concat()
}

/// A Service without a selector whose endpoint is a pod, by nothing but its address.
fn manual_pod(address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: manual-pod, namespace: kinds}}\n\
         spec: {{clusterIP: {MANUAL_POD}, ports: [{{port: 80}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: manual-pod-1, namespace: kinds, labels: {{kubernetes.io/service-name: manual-pod}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [{address}]}}]\nports: [{{port: 8080}}]\n"
    )
}

/// Who answered, and whom that server saw.
type Seen = BTreeMap<&'static str, BTreeSet<(String, String)>>;

fn seen(answer: &Value) -> (String, String) {
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    let client = text("client");
    (text("name"), client.rsplit_once(':').map_or(client.clone(), |(ip, _)| ip.to_owned()))
}

/// What each kind of service answers to a pod, in as many connections as it takes to know.
fn by_services(kinds: &Namespace<'_>, canary: &str) -> Seen {
    let names = |name: &str| format!("http://{name}.kinds.svc.cluster.local");
    let asked = [
        ("plain", format!("http://{PLAIN}"), Some(2)),
        ("sticky", format!("http://{STICKY}"), None),
        ("local", format!("http://{LOCAL}"), None),
        ("close", format!("http://{NEAR}"), None),
        // The resolver library prefers what is near: always the same pod.
        ("headless", format!("{}:8080", names("headless")), None),
        ("external", names("external"), Some(2)),
        ("manual", format!("http://{MANUAL}"), None),
        ("manual-pod", format!("http://{MANUAL_POD}"), None),
    ];
    let mut all = Seen::new();
    for (kind, url, servers) in asked {
        let url = format!("{url}/{canary}-{kind}");
        // The first answer may take until nodes and DNS have heard of everything.
        let mut found =
            BTreeSet::from([seen(&kinds.curl_until("client", &url, |answer| answer["name"].is_string()))]);
        match servers {
            Some(servers) => eventually(&format!("{servers} servers of {kind}"), || {
                found.insert(seen(&kinds.ask("client", &url)?));
                if found.len() == servers { Ok(()) } else { Err(format!("{found:?}")) }
            }),
            None => {
                // One program, so that it costs one kubectl.
                let again = format!(
                    "for n in 1 2 3 4 5 6 7 8 9 {ENOUGH}; do curl -sS -m 10 {url} || echo failed; done"
                );
                let said =
                    kinds.exec("client", &["sh", "-c", &again]).unwrap_or_else(|error| panic!("{error}"));
                for line in said.lines() {
                    let answer = serde_json::from_str(line)
                        .unwrap_or_else(|error| panic!("{kind}: {line:?}: {error}"));
                    found.insert(seen(&answer));
                }
            }
        }
        all.insert(kind, found);
    }
    all
}

/// What ports of the nodes answer to somebody outside of the mesh: the second node itself, by the first.
fn by_ports() -> Seen {
    let ask = |port: u16| {
        let url = format!("http://{}:{port}/outside", shared().node(0).ips()[0]);
        let output =
            shared().node(1).run(["curl", "-sS", "-m", "10", &url]).map_err(|error| error.to_string())?;
        serde_json::from_str::<Value>(&output.stdout).map_err(|error| format!("{output:?}: {error}"))
    };
    let mut all = Seen::new();
    for (kind, port, servers) in [("port", PORT, 2), ("local-port", LOCAL_PORT, 1)] {
        let mut found = BTreeSet::new();
        let mut answers = 0;
        eventually(&format!("{servers} servers of {kind}"), || {
            found.insert(seen(&ask(port)?));
            answers += 1;
            if found.len() == servers && answers >= ENOUGH { Ok(()) } else { Err(format!("{found:?}")) }
        });
        all.insert(kind, found);
    }
    all
}

#[test]
fn services_of_every_kind_answer_pods_of_the_mesh_as_before() {
    let kinds = Namespace::new(meshed(), "kinds");
    meshed().apply(&manifests()).expect("valid manifests");
    let listen = format!("[::]:{HOST_PORT}");
    let on_host = Program::new(executable("lab-app")).args(["http", "--name", "host", "--listen", &listen]);
    let on_host = shared().node(1).spawn(on_host).expect("a server on the node");
    on_host.wait_for_line("listening on", PATIENCE).expect("it listens");
    kinds.ready();
    let pods = kinds.all_pods();
    let [_, client, far, _] = &pods[..] else { panic!("{pods:?}") };
    meshed().apply(&manual_pod(&far.ip)).expect("valid manifests");

    let (within, ports) = (by_services(&kinds, "kinds-plain"), by_ports());
    check(&within, client);
    hairpin(&kinds);
    api_server(&kinds);

    kinds.join();
    let canary = meshed().wire().watch("kinds-hidden");
    let (hidden, hidden_ports) = (by_services(&kinds, "kinds-hidden"), by_ports());
    check(&hidden, client);
    for kind in within.keys().filter(|kind| **kind != "sticky") {
        assert_eq!(hidden[kind], within[kind], "{kind}: {}", failures("kinds"));
    }
    assert_eq!(hidden_ports, ports, "from outside of the mesh");
    hairpin(&kinds);
    api_server(&kinds);
    let seen = canary.sightings().expect("a complete capture");
    // What goes to the server on the node goes out of the mesh, and says so.
    assert!(seen.iter().all(|sighting| format!("{sighting:?}").contains(&HOST_PORT.to_string())), "{seen:?}");
    on_host.kill().expect("it runs");
}

/// What has to be so with a mesh and without.
fn check(all: &Seen, client: &Pod) {
    let servers = |kind| all[kind].iter().map(|(server, _)| server.as_str()).collect::<Vec<_>>();
    assert_eq!(servers("sticky").len(), 1, "one client stays with one server: {all:?}");
    assert_eq!(servers("plain"), ["far", "near"]);
    for kind in ["local", "close"] {
        assert_eq!(servers(kind), ["near"], "{kind}");
    }
    assert_eq!(servers("manual"), ["host"]);
    assert_eq!(servers("manual-pod"), ["far"]);
    let clients: BTreeSet<_> = all.values().flatten().map(|(_, client)| client).collect();
    assert_eq!(clients, BTreeSet::from([&client.ip]), "everyone sees the client's own address");
}

/// A pod that is the only server of its Service asks it.
fn hairpin(kinds: &Namespace<'_>) {
    let answer =
        kinds.curl_until("alone", &format!("http://{ALONE}/itself"), |answer| answer["name"] == "alone");
    assert_eq!(answer["path"], "/itself");
}

/// The API server knows the pod by its account.
fn api_server(kinds: &Namespace<'_>) {
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let script = format!(
        "curl -sS -m 10 --cacert {folder}/ca.crt -H \"Authorization: Bearer $(cat {folder}/token)\" \
         https://kubernetes.default.svc/api/v1/namespaces/kinds/pods"
    );
    let answer = kinds.exec("client", &["sh", "-c", &script]).unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.contains("system:serviceaccount:kinds:default"), "RBAC refuses it by name: {answer}");
}
