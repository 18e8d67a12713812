//! What is gone and stays published for a while yet, because somebody who has not heard of that may count on it.
//!
//! Knows when each goes, and takes it out. Owns no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use model::policy::PolicyName;
use model::service::ServiceName;

use super::published::Snapshot;

/// How long a policy that workloads named stays known after its removal. They are told to name it no more at once; a
/// workload that names a policy which is not known is refused everything, so the policy goes when all have heard. Likewise the TLS towards
/// a service that is gone: who has not heard of that yet would send plaintext.
pub(super) const RETIREMENT: Duration = Duration::from_secs(30);

/// What is gone, and when it goes.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    policies: BTreeMap<PolicyName, Duration>,
    /// Of services, the TLS towards their endpoints.
    tls: BTreeMap<ServiceName, Duration>,
}

impl Retiring {
    /// A policy is gone.
    pub(super) fn policy(&mut self, name: PolicyName, now: Duration) {
        self.policies.insert(name, now + RETIREMENT);
    }

    /// A policy is there again.
    pub(super) fn policy_is_back(&mut self, name: &PolicyName) {
        self.policies.remove(name);
    }

    /// Nobody wants TLS towards a service any more.
    pub(super) fn tls(&mut self, service: ServiceName, now: Duration) {
        self.tls.insert(service, now + RETIREMENT);
    }

    /// Somebody wants it again.
    pub(super) fn tls_is_back(&mut self, service: &ServiceName) {
        self.tls.remove(service);
    }

    /// When the first of all goes.
    pub(super) fn next(&self) -> Option<Duration> {
        self.policies.values().chain(self.tls.values()).min().copied()
    }

    /// Takes out at once the TLS towards services that are there: they are to be reached without. What is gone as well may be known
    /// to waypoints for a moment longer.
    pub(super) fn let_go(&mut self, published: &mut Snapshot) {
        let is_there = |service: &ServiceName| published.addresses.get(&service.to_string()).is_some();
        let over: Vec<_> = self.tls.extract_if(.., |service, _| is_there(service)).collect();
        for (service, _) in over {
            published.backend_tls.remove(&service.to_string());
        }
    }

    /// Takes out what has waited for long enough.
    pub(super) fn take_out(&mut self, published: &mut Snapshot, now: Duration) {
        for (service, _) in self.tls.extract_if(.., |_, at| *at <= now) {
            published.backend_tls.remove(&service.to_string());
        }
        for (name, _) in self.policies.extract_if(.., |_, at| *at <= now) {
            published.authorizations.remove(&name.to_string());
        }
    }
}
