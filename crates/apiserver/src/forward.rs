//! One exchange with a port of a pod's loopback, by the API server's port-forward: what `kubectl port-forward` does, without a
//! port on this machine that others could use meanwhile.
//!
//! Knows nothing of what is said. It takes the right to create `pods/portforward`.

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// From the request to the last byte of the answer: our admin servers give their handlers 30 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);

/// Bytes of an answer: a node with 100,000 workloads dumps some 100 MB.
const MOST: usize = 512 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The pod's node could not connect to the port.
    #[error("its node can't connect to port {0}: {1}")]
    Pod(u16, String),
    /// The API server refuses, or can't be asked.
    #[error("{}", super::explain(.0))]
    Refused(#[source] kube::Error),
    /// It took too long.
    #[error("no complete answer within {ANSWER_WITHIN:?}")]
    Late,
    /// The connection broke.
    #[error("the connection through the API server broke: {0}")]
    Broken(#[source] io::Error),
}

/// Sends `request` to `port` of a pod and returns everything that comes back until `is_whole` says so of it, the pod closes
/// the connection, or `MOST` bytes are there.
///
/// # Errors
/// When the API server refuses, nobody listens in the pod, or the answer does not come to its end.
pub async fn exchange(
    client: &Client,
    (namespace, pod): (&str, &str),
    port: u16,
    request: &[u8],
    is_whole: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>, ForwardError> {
    let talk = async {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let mut forward = pods.portforward(pod, &[port]).await.map_err(ForwardError::Refused)?;
        let stream = forward.take_stream(port).expect("the port was asked for");
        let complaint = forward.take_error(port).expect("likewise");
        let mut answer = Vec::new();
        let outcome = converse(stream, request, is_whole, &mut answer).await;
        // The task behind it holds the connection.
        forward.abort();
        let complaint = complaint.await;
        match (outcome, complaint) {
            (_, Some(complaint)) if answer.is_empty() => Err(ForwardError::Pod(port, complaint)),
            (Err(error), _) => Err(ForwardError::Broken(error)),
            (Ok(()), _) => Ok(answer),
        }
    };
    timeout(ANSWER_WITHIN, talk).await.map_err(|_| ForwardError::Late)?
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
    is_whole: impl Fn(&[u8]) -> bool,
    answer: &mut Vec<u8>,
) -> io::Result<()> {
    stream.write_all(request).await?;
    // The runtime takes its time to pass on that the pod has closed: who knows that all is there does not wait for it.
    while answer.len() < MOST && !is_whole(answer) {
        if stream.read_buf(answer).await? == 0 {
            break;
        }
    }
    Ok(())
}
