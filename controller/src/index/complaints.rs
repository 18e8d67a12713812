//! What a user must know and would not look for: pods that can't be enrolled or are about to lose their certificate, policies that
//! are not in force.
//!
//! Owns no writing, and no memory of what was said.

use super::{Enrolment, Index, Outcome, PodState, Progress, key_of};
use crate::source::Misunderstood;
use crate::source::objects::{Key, Kind};

/// Something that someone has to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Which object.
    pub key: Key,
    /// Its uid; empty where the source has none.
    pub uid: String,
    /// In a word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Whether a node has told this replica, and perhaps no other.
    pub is_told: bool,
}

impl Index {
    /// All that is to be complained of at present.
    #[must_use]
    pub fn complaints(&self, misunderstood: &[Misunderstood]) -> Vec<Complaint> {
        let refused = self.findings().filter(|(_, finding)| finding.outcome == Outcome::Refused);
        let refused = refused.map(|(key, finding)| (key, finding.message.as_str()));
        let misunderstood = misunderstood.iter().map(|object| (&object.key, object.message.as_str()));
        let found = refused.chain(misunderstood).filter_map(|(key, message)| {
            let is_policy = matches!(key.kind, Kind::AuthorizationPolicy | Kind::PeerAuthentication);
            // Of others, the parts that can be understood are in force.
            let reason = if is_policy {
                "PolicyRefused"
            } else if key.kind == Kind::Pod {
                "EnrolmentRefused"
            } else {
                return None;
            };
            let (key, message) = (key.clone(), message.to_owned());
            Some(Complaint { uid: self.uid_of(&key), key, reason, message, is_told: false })
        });
        let by_nodes = self.refused_by_nodes().map(|(key, node, why)| Complaint {
            uid: self.uid_of(&key),
            key,
            reason: "PolicyRefused",
            message: format!("node {node}: {why}"),
            is_told: false,
        });
        found.chain(by_nodes).chain(self.failures()).collect()
    }

    /// What nodes have told of their pods.
    fn failures(&self) -> impl Iterator<Item = Complaint> {
        self.enrolments().filter_map(|(enrolment, reported)| Some((enrolment, reported?))).flat_map(
            |(enrolment, PodState { progress, message, certificate_failure, .. })| {
                let Enrolment { node, identity, .. } = enrolment;
                let complaint = |reason, message| {
                    let name = (identity.namespace.to_string(), enrolment.name.to_string());
                    let (key, uid) = (key_of(Kind::Pod, &name), enrolment.uid.to_string());
                    Complaint { key, uid, reason, message, is_told: true }
                };
                let failed = (*progress == Progress::Failed)
                    .then(|| complaint("EnrolmentFailed", format!("node {node}: {message}")));
                let expiring = (!certificate_failure.is_empty()).then(|| {
                    let message = format!(
                        "node {node}: the certificate of {identity} expires soon and can't be renewed: \
                         {certificate_failure}"
                    );
                    complaint("CertificateExpiring", message)
                });
                failed.into_iter().chain(expiring)
            },
        )
    }

    fn uid_of(&self, key: &Key) -> String {
        let name = (key.namespace.clone(), key.name.clone());
        let cluster = &self.cluster;
        let metadata = if key.kind == Kind::Pod {
            cluster.pods.get(&name).map(|pod| &pod.metadata)
        } else if key.kind == Kind::AuthorizationPolicy {
            cluster.authorizations.get(&name).map(|policy| &policy.metadata)
        } else {
            cluster.peers.get(&name).map(|policy| &policy.metadata)
        };
        metadata.map(|metadata| metadata.uid.clone()).unwrap_or_default()
    }
}
