//! `airglow check`: is this cluster fit for Airglow, and is the Airglow in it well? One line per fact.
//!
//! Asks here, judges in `ground` and `mesh`, changes nothing.

mod facts;
mod ground;
mod mesh;

use std::process::ExitCode;

use clap::Args;
use daemon::config::Vars;
use serde_json::{Value, json};

use self::facts::{Fact, Seen, Verdict, all_well, lines};
use self::mesh::Installed;
use crate::Terminal;
use crate::cluster::manifest::{self, Right};
use crate::cluster::{Answer, At, Cluster, label};
use crate::output::Form;
use crate::progress::print;

/// Where rights are asked for.
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

#[derive(Args, Debug)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) at: At,
    /// The namespace of Airglow itself.
    #[arg(short = 'n', long, value_name = "NAME", default_value = manifest::NAMESPACE, value_parser = label)]
    pub(crate) namespace: String,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub(crate) form: Form,
}

/// Checks and says so. The exit code is 1 when something is wrong.
pub(crate) fn run(args: &Check, stdout: Terminal, vars: &dyn Vars) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::new(&args.at, vars)?;
    let seen = look(&cluster, &args.namespace)?;
    let facts = judge(&seen);
    let ok = all_well(&facts);
    let text = if args.form.is_document() {
        args.form.document(&json!({ "ok": ok, "facts": facts }))?
    } else {
        lines(&facts, stdout.live, stdout.style).join("\n") + "\n"
    };
    print(&text)?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `seen` means, from the ground up.
fn judge(seen: &Seen) -> Vec<Fact> {
    let installed = Installed::find(seen);
    let mut facts = ground::judge(seen, installed.is_there());
    facts.extend(mesh::components(seen, &installed));
    facts.extend(mesh::unserved(seen, &installed));
    facts.extend(mesh::members(seen, &installed));
    facts
}

/// What is wrong with Airglow's own components in `namespace`; nothing when they are ready.
pub(crate) fn unready(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let within = |path: &str, kind: &str| format!("{path}/namespaces/{namespace}/{kind}");
    let nothing = "not asked for";
    let seen = Seen {
        namespace: namespace.to_owned(),
        version: Err(nothing.to_owned()),
        nodes: Err(nothing.to_owned()),
        missing_rights: Err(nothing.to_owned()),
        policies: Err(nothing.to_owned()),
        deployments: cluster.list(&within("/apis/apps/v1", "deployments")),
        daemon_sets: cluster.list(&within("/apis/apps/v1", "daemonsets")),
        namespaces: Err(nothing.to_owned()),
        pods: cluster.list(&within("/api/v1", "pods")),
    };
    let facts = mesh::components(&seen, &Installed::find(&seen)).into_iter();
    facts
        .filter(|fact| fact.verdict != Verdict::Ok)
        .map(|fact| format!("{}: {}", fact.about, fact.text))
        .collect()
}

/// Asks for everything. Fails when nobody answers: then every fact would be the same one.
fn look(cluster: &Cluster, namespace: &str) -> anyhow::Result<Seen> {
    let version = cluster.get("/version").map_err(|error| anyhow::anyhow!("the API server: {error}"))?;
    Ok(Seen {
        namespace: namespace.to_owned(),
        version: version.ok_or_else(|| "it says none".to_owned()),
        nodes: cluster.list("/api/v1/nodes"),
        missing_rights: missing_rights(cluster, namespace),
        policies: cluster.get::<Value>("/apis/security.istio.io/v1").map(|group| group.is_some()),
        deployments: cluster.list("/apis/apps/v1/deployments"),
        daemon_sets: cluster.list("/apis/apps/v1/daemonsets"),
        namespaces: cluster.list("/api/v1/namespaces"),
        pods: cluster.list("/api/v1/pods"),
    })
}

