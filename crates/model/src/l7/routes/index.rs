//! Requests to candidates: a table of exact paths, one of gRPC services, one set of patterns, and a trie of prefixes.
//!
//! A candidate is known by its place in the order of precedence, so the smallest that matches wins. Each table yields
//! the places that its path allows in ascending order; what else a match asks for is checked as they come.

use std::cell::OnceCell;
use std::collections::HashMap;

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::Str;
use crate::l7::matching::{MAX_PATTERN_SIZE, whole};
use crate::l7::request::Request;
use crate::l7::routes::order::Candidate;
use crate::l7::routes::query::Query;
use crate::l7::{Match, PathMatch, TextMatch};

/// A candidate's place in the order of precedence.
type Place = usize;

#[derive(Debug, Default)]
pub(super) struct Index {
    candidates: Vec<Candidate>,
    /// Whose paths nobody knows: before all others.
    anywhere: Vec<Place>,
    /// By whole path. Nothing else that a path allows stands before these.
    exact: HashMap<Str, Vec<Place>>,
    /// gRPC calls by their service alone.
    services: HashMap<Str, Vec<Place>>,
    patterns: Patterns,
    /// Everything that allows what is below a path. Nothing else stands after one of these, and deeper nodes stand before
    /// those above them.
    prefixes: Node,
}

impl Index {
    /// `candidates` are in order of precedence.
    pub(super) fn of(candidates: Vec<Candidate>) -> Self {
        let mut index = Self::default();
        let mut patterns = Vec::new();
        for (place, candidate) in candidates.iter().enumerate() {
            match &candidate.by().path {
                PathMatch::Unintelligible => index.anywhere.push(place),
                PathMatch::Exact(path) => index.exact.entry(path.as_str().into()).or_default().push(place),
                PathMatch::Grpc { service, method } => match (service, method) {
                    (Some(TextMatch::Exact(service)), Some(TextMatch::Exact(method))) => {
                        index.exact.entry(format!("/{service}/{method}").into()).or_default().push(place);
                    }
                    (Some(TextMatch::Exact(service)), None) => {
                        index.services.entry(Str::clone(service)).or_default().push(place);
                    }
                    (None, None) => index.prefixes.insert("", place),
                    (service, method) => {
                        let parts = (part(service.as_ref()), part(method.as_ref()));
                        patterns.push((place, format!("/(?:{})/(?:{})", parts.0, parts.1)));
                    }
                },
                PathMatch::Regex(pattern) => patterns.push((place, pattern.as_str().to_owned())),
                PathMatch::Prefix(prefix) => index.prefixes.insert(prefix.trimmed(), place),
            }
        }
        index.patterns = Patterns::of(patterns);
        Self { candidates, ..index }
    }

    /// The first candidate that matches.
    pub(super) fn find(&self, request: &Request<'_>) -> Option<&Candidate> {
        let query = OnceCell::new();
        let matches = |place: &Place| self.candidates[*place].by().holds(request, &query);
        let exact = self.exact.get(request.path).into_iter().flatten();
        if let Some(place) = self.anywhere.iter().chain(exact).find(|place| matches(place)) {
            return Some(&self.candidates[*place]);
        }
        let service = grpc_parts(request.path).and_then(|(service, _)| self.services.get(service));
        let hits = self.patterns.hits(request.path);
        let mut listed = Merged { a: service.map_or(&[], Vec::as_slice), b: &hits };
        let mut first = |node: &[Place]| node.iter().copied().find(matches);
        let below = || self.prefixes.find(Some(request.path.strip_prefix('/')?), &mut first);
        Some(&self.candidates[listed.find(matches).or_else(below)?])
    }
}

/// The pattern of one half of a gRPC path.
fn part(text: Option<&TextMatch>) -> String {
    match text {
        Some(TextMatch::Exact(text)) => regex::escape(text),
        Some(TextMatch::Regex(pattern)) => pattern.as_str().to_owned(),
        None => "[^/]+".to_owned(),
    }
}

