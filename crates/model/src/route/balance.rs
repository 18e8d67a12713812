//! The choice among the endpoints of a service: who may take a connection, who is near, who is least busy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Load, Pick, Query, same_family};
use crate::Str;
use crate::service::{Affinity, HealthPolicy, IpFamilies, LoadBalancingMode, Scope, Service};
use crate::store::{Endpoint, Mesh};
use crate::workload::{Health, Workload};

/// How many open connections one recent failure to connect weighs as much as. High enough that an endpoint which refuses
/// is left alone while others answer, low enough that it is tried again once they are all busy.
const FAILURE_COST: u64 = 16;

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub(super) service: &'a Service,
    /// The service's port.
    pub(super) port: u16,
    /// The address that was dialled: it or its family is preferred.
    pub(super) ip: IpAddr,
    /// The service is a waypoint, and the port the one of its tunnels.
    pub(super) is_waypoint: bool,
}

/// What was found.
pub(super) struct Chosen<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) addr: SocketAddr,
    /// Whether there are others that may take the connection, near or far.
    pub(super) alternatives: bool,
}

/// Why nothing was found.
pub(super) enum Nothing {
    Address,
    Endpoint,
    OtherNetwork(Str),
    Port,
}

/// An endpoint that may take the connection.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    workload: &'a Arc<Workload>,
    addr: SocketAddr,
}

/// Takes the nearest of the endpoints that may take the connection, and of two random ones the less busy, unless the service
/// wants its clients to stay with one.
pub(super) fn choose<'a>(
    mesh: &'a Mesh,
    query: &Query<'_>,
    wanted: &Wanted<'a>,
    pick: &mut dyn Pick,
) -> Result<Chosen<'a>, Nothing> {
    let target_port = target_port(wanted)?;
    let mut nearest: Vec<Candidate<'_>> = Vec::new();
    let mut nearest_rank = 0;
    let mut admitted = 0_usize;
    let mut nothing = Nothing::Endpoint;
    // Collected by reference, in one pass: only the nearest so far are kept.
    for endpoint in mesh.endpoints(&wanted.service.id) {
        let candidate = match admit(query, wanted, endpoint, target_port) {
            Ok(candidate) => candidate,
            Err(reason) => {
                nothing = nothing.or(reason);
                continue;
            }
        };
        let Some(rank) = rank(query.source, endpoint.workload, wanted.service) else { continue };
        admitted += 1;
        if rank > nearest_rank {
            nearest.clear();
        }
        if rank >= nearest_rank {
            nearest_rank = rank;
            nearest.push(candidate);
        }
    }
    let found = match wanted.service.load_balancing.affinity {
        Affinity::Client => steady(&nearest, query.source),
        Affinity::None => less_busy_of_two(&nearest, pick),
    };
    let Candidate { workload, addr } = found.ok_or(nothing)?;
    Ok(Chosen { workload, addr, alternatives: admitted > 1 })
}

/// Every endpoint that is not too far and can be connected to: where, how near it is, and whether it takes connections now.
pub(super) fn ranked<'a>(
    mesh: &'a Mesh,
    query: &Query<'_>,
    wanted: &Wanted<'a>,
) -> Result<Vec<(Chosen<'a>, usize, bool)>, Nothing> {
    let target_port = target_port(wanted)?;
    let mut nothing = Nothing::Endpoint;
    let mut all = Vec::new();
    for endpoint in mesh.endpoints(&wanted.service.id) {
        match (
            at(query, wanted, endpoint, target_port),
            rank(query.source, endpoint.workload, wanted.service),
        ) {
            (Ok(Candidate { workload, addr }), Some(rank)) => {
                let up = is_up(wanted.service, workload);
                all.push((Chosen { workload, addr, alternatives: true }, rank, up));
            }
            (Err(reason), _) => nothing = nothing.or(reason),
            (Ok(_), None) => {}
        }
    }
    if all.is_empty() { Err(nothing) } else { Ok(all) }
}

/// The port of endpoints that don't map it themselves.
fn target_port(wanted: &Wanted<'_>) -> Result<Option<u16>, Nothing> {
    let declared = wanted.service.ports.iter().find(|port| port.port == wanted.port);
    if declared.is_none() && !wanted.is_waypoint {
        return Err(Nothing::Port);
    }
    Ok(declared.and_then(|port| port.target_port))
}

