//! What a cluster must bring, whether Airglow is installed or not: versions, kernels, rights, nobody else in the same place.
//!
//! Judges what was answered; asks nobody.

use super::facts::{Fact, Seen};
use crate::cluster::is_ours;
use crate::cluster::objects::{Node, Workload};
use crate::term::listed;

/// The oldest Kubernetes whose API has all that the chart asks of it (the rules of definitions call `isCIDR`: 1.31).
const KUBERNETES: (u32, u32) = (1, 31);

/// The oldest Linux that has every feature of eBPF that capture needs.
const LINUX: (u32, u32) = (5, 18);

/// Processors that the images are built for.
const PROCESSORS: [&str; 2] = ["amd64", "arm64"];

pub(crate) fn judge(seen: &Seen, installed: bool) -> Vec<Fact> {
    let mut facts = vec![api_server(seen)];
    facts.extend(nodes(seen));
    if !installed {
        facts.push(rights(seen));
    }
    facts.push(policies(seen));
    facts.extend(others(seen));
    facts
}

fn api_server(seen: &Seen) -> Fact {
    let about = "api server";
    let version = match &seen.version {
        Ok(version) => &version.git_version,
        Err(why) => return Fact::unseen(about, "its version", why),
    };
    let (major, minor) = KUBERNETES;
    match numbers(version) {
        Some(found) if found >= KUBERNETES => Fact::ok(about, format!("Kubernetes {version}")),
        Some(_) => Fact::wrong(
            about,
            format!("Kubernetes {version}, and {major}.{minor} or later is needed: upgrade it"),
        ),
        None => Fact::wrong(
            about,
            format!("its version is said to be {version:?}; {major}.{minor} or later is needed"),
        ),
    }
}

/// One fact for all nodes that are as they should be, and one for each other.
fn nodes(seen: &Seen) -> Vec<Fact> {
    let about = "nodes";
    let nodes = match &seen.nodes {
        Ok(nodes) => nodes,
        Err(why) => return vec![Fact::unseen(about, "the nodes", why)],
    };
    let (linux, other): (Vec<&Node>, Vec<_>) = nodes.iter().partition(|node| is_linux(node));
    let mut facts = Vec::new();
    let mut good: Vec<(Option<(u32, u32)>, &str)> = Vec::new();
    for node in &linux {
        match unfit(node) {
            Some(why) => facts.push(Fact::wrong(about, format!("{}: {why}", node.metadata.name))),
            None => {
                let kernel = &node.status.node_info.kernel_version;
                good.push((numbers(kernel), kernel));
            }
        }
        let ready = |name: &str| node.status.conditions.iter().any(|c| c.kind == name && c.status == "True");
        if !ready("Ready") {
            let text = format!("{} is not ready, so that nothing new starts there", node.metadata.name);
            facts.push(Fact::note(about, text));
        }
    }
    if let Some((_, oldest)) = good.iter().min() {
        let (major, minor) = LINUX;
        let text = format!("{} with Linux {major}.{minor} or later (the oldest: {oldest})", good.len());
        facts.insert(0, Fact::ok(about, text));
    }
    if linux.is_empty() {
        facts.push(Fact::wrong(about, "there is no Linux node to run on"));
    }
    if !other.is_empty() {
        let names = listed(other.iter().map(|node| node.metadata.name.as_str()));
        facts.push(Fact::note(about, format!("not Linux, so that their pods can't be in the mesh: {names}")));
    }
    facts
}

pub(crate) fn is_linux(node: &Node) -> bool {
    node.status.node_info.operating_system == "linux"
}

fn unfit(node: &Node) -> Option<String> {
    let info = &node.status.node_info;
    let (major, minor) = LINUX;
    if numbers(&info.kernel_version).is_none_or(|found| found < LINUX) {
        let kernel = &info.kernel_version;
        return Some(format!(
            "Linux {kernel:?}, and {major}.{minor} or later is needed: upgrade the node's image"
        ));
    }
    if !PROCESSORS.contains(&info.architecture.as_str()) {
        let processors = PROCESSORS.join(" and ");
        return Some(format!(
            "its processor is {}, and there are images for {processors}",
            info.architecture
        ));
    }
    None
}

