//! What the chart grants on the Kubernetes API, as the API server tells those who have it: exactly what is listed here.

use std::collections::BTreeSet;

use lab::Cluster;
use serde_json::{Value, json};

use super::mesh::mesh;
use crate::install::SYSTEM;

/// The controller's rights everywhere. Each is explained in deploy/chart/airglow/templates/rbac.yaml.
const EVERYWHERE: &[&str] = &[
    "list,watch namespaces",
    "list,watch nodes",
    "list,watch pods",
    "list,watch serviceaccounts",
    "list,watch services",
    "list,watch endpointslices.discovery.k8s.io",
    "list,watch authorizationpolicies.security.istio.io",
    "list,watch peerauthentications.security.istio.io",
    "list,watch serviceentries.networking.istio.io",
    "list,watch workloadentries.networking.istio.io",
    "list,watch gatewayclasses.gateway.networking.k8s.io",
    "list,watch gateways.gateway.networking.k8s.io",
    "patch gateways/status.gateway.networking.k8s.io",
    "create gatewayclasses.gateway.networking.k8s.io",
    "create gateways.gateway.networking.k8s.io",
    "delete gateways.gateway.networking.k8s.io waypoint-auto",
    "patch gatewayclasses/status.gateway.networking.k8s.io",
    "get,create,patch serviceaccounts",
    "get,create,patch services",
    "get,create,patch deployments.apps",
    "get,create,patch,delete horizontalpodautoscalers.autoscaling",
    "get,create,patch,delete poddisruptionbudgets.policy",
    "get customresourcedefinitions.apiextensions.k8s.io gateways.gateway.networking.k8s.io",
    "patch services/status",
    "patch serviceentries/status.networking.istio.io",
    "patch workloadentries/status.networking.istio.io",
    "patch authorizationpolicies/status.security.istio.io",
    "patch peerauthentications/status.security.istio.io",
    "get,list,watch grpcroutes.gateway.networking.k8s.io",
    "get,list,watch httproutes.gateway.networking.k8s.io",
    "get,list,watch tcproutes.gateway.networking.k8s.io",
    "get,list,watch tlsroutes.gateway.networking.k8s.io",
    "list,watch referencegrants.gateway.networking.k8s.io",
    "patch grpcroutes/status.gateway.networking.k8s.io",
    "patch httproutes/status.gateway.networking.k8s.io",
    "patch tcproutes/status.gateway.networking.k8s.io",
    "patch tlsroutes/status.gateway.networking.k8s.io",
    "get,list,watch backendtlspolicies.gateway.networking.k8s.io",
    "patch backendtlspolicies/status.gateway.networking.k8s.io",
    "list,watch configmaps",
    "get,list,watch trafficpolicies.airglow.dev",
    "patch trafficpolicies/status.airglow.dev",
    "patch pods/status",
    "create tokenreviews.authentication.k8s.io",
    "create configmaps",
    "patch configmaps istio-ca-root-cert",
    "create,patch events",
];

/// And in the mesh's own namespace.
const AT_HOME: &[&str] = &[
    "create leases.coordination.k8s.io",
    "get,update leases.coordination.k8s.io airglow-controller",
    "create secrets",
    "get,update secrets airglow-ca",
    "get secrets cacerts",
];

/// Every single right in `namespace` of whoever has `token`, and the paths that are no objects'.
fn rights(cluster: &Cluster, token: &str, namespace: &str) -> BTreeSet<String> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": namespace },
    });
    let file = cluster.dir().join(format!("review-{namespace}.json"));
    std::fs::write(&file, review.to_string()).expect("a file");
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let file = file.display().to_string();
    let said = cluster.kubectl(&["--token", token, "create", "--raw", path, "-f", &file]).expect("a review");
    let review: Value = serde_json::from_str(&said).expect("JSON");
    let status = &review["status"];
    assert_eq!(status["incomplete"], false, "{status}");
    let list = |value: &Value| -> Vec<String> {
        let words = value.as_array().into_iter().flatten();
        words.map(|word| word.as_str().expect("text").to_owned()).collect()
    };
    let mut found = BTreeSet::new();
    for rule in status["resourceRules"].as_array().expect("a list") {
        let mut names = list(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for verb in list(&rule["verbs"]) {
            for group in list(&rule["apiGroups"]) {
                for resource in list(&rule["resources"]) {
                    found.extend(names.iter().map(|name| right(&verb, &resource, &group, name)));
                }
            }
        }
    }
    for rule in status["nonResourceRules"].as_array().into_iter().flatten() {
        for verb in list(&rule["verbs"]) {
            found.extend(list(&rule["nonResourceURLs"]).into_iter().map(|url| format!("{verb} {url}")));
        }
    }
    found
}

fn right(verb: &str, resource: &str, group: &str, name: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("{verb} {resource}{dot}{group} {name}").trim_end().to_owned()
}

/// The single rights of a list: a line grants each of its verbs.
fn listed(lines: &[&[&str]]) -> BTreeSet<String> {
    let lines = lines.iter().flat_map(|lines| lines.iter());
    let single = lines.flat_map(|line| {
        let (verbs, what) = line.split_once(' ').expect("verbs and an object");
        verbs.split(',').map(move |verb| format!("{verb} {what}"))
    });
    single.collect()
}

fn token(cluster: &Cluster, namespace: &str, account: &str) -> String {
    let made = cluster.kubectl(&["-n", namespace, "create", "token", account]);
    made.expect("a token").trim().to_owned()
}

#[test]
fn the_controller_has_the_rights_that_are_listed_and_ztunnel_has_none() {
    let cluster = mesh();
    let anyone = token(cluster, "default", "default");
    let controller = token(cluster, SYSTEM, "airglow-controller");
    let ztunnel = token(cluster, SYSTEM, "ztunnel");
    for namespace in [SYSTEM, "default", "kube-system"] {
        let everyones = rights(cluster, &anyone, namespace);
        assert_eq!(rights(cluster, &ztunnel, namespace), everyones, "ztunnel in {namespace}");
        let own: BTreeSet<_> =
            rights(cluster, &controller, namespace).difference(&everyones).cloned().collect();
        let expected =
            if namespace == SYSTEM { listed(&[EVERYWHERE, AT_HOME]) } else { listed(&[EVERYWHERE]) };
        assert_eq!(own, expected, "the controller in {namespace}");
    }
}
