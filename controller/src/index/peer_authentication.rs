//! PeerAuthentication in, synthetic DENY policies and their attachment to workloads out.
//!
//! The workload's own policy beats its namespace's, which beats the root namespace's; inside a level the oldest wins and
//! UNSET asks the next level. Owns no AuthorizationPolicy.

use std::sync::Arc;

use model::policy::{Action, Clause, Match, Policy, PolicyName, PolicyScope, Rule, StringMatch};

use super::cluster::{Cluster, Name, selects, within};
use super::finding::{Finding, Reason};
use crate::source::objects::{Labels, MutualTlsMode, PeerAuthentication};

/// The policy that refuses plaintext on every port.
const STRICT: &str = "istio_converted_static_strict";

/// Precedes the name of a PeerAuthentication whose ports differ.
const CONVERTED: &str = "converted_peer_authentication_";

/// Refuses plaintext on every port of the workloads that name it.
pub(crate) fn static_strict(root_namespace: &str) -> Policy {
    let rule = Rule { clauses: vec![plaintext()] };
    deny(PolicyName { namespace: root_namespace.into(), name: STRICT.into() }, vec![rule])
}

/// The policies that a workload names because of PeerAuthentications.
pub(crate) fn attached(
    cluster: &Cluster,
    root_namespace: &str,
    namespace: &str,
    labels: &Labels,
) -> Vec<PolicyName> {
    let own = own(cluster, root_namespace, namespace, labels);
    let inherited = inherited(cluster, root_namespace, namespace);
    let strict = own.and_then(|peer| resolve(peer.spec.mtls.mode)).unwrap_or(inherited);
    let ports =
        own.and_then(|peer| converted(cluster, root_namespace, peer).map(|(policy, of)| (policy.id, of)));
    match ports {
        // A PeerAuthentication of the root namespace is converted for the mesh's default; where the namespace's own
        // default is stricter, that is added, and no port is exempt.
        Some((name, covers_strict)) if covers_strict || !strict => vec![name],
        Some((name, _)) => vec![name, static_strict(root_namespace).id],
        None if strict => vec![static_strict(root_namespace).id],
        None => Vec::new(),
    }
}

/// The policy that a PeerAuthentication with port exceptions becomes, and whether it refuses plaintext by default.
pub(crate) fn converted(
    cluster: &Cluster,
    root_namespace: &str,
    peer: &PeerAuthentication,
) -> Option<(Policy, bool)> {
    selector(peer)?;
    let inherited = inherited(cluster, root_namespace, &peer.metadata.namespace);
    let strict = resolve(peer.spec.mtls.mode).unwrap_or(inherited);
    let different: Vec<u16> = (peer.spec.port_level_mtls.iter())
        .filter(|(_, mtls)| resolve(mtls.mode).is_some_and(|of_port| of_port != strict))
        .map(|(port, _)| *port)
        .collect();
    if different.is_empty() {
        return None;
    }
    let rules = if strict {
        let exempt =
            |port| Clause { matches: vec![Match { not_destination_ports: vec![port], ..Match::default() }] };
        let clauses = std::iter::once(plaintext()).chain(different.into_iter().map(exempt)).collect();
        vec![Rule { clauses }]
    } else {
        let on = |port| Clause { matches: vec![Match { destination_ports: vec![port], ..Match::default() }] };
        different.into_iter().map(|port| Rule { clauses: vec![plaintext(), on(port)] }).collect()
    };
    let name = PolicyName {
        namespace: peer.metadata.namespace.as_str().into(),
        name: format!("{CONVERTED}{}", peer.metadata.name).into(),
    };
    Some((deny(name, rules), strict))
}

/// What there is to say about a PeerAuthentication.
pub(crate) fn findings(cluster: &Cluster, root_namespace: &str, peer: &PeerAuthentication) -> Vec<Finding> {
    let mut findings = Vec::new();
    if selector(peer).is_none() && !peer.spec.port_level_mtls.is_empty() {
        findings.push(Finding::partial(
            Reason::UnsupportedValue,
            "portLevelMtls counts only beside a selector; add one, or set mtls.mode for all ports",
        ));
    }
    let winner = selector(peer).is_some()
        || level(cluster, &peer.metadata.namespace).is_some_and(|winner| winner.metadata == peer.metadata);
    if !winner {
        let scope = if peer.metadata.namespace == root_namespace { "the mesh" } else { "the namespace" };
        findings.push(Finding::refused(
            Reason::UnsupportedValue,
            format!("an older PeerAuthentication decides for {scope}; delete one of them"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::accepted("enforced by node proxies"));
    }
    findings
}

/// The selector, unless it is empty and so selects by namespace.
pub(crate) fn selector(peer: &PeerAuthentication) -> Option<&Labels> {
    peer.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

/// The PeerAuthentication that selects a workload: its namespace's before the root namespace's, the oldest first.
fn own<'a>(
    cluster: &'a Cluster,
    root_namespace: &str,
    namespace: &str,
    labels: &Labels,
) -> Option<&'a PeerAuthentication> {
    let of =
        |namespace| oldest(cluster, namespace, |peer| selector(peer).is_some_and(|of| selects(of, labels)));
    of(namespace).or_else(|| of(root_namespace))
}

/// Whether plaintext is refused by namespace or mesh.
fn inherited(cluster: &Cluster, root_namespace: &str, namespace: &str) -> bool {
    let of = |namespace| level(cluster, namespace).and_then(|peer| resolve(peer.spec.mtls.mode));
    of(namespace).or_else(|| of(root_namespace)).unwrap_or(false)
}

fn level<'a>(cluster: &'a Cluster, namespace: &str) -> Option<&'a PeerAuthentication> {
    oldest(cluster, namespace, |peer| selector(peer).is_none())
}

fn oldest<'a>(
    cluster: &'a Cluster,
    namespace: &str,
    keep: impl Fn(&PeerAuthentication) -> bool,
) -> Option<&'a PeerAuthentication> {
    // Without a timestamp, an object counts as the newest: the API server always sets one, a directory may not.
    let age = |(name, peer): &(&Name, &Arc<PeerAuthentication>)| {
        let created = &peer.metadata.creation_timestamp;
        (created.is_none(), created.clone(), (*name).clone())
    };
    within(&cluster.peers, namespace).filter(|(_, peer)| keep(peer)).min_by_key(age).map(|(_, peer)| &**peer)
}

/// Whether a mode refuses plaintext; `None` asks the next level.
fn resolve(mode: MutualTlsMode) -> Option<bool> {
    match mode {
        MutualTlsMode::Strict => Some(true),
        MutualTlsMode::Permissive | MutualTlsMode::Disable => Some(false),
        MutualTlsMode::Unset => None,
    }
}

fn plaintext() -> Clause {
    Clause { matches: vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }] }
}

fn deny(id: PolicyName, rules: Vec<Rule>) -> Policy {
    Policy { id, scope: PolicyScope::Selector, action: Action::Deny, rules, dry_run: false }
}
