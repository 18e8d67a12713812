//! `istio.security.Authorization` to and from `model::policy::Policy`.
//!
//! A condition that is malformed or not known marks its match `unintelligible` and is never dropped: dropping one would
//! make an ALLOW wider. What generated types can't show (fields they do not know) is found by `unknown`.

use ipnet::IpNet;
use model::policy::{
    Action, Clause, Match, Policy, PolicyName, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};

use super::{block, ip_bytes, known, required};
use crate::invalid::{Invalid, InvalidField, Problem};
use crate::security as wire;
use wire::string_match::MatchType;

impl TryFrom<wire::Authorization> for Policy {
    type Error = Invalid;

    fn try_from(authorization: wire::Authorization) -> Result<Self, Invalid> {
        let wire::Authorization { name, namespace, scope, action, rules, dry_run, extensions } =
            authorization;
        if !extensions.is_empty() {
            return Err(Invalid::UnknownField {
                message: "istio.security.Authorization",
                number: EXTENSIONS,
            });
        }
        Ok(Self {
            id: policy_name(namespace, name)?,
            scope: known(scope).map(model_scope).map_err(|p| p.of("scope"))?,
            action: known(action).map(model_action).map_err(|p| p.of("action"))?,
            rules: rules.into_iter().map(Into::into).collect(),
            dry_run,
        })
    }
}

/// The field number of `Authorization.extensions`. No extension is defined, and one could be a further condition.
const EXTENSIONS: u32 = 7;

impl From<&Policy> for wire::Authorization {
    fn from(policy: &Policy) -> Self {
        let Policy { id: PolicyName { namespace, name }, scope, action, rules, dry_run } = policy;
        Self {
            name: name.to_string(),
            namespace: namespace.to_string(),
            scope: wire_scope(*scope).into(),
            action: wire_action(*action).into(),
            rules: rules.iter().map(|rule| wire_rule(rule, *action)).collect(),
            dry_run: *dry_run,
            extensions: Vec::new(),
        }
    }
}

fn policy_name(namespace: String, name: String) -> Result<PolicyName, InvalidField> {
    Ok(PolicyName {
        namespace: required(namespace).map_err(|p| p.of("namespace"))?,
        name: required(name).map_err(|p| p.of("name"))?,
    })
}

fn model_scope(scope: wire::Scope) -> PolicyScope {
    match scope {
        wire::Scope::Global => PolicyScope::Global,
        wire::Scope::Namespace => PolicyScope::Namespace,
        wire::Scope::WorkloadSelector => PolicyScope::Selector,
    }
}

fn wire_scope(scope: PolicyScope) -> wire::Scope {
    match scope {
        PolicyScope::Global => wire::Scope::Global,
        PolicyScope::Namespace => wire::Scope::Namespace,
        PolicyScope::Selector => wire::Scope::WorkloadSelector,
    }
}

fn model_action(action: wire::Action) -> Action {
    match action {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    }
}

fn wire_action(action: Action) -> wire::Action {
    match action {
        Action::Allow => wire::Action::Allow,
        Action::Deny => wire::Action::Deny,
    }
}

impl From<wire::Rule> for Rule {
    fn from(wire::Rule { clauses }: wire::Rule) -> Self {
        Self { clauses: clauses.into_iter().map(Into::into).collect() }
    }
}

fn wire_rule(Rule { clauses }: &Rule, action: Action) -> wire::Rule {
    wire::Rule { clauses: clauses.iter().map(|clause| wire_clause(clause, action)).collect() }
}

impl From<wire::Clause> for Clause {
    fn from(wire::Clause { matches }: wire::Clause) -> Self {
        Self { matches: matches.into_iter().map(Into::into).collect() }
    }
}

fn wire_clause(Clause { matches }: &Clause, action: Action) -> wire::Clause {
    wire::Clause { matches: matches.iter().map(|m| wire_match(m, action)).collect() }
}

