//! Whether a policy matches a connection.
//!
//! Strings are compared, never interpreted. What a plaintext peer lacks (identity, namespace) satisfies no positive
//! condition, not even an empty one, and every negative one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Clause, Connection, Match, Policy, Rule, ServiceAccountMatch, StringMatch};
use crate::identity::Identity;

impl Policy {
    /// Whether one of its rules matches. Says nothing of scope, and takes dry-run policies like others.
    #[must_use]
    pub fn matches(&self, connection: &Connection) -> bool {
        self.rules.iter().any(|rule| rule.matches(self.action, connection))
    }
}

impl Rule {
    fn matches(&self, action: Action, connection: &Connection) -> bool {
        self.clauses.iter().all(|clause| clause.matches(action, connection))
    }
}

impl Clause {
    fn matches(&self, action: Action, connection: &Connection) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.matches(action, connection))
    }
}

impl Match {
    fn matches(&self, action: Action, connection: &Connection) -> bool {
        if self.unintelligible {
            return match action {
                Action::Allow => false,
                Action::Deny => true,
            };
        }
        if self.is_empty() {
            return false;
        }
        self.peer_matches(connection.peer.as_ref()) && self.addresses_match(connection)
    }

    fn peer_matches(&self, peer: Option<&Identity>) -> bool {
        let principal = |m: &StringMatch| peer.is_some_and(|id| m.matches(&id.parts()));
        let namespace = |m: &StringMatch| peer.is_some_and(|id| m.matches(&[&id.namespace]));
        let account = |m: &ServiceAccountMatch| {
            peer.is_some_and(|id| m.namespace == id.namespace && m.service_account == id.service_account)
        };
        holds(&self.principals, &self.not_principals, principal)
            && holds(&self.namespaces, &self.not_namespaces, namespace)
            && holds(&self.service_accounts, &self.not_service_accounts, account)
    }

    fn addresses_match(&self, connection: &Connection) -> bool {
        let client = connection.client.0.ip().to_canonical();
        let app = connection.destination_ip().to_canonical();
        let contains = |ip: IpAddr| move |block: &IpNet| block.contains(&ip);
        holds(&self.source_ips, &self.not_source_ips, contains(client))
            && holds(&self.destination_ips, &self.not_destination_ips, contains(app))
            && holds(&self.destination_ports, &self.not_destination_ports, |port| {
                *port == connection.app.0.port()
            })
    }

    /// Without any condition. Destructured, so that a condition that is added can't be forgotten here.
    fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
            service_accounts,
            not_service_accounts,
            unintelligible: _, // `matches` looks at it first.
        } = self;
        let strings = [namespaces, not_namespaces, principals, not_principals];
        let blocks = [source_ips, not_source_ips, destination_ips, not_destination_ips];
        let ports = [destination_ports, not_destination_ports];
        let accounts = [service_accounts, not_service_accounts];
        strings.iter().all(|list| list.is_empty())
            && blocks.iter().all(|list| list.is_empty())
            && ports.iter().all(|list| list.is_empty())
            && accounts.iter().all(|list| list.is_empty())
    }
}

/// Whether one entry of the positive list holds, where there is one, and none of the negative list does.
fn holds<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

impl StringMatch {
    /// Compares with the concatenation of `parts`, without building it.
    fn matches(&self, parts: &[&str]) -> bool {
        match self {
            Self::Exact(pattern) => {
                let rest = parts.iter().try_fold(&**pattern, |rest, part| rest.strip_prefix(part));
                rest == Some("")
            }
            Self::Prefix(pattern) => begins_with(parts, pattern),
            Self::Presence => true,
            Self::Suffix(pattern) => ends_with(parts, pattern),
        }
    }
}

fn begins_with(parts: &[&str], pattern: &str) -> bool {
    let mut rest = pattern;
    for part in parts {
        match rest.strip_prefix(part) {
            Some(shorter) => rest = shorter,
            // The pattern ends inside this part, or differs from it.
            None => return part.starts_with(rest),
        }
    }
    rest.is_empty()
}

fn ends_with(parts: &[&str], pattern: &str) -> bool {
    let mut rest = pattern;
    for part in parts.iter().rev() {
        match rest.strip_suffix(part) {
            Some(shorter) => rest = shorter,
            None => return part.ends_with(rest),
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Comparing piecewise is comparing the whole.
        #[test]
        fn pieces_compare_like_the_whole(parts in prop::collection::vec("[ab/]{0,3}", 1..5), pattern in "[ab/]{0,6}") {
            let whole = parts.concat();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let matches = |m: StringMatch| m.matches(&parts);
            prop_assert_eq!(matches(StringMatch::Exact(pattern.as_str().into())), whole == pattern);
            prop_assert_eq!(matches(StringMatch::Prefix(pattern.as_str().into())), whole.starts_with(&pattern));
            prop_assert_eq!(matches(StringMatch::Suffix(pattern.as_str().into())), whole.ends_with(&pattern));
        }
    }
}
