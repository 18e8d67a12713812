//! What several traffic policies say together. To be asked when policies or rules change, not for each request.

use std::cmp::Ordering;

use crate::Str;
use crate::l7::balancing::Balancing;
use crate::l7::fault::{Fault, Policy, PolicyName, PolicyTarget};
use crate::l7::{Moment, RuleKey};
use crate::service::ServiceName;

/// What a policy may be about, from the point of view of one rule of one service.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The Gateway of the waypoint: namespace and name.
    pub waypoint: (&'a str, &'a str),
    /// The service that is asked.
    pub service: &'a ServiceName,
    /// The rule that decides; `None` where no route is about the service.
    pub rule: Option<&'a RuleKey>,
}

/// Each setting from the narrowest policy that has it, with that policy's name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings<'a> {
    /// What to break on purpose.
    pub fault: Option<(&'a PolicyName, &'a Fault)>,
    /// How endpoints are chosen.
    pub balancing: Option<(&'a PolicyName, &'a Balancing)>,
}

impl<'a> Settings<'a> {
    /// What `policies`, in any order, say about a place.
    #[must_use]
    pub fn at(place: Place<'_>, policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let with_width = |policy: &'a Policy| Some((width(&policy.target, place)?, policy));
        let mut concerned: Vec<_> = policies.into_iter().filter_map(with_width).collect();
        concerned.sort_by(|(a_width, a), (b_width, b)| a_width.cmp(b_width).then_with(|| earlier(a, b)));
        let first = concerned.iter().map(|(_, policy)| *policy);
        Self {
            fault: first.clone().find_map(|policy| Some((&policy.name, policy.fault.as_ref()?))),
            balancing: first.clone().find_map(|policy| Some((&policy.name, policy.balancing.as_ref()?))),
        }
    }
}

/// The oldest, then the first by name: whichever order they arrived in, all replicas agree.
fn earlier(a: &Policy, b: &Policy) -> Ordering {
    let key = |policy: &Policy| -> (Moment, PolicyName) { (policy.created, policy.name.clone()) };
    key(a).cmp(&key(b))
}

/// How much a target takes in, from 0 for a rule; `None` where the place is not in it.
fn width(target: &PolicyTarget, Place { waypoint, service, rule }: Place<'_>) -> Option<u8> {
    let is = |own: &Str, asked: &str| **own == *asked;
    let (concerned, width) = match target {
        PolicyTarget::Rule(key) => (rule == Some(key), 0),
        PolicyTarget::Route { kind, namespace, name } => {
            let of =
                |rule: &RuleKey| rule.kind == *kind && rule.namespace == *namespace && rule.name == *name;
            (rule.is_some_and(of), 1)
        }
        PolicyTarget::Service(name) => (name == service, 2),
        PolicyTarget::Waypoint { namespace, name } => (is(namespace, waypoint.0) && is(name, waypoint.1), 3),
    };
    concerned.then_some(width)
}
