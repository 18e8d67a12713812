//! The choice among endpoints against an oracle that lists, filters and sorts; and what no route may ever do.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use model::address::OriginalDst;
use model::route::{NoRoute, Query, Route, outbound};
use model::service::{Affinity, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service};
use model::store::{Mesh, Update};
use model::workload::{Health, TunnelProtocol, Workload, WorkloadUid};
use proptest::prelude::*;

use crate::make::{WorkloadExt, addr, ip, pod, service, service_name};
use crate::world::Scripted;

const SERVICE: &str = "a/s.example";

fn matching_scopes(source: &Workload, endpoint: &Workload, scopes: &[Scope]) -> Vec<bool> {
    let same = |scope: &Scope| match scope {
        Scope::Cluster => source.cluster_id == endpoint.cluster_id,
        Scope::Network => source.network == endpoint.network,
        Scope::Node => source.node == endpoint.node,
        Scope::Region => source.locality.region == endpoint.locality.region,
        Scope::Subzone => source.locality.subzone == endpoint.locality.subzone,
        Scope::Zone => source.locality.zone == endpoint.locality.zone,
    };
    scopes.iter().map(same).collect()
}

/// Where an endpoint would be connected to, if it may be used at all.
fn usable(source: &Workload, endpoint: &Workload, service: &Service, dst: SocketAddr) -> Option<SocketAddr> {
    let declared = service.ports.iter().find(|port| port.port == dst.port())?;
    let mapped = endpoint.services[&service.id].iter().find(|port| port.service_port == dst.port());
    let port = mapped.map(|port| port.target_port).or(declared.target_port)?;
    let healthy =
        endpoint.health == Health::Healthy || service.load_balancing.health == HealthPolicy::AllowAll;
    let strict = service.load_balancing.mode == LoadBalancingMode::Strict;
    let scopes = matching_scopes(source, endpoint, &service.load_balancing.preference);
    if !healthy
        || endpoint.capacity == 0
        || endpoint.network != source.network
        || (strict && scopes.contains(&false))
    {
        return None;
    }
    let families: Vec<_> = endpoint
        .addresses
        .iter()
        .filter(|ip| match service.ip_families {
            IpFamilies::V4 => ip.is_ipv4(),
            IpFamilies::V6 => ip.is_ipv6(),
            IpFamilies::Automatic | IpFamilies::Dual => true,
        })
        .collect();
    let like_dialled = families.iter().find(|ip| ip.is_ipv4() == dst.is_ipv4());
    let ip = like_dialled.or(families.first())?;
    Some(SocketAddr::new(**ip, port))
}

/// The nearest usable endpoints with their addresses, and how many are usable at all.
fn naive(
    source: &Workload,
    endpoints: &[Workload],
    service: &Service,
    dst: SocketAddr,
) -> (BTreeSet<(WorkloadUid, SocketAddr)>, usize) {
    let all: Vec<_> = endpoints
        .iter()
        .filter_map(|endpoint| Some((endpoint, usable(source, endpoint, service, dst)?)))
        .collect();
    // In one network, the special place of the network in front changes nothing.
    let nearness = |endpoint: &Workload| match service.load_balancing.mode {
        LoadBalancingMode::Failover => {
            let scopes = matching_scopes(source, endpoint, &service.load_balancing.preference);
            scopes.iter().position(|same| !same).unwrap_or(scopes.len())
        }
        LoadBalancingMode::Any | LoadBalancingMode::Passthrough | LoadBalancingMode::Strict => 0,
    };
    let best = all.iter().map(|(endpoint, _)| nearness(endpoint)).max();
    let nearest = all.iter().filter(|(endpoint, _)| Some(nearness(endpoint)) == best);
    (nearest.map(|(endpoint, addr)| (endpoint.uid.clone(), *addr)).collect(), all.len())
}

fn an_endpoint() -> impl Strategy<Value = Workload> {
    let one_of = |values: &'static [&'static str]| prop::sample::select(values);
    let addresses =
        prop::sample::select(vec![vec!["10.0.0.2"], vec!["10.0.0.3", "fd00::3"], vec!["fd00::4"], vec![]]);
    let place =
        (one_of(&["n1", "n2"]), one_of(&["r1", "r2"]), one_of(&["z1", "z2"]), one_of(&["", "", "", "net2"]));
    let state = (prop::bool::weighted(0.8), 0..3_u32, any::<bool>(), prop::bool::weighted(0.3));
    (addresses, place, state).prop_map(
        |(addresses, (node, region, zone, network), (up, capacity, tunnel, mapped))| {
            let ports: &[(u16, u16)] = if mapped { &[(80, 9080)] } else { &[] };
            let mut workload = pod("a/e", &addresses).backs(SERVICE, ports);
            workload.node = node.into();
            workload.locality.region = region.into();
            workload.locality.zone = zone.into();
            workload.network = network.into();
            workload.health = if up { Health::Healthy } else { Health::Unhealthy };
            workload.capacity = capacity;
            workload.tunnel = if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            workload
        },
    )
}

fn endpoints() -> impl Strategy<Value = Vec<Workload>> {
    prop::collection::vec(an_endpoint(), 0..6).prop_map(|mut endpoints| {
        for (index, endpoint) in endpoints.iter_mut().enumerate() {
            endpoint.uid = WorkloadUid(format!("c//Pod/a/e{index}").into());
        }
        endpoints
    })
}

