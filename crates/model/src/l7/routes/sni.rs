//! Connections to candidates, by the name that a TLS client asks for. TCP routes have one candidate that counts: the first.

use std::collections::HashMap;

use crate::Str;
use crate::l7::SniMatch;
use crate::l7::routes::order::Candidate;

#[derive(Debug, Default)]
pub(super) struct Names {
    candidates: Vec<Candidate>,
    exact: HashMap<Str, usize>,
    /// By what follows the wildcard.
    below: HashMap<Str, usize>,
    /// The first that asks for no name.
    any: Option<usize>,
}

impl Names {
    /// `candidates` are in order of precedence: of several for one name the first stays.
    pub(super) fn of(candidates: Vec<Candidate>) -> Self {
        let mut names = Self::default();
        for (place, candidate) in candidates.iter().enumerate() {
            match &candidate.by().sni {
                Some(SniMatch::Exact(host)) => {
                    names.exact.entry(host.as_str().into()).or_insert(place);
                }
                Some(SniMatch::Below(host)) => {
                    names.below.entry(host.as_str().into()).or_insert(place);
                }
                None => names.any = names.any.or(Some(place)),
            }
        }
        Self { candidates, ..names }
    }

    /// Exact names before wildcards, the longest of those first, then what asks for no name.
    pub(super) fn find(&self, sni: Option<&str>) -> Option<&Candidate> {
        let named = sni.map(str::to_ascii_lowercase).and_then(|sni| {
            let suffixes = sni.match_indices('.').map(|(dot, _)| &sni[dot + 1..]);
            let below = || suffixes.filter_map(|suffix| self.below.get(suffix)).next();
            self.exact.get(sni.as_str()).or_else(below).copied()
        });
        Some(&self.candidates[named.or(self.any)?])
    }
}
