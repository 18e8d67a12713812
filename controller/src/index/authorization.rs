//! AuthorizationPolicy in, L4 policy out.
//!
//! What a node proxy can't see (HTTP, JWT) or can't understand never widens access: in an ALLOW policy the rule or
//! match that needs it is left out, in a DENY policy the condition counts as met. Owns no attachment to workloads.

use std::net::IpAddr;

use ipnet::IpNet;
use model::policy::{
    Action, Clause, Match, Policy, PolicyName, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};

use super::finding::{Finding, Reason};
use crate::source::objects::{
    AuthorizationPolicy, AuthorizationPolicySpec, Labels, Operation, PolicyAction, PolicyRule, Source, When,
};

const DRY_RUN: &str = "istio.io/dry-run";

/// The policy that node proxies enforce, if any, and what there is to say about it.
pub(crate) fn convert(object: &AuthorizationPolicy, root_namespace: &str) -> (Option<Policy>, Vec<Finding>) {
    let action = match action(object) {
        Ok(action) => action,
        Err(message) => return (None, vec![Finding::refused(Reason::UnsupportedValue, message)]),
    };
    let mut converter = Converter { namespace: &object.metadata.namespace, action, remarks: Vec::new() };
    let rules =
        object.spec.rules.iter().enumerate().filter_map(|(at, rule)| converter.rule(at, rule)).collect();
    let scope = match self::selector(object) {
        Some(_) => PolicyScope::Selector,
        None if object.metadata.namespace == root_namespace => PolicyScope::Global,
        None => PolicyScope::Namespace,
    };
    let dry_run = object.metadata.annotations.get(DRY_RUN).is_some_and(|value| value == "true");
    let policy = Policy { id: id(object), scope, action, rules, dry_run };
    let mut findings = converter.remarks;
    if findings.is_empty() {
        findings.push(Finding::accepted("enforced by node proxies"));
    }
    (Some(policy), findings)
}

/// What the mesh calls a policy.
pub(crate) fn id(object: &AuthorizationPolicy) -> PolicyName {
    let metadata = &object.metadata;
    PolicyName { namespace: metadata.namespace.as_str().into(), name: metadata.name.as_str().into() }
}

/// Whether node proxies get the policy at all.
pub(crate) fn is_enforced(object: &AuthorizationPolicy) -> bool {
    action(object).is_ok()
}

/// What node proxies do with a match, or why they never get the policy.
fn action(object: &AuthorizationPolicy) -> Result<Action, String> {
    let AuthorizationPolicySpec { selector: _, target_ref, target_refs, rules: _, action, provider: _ } =
        &object.spec;
    if target_ref.is_some() || !target_refs.is_empty() {
        let what =
            target_ref.iter().chain(target_refs).map(|target| format!("{} {}", target.kind, target.name));
        return Err(format!(
            "attached to {} by targetRefs: only a waypoint enforces that, node proxies never see it; use a selector, \
             or deploy a waypoint for the target",
            what.collect::<Vec<_>>().join(", ")
        ));
    }
    match action {
        PolicyAction::Allow => Ok(Action::Allow),
        PolicyAction::Deny => Ok(Action::Deny),
        PolicyAction::Audit => Err("node proxies have no AUDIT action; use ALLOW or DENY".into()),
        PolicyAction::Custom => {
            Err("node proxies have no CUSTOM action; attach the policy to a waypoint by targetRefs".into())
        }
    }
}

/// The selector, unless it is empty and so selects by namespace.
pub(crate) fn selector(object: &AuthorizationPolicy) -> Option<&Labels> {
    object.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

struct Converter<'a> {
    namespace: &'a str,
    action: Action,
    remarks: Vec<Finding>,
}

/// One source, operation or condition, on its way to a [`Match`].
#[derive(Default)]
struct Draft {
    matches: Match,
    /// Values that can't be understood; their whole list is left out of `matches`.
    invalid: Vec<String>,
    /// Conditions that need the application's protocol.
    unseen: Vec<&'static str>,
}

impl Converter<'_> {
    /// `None` when the rule can't be part of the policy without widening access.
    fn rule(&mut self, at: usize, rule: &PolicyRule) -> Option<Rule> {
        let PolicyRule { from, to, when } = rule;
        let groups = [
            to.iter().map(|to| operation(&to.operation)).collect::<Vec<_>>(),
            from.iter().map(|from| source(&from.source, self.namespace)).collect(),
        ];
        let conditions = when.iter().map(|when| vec![condition(when)]);
        let mut clauses = Vec::new();
        for drafts in groups.into_iter().chain(conditions).filter(|drafts| !drafts.is_empty()) {
            match self.action {
                Action::Allow => clauses.push(self.allow_clause(at, drafts)?),
                Action::Deny => clauses.extend(self.deny_clause(at, drafts)),
            }
        }
        Some(Rule { clauses })
    }

    /// `None` when the clause needs what node proxies can't see: then the rule allows nothing.
    fn allow_clause(&mut self, at: usize, drafts: Vec<Draft>) -> Option<Clause> {
        if let Some(draft) = drafts.iter().find(|draft| !draft.unseen.is_empty()) {
            self.remark(
                at,
                Reason::UnsupportedValue,
                format!("{} needs a waypoint; without one the rule allows nothing", draft.unseen.join(", ")),
            );
            return None;
        }
        let matches = drafts.into_iter().map(|draft| {
            if draft.invalid.is_empty() {
                return draft.matches;
            }
            self.remark(
                at,
                Reason::Invalid,
                format!("{}: this part of the rule allows nothing", draft.invalid.join("; ")),
            );
            // No other condition either, so that a proxy that does not know the mark matches nothing too.
            Match { unintelligible: true, ..Match::default() }
        });
        Some(Clause { matches: matches.collect() })
    }

    /// `None` when one of the alternatives has no condition left: then the clause counts as met.
    fn deny_clause(&mut self, at: usize, drafts: Vec<Draft>) -> Option<Clause> {
        for draft in &drafts {
            if !draft.unseen.is_empty() {
                self.remark(
                    at,
                    Reason::UnsupportedValue,
                    format!(
                        "{} needs a waypoint; without one it counts as met, so more is denied than written",
                        draft.unseen.join(", ")
                    ),
                );
            }
            if !draft.invalid.is_empty() {
                self.remark(
                    at,
                    Reason::Invalid,
                    format!("{}: counts as met, so more is denied than written", draft.invalid.join("; ")),
                );
            }
        }
        let matches: Vec<_> = drafts.into_iter().map(|draft| draft.matches).collect();
        (!matches.contains(&Match::default())).then_some(Clause { matches })
    }

    fn remark(&mut self, at: usize, reason: Reason, message: String) {
        self.remarks.push(Finding::partial(reason, format!("rules[{at}]: {message}")));
    }
}

