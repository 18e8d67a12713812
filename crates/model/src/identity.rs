//! SPIFFE identities of the form `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
//!
//! Parsing is as strict as the SPIFFE-ID standard (section 2): owns no certificates.

use std::fmt;
use std::str::FromStr;

use crate::Str;

/// Who a workload is. Only made from parts that were checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, lower case.
    pub trust_domain: Str,
    /// The Kubernetes namespace.
    pub namespace: Str,
    /// The Kubernetes service account.
    pub service_account: Str,
}
