//! BackendTLSPolicies in; per service the TLS towards its endpoints, and what is said about each policy, out.
//!
//! Of several policies for a port, the one that names the port stands above those for the whole service, then the oldest counts,
//! then the first by name, whether or not it can be carried out: one that can't refuses what goes to the port, because plaintext
//! was not meant.

use std::collections::BTreeMap;

use identity::origination::{check_hostname, check_roots};
use model::l7::{self, PortTls, Roots, ServerTls, SubjectName};

use super::Config;
use super::cluster::{Cluster, Name, key_of, name_of, within};
use super::routes::{self, created};
use super::service::{has_endpoints, is_tcp, service_name, unguarded};
use super::statements::{Attachment, Condition, reference};
use crate::source::objects::{
    BackendTLSPolicy, BackendTlsTarget, BackendTlsValidation, CertificateRef, Key, Kind, Service,
    ServicePort, SubjectAltName,
};

/// Bytes of certificates that one policy may name: all public CAs together have less than half of it, and a policy for each of eight
/// ports is still no more than a message holds.
const ROOTS_MAX: usize = 512 << 10;

/// Why something does not hold: a word for machines, and a text.
type Why = (&'static str, String);

/// What a policy says, whatever it is attached to.
struct Said {
    tls: Result<ServerTls, Why>,
    /// What of its references can't be used.
    unresolved: Option<Why>,
}

/// What there is to say of each attachment.
pub(crate) fn attachments(config: &Config, cluster: &Cluster, policy: &BackendTLSPolicy) -> Vec<Attachment> {
    let said = said(cluster, policy);
    let of = |target: &BackendTlsTarget| {
        let accepted = match attach(config, cluster, (policy, target), &said) {
            Ok(remark) => Condition::is("Accepted", "Accepted", remark),
            Err((reason, message)) => Condition::not("Accepted", reason, message),
        };
        let resolved = match &said.unresolved {
            None => {
                Condition::is("ResolvedRefs", "ResolvedRefs", "every reference leads to a CA bundle".into())
            }
            Some((reason, message)) => Condition::not("ResolvedRefs", reason, message.clone()),
        };
        let BackendTlsTarget { group, kind, name, section_name } = target;
        let to = reference(group, kind, name, section_name.as_deref());
        Attachment { to, conditions: vec![accepted, resolved] }
    };
    policy.spec.target_refs.iter().map(of).collect()
}

/// The TLS towards the endpoints of a service, if a policy is about it.
pub(crate) fn of_service(config: &Config, cluster: &Cluster, service: &Service) -> Option<l7::BackendTls> {
    let name = name_of(&service.metadata);
    let policies = naming(cluster, &name);
    let mut said = BTreeMap::new();
    let mut ports = BTreeMap::new();
    for port in carried(service) {
        let Some(policy) = first(&policies, &name, port) else { continue };
        let Said { tls, .. } =
            said.entry(&policy.metadata.name).or_insert_with(|| self::said(cluster, policy));
        let tls = match tls {
            Ok(tls) => PortTls::Tls(tls.clone()),
            Err((_, why)) => {
                let (namespace, name) = name_of(&policy.metadata);
                PortTls::Invalid(format!("BackendTLSPolicy {namespace}/{name}: {why}").into())
            }
        };
        ports.insert(port.port, tls);
    }
    (!ports.is_empty()).then(|| l7::BackendTls { service: service_name(config, &name), ports })
}

/// The services that a policy is about, there or not.
pub(crate) fn services(policy: &BackendTLSPolicy) -> impl Iterator<Item = Key> {
    let namespace = &policy.metadata.namespace;
    let targets = policy.spec.target_refs.iter().filter(|target| is_service(target));
    targets.map(|target| Key { kind: Kind::Service, namespace: namespace.clone(), name: target.name.clone() })
}

/// The ConfigMaps that a policy names, there or not.
pub(crate) fn bundles(policy: &BackendTLSPolicy) -> impl Iterator<Item = Key> {
    let namespace = &policy.metadata.namespace;
    let named = policy.spec.validation.iter().flat_map(|validation| &validation.ca_certificate_refs);
    named.filter(|found| is_bundle(found)).map(|found| Key {
        kind: Kind::ConfigMap,
        namespace: namespace.clone(),
        name: found.name.clone(),
    })
}

fn is_service(target: &BackendTlsTarget) -> bool {
    matches!(target.group.as_str(), "" | "core") && target.kind == "Service"
}

/// The ports that the mesh carries.
fn carried(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()))
}

