//! `config_dump`: the mesh in the JSON form that Istio's tools read.
//!
//! Key names and spellings are that interface's; values come from the snapshot as they are.

use std::collections::BTreeMap;

use proxy::dump;
use serde_json::{Value, json};

use crate::data::Shared;
use crate::node::api::PodStatus;
use crate::telemetry::Reporter;

/// The whole dump.
pub(crate) fn all(shared: &Shared, pods: &[PodStatus]) -> Value {
    let mut all = dump::all(&shared.mesh.snapshot(), &shared.certificates);
    let config = json!({
        "localNode": &*shared.settings.node,
        "network": &*shared.settings.network,
        "clusterDomain": &*shared.settings.cluster_domain,
        "forceTunnel": shared.settings.force_tunnel,
    });
    all.insert("config".to_owned(), config);
    all.insert("workloadState".to_owned(), workload_state(shared, pods));
    Value::Object(all)
}

fn workload_state(shared: &Shared, pods: &[PodStatus]) -> Value {
    let flows = shared.flows.all();
    let of = |pod: &PodStatus, reporter: Reporter| {
        let mine = flows.iter().filter(|flow| flow.facts.is_of(&pod.uid) && flow.facts.reporter == reporter);
        let shown = mine.map(|flow| {
            json!({
                "src": flow.facts.client.to_string(),
                "originalDst": flow.facts.dialled.to_string(),
                "actualDst": flow.facts.app.to_string(),
                "protocol": flow.facts.transport.as_str(),
            })
        });
        shown.collect::<Vec<_>>()
    };
    let states: BTreeMap<&str, Value> = pods
        .iter()
        .map(|pod| {
            let connections =
                json!({ "inbound": of(pod, Reporter::Destination), "outbound": of(pod, Reporter::Source) });
            let (namespace, name) = pod.pod.split_once('/').unwrap_or(("", &pod.pod));
            let state = if pod.state == "enrolled" { "Up" } else { "Pending" };
            let info = json!({ "name": name, "namespace": namespace });
            (pod.uid.as_str(), json!({ "state": state, "connections": connections, "info": info }))
        })
        .collect();
    json!(states)
}