impl From<wire::Match> for Match {
    fn from(wire_match: wire::Match) -> Self {
        let wire::Match {
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
            extensions,
        } = wire_match;
        let mut understood = extensions.is_empty();
        Self {
            namespaces: list(namespaces, string, &mut understood),
            not_namespaces: list(not_namespaces, string, &mut understood),
            principals: list(principals, string, &mut understood),
            not_principals: list(not_principals, string, &mut understood),
            source_ips: list(source_ips, address, &mut understood),
            not_source_ips: list(not_source_ips, address, &mut understood),
            destination_ips: list(destination_ips, address, &mut understood),
            not_destination_ips: list(not_destination_ips, address, &mut understood),
            destination_ports: list(destination_ports, policy_port, &mut understood),
            not_destination_ports: list(not_destination_ports, policy_port, &mut understood),
            service_accounts: list(service_accounts, service_account, &mut understood),
            not_service_accounts: list(not_service_accounts, service_account, &mut understood),
            unintelligible: !understood,
        }
    }
}

/// Converts what can be converted, and notes when something could not.
fn list<W, M>(items: Vec<W>, convert: fn(W) -> Option<M>, understood: &mut bool) -> Vec<M> {
    let count = items.len();
    let converted: Vec<M> = items.into_iter().filter_map(convert).collect();
    *understood &= converted.len() == count;
    converted
}

fn string(wire::StringMatch { match_type }: wire::StringMatch) -> Option<StringMatch> {
    Some(match match_type? {
        MatchType::Exact(text) => StringMatch::Exact(text.into()),
        MatchType::Prefix(text) => StringMatch::Prefix(text.into()),
        MatchType::Suffix(text) => StringMatch::Suffix(text.into()),
        MatchType::Presence(()) => StringMatch::Presence,
    })
}

fn address(wire::Address { address, length }: wire::Address) -> Option<IpNet> {
    block(&address, Some(length)).ok()
}

fn policy_port(value: u32) -> Option<u16> {
    value.try_into().ok()
}

fn service_account(account: wire::ServiceAccountMatch) -> Option<ServiceAccountMatch> {
    let wire::ServiceAccountMatch { namespace, service_account } = account;
    let set = |value| -> Result<_, Problem> { required(value) };
    Some(ServiceAccountMatch { namespace: set(namespace).ok()?, service_account: set(service_account).ok()? })
}

/// An unintelligible match is sent so that a proxy that drops what it can't read still allows nothing more: for an ALLOW
/// nothing but the unreadable condition is left, which matches nothing; for a DENY another condition always stands.
fn wire_match(m: &Match, action: Action) -> wire::Match {
    if !m.unintelligible {
        return wire_conditions(m);
    }
    let mut sent = match action {
        Action::Allow => wire::Match::default(),
        Action::Deny => wire_conditions(m),
    };
    if action == Action::Deny && sent == wire::Match::default() {
        sent.not_destination_ports.push(NO_PORT);
    }
    sent.principals.push(wire::StringMatch { match_type: None });
    sent
}

/// No connection is ever to this port, so "not this port" is a condition that always holds.
const NO_PORT: u32 = 0;

fn wire_conditions(m: &Match) -> wire::Match {
    let Match {
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
        unintelligible: _, // `wire_match` answers for it.
    } = m;
    let strings = |list: &[StringMatch]| list.iter().map(wire_string).collect();
    let blocks = |list: &[IpNet]| list.iter().map(wire_address).collect();
    let ports = |list: &[u16]| list.iter().map(|port| u32::from(*port)).collect();
    let accounts = |list: &[ServiceAccountMatch]| list.iter().map(wire_service_account).collect();
    wire::Match {
        namespaces: strings(namespaces),
        not_namespaces: strings(not_namespaces),
        principals: strings(principals),
        not_principals: strings(not_principals),
        source_ips: blocks(source_ips),
        not_source_ips: blocks(not_source_ips),
        destination_ips: blocks(destination_ips),
        not_destination_ips: blocks(not_destination_ips),
        destination_ports: ports(destination_ports),
        not_destination_ports: ports(not_destination_ports),
        service_accounts: accounts(service_accounts),
        not_service_accounts: accounts(not_service_accounts),
        extensions: Vec::new(),
    }
}

fn wire_string(string: &StringMatch) -> wire::StringMatch {
    let match_type = match string {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
    };
    wire::StringMatch { match_type: Some(match_type) }
}

fn wire_address(block: &IpNet) -> wire::Address {
    wire::Address { address: ip_bytes(block.addr()), length: u32::from(block.prefix_len()) }
}

fn wire_service_account(account: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    let ServiceAccountMatch { namespace, service_account } = account;
    wire::ServiceAccountMatch {
        namespace: namespace.to_string(),
        service_account: service_account.to_string(),
    }
}
