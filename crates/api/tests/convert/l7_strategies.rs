//! Arbitrary rules, traffic policies and TLS towards backends, such as a control plane could hold them.

use std::time::Duration;

use model::Str;
use model::identity::Identity;
use model::l7::{
    Abort, AbortAnswer, Backend, BackendTarget, BackendTls, Balancing, Client, CookieName, Cors, Delay,
    Fault, Filter, Fraction, HashKey, HeaderEdits, HeaderMatch, HeaderName, HeaderValue, Host, Lifetime,
    List, Match, Mirror, Moment, Parent, PathMatch, PathModifier, PathText, Pattern, Policy, PolicyName,
    PolicyTarget, PortTls, QueryMatch, Redirect, Retry, Roots, RouteKind, Rule, RuleKey, Scheme, Scope,
    ServerTls, SessionCarrier, SessionPersistence, SniMatch, SubjectName, TextMatch, Timeouts, Trigger,
    UrlRewrite,
};
use model::service::ServiceName;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn name() -> impl Strategy<Value = Str> {
    select(vec!["default", "cart", "shop"]).prop_map(Str::from)
}

fn text() -> impl Strategy<Value = Str> {
    "\\PC{0,6}".prop_map(Str::from)
}

fn service() -> impl Strategy<Value = ServiceName> {
    (name(), name()).prop_map(|(namespace, hostname)| ServiceName { namespace, hostname })
}

fn millis() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()))
}

fn moment() -> impl Strategy<Value = Moment> {
    any::<u64>().prop_map(Moment)
}

fn kind() -> impl Strategy<Value = RouteKind> {
    select(vec![RouteKind::Grpc, RouteKind::Http, RouteKind::Tls, RouteKind::Tcp])
}

fn key() -> impl Strategy<Value = RuleKey> {
    (kind(), name(), name(), any::<u32>()).prop_map(|(kind, namespace, name, index)| RuleKey {
        kind,
        namespace,
        name,
        index,
    })
}

fn parent() -> impl Strategy<Value = Parent> {
    let scope = select(vec![Scope::Consumer, Scope::Producer]);
    (service(), option::of(1..=u16::MAX), scope).prop_map(|(service, port, scope)| Parent {
        service,
        port,
        scope,
    })
}

fn path() -> impl Strategy<Value = PathText> {
    "/[!-\"$->@-~]{0,8}".prop_map(|path| PathText::new(&path).expect("a path"))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    select(vec!["a|b", "/x/[0-9]+", ".*", ""]).prop_map(|source| Pattern::new(source).expect("a pattern"))
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![text().prop_map(TextMatch::Exact), pattern().prop_map(TextMatch::Regex)]
}

fn header_name() -> impl Strategy<Value = HeaderName> {
    "x-[a-z-]{1,6}".prop_map(|name| HeaderName::new(&name).expect("a name"))
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    (header_name(), text_match()).prop_map(|(name, value)| HeaderMatch { name, value })
}

fn host() -> impl Strategy<Value = Host> {
    "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}".prop_map(|host| Host::new(&host).expect("a host"))
}

fn a_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        1 => Just(PathMatch::Unintelligible),
        4 => path().prop_map(PathMatch::Exact),
        4 => path().prop_map(PathMatch::Prefix),
        4 => pattern().prop_map(PathMatch::Regex),
        4 => (option::of(text_match()), option::of(text_match()))
            .prop_map(|(service, method)| PathMatch::Grpc { service, method }),
    ];
    let query = vec((text(), text_match()).prop_map(|(name, value)| QueryMatch { name, value }), 0..2);
    let method = option::of(select(vec!["GET", "POST"]).prop_map(Str::from));
    let sni = option::of(prop_oneof![host().prop_map(SniMatch::Exact), host().prop_map(SniMatch::Below)]);
    (path, vec(header_match(), 0..2), query, method, sni, any::<bool>()).prop_map(
        |(path, headers, query, method, sni, unintelligible)| {
            // What can't be read at all is marked by its reader.
            let unintelligible = unintelligible || path == PathMatch::Unintelligible;
            Match { path, headers, query, method, sni, unintelligible }
        },
    )
}

