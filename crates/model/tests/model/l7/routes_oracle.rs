//! Compiled routes against a second reading of the Gateway API: every match is tried, and those that hold are sorted.

use std::cmp::Reverse;
use std::sync::Arc;

use model::l7::{
    HeaderMatch, Match, Moment, Parent, PathMatch, QueryMatch, RouteKind, Routes, Rule, RuleKey, Scope,
    Selected, SniMatch, TextMatch,
};
use proptest::prelude::*;

use super::make::{Fields, asked, echo, matching, rule};

/// A request in plain words.
#[derive(Clone, Debug)]
struct Ask {
    method: &'static str,
    path: String,
    query: Vec<(&'static str, &'static str)>,
    headers: Vec<(&'static str, &'static str)>,
    client: Option<&'static str>,
    port: u16,
}

fn text_holds(text: &TextMatch, value: &str) -> bool {
    match text {
        TextMatch::Exact(exact) => **exact == *value,
        TextMatch::Regex(pattern) => pattern.matches(value.as_bytes()),
    }
}

fn path_holds(path: &PathMatch, asked: &str) -> bool {
    match path {
        PathMatch::Unintelligible => true,
        PathMatch::Exact(exact) => exact.as_str() == asked,
        PathMatch::Regex(pattern) => pattern.matches(asked.as_bytes()),
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.as_str().trim_end_matches('/');
            asked == prefix || asked.starts_with(&format!("{prefix}/"))
        }
        PathMatch::Grpc { service, method } => {
            let parts: Vec<&str> = asked.split('/').collect();
            let ["", own_service, own_method] = parts[..] else { return false };
            let holds = |text: &Option<TextMatch>, part: &str| {
                !part.is_empty() && text.as_ref().is_none_or(|text| text_holds(text, part))
            };
            holds(service, own_service) && holds(method, own_method)
        }
    }
}

fn holds(m: &Match, ask: &Ask) -> bool {
    let header = |h: &HeaderMatch| {
        let values: Vec<&str> = ask
            .headers
            .iter()
            .filter(|(name, _)| *name == h.name.as_str())
            .map(|(_, value)| *value)
            .collect();
        !values.is_empty() && text_holds(&h.value, &values.join(","))
    };
    let parameter = |q: &QueryMatch| {
        let value = ask.query.iter().find(|(name, _)| *name == &*q.name);
        value.is_some_and(|(_, value)| text_holds(&q.value, value))
    };
    m.method.as_deref().is_none_or(|method| method == ask.method)
        && path_holds(&m.path, &ask.path)
        && m.headers.iter().all(header)
        && m.query.iter().all(parameter)
}

/// What the API compares, one after the other; more is better.
fn weight(m: &Match) -> impl Ord {
    let text = |text: &Option<TextMatch>| match text {
        Some(TextMatch::Exact(text)) => (2, text.len()),
        Some(TextMatch::Regex(pattern)) => (1, pattern.as_str().len()),
        None => (0, 0),
    };
    let path = match &m.path {
        PathMatch::Unintelligible => (4, (0, 0), (0, 0)),
        PathMatch::Exact(_) => (3, (0, 0), (0, 0)),
        PathMatch::Regex(pattern) => (2, (pattern.as_str().len(), 0), (0, 0)),
        PathMatch::Prefix(prefix) => (1, (prefix.as_str().trim_end_matches('/').len(), 0), (0, 0)),
        PathMatch::Grpc { service, method } => (0, text(service), text(method)),
    };
    (path, m.unintelligible, m.method.is_some(), m.headers.len(), m.query.len())
}

