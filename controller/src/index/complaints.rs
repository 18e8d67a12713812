//! What a user must know and would not look for: pods that can't be enrolled, policies that are not in force.
//!
//! Owns no writing, and no memory of what was said.

use super::{Index, Outcome, Progress, key_of};
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
        found.chain(self.failures()).collect()
    }

    fn failures(&self) -> impl Iterator<Item = Complaint> {
        self.enrolments().filter_map(|(enrolment, reported)| {
            let reported = reported.filter(|state| state.progress == Progress::Failed)?;
            let name = (enrolment.identity.namespace.to_string(), enrolment.name.to_string());
            Some(Complaint {
                key: key_of(Kind::Pod, &name),
                uid: enrolment.uid.to_string(),
                reason: "EnrolmentFailed",
                message: format!("node {}: {}", enrolment.node, reported.message),
                is_told: true,
            })
        })
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