fn header_edits() -> impl Strategy<Value = HeaderEdits> {
    let value = "[!-~]{0,5}".prop_map(|value| HeaderValue::new(&value).expect("a value"));
    let fields = || vec((header_name(), value.clone()), 0..2);
    (fields(), fields(), vec(header_name(), 0..2)).prop_map(|(set, add, remove)| HeaderEdits {
        set,
        add,
        remove,
    })
}

fn modifier() -> impl Strategy<Value = PathModifier> {
    prop_oneof![path().prop_map(PathModifier::ReplaceFull), path().prop_map(PathModifier::ReplacePrefix)]
}

fn share() -> impl Strategy<Value = Fraction> {
    (any::<u32>(), 1..=u32::MAX)
        .prop_map(|(part, whole)| Fraction::new(part.min(whole), whole).expect("a share"))
}

fn target() -> impl Strategy<Value = BackendTarget> {
    prop_oneof![
        text().prop_map(BackendTarget::Invalid),
        (service(), 1..=u16::MAX).prop_map(|(name, port)| BackendTarget::Service { name, port })
    ]
}

fn list<T: Clone + std::fmt::Debug + 'static>(
    item: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = List<T>> {
    prop_oneof![1 => Just(List::All), 3 => vec(item, 0..3).prop_map(List::Only)]
}

fn cors() -> impl Strategy<Value = Cors> {
    let origin = select(vec!["https://a.com", "http://*:81", "https://*.a.com", "app://x"])
        .prop_map(|origin| origin.parse().expect("an origin"));
    let method = select(vec!["PUT", "DELETE"]).prop_map(Str::from);
    (list(origin), any::<bool>(), list(method), list(header_name()), list(header_name()), millis()).prop_map(
        |(origins, credentials, methods, headers, expose, max_age)| Cors {
            origins,
            credentials,
            methods,
            headers,
            expose,
            max_age,
        },
    )
}

fn filter() -> impl Strategy<Value = Filter> {
    let scheme = option::of(select(vec![Scheme::Http, Scheme::Https]));
    let status = select(vec![301, 302, 303, 307, 308]);
    let redirect = (scheme, option::of(host()), option::of(1..=u16::MAX), option::of(modifier()), status)
        .prop_map(|(scheme, host, port, path, status)| Redirect { scheme, host, port, path, status });
    let rewrite =
        (option::of(host()), option::of(modifier())).prop_map(|(host, path)| UrlRewrite { host, path });
    prop_oneof![
        cors().prop_map(Filter::Cors),
        (target(), share()).prop_map(|(target, share)| Filter::Mirror(Mirror { target, share })),
        redirect.prop_map(Filter::Redirect),
        header_edits().prop_map(Filter::RequestHeaders),
        header_edits().prop_map(Filter::ResponseHeaders),
        rewrite.prop_map(Filter::Rewrite),
    ]
}

fn backend() -> impl Strategy<Value = Backend> {
    (any::<u32>(), target(), vec(filter(), 0..2)).prop_map(|(weight, target, filters)| Backend {
        weight,
        target,
        filters,
    })
}

fn retry() -> impl Strategy<Value = Retry> {
    (1..=u32::MAX, option::of(millis()), btree_set(400..600_u16, 0..3), btree_set(0..17_u32, 0..3)).prop_map(
        |(attempts, backoff, statuses, grpc_codes)| Retry { attempts, backoff, statuses, grpc_codes },
    )
}

fn session() -> impl Strategy<Value = SessionPersistence> {
    let lifetime = select(vec![Lifetime::Permanent, Lifetime::Session]);
    let cookie = ("[a-zA-Z]{1,4}", path(), lifetime).prop_map(|(name, path, lifetime)| {
        SessionCarrier::Cookie { name: CookieName::new(&name).expect("a name"), path, lifetime }
    });
    let carrier = prop_oneof![cookie, header_name().prop_map(SessionCarrier::Header)];
    (carrier, option::of(millis()))
        .prop_map(|(carrier, absolute_timeout)| SessionPersistence { carrier, absolute_timeout })
}

