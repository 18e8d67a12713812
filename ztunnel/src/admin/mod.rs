//! The admin socket: what this ztunnel knows and does, for people and for `airglow`.
//!
//! A unix socket that only root can open. Reads by GET; what changes anything is a POST. Decides nothing.

mod dump;

use std::sync::Arc;
use std::time::SystemTime;

use daemon::admin::{logging_routes, metrics_routes, readiness_routes};
use daemon::drain::Drain;
use daemon::http::{Reply, Routes};
use daemon::logs::Logs;
use daemon::metrics::Metrics;
use daemon::readiness::Readiness;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::data::Shared;
use crate::flow::Flow;
use crate::node::api::PodStatus;
use crate::telemetry::Party;

/// What the routes read.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pods: watch::Receiver<Arc<Vec<PodStatus>>>,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) logs: Logs,
    pub(crate) drain: Drain,
    /// How long connections may finish after `POST /quitquitquit`.
    pub(crate) patience: std::time::Duration,
}

/// Every route of the socket.
pub(crate) fn routes(sources: &Sources) -> Routes {
    let Sources { metrics, readiness, logs, .. } = sources;
    let base = metrics_routes(metrics).merge(readiness_routes(readiness)).merge(logging_routes(logs));
    let read = |routes: Routes, path: &'static str, about: &'static str, show: fn(&Sources) -> Value| {
        let sources = sources.clone();
        routes.get(path, about, move |_| {
            let reply = Reply::json(&show(&sources));
            async move { reply }
        })
    };
    let routes = read(base, "/config_dump", "everything known, in the form that istioctl reads", |s| {
        dump::all(&s.shared, &s.pods.borrow())
    });
    let routes = read(routes, "/connections", "live connections", connections);
    let routes =
        read(routes, "/pods", "pods of this node and their enrolment", |s| json!(*s.pods.borrow().clone()));
    let routes = read(routes, "/certificates", "certificates held", |s| json!(dump::certificates(&s.shared)));
    let routes = read(routes, "/debug", "a summary", summary);
    let quit = sources.clone();
    routes.post("/quitquitquit", "drain and stop", move |_| {
        quit.drain.begin(quit.patience);
        async { Reply::text("draining\n") }
    })
}

fn summary(sources: &Sources) -> Value {
    let mesh = sources.shared.mesh.snapshot();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": &*sources.shared.settings.node,
        "pods": sources.shared.pods.len(),
        "connections": sources.shared.flows.all().len(),
        "workloads": mesh.all_workloads().count(),
        "services": mesh.all_services().count(),
        "policies": mesh.all_policies().count(),
        "draining": sources.drain.watch().has_begun(),
    })
}

fn connections(sources: &Sources) -> Value {
    Value::Array(sources.shared.flows.all().iter().map(|flow| connection(flow)).collect())
}

fn connection(flow: &Flow) -> Value {
    let facts = &flow.facts;
    let party = |party: &Party| {
        let workload = party.workload.as_deref();
        json!({
            "workload": workload.map(|w| &*w.name),
            "namespace": workload.map(|w| &**w.namespace()),
            "identity": party.identity.as_ref().map(ToString::to_string),
        })
    };
    json!({
        "id": flow.id,
        "reporter": facts.reporter.as_str(),
        "transport": facts.transport.as_str(),
        "source": party(&facts.source),
        "destination": party(&facts.destination),
        "client": facts.client.to_string(),
        "dialled": facts.dialled.to_string(),
        "app": facts.app.to_string(),
        "authority": facts.authority.as_deref(),
        "service": facts.service.as_ref().map(|service| service.id.to_string()),
        "bytes_to_server": flow.traffic.to_server(),
        "bytes_to_client": flow.traffic.to_client(),
        "open_ms": u64::try_from(flow.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
        "since": flow.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    })
}
