//! The store against lists that are searched from end to end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::policy::{Action, Allowed, Denial, Match, Policy, PolicyName, PolicyScope};
use model::service::{Service, ServiceName, Vip, Visibility};
use model::store::{Changes, Mesh, Update};
use model::workload::{NetworkMode, TunnelProtocol, Workload, WorkloadUid};
use proptest::prelude::*;

use crate::make::{
    WorkloadExt, connection, ip, network_address, pod, policy, policy_name, service, service_name, text, uid,
    vip,
};

/// Small, so that names, addresses and blocks collide all the time.
const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const NETWORKS: [&str; 2] = ["", "net2"];
const NODES: [&str; 3] = ["", "n1", "n2"];
const UIDS: [&str; 5] =
    ["c//Pod/a/p", "c//Pod/a/q", "c//Pod/b/p", "c/x/WorkloadEntry/a/w", "c/x/WorkloadEntry/b/w"];
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "fd00::1", "fd00:0:1::1"];
const BLOCKS: [&str; 8] = [
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.7/16",
    "10.0.0.0/24",
    "10.0.0.1/32",
    "0.0.0.0/0",
    "fd00::/16",
    "fd00::/64",
];
const HOSTNAMES: [&str; 2] = ["s.example", "t.example"];
const POLICIES: [&str; 3] = ["p", "q", "r"];

/// Everything that was said last, in lists.
#[derive(Default)]
struct Naive {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    refused: Vec<(PolicyName, model::Str)>,
}

impl Naive {
    fn apply(&mut self, update: Update) {
        match update {
            Update::Workload(new) => {
                self.workloads.retain(|old| old.uid != new.uid);
                self.workloads.push(new);
            }
            Update::WorkloadRemoved(uid) => self.workloads.retain(|old| old.uid != uid),
            Update::Service(new) => {
                self.services.retain(|old| old.id != new.id);
                self.services.push(new);
            }
            Update::ServiceRemoved(name) => self.services.retain(|old| old.id != name),
            Update::Policy(new) => {
                self.forget_policy(&new.id);
                self.policies.push(new);
            }
            Update::PolicyUnenforceable(name, reason) => {
                self.forget_policy(&name);
                self.refused.push((name, reason));
            }
            Update::PolicyRemoved(name) => self.forget_policy(&name),
        }
    }

    fn forget_policy(&mut self, name: &PolicyName) {
        self.policies.retain(|old| old.id != *name);
        self.refused.retain(|(old, _)| old != name);
    }

    fn owner(&self, network: &str, ip: IpAddr) -> Option<&Workload> {
        let claims = self.workloads.iter().filter(|workload| {
            &*workload.network == network
                && workload.addresses.contains(&ip)
                && workload.network_mode == NetworkMode::Standard
        });
        claims.min_by_key(|workload| {
            let is_pod = workload.uid.0.contains("//Pod/");
            (!is_pod, workload.tunnel == TunnelProtocol::None, workload.uid.clone())
        })
    }

    fn vip_owner(&self, network: &str, ip: IpAddr, client: &str) -> Option<&Service> {
        let longest = |service: &Service| {
            let here = service.vips.iter().filter(|vip| &*vip.network == network && vip.block.contains(&ip));
            here.map(|vip| vip.block.prefix_len()).max()
        };
        let is_full = |length: u8| length == IpNet::from(ip).prefix_len();
        let visible = self
            .services
            .iter()
            .filter(|service| service.visibility == Visibility::Public || &*service.id.namespace == client);
        let found = visible.filter_map(|service| longest(service).map(|length| (service, length)));
        // Smaller is better: an exact address, the client's own, the longer block, the canonical, the name.
        let (service, _) = found.min_by_key(|(service, length)| {
            (
                !is_full(*length),
                &*service.id.namespace != client,
                std::cmp::Reverse(*length),
                !service.canonical,
                service.id.clone(),
            )
        })?;
        Some(service)
    }

