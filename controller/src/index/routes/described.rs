//! The four kinds of routes as one: what is attached to what, rule by rule, and which services that names. Judges nothing.

use crate::source::objects::{
    BackendRef, ConnectionRule, Filter, GrpcRule, HttpRule, Key, Kind, Metadata, Object, ObjectRef,
    ParentRef, ParentStatus, RouteSpec,
};

/// The group of Gateway API.
pub(crate) const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// A route of any kind.
pub(crate) struct Described<'a> {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its name and age.
    pub(crate) metadata: &'a Metadata,
    /// What its author attached it to.
    pub(crate) parent_refs: &'a [ParentRef],
    /// The names that TLS clients ask for; of other kinds they mean nothing here.
    pub(crate) hostnames: &'a [String],
    /// At least one.
    pub(crate) rules: Vec<RuleOf<'a>>,
    /// What was said about it.
    pub(crate) said: &'a [ParentStatus],
}

/// What rules of all kinds have.
pub(crate) struct RuleOf<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) filters: &'a [Filter],
    pub(crate) backends: &'a [BackendRef],
    pub(crate) of: Own<'a>,
}

/// What only rules of one kind have.
pub(crate) enum Own<'a> {
    Connection,
    Grpc(Option<&'a GrpcRule>),
    Http(Option<&'a HttpRule>),
}

impl<'a> Described<'a> {
    /// The object as a route, if it is one.
    pub(crate) fn of(object: &'a Object) -> Option<Self> {
        let kind = object.kind();
        if let Object::GRPCRoute(it) = object {
            return Some(describe(kind, &it.metadata, &it.spec, &it.status.parents, grpc));
        }
        if let Object::HTTPRoute(it) = object {
            return Some(describe(kind, &it.metadata, &it.spec, &it.status.parents, http));
        }
        if let Object::TCPRoute(it) = object {
            return Some(describe(kind, &it.metadata, &it.spec, &it.status.parents, connection));
        }
        if let Object::TLSRoute(it) = object {
            return Some(describe(kind, &it.metadata, &it.spec, &it.status.parents, connection));
        }
        None
    }

    /// The Services that it is attached to, there or not.
    pub(crate) fn parents(&self) -> impl Iterator<Item = Key> {
        self.parent_refs.iter().filter_map(|parent| parent_service(parent, self.metadata))
    }

    /// The Gateways that it is attached to, there or not.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = Key> {
        self.parent_refs.iter().filter_map(|parent| parent_gateway(parent, self.metadata))
    }

    /// Every Service that it names, there or not.
    pub(crate) fn services(&self) -> impl Iterator<Item = Key> {
        let backend =
            |backend: &'a BackendRef| std::iter::once(&backend.target).chain(mirrors(&backend.filters));
        let of_rule =
            move |rule: &RuleOf<'a>| rule.backends.iter().flat_map(backend).chain(mirrors(rule.filters));
        let named = self.rules.iter().flat_map(of_rule);
        self.parents().chain(named.filter_map(|target| service_named(target, self.metadata)))
    }
}

/// The Service that a parent names, if it is one.
pub(crate) fn parent_service(parent: &ParentRef, of: &Metadata) -> Option<Key> {
    let is_service =
        parent.kind.as_deref() == Some("Service") && matches!(parent.group.as_deref(), Some("" | "core"));
    is_service.then(|| service(parent.namespace.as_deref(), &parent.name, of))
}

/// The Gateway that a parent names, if it is one.
pub(crate) fn parent_gateway(parent: &ParentRef, of: &Metadata) -> Option<Key> {
    let is_gateway = matches!(parent.kind.as_deref(), None | Some("Gateway"))
        && matches!(parent.group.as_deref(), None | Some(GATEWAY_API));
    let namespace = parent.namespace.as_deref().unwrap_or(&of.namespace).to_owned();
    is_gateway.then(|| Key { kind: Kind::Gateway, namespace, name: parent.name.clone() })
}

/// The Service that a backend names, if it is one.
pub(crate) fn service_named(target: &ObjectRef, of: &Metadata) -> Option<Key> {
    let is_service = target.kind.as_deref().unwrap_or("Service") == "Service"
        && matches!(target.group.as_str(), "" | "core");
    is_service.then(|| service(target.namespace.as_deref(), &target.name, of))
}

fn service(namespace: Option<&str>, name: &str, of: &Metadata) -> Key {
    let namespace = namespace.unwrap_or(&of.namespace);
    Key { kind: Kind::Service, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &ObjectRef> {
    filters.iter().filter_map(|filter| filter.request_mirror.as_ref()).map(|mirror| &mirror.backend_ref)
}

fn describe<'a, R>(
    kind: Kind,
    metadata: &'a Metadata,
    spec: &'a RouteSpec<R>,
    said: &'a [ParentStatus],
    rule: fn(Option<&'a R>) -> RuleOf<'a>,
) -> Described<'a> {
    let listed = spec.rules.as_deref().unwrap_or_default();
    // As the API has it: what lists no rules has one that matches everything.
    let rules =
        if listed.is_empty() { vec![rule(None)] } else { listed.iter().map(|it| rule(Some(it))).collect() };
    Described { kind, metadata, parent_refs: &spec.parent_refs, hostnames: &spec.hostnames, rules, said }
}

fn http(rule: Option<&HttpRule>) -> RuleOf<'_> {
    RuleOf {
        name: rule.and_then(|rule| rule.name.as_deref()),
        filters: rule.map_or(&[], |rule| &rule.filters),
        backends: rule.map_or(&[], |rule| &rule.backend_refs),
        of: Own::Http(rule),
    }
}

fn grpc(rule: Option<&GrpcRule>) -> RuleOf<'_> {
    RuleOf {
        name: rule.and_then(|rule| rule.name.as_deref()),
        filters: rule.map_or(&[], |rule| &rule.filters),
        backends: rule.map_or(&[], |rule| &rule.backend_refs),
        of: Own::Grpc(rule),
    }
}

fn connection(rule: Option<&ConnectionRule>) -> RuleOf<'_> {
    RuleOf {
        name: rule.and_then(|rule| rule.name.as_deref()),
        filters: &[],
        backends: rule.map_or(&[], |rule| &rule.backend_refs),
        of: Own::Connection,
    }
}