fn rights(seen: &Seen) -> Fact {
    let about = "rights";
    match &seen.missing_rights {
        Err(why) => Fact::unseen(about, "what you may do", why),
        Ok(missing) if missing.is_empty() => {
            Fact::ok(about, "you may make, change and remove everything that an installation has")
        }
        Ok(missing) => {
            let missing: Vec<_> =
                missing.iter().map(|right| format!("{} {}", right.verb, right.what())).collect();
            let missing = listed(missing.iter().map(String::as_str));
            Fact::wrong(
                about,
                format!("to install, you lack: {missing}; ask an administrator of the cluster"),
            )
        }
    }
}

fn policies(seen: &Seen) -> Fact {
    let about = "policies";
    match seen.policies {
        Ok(true) => Fact::ok(about, "the API server knows security.istio.io/v1"),
        Ok(false) => Fact::note(
            about,
            "the API server does not know security.istio.io/v1: until its definitions are there, no policy can be written; `airglow install` makes them",
        ),
        Err(ref why) => Fact::unseen(about, "whether the API server knows them", why),
    }
}

/// Who would capture the same pods, or write the same objects.
fn others(seen: &Seen) -> Vec<Fact> {
    let about = "others";
    let mut facts = Vec::new();
    let kinds = [("DaemonSet", &seen.daemon_sets), ("Deployment", &seen.deployments)];
    for (kind, workloads) in kinds {
        match workloads {
            Err(why) => facts.push(Fact::unseen(about, &format!("{kind}s of other meshes"), why)),
            Ok(workloads) => {
                let found = workloads.iter().filter_map(|workload| {
                    let what = rival(kind, workload)?;
                    let place = workload.metadata.path();
                    Some(Fact::wrong(about, format!("{what} ({kind} {place}): remove one of the two meshes")))
                });
                facts.extend(found);
            }
        }
    }
    if facts.is_empty() {
        facts.push(Fact::ok(about, "no other mesh captures pods"));
    }
    facts
}

fn rival(kind: &str, workload: &Workload) -> Option<&'static str> {
    if is_ours(&workload.metadata.labels) {
        return None;
    }
    let metadata = &workload.metadata;
    let is = |name: &str| {
        metadata.name == name
            || metadata.label("app") == Some(name)
            || metadata.label("k8s-app") == Some(name)
    };
    match kind {
        "DaemonSet" if is("istio-cni-node") => Some("Istio's CNI agent redirects pods with the same labels"),
        "DaemonSet" if is("ztunnel") => Some("Istio's ztunnel serves pods with the same labels"),
        "Deployment" if is("istiod") => {
            Some("Istio's control plane writes istio-ca-root-cert and the status of policies, as ours does")
        }
        _ => None,
    }
}