    /// Whether a connection that no policy of the world matches passes, and if not, which names may be the reason.
    fn passes(&self, destination: &Workload) -> Result<(), BTreeSet<PolicyName>> {
        let namespace = destination.namespace();
        let mut reasons = BTreeSet::new();
        for name in &destination.authorization_policies {
            if !self.policies.iter().any(|policy| policy.id == *name) {
                reasons.insert(name.clone());
            }
        }
        for (name, _) in &self.refused {
            if name.namespace == *namespace || &*name.namespace == "istio-system" {
                reasons.insert(name.clone());
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        for policy in &self.policies {
            let guards = match policy.scope {
                PolicyScope::Global => true,
                PolicyScope::Namespace => policy.id.namespace == *namespace,
                PolicyScope::Selector => false,
            };
            if guards || destination.authorization_policies.contains(&policy.id) {
                reasons.insert(policy.id.clone());
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

fn select<T: Copy + std::fmt::Debug + 'static>(from: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(from)
}

fn a_service_name() -> impl Strategy<Value = ServiceName> {
    (select(&NAMESPACES), select(&HOSTNAMES)).prop_map(|(ns, host)| service_name(&format!("{ns}/{host}")))
}

fn a_policy_name() -> impl Strategy<Value = PolicyName> {
    (select(&NAMESPACES), select(&POLICIES)).prop_map(|(ns, name)| policy_name(&format!("{ns}/{name}")))
}

fn a_workload() -> impl Strategy<Value = Workload> {
    let place = (select(&NETWORKS), select(&NODES), any::<bool>(), any::<bool>());
    let addresses = prop::collection::vec(select(&ADDRESSES), 0..3);
    let services = prop::collection::vec((a_service_name(), 1..3_u16), 0..3);
    let policies = prop::collection::vec(a_policy_name(), 0..2);
    (select(&UIDS), place, addresses, services, policies).prop_map(
        |(name, (network, node, host_network, tunnel), addresses, services, policies)| {
            let namespace = if name.contains("/a/") { "a" } else { "b" };
            let mut workload = pod(&format!("{namespace}/w"), &addresses);
            workload.uid = uid(name);
            workload.network = network.into();
            workload.node = node.into();
            workload.tunnel = if tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            workload.network_mode =
                if host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
            workload.authorization_policies = policies;
            services.into_iter().fold(workload, |workload, (service, port)| {
                workload.backs(&service.to_string(), &[(port, port)])
            })
        },
    )
}

fn a_service() -> impl Strategy<Value = Service> {
    let an_address = || prop_oneof![select(&ADDRESSES), select(&BLOCKS)];
    let vips = prop::collection::vec((select(&NETWORKS), an_address()), 0..4);
    (a_service_name(), vips, any::<bool>(), any::<bool>()).prop_map(|(name, vips, canonical, private)| {
        Service {
            vips: vips.into_iter().map(|(network, block)| vip(network, block)).collect::<Vec<Vip>>(),
            canonical,
            visibility: if private { Visibility::Namespace } else { Visibility::Public },
            ..service(&name.to_string(), &[], &[])
        }
    })
}

/// ALLOW policies that match nobody: whether they are in scope shows.
fn a_policy() -> impl Strategy<Value = Policy> {
    let scopes = [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::Selector];
    (a_policy_name(), prop::sample::select(scopes.to_vec()))
        .prop_map(|(name, scope)| policy(&name.to_string(), scope, Action::Allow, Match::default()))
}

fn an_update() -> impl Strategy<Value = Update> {
    prop_oneof![
        4 => a_workload().prop_map(Update::Workload),
        1 => select(&UIDS).prop_map(|name| Update::WorkloadRemoved(uid(name))),
        4 => a_service().prop_map(Update::Service),
        1 => a_service_name().prop_map(Update::ServiceRemoved),
        1 => a_policy().prop_map(Update::Policy),
        1 => a_policy_name().prop_map(|name| Update::PolicyUnenforceable(name, text("why"))),
        2 => a_policy_name().prop_map(Update::PolicyRemoved),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn every_query_answers_like_the_lists(batches in prop::collection::vec(prop::collection::vec(an_update(), 0..6), 1..8)) {
        let mut mesh = Mesh::default();
        let mut naive = Naive::default();
        for batch in batches {
            let before = mesh.clone();
            let changes = mesh.apply(batch.iter().cloned());
            batch.into_iter().for_each(|update| naive.apply(update));
            check_objects(&mesh, &naive)?;
            check_addresses(&mesh, &naive)?;
            check_policies(&mesh, &naive)?;
            check_changes(&before, &mesh, &changes)?;
        }
        remove_everything(&mut mesh)?;
    }
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort();
    items
}

fn check_objects(mesh: &Mesh, naive: &Naive) -> Result<(), TestCaseError> {
    for name in UIDS {
        let expected = naive.workloads.iter().find(|workload| workload.uid == uid(name));
        let found = mesh.workload(&uid(name));
        prop_assert_eq!(found.as_deref(), expected);
    }
    let uids = |workloads: &mut dyn Iterator<Item = &Workload>| sorted(workloads.map(|w| w.uid.clone()));
    let all: Vec<_> = mesh.all_workloads().collect();
    prop_assert_eq!(uids(&mut all.iter().map(|w| &**w)), uids(&mut naive.workloads.iter()));
    for node in NODES {
        let found: Vec<WorkloadUid> = mesh.workloads_on(node).iter().map(|w| w.uid.clone()).collect();
        let there = naive.workloads.iter().filter(|w| !node.is_empty() && &*w.node == node);
        prop_assert_eq!(found, uids(&mut there.into_iter()), "on {}", node);
    }
    for hostname in HOSTNAMES {
        let found = sorted(mesh.services_by_hostname(hostname).iter().map(|service| service.id.clone()));
        let expected = naive.services.iter().filter(|service| &*service.id.hostname == hostname);
        prop_assert_eq!(found, sorted(expected.map(|service| service.id.clone())));
        for namespace in NAMESPACES {
            let name = service_name(&format!("{namespace}/{hostname}"));
            let expected = naive.services.iter().find(|service| service.id == name);
            let found = mesh.service(&name);
            prop_assert_eq!(found.as_deref(), expected);
            let found: Vec<_> =
                mesh.endpoints(&name).map(|e| (e.workload.uid.clone(), e.ports.to_vec())).collect();
            let backing =
                naive.workloads.iter().filter_map(|w| Some((w.uid.clone(), w.services.get(&name)?.clone())));
            prop_assert_eq!(found, sorted(backing), "endpoints of {}", name);
        }
    }
    prop_assert_eq!(mesh.all_services().count(), naive.services.len());
    Ok(())
}

fn check_addresses(mesh: &Mesh, naive: &Naive) -> Result<(), TestCaseError> {
    for network in NETWORKS {
        for address in ADDRESSES {
            let found = mesh.workload_by_address(&network_address(network, address));
            prop_assert_eq!(found.as_deref(), naive.owner(network, ip(address)), "{}/{}", network, address);
            for client in NAMESPACES {
                let found =
                    mesh.service_by_vip(network, ip(address), client).map(|service| service.id.clone());
                let expected =
                    naive.vip_owner(network, ip(address), client).map(|service| service.id.clone());
                prop_assert_eq!(found, expected, "{}/{} from {}", network, address, client);
            }
        }
    }
    Ok(())
}

fn check_policies(mesh: &Mesh, naive: &Naive) -> Result<(), TestCaseError> {
    let refused = sorted(mesh.all_unenforceable().map(|(name, _)| name.clone()));
    prop_assert_eq!(refused, sorted(naive.refused.iter().map(|(name, _)| name.clone())));
    prop_assert_eq!(mesh.all_policies().count(), naive.policies.len());
    for policy in &naive.policies {
        let found = mesh.policy(&policy.id);
        prop_assert_eq!(found.as_deref(), Some(policy));
    }
    for workload in &naive.workloads {
        match (mesh.authorize(workload, connection(None, 80)).enforced, naive.passes(workload)) {
            (Ok(permit), Ok(())) => prop_assert_eq!(permit.reason(), &Allowed::NoPolicy),
            (Err(Denial::NotAllowed(names)), Err(reasons)) => {
                prop_assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), reasons);
            }
            (Err(Denial::PolicyUnknown(name) | Denial::PolicyUnenforceable(name, _)), Err(reasons)) => {
                prop_assert!(reasons.contains(&name), "{} is not one of {:?}", name, reasons);
            }
            (found, expected) => prop_assert!(false, "{:?} instead of {:?}", found, expected),
        }
    }
    Ok(())
}

/// What differs between two snapshots is announced, each thing once.
fn check_changes(before: &Mesh, after: &Mesh, changes: &Changes) -> Result<(), TestCaseError> {
    let once = |count: usize, distinct: usize| count == distinct;
    let workloads: BTreeSet<_> = changes.workloads.iter().cloned().collect();
    let services: BTreeSet<_> = changes.services.iter().cloned().collect();
    prop_assert!(
        once(changes.workloads.len(), workloads.len()) && once(changes.services.len(), services.len())
    );
    for name in UIDS.map(uid) {
        prop_assert!(
            before.workload(&name) == after.workload(&name) || workloads.contains(&name),
            "{}",
            name
        );
    }
    let everything = |mesh: &Mesh| -> BTreeMap<ServiceName, String> {
        let names = NAMESPACES.iter().flat_map(|ns| HOSTNAMES.iter().map(move |host| format!("{ns}/{host}")));
        let all = names.map(|name| service_name(&name));
        all.map(|name| {
            let endpoints: Vec<_> = mesh.endpoints(&name).map(|endpoint| endpoint.workload.clone()).collect();
            let shown = format!("{:?} {endpoints:?}", mesh.service(&name));
            (name, shown)
        })
        .collect()
    };
    let (old, new) = (everything(before), everything(after));
    for (name, shown) in &new {
        prop_assert!(
            old[name] == *shown || services.contains(name),
            "{} changed and was not announced",
            name
        );
    }
    let policies = |mesh: &Mesh| {
        let known = mesh.all_policies().map(|policy| format!("{policy:?}"));
        let refused = mesh.all_unenforceable().map(|(name, reason)| format!("{name} {reason}"));
        known.chain(refused).collect::<BTreeSet<_>>()
    };
    prop_assert!(policies(before) == policies(after) || changes.policies);
    Ok(())
}

/// Nothing is left in any index.
fn remove_everything(mesh: &mut Mesh) -> Result<(), TestCaseError> {
    let workloads = mesh.all_workloads().map(|workload| Update::WorkloadRemoved(workload.uid.clone()));
    let services = mesh.all_services().map(|service| Update::ServiceRemoved(service.id.clone()));
    let updates: Vec<Update> = workloads.chain(services).collect();
    mesh.apply(updates);
    let nothing = Naive::default();
    check_addresses(mesh, &nothing)?;
    for node in NODES {
        prop_assert!(mesh.workloads_on(node).is_empty());
    }
    for hostname in HOSTNAMES {
        prop_assert!(mesh.services_by_hostname(hostname).is_empty());
        for namespace in NAMESPACES {
            prop_assert_eq!(mesh.endpoints(&service_name(&format!("{namespace}/{hostname}"))).count(), 0);
        }
    }
    Ok(())
}
