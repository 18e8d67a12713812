//! Where a connection is carried: what was asked for, or a backend of the TCPRoute or TLSRoute that is about it.
//!
//! Decided once for each connection. Connects to nothing.

use std::sync::Arc;

use model::l7::{BackendTarget, Balancing, Fault, HashKey, Injected, RouteKind, Rule, Selected};
use model::route::Behind;

use crate::balance::Strategy;
use crate::data::upstream::choice::{self, How};
use crate::data::{Asked, Context, time_of_day};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// What becomes of a connection.
pub(super) struct Routed {
    /// Where it goes.
    pub(super) asked: Asked,
    /// How an endpoint is chosen there.
    pub(super) how: How,
    /// What befalls it on purpose. Of what aborts, a connection knows the reset alone.
    pub(super) injected: Injected,
}

/// What becomes of a connection. `name` is what a TLS client asks for.
pub(super) fn route(
    context: &Context,
    asked: &Asked,
    facts: &mut Facts,
    name: Option<&str>,
) -> Result<Routed, Refusal> {
    let Behind::Service(service, port, dialled) = &asked.behind else {
        let injected = Injected::default();
        return Ok(Routed { asked: asked.clone(), how: how(None, facts), injected });
    };
    let book = context.shared.book.load();
    let known = book.of(&service.id);
    let client = facts.source.identity.as_ref();
    let routes = known.routes(*port);
    let selected = match routes.kind(client) {
        Some(RouteKind::Tcp | RouteKind::Tls) => routes.select_connection(client, name),
        // A route of requests says nothing about what are none.
        Some(RouteKind::Grpc | RouteKind::Http) | None => Selected::Implicit,
    };
    let rule = match selected {
        Selected::Implicit => None,
        Selected::Rule { rule, .. } => Some(rule),
        Selected::Unmatched => {
            let name = name.map_or_else(|| "that asks for no name".to_owned(), |name| format!("for {name}"));
            return Err(Refusal::Unmatched { service: service.id.clone(), port: *port, what: name });
        }
    };
    let chosen = known.chosen(rule.map(|rule| &rule.key));
    let how = how(chosen.balancing.as_ref(), facts);
    let random = std::array::from_fn(|_| fastrand::u64(..));
    let inject = |fault: &Fault| fault.inject(&(), client, time_of_day(), random);
    let injected = chosen.fault.as_ref().map(inject).unwrap_or_default();
    let Some(rule) = rule else { return Ok(Routed { asked: asked.clone(), how, injected }) };
    let (name, port) = backend(rule).map_err(|why| Refusal::Route { rule: rule.key.clone(), why })?;
    let Some(backend) = context.shared.mesh.snapshot().service_named(name).cloned() else {
        let why = format!("backend {name} is not known");
        return Err(Refusal::Route { rule: rule.key.clone(), why });
    };
    let dialled = dialled.filter(|_| backend.id == service.id);
    facts.service = Some(Arc::clone(&backend));
    let behind = Behind::Service(backend, port, dialled);
    Ok(Routed { asked: Asked { local: Arc::clone(&asked.local), behind }, how, injected })
}

/// The backend that this connection draws, or why there is none.
fn backend(rule: &Rule) -> Result<(&model::service::ServiceName, u16), String> {
    if let Some(why) = &rule.refusal {
        return Err(why.to_string());
    }
    match rule.backend(fastrand::u64(..)).map(|backend| &backend.target) {
        Some(BackendTarget::Service { name, port }) => Ok((name, *port)),
        Some(BackendTarget::Invalid(why)) => Err(why.to_string()),
        None => Err("none of its backends has a weight".to_owned()),
    }
}

/// How an endpoint is chosen for a connection. Of what a policy can hash, a connection has its source alone; no answer of its
/// endpoint can be timed.
fn how(balancing: Option<&Balancing>, facts: &Facts) -> How {
    let strategy = match balancing {
        None | Some(Balancing::LeastLoad | Balancing::LeastRequest) => Strategy::LeastRequest,
        Some(Balancing::Maglev(key) | Balancing::RingHash(key)) => match key {
            HashKey::Source => return How::by(choice::client(facts).as_bytes()),
            HashKey::Cookie { .. } | HashKey::Header(_) => Strategy::Random,
        },
        Some(Balancing::Random) => Strategy::Random,
        Some(Balancing::RoundRobin) => Strategy::RoundRobin,
    };
    How { strategy, hash: None, session: None }
}
