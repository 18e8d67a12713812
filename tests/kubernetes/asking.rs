//! What the command line asks the mesh of a real cluster, through the API server: live flows, decisions, what is known.

use std::process::{Child, Command, Stdio};

use lab::Cluster;
use serde_json::Value;

use crate::command_line::{airglow, said};
use crate::install::SYSTEM;
use crate::{Namespace, eventually};

/// A connection that a pod keeps open until this is dropped.
struct Open(Child);

impl Open {
    fn new(cluster: &Cluster, namespace: &str, pod: &str, address: &str) -> Self {
        let talk = format!("sleep 600 | curl -sS -m 600 telnet://{address}");
        let child = Command::new(cluster.kubectl_program())
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .args(["-n", namespace, "exec", pod, "--", "sh", "-c", &talk])
            .stdout(Stdio::null())
            .spawn()
            .expect("kubectl runs");
        Self(child)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A document that the command line prints, and its exit status.
fn document(cluster: &Cluster, args: &[&str]) -> (Value, Option<i32>) {
    let output = airglow(cluster, args);
    let answer = serde_json::from_slice(&output.stdout);
    (answer.unwrap_or_else(|error| panic!("{args:?}: {error}: {}", said(&output))), output.status.code())
}

/// What `airglow why` says until `is_it` is content with it: policies take a moment to reach the nodes.
fn why(cluster: &Cluster, pod: &str, to: &str, is_it: impl Fn(&Value, Option<i32>) -> bool) -> Value {
    let mut last = Value::Null;
    eventually(&format!("the expected answer to why {pod} {to}"), || {
        let (answer, status) = document(cluster, &["why", pod, to, "-o", "json"]);
        last = answer.clone();
        if is_it(&answer, status) { Ok(()) } else { Err(format!("{status:?}: {answer:#}")) }
    });
    last
}

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/default";

/// With the pods of `shop` in the mesh, one on each node at least.
pub(crate) fn look_around(cluster: &Cluster, shop: &Namespace<'_>) {
    let pods = shop.pods();
    let on = |node: &str| pods.iter().find(|(_, at, _)| at == node).expect("a pod on each node");
    let ((client, ..), (server, _, ip)) = (on("n1"), on("n2"));
    flows(cluster, client, ip);
    decisions(cluster, shop, client, (server, ip));
    knowledge(cluster, client);
    mistakes(cluster);
}

/// `top` shows a connection that is open, with who is at both ends, on both nodes.
fn flows(cluster: &Cluster, client: &str, ip: &str) {
    let _open = Open::new(cluster, "shop", client, &format!("{ip}:8080"));
    let top = ["top", "-n", "shop", "-o", "json", "--interval", "0.2"];
    eventually("top shows the open connection on both nodes", || {
        let (rows, _) = document(cluster, &top);
        let rows = rows.as_array().cloned().unwrap_or_default();
        let open = |node: &str, way: &str| {
            rows.iter().any(|row| {
                row["node"] == node
                    && row["direction"] == way
                    && row["transport"] == "hbone"
                    && row["source_identity"] == IDENTITY
                    && row["destination_identity"] == IDENTITY
                    && row["open"].as_u64() >= Some(1)
                    && row["rtt_us"].as_u64() > Some(0)
                    && row["retransmits"].is_u64()
            })
        };
        let judged = rows.iter().any(|row| row["policies"] == serde_json::json!(["ok"]));
        if open("n1", "out") && open("n2", "in") && judged { Ok(()) } else { Err(format!("{rows:#?}")) }
    });
    let only = document(cluster, &["top", "--node", "n1", "-o", "json", "--interval", "0.2"]).0;
    let rows = only.as_array().expect("a list");
    assert!(!rows.is_empty() && rows.iter().all(|row| row["node"] == "n1"), "{only:#}");
}

/// `why` asks both nodes, and names the policy that denies.
fn decisions(cluster: &Cluster, shop: &Namespace<'_>, client: &str, (server, ip): (&str, &str)) {
    let pod = format!("shop/{client}");
    let allowed =
        why(cluster, &pod, "web:80", |answer, status| answer["verdict"] == "allowed" && status == Some(0));
    let ways: Vec<_> =
        allowed["endpoints"].as_array().expect("a list").iter().map(|e| &e["route"]["way"]).collect();
    assert!(ways.contains(&&Value::from("tunnel")) && ways.contains(&&Value::from("local")), "{allowed:#}");

    let deny = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: closed, namespace: shop},\n \
         spec: {action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}}";
    cluster.apply(deny).expect("a policy");
    let to = format!("{ip}:8080");
    let denied =
        why(cluster, &pod, &to, |answer, status| answer["verdict"] == "refused" && status == Some(1));
    let endpoint = &denied["endpoints"][0];
    assert_eq!(endpoint["route"]["name"], format!("shop/{server}"), "{denied:#}");
    assert_eq!(endpoint["admits"]["code"], "policy-denied", "{denied:#}");
    let object = serde_json::json!([{"kind": "AuthorizationPolicy", "namespace": "shop", "name": "closed"}]);
    assert_eq!(endpoint["objects"], object, "{denied:#}");
    // What it says is what happens.
    let curl = ["exec", client, "--", "curl", "-sS", "-m", "10", &format!("http://{to}/")];
    cluster.kubectl(&[&["-n", "shop"], &curl[..]].concat()).expect_err("policy denies it");
    let words = said(&airglow(cluster, &["why", &pod, &to]));
    assert!(words.contains("kubectl -n shop edit authorizationpolicy closed"), "{words}");
    let policies = said(&airglow(cluster, &["policies", "-n", "shop"]));
    assert!(policies.contains("closed"), "{policies}");
    shop.kubectl(&["delete", "authorizationpolicy", "closed"]);
    why(cluster, &pod, &to, |answer, _| answer["verdict"] == "allowed");
}

