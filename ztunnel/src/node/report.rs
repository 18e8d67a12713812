//! Tells the controller which pods are enrolled, as the kernel proves it.
//!
//! Level-triggered: the whole list, after each change, after each failure, and now and then, so that a controller that
//! lost it learns it again.

use std::sync::Arc;
use std::time::Duration;

use api::PodReport;
use api::node::node_service_client::NodeServiceClient;
use identity::TokenSource;
use model::Str;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

/// How often the list is sent though nothing changed.
const REPEAT: Duration = Duration::from_secs(30);
/// How long one report may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failure; reports are small and a controller that restarts is back within seconds.
const RETRY: Duration = Duration::from_secs(1);

/// The list to send; `None` until the node has looked at all of its pods once.
pub(crate) type Reports = Option<Arc<Vec<PodReport>>>;

/// Sends reports.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) node: Str,
    pub(crate) channel: Channel,
    pub(crate) token: Arc<dyn TokenSource>,
    pub(crate) reports: watch::Receiver<Reports>,
}

impl Reporter {
    /// Sends until dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let current = self.reports.borrow_and_update().clone();
            let pause = match current {
                None => REPEAT,
                Some(pods) => match self.send(&pods).await {
                    Ok(()) => REPEAT,
                    Err(error) => {
                        tracing::warn!(%error, "the controller did not take the report of enrolled pods");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                },
            };
            // A timeout is the repetition; a closed channel is the end.
            if let Ok(Err(_)) = tokio::time::timeout(pause, self.reports.changed()).await {
                return;
            }
        }
    }

    async fn send(&self, pods: &[PodReport]) -> Result<(), tonic::Status> {
        let report = api::node::EnrolmentReport {
            node: self.node.to_string(),
            pods: pods.iter().map(Into::into).collect(),
        };
        let mut request = tonic::Request::new(report);
        let token = self.token.token().map_err(|error| tonic::Status::unauthenticated(error.to_string()))?;
        let mut bearer = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| tonic::Status::unauthenticated("the token can't be sent in a header"))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
        let mut client = NodeServiceClient::new(self.channel.clone());
        match tokio::time::timeout(DEADLINE, client.report(request)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => {
                Err(tonic::Status::deadline_exceeded(format!("no answer within {} s", DEADLINE.as_secs())))
            }
        }
    }
}