/// What a field says: nothing, where it is empty.
fn set(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.is_empty())
}

fn is_bundle(found: &CertificateRef) -> bool {
    matches!(found.group.as_str(), "" | "core") && found.kind == "ConfigMap"
}

/// The policies that name a service.
fn naming<'a>(cluster: &'a Cluster, service: &Name) -> Vec<&'a BackendTLSPolicy> {
    let key = key_of(Kind::Service, service);
    let named = cluster.references().of(&key);
    let policies = named.filter(|key| key.kind == Kind::BackendTLSPolicy);
    let policies =
        policies.filter_map(|key| cluster.backend_tls.get(&(key.namespace.clone(), key.name.clone())));
    policies.map(|policy| &**policy).collect()
}

/// The policy that counts for a port.
fn first<'a>(
    policies: &[&'a BackendTLSPolicy],
    (_, service): &Name,
    port: &ServicePort,
) -> Option<&'a BackendTLSPolicy> {
    let width = |policy: &BackendTLSPolicy| {
        let targets = policy.spec.target_refs.iter().filter(|it| is_service(it) && it.name == *service);
        let widths = targets.filter_map(|it| match set(&it.section_name) {
            None => Some(1),
            Some(section) => (section == port.name).then_some(0),
        });
        widths.min()
    };
    let concerned = policies.iter().filter_map(|policy| Some((width(policy)?, *policy)));
    let (_, policy) = concerned.min_by_key(|(width, policy)| (*width, rank(policy)))?;
    Some(policy)
}

fn rank(policy: &BackendTLSPolicy) -> (model::l7::Moment, Name) {
    (created(&policy.metadata), name_of(&policy.metadata))
}

fn attach(
    config: &Config,
    cluster: &Cluster,
    (policy, target): (&BackendTLSPolicy, &BackendTlsTarget),
    said: &Said,
) -> Result<String, Why> {
    let BackendTlsTarget { group, kind, name, .. } = target;
    let namespace = &policy.metadata.namespace;
    if !is_service(target) {
        let message = format!("{kind:?} of group {group:?} can't be a target; name a Service");
        return Err(("Invalid", message));
    }
    let service = (namespace.clone(), name.clone());
    let absent = |what: String| ("TargetNotFound", what);
    let object = cluster
        .services
        .get(&service)
        .ok_or_else(|| absent(format!("there is no Service {namespace}/{name}")))?;
    if !has_endpoints(object) {
        let message = format!("Service {namespace}/{name} is an ExternalName, which has no endpoints");
        return Err(("Invalid", message));
    }
    if let Some(section) = set(&target.section_name)
        && !carried(object).any(|port| port.name == section)
    {
        return Err(absent(format!("Service {namespace}/{name} has no TCP port that is named {section:?}")));
    }
    let own = rank(policy);
    let is_same = |it: &BackendTlsTarget| {
        is_service(it) && it.name == *name && set(&it.section_name) == set(&target.section_name)
    };
    let rivals = within(&cluster.backend_tls, namespace)
        .filter(|(_, rival)| rank(rival) < own && rival.spec.target_refs.iter().any(is_same));
    if let Some((_, winner)) = rivals.min_by_key(|(_, rival)| rank(rival)) {
        let name = &winner.metadata.name;
        let message = format!("BackendTLSPolicy {namespace}/{name}, which comes first, is about the same");
        return Err(("Conflicted", message));
    }
    if let Err((reason, message)) = &said.tls {
        let message = format!("{message}; until it is mended, what goes to its target is refused");
        return Err((reason, message));
    }
    let unguarded =
        unguarded(config, cluster, &service).map(|why| format!("apart from backends of routes, {why}"));
    Ok(routes::joined("waypoints begin TLS with the endpoints of its target", unguarded))
}

