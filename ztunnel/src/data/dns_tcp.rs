//! DNS over TCP of an enrolled pod (RFC 7766): a captured connection to port 53.
//!
//! Each question is answered as one over UDP would be, until one is not of the mesh: from then on the connection is the
//! resolver's, which is reached as any other server is, in a tunnel if it is in the mesh. Reaches nobody itself.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PodContext;
use super::dns::{Decision, Limit, decide};

/// How long a client may be silent, or leave its answers unread, before its connection is closed (RFC 7766 6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Answers until the client has no more questions, or asks one that is the resolver's: that one is returned as it was
/// read, for the resolver to be sent first.
pub(crate) async fn serve(context: &PodContext, app: &mut TcpStream) -> Option<Bytes> {
    converse(context, app).await.unwrap_or_else(|error| {
        tracing::debug!(pod = %context.pod.workload, %error, "a DNS connection ended");
        None
    })
}

async fn converse(context: &PodContext, app: &mut TcpStream) -> io::Result<Option<Bytes>> {
    let mut message = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, receive(app, &mut message)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(None),
            Ok(Err(error)) => return Err(error),
        }
        match decide(context, &message, Limit::Message) {
            Decision::Reply(answer) => answered(app, &answer).await?,
            Decision::Drop => return Ok(None),
            Decision::Forward => return framed(&message).map(Some),
        }
    }
}

/// Sends an answer to a client that reads: one that only asks would hold its connection for ever.
async fn answered(app: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    tokio::time::timeout(IDLE, app.write_all(&framed(answer)?)).await?
}

/// One message, length first; `false` when the other end has finished.
async fn receive(stream: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<bool> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    };
    message.resize(usize::from(length), 0);
    stream.read_exact(message).await?;
    Ok(true)
}

/// The message with its length before it.
fn framed(message: &[u8]) -> io::Result<Bytes> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidData, "a DNS message of more than 65,535 bytes");
    let length = u16::try_from(message.len()).map_err(too_long)?;
    Ok([&length.to_be_bytes(), message].concat().into())
}
