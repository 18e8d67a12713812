//! `airglow.node.v1` to and from plain values: who is to be enrolled on a node, and who is.

use std::net::IpAddr;

use model::Str;
use model::identity::Identity;
use model::workload::WorkloadUid;

use super::{DEFAULT_TRUST_DOMAIN, ip, ip_bytes, known, required};
use crate::invalid::{InvalidField, Problem};
use crate::node as wire;

/// The controller's verdict on one pod of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The pod's Kubernetes uid, which is also the uid of its sandbox.
    pub uid: Str,
    /// The pod's name.
    pub name: Str,
    /// Who its traffic is sent as. The pod's namespace is the identity's.
    pub identity: Identity,
    /// Its addresses, canonical. The sandbox must have exactly these.
    pub addresses: Vec<IpAddr>,
    /// Whether its traffic is to be captured.
    pub enrol: bool,
    /// Why, for a person to read.
    pub reason: Str,
    /// The workload it is in discovery.
    pub workload: WorkloadUid,
}

/// What a node says about one of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReport {
    /// The pod's Kubernetes uid.
    pub uid: Str,
    /// How far its enrolment is.
    pub state: PodState,
    /// What failed or is waited for.
    pub message: Str,
    /// Why its certificate, which expires soon, can't be renewed; empty while it can, or there is time.
    pub certificate_failure: Str,
}

/// How far the enrolment of a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodState {
    /// Proven from kernel facts: its traffic is captured.
    Enrolled,
    /// It could not be enrolled.
    Failed,
    /// Not yet.
    Pending,
    /// The node does not know.
    Unknown,
}

impl TryFrom<wire::PodEnrolment> for Enrolment {
    type Error = InvalidField;

    fn try_from(enrolment: wire::PodEnrolment) -> Result<Self, InvalidField> {
        let wire::PodEnrolment {
            uid,
            namespace,
            name,
            service_account,
            addresses,
            enrol,
            reason,
            workload_uid,
            trust_domain,
        } = enrolment;
        let trust_domain =
            if trust_domain.is_empty() { DEFAULT_TRUST_DOMAIN.to_owned() } else { trust_domain };
        let identity = Identity::new(trust_domain, namespace, service_account);
        Ok(Self {
            uid: required(uid).map_err(|p| p.of("uid"))?,
            name: required(name).map_err(|p| p.of("name"))?,
            identity: identity.map_err(|e| Problem::from(e).of("identity"))?,
            addresses: addresses
                .iter()
                .map(|a| ip(a).map_err(|p| p.of("addresses")))
                .collect::<Result<_, _>>()?,
            enrol,
            reason: reason.into(),
            workload: WorkloadUid(required(workload_uid).map_err(|p| p.of("workload_uid"))?),
        })
    }
}

impl From<&Enrolment> for wire::PodEnrolment {
    fn from(enrolment: &Enrolment) -> Self {
        let Enrolment {
            uid,
            name,
            identity: Identity { trust_domain, namespace, service_account, .. },
            addresses,
            enrol,
            reason,
            workload,
        } = enrolment;
        Self {
            uid: uid.to_string(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            service_account: service_account.to_string(),
            addresses: addresses.iter().copied().map(ip_bytes).collect(),
            enrol: *enrol,
            reason: reason.to_string(),
            workload_uid: workload.to_string(),
            trust_domain: trust_domain.to_string(),
        }
    }
}

impl TryFrom<wire::PodState> for PodReport {
    type Error = InvalidField;

    fn try_from(state: wire::PodState) -> Result<Self, InvalidField> {
        let wire::PodState { uid, state, message, certificate_failure } = state;
        Ok(Self {
            uid: required(uid).map_err(|p| p.of("uid"))?,
            state: match known(state).map_err(|p| p.of("state"))? {
                wire::pod_state::State::Enrolled => PodState::Enrolled,
                wire::pod_state::State::Failed => PodState::Failed,
                wire::pod_state::State::Pending => PodState::Pending,
                wire::pod_state::State::Unknown => PodState::Unknown,
            },
            message: message.into(),
            certificate_failure: certificate_failure.into(),
        })
    }
}

impl From<&PodReport> for wire::PodState {
    fn from(PodReport { uid, state, message, certificate_failure }: &PodReport) -> Self {
        let state = match state {
            PodState::Enrolled => wire::pod_state::State::Enrolled,
            PodState::Failed => wire::pod_state::State::Failed,
            PodState::Pending => wire::pod_state::State::Pending,
            PodState::Unknown => wire::pod_state::State::Unknown,
        };
        Self {
            uid: uid.to_string(),
            state: state.into(),
            message: message.to_string(),
            certificate_failure: certificate_failure.to_string(),
        }
    }
}