fn said(cluster: &Cluster, policy: &BackendTLSPolicy) -> Said {
    let Some(validation) = &policy.spec.validation else {
        let message = "it says not what servers have to prove; add validation".into();
        return Said { tls: Err(("Invalid", message)), unresolved: None };
    };
    let (roots, unresolved) = roots(cluster, &policy.metadata.namespace, validation);
    let tls = roots.and_then(|roots| {
        let names = names(validation).map_err(|message| ("Invalid", message))?;
        Ok(ServerTls { hostname: validation.hostname.as_str().into(), names, roots })
    });
    Said { tls, unresolved }
}

/// Who may have certified servers, and what of the references can't be used.
fn roots(
    cluster: &Cluster,
    namespace: &str,
    validation: &BackendTlsValidation,
) -> (Result<Roots, Why>, Option<Why>) {
    let known = set(&validation.well_known_ca_certificates);
    let refs = &validation.ca_certificate_refs;
    let invalid = |message: String| (Err(("Invalid", message)), None);
    match known {
        Some(_) if !refs.is_empty() => {
            return invalid(
                "caCertificateRefs and wellKnownCACertificates exclude each other; leave one out".into(),
            );
        }
        Some("System") => return (Ok(Roots::System), None),
        Some(known) => return invalid(format!("wellKnownCACertificates {known:?} is not known; System is")),
        None => {}
    }
    let mut pem = String::new();
    let mut unresolved: Option<Why> = None;
    for found in refs {
        match bundle(cluster, namespace, found, ROOTS_MAX - pem.len()) {
            Ok(more) => pem.extend([more, "\n"]),
            Err(why) => drop(unresolved.get_or_insert(why)),
        }
    }
    if !pem.is_empty() {
        return (Ok(Roots::Pem(pem.into())), unresolved);
    }
    let why = match &unresolved {
        Some((_, why)) => why.clone(),
        None => "there is none; name a ConfigMap in caCertificateRefs, or System in wellKnownCACertificates"
            .into(),
    };
    (Err(("NoValidCACertificate", why)), unresolved)
}

/// The certificates that a reference leads to, if there is room for them.
fn bundle<'a>(
    cluster: &'a Cluster,
    namespace: &str,
    found: &CertificateRef,
    room: usize,
) -> Result<&'a str, Why> {
    let CertificateRef { group, kind, name } = found;
    if !is_bundle(found) {
        let message =
            format!("{kind:?} of group {group:?} holds no certificates that are read; name a ConfigMap");
        return Err(("InvalidKind", message));
    }
    let bad = |what: String| ("InvalidCACertificateRef", what);
    let map = cluster.bundles.get(&(namespace.to_owned(), name.clone()));
    let pem = map
        .and_then(|map| map.data.ca_crt.as_deref())
        .ok_or_else(|| bad(format!("there is no ConfigMap {namespace}/{name} with ca.crt")))?;
    if pem.len() >= room {
        return Err(bad(format!(
            "ca.crt of ConfigMap {namespace}/{name} is too long; a policy may name {ROOTS_MAX} bytes of certificates"
        )));
    }
    check_roots(pem).map_err(|why| bad(format!("ca.crt of ConfigMap {namespace}/{name}: {why}")))?;
    Ok(pem)
}

/// The names that servers may prove beside the hostname.
fn names(validation: &BackendTlsValidation) -> Result<Vec<SubjectName>, String> {
    check_hostname(&validation.hostname).map_err(|why| format!("hostname: {why}"))?;
    let name = |found: &SubjectAltName| match (found.kind.as_str(), set(&found.hostname), set(&found.uri)) {
        ("Hostname", Some(hostname), None) => {
            check_hostname(hostname.strip_prefix("*.").unwrap_or(hostname))
                .map_err(|why| format!("subjectAltNames: {why}"))?;
            Ok(SubjectName::Hostname(hostname.into()))
        }
        ("URI", None, Some(uri)) => Ok(SubjectName::Uri(uri.into())),
        (kind, ..) => Err(format!(
            "subjectAltNames: type {kind:?} does not go with its name; a Hostname has hostname alone, and a URI has uri"
        )),
    };
    validation.subject_alt_names.iter().map(name).collect()
}