fn operation(operation: &Operation) -> Draft {
    let Operation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = operation;
    let mut draft = Draft::default();
    draft.matches.destination_ports = draft.ports(ports);
    draft.matches.not_destination_ports = draft.ports(not_ports);
    draft.unseen([
        ("hosts", hosts),
        ("notHosts", not_hosts),
        ("methods", methods),
        ("notMethods", not_methods),
        ("paths", paths),
        ("notPaths", not_paths),
    ]);
    draft
}

fn source(source: &Source, policy_namespace: &str) -> Draft {
    let Source {
        principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
        service_accounts,
        not_service_accounts,
    } = source;
    let mut draft = Draft::default();
    draft.matches.principals = strings(principals);
    draft.matches.not_principals = strings(not_principals);
    draft.matches.namespaces = strings(namespaces);
    draft.matches.not_namespaces = strings(not_namespaces);
    draft.matches.source_ips = draft.blocks(ip_blocks);
    draft.matches.not_source_ips = draft.blocks(not_ip_blocks);
    draft.matches.service_accounts = accounts(service_accounts, policy_namespace);
    draft.matches.not_service_accounts = accounts(not_service_accounts, policy_namespace);
    draft.unseen([
        ("requestPrincipals", request_principals),
        ("notRequestPrincipals", not_request_principals),
        ("remoteIpBlocks", remote_ip_blocks),
        ("notRemoteIpBlocks", not_remote_ip_blocks),
    ]);
    draft
}

fn condition(when: &When) -> Draft {
    let When { key, values, not_values } = when;
    let mut draft = Draft::default();
    if values.is_empty() && not_values.is_empty() {
        draft.invalid.push(format!("condition on {key:?} has neither values nor notValues"));
    }
    match key.as_str() {
        "source.ip" => {
            draft.matches.source_ips = draft.blocks(values);
            draft.matches.not_source_ips = draft.blocks(not_values);
        }
        "source.namespace" => {
            draft.matches.namespaces = strings(values);
            draft.matches.not_namespaces = strings(not_values);
        }
        "source.principal" => {
            draft.matches.principals = strings(values);
            draft.matches.not_principals = strings(not_values);
        }
        "destination.ip" => {
            draft.matches.destination_ips = draft.blocks(values);
            draft.matches.not_destination_ips = draft.blocks(not_values);
        }
        "destination.port" => {
            draft.matches.destination_ports = draft.ports(values);
            draft.matches.not_destination_ports = draft.ports(not_values);
        }
        _ => draft.unseen.push("a condition other than source.ip, source.namespace, source.principal, destination.ip and destination.port"),
    }
    draft
}

impl Draft {
    fn unseen<const N: usize>(&mut self, lists: [(&'static str, &Vec<String>); N]) {
        self.unseen.extend(lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(name, _)| name));
    }

    fn ports(&mut self, texts: &[String]) -> Vec<u16> {
        self.all(texts, |text| text.parse().ok().filter(|port| *port != 0), "is not a port (1 to 65535)")
    }

    fn blocks(&mut self, texts: &[String]) -> Vec<IpNet> {
        self.all(texts, block, "is not an address or CIDR block, such as 10.0.0.0/8")
    }

    /// All values, or none when one is bad: what is left of a list says something else than the list did.
    fn all<T>(&mut self, texts: &[String], parse: impl Fn(&str) -> Option<T>, complaint: &str) -> Vec<T> {
        let bad = texts.iter().filter(|text| parse(text).is_none());
        let before = self.invalid.len();
        self.invalid.extend(bad.map(|text| format!("{text:?} {complaint}")));
        if self.invalid.len() > before {
            Vec::new()
        } else {
            texts.iter().filter_map(|text| parse(text)).collect()
        }
    }
}

fn block(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}

fn strings(texts: &[String]) -> Vec<StringMatch> {
    texts.iter().map(|text| string(text)).collect()
}

fn string(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Presence
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

fn accounts(texts: &[String], policy_namespace: &str) -> Vec<ServiceAccountMatch> {
    let split = |text: &String| {
        let (namespace, account) = text.split_once('/').unwrap_or((policy_namespace, text));
        ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
    };
    texts.iter().map(split).collect()
}
