//! Whether a pod may start: a function of what ztunnel answers and of what was last known of the mesh.
//!
//! Pure. A pod that may belong into the mesh does not start uncaptured, whatever else fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::call::Sandbox;

/// What ztunnel answered to an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing that could be understood.
    None(String),
    /// What became of the pod.
    Added { state: String, captured: bool, message: String },
}

/// What was last known: whether a namespace has pods of the mesh, and whether a pod is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct LastKnown {
    namespaces: BTreeMap<String, bool>,
    pods: BTreeMap<String, bool>,
}

/// A pod that ztunnel knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Listed {
    pub(crate) uid: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) sandbox_id: String,
    pub(crate) netns: PathBuf,
}

/// What becomes of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Its first process may be started.
    Start,
    /// It may not, for now, and why.
    Wait(String),
}

/// Decides on a pod that is not of those that always start.
pub(crate) fn add(pod: &Sandbox, answer: &Answer, known: Result<&LastKnown, &String>) -> Decision {
    let problem = match answer {
        Answer::Added { captured: true, .. } => return Decision::Start,
        Answer::Added { state, .. } if ["not wanted", "leaving"].contains(&state.as_str()) => {
            return Decision::Start;
        }
        // It is wanted, so it is of no use to ask what was wanted earlier.
        Answer::Added { state, message, .. } if state == "failed" => {
            return wait(pod, &format!("ztunnel can't capture its traffic: {message}"));
        }
        Answer::Added { message, .. } => {
            format!("ztunnel does not know whether it is in the mesh: {message}")
        }
        Answer::None(problem) => problem.clone(),
    };
    let known = match known {
        Ok(known) => known,
        Err(error) => {
            return wait(
                pod,
                &format!("{problem}; and what was last known of the mesh can't be read ({error})"),
            );
        }
    };
    let namespace = &pod.namespace;
    match (known.pods.get(&pod.uid), known.namespaces.get(namespace)) {
        (Some(false), _) | (None, Some(false)) => Decision::Start,
        (Some(true), _) => wait(pod, &format!("{problem}; and it was last known to be in the mesh")),
        (None, Some(true)) => {
            wait(pod, &format!("{problem}; and namespace {namespace} was last known to be in the mesh"))
        }
        (None, None) => {
            wait(pod, &format!("{problem}; and nothing is known yet of namespace {namespace} on this node"))
        }
    }
}

fn wait(pod: &Sandbox, why: &str) -> Decision {
    Decision::Wait(format!(
        "pod {}/{} is not started outside the mesh: {why}. It is tried again; see to the ztunnel pod of this node",
        pod.namespace, pod.name
    ))
}

/// Whether a pod that runs is what it should be.
pub(crate) fn check(pod: &Sandbox, pods: &[Listed]) -> Result<(), String> {
    let name = format!("{}/{}", pod.namespace, pod.name);
    match pods.iter().find(|known| known.uid == pod.uid) {
        None => Err(format!("ztunnel does not know pod {name}")),
        Some(known) if known.state == "failed" => {
            Err(format!("the capture of pod {name} has failed: {}", known.message))
        }
        Some(_) => Ok(()),
    }
}

/// Pods to forget: the runtime does not know their sandbox any more, and their network is gone. One without the other may
/// be another network's pod, or one that is just being made.
pub(crate) fn stale<'a>(
    pods: &'a [Listed],
    valid: &BTreeSet<String>,
    is_gone: impl Fn(&Path) -> bool,
) -> Vec<&'a Listed> {
    let unknown = |pod: &&Listed| !pod.sandbox_id.is_empty() && !valid.contains(&pod.sandbox_id);
    pods.iter().filter(unknown).filter(|pod| is_gone(&pod.netns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, namespace: &str) -> Sandbox {
        Sandbox {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: "cart-1".to_owned(),
            sandbox_id: "f00".to_owned(),
            netns: "/var/run/netns/cni-1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    fn known() -> LastKnown {
        serde_json::from_str(
            r#"{"namespaces":{"bank":false,"shop":true},"pods":{"in":true,"out":false},"later":1}"#,
        )
        .unwrap()
    }

    fn said(state: &str, captured: bool) -> Answer {
        Answer::Added { state: state.to_owned(), captured, message: "because".to_owned() }
    }

    /// An empty expectation is a start.
    fn check_add((uid, namespace): (&str, &str), answer: &Answer, expected: &str) {
        let decision = add(&pod(uid, namespace), answer, Ok(&known()));
        match &decision {
            Decision::Start => assert_eq!(expected, "", "{uid} {namespace} {answer:?}"),
            Decision::Wait(why) => {
                assert!(!expected.is_empty() && why.contains(expected), "{decision:?}: {expected:?}");
            }
        }
    }

    #[test]
    fn what_ztunnel_has_settled_is_settled() {
        for namespace in ["shop", "bank", "other"] {
            check_add(("new", namespace), &said("enrolled", true), "");
            check_add(("new", namespace), &said("failed", true), "");
            check_add(("new", namespace), &said("not wanted", false), "");
            check_add(("new", namespace), &said("failed", false), "can't capture its traffic: because");
        }
    }

    #[test]
    fn what_ztunnel_leaves_open_is_decided_by_what_was_last_known() {
        let silent = Answer::None("ztunnel does not answer".to_owned());
        for (answer, problem) in [(silent, "does not answer"), (said("pending", false), "because")] {
            check_add(("new", "bank"), &answer, "");
            check_add(("out", "shop"), &answer, "");
            check_add(("new", "shop"), &answer, "namespace shop was last known to be in the mesh");
            check_add(("in", "bank"), &answer, "it was last known");
            check_add(("new", "other"), &answer, "nothing is known yet of namespace other");
            check_add(("new", "other"), &answer, problem);
        }
    }

    #[test]
    fn without_a_file_nobody_starts() {
        let silent = Answer::None("ztunnel does not answer".to_owned());
        let decision = add(&pod("out", "bank"), &silent, Err(&"no such file".to_owned()));
        assert!(matches!(&decision, Decision::Wait(why) if why.contains("no such file")), "{decision:?}");
    }

    fn listed(uid: &str, state: &str, sandbox_id: &str) -> Listed {
        let netns = format!("/netns/{uid}").into();
        Listed {
            uid: uid.to_owned(),
            state: state.to_owned(),
            message: "because".to_owned(),
            sandbox_id: sandbox_id.to_owned(),
            netns,
        }
    }

    #[test]
    fn a_running_pod_is_known_and_has_not_failed() {
        let pods = [listed("a", "enrolled", "1"), listed("b", "failed", "2"), listed("c", "not wanted", "3")];
        assert!(check(&pod("a", "shop"), &pods).is_ok());
        assert!(check(&pod("c", "shop"), &pods).is_ok());
        assert!(check(&pod("b", "shop"), &pods).unwrap_err().contains("because"));
        assert!(check(&pod("d", "shop"), &pods).unwrap_err().contains("does not know"));
    }

    #[test]
    fn only_what_is_gone_for_the_runtime_and_for_the_kernel_is_forgotten() {
        let pods = ["1", "2", "3", ""].map(|id| listed(&format!("pod-{id}"), "enrolled", id));
        let valid = BTreeSet::from(["1".to_owned()]);
        let gone = |path: &Path| path != Path::new("/netns/pod-2");
        let stale: Vec<&str> = stale(&pods, &valid, gone).iter().map(|pod| pod.uid.as_str()).collect();
        assert_eq!(stale, ["pod-3"]);
    }
}