/// What it takes to install into `namespace` and whoever asks may not do.
fn missing_rights(cluster: &Cluster, namespace: &str) -> Answer<Vec<Right>> {
    let mut missing = Vec::new();
    for right in manifest::rights(&[manifest::definitions(), manifest::embedded()].concat()) {
        let answer = cluster.create(REVIEWS, &review(&right, namespace))?;
        if answer["status"]["allowed"] != true {
            missing.push(right);
        }
    }
    Ok(missing)
}

fn review(right: &Right, namespace: &str) -> Value {
    let namespace = if right.namespace.is_some() { namespace } else { "" };
    let attributes = json!({
        "group": right.group, "resource": right.resource, "verb": right.verb, "namespace": namespace,
    });
    json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": attributes },
    })
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::cluster::objects::Pod;

    fn read<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("as the API server has it")
    }

    fn node(name: &str, kernel: &str) -> Value {
        let info = json!({"kernelVersion": kernel, "architecture": "amd64", "operatingSystem": "linux"});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        json!({"metadata": {"name": name}, "status": {"nodeInfo": info, "conditions": ready}})
    }

    /// A sound cluster without a mesh.
    pub(super) fn seen() -> Seen {
        Seen {
            namespace: "airglow-system".into(),
            version: Ok(read(json!({"gitVersion": "v1.36.2"}))),
            nodes: Ok(read(json!([node("n1", "6.12.8+bpo"), node("n2", "6.1.0-9-cloud")]))),
            missing_rights: Ok(Vec::new()),
            policies: Ok(true),
            deployments: Ok(Vec::new()),
            daemon_sets: Ok(Vec::new()),
            namespaces: Ok(read(json!([{"metadata": {"name": "shop"}}]))),
            pods: Ok(Vec::new()),
        }
    }

    fn pod(namespace: &str, name: &str, node: &str, more: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {}, "annotations": {}},
            "spec": {"nodeName": node, "hostNetwork": false},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        merge(&mut pod, more);
        read(pod)
    }

    fn merge(into: &mut Value, more: &Value) {
        match (into, more) {
            (Value::Object(into), Value::Object(more)) => {
                for (key, value) in more {
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
            (into, more) => *into = more.clone(),
        }
    }

    /// The same with a mesh on both nodes, and `shop` labelled.
    fn installed() -> Seen {
        let metadata = |name: &str| {
            json!({"name": name, "namespace": "airglow-system", "generation": 2,
                "labels": {"app": name, "app.kubernetes.io/part-of": "airglow"}})
        };
        let env = json!([{"name": "AIRGLOW_EXCLUDED_NAMESPACES", "value": "kube-system,airglow-system"}]);
        let template = json!({"spec": {"containers": [{"env": env}]}});
        let controller = json!({
            "metadata": metadata("airglow-controller"), "spec": {"replicas": 2, "template": template},
            "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2},
        });
        let ztunnel = json!({
            "metadata": metadata("ztunnel"), "spec": {"template": {}},
            "status": {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2},
        });
        let own = |node: &str| {
            pod(
                "airglow-system",
                &format!("ztunnel-{node}"),
                node,
                &json!({"metadata": {"labels": {"app": "ztunnel"}}}),
            )
        };
        let label = json!({"istio.io/dataplane-mode": "ambient"});
        Seen {
            deployments: Ok(vec![read(controller)]),
            daemon_sets: Ok(vec![read(ztunnel)]),
            namespaces: Ok(read(json!([
                {"metadata": {"name": "shop", "labels": label}}, {"metadata": {"name": "kube-system", "labels": label}},
                {"metadata": {"name": "airglow-system", "labels": {"istio.io/dataplane-mode": "none"}}},
            ]))),
            pods: Ok(vec![own("n1"), own("n2")]),
            ..seen()
        }
    }

    /// The facts about `about`, as `verdict: text`.
    fn about(seen: &Seen, about: &str) -> Vec<String> {
        let facts = judge(seen).into_iter().filter(|fact| fact.about == about);
        facts.map(|fact| format!("{:?}: {}", fact.verdict, fact.text)).collect()
    }

    #[test]
    fn a_cluster_without_a_mesh_is_well() {
        let facts = judge(&seen());
        assert!(all_well(&facts), "{facts:#?}");
        assert_eq!(about(&seen(), "airglow"), ["Note: not installed in airglow-system"]);
        assert_eq!(about(&seen(), "namespaces").len(), 1);
    }

    #[test]
    fn a_mesh_that_is_well_has_nothing_wrong() {
        let seen = installed();
        let facts = judge(&seen);
        assert!(all_well(&facts), "{facts:#?}");
        assert_eq!(about(&seen, "controller"), ["Ok: 2 of 2 replicas are available"]);
        assert_eq!(about(&seen, "ztunnel"), ["Ok: ready on 2 of 2 nodes"]);
        assert_eq!(about(&seen, "namespaces"), ["Ok: in the mesh by their label: kube-system, shop"]);
        assert_eq!(about(&seen, "rights"), Vec::<String>::new());
    }

    #[test]
    fn components_that_are_not_ready_say_why() {
        let mut seen = installed();
        seen.daemon_sets.as_mut().unwrap()[0].status.number_available = 1;
        let waiting = json!({"containerStatuses": [{"name": "ztunnel", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]});
        let status = json!({"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": waiting["containerStatuses"]});
        let labels = json!({"labels": {"app": "ztunnel"}});
        seen.pods.as_mut().unwrap()[1] =
            pod("airglow-system", "ztunnel-b", "n2", &json!({"metadata": labels, "status": status}));
        assert_eq!(
            about(&seen, "ztunnel"),
            [
                "Wrong: ready on 1 of 2 nodes",
                "Wrong: ztunnel-b on n2 is not ready: container ztunnel: ErrImagePull no",
            ]
        );
        seen.deployments.as_mut().unwrap()[0].metadata.generation = 3;
        assert!(about(&seen, "controller")[0].starts_with("Wrong"), "the last change is not looked at yet");
        seen.deployments = Ok(Vec::new());
        assert_eq!(about(&seen, "controller"), ["Wrong: is missing: install Airglow again"]);
    }

    #[test]
    fn an_installation_in_another_namespace_is_named() {
        let mut seen = installed();
        seen.namespace = "mesh".into();
        let found = about(&seen, "airglow");
        assert!(
            found.len() == 1 && found[0].contains("airglow-system: say so with --namespace"),
            "{found:?}"
        );
        let mut second = installed();
        let mut other = second.daemon_sets.as_ref().unwrap()[0].clone();
        other.metadata.namespace = "mesh".into();
        second.daemon_sets.as_mut().unwrap().push(other);
        assert!(about(&second, "airglow")[0].starts_with("Wrong: another Airglow is in mesh"));
    }

    #[test]
    fn a_node_without_a_ztunnel_is_noticed() {
        let mut seen = installed();
        seen.pods.as_mut().unwrap().pop();
        assert!(
            about(&seen, "ztunnel").contains(&"Note: none on n2: their pods can't be in the mesh".to_owned())
        );
    }

    /// What is said of one pod, in `shop` unless `more` says otherwise.
    fn said(more: &Value) -> Vec<String> {
        let mut seen = installed();
        seen.pods.as_mut().unwrap().push(pod("shop", "web", "n1", more));
        about(&seen, "pods")
    }

    #[test]
    fn each_pod_of_the_mesh_is_enrolled_or_has_a_reason() {
        let marked =
            |mark: &str| json!({"metadata": {"annotations": {"ambient.istio.io/redirection": mark}}});
        let labelled = |key: &str, value: &str| json!({"metadata": {"labels": {key: value}}});
        for (more, expected) in [
            (marked("enabled"), "Ok: shop: 1 pod enrolled (web)"),
            (marked("pending"), "Wrong: shop: 1 pod not enrolled: node n1 has not proven"),
            (json!({}), "`kubectl -n airglow-system logs ztunnel-n1` says why"),
            (json!({"spec": {"nodeName": ""}}), "Note: shop: 1 pod not enrolled: waiting for a node"),
            (
                json!({"spec": {"nodeName": "n3"}}),
                "Wrong: shop: 1 pod not enrolled: node n3 has no ready ztunnel",
            ),
            (json!({"status": {"phase": "Pending"}}), "Note: shop: 1 pod not enrolled: not running yet"),
            (json!({"spec": {"hostNetwork": true}}), "Note: shop: 1 pod not in the mesh: the pod shares"),
            (labelled("istio.io/dataplane-mode", "none"), "Note: shop: 1 pod not in the mesh: label"),
            (labelled("networking.istio.io/tunnel", "http"), "speaks HBONE itself"),
            (json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}}), "has a sidecar"),
            (
                json!({"metadata": {"namespace": "kube-system"}}),
                "Note: kube-system: 1 pod not in the mesh: namespace kube-system",
            ),
        ] {
            let found = said(&more);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
        for over in
            [json!({"status": {"phase": "Succeeded"}}), json!({"metadata": {"deletionTimestamp": "now"}})]
        {
            assert_eq!(said(&over), Vec::<String>::new());
        }
    }

    #[test]
    fn pods_outside_of_labelled_namespaces_are_no_facts() {
        let elsewhere = |more: Value| {
            let mut other = json!({"metadata": {"namespace": "other"}});
            merge(&mut other, &more);
            said(&other)
        };
        assert_eq!(elsewhere(json!({})), Vec::<String>::new());
        let own = elsewhere(json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}));
        assert!(own[0].contains("other: 1 pod not enrolled"), "{own:?}");
        let mark = json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}});
        assert!(elsewhere(mark.clone())[0].starts_with("Note: other: 1 pod on their way out"));
        let mut gone = seen();
        gone.pods.as_mut().unwrap().push(pod("shop", "web", "n1", &mark));
        assert!(about(&gone, "pods")[0].starts_with("Wrong: shop: 1 pod marked as enrolled"));
    }

    #[test]
    fn pods_with_the_same_reason_share_a_line() {
        let mut seen = installed();
        for name in ["a", "b"] {
            seen.pods.as_mut().unwrap().push(pod("shop", name, "n3", &json!({})));
        }
        assert_eq!(
            about(&seen, "pods"),
            ["Wrong: shop: 2 pods not enrolled: node n3 has no ready ztunnel (a, b)"]
        );
    }

    #[test]
    fn labels_that_mean_nothing_and_what_is_unseen_are_wrong() {
        let mut seen = installed();
        let odd = json!([{"metadata": {"name": "odd", "labels": {"istio.io/dataplane-mode": "Ambient"}}}]);
        seen.namespaces = Ok(read(odd));
        assert!(about(&seen, "namespaces")[0].contains("Ambient is neither"));
        seen.namespaces = Err("status 403".into());
        assert!(about(&seen, "namespaces")[0].contains("403"));
        let mut seen = installed();
        seen.pods = Err("status 403".into());
        assert!(about(&seen, "pods")[0].contains("403"));
        assert!(judge(&seen).iter().any(|fact| fact.verdict == Verdict::Wrong));
    }

    #[test]
    fn rights_are_asked_for_in_the_namespace_of_the_installation() {
        let right = |namespace: Option<&str>| Right {
            group: "apps",
            resource: "deployments",
            verb: "create",
            namespace: namespace.map(str::to_owned),
        };
        let asked = |right: &Right| review(right, "mesh")["spec"]["resourceAttributes"].clone();
        let attributes = asked(&right(Some("airglow-system")));
        assert_eq!(attributes["namespace"], "mesh");
        assert_eq!((&attributes["group"], &attributes["resource"]), (&json!("apps"), &json!("deployments")));
        assert_eq!(asked(&right(None))["namespace"], "");
    }
}
