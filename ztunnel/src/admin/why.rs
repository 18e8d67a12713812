//! `GET /why` and `GET /admits`: what would become of a connection, at its source and at its destination.
//!
//! Asked of the same functions that decide about real connections; no second opinion. Opens nothing, counts nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use daemon::http::{Reply, Request};
use http::StatusCode;
use model::Str;
use model::address::{AppAddr, ClientAddr, OriginalDst};
use model::authority::{Authority, Host};
use model::identity::Identity;
use model::policy::Connection;
use model::route::{self, Load, NoRoute, Pick, Query, Route, Target, inbound_authority};
use model::service::Service;
use model::store::Mesh;
use model::workload::{Workload, WorkloadUid};
use serde_json::{Value, json};

use super::Sources;
use super::connections::verdict;
use crate::data::Shared;
use crate::data::outbound::{Way, look_up, may_dial, way};
use crate::data::plaintext::may_reach;
use crate::dns::answer::resolve;
use crate::flow::Denied;
use crate::pod::Pod;
use crate::refusal::Refusal;

/// Endpoints that are told of: a person wants to see them, not to page through them.
const ENDPOINTS: usize = 32;

/// Addresses of one name that are looked at: a headless service has one for each pod.
const ADDRESSES: usize = 32;

/// Why a question can't be answered.
#[derive(Debug, thiserror::Error)]
enum Unanswerable {
    #[error("?{0}= is missing or can't be understood: {1}")]
    Parameter(&'static str, String),
    #[error("no pod {0} is known on this node or to the mesh: is the name right, and does the pod run?")]
    NoPod(String),
}

impl Unanswerable {
    fn reply(&self) -> Reply {
        let status = match self {
            Self::Parameter(..) => StatusCode::BAD_REQUEST,
            Self::NoPod(_) => StatusCode::NOT_FOUND,
        };
        Reply::text(format!("{self}\n")).with_status(status)
    }
}

/// `?pod=namespace/name&to=host:port`: where a connection of the pod would be sent.
pub(super) async fn why(sources: Sources, request: Request) -> Reply {
    match at_source(&sources, &request).await {
        Ok(value) => Reply::json(&value),
        Err(unanswerable) => unanswerable.reply(),
    }
}

/// `?workload=uid&app=ip:port&client=ip&way=tunnel|local|plain&from=identity`: whether it would be let in.
pub(super) fn admits(sources: &Sources, request: &Request) -> Reply {
    match at_destination(sources, request) {
        Ok(value) => Reply::json(&value),
        Err(unanswerable) => unanswerable.reply(),
    }
}

fn parameter<T: std::str::FromStr>(request: &Request, name: &'static str) -> Result<T, Unanswerable>
where
    T::Err: std::fmt::Display,
{
    let text = request.param(name).unwrap_or_default();
    text.parse().map_err(|error: T::Err| Unanswerable::Parameter(name, error.to_string()))
}

async fn at_source(sources: &Sources, request: &Request) -> Result<Value, Unanswerable> {
    let shared = &sources.shared;
    let name: String = parameter(request, "pod")?;
    let to: Authority = parameter(request, "to")?;
    let source = named(&shared.mesh.snapshot(), &name);
    let status = sources.pods.borrow().iter().find(|pod| pod.pod == name).cloned();
    let mut answer = json!({
        "node": &*shared.settings.node,
        "pod": name,
        "state": status.as_ref().map(|status| status.state),
        "message": status.as_ref().map(|status| &*status.message),
    });
    let Some(source) = source else {
        // The node may know more than the mesh: why it could not be enrolled.
        return if status.is_some() { Ok(answer) } else { Err(Unanswerable::NoPod(name)) };
    };
    let pod = shared.pods.get(&source.uid);
    let (service, dialled) = addresses(&shared.mesh.snapshot(), &source, shared, &to);
    let mut routes = Vec::new();
    for ip in dialled.iter().take(ADDRESSES) {
        let dialled = OriginalDst(SocketAddr::new(*ip, to.port));
        let refused = match &pod {
            Some(pod) => may_dial(pod, dialled),
            None => Ok(()),
        };
        let refused = match refused {
            Ok(()) => look_up(shared, source.namespace(), dialled).await,
            refused => refused,
        };
        match refused {
            Ok(()) => routes.extend(routes_to(shared, &source, pod.as_deref(), dialled)),
            Err(refusal) => routes.push(nowhere(dialled, &refusal)),
        }
    }
    let more = json!({
        "on_node": &*source.node,
        "identity": source.identity.to_string(),
        "captured": pod.is_some(),
        "certificate_failure": pod.as_ref().and_then(|pod| certificate_failure(shared, &pod.identity)),
        "service": service.map(|service| service.id.to_string()),
        "is_of_mesh": !dialled.is_empty(),
        "routes": routes,
    });
    merge(&mut answer, more);
    Ok(answer)
}

/// The workload of a pod.
fn named(mesh: &Mesh, pod: &str) -> Option<Arc<Workload>> {
    let (namespace, name) = pod.split_once('/')?;
    mesh.all_workloads().find(|workload| **workload.namespace() == *namespace && *workload.name == *name)
}

/// The addresses that a host stands for when `source` asks, and the service that has the name. None: the mesh knows nothing
/// of it.
fn addresses(
    mesh: &Mesh,
    source: &Workload,
    shared: &Shared,
    to: &Authority,
) -> (Option<Arc<Service>>, Vec<IpAddr>) {
    match &to.host {
        Host::Ip(ip) => (None, vec![*ip]),
        Host::Name(name) => match resolve(mesh, source, &shared.settings.cluster_domain, name) {
            Some((service, addresses)) => (Some(service), addresses),
            None => (None, Vec::new()),
        },
    }
}

/// Every endpoint that a connection may be sent to.
fn routes_to(shared: &Shared, source: &Workload, pod: Option<&Pod>, dialled: OriginalDst) -> Vec<Value> {
    let mesh = shared.mesh.snapshot();
    let mut tried: Vec<WorkloadUid> = Vec::new();
    let mut routes = Vec::new();
    while routes.len() < ENDPOINTS {
        let query = Query { source, dst: dialled, exclude: &tried };
        let target = match route::outbound(&mesh, query, &mut First) {
            Ok(Route::Passthrough(_)) => {
                routes.push(json!({ "to": "outside", "dialled": dialled.to_string() }));
                break;
            }
            Ok(Route::Waypoint(target)) => {
                routes.push(reached(shared, (source, pod), dialled, (&target, true)));
                target
            }
            Ok(Route::Workload(target)) => {
                routes.push(reached(shared, (source, pod), dialled, (&target, false)));
                target
            }
            // Every endpoint was tried.
            Err(NoRoute::NoHealthyEndpoint(_)) if !routes.is_empty() => break,
            Err(error) => {
                routes.push(nowhere(dialled, &Refusal::NoRoute(error)));
                break;
            }
        };
        if !target.alternatives {
            break;
        }
        tried.push(target.workload.uid.clone());
    }
    routes
}

fn nowhere(dialled: OriginalDst, refusal: &Refusal) -> Value {
    let mut route = json!({ "to": "nowhere", "dialled": dialled.to_string(), "refused": refused(refusal) });
    if let Refusal::NoRoute(
        NoRoute::NoHealthyEndpoint(service)
        | NoRoute::NoAddress(service)
        | NoRoute::NoSuchPort { service, .. }
        | NoRoute::OtherNetwork { destination: service, .. },
    ) = refusal
    {
        route["service"] = json!(service.to_string());
    }
    route
}

fn refused(refusal: &Refusal) -> Value {
    json!({ "code": refusal.code(), "reason": refusal.to_string() })
}

fn reached(
    shared: &Shared,
    (source, pod): (&Workload, Option<&Pod>),
    dialled: OriginalDst,
    (target, waypoint): (&Target, bool),
) -> Value {
    // What is not captured leaves as it is.
    let way = match pod {
        Some(_) => way(shared, target, waypoint),
        None => Ok(Way::Plain),
    };
    let app = target.app.0;
    let client = source.addresses.iter().find(|ip| ip.is_ipv4() == app.is_ipv4());
    let workload = &target.workload;
    json!({
        "to": if waypoint { "waypoint" } else { "workload" },
        "dialled": dialled.to_string(),
        "service": target.service.as_ref().map(|service| service.id.to_string()),
        "workload": workload.uid.to_string(),
        "name": format!("{}/{}", workload.namespace(), workload.name),
        "node": &*workload.node,
        "app": app.to_string(),
        "way": way.as_ref().ok().map(name_of),
        "refused": way.as_ref().err().map(refused),
        "authority": &*target.authority,
        "expected": target.identities.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "client": client.map(ToString::to_string),
    })
}

fn name_of(way: &Way) -> &'static str {
    match way {
        Way::Local(_) => "local",
        Way::Plain => "plain",
        Way::Tunnel => "tunnel",
    }
}

/// Why there is no certificate to open tunnels with, if so.
fn certificate_failure(shared: &Shared, identity: &Identity) -> Option<String> {
    let state = shared.certificates.states().into_iter().find(|state| state.identity == *identity);
    match state {
        None => Some("none was asked for yet".to_owned()),
        Some(state) if state.certificate.is_some() => None,
        Some(state) => {
            Some(state.failure.map_or_else(|| "not here yet".to_owned(), |failure| failure.to_string()))
        }
    }
}

fn at_destination(sources: &Sources, request: &Request) -> Result<Value, Unanswerable> {
    let shared = &sources.shared;
    let uid = WorkloadUid(Str::from(request.param("workload").unwrap_or_default()));
    let app: SocketAddr = parameter(request, "app")?;
    let client: IpAddr = parameter(request, "client")?;
    let way: String = parameter(request, "way")?;
    let from: Identity = parameter(request, "from")?;
    let mesh = shared.mesh.snapshot();
    let workload = mesh.workload(&uid).ok_or_else(|| Unanswerable::NoPod(uid.to_string()))?;
    let name = format!("{}/{}", workload.namespace(), workload.name);
    let status = sources.pods.borrow().iter().find(|pod| pod.pod == name).cloned();
    let mut answer = json!({
        "node": &*shared.settings.node,
        "state": status.as_ref().map(|status| status.state),
        "message": status.as_ref().map(|status| &*status.message),
    });
    // Without capture nobody is asked.
    let Some(pod) = shared.pods.get(&uid) else {
        merge(&mut answer, json!({ "captured": false }));
        return Ok(answer);
    };
    let more = match admitted(&mesh, (&pod, &workload), &way, app) {
        Err(refusal) => json!({ "captured": true, "allowed": false, "refused": refused(&refusal) }),
        Ok(app) => {
            let peer = Some(from).filter(|_| way != "plain");
            let judged =
                mesh.authorize(&workload, Connection { peer, client: ClientAddr((client, 0).into()), app });
            let code =
                judged.enforced.clone().err().map(|denial| Refusal::from(Denied::Policy(denial)).code());
            let mut more = verdict(&judged);
            merge(&mut more, json!({ "captured": true, "code": code }));
            more
        }
    };
    merge(&mut answer, more);
    Ok(answer)
}

/// Whether the pod takes what leads to `app`, before policy is asked.
fn admitted(
    mesh: &Mesh,
    (pod, workload): (&Pod, &Workload),
    way: &str,
    app: SocketAddr,
) -> Result<AppAddr, Refusal> {
    if let Some(reason) = &pod.refused {
        return Err(Refusal::PodRefused(reason.clone()));
    }
    match way {
        "tunnel" => {
            let authority = app.to_string().parse().map_err(Refusal::NotAnAuthority)?;
            Ok(inbound_authority(mesh, workload, app.ip(), &authority)?)
        }
        "plain" => may_reach(pod, OriginalDst(app)).map(|()| AppAddr(app)),
        _ => Ok(AppAddr(app)),
    }
}

/// Adds the fields of `more` to an object.
fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// A choice without chance: every endpoint is shown in the end.
struct First;

impl Pick for First {
    fn random(&mut self, _below: u32) -> u32 {
        0
    }

    fn load(&self, _uid: &WorkloadUid) -> Load {
        Load::default()
    }
}
