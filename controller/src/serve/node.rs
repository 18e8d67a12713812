//! The node service: a node reports which of its pods are enrolled, proven from kernel facts.

use api::node::node_service_server::NodeService;
use api::node::{EnrolmentReport, EnrolmentReportReply};
use identity::control::ControlPeer;
use tonic::{Request, Response, Status};

use super::gate::Gate;
use super::tokens::Role;
use crate::hub::{Handle, Stopped};
use crate::index::{PodState, Progress};

/// Pods of one node: several times what Kubernetes supports.
const MAX_PODS: usize = 4096;

/// Bytes of a pod's message that are kept: a sentence with a path in it.
const MAX_MESSAGE_BYTES: usize = 512;

/// Bytes of a pod's uid: Kubernetes' have 36, a name in its stead has at most this.
const MAX_UID_BYTES: usize = 253;

/// The node service.
pub(super) struct NodeReports {
    gate: Gate,
    hub: Handle,
}

impl NodeReports {
    /// Hands the reports of those that `gate` admits to `hub`.
    #[must_use]
    pub(super) fn new(gate: Gate, hub: Handle) -> Self {
        Self { gate, hub }
    }
}

#[tonic::async_trait]
impl NodeService for NodeReports {
    async fn report(
        &self,
        request: Request<EnrolmentReport>,
    ) -> Result<Response<EnrolmentReportReply>, Status> {
        let caller = self.gate.admit(&request).await?;
        let peer = request.extensions().get::<ControlPeer>().map(|peer| peer.address);
        let EnrolmentReport { node, pods } = request.into_inner();
        if node != *caller.node || caller.role != Role::Node {
            self.gate.refused(peer, Some(&caller), &format!("it reports for node {node:?}"));
            return Err(Status::permission_denied("not permitted"));
        }
        if pods.len() > MAX_PODS {
            return Err(Status::invalid_argument(format!("a report holds at most {MAX_PODS} pods")));
        }
        let states = pods.into_iter().map(state).collect::<Result<_, _>>()?;
        let stopped = |stopped: Stopped| Status::unavailable(stopped.to_string());
        let unknown = self.hub.report(&caller.node, states).await.map_err(stopped)?;
        if !unknown.is_empty() {
            // A pod that was just deleted, usually.
            tracing::info!(node = %caller.node, pods = ?unknown, "a node reported pods that are not known on it");
        }
        Ok(Response::new(EnrolmentReportReply {}))
    }
}

fn state(pod: api::node::PodState) -> Result<PodState, Status> {
    // `PodReport` checks what the wire form does not; it is not the index's type, which knows no wire form.
    let api::PodReport { uid, state, message, certificate_failure } =
        pod.try_into().map_err(|error: api::InvalidField| Status::invalid_argument(error.to_string()))?;
    if uid.len() > MAX_UID_BYTES {
        return Err(Status::invalid_argument(format!("a pod's uid has at most {MAX_UID_BYTES} bytes")));
    }
    let progress = match state {
        api::PodState::Enrolled => Progress::Enrolled,
        api::PodState::Failed => Progress::Failed,
        api::PodState::Pending => Progress::Pending,
        api::PodState::Unknown => Progress::Unknown,
    };
    Ok(PodState {
        uid: uid.to_string(),
        progress,
        message: kept(&message),
        certificate_failure: kept(&certificate_failure),
    })
}

/// As much of a text as is kept.
fn kept(text: &str) -> String {
    let end = (0..=MAX_MESSAGE_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}
