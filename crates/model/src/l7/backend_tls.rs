//! The TLS that is begun towards the endpoints of a service. Owns no keys, no handshake and no choice among policies.

use std::collections::BTreeMap;

use crate::Str;
use crate::service::ServiceName;

/// What holds for the ports of one service. A port that is not named gets no TLS of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// Which service.
    pub service: ServiceName,
    /// By the service's port.
    pub ports: BTreeMap<u16, PortTls>,
}

/// What holds for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortTls {
    /// TLS is asked for and can't be begun, for this reason: connections are refused, and nothing is sent in plaintext.
    Invalid(Str),
    /// TLS is begun.
    Tls(ServerTls),
}

/// What servers have to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The name that they are asked for (SNI), and their own unless `names` says otherwise.
    pub hostname: Str,
    /// Where there are any, their certificate has one of these in place of the hostname.
    pub names: Vec<SubjectName>,
    /// Who may have certified them.
    pub roots: Roots,
}

/// Who may certify servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// These: PEM.
    Pem(Str),
    /// The public CAs, whom everybody trusts.
    System,
}

/// A name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectName {
    /// A DNS name; `*.` stands for one label.
    Hostname(Str),
    /// A URI, letter by letter.
    Uri(Str),
}
