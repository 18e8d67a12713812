//! Kubernetes objects as the API server answers them, with what the command line looks at and nothing else.
//!
//! Decides nothing.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What every object has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) generation: i64,
    pub(crate) deletion_timestamp: Option<String>,
}

impl Metadata {
    /// `namespace/name`.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }
}

/// An object of which only the metadata matter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Named {
    pub(crate) metadata: Metadata,
}

/// The answer to `/version`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Version {
    pub(crate) git_version: String,
}

/// Something with a state of yes or no.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeStatus {
    pub(crate) node_info: NodeInfo,
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeInfo {
    pub(crate) kernel_version: String,
    pub(crate) operating_system: String,
    pub(crate) architecture: String,
}

/// A Deployment or a DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Workload {
    pub(crate) metadata: Metadata,
    pub(crate) spec: WorkloadSpec,
    pub(crate) status: WorkloadStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WorkloadSpec {
    pub(crate) replicas: i64,
    pub(crate) template: Template,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Template {
    pub(crate) spec: PodSpec,
}

/// The first half is a Deployment's, the second a DaemonSet's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WorkloadStatus {
    pub(crate) observed_generation: i64,
    pub(crate) updated_replicas: i64,
    pub(crate) available_replicas: i64,
    pub(crate) replicas: i64,
    pub(crate) desired_number_scheduled: i64,
    pub(crate) updated_number_scheduled: i64,
    pub(crate) number_available: i64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: String,
    pub(crate) host_network: bool,
    pub(crate) containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Container {
    pub(crate) env: Vec<EnvVar>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    pub(crate) phase: String,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) init_container_statuses: Vec<ContainerStatus>,
    pub(crate) container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatus {
    pub(crate) name: String,
    pub(crate) state: ContainerState,
    pub(crate) last_state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerState {
    pub(crate) waiting: Option<Stopped>,
    pub(crate) terminated: Option<Stopped>,
}

/// Why a container does not run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Stopped {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) exit_code: i64,
}

impl Pod {
    /// Whether it will never run again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether the kubelet says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }

    /// What keeps it from being ready, in the words of the scheduler or the kubelet.
    pub(crate) fn trouble(&self) -> String {
        let containers = self.status.init_container_statuses.iter().chain(&self.status.container_statuses);
        let said = |what: &str, stopped: &Stopped| {
            let detail = if stopped.message.is_empty() {
                format!("exit code {}", stopped.exit_code)
            } else {
                stopped.message.trim().to_owned()
            };
            format!("{what} {}: {detail}", stopped.reason)
        };
        for container in containers {
            let ContainerStatus { name, state, last_state } = container;
            let last = last_state.terminated.as_ref();
            match (&state.waiting, &state.terminated) {
                (Some(waiting), _) if waiting.reason == "ContainerCreating" => {
                    return format!("container {name} is being made; its image may still be on its way");
                }
                (Some(waiting), _) if waiting.reason == "PodInitializing" => {}
                (Some(waiting), _) => {
                    let before = last.map(|last| said("; before that", last)).unwrap_or_default();
                    return format!("container {name}: {} {}{before}", waiting.reason, waiting.message);
                }
                (None, Some(ended)) if ended.exit_code != 0 => {
                    return said(&format!("container {name}:"), ended);
                }
                _ => {}
            }
        }
        let failing = |condition: &&Condition| condition.status == "False" && !condition.message.is_empty();
        match self.status.conditions.iter().find(failing) {
            Some(condition) => format!("{}: {}", condition.reason, condition.message),
            None if self.status.phase.is_empty() => "nothing is said about it yet".to_owned(),
            None => format!("phase {}", self.status.phase),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trouble(status: serde_json::Value) -> String {
        serde_json::from_value::<Pod>(json!({ "status": status })).expect("a pod").trouble()
    }

    #[test]
    fn the_trouble_of_a_pod_is_the_most_telling_word_about_it() {
        let image = json!({"name": "z", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}});
        let unready = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers: [z]"});
        let both = json!({"containerStatuses": [image], "conditions": [unready]});
        assert_eq!(trouble(both), "container z: ImagePullBackOff no such image");
        let crashed = json!({"containerStatuses": [{"name": "z", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
            "lastState": {"terminated": {"reason": "Error", "exitCode": 2}}}]});
        assert_eq!(
            trouble(crashed),
            "container z: CrashLoopBackOff back-off; before that Error: exit code 2"
        );
        let creating = json!({"containerStatuses": [{"name": "z", "state": {"waiting": {"reason": "ContainerCreating"}}}],
            "conditions": [unready]});
        assert_eq!(trouble(creating), "container z is being made; its image may still be on its way");
        let unready = json!({"containerStatuses": [{"name": "z", "state": {}}], "conditions": [unready]});
        assert_eq!(trouble(unready), "ContainersNotReady: containers: [z]");
        let unschedulable = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/2 nodes"}]});
        assert_eq!(trouble(unschedulable), "Unschedulable: 0/2 nodes");
        assert_eq!(trouble(json!({"phase": "Pending"})), "phase Pending");
    }
}