impl Nothing {
    /// The more telling of two reasons: what is closest to being usable explains most.
    fn or(self, other: Self) -> Self {
        let telling = |reason: &Self| match reason {
            Self::Endpoint => 0,
            Self::Port => 1,
            Self::Address => 2,
            Self::OtherNetwork(_) => 3,
        };
        if telling(&other) > telling(&self) { other } else { self }
    }
}

/// Whether an endpoint may take the connection, and at which address.
fn admit<'a>(
    query: &Query<'_>,
    wanted: &Wanted<'_>,
    endpoint: Endpoint<'a>,
    target_port: Option<u16>,
) -> Result<Candidate<'a>, Nothing> {
    if !is_up(wanted.service, endpoint.workload) || query.exclude.contains(&endpoint.workload.uid) {
        return Err(Nothing::Endpoint);
    }
    at(query, wanted, endpoint, target_port)
}

/// Whether an endpoint takes connections at all.
fn is_up(service: &Service, workload: &Workload) -> bool {
    let healthy = match (service.load_balancing.health, workload.health) {
        (HealthPolicy::AllowAll, _) | (HealthPolicy::OnlyHealthy, Health::Healthy) => true,
        (HealthPolicy::OnlyHealthy, Health::Unhealthy) => false,
    };
    healthy && workload.capacity > 0
}

/// Where an endpoint takes connections.
fn at<'a>(
    query: &Query<'_>,
    wanted: &Wanted<'_>,
    endpoint: Endpoint<'a>,
    target_port: Option<u16>,
) -> Result<Candidate<'a>, Nothing> {
    let workload = endpoint.workload;
    let mapped =
        endpoint.ports.iter().find(|port| port.service_port == wanted.port).map(|port| port.target_port);
    // A waypoint behind a proxy of its node is reached through that proxy, which listens on the tunnel port itself.
    let behind_proxy = || workload.application_tunnel.and_then(|tunnel| tunnel.port).map(|_| wanted.port);
    let port = mapped.or(target_port).or_else(behind_proxy).ok_or(Nothing::Port)?;
    if workload.network != query.source.network {
        return Err(Nothing::OtherNetwork(workload.network.clone()));
    }
    let ip = address(workload, wanted).ok_or(Nothing::Address)?;
    Ok(Candidate { workload, addr: SocketAddr::new(ip, port) })
}

/// The dialled address if it is the workload's; else one of the service's families, the dialled family first.
fn address(workload: &Workload, wanted: &Wanted<'_>) -> Option<IpAddr> {
    let addresses = &workload.addresses;
    if addresses.contains(&wanted.ip) {
        return Some(wanted.ip);
    }
    let permitted = |ip: &&IpAddr| match wanted.service.ip_families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::V4 => ip.is_ipv4(),
        IpFamilies::V6 => ip.is_ipv6(),
    };
    let preferred = addresses.iter().filter(permitted).find(|ip| same_family(**ip, wanted.ip));
    preferred.or_else(|| addresses.iter().find(permitted)).copied()
}

/// How near an endpoint is by the service's preference; higher is nearer. `None`: too far to be used at all.
fn rank(source: &Workload, endpoint: &Workload, service: &Service) -> Option<usize> {
    let scopes = &service.load_balancing.preference;
    let shared = |scope| shares(source, endpoint, scope);
    match service.load_balancing.mode {
        LoadBalancingMode::Any | LoadBalancingMode::Passthrough => Some(0),
        LoadBalancingMode::Failover => Some(nearness(scopes, shared)),
        LoadBalancingMode::Strict => scopes.iter().all(|scope| shared(*scope)).then_some(0),
    }
}

/// How many scopes are shared before the first that is not. A network in front outweighs all that follows, and does not
/// end the count: endpoints of other networks are near or far as well.
fn nearness(scopes: &[Scope], shared: impl Fn(Scope) -> bool) -> usize {
    let leading = |scopes: &[Scope]| scopes.iter().take_while(|scope| shared(**scope)).count();
    match scopes.split_first() {
        Some((Scope::Network, rest)) if shared(Scope::Network) => scopes.len() + leading(rest),
        Some((Scope::Network, rest)) => leading(rest),
        Some(_) | None => leading(scopes),
    }
}

