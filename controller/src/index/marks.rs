//! Which pods are to be marked, where the record of a proof is a mark on the pod itself: the annotation that Istio's node agent
//! writes, read by its tools too.
//!
//! A mark seeds a proof and never ends one. Owns no writing.

use super::cluster::key_of;
use super::{Index, Progress};
use crate::source::objects::{Kind, Pod};

/// The annotation.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Its node has proven that it is enrolled.
    Enabled,
    /// It is reached by tunnel only, and its node has not proven yet that it is enrolled.
    Pending,
}

/// A pod whose mark is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: a successor of the same name is not meant.
    pub uid: String,
    /// What it should say; `None`: it should not be there.
    pub mark: Option<Mark>,
    /// Its node has told us, and perhaps no other replica.
    pub is_news: bool,
}

impl Mark {
    /// The annotation's value.
    #[must_use]
    pub fn value(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Pending => "pending",
        }
    }
}

/// The mark of a pod.
pub(super) fn mark(pod: &Pod) -> Option<Mark> {
    let value = pod.metadata.annotations.get(REDIRECTION)?;
    [Mark::Enabled, Mark::Pending].into_iter().find(|mark| mark.value() == value)
}

impl Index {
    /// The pods whose mark is not as it should be.
    pub fn remarks(&self) -> impl Iterator<Item = Remark> {
        self.enrolments.iter().filter_map(|(place, name)| {
            let pod = self.cluster.pods.get(name)?;
            let enrolment = self.products.get(&key_of(Kind::Pod, name))?.enrolment.as_ref()?;
            let present = pod.metadata.annotations.contains_key(REDIRECTION);
            let now = mark(pod);
            let reported = self.states.get(place).is_some_and(|state| state.progress == Progress::Enrolled);
            let (wanted, is_news) = match enrolment.verdict.enrol {
                true if reported => (Some(Mark::Enabled), true),
                // A proof is not taken back because a node says less for a while.
                true if now.is_some() => return None,
                true if self.proven.contains(&enrolment.uid, &enrolment.node) => (Some(Mark::Pending), false),
                true => return None,
                false => (None, false),
            };
            (wanted != now || wanted.is_none() && present).then(|| Remark {
                namespace: name.0.clone(),
                name: name.1.clone(),
                uid: enrolment.uid.to_string(),
                mark: wanted,
                is_news,
            })
        })
    }
}
