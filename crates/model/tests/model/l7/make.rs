//! Small things that L7 tests are made of.

use std::sync::Arc;

use model::identity::Identity;
use model::l7::{
    Backend, BackendTarget, HeaderMatch, HeaderName, Headers, Match, Moment, Parent, PathMatch, PathText,
    Pattern, QueryMatch, Request, RouteKind, Rule, RuleKey, Scope, SniMatch, TextMatch, Timeouts,
};
use model::service::ServiceName;

/// Fields in order, names in lower case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(pub(crate) Vec<(String, Vec<u8>)>);

impl Headers for Fields {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.0.iter().filter(|(own, _)| own == name).for_each(|(_, value)| each(value));
    }
}

/// `name=value` with spaces between.
pub(crate) fn fields(text: &str) -> Fields {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').expect("name=value");
        (name.to_owned(), value.as_bytes().to_vec())
    };
    Fields(text.split_whitespace().map(pair).collect())
}

/// `echo.shop`.
pub(crate) fn echo() -> ServiceName {
    ServiceName { namespace: "shop".into(), hostname: "echo.shop.svc.cluster.local".into() }
}

/// A rule of object `shop/name` about every port of `echo.shop`, which sends everything to `backend`.
pub(crate) fn rule(kind: RouteKind, name: &str, index: u32, matches: Vec<Match>) -> Rule {
    let producer = Parent { service: echo(), port: None, scope: Scope::Producer };
    Rule {
        key: RuleKey { kind, namespace: "shop".into(), name: name.into(), index },
        name: None,
        parents: vec![producer],
        created: Moment(0),
        matches,
        filters: Vec::new(),
        backends: vec![backend(name, 1)],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        refusal: None,
    }
}

pub(crate) fn backend(name: &str, weight: u32) -> Backend {
    let hostname = format!("{name}.shop.svc.cluster.local").into();
    let target =
        BackendTarget::Service { name: ServiceName { namespace: "shop".into(), hostname }, port: 80 };
    Backend { weight, target, filters: Vec::new() }
}

/// The same rule, about the clients of another namespace.
pub(crate) fn consumer(namespace: &str, mut rule: Rule) -> Rule {
    rule.key.namespace = namespace.into();
    for parent in &mut rule.parents {
        parent.scope = Scope::Consumer;
    }
    rule
}

/// Conditions with spaces between: `=/exact`, `/prefix`, `~pattern`, `POST` (a method), `name:value` or `name:~pattern` (a
/// header field), `?name=value` or `?name=~pattern`, `grpc:service/method` (each exact, `~pattern` or empty), `sni:host`.
pub(crate) fn matching(text: &str) -> Match {
    text.split_whitespace().fold(Match::default(), |mut m, condition| {
        if let Some(exact) = condition.strip_prefix('=') {
            m.path = PathMatch::Exact(path(exact));
        } else if let Some(rest) = condition.strip_prefix("grpc:") {
            let (service, method) = rest.split_once('/').expect("service/method");
            let part = |text: &str| (!text.is_empty()).then(|| value(text));
            m.path = PathMatch::Grpc { service: part(service), method: part(method) };
        } else if let Some(host) = condition.strip_prefix("sni:") {
            m.sni = Some(match host.strip_prefix("*.") {
                Some(rest) => SniMatch::Below(model::l7::Host::new(rest).expect("a host")),
                None => SniMatch::Exact(model::l7::Host::new(host).expect("a host")),
            });
        } else if condition.starts_with('/') {
            m.path = PathMatch::Prefix(path(condition));
        } else if let Some(pattern) = condition.strip_prefix('~') {
            m.path = PathMatch::Regex(Pattern::new(pattern).expect("a pattern"));
        } else if let Some(parameter) = condition.strip_prefix('?') {
            let (name, text) = parameter.split_once('=').expect("?name=value");
            m.query.push(QueryMatch { name: name.into(), value: value(text) });
        } else if let Some((name, text)) = condition.split_once(':') {
            let name = HeaderName::new(name).expect("a name");
            m.headers.push(HeaderMatch { name, value: value(text) });
        } else {
            m.method = Some(condition.into());
        }
        m
    })
}

fn value(text: &str) -> TextMatch {
    match text.strip_prefix('~') {
        Some(pattern) => TextMatch::Regex(Pattern::new(pattern).expect("a pattern")),
        None => TextMatch::Exact(text.into()),
    }
}

pub(crate) fn path(text: &str) -> PathText {
    PathText::new(text).expect("a path")
}

/// `METHOD /path?query name=value ...`, asked by a client of namespace `client`.
pub(crate) struct Asked {
    method: String,
    path: String,
    query: Option<String>,
    headers: Fields,
    client: Option<Identity>,
}

pub(crate) fn asked(text: &str, client: Option<&str>) -> Asked {
    let mut words = text.split_whitespace();
    let method = words.next().expect("a method").to_owned();
    let target = words.next().expect("a path");
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let headers = fields(&words.collect::<Vec<_>>().join(" "));
    let client = client.map(|namespace| crate::make::identity(namespace, "client"));
    Asked { method, path: path.to_owned(), query: query.map(str::to_owned), headers, client }
}

impl Asked {
    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            client: self.client.as_ref(),
        }
    }
}

pub(crate) fn shared(rules: Vec<Rule>) -> Vec<Arc<Rule>> {
    rules.into_iter().map(Arc::new).collect()
}
