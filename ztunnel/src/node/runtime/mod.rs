//! Pods that nobody announced: those that ran before the CNI plugin was installed are found through the container runtime.
//!
//! Asks the runtime's CRI socket now and then, and announces what is new as the plugin would. Whether a network namespace
//! is the pod's own is proven when it is captured: the kernel has to show the pod's addresses in it.

mod found;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::cri::runtime_service_client::RuntimeServiceClient;
use api::cri::{ListPodSandboxRequest, PodSandboxStatusRequest};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::{Channel, Endpoint};

use self::found::Listed;
use super::api::{Command, Delete, PodStatus, Reply, Request};
use super::report::Reports;

/// How often the runtime is asked. New pods are announced by the CNI plugin; this finds those that were there before, and
/// ends that nobody reported.
const LOOK: Duration = Duration::from_secs(5);
/// How long one answer of the runtime may take: milliseconds, and seconds on a node that starts many pods at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A list of 500 sandboxes with the labels and annotations that we skip has about a megabyte.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Why the runtime can't be asked.
#[derive(Debug, thiserror::Error)]
enum RuntimeError {
    #[error("the container runtime at {0} can't be reached: {1}")]
    Unreachable(PathBuf, tonic::transport::Error),
    #[error("the container runtime did not say {what}: {status}")]
    Failed { what: String, status: tonic::Status },
}

/// Looks for pods in the container runtime.
#[derive(Debug)]
pub(crate) struct Finder {
    /// The runtime's CRI socket.
    pub(crate) socket: PathBuf,
    /// Who acts on announcements.
    pub(crate) commands: mpsc::Sender<Command>,
    /// What is known already.
    pub(crate) pods: watch::Receiver<Arc<Vec<PodStatus>>>,
    /// Present while this process is in charge of the node.
    pub(crate) reports: watch::Receiver<Reports>,
}

impl Finder {
    /// Looks until dropped.
    pub(crate) async fn run(mut self) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut problem = String::new();
        loop {
            ticks.tick().await;
            if self.reports.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let now = self.look().await.err().map_or_else(String::new, |error| error.to_string());
            // Once, not every five seconds.
            if !now.is_empty() && now != problem {
                tracing::warn!(error = %now, "pods that nobody announced can't be found");
            }
            problem = now;
        }
    }

    async fn look(&self) -> Result<(), RuntimeError> {
        let mut runtime = connect(&self.socket).await?;
        let listed = list(&mut runtime).await?;
        let known = self.pods.borrow().clone();
        for pod in found::unknown(&listed, &known) {
            match sandbox(&mut runtime, &pod.id).await? {
                Ok(sandbox) => {
                    tracing::info!(pod = %format!("{}/{}", sandbox.namespace, sandbox.name), "a pod that nobody announced was found");
                    self.tell(Request::Add(sandbox)).await;
                }
                Err(reason) => tracing::debug!(sandbox = %pod.id, reason, "a sandbox is left out"),
            }
        }
        for pod in found::gone(&listed, &known, |netns| !netns.exists()) {
            tracing::info!(pod = pod.pod, "a pod has ended without a word");
            let (uid, sandbox_id) = (pod.uid.clone(), Some(pod.sandbox_id.clone()));
            self.tell(Request::Delete(Delete { uid, sandbox_id })).await;
        }
        Ok(())
    }

    /// Does not wait for the answer: it may wait for a verdict.
    async fn tell(&self, request: Request) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send((request, reply)).await.is_ok() {
            tokio::spawn(async move {
                if let Ok(Reply::Error { error }) = answer.await {
                    tracing::warn!(error, "what was found in the container runtime is not taken");
                }
            });
        }
    }
}

async fn connect(socket: &Path) -> Result<RuntimeServiceClient<Channel>, RuntimeError> {
    let unreachable = |error| RuntimeError::Unreachable(socket.to_owned(), error);
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(unreachable)?;
    let channel = endpoint.timeout(ANSWER_WITHIN).connect().await.map_err(unreachable)?;
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

async fn list(runtime: &mut RuntimeServiceClient<Channel>) -> Result<Vec<Listed>, RuntimeError> {
    let failed = |status| RuntimeError::Failed { what: "which sandboxes there are".to_owned(), status };
    let answer = runtime.list_pod_sandbox(ListPodSandboxRequest {}).await.map_err(failed)?;
    Ok(answer.into_inner().items.into_iter().filter_map(found::listed).collect())
}

/// The sandbox, or why it is not one that could be captured.
async fn sandbox(
    runtime: &mut RuntimeServiceClient<Channel>,
    id: &str,
) -> Result<Result<super::sandbox::Sandbox, String>, RuntimeError> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    match runtime.pod_sandbox_status(request).await {
        Ok(answer) => Ok(found::sandbox(answer.into_inner())),
        // It has ended since it was listed.
        Err(status) if status.code() == tonic::Code::NotFound => Ok(Err(status.to_string())),
        Err(status) => Err(RuntimeError::Failed { what: format!("what sandbox {id} is"), status }),
    }
}

