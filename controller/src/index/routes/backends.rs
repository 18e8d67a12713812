//! What a route sends to: a port of a service, or why it can't be that. Owns no endpoints.

use model::l7::{Backend, BackendTarget, Filter};

use super::described::{Described, GATEWAY_API, service_named};
use super::parents::is_parent;
use crate::index::Config;
use crate::index::cluster::{Cluster, within};
use crate::index::service::{has_endpoints, is_tcp, service_name};
use crate::source::objects::{BackendRef, GrantTo, Key, ObjectRef};

/// A reference that leads nowhere, in the Gateway API's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unresolved {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What references are looked up in.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    pub(super) config: &'a Config,
    pub(super) cluster: &'a Cluster,
    pub(super) route: &'a Described<'a>,
}

impl Lookup<'_> {
    /// One backend of a rule. One that leads nowhere keeps its share.
    pub(super) fn backend(
        &self,
        found: &BackendRef,
        filters: Vec<Filter>,
        unresolved: &mut Vec<Unresolved>,
    ) -> Backend {
        let weight = found.weight.unwrap_or(1);
        // The API has none below nothing.
        let weight = u32::try_from(weight).unwrap_or_default();
        Backend { weight, target: self.target(&found.target, unresolved), filters }
    }

    /// What a reference leads to.
    pub(super) fn target(&self, found: &ObjectRef, unresolved: &mut Vec<Unresolved>) -> BackendTarget {
        match self.resolve(found) {
            Ok(target) => target,
            Err(why) => {
                let target = BackendTarget::Invalid(format!("{}: {}", why.reason, why.message).into());
                if !unresolved.contains(&why) {
                    unresolved.push(why);
                }
                target
            }
        }
    }

    fn resolve(&self, found: &ObjectRef) -> Result<BackendTarget, Unresolved> {
        let err = |reason, message| Err(Unresolved { reason, message });
        let Some(key) = service_named(found, self.route.metadata) else {
            let kind = found.kind.as_deref().unwrap_or("Service");
            let message = format!(
                "{kind} {:?} of group {:?} can't receive requests; name a Service",
                found.name, found.group
            );
            return err("InvalidKind", message);
        };
        if !self.is_permitted(&key) {
            let message = format!(
                "no ReferenceGrant in namespace {} lets {}s of {} refer to {key}, and there are some for Services; add one",
                key.namespace, self.route.kind, self.route.metadata.namespace
            );
            return err("RefNotPermitted", message);
        }
        let name = (key.namespace.clone(), key.name.clone());
        let Some(service) = self.cluster.services.get(&name) else {
            return err("BackendNotFound", format!("there is no {key}"));
        };
        if !has_endpoints(service) {
            return err("BackendNotFound", format!("{key} is an ExternalName and has no endpoints"));
        }
        let Some(number) = found.port else {
            return err("BackendNotFound", format!("no port of {key} is named; add `port`"));
        };
        let mut ports = service.spec.ports.iter().filter(|port| port.port == number).peekable();
        if ports.peek().is_none() {
            return err("BackendNotFound", format!("{key} has no port {number}"));
        }
        if !ports.any(|port| is_tcp(port.protocol.as_deref())) {
            return err("UnsupportedProtocol", format!("port {number} of {key} is not TCP"));
        }
        Ok(BackendTarget::Service { name: service_name(self.config, &name), port: number })
    }

    /// In a mesh any client may address any service, and so may routes. Only a namespace that has granted references to
    /// its Services at all is taken at its word; and what clients have addressed in the first place is no reference.
    fn is_permitted(&self, service: &Key) -> bool {
        let Described { kind, metadata, parent_refs, .. } = self.route;
        if service.namespace == metadata.namespace || is_parent(parent_refs, metadata, service) {
            return true;
        }
        let is_service = |to: &&GrantTo| to.kind == "Service" && matches!(to.group.as_str(), "" | "core");
        let mut grants = within(&self.cluster.grants, &service.namespace)
            .filter(|(_, grant)| grant.spec.to.iter().any(|to| is_service(&to)))
            .peekable();
        grants.peek().is_none()
            || grants.any(|(_, grant)| {
                let from = grant.spec.from.iter().any(|from| {
                    from.group == GATEWAY_API
                        && from.kind == kind.to_string()
                        && from.namespace == metadata.namespace
                });
                let names = |to: &GrantTo| to.name.as_ref().is_none_or(|name| *name == service.name);
                from && grant.spec.to.iter().filter(is_service).any(names)
            })
    }
}
