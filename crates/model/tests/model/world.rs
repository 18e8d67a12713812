//! A small world to ask for routes, and routes as one line of text.

use std::collections::HashMap;

use model::address::OriginalDst;
use model::route::{Load, NoRoute, Pick, Query, Route, Target, WaypointFault, outbound};
use model::service::Service;
use model::store::{Mesh, Update};
use model::workload::{TunnelProtocol, Workload, WorkloadUid};

use crate::make::{WorkloadExt, addr, pod, service};

/// Draws given numbers, then zeros; knows the loads it was told.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) draws: Vec<u32>,
    pub(crate) loads: HashMap<WorkloadUid, Load>,
}

impl Pick for Scripted {
    fn random(&mut self, below: u32) -> u32 {
        assert!(below > 0, "nothing is below 0");
        match self.draws.is_empty() {
            true => 0,
            false => self.draws.remove(0) % below,
        }
    }

    fn load(&self, uid: &WorkloadUid) -> Load {
        self.loads.get(uid).copied().unwrap_or_default()
    }
}

/// A world of updates, asked from pod `shop/web` at 10.0.0.1 on node `n1`.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) source: Workload,
    pub(crate) exclude: Vec<WorkloadUid>,
    pub(crate) pick: Scripted,
}

pub(crate) fn world(updates: impl IntoIterator<Item = Update>) -> World {
    let mut mesh = Mesh::default();
    let source = pod("shop/web", &["10.0.0.1", "fd00::1"]);
    mesh.apply([Update::Workload(source.clone())]);
    mesh.apply(updates);
    World { mesh, source, exclude: Vec::new(), pick: Scripted::default() }
}

impl World {
    pub(crate) fn route(&mut self, dst: &str) -> Result<Route, NoRoute> {
        let query = Query { source: &self.source, dst: OriginalDst(addr(dst)), exclude: &self.exclude };
        outbound(&self.mesh, query, &mut self.pick)
    }

    pub(crate) fn target(&mut self, dst: &str) -> Target {
        match self.route(dst) {
            Ok(Route::Workload(target) | Route::Waypoint(target)) => target,
            other => panic!("no target: {other:?}"),
        }
    }

    /// The route as one line, see `show`.
    pub(crate) fn check(&mut self, dst: &str, expected: &str) -> &mut Self {
        let shown = show(self.route(dst));
        assert_eq!(shown, expected, "to {dst}");
        self
    }
}

/// `direct|waypoint|refused ...`: the pod's name, how, to which peer, and what is asked for there.
pub(crate) fn show(route: Result<Route, NoRoute>) -> String {
    let target = |kind: &str, target: Target| {
        let how = match target.tunnel {
            TunnelProtocol::Hbone => "hbone",
            TunnelProtocol::None => "plain",
        };
        let service = target.service.map_or_else(String::new, |service| format!(" of {}", service.id));
        let more = if target.alternatives { " or others" } else { "" };
        format!(
            "{kind} {}{service}{more}: {how} {} for {}",
            target.workload.name, target.peer, target.authority
        )
    };
    match route {
        Ok(Route::Workload(t)) => {
            assert_eq!(t.app.to_string(), t.authority);
            target("direct", t)
        }
        Ok(Route::Waypoint(t)) => target("waypoint", t),
        Ok(Route::Passthrough(addr)) => format!("passthrough {addr}"),
        Err(refused) => {
            let kind = match &refused {
                NoRoute::NoAddress(name) => format!("no address: {name}"),
                NoRoute::NoHealthyEndpoint(name) => format!("no endpoint: {name}"),
                NoRoute::NoSuchPort { service, port } => format!("no port {port}: {service}"),
                NoRoute::OtherNetwork { destination, network } => {
                    format!("in network {network}: {destination}")
                }
                NoRoute::WaypointUnavailable { waypoint, guarded, why } => {
                    let why = match why {
                        WaypointFault::NoEndpoint => "no endpoint".to_owned(),
                        WaypointFault::NoSuchPort(port) => format!("no port {port}"),
                        WaypointFault::NotHbone(_) => "not hbone".to_owned(),
                        WaypointFault::OtherNetwork(network) => format!("in network {network}"),
                        WaypointFault::Unknown => "unknown".to_owned(),
                    };
                    format!("waypoint {waypoint} of {guarded}: {why}")
                }
            };
            format!("refused, {kind}")
        }
    }
}

pub(crate) const CART: &str = "shop/cart.shop.svc";

pub(crate) fn cart_service() -> Service {
    service(CART, &["10.96.0.1", "fd96::1"], &[(80, Some(8080))])
}

pub(crate) fn cart(name: &str, addresses: &[&str]) -> Workload {
    pod(name, addresses).backs(CART, &[])
}

/// The service, and endpoints of it.
pub(crate) fn cart_of(endpoints: impl IntoIterator<Item = Workload>) -> Vec<Update> {
    let endpoints = endpoints.into_iter().map(Update::Workload);
    endpoints.chain([Update::Service(cart_service())]).collect()
}
