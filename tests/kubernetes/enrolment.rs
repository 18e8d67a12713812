//! A namespace goes into the mesh and out of it while its pods work: nobody is disturbed, and nothing stays behind.

use crate::mesh::{Pod, container, known, meshed, pod, service};
use crate::{Namespace, eventually};

/// Addresses of services, in the range that is never given out by itself.
const SERVER: &str = "10.96.0.101";

/// What a script says in a pod's network namespace.
fn in_network(pod: &Pod, script: &str) -> String {
    let netns =
        known(&pod.node(), &pod.uid)["netns"].as_str().expect("ztunnel knows every sandbox").to_owned();
    let said = pod.node().run(["nsenter", &format!("--net={netns}"), "sh", "-c", script]).expect("an end");
    assert!(said.success(), "{said:?}");
    said.stdout
}

/// Everything of a pod's network namespace that a mesh could leave something in. Counters of connections are left out.
fn fingerprint(pod: &Pod) -> String {
    let script = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o -d link; \
                  ss -Hlntu | awk '{print $1, $2, $5}' | sort; sysctl -a 2>/dev/null | grep '^net[.]' | grep -v nf_conntrack";
    let said = in_network(pod, script);
    assert!(said.contains("tcp_fwmark_accept"), "{said}");
    said
}

/// Waits until a pod's own IPv6 address is known to be nobody else's: only then is there a route to it.
fn is_settled(pod: &Pod) {
    eventually(&format!("no address of {} is tentative", pod.name), || {
        match in_network(pod, "ip -6 address show tentative") {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        }
    });
}

/// How many files are pinned for a pod.
fn pinned(pod: &Pod) -> usize {
    let path = pod.node().path("/sys/fs/bpf").expect("the node is on").display().to_string();
    let found = std::process::Command::new("find").args([&path, "-path", &format!("*{}*", pod.uid)]).output();
    String::from_utf8_lossy(&found.expect("find runs").stdout).lines().count()
}

/// What becomes of one connection to the server; the canary is what it carries.
fn attempt(namespace: &Namespace<'_>, from: &str, canary: &str) -> Result<String, String> {
    namespace.exec(from, &["lab-app", "attempt", "--to", &format!("{SERVER}:80"), "--canary", canary])
}

#[test]
fn a_namespace_is_labelled_and_unlabelled_under_load() {
    let (live, outside) = (Namespace::new(meshed(), "live"), Namespace::new(meshed(), "live-outside"));
    let to = format!("{SERVER}:80");
    let load = |mode| ["load", "--to", &to, "--connections", "4", "--interval-ms", "20", "--mode", mode];
    let hold = ["hold", "--to", &to, "--connections", "20"];
    let servers = [
        service("live", "server", SERVER, ""),
        pod("live", "server", "n2", &["echo"]),
        pod("live-outside", "stranger", "n1", &["echo"]),
    ];
    meshed().apply(&servers.concat()).expect("valid manifests");
    live.ready();
    outside.ready();
    // The clients don't try twice, and a node hears of a Service's endpoints in its own time.
    eventually("the node of the clients reaches the service", || {
        attempt(&outside, "stranger", "too-early").and_then(|said| match said {
            said if said.contains("answered") => Ok(()),
            said => Err(said),
        })
    });
    let clients = [
        pod("live", "client", "n1", &["echo"]),
        container("held", &hold),
        container("new", &load("new")),
        container("kept", &load("keep")),
    ];
    meshed().apply(&clients.concat()).expect("valid manifests");
    live.ready();
    live.says("client/held", "holding 20");
    let pods = live.all_pods();
    pods.iter().for_each(|pod| live.until(pod, "not wanted"));
    pods.iter().for_each(is_settled);
    let before: Vec<_> = pods.iter().map(fingerprint).collect();
    let canary = meshed().wire().watch("live-canary-");
    assert!(attempt(&live, "client", "live-canary-before").expect("an end").contains("answered"));
    let plain = canary.count().expect("a complete capture");
    assert!(plain > 0, "without a mesh everyone on the way can read it");

    live.join();
    assert!(attempt(&live, "client", "live-canary-within").expect("an end").contains("answered"));
    assert_eq!(canary.count().expect("a complete capture"), plain, "nobody can read it any more");
    assert_ne!(fingerprint(&pods[0]), before[0], "enrolment leaves traces while it lasts");
    assert!(pods.iter().all(|pod| pinned(pod) > 0));
    only_for_identity(&live, &outside);
    meshed().apply(&pod("live", "later", "n1", &hold)).expect("a pod");
    live.says("later", "holding 20");

    live.kubectl(&["label", "namespace", "live", "istio.io/dataplane-mode-"]);
    eventually("everyone can read it again", || {
        attempt(&live, "client", "live-canary-after")?;
        match canary.count().map_err(|error| error.to_string())? {
            seen if seen > plain => Ok(()),
            seen => Err(format!("{seen} sightings")),
        }
    });
    assert_eq!(live.all_pods().into_iter().filter(|pod| pod.name != "later").collect::<Vec<_>>(), pods);
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    assert_eq!(live.kubectl(&["get", "pods", "-o", restarts]), "0 0 0 0 0 0");

    // Those of before, of the time in between, and those that were made all the time.
    for name in ["client/held", "later"] {
        let report = live.report(name);
        assert!(report["held"] == 20 && report["errors"] == serde_json::json!({}), "{name}: {report}");
    }
    for (name, connections) in [("client/new", None), ("client/kept", Some(4))] {
        let report = live.report(name);
        assert_eq!(report["failed"], 0, "{name}: {report}");
        assert!(report["succeeded"].as_u64() > Some(100), "{name}: {report}");
        assert!(connections.is_none_or(|number| report["connections"] == number), "{name}: {report}");
    }
    nothing_is_left(&live, &pods, &before);
}

/// A policy at the server that names an identity lets those in who have it, and nobody else.
fn only_for_identity(live: &Namespace<'_>, outside: &Namespace<'_>) {
    assert!(attempt(outside, "stranger", "live-stranger").expect("an end").contains("answered"));
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: clients, namespace: live}\n\
                  spec: {selector: {matchLabels: {app: server}}, action: ALLOW, \
                  rules: [{from: [{source: {principals: [cluster.local/ns/live/sa/default]}}]}]}\n";
    meshed().apply(policy).expect("a policy");
    eventually("a stranger is refused", || {
        let outcome = attempt(outside, "stranger", "live-stranger")?;
        if outcome.contains("refused") { Ok(()) } else { Err(outcome) }
    });
    assert!(attempt(live, "client", "live-canary-named").expect("an end").contains("answered"));
    live.kubectl(&["delete", "authorizationpolicy", "clients"]);
    eventually("a stranger is answered", || {
        let outcome = attempt(outside, "stranger", "live-stranger")?;
        if outcome.contains("answered") { Ok(()) } else { Err(outcome) }
    });
}

/// Pods that have left the mesh, and still are there, are as they were before.
fn nothing_is_left(live: &Namespace<'_>, pods: &[Pod], before: &[String]) {
    for (pod, before) in pods.iter().zip(before) {
        live.until(pod, "not wanted");
        let now = fingerprint(pod);
        let changes: Vec<_> = now.lines().filter(|line| !before.contains(line)).collect();
        assert_eq!(now, *before, "{}: {changes:?}", pod.name);
    }
    for pod in pods {
        eventually(&format!("nothing is pinned for {}", pod.name), || match pinned(pod) {
            0 => Ok(()),
            number => Err(number),
        });
    }
}