/// The first two numbers of a version: `v1.36.2+k3s1`, `5.15.0-1051-aws`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, rest) = version.strip_prefix('v').unwrap_or(version).split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::facts::Verdict;
    use super::super::tests::seen;
    use super::*;
    use crate::cluster::manifest::Right;

    #[test]
    fn versions_have_two_numbers() {
        for (text, expected) in [
            ("v1.36.2", Some((1, 36))),
            ("v1.30+", Some((1, 30))),
            ("v1.29.4-gke.1", Some((1, 29))),
            ("6.1", Some((6, 1))),
            ("5.15.0-1051-aws", Some((5, 15))),
            ("six", None),
            ("v1.x", None),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }

    #[test]
    fn a_sound_cluster_has_nothing_wrong() {
        let facts = judge(&seen(), false);
        assert!(facts.iter().all(|fact| fact.verdict == Verdict::Ok), "{facts:#?}");
        let abouts: Vec<_> = facts.iter().map(|fact| fact.about).collect();
        assert_eq!(abouts, ["api server", "nodes", "rights", "policies", "others"]);
        assert!(
            facts[1].text.contains("2 with Linux") && facts[1].text.contains("6.1.0"),
            "{}",
            facts[1].text
        );
    }

    /// What is wrong, after `change`.
    fn wrong(change: impl FnOnce(&mut Seen)) -> Vec<String> {
        let mut seen = seen();
        change(&mut seen);
        let facts = judge(&seen, false).into_iter().filter(|fact| fact.verdict == Verdict::Wrong);
        facts.map(|fact| fact.text).collect()
    }

    fn node(kernel: &str, processor: &str, system: &str) -> Node {
        let info = json!({"kernelVersion": kernel, "architecture": processor, "operatingSystem": system});
        let status = json!({"nodeInfo": info, "conditions": [{"type": "Ready", "status": "True"}]});
        serde_json::from_value(json!({"metadata": {"name": "old"}, "status": status})).unwrap()
    }

    #[test]
    fn versions_that_are_too_old_are_wrong() {
        let old = wrong(|seen| seen.version.as_mut().unwrap().git_version = "v1.29.9".into());
        assert!(old[0].contains("v1.29.9") && old[0].contains("1.31"), "{old:?}");
        for (node, part) in [
            (node("5.15.0-91-generic", "amd64", "linux"), "5.18 or later"),
            (node("", "amd64", "linux"), "5.18 or later"),
            (node("6.12.1", "s390x", "linux"), "s390x"),
        ] {
            let found = wrong(|seen| seen.nodes.as_mut().unwrap().push(node));
            assert!(found.len() == 1 && found[0].contains("old:") && found[0].contains(part), "{found:?}");
        }
        let windows = wrong(|seen| seen.nodes.as_mut().unwrap().push(node("10.0", "amd64", "windows")));
        assert_eq!(windows, Vec::<String>::new(), "Windows nodes are left alone");
        assert_eq!(wrong(|seen| seen.nodes = Ok(Vec::new())), ["there is no Linux node to run on"]);
    }

    #[test]
    fn missing_rights_are_named_only_before_the_installation() {
        let right = Right { group: "apps", resource: "daemonsets", verb: "create", namespace: None };
        let found = wrong(|seen| seen.missing_rights = Ok(vec![right.clone()]));
        assert!(found[0].contains("create daemonsets.apps"), "{found:?}");
        let mut seen = seen();
        seen.missing_rights = Ok(vec![right]);
        assert!(judge(&seen, true).iter().all(|fact| fact.about != "rights"));
    }

    #[test]
    fn other_meshes_are_found() {
        let check = |kind: &str, metadata: Value, expected: Option<&str>| {
            let workload: Workload = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
            let found = wrong(|seen| {
                let list = if kind == "DaemonSet" { &mut seen.daemon_sets } else { &mut seen.deployments };
                list.as_mut().unwrap().push(workload);
            });
            assert_eq!(found.len(), usize::from(expected.is_some()), "{found:?}");
            assert!(found.iter().all(|text| text.contains(expected.unwrap_or_default())), "{found:?}");
        };
        let cni = json!({"name": "istio-cni-node", "namespace": "istio-system"});
        check("DaemonSet", cni, Some("DaemonSet istio-system/istio-cni-node"));
        check("DaemonSet", json!({"name": "ztunnel", "namespace": "istio-system"}), Some("Istio's ztunnel"));
        let revision = json!({"name": "istiod-canary", "namespace": "i", "labels": {"app": "istiod"}});
        check("Deployment", revision, Some("control plane"));
        let ours =
            json!({"name": "ztunnel", "namespace": "a", "labels": {"app.kubernetes.io/part-of": "airglow"}});
        check("DaemonSet", ours, None);
        check("DaemonSet", json!({"name": "kube-proxy", "namespace": "kube-system"}), None);
    }

    #[test]
    fn what_can_not_be_seen_is_wrong() {
        let forbidden = || "status 403: forbidden".to_owned();
        for found in [
            wrong(|seen| seen.version = Err(forbidden())),
            wrong(|seen| seen.nodes = Err(forbidden())),
            wrong(|seen| seen.missing_rights = Err(forbidden())),
            wrong(|seen| seen.policies = Err(forbidden())),
            wrong(|seen| seen.daemon_sets = Err(forbidden())),
            wrong(|seen| seen.deployments = Err(forbidden())),
        ] {
            assert!(found.len() == 1 && found[0].contains("403"), "{found:?}");
        }
    }
}