pub(crate) fn rule() -> impl Strategy<Value = Rule> {
    let identity = (key(), option::of(name()), vec(parent(), 0..3), moment());
    let action = (vec(a_match(), 0..3), vec(filter(), 0..3), vec(backend(), 0..3));
    let timeouts = (option::of(millis()), option::of(millis()))
        .prop_map(|(request, backend_request)| Timeouts { request, backend_request });
    let rest = (timeouts, option::of(retry()), option::of(session()), option::of(name()));
    (identity, action, rest).prop_map(|(identity, action, rest)| {
        let unclear = action.0.iter().any(|m| m.path == PathMatch::Unintelligible);
        Rule {
            key: identity.0,
            name: identity.1,
            parents: identity.2,
            created: identity.3,
            matches: action.0,
            filters: action.1,
            backends: action.2,
            timeouts: rest.0,
            retry: rest.1,
            session: rest.2,
            refusal: rest.3.or_else(|| unclear.then(|| "unclear".into())),
        }
    })
}

fn client() -> impl Strategy<Value = Client> {
    prop_oneof![
        (name(), name())
            .prop_map(|(ns, sa)| Client::Identity(Identity::new("cluster.local", ns, sa).expect("valid"))),
        name().prop_map(Client::Namespace),
        (name(), name()).prop_map(|(namespace, name)| Client::ServiceAccount { namespace, name }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let trigger = (vec(header_match(), 0..2), vec(client(), 1..3))
        .prop_map(|(headers, clients)| Trigger { headers, clients });
    let delay = (share(), millis()).prop_map(|(share, duration)| Delay { share, duration });
    let answer = prop_oneof![
        (0..=16_u32).prop_map(AbortAnswer::Grpc),
        (200..600_u16).prop_map(AbortAnswer::Http),
        Just(AbortAnswer::Reset)
    ];
    let abort = (share(), answer).prop_map(|(share, answer)| Abort { share, answer });
    (vec(trigger, 0..3), option::of(delay), option::of(abort), moment())
        .prop_map(|(triggers, delay, abort, until)| Fault { triggers, delay, abort, until })
}

fn balancing() -> impl Strategy<Value = Balancing> {
    let cookie = ("[a-zA-Z]{1,4}", option::of(millis()))
        .prop_map(|(name, ttl)| HashKey::Cookie { name: CookieName::new(&name).expect("a name"), ttl });
    let key = prop_oneof![cookie, header_name().prop_map(HashKey::Header), Just(HashKey::Source)].boxed();
    prop_oneof![
        Just(Balancing::LeastLoad),
        Just(Balancing::LeastRequest),
        Just(Balancing::Random),
        Just(Balancing::RoundRobin),
        key.clone().prop_map(Balancing::Maglev),
        key.prop_map(Balancing::RingHash),
    ]
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let target = prop_oneof![
        key().prop_map(PolicyTarget::Rule),
        (kind(), name(), name()).prop_map(|(kind, namespace, name)| PolicyTarget::Route {
            kind,
            namespace,
            name
        }),
        service().prop_map(PolicyTarget::Service),
        (name(), name()).prop_map(|(namespace, name)| PolicyTarget::Waypoint { namespace, name }),
    ];
    let settings = (option::of(fault()), option::of(balancing()));
    (name(), name(), target, moment(), settings).prop_map(
        |(namespace, name, target, created, (fault, balancing))| Policy {
            name: PolicyName { namespace, name },
            target,
            created,
            fault,
            balancing,
        },
    )
}

fn port_tls() -> impl Strategy<Value = PortTls> {
    let some = "[a-z]{1,6}".prop_map(Str::from);
    let name = (any::<bool>(), some.clone()).prop_map(|(is_uri, text)| match is_uri {
        true => SubjectName::Uri(text),
        false => SubjectName::Hostname(text),
    });
    let roots = prop_oneof![some.clone().prop_map(Roots::Pem), Just(Roots::System)];
    let tls = (some, vec(name, 0..3), roots)
        .prop_map(|(hostname, names, roots)| PortTls::Tls(ServerTls { hostname, names, roots }));
    prop_oneof![text().prop_map(PortTls::Invalid), tls]
}

pub(crate) fn backend_tls() -> impl Strategy<Value = BackendTls> {
    let ports = proptest::collection::btree_map(1..=u16::MAX, port_tls(), 0..3);
    (service(), ports).prop_map(|(service, ports)| BackendTls { service, ports })
}
