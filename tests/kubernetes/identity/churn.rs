//! Pods come and go on one node, and each address is used again by other accounts: nobody is ever taken for who was there before.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use daemon::config::{Environment, Vars as _};
use lab::{APP_IMAGE, Cluster};
use serde_json::Value;

use super::mesh::mesh;
use crate::install::SYSTEM;
use crate::{Namespace, eventually};

/// How many pods come and go. A pod takes half a second of this machine, so fewer than in `make soak`.
const PODS: &str = "SOAK_CHURN_PODS";
const PODS_DEFAULT: usize = 40;

/// Pods at once; the node has few more addresses than that.
const WAVE: usize = 8;

/// Addresses of pods on the node while this goes on.
const ADDRESSES: usize = 14;

/// Groups of accounts that take turns. Each pod has an account of its own.
const GROUPS: usize = 4;

/// A server for each group, on the other node, which lets its accounts in and no others.
fn servers(shop: &Namespace<'_>) {
    let mut yaml = String::new();
    for group in 0..GROUPS {
        write!(
            yaml,
            r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: only{group}, namespace: {namespace}, labels: {{app: only{group}}}}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers: [{{name: web, image: {APP_IMAGE}, args: [http, --name, only{group}],
    readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 1}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: only{group}, namespace: {namespace}}}
spec: {{selector: {{app: only{group}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: only{group}, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: only{group}}}}}
  action: ALLOW
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/g{group}-*]}}}}]}}]
"#,
            namespace = shop.name
        )
        .expect("a string");
    }
    shop.cluster.apply(&yaml).expect("valid manifests");
    shop.kubectl(&["wait", "pod", "--all", "--for=condition=Ready", "--timeout=2m"]);
}

/// The pods of a wave: each asks its own group's server until it is answered, which shows that it is in the mesh, and then
/// another group's, which must never answer.
fn wave(shop: &Namespace<'_>, number: usize) {
    let mut yaml = String::new();
    for pod in 0..WAVE {
        let group = (pod + number) % GROUPS;
        let foreign = (group + 1) % GROUPS;
        let script = "i=0; until curl -sf -m 10 http://$OWN/own; do i=$((i+1)); [ $i -gt 60 ] && exit 2; sleep 0.5; done; \
                      for i in 1 2 3; do curl -sf -m 10 http://$FOREIGN/foreign && exit 3; done; exit 0";
        let host = |group: usize| format!("only{group}.{}", shop.name);
        write!(
            yaml,
            r#"
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: g{group}-{number}-{pod}, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: w{number}-{pod}, namespace: {namespace}, labels: {{wave: "{number}"}}}}
spec:
  nodeName: n2
  serviceAccountName: g{group}-{number}-{pod}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: ask
    image: {APP_IMAGE}
    command: [sh, -c, '{script}']
    env: [{{name: OWN, value: {own}}}, {{name: FOREIGN, value: {foreign}}}]
"#,
            namespace = shop.name,
            own = host(group),
            foreign = host(foreign),
        )
        .expect("a string");
    }
    shop.cluster.apply(&yaml).expect("valid manifests");
    let label = format!("wave={number}");
    eventually(&format!("wave {number} has ended"), || {
        let pods = shop.get(&["pods", "-l", &label]);
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let ended =
            |pod: &&Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        match pods.iter().find(|pod| !ended(pod)) {
            None => Ok(()),
            Some(pod) => Err(format!("{}: {}", pod["metadata"]["name"], pod["status"])),
        }
    });
    let pods = shop.get(&["pods", "-l", &label]);
    for pod in pods["items"].as_array().expect("a list") {
        assert_eq!(pod["status"]["phase"], "Succeeded", "{}: {}", pod["metadata"]["name"], pod["status"]);
    }
}

/// The addresses that pods of a wave had.
fn addresses(shop: &Namespace<'_>, number: usize) -> BTreeSet<(String, String)> {
    let pods = shop.get(&["pods", "-l", &format!("wave={number}")]);
    let of = |pod: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&pod["status"]["podIP"]), text(&pod["spec"]["serviceAccountName"]))
    };
    pods["items"].as_array().expect("a list").iter().map(of).collect()
}

/// Leaves the node few addresses, so that they are used again soon.
fn narrow(cluster: &Cluster) {
    let node = cluster.node(1);
    let path = node.path("/etc/cni/net.d").expect("it is on").join("10-lab.conflist");
    let mut list: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("the cluster's own")).expect("JSON");
    let range = &mut list["plugins"][0]["ipam"]["ranges"][0][0];
    let subnet = range["subnet"].as_str().expect("a subnet").to_owned();
    let net = subnet.rsplit_once('.').expect("IPv4").0.to_owned();
    range["rangeStart"] = format!("{net}.100").into();
    range["rangeEnd"] = format!("{net}.{}", 99 + ADDRESSES).into();
    std::fs::write(&path, list.to_string()).expect("writable");
    eventually("ours follows", || {
        let ours =
            std::fs::read_to_string(path.with_file_name("10-lab.airglow.conflist")).unwrap_or_default();
        if ours.contains("rangeEnd") { Ok(()) } else { Err(ours) }
    });
}

/// Every connection to the servers that their node has logged: from which address, and the identity that was proven.
fn logged(cluster: &Cluster, namespace: &str) -> BTreeSet<(String, String)> {
    let on = "spec.nodeName=n1";
    let name = ["-n", SYSTEM, "get", "pods", "-l", "app=ztunnel", "--field-selector", on, "-o", "name"];
    let ztunnel = cluster.kubectl(&name).expect("it is there");
    let log = cluster.kubectl(&["-n", SYSTEM, "logs", ztunnel.trim(), "--tail=-1"]).expect("its log");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = lines.filter(|line| line["dst.namespace"] == namespace && line["direction"] == "inbound");
    let text = |value: &Value, separator: char| {
        let (before, after) = value.as_str()?.rsplit_once(separator)?;
        Some((before.to_owned(), after.to_owned()))
    };
    let proven = ours.filter_map(|line| {
        let (address, _) = text(&line["src.addr"], ':')?;
        let (_, account) = text(&line["src.identity"], '/')?;
        Some((address, account))
    });
    proven.collect()
}

#[test]
fn addresses_that_are_used_again_never_carry_a_former_identity() {
    let cluster = mesh();
    let shop = Namespace::new(cluster, "churn");
    shop.kubectl(&["label", "namespace", shop.name, "istio.io/dataplane-mode=ambient"]);
    servers(&shop);
    narrow(cluster);
    let pods = Environment::read().get(PODS).map_or(PODS_DEFAULT, |text| text.parse().expect("a number"));
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    let waves = pods.div_ceil(WAVE);
    for number in 0..waves {
        wave(&shop, number);
        used.extend(addresses(&shop, number));
        shop.kubectl(&["delete", "pod", "-l", &format!("wave={number}"), "--now"]);
    }
    let distinct: BTreeSet<&str> = used.iter().map(|(address, _)| address.as_str()).collect();
    assert!(distinct.len() <= ADDRESSES && used.len() > distinct.len(), "used by other accounts: {used:?}");

    // Who was let in was looked at by the pods; this is who the servers' node took them for.
    eventually("the log has a connection of each pod", || {
        let logged = logged(cluster, shop.name);
        if let Some(mixed_up) = logged.difference(&used).next() {
            panic!("the log has {mixed_up:?}, and these had addresses: {used:?}");
        }
        if logged.len() == used.len() { Ok(()) } else { Err(format!("{} of {}", logged.len(), used.len())) }
    });
}
