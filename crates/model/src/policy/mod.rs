//! L4 authorization: which policies there are, and whether a connection may pass.
//!
//! The only maker of [`Permit`]. Evaluation is a function of a [`Connection`] and the policies in scope; owns no sockets,
//! no revocation signal (the proxies hold that beside the permit) and no wire form.

mod evaluate;
mod matching;

pub(crate) use evaluate::{Guard, evaluate};

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::Str;
use crate::address::{AppAddr, ClientAddr};
use crate::identity::Identity;

/// `namespace/name` of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The namespace it was made in.
    pub namespace: Str,
    /// Its name there.
    pub name: Str,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One policy. It matches a connection when one of its rules does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Unique in the mesh.
    pub id: PolicyName,
    /// Which workloads it guards.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// Any of these. None: matches nothing.
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

/// Which workloads a policy guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// Every workload.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name it in `authorization_policies`.
    Selector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Where any ALLOW policy is in scope, one must match.
    Allow,
    /// Refuse.
    Deny,
}

/// Matches when all of its clauses do; without clauses, always.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// All of these.
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does; without matches, always.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Clause {
    /// Any of these.
    pub matches: Vec<Match>,
}

/// Conditions on one connection. All kinds that are given must hold; inside a positive list one entry must, inside a
/// `not_` list none may. A match without any condition matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Match {
    /// The peer's namespace.
    pub namespaces: Vec<StringMatch>,
    /// Not these namespaces.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's SPIFFE ID without its scheme.
    pub principals: Vec<StringMatch>,
    /// Not these principals.
    pub not_principals: Vec<StringMatch>,
    /// The client's address.
    pub source_ips: Vec<IpNet>,
    /// Not these client addresses.
    pub not_source_ips: Vec<IpNet>,
    /// The workload's address.
    pub destination_ips: Vec<IpNet>,
    /// Not these workload addresses.
    pub not_destination_ips: Vec<IpNet>,
    /// The port that the application listens on.
    pub destination_ports: Vec<u16>,
    /// Not these ports.
    pub not_destination_ports: Vec<u16>,
    /// The peer's service account.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not these service accounts.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The wire form held a condition that this version does not understand or that is malformed. In an ALLOW policy such
    /// a match matches nothing, in a DENY policy everything, whatever its lists say: one of them may have lost an entry,
    /// and a positive list that lost one matches less. Either way nothing more is allowed.
    pub unintelligible: bool,
}

/// How a string is compared. Never a pattern: CVE-2026-39350 was one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal.
    Exact(Str),
    /// Begins with.
    Prefix(Str),
    /// Present at all.
    Presence,
    /// Ends with.
    Suffix(Str),
}

/// A service account of a namespace, in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: Str,
    /// The service account.
    pub service_account: Str,
}

/// What policy sees of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The peer's proven identity; `None` for plaintext.
    pub peer: Option<Identity>,
    /// The client's address.
    pub client: ClientAddr,
    /// Where the application listens.
    pub app: AppAddr,
}

impl Connection {
    /// The workload address that is asked for.
    #[must_use]
    pub fn destination_ip(&self) -> IpAddr {
        self.app.0.ip()
    }
}

/// Proof that policy allows one connection. Code that reaches an application asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    connection: Connection,
    rule: Allowed,
}

impl Permit {
    /// What was allowed.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Why it was allowed.
    #[must_use]
    pub fn reason(&self) -> &Allowed {
        &self.rule
    }
}

/// Why a connection passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// This ALLOW policy matched.
    By(PolicyName),
    /// No ALLOW policy guards the workload and no DENY policy matched.
    NoPolicy,
}

/// Why a connection does not pass. `Display` is a sentence for a log line; it is never sent to the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A DENY policy matched.
    #[error("denied by policy {0}: a rule of it matches; change the policy if the connection should pass")]
    ByPolicy(PolicyName),
    /// ALLOW policies guard the workload and none matched.
    #[error("no ALLOW policy matched; add a rule for this peer to one of those that guard the workload: {}", join(.0))]
    NotAllowed(Vec<PolicyName>),
    /// A policy that guards the workload is named but not known, so what it says can't be enforced.
    #[error(
        "policy {0} guards this workload but is not known here yet; it must arrive from the controller first"
    )]
    PolicyUnknown(PolicyName),
    /// A policy that may guard the workload was refused as malformed, so what it says can't be enforced.
    #[error("policy {0} may guard this workload and can't be enforced; mend or delete it: {1}")]
    PolicyUnenforceable(PolicyName, Str),
}

impl Denial {
    /// The policies that it comes from: the ones to change if the connection should pass.
    #[must_use]
    pub fn policies(&self) -> &[PolicyName] {
        match self {
            Self::ByPolicy(name) | Self::PolicyUnknown(name) | Self::PolicyUnenforceable(name, _) => {
                std::slice::from_ref(name)
            }
            Self::NotAllowed(names) => names,
        }
    }
}

fn join(names: &[PolicyName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The outcome of an evaluation, with what dry-run policies would have said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is enforced.
    pub enforced: Result<Permit, Denial>,
    /// Why the connection would not pass if the dry-run policies in scope were enforced; `None` when they would change
    /// nothing, or when what is enforced denies it anyway.
    pub dry_run: Option<Denial>,
}