/// What there is to list, in every form.
fn knowledge(cluster: &Cluster, client: &str) {
    for (command, part) in [
        ("workloads", client),
        ("services", "web.shop.svc.cluster.local"),
        ("pods", "enrolled"),
        ("certs", IDENTITY),
    ] {
        for form in ["table", "wide", "json", "yaml"] {
            let output = airglow(cluster, &[command, "-n", "shop", "-o", form]);
            assert!(output.status.success() && said(&output).contains(part), "{command}: {}", said(&output));
        }
    }
    let events = airglow(cluster, &["events", "-A"]);
    assert!(events.status.success(), "{}", said(&events));
}

/// Who asks for what is not there is told so.
fn mistakes(cluster: &Cluster) {
    for (args, part) in [
        (&["why", "shop/nobody", "web:80"][..], "no pod shop/nobody"),
        (&["top", "--once", "--node", "n9"], "there are n1, n2"),
        (&["pods", "--mesh-namespace", "default"], "no ztunnel runs in namespace default"),
    ] {
        let output = airglow(cluster, args);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(part), "{}", said(&output));
    }
    // Without the right to forward ports nothing is told, and it says which right is missing.
    let reader = format!(
        "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: reader, namespace: {SYSTEM}}}}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: reader, namespace: {SYSTEM}}},\n \
         rules: [{{apiGroups: [''], resources: [pods], verbs: [list]}}]}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: reader, namespace: {SYSTEM}}},\n \
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}},\n \
         subjects: [{{kind: ServiceAccount, name: reader, namespace: {SYSTEM}}}]}}\n"
    );
    cluster.apply(&reader).expect("an account");
    let token = cluster.kubectl(&["-n", SYSTEM, "create", "token", "reader"]).expect("a token");
    let theirs = cluster.dir().join("reader.kubeconfig");
    std::fs::copy(cluster.kubeconfig(), &theirs).expect("a copy");
    let theirs = theirs.display().to_string();
    let config = |args: &[&str]| {
        let mut kubectl = Command::new(cluster.kubectl_program());
        let output =
            kubectl.args(["--kubeconfig", &theirs, "config"]).args(args).output().expect("kubectl runs");
        assert!(output.status.success(), "{}", said(&output));
    };
    config(&["set-credentials", "reader", "--token", token.trim()]);
    config(&["set-context", "--current", "--user", "reader"]);
    let output = Command::new(crate::install::executable("airglow"))
        .args(["pods", "--kubeconfig", &theirs])
        .output()
        .expect("it is built");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        said(&output).contains("the rights to get and to create `pods/portforward`"),
        "{}",
        said(&output)
    );
    let remove = ["-n", SYSTEM, "delete", "serviceaccount/reader", "role/reader", "rolebinding/reader"];
    cluster.kubectl(&remove).expect("removed");
}
