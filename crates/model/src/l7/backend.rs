//! Where a rule sends requests, and the choice among several by weight.

use crate::Str;
use crate::l7::Rule;
use crate::l7::filter::Filter;
use crate::service::ServiceName;

/// One of a rule's backends.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its share, relative to the others'. 0 gets nothing.
    pub weight: u32,
    /// What it is.
    pub target: BackendTarget,
    /// What to do with requests that go to it, after the rule's own filters.
    pub filters: Vec<Filter>,
}

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendTarget {
    /// Something that can't be sent to, and why. It keeps its share, which is answered with 500 (gRPC: UNAVAILABLE).
    Invalid(Str),
    /// A service.
    Service {
        /// Its name. Its own routes are not applied.
        name: ServiceName,
        /// The service's port.
        port: u16,
    },
}

/// A share of the requests: `numerator` of `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// Every one.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// A share between none and all; `None` where the parts make no such thing.
    #[must_use]
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (denominator > 0 && numerator <= denominator).then_some(Self { numerator, denominator })
    }

    /// The part.
    #[must_use]
    pub fn numerator(self) -> u32 {
        self.numerator
    }

    /// The whole.
    #[must_use]
    pub fn denominator(self) -> u32 {
        self.denominator
    }

    /// Whether a request that drew `random`, uniform over all of `u64`, belongs to the share.
    #[must_use]
    pub fn takes(self, random: u64) -> bool {
        below(random, self.denominator.into()) < self.numerator.into()
    }
}

impl Rule {
    /// The backend for a request that drew `random`, uniform over all of `u64`. `None` where none has a weight: the request
    /// is answered with 500 (gRPC: UNIMPLEMENTED), unless a filter has an answer.
    #[must_use]
    pub fn backend(&self, random: u64) -> Option<&Backend> {
        drawn(self.backends.iter(), random)
    }
}

/// One of these, by weight, for who drew `random`, uniform over all of `u64`. `None` where none has a weight.
pub fn drawn<'a>(
    mut backends: impl Iterator<Item = &'a Backend> + Clone,
    random: u64,
) -> Option<&'a Backend> {
    let total = backends.clone().map(|backend| u64::from(backend.weight)).sum();
    let mut left = below(random, total);
    backends.find(|backend| {
        let weight = u64::from(backend.weight);
        let taken = left < weight;
        left = left.saturating_sub(weight);
        taken
    })
}

/// A number below `limit`, from one that is uniform over all of `u64`. The bias is less than `limit` / 2^64.
fn below(random: u64, limit: u64) -> u64 {
    let scaled = (u128::from(random) * u128::from(limit)) >> 64;
    u64::try_from(scaled).expect("a fraction of a number below 2^64")
}
