//! The order of evaluation, and nothing else: what is in scope comes from the store, what matches from `matching`.
//!
//! Every doubt ends in a denial: a policy that is named and not known, or known and not enforceable, may be the one that
//! forbids this connection.

use std::sync::Arc;

use super::{Action, Allowed, Connection, Denial, Permit, Policy, PolicyName, Verdict};
use crate::Str;

/// Something in scope of a workload.
#[derive(Clone, Copy)]
pub(crate) enum Guard<'a> {
    /// A policy.
    Policy(&'a Arc<Policy>),
    /// A policy that was refused as malformed, and why.
    Unenforceable(&'a PolicyName, &'a Str),
    /// A policy that the workload names and nobody has sent.
    Unknown(&'a PolicyName),
}

/// Judges one connection. A matching DENY is named before any other reason, because it is the most certain one.
pub(crate) fn evaluate<'a>(
    guards: impl Iterator<Item = Guard<'a>> + Clone,
    connection: Connection,
) -> Verdict {
    // Most workloads are guarded by nothing, and what follows goes through the guards several times.
    if guards.clone().next().is_none() {
        return Verdict { enforced: Ok(Permit { connection, rule: Allowed::NoPolicy }), dry_run: None };
    }
    let enforced = match denial(guards.clone(), &connection, &|policy| !policy.dry_run) {
        Err(denial) => return Verdict { enforced: Err(denial), dry_run: None },
        Ok(rule) => rule,
    };
    let dry_run = match guards.clone().any(|guard| matches!(guard, Guard::Policy(policy) if policy.dry_run)) {
        true => denial(guards, &connection, &|_| true).err(),
        false => None,
    };
    Verdict { enforced: Ok(Permit { connection, rule: enforced }), dry_run }
}

/// The outcome for those policies that `counts` admits.
fn denial<'a>(
    guards: impl Iterator<Item = Guard<'a>> + Clone,
    connection: &Connection,
    counts: &dyn Fn(&Policy) -> bool,
) -> Result<Allowed, Denial> {
    let policies = |action| {
        guards.clone().filter_map(move |guard| match guard {
            Guard::Policy(policy) if policy.action == action && counts(policy) => Some(policy),
            Guard::Policy(_) | Guard::Unenforceable(..) | Guard::Unknown(_) => None,
        })
    };
    if let Some(policy) = policies(Action::Deny).find(|policy| policy.matches(connection)) {
        return Err(Denial::ByPolicy(policy.id.clone()));
    }
    for guard in guards.clone() {
        match guard {
            Guard::Policy(_) => {}
            Guard::Unenforceable(name, reason) => {
                return Err(Denial::PolicyUnenforceable(name.clone(), reason.clone()));
            }
            Guard::Unknown(name) => return Err(Denial::PolicyUnknown(name.clone())),
        }
    }
    let mut allows = policies(Action::Allow).peekable();
    if allows.peek().is_none() {
        return Ok(Allowed::NoPolicy);
    }
    match allows.find(|policy| policy.matches(connection)) {
        Some(policy) => Ok(Allowed::By(policy.id.clone())),
        None => Err(Denial::NotAllowed(policies(Action::Allow).map(|policy| policy.id.clone()).collect())),
    }
}