fn a_service() -> impl Strategy<Value = Service> {
    use LoadBalancingMode::{Any, Failover, Strict};
    let scopes = vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Node];
    let preference = prop::sample::subsequence(scopes, 0..4).prop_shuffle();
    let families = vec![IpFamilies::Automatic, IpFamilies::Dual, IpFamilies::V4, IpFamilies::V6];
    let modes = prop::sample::select(vec![Any, Failover, Failover, Strict]);
    (preference, modes, prop::sample::select(families), any::<bool>(), any::<bool>()).prop_map(
        |(preference, mode, ip_families, all, named)| {
            let health = if all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
            let target = if named { None } else { Some(8080) };
            Service {
                load_balancing: LoadBalancing { preference, mode, health, affinity: Affinity::None },
                ip_families,
                ..service(SERVICE, &["10.96.0.1", "fd96::1"], &[(80, target)])
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1536))]

    #[test]
    fn the_choice_is_one_of_the_nearest(
        endpoints in endpoints(), service in a_service(), v6: bool, draws in prop::collection::vec(any::<u32>(), 0..3)
    ) {
        let source = pod("a/client", &["10.0.0.1"]);
        let mut mesh = Mesh::default();
        mesh.apply(endpoints.iter().cloned().map(Update::Workload).chain([Update::Service(service.clone())]));
        let dst = addr(if v6 { "[fd96::1]:80" } else { "10.96.0.1:80" });

        // Until nothing is left: each one once, always among the nearest that are left.
        let mut left = endpoints;
        let mut exclude = Vec::new();
        loop {
            let (nearest, usable) = naive(&source, &left, &service, dst);
            let mut pick = Scripted { draws: draws.clone(), ..Scripted::default() };
            let query = Query { source: &source, dst: OriginalDst(dst), exclude: &exclude };
            match outbound(&mesh, query, &mut pick) {
                Ok(Route::Workload(target)) => {
                    let chosen = (target.workload.uid.clone(), target.app.0);
                    prop_assert!(nearest.contains(&chosen), "{:?} is not one of {:?}", chosen, nearest);
                    prop_assert_eq!(target.alternatives, usable > 1);
                    prop_assert_eq!(target.tunnel, target.workload.tunnel);
                    let port = if target.tunnel == TunnelProtocol::Hbone { 15008 } else { target.app.0.port() };
                    prop_assert_eq!(target.peer.0, SocketAddr::new(target.app.0.ip(), port));
                    left.retain(|endpoint| endpoint.uid != chosen.0);
                    exclude.push(chosen.0);
                }
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(refused) => {
                    prop_assert_eq!(usable, 0, "{}", refused);
                    let is_away = |w: &Workload| &*w.network == "net2";
                    if matches!(refused, NoRoute::OtherNetwork { .. }) {
                        prop_assert!(left.iter().any(is_away));
                    }
                    break;
                }
            }
        }
    }

    /// Every endpoint of the nearest group can be drawn, and none that is not.
    #[test]
    fn all_of_the_nearest_are_used(endpoints in endpoints(), service in a_service()) {
        let source = pod("a/client", &["10.0.0.1"]);
        let mut mesh = Mesh::default();
        mesh.apply(endpoints.iter().cloned().map(Update::Workload).chain([Update::Service(service.clone())]));
        let (nearest, _) = naive(&source, &endpoints, &service, addr("10.96.0.1:80"));
        let capacity: u32 = endpoints.iter().map(|endpoint| endpoint.capacity).sum();
        let drawn: BTreeSet<_> = (0..capacity)
            .filter_map(|ticket| {
                let mut pick = Scripted { draws: vec![ticket], ..Scripted::default() };
                let query = Query { source: &source, dst: OriginalDst(addr("10.96.0.1:80")), exclude: &[] };
                match outbound(&mesh, query, &mut pick) {
                    Ok(Route::Workload(target)) => Some((target.workload.uid.clone(), target.app.0)),
                    Ok(_) | Err(_) => None,
                }
            })
            .collect();
        prop_assert_eq!(drawn, nearest);
    }

    /// A workload that is reached by tunnel is never reached in the clear, whatever is dialled.
    #[test]
    fn an_enrolled_workload_is_never_passed_by(endpoints in endpoints(), service in a_service(), port in 80..82_u16) {
        let source = pod("a/client", &["10.0.0.1"]);
        let mut mesh = Mesh::default();
        mesh.apply(endpoints.iter().cloned().map(Update::Workload).chain([Update::Service(service)]));
        for dialled in ["10.96.0.1", "fd96::1", "10.0.0.2", "10.0.0.3", "fd00::3", "fd00::4"] {
            let query = Query { source: &source, dst: OriginalDst((ip(dialled), port).into()), exclude: &[] };
            match outbound(&mesh, query, &mut Scripted::default()) {
                Ok(Route::Workload(target)) => prop_assert_eq!(target.tunnel, target.workload.tunnel),
                Ok(Route::Passthrough(to)) => {
                    let known = mesh.all_workloads().any(|w| w.network.is_empty() && w.addresses.contains(&to.ip()));
                    prop_assert!(!known && mesh.service_by_vip("", to.ip(), "a").is_none());
                }
                Ok(Route::Waypoint(_)) => prop_assert!(false, "nothing here has a waypoint"),
                Err(_) => prop_assert!(mesh.service_by_vip("", ip(dialled), "a").is_some()),
            }
        }
        prop_assert!(mesh.service(&service_name(SERVICE)).is_some());
    }
}
