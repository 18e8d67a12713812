//! Airglow's own components, and who is in the mesh.
//!
//! Judges what was answered; asks nobody. Whether a pod is to be in the mesh is for `model` to say, as it is for the controller.

use std::collections::{BTreeMap, BTreeSet};

use model::membership::{Candidate, DATAPLANE_MODE};

use super::facts::{Fact, Seen, Verdict};
use super::ground::is_linux;
use crate::cluster::is_ours;
use crate::cluster::objects::{Metadata, Pod, Workload};
use crate::term::listed;

const CONTROLLER: &str = "airglow-controller";
const ZTUNNEL: &str = "ztunnel";

const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What there is of an installation.
pub(crate) struct Installed<'a> {
    controller: Option<&'a Workload>,
    ztunnel: Option<&'a Workload>,
    /// Namespaces with parts of another one.
    elsewhere: BTreeSet<&'a str>,
}

impl<'a> Installed<'a> {
    pub(crate) fn find(seen: &'a Seen) -> Self {
        let ours = |workloads: &'a Result<Vec<Workload>, String>| {
            workloads.iter().flatten().filter(|workload| is_ours(&workload.metadata.labels))
        };
        let here = |workload: &&&Workload, name: &str| {
            workload.metadata.name == name && workload.metadata.namespace == seen.namespace
        };
        let elsewhere = ours(&seen.deployments).chain(ours(&seen.daemon_sets));
        Self {
            controller: ours(&seen.deployments).find(|workload| here(&workload, CONTROLLER)),
            ztunnel: ours(&seen.daemon_sets).find(|workload| here(&workload, ZTUNNEL)),
            elsewhere: elsewhere
                .map(|workload| workload.metadata.namespace.as_str())
                .filter(|namespace| *namespace != seen.namespace)
                .collect(),
        }
    }

    /// Whether there is any of it.
    pub(crate) fn is_there(&self) -> bool {
        self.controller.is_some() || self.ztunnel.is_some()
    }
}

/// Whether the components are as they should be, and what keeps their pods from it.
pub(crate) fn components(seen: &Seen, installed: &Installed<'_>) -> Vec<Fact> {
    let mut facts = Vec::new();
    if !installed.elsewhere.is_empty() {
        let places = listed(installed.elsewhere.iter().copied());
        let text = if installed.is_there() {
            format!("another Airglow is in {places}: both would capture the same pods; remove one")
        } else {
            format!("not in {}, but in {places}: say so with --namespace", seen.namespace)
        };
        facts.push(Fact::wrong("airglow", text));
    } else if !installed.is_there() {
        facts.push(Fact::note("airglow", format!("not installed in {}", seen.namespace)));
    }
    if !installed.is_there() {
        return facts;
    }
    for (about, workload, judge) in [
        ("controller", installed.controller, deployed as fn(&Workload) -> (bool, String)),
        ("ztunnel", installed.ztunnel, spread),
    ] {
        match workload.map(judge) {
            None => facts.push(Fact::wrong(about, "is missing: install Airglow again")),
            Some((true, text)) => facts.push(Fact::ok(about, text)),
            Some((false, text)) => facts.push(Fact::wrong(about, text)),
        }
        let app = if about == "ztunnel" { ZTUNNEL } else { CONTROLLER };
        let unready = own_pods(seen, app).filter(|pod| !pod.is_ready());
        facts.extend(unready.map(|pod| {
            let Metadata { name, .. } = &pod.metadata;
            let place = match pod.spec.node_name.as_str() {
                "" => "without a node".to_owned(),
                node => format!("on {node}"),
            };
            Fact::wrong(about, format!("{name} {place} is not ready: {}", pod.trouble()))
        }));
    }
    facts
}

