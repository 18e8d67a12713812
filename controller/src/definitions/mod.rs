//! The definitions (CustomResourceDefinitions) of the kinds that users write, printed from the types that read them, so that
//! no field is accepted that is not read.
//!
//! The fields of Istio's kinds are Istio's, so that the same objects work on either. Talks to no API server: charts and the command line carry
//! what is printed here, and a test keeps that fresh.

mod rules;
mod schema;
mod traffic;

use serde_json::{Value, json};

use crate::source::objects::{
    AuthorizationPolicySpec, PeerAuthenticationSpec, ServiceEntrySpec, TrafficPolicySpec, WorkloadEntrySpec,
};
use rules::At;

const SECURITY: &str = "security.istio.io";
const NETWORKING: &str = "networking.istio.io";
const OURS: &str = "airglow.dev";

/// What heads the printed file.
const HEAD: &str = "\
# The definitions of the kinds that Airglow reads and Kubernetes does not have. Made by `make render` from controller/src/definitions:
# change that, not this. Helm installs them where there are none of the name, whoever's, and never changes or removes them.
";

/// What is wrong with an object when the mesh has judged it, to be shown by `kubectl get`.
const ACCEPTED: (&str, &str, &str) =
    ("Accepted", "string", ".status.conditions[?(@.type==\"ZtunnelAccepted\")].status");

struct Definition {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    /// Newest first; the first one is what is stored. They differ in nothing.
    versions: &'static [&'static str],
    spec: Value,
    rules: &'static [&'static [At]],
    /// Name, type and place of what `kubectl get` shows.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

/// All definitions, as objects of `apiextensions.k8s.io/v1`.
#[must_use]
pub fn all() -> Vec<Value> {
    let definitions = [
        Definition {
            group: SECURITY,
            kind: "AuthorizationPolicy",
            plural: "authorizationpolicies",
            short: "ap",
            versions: &["v1", "v1beta1"],
            spec: schema::of::<AuthorizationPolicySpec>(),
            rules: rules::AUTHORIZATION_POLICY,
            columns: &[("Action", "string", ".spec.action"), ACCEPTED],
        },
        Definition {
            group: SECURITY,
            kind: "PeerAuthentication",
            plural: "peerauthentications",
            short: "pa",
            versions: &["v1", "v1beta1"],
            spec: schema::of::<PeerAuthenticationSpec>(),
            rules: rules::PEER_AUTHENTICATION,
            columns: &[("Mode", "string", ".spec.mtls.mode"), ACCEPTED],
        },
        Definition {
            group: NETWORKING,
            kind: "ServiceEntry",
            plural: "serviceentries",
            short: "se",
            versions: &["v1", "v1beta1", "v1alpha3"],
            spec: schema::of::<ServiceEntrySpec>(),
            rules: rules::SERVICE_ENTRY,
            columns: &[
                ("Hosts", "string", ".spec.hosts"),
                ("Location", "string", ".spec.location"),
                ("Resolution", "string", ".spec.resolution"),
                ACCEPTED,
            ],
        },
        Definition {
            group: NETWORKING,
            kind: "WorkloadEntry",
            plural: "workloadentries",
            short: "we",
            versions: &["v1", "v1beta1", "v1alpha3"],
            spec: schema::of::<WorkloadEntrySpec>(),
            rules: rules::WORKLOAD_ENTRY,
            columns: &[("Address", "string", ".spec.address"), ACCEPTED],
        },
        Definition {
            group: OURS,
            kind: "TrafficPolicy",
            plural: "trafficpolicies",
            short: "tp",
            versions: &["v1alpha1"],
            spec: schema::of::<TrafficPolicySpec>(),
            rules: traffic::TRAFFIC_POLICY,
            columns: &[
                ("Target", "string", ".spec.targetRefs[*].name"),
                ("FaultUntil", "string", ".spec.fault.until"),
                ("Balancing", "string", ".spec.balancing.algorithm"),
                ("Accepted", "string", ".status.ancestors[*].conditions[?(@.type==\"Accepted\")].status"),
            ],
        },
    ];
    definitions.into_iter().map(Definition::object).collect()
}

/// All definitions, as the file that charts carry.
#[must_use]
pub fn yaml() -> String {
    let documents = all().into_iter().map(|definition| {
        let text = serde_saphyr::to_string(&definition).expect("JSON can be written as YAML");
        format!("---\n{}\n", text.trim_end())
    });
    std::iter::once(HEAD.to_owned()).chain(documents).collect()
}

/// By what a group's kinds are asked for together.
fn categories(group: &str) -> Vec<String> {
    let own = group.replace('.', "-");
    if group.ends_with("istio.io") { vec!["istio-io".to_owned(), own] } else { vec![own] }
}

impl Definition {
    fn object(self) -> Value {
        let Self { group, kind, plural, short, versions, mut spec, rules, columns } = self;
        rules::refine(&mut spec, rules);
        let column =
            |(name, kind, path): &(&str, &str, &str)| json!({"name": name, "type": kind, "jsonPath": path});
        let mut columns: Vec<_> = columns.iter().map(column).collect();
        columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
        let version = |(at, name): (usize, &&str)| {
            json!({
                "name": name, "served": true, "storage": at == 0,
                "additionalPrinterColumns": columns, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": spec, "status": schema::status()},
                }},
            })
        };
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            // By these labels others are told apart from ours.
            "metadata": {"name": format!("{plural}.{group}"), "labels": {
                "app.kubernetes.io/name": "airglow", "app.kubernetes.io/part-of": "airglow",
            }},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {
                    "kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                    "singular": kind.to_lowercase(), "shortNames": [short],
                    "categories": categories(group),
                },
                "versions": versions.iter().enumerate().map(version).collect::<Vec<_>>(),
            },
        })
    }
}
