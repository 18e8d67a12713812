//! The admin socket: what the controller holds, what it thinks of it, who is connected, and the rotation of the root.
//!
//! Only the owner of the state directory can open it. GET changes nothing.

use std::time::{Duration, SystemTime};

use daemon::admin::{logging_routes, metrics_routes, readiness_routes};
use daemon::config::Value as _;
use daemon::http::{Reply, Request, Routes};
use daemon::logs::Logs;
use daemon::metrics::Metrics;
use daemon::readiness::Readiness;
use identity::authority::{Authority, Step};
use identity::signer::Signer as _;
use serde_json::{Value, json};

use crate::hub::{Handle, View};
use crate::root::Root;
use crate::serve::Discovery;
use crate::source::objects::Key;

/// Bad request: what the caller asked for can't be.
const BAD_REQUEST: u16 = 400;

/// Conflict: not in the present state.
const CONFLICT: u16 = 409;

/// Unavailable: the controller is stopping.
const UNAVAILABLE: u16 = 503;

/// What the routes look at.
pub struct Parts {
    /// The writer.
    pub hub: Handle,
    /// Sessions.
    pub discovery: Discovery,
    /// The root.
    pub root: Root,
    /// Metrics.
    pub metrics: Metrics,
    /// Readiness.
    pub readiness: Readiness,
    /// The log filter.
    pub logs: Option<Logs>,
}

/// All routes of the admin socket.
#[must_use]
pub fn routes(parts: Parts) -> Routes {
    let Parts { hub, discovery, root, metrics, readiness, logs } = parts;
    let view = |hub: &Handle, look: fn(&View) -> Value| {
        let hub = hub.clone();
        move |_: Request| inspect(hub.clone(), look)
    };
    let (shown, rotated, activated) = (root.clone(), root.clone(), root);
    let routes = Routes::new()
        .get("/objects", "the objects that the source names", view(&hub, objects))
        .get("/findings", "what there is to say about them", view(&hub, findings))
        .get("/enrolments", "who is to be enrolled, and what nodes report", view(&hub, enrolments))
        .get("/sessions", "who is connected, and what each has acknowledged", move |_| {
            let reply = Reply::json(&sessions(&discovery));
            async move { reply }
        })
        .get("/roots", "the root certificates that everyone should trust", move |_| {
            let reply = Reply::json(&roots(shown.authority()));
            async move { reply }
        })
        .post(
            "/rotate-root",
            "?overlap=<duration> publishes a new root; it signs after the overlap",
            move |request| rotate(rotated.clone(), request),
        )
        .post(
            "/activate-root",
            "signs with the new root now, without waiting for the overlap to end",
            move |_| rotation(activated.clone(), Step::Activate),
        );
    let logging = logs.map(|logs| logging_routes(&logs)).unwrap_or_default();
    routes.merge(metrics_routes(&metrics)).merge(readiness_routes(&readiness)).merge(logging)
}

async fn inspect(hub: Handle, look: fn(&View) -> Value) -> Reply {
    match hub.inspect(look).await {
        Ok(value) => Reply::json(&value),
        Err(stopped) => refusal(UNAVAILABLE, &stopped.to_string()),
    }
}

fn refusal(status: u16, why: &str) -> Reply {
    let status = status.try_into().expect("the constants above are status codes");
    Reply::text(format!("{why}\n")).with_status(status)
}

fn key(Key { kind, namespace, name }: &Key) -> Value {
    json!({ "kind": kind.to_string(), "namespace": namespace, "name": name })
}

fn objects(view: &View) -> Value {
    let counts: serde_json::Map<_, _> =
        view.index.census().into_iter().map(|(kind, count)| (kind.to_string(), json!(count))).collect();
    json!({ "counts": counts, "objects": view.index.keys().iter().map(key).collect::<Vec<_>>() })
}

fn findings(view: &View) -> Value {
    let files = view.problems.iter().map(|found| {
        json!({
            "path": found.path, "line": found.problem.line, "column": found.problem.column,
            "severity": format!("{:?}", found.problem.severity), "message": found.problem.message,
        })
    });
    let objects = view.index.findings().map(|(of, finding)| {
        json!({
            "object": key(of), "outcome": finding.outcome.to_string(), "reason": finding.reason.to_string(),
            "message": finding.message,
        })
    });
    let misunderstood = view.misunderstood.iter().map(|object| {
        json!({
            "object": key(&object.key), "outcome": "Refused", "reason": "Invalid", "message": object.message,
        })
    });
    json!({
        "files": files.collect::<Vec<_>>(),
        "objects": misunderstood.chain(objects).collect::<Vec<_>>(),
        "proofs_not_saved": view.unsaved,
    })
}

fn enrolments(view: &View) -> Value {
    let all = view.index.enrolments().map(|(enrolment, reported)| {
        json!({
            "node": &*enrolment.node, "namespace": &*enrolment.identity.namespace, "pod": &*enrolment.name,
            "uid": &*enrolment.uid, "identity": enrolment.identity.to_string(),
            "enrol": enrolment.verdict.enrol, "reason": &*enrolment.verdict.reason,
            "proven": view.index.proven().contains(&enrolment.uid, &enrolment.node),
            "reported": reported.map(|state| format!("{:?}", state.progress)),
            "message": reported.map(|state| state.message.as_str()),
        })
    });
    Value::Array(all.collect())
}

fn sessions(discovery: &Discovery) -> Value {
    let all = discovery.sessions().into_iter().map(|session| {
        let types = session.types.iter().map(|kind| {
            json!({
                "type": kind.type_url, "wildcard": kind.wildcard, "names": kind.names, "in_flight": kind.in_flight,
                "acks": kind.acks, "nacks": kind.nacks,
                "last_nack": kind.last_nack.as_ref().map(|nack| nack.message.as_str()),
            })
        });
        json!({
            "session": session.id, "id": session.node.id, "node": session.node.metadata.get("NODE_NAME"),
            "age_seconds": session.age.as_secs(), "types": types.collect::<Vec<_>>(),
        })
    });
    Value::Array(all.collect())
}

fn roots(authority: &Authority) -> Value {
    let next = authority.next_root_at().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    json!({ "roots": authority.roots_pem(), "count": authority.roots().len(), "next_signs_at": next.map(|at| at.as_secs()) })
}

async fn rotate(root: Root, request: Request) -> Reply {
    let overlap = match request.param("overlap") {
        None => None,
        Some(text) => match Duration::parse(&text) {
            Some(overlap) => Some(overlap),
            None => return refusal(BAD_REQUEST, &format!("overlap={text}: expected {}", Duration::EXPECTED)),
        },
    };
    rotation(root, Step::Rotate(overlap)).await
}

async fn rotation(root: Root, step: Step) -> Reply {
    match root.step(&step).await {
        Ok(()) => {
            tracing::info!("the root rotation went a step further");
            Reply::json(&roots(root.authority()))
        }
        Err(error) => refusal(CONFLICT, &error.to_string()),
    }
}