/// Namespaces by their labels, and their pods by whether they are in the mesh and why not.
pub(crate) fn members(seen: &Seen, installed: &Installed<'_>) -> Vec<Fact> {
    let namespaces = match &seen.namespaces {
        Ok(namespaces) => namespaces,
        Err(why) => return vec![Fact::unseen("namespaces", "their labels", why)],
    };
    let mut modes = BTreeMap::new();
    let mut facts = Vec::new();
    for namespace in namespaces {
        let Metadata { name, .. } = &namespace.metadata;
        match namespace.metadata.label(DATAPLANE_MODE) {
            Some("ambient" | "none") | None => {}
            Some(other) => facts.push(Fact::wrong(
                "namespaces",
                format!("{name}: its label {DATAPLANE_MODE}={other} is neither ambient nor none"),
            )),
        }
        modes.insert(name.as_str(), namespace.metadata.label(DATAPLANE_MODE));
    }
    let labelled: Vec<_> =
        modes.iter().filter(|(_, mode)| **mode == Some("ambient")).map(|(name, _)| *name).collect();
    facts.push(match (labelled.is_empty(), installed.is_there()) {
        (true, _) => Fact::note("namespaces", format!("none has the label {DATAPLANE_MODE}=ambient")),
        (false, true) => Fact::ok("namespaces", format!("in the mesh by their label: {}", listed(labelled))),
        (false, false) => Fact::note(
            "namespaces",
            format!("labelled, and in the mesh once Airglow is installed: {}", listed(labelled)),
        ),
    });
    match &seen.pods {
        Err(why) => facts.push(Fact::unseen("pods", "they", why)),
        Ok(pods) => facts.extend(pod_facts(seen, installed, &modes, pods)),
    }
    facts
}

fn pod_facts(
    seen: &Seen,
    installed: &Installed<'_>,
    modes: &BTreeMap<&str, Option<&str>>,
    pods: &[Pod],
) -> Vec<Fact> {
    let excluded = excluded(seen, installed);
    let served: BTreeMap<&str, &str> = own_pods(seen, ZTUNNEL)
        .filter(|pod| pod.is_ready())
        .map(|pod| (pod.spec.node_name.as_str(), pod.metadata.name.as_str()))
        .collect();
    let mut groups: BTreeMap<(&str, Verdict, String), Vec<&str>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.is_over() && pod.metadata.deletion_timestamp.is_none()) {
        let Metadata { name, namespace, .. } = &pod.metadata;
        let mode = modes.get(namespace.as_str()).copied().flatten();
        let wanted = wanted(pod, mode, &excluded);
        let found = match (wanted, installed.is_there()) {
            (Wanted::Yes, true) => state(pod, &served, seen),
            (Wanted::Yes, false) if is_marked(pod) => Some(stale()),
            (Wanted::No(_) | Wanted::Unasked, false) if is_marked(pod) => Some(stale()),
            (Wanted::No(why), true) => Some((Verdict::Note, format!("not in the mesh: {why}"))),
            (Wanted::Unasked, true) if is_marked(pod) => {
                Some((Verdict::Note, "on their way out of the mesh: still marked as enrolled".to_owned()))
            }
            _ => None,
        };
        if let Some((verdict, text)) = found {
            groups.entry((namespace, verdict, text)).or_default().push(name);
        }
    }
    let fact = |((namespace, verdict, text), names): ((&str, Verdict, String), Vec<&str>)| {
        let number = names.len();
        let pods = if number == 1 { "pod" } else { "pods" };
        let names = listed(names);
        Fact { about: "pods", verdict, text: format!("{namespace}: {number} {pods} {text} ({names})") }
    };
    groups.into_iter().map(fact).collect()
}

fn stale() -> (Verdict, String) {
    let text =
        "marked as enrolled, though no Airglow is installed: peers of another mesh may take them for its own";
    (Verdict::Wrong, text.to_owned())
}

/// What becomes of a pod that is to be in the mesh. `served`: nodes with a ready ztunnel, and its name.
fn state(pod: &Pod, served: &BTreeMap<&str, &str>, seen: &Seen) -> Option<(Verdict, String)> {
    let node = pod.spec.node_name.as_str();
    Some(if pod.metadata.annotations.get(REDIRECTION).is_some_and(|mark| mark == "enabled") {
        (Verdict::Ok, "enrolled".to_owned())
    } else if node.is_empty() {
        (Verdict::Note, "not enrolled: waiting for a node".to_owned())
    } else if let Some(ztunnel) = served.get(node) {
        if pod.status.phase == "Running" {
            let text = format!(
                "not enrolled: node {node} has not proven yet that it is captured; \
                 `kubectl -n {} logs {ztunnel}` says why",
                seen.namespace
            );
            (Verdict::Wrong, text)
        } else {
            (Verdict::Note, format!("not enrolled: not running yet ({})", pod.trouble()))
        }
    } else {
        (Verdict::Wrong, format!("not enrolled: node {node} has no ready ztunnel"))
    })
}