/// Service and method of a gRPC call's path.
fn grpc_parts(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

impl Match {
    /// Whether all of its conditions hold. The tables only say where it is worth asking.
    fn holds<'a>(&self, request: &Request<'a>, query: &OnceCell<Query<'a>>) -> bool {
        let Self { path, headers, query: parameters, method, sni: _, unintelligible: _ } = self;
        method.as_deref().is_none_or(|method| method == request.method)
            && path.holds(request.path)
            && headers.iter().all(|header| header.holds(request.headers))
            && parameters.iter().all(|parameter| {
                let query = query.get_or_init(|| Query::of(request.query.unwrap_or_default()));
                query.first(&parameter.name).is_some_and(|value| parameter.value.matches(value))
            })
    }
}

impl PathMatch {
    /// Whether it holds for a path that its table led here with: tables of whole paths and prefixes leave nothing to ask.
    fn holds(&self, path: &str) -> bool {
        let matches = |text: &Option<TextMatch>, part: &str| {
            text.as_ref().is_none_or(|text| text.matches(part.as_bytes()))
        };
        match self {
            Self::Unintelligible | Self::Exact(_) | Self::Prefix(_) => true,
            Self::Grpc { service, method } => {
                grpc_parts(path).is_some_and(|parts| matches(service, parts.0) && matches(method, parts.1))
            }
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

/// All patterns, asked at once.
#[derive(Debug, Default)]
struct Patterns {
    places: Vec<Place>,
    /// `None` if they are too large together: then each may match.
    set: Option<RegexSet>,
}

impl Patterns {
    /// `patterns` are in order of precedence.
    fn of(patterns: Vec<(Place, String)>) -> Self {
        let (places, sources): (Vec<_>, Vec<_>) = patterns.into_iter().unzip();
        let set = RegexSetBuilder::new(sources.iter().map(|source| whole(source)))
            .unicode(false)
            .dot_matches_new_line(true)
            .size_limit(MAX_PATTERN_SIZE.saturating_mul(sources.len()))
            .build();
        Self { places, set: set.ok() }
    }

    /// The places whose pattern may match `path`, ascending.
    fn hits(&self, path: &str) -> Vec<Place> {
        match &self.set {
            _ if self.places.is_empty() => Vec::new(),
            Some(set) => set.matches(path.as_bytes()).iter().map(|pattern| self.places[pattern]).collect(),
            None => self.places.clone(),
        }
    }
}

/// Two ascending lists as one.
struct Merged<'a> {
    a: &'a [Place],
    b: &'a [Place],
}

impl Iterator for Merged<'_> {
    type Item = Place;

    fn next(&mut self) -> Option<Place> {
        let a_first = match (self.a.first(), self.b.first()) {
            (Some(a), Some(b)) => a < b,
            (a, _) => a.is_some(),
        };
        let list = if a_first { &mut self.a } else { &mut self.b };
        let (first, rest) = list.split_first()?;
        *list = rest;
        Some(*first)
    }
}

/// The prefixes that continue with one segment.
#[derive(Debug, Default)]
struct Node {
    /// Those that end here, ascending.
    here: Vec<Place>,
    below: HashMap<Str, Node>,
}

impl Node {
    /// `prefix` has no slash at its end.
    fn insert(&mut self, prefix: &str, place: Place) {
        let node = prefix
            .split('/')
            .skip(1)
            .fold(self, |node, segment| node.below.entry(segment.into()).or_default());
        node.here.push(place);
    }

    /// Asks the nodes along `rest` (what follows a slash, if anything), the deepest first, until one has an answer.
    fn find(&self, rest: Option<&str>, visit: &mut impl FnMut(&[Place]) -> Option<Place>) -> Option<Place> {
        let deeper = rest.and_then(|rest| {
            let (segment, after) =
                rest.split_once('/').map_or((rest, None), |(head, tail)| (head, Some(tail)));
            self.below.get(segment)?.find(after, visit)
        });
        deeper.or_else(|| visit(&self.here))
    }
}