#[cfg(test)]
mod tests {
    use api::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
    use api::cri::{self, ListPodSandboxResponse, PodSandboxStatusResponse};
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request as Call, Response, Status};

    use super::*;

    /// A runtime with these sandboxes, each ready and with a network of its own.
    #[derive(Debug)]
    struct Runtime(Vec<&'static str>);

    fn metadata(id: &str) -> cri::PodSandboxMetadata {
        let (name, uid) = (format!("pod-{id}"), format!("uid-{id}"));
        cri::PodSandboxMetadata { name, uid, namespace: "shop".to_owned() }
    }

    #[tonic::async_trait]
    impl RuntimeService for Runtime {
        async fn list_pod_sandbox(
            &self,
            _: Call<ListPodSandboxRequest>,
        ) -> Result<Response<ListPodSandboxResponse>, Status> {
            let items = self.0.iter().map(|id| cri::PodSandbox {
                id: (*id).to_owned(),
                metadata: Some(metadata(id)),
                state: cri::PodSandboxState::SandboxReady.into(),
            });
            Ok(Response::new(ListPodSandboxResponse { items: items.collect() }))
        }

        async fn pod_sandbox_status(
            &self,
            request: Call<PodSandboxStatusRequest>,
        ) -> Result<Response<PodSandboxStatusResponse>, Status> {
            let PodSandboxStatusRequest { pod_sandbox_id: id, verbose } = request.into_inner();
            assert!(verbose, "without it there is no info");
            if id == "ended" {
                return Err(Status::not_found("no such sandbox"));
            }
            let info = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/netns/of-it"}]}}}"#;
            let network =
                cri::PodSandboxNetworkStatus { ip: "10.0.0.9".to_owned(), additional_ips: Vec::new() };
            let status = cri::PodSandboxStatus {
                metadata: Some(metadata(&id)),
                id,
                network: Some(network),
                ..Default::default()
            };
            let info = [("info".to_owned(), info.to_owned())].into();
            Ok(Response::new(PodSandboxStatusResponse { status: Some(status), info }))
        }
    }

    fn known(id: &str) -> PodStatus {
        PodStatus {
            uid: format!("uid-{id}"),
            pod: format!("shop/pod-{id}"),
            state: "enrolled",
            message: String::new(),
            sandbox_id: id.to_owned(),
            netns: "/netns/gone".into(),
        }
    }

    #[tokio::test]
    async fn what_the_runtime_has_is_announced_and_what_it_has_not_is_retracted() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cri.sock");
        let listening = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let service = RuntimeServiceServer::new(Runtime(vec!["new", "known", "ended"]));
        let server = tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(listening),
        );
        let (commands, mut received) = mpsc::channel(8);
        let (_pods, pods) = watch::channel(Arc::new(vec![known("known"), known("gone")]));
        let (reports, reported) = watch::channel(None);
        let finder = tokio::spawn(Finder { socket, commands, pods, reports: reported }.run());
        reports.send_replace(Some(Arc::default()));
        let (request, _) = received.recv().await.unwrap();
        let Request::Add(sandbox) = request else { panic!("{request:?}") };
        assert_eq!((sandbox.uid.as_str(), sandbox.sandbox_id.as_str()), ("uid-new", "new"));
        assert_eq!(sandbox.netns, Path::new("/netns/of-it"));
        let (request, _) = received.recv().await.unwrap();
        let Request::Delete(deleted) = request else { panic!("{request:?}") };
        assert_eq!((deleted.uid.as_str(), deleted.sandbox_id.as_deref()), ("uid-gone", Some("gone")));
        finder.abort();
        server.abort();
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_named() {
        let error = connect(Path::new("/nowhere/cri.sock")).await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/cri.sock"), "{error}");
    }
}