fn is_marked(pod: &Pod) -> bool {
    pod.metadata.annotations.contains_key(REDIRECTION)
}

/// Whether a pod is to be in the mesh.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Yes,
    /// Its namespace or its own label asks for it, and something stands against it.
    No(String),
    /// Nothing asks for it.
    Unasked,
}

fn wanted(pod: &Pod, namespace_mode: Option<&str>, excluded: &BTreeSet<String>) -> Wanted {
    let metadata = &pod.metadata;
    let candidate = Candidate {
        namespace: &metadata.namespace,
        namespace_mode,
        is_excluded: excluded.contains(&metadata.namespace),
        host_network: pod.spec.host_network,
        // Those that the controller makes say by their own label that they stay out.
        is_waypoint: false,
        labels: &metadata.labels,
        annotations: &metadata.annotations,
    };
    let reason = candidate.judge();
    if !candidate.is_asked_for() {
        Wanted::Unasked
    } else if reason.is_in() {
        Wanted::Yes
    } else {
        Wanted::No(reason.to_string())
    }
}

/// Namespaces that the controller never enrols, by its own settings.
fn excluded(seen: &Seen, installed: &Installed<'_>) -> BTreeSet<String> {
    let containers = installed.controller.iter().flat_map(|workload| &workload.spec.template.spec.containers);
    let variables: Vec<_> = containers.flat_map(|container| &container.env).collect();
    let of = |name: &str| {
        let found = variables.iter().filter(move |variable| variable.name == name);
        found
            .flat_map(|variable| variable.value.split(','))
            .map(|part| part.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let named = of("AIRGLOW_EXCLUDED_NAMESPACES").into_iter().chain(of("AIRGLOW_ROOT_NAMESPACE"));
    named.chain([seen.namespace.clone()]).filter(|name| !name.is_empty()).collect()
}

fn own_pods<'a>(seen: &'a Seen, app: &'a str) -> impl Iterator<Item = &'a Pod> {
    let pods = seen.pods.iter().flatten();
    pods.filter(move |pod| {
        pod.metadata.namespace == seen.namespace
            && pod.metadata.label("app") == Some(app)
            && pod.metadata.deletion_timestamp.is_none()
    })
}

/// Whether a Deployment's last version is what runs.
fn deployed(workload: &Workload) -> (bool, String) {
    let Workload { metadata, spec, status } = workload;
    let current = status.observed_generation >= metadata.generation
        && status.updated_replicas >= spec.replicas
        && status.replicas <= status.updated_replicas
        && status.available_replicas >= spec.replicas;
    let text = format!("{} of {} replicas are available", status.available_replicas, spec.replicas);
    let old = status.replicas.saturating_sub(status.updated_replicas);
    (current, if current || old == 0 { text } else { format!("{text}, and {old} of the version before run") })
}

/// The same for a DaemonSet.
fn spread(workload: &Workload) -> (bool, String) {
    let Workload { metadata, status, .. } = workload;
    let nodes = status.desired_number_scheduled;
    let current = status.observed_generation >= metadata.generation
        && nodes > 0
        && status.updated_number_scheduled >= nodes
        && status.number_available >= nodes;
    let text = format!("ready on {} of {nodes} nodes", status.number_available);
    let old = nodes.saturating_sub(status.updated_number_scheduled);
    (current, if current || old == 0 { text } else { format!("{text}, and not of this version on {old}") })
}

/// Linux nodes that a ztunnel is not meant for.
pub(crate) fn unserved(seen: &Seen, installed: &Installed<'_>) -> Option<Fact> {
    installed.ztunnel?;
    let served: BTreeSet<_> = own_pods(seen, ZTUNNEL).map(|pod| pod.spec.node_name.as_str()).collect();
    let nodes = seen.nodes.iter().flatten().filter(|node| is_linux(node));
    let names: Vec<_> =
        nodes.map(|node| node.metadata.name.as_str()).filter(|name| !served.contains(name)).collect();
    let text = format!("none on {}: their pods can't be in the mesh", listed(names.iter().copied()));
    (!names.is_empty()).then(|| Fact::note("ztunnel", text))
}