/// Which match of which rule decides; `None`: nothing is about the port; `Some(None)`: no match holds.
fn naive(rules: &[Arc<Rule>], ask: &Ask) -> Option<Option<(RuleKey, Match)>> {
    let about = |scope: Scope| -> Vec<&Arc<Rule>> {
        let concerns = |rule: &&Arc<Rule>| {
            let own =
                scope == Scope::Producer || ask.client.is_some_and(|client| *client == *rule.key.namespace);
            own && rule.parents.iter().any(|parent| {
                parent.service == echo()
                    && parent.scope == scope
                    && [None, Some(ask.port)].contains(&parent.port)
            })
        };
        rules.iter().filter(concerns).collect()
    };
    let group =
        [about(Scope::Consumer), about(Scope::Producer)].into_iter().find(|group| !group.is_empty())?;
    let kind = group.iter().map(|rule| rule.key.kind).min()?;
    let mut found: Vec<(&Arc<Rule>, &Match)> = group
        .into_iter()
        .filter(|rule| rule.key.kind == kind)
        .flat_map(|rule| rule.matches.iter().map(move |m| (rule, m)))
        .filter(|(_, m)| holds(m, ask))
        .collect();
    // Stable, so that of equal matches of one rule the first stays in front.
    found.sort_by_key(|(rule, m)| {
        let name = format!("{}/{}", rule.key.namespace, rule.key.name);
        (Reverse(weight(m)), rule.created, name, rule.key.index)
    });
    Some(found.first().map(|(rule, m)| (rule.key.clone(), (*m).clone())))
}

/// Mostly nothing, sometimes a condition or two.
fn some(conditions: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![3 => Just(vec![]), 2 => prop::sample::subsequence(conditions, 1..=2)]
}

/// Few paths that often meet: equal, one below the other, or nearly so.
const PATHS: &[&str] = &[
    "=/", "=/a", "=/a/b", "=/a/", "/", "/a", "/a/", "/a/b", "/a/b/c", "/b", "/a//b", "~/a.*", "~/.*b",
    "~/a/b|/b", "~.*/", "~[^/]*",
];

const CALLS: &[&str] = &[
    "grpc:/",
    "grpc:a/",
    "grpc:a/b",
    "grpc:/b",
    "grpc:a/~b.*",
    "grpc:~a|b/b",
    "grpc:~.*/",
    "grpc:/~.*",
    "grpc:~[ab]/~b",
    "grpc:b/b",
];

fn a_match(kind: RouteKind) -> impl Strategy<Value = Match> {
    let paths = if kind == RouteKind::Grpc { CALLS } else { PATHS };
    let path = prop::sample::select(paths);
    let headers = some(&["h:1", "h:2", "i:~1.*", "i:1,2"]);
    let more = if kind == RouteKind::Grpc { &[][..] } else { &["?p=1", "?q=~.", "POST", "GET"][..] };
    let more = prop::sample::subsequence(more, 0..=more.len().min(1));
    let unclear = prop_oneof![20 => Just((false, false)), 1 => Just((true, false)), 1 => Just((true, true))];
    (path, headers, more, unclear).prop_map(|(path, headers, more, (unintelligible, anywhere))| {
        let mut m = matching(&[&[path], &headers[..], &more[..]].concat().join(" "));
        // Of several conditions on one field the first counts; the controller sends no others.
        m.headers.dedup_by(|a, b| a.name == b.name);
        m.unintelligible = unintelligible;
        if anywhere {
            m.path = PathMatch::Unintelligible;
        }
        m
    })
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let kind = prop_oneof![6 => Just(RouteKind::Http), 2 => Just(RouteKind::Grpc)];
    let scope = prop_oneof![3 => Just(("shop", Scope::Producer)), 1 => Just(("club", Scope::Consumer))];
    let port = prop_oneof![4 => Just(None), 1 => Just(Some(80)), 1 => Just(Some(81))];
    (kind, scope, port, 0..2_u64, prop::sample::select(vec!["a", "a-b", "b"])).prop_flat_map(
        |(kind, scope, port, created, name)| {
            prop::collection::vec(a_match(kind), 0..4).prop_map(move |matches| {
                let mut rule = rule(kind, name, 0, matches);
                rule.key.namespace = scope.0.into();
                rule.parents = vec![Parent { service: echo(), port, scope: scope.1 }];
                rule.created = Moment(created);
                rule
            })
        },
    )
}

