//! The admin socket: what this ztunnel knows and does, for people and for `airglow`.
//!
//! A unix socket that only root can open. Reads by GET; what changes anything is a POST. Decides nothing.

mod connections;
mod dump;
mod why;

use std::sync::Arc;

use daemon::http::{Reply, Routes};
use proxy::process::Process;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::data::Shared;
use crate::node::api::PodStatus;

/// What the routes read.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pods: watch::Receiver<Arc<Vec<PodStatus>>>,
    pub(crate) process: Process,
}

/// Every route of the socket.
pub(crate) fn routes(sources: &Sources) -> Routes {
    let base = proxy::admin::routes(&sources.process);
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
    let routes = read(routes, "/workloads", "workloads known", |s| {
        json!(proxy::dump::workloads(&s.shared.mesh.snapshot()))
    });
    let routes = read(routes, "/services", "services known", |s| {
        json!(proxy::dump::services(&s.shared.mesh.snapshot()))
    });
    let routes = read(routes, "/policies", "policies known", |s| {
        json!(proxy::dump::policies(&s.shared.mesh.snapshot()))
    });
    let (asked, admitted, live) = (sources.clone(), sources.clone(), Arc::clone(&sources.shared));
    let routes = routes
        .get("/connections", "live connections", move |_| off_thread(Arc::clone(&live)))
        .get("/why", "?pod=namespace/name&to=host:port: where a connection would go", move |request| {
            why::why(asked.clone(), request)
        })
        .get(
            "/admits",
            "?workload=uid&app=ip:port&client=ip&way=tunnel|local|plain&from=identity: whether one would be let in",
            move |request| {
                let reply = why::admits(&admitted, &request);
                async move { reply }
            },
        );
    let routes =
        read(routes, "/pods", "pods of this node and their enrolment", |s| json!(*s.pods.borrow().clone()));
    let routes = read(routes, "/certificates", "certificates held", |s| {
        json!(proxy::dump::certificates(&s.shared.certificates))
    });
    read(routes, "/debug", "a summary", summary)
}

/// Live connections. The kernel is asked on another thread: it may have many to tell of.
async fn off_thread(shared: Arc<Shared>) -> Reply {
    match tokio::task::spawn_blocking(move || connections::all(&shared)).await {
        Ok(all) => Reply::json(&all),
        Err(error) => Reply::text(format!("can't list the connections: {error}\n"))
            .with_status(http::StatusCode::INTERNAL_SERVER_ERROR),
    }
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
        "draining": sources.process.drain.watch().has_begun(),
    })
}