/// Whether both are in the same one of its kind. Two unknowns are taken as the same.
fn shares(source: &Workload, endpoint: &Workload, scope: Scope) -> bool {
    match scope {
        Scope::Cluster => source.cluster_id == endpoint.cluster_id,
        Scope::Network => source.network == endpoint.network,
        Scope::Node => source.node == endpoint.node,
        Scope::Region => source.locality.region == endpoint.locality.region,
        Scope::Subzone => source.locality.subzone == endpoint.locality.subzone,
        Scope::Zone => source.locality.zone == endpoint.locality.zone,
    }
}

/// Power of two choices, both by capacity: the load is then compared per unit of capacity. Where it is equal, as among
/// idle endpoints, the first draw stands, so that shares follow capacity.
fn less_busy_of_two<'a>(candidates: &[Candidate<'a>], pick: &mut dyn Pick) -> Option<Candidate<'a>> {
    let capacity = |index: usize| u64::from(candidates[index].workload.capacity);
    let total: u64 = (0..candidates.len()).map(capacity).sum();
    let draw = |below: u64, without: Option<usize>, pick: &mut dyn Pick| {
        let mut ticket = random(pick, below);
        let mut in_order = (0..candidates.len()).filter(|index| Some(*index) != without);
        in_order.find(|index| {
            let hit = ticket < capacity(*index);
            ticket = ticket.saturating_sub(capacity(*index));
            hit
        })
    };
    if candidates.len() < 2 {
        return candidates.first().copied();
    }
    let first = draw(total, None, pick)?;
    let second = draw(total - capacity(first), Some(first), pick)?;
    let cost = |index: usize| {
        let Load { outstanding, recent_failures } = pick.load(&candidates[index].workload.uid);
        u128::from(u64::from(outstanding) + FAILURE_COST * u64::from(recent_failures))
    };
    let first_is_busier =
        cost(first) * u128::from(capacity(second)) > cost(second) * u128::from(capacity(first));
    Some(candidates[if first_is_busier { second } else { first }])
}

/// The same for each connection of a client, on whichever thread, while the candidates are the same; one that goes moves its
/// own clients only, and one that comes takes its share (rendezvous hashing, weighted by capacity).
fn steady<'a>(candidates: &[Candidate<'a>], source: &Workload) -> Option<Candidate<'a>> {
    let cost = |candidate: &Candidate<'_>| {
        let draw = fraction(&[&source.uid.0, &candidate.workload.uid.0]);
        -draw.ln() / f64::from(candidate.workload.capacity)
    };
    candidates.iter().min_by(|one, other| cost(one).total_cmp(&cost(other))).copied()
}

/// A number above 0 and up to 1 that follows from words alone: FNV-1a, whose bits are then mixed, because it leaves the high
/// ones of similar words alike.
fn fraction(words: &[&str]) -> f64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let high = u32::try_from((mixed ^ (mixed >> 33)) >> 32).unwrap_or_default();
    (f64::from(high) + 1.0) / (f64::from(u32::MAX) + 1.0)
}

/// A random number below `below`, which is above 0. Capacities may add up to more than a `u32`.
pub(super) fn random(pick: &mut dyn Pick, below: u64) -> u64 {
    match u32::try_from(below) {
        Ok(below) => u64::from(pick.random(below)),
        Err(_) => {
            let high = u64::from(pick.random(u32::MAX));
            ((high << 32) | u64::from(pick.random(u32::MAX))) % below
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The preference `[Network, Region, Zone]` on what source and endpoint have in common. Endpoints of other networks
    /// are not admitted yet, so this shows nowhere else.
    fn check(network: bool, region: bool, zone: bool, expected: usize) {
        let shared = |scope: Scope| match scope {
            Scope::Network => network,
            Scope::Region => region,
            Scope::Zone => zone,
            Scope::Cluster | Scope::Node | Scope::Subzone => panic!("not in the preference"),
        };
        let preference = [Scope::Network, Scope::Region, Scope::Zone];
        assert_eq!(
            nearness(&preference, shared),
            expected,
            "network {network}, region {region}, zone {zone}"
        );
    }

    #[test]
    fn a_network_in_front_outweighs_the_rest_and_does_not_end_it() {
        check(false, false, false, 0);
        check(false, false, true, 0);
        check(false, true, false, 1);
        check(false, true, true, 2);
        check(true, false, false, 3);
        check(true, true, false, 4);
        check(true, true, true, 5);
    }
}