/// Rules of distinct keys, in any order.
fn rules() -> impl Strategy<Value = Vec<Arc<Rule>>> {
    prop::collection::vec(a_rule(), 0..7).prop_map(|rules| {
        let number =
            |(index, rule): (u32, Rule)| Rule { key: RuleKey { index: 9 - index, ..rule.key }, ..rule };
        (0..).zip(rules).map(number).map(Arc::new).collect()
    })
}

fn an_ask() -> impl Strategy<Value = Ask> {
    let segments = prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "", "ab"]), 1..4);
    let path = prop_oneof![9 => segments.prop_map(|segments| format!("/{}", segments.join("/"))), 1 => Just("*".to_owned())];
    let pairs = |names: &'static [&'static str]| {
        let pair = (prop::sample::select(names), prop::sample::select(vec!["1", "2"]));
        prop::collection::vec(pair, 0..3)
    };
    let method = prop::sample::select(vec!["GET", "POST"]);
    let client = prop::sample::select(vec![None, Some("shop"), Some("club"), Some("other")]);
    (method, path, pairs(&["p", "q"]), pairs(&["h", "i"]), client, 80..82_u16).prop_map(
        |(method, path, query, headers, client, port)| Ask { method, path, query, headers, client, port },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_rule_that_decides_is_the_first_of_all_that_match(rules in rules(), asks in prop::collection::vec(an_ask(), 8)) {
        let compiled = [80, 81].map(|port| Routes::of(&echo(), port, &rules));
        for ask in asks {
            let query = ask.query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
            let headers = ask.headers.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>();
            let asked = asked(&format!("{} {}?{query}{headers}", ask.method, ask.path), ask.client);
            let routes = &compiled[usize::from(ask.port - 80)];
            let selected = match routes.select(&asked.request()) {
                Selected::Implicit => None,
                Selected::Unmatched => Some(None),
                Selected::Rule { rule, by } => Some(Some((rule.key.clone(), by.clone()))),
            };
            prop_assert_eq!(selected, naive(&rules, &ask), "{:?}", ask);
        }
    }

    /// Names that TLS clients ask for.
    #[test]
    fn names_are_found_like_in_a_list(
        names in prop::collection::vec(prop::sample::select(vec!["*.a", "*.b.a", "a", "b.a", "c.b.a", ""]), 0..5),
        sni in prop::option::of(prop::sample::select(vec!["a", "b.a", "c.a", "c.b.a", "d.c.b.a", "b"]))
    ) {
        let of = |(index, name): (u32, &&str)| {
            let text = if name.is_empty() { String::new() } else { format!("sni:{name}") };
            Arc::new(rule(RouteKind::Tls, "r", index, vec![matching(&text)]))
        };
        let rules: Vec<Arc<Rule>> = (0..).zip(&names).map(of).collect();
        let score = |rule: &Arc<Rule>| match (&rule.matches[0].sni, sni) {
            (None, _) => Some(0),
            (Some(SniMatch::Exact(host)), Some(sni)) => (host.as_str() == sni).then_some(1000),
            (Some(SniMatch::Below(host)), Some(sni)) => sni.ends_with(&format!(".{host}")).then_some(host.as_str().len()),
            (Some(_), None) => None,
        };
        // The first of the best.
        let best = rules.iter().filter_map(|rule| Some((score(rule)?, Reverse(rule.key.index)))).max();
        let routes = Routes::of(&echo(), 80, &rules);
        let selected = match routes.select_connection(None, sni) {
            Selected::Implicit => { prop_assert!(rules.is_empty()); None }
            Selected::Unmatched => None,
            Selected::Rule { rule, .. } => Some(rule.key.index),
        };
        prop_assert_eq!(selected, best.map(|(_, index)| index.0));
    }
}

/// The order of fields is kept by what the other tests ask with.
#[test]
fn fields_of_one_name_are_joined_in_order() {
    let fields =
        Fields(vec![("a".into(), b"1".to_vec()), ("b".into(), b"x".to_vec()), ("a".into(), b"2".to_vec())]);
    let headers: &dyn model::l7::Headers = &fields;
    assert_eq!(headers.joined("a").as_deref(), Some(&b"1,2"[..]));
    assert_eq!(headers.joined("c"), None);
    assert_eq!(headers.first("a"), Some("1"));
}
