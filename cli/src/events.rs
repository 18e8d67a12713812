//! `airglow events`: what there is to say of what the mesh is made of. Kubernetes Events that Airglow wrote, and what the
//! controller finds wrong or unfinished now.
//!
//! Reads only.

use daemon::config::Vars;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::Cluster;
use crate::mesh::Mesh;
use crate::output::Where;
use crate::term::{Style, Table};

/// What every component of ours that writes Events is called after.
const WRITERS: [&str; 2] = ["airglow", "ztunnel"];

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Line {
    /// When it was last so; `now` for what is so at this moment.
    at: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    severity: String,
    reason: String,
    /// `Kind namespace/name`.
    object: String,
    namespace: String,
    message: String,
    count: u64,
}

/// An Event as the API server has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Event {
    #[serde(rename = "type")]
    severity: String,
    reason: String,
    message: String,
    count: Option<u64>,
    series: Option<Series>,
    last_timestamp: Option<String>,
    event_time: Option<String>,
    reporting_component: String,
    source: Writer,
    involved_object: Involved,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Series {
    count: u64,
    last_observed_time: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Writer {
    component: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Involved {
    kind: String,
    namespace: String,
    name: String,
}

/// The answer to the controller's `/findings`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Findings {
    files: Vec<InFile>,
    objects: Vec<Found>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InFile {
    path: String,
    line: u64,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    object: Involved,
    outcome: String,
    reason: String,
    message: String,
}

/// One pod in the answer to the controller's `/enrolments`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Enrolment {
    namespace: String,
    pod: String,
    node: String,
    enrol: bool,
    proven: bool,
    reported: Option<String>,
    message: Option<String>,
}

/// Prints it, the newest last.
pub(crate) fn run(at: &Where, style: Style, vars: &dyn Vars) -> anyhow::Result<()> {
    let mesh = Mesh::find(&at.which, vars)?;
    let mut lines = Vec::new();
    if let Some(cluster) = mesh.cluster() {
        lines.extend(events(cluster, at.namespace.as_deref())?);
    }
    if let Some(controller) = mesh.controllers()?.first() {
        lines.extend(found(&mesh.ask_json(controller, "/findings")?));
        let pods: Vec<Enrolment> = mesh.ask_json(controller, "/enrolments")?;
        let of_node = |pod: &&Enrolment| at.node.as_deref().is_none_or(|node| node == pod.node);
        lines.extend(pods.iter().filter(of_node).filter_map(unfinished));
    }
    lines.retain(|line| at.admits([line.namespace.as_str()]));
    lines.sort();
    let mut table = Table::new(["AT", "TYPE", "REASON", "OBJECT", "+>COUNT", "MESSAGE"]);
    for Line { at, severity, reason, object, message, count, .. } in lines.clone() {
        table.row([at, severity, reason, object, count.to_string(), message]);
    }
    at.print(&json!(lines), table, "nothing to say", style)
}

/// Events that we wrote.
fn events(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Vec<Line>> {
    let path = namespace.map_or_else(
        || "/api/v1/events".to_owned(),
        |namespace| format!("/api/v1/namespaces/{namespace}/events"),
    );
    let events: Vec<Event> = cluster.list(&path).map_err(|error| {
        anyhow::anyhow!(
            "can't list Events: {error}; it takes the right to list `events`, with -n of one namespace"
        )
    })?;
    Ok(events.into_iter().filter_map(written).collect())
}

fn written(event: Event) -> Option<Line> {
    let writer = if event.reporting_component.is_empty() {
        &event.source.component
    } else {
        &event.reporting_component
    };
    // `airglow.io/controller` as well as `airglow-controller`.
    if !WRITERS.iter().any(|ours| writer.starts_with(ours)) {
        return None;
    }
    let Involved { kind, namespace, name } = event.involved_object;
    let (times, last) =
        event.series.map_or((None, None), |series| (Some(series.count), series.last_observed_time));
    Some(Line {
        at: last.or(event.last_timestamp).or(event.event_time).unwrap_or_default(),
        severity: event.severity,
        reason: event.reason,
        object: object(&kind, &namespace, &name),
        namespace,
        message: event.message,
        count: times.or(event.count).unwrap_or(1),
    })
}

/// What the controller finds wrong with what it read.
fn found(findings: &Findings) -> Vec<Line> {
    let line = |reason: &str, object: String, namespace: &str, message: &str| Line {
        at: "now".to_owned(),
        severity: "Warning".to_owned(),
        reason: reason.to_owned(),
        object,
        namespace: namespace.to_owned(),
        message: message.to_owned(),
        count: 1,
    };
    let files = findings
        .files
        .iter()
        .map(|file| line("Invalid", format!("{}:{}", file.path, file.line), "", &file.message));
    let objects = findings.objects.iter().filter(|found| found.outcome != "Accepted").map(|found| {
        let Involved { kind, namespace, name } = &found.object;
        let message = format!("{}: {}", found.outcome, found.message);
        line(&found.reason, object(kind, namespace, name), namespace, &message)
    });
    files.chain(objects).collect()
}

/// A pod that is to be in the mesh and is not proven to be.
fn unfinished(pod: &Enrolment) -> Option<Line> {
    let Enrolment { namespace, pod: name, node, reported, message, .. } = pod;
    if !pod.enrol || pod.proven {
        return None;
    }
    let reported = reported.as_deref().unwrap_or("nothing yet");
    let message = message.as_deref().filter(|text| !text.is_empty()).map(|text| format!(": {text}"));
    Some(Line {
        at: "now".to_owned(),
        severity: "Warning".to_owned(),
        reason: "NotEnrolled".to_owned(),
        object: object("Pod", namespace, name),
        namespace: namespace.clone(),
        message: format!("node {node} reports {reported}{}", message.unwrap_or_default()),
        count: 1,
    })
}

fn object(kind: &str, namespace: &str, name: &str) -> String {
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{kind} {namespace}{slash}{name}")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("as the server has it")
    }

    #[test]
    fn events_are_ours_by_their_writer() {
        let event = |writer: &str| {
            let involved = json!({"kind": "Pod", "namespace": "shop", "name": "web"});
            json!({
                "type": "Warning", "reason": "NotEnrolled", "message": "why", "involvedObject": involved, "count": 3,
                "lastTimestamp": "2026-11-21T07:00:00Z", "reportingComponent": writer, "source": {"component": ""},
            })
        };
        let line = written(read(event("airglow-controller"))).expect("ours");
        assert_eq!(
            (line.object.as_str(), line.count, line.at.as_str()),
            ("Pod shop/web", 3, "2026-11-21T07:00:00Z")
        );
        assert_eq!(written(read(event("kubelet"))), None);
        let series = json!({"reason": "R", "reportingComponent": "airglow", "eventTime": "2026-11-21T07:00:00.000000Z",
            "series": {"count": 7, "lastObservedTime": "2026-11-21T08:00:00Z"}, "lastTimestamp": null});
        let line = written(read(series)).expect("ours");
        assert_eq!((line.count, line.at.as_str()), (7, "2026-11-21T08:00:00Z"));
    }

    #[test]
    fn what_the_controller_finds_is_told_unless_all_is_well() {
        let object = json!({"kind": "AuthorizationPolicy", "namespace": "shop", "name": "p"});
        let finding = |outcome: &str| json!({"object": object, "outcome": outcome, "reason": "Invalid", "message": "mend it"});
        let findings = json!({"files": [{"path": "a.yaml", "line": 3, "message": "bad"}],
            "objects": [finding("Refused"), finding("Accepted")]});
        let lines = found(&read(findings));
        let shown: Vec<_> = lines.iter().map(|line| format!("{} {}", line.object, line.message)).collect();
        assert_eq!(shown, ["a.yaml:3 bad", "AuthorizationPolicy shop/p Refused: mend it"]);
        let pod = |enrol: bool, proven: bool| -> Enrolment {
            read(json!({"namespace": "shop", "pod": "web", "node": "n1", "enrol": enrol, "proven": proven,
                "reported": "Failed", "message": "no netns"}))
        };
        assert_eq!(
            unfinished(&pod(true, false)).expect("a line").message,
            "node n1 reports Failed: no netns"
        );
        assert_eq!((unfinished(&pod(false, false)), unfinished(&pod(true, true))), (None, None));
    }
}
