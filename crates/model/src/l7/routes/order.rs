//! Precedence: which of several matches is asked first.
//!
//! The Gateway API's order (HTTPRouteRule, GRPCRouteRule), and ours where it leaves one open: patterns stand after exact
//! paths and before prefixes, longer ones first.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::l7::{Match, PathMatch, Rule, RuleKey, SniMatch, TextMatch};

/// One match of a rule.
#[derive(Debug)]
pub(super) struct Candidate {
    rule: Arc<Rule>,
    place: usize,
}

impl Candidate {
    pub(super) fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    pub(super) fn by(&self) -> &Match {
        &self.rule.matches[self.place]
    }
}

/// All matches of `rules`, the one to be asked first first.
pub(super) fn candidates(rules: &[Arc<Rule>]) -> Vec<Candidate> {
    let all = |rule: &Arc<Rule>| -> Vec<Candidate> {
        (0..rule.matches.len()).map(|place| Candidate { rule: Arc::clone(rule), place }).collect()
    };
    let mut candidates: Vec<Candidate> = rules.iter().flat_map(all).collect();
    candidates.sort_by(|a, b| precedence(a, b).then(a.place.cmp(&b.place)));
    candidates
}

fn precedence(a: &Candidate, b: &Candidate) -> Ordering {
    let conditions = |c: &Candidate| {
        let Match { path, headers, query, method, sni, unintelligible } = c.by();
        let counts = (method.is_some(), headers.len(), query.len());
        Reverse((name_rank(sni.as_ref()), path_rank(path), *unintelligible, counts))
    };
    let age = |c: &Candidate| c.rule.created;
    conditions(a)
        .cmp(&conditions(b))
        .then(age(a).cmp(&age(b)))
        .then_with(|| by_name(&a.rule.key, &b.rule.key))
}

/// Alphabetical by `namespace/name`, then by the place in the object.
fn by_name(a: &RuleKey, b: &RuleKey) -> Ordering {
    fn letters(key: &RuleKey) -> impl Iterator<Item = u8> {
        key.namespace.bytes().chain(*b"/").chain(key.name.bytes())
    }
    letters(a).cmp(letters(b)).then(a.index.cmp(&b.index))
}

/// Exact names before wildcards, and those the longer first.
fn name_rank(sni: Option<&SniMatch>) -> (u8, usize) {
    match sni {
        Some(SniMatch::Exact(host)) => (2, host.as_str().len()),
        Some(SniMatch::Below(host)) => (1, host.as_str().len()),
        None => (0, 0),
    }
}

/// A class, and what counts within it: a length, and for gRPC the method's class and length.
type PathRank = (u8, usize, u8, usize);

fn path_rank(path: &PathMatch) -> PathRank {
    match path {
        PathMatch::Unintelligible => (4, 0, 0, 0),
        PathMatch::Exact(path) => (3, path.as_str().len(), 0, 0),
        PathMatch::Grpc { service, method } => grpc_rank(service.as_ref(), method.as_ref()),
        PathMatch::Regex(pattern) => (1, pattern.as_str().len(), 0, 0),
        PathMatch::Prefix(prefix) => (0, prefix.trimmed().len(), 0, 0),
    }
}

/// The most letters of the service, then of the method; what is exact before patterns.
fn grpc_rank(service: Option<&TextMatch>, method: Option<&TextMatch>) -> PathRank {
    let (method_class, method_length) = text_rank(method);
    match (text_rank(service), method) {
        // Such a match is one exact path, and is looked up like one.
        ((2, length), Some(TextMatch::Exact(method))) => (3, length + method.len() + 2, 0, 0),
        // Where only the method is asked for: among patterns, which it is looked up with.
        ((0, _), Some(_)) => (1, 0, method_class, method_length),
        ((class, length), _) => (class, length, method_class, method_length),
    }
}

fn text_rank(text: Option<&TextMatch>) -> (u8, usize) {
    match text {
        Some(TextMatch::Exact(text)) => (2, text.len()),
        Some(TextMatch::Regex(pattern)) => (1, pattern.as_str().len()),
        None => (0, 0),
    }
}
