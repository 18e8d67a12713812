//! DNS over TCP of an enrolled pod (RFC 7766): a captured connection to port 53.
//!
//! Each question is answered as one over UDP would be; what is not a name of the mesh is asked of the resolver that the
//! pod dialled. One question at a time: clients use TCP for answers that do not fit a datagram.

use std::io;
use std::time::Duration;

use model::address::{ClientAddr, OriginalDst};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dns::{Decision, Limit, decide};
use super::{PodContext, upstream};

/// How long a client may be silent, or leave its answers unread, before its connection is closed (RFC 7766 6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(10);
/// How long the resolver may take for one answer.
const RESOLVER_WITHIN: Duration = Duration::from_secs(5);

/// Answers until the client has no more questions.
pub(crate) async fn serve(
    context: &PodContext,
    mut app: TcpStream,
    client: ClientAddr,
    resolver: OriginalDst,
) {
    if let Err(error) = converse(context, &mut app, client, resolver).await {
        tracing::debug!(pod = %context.pod.workload, %resolver, %error, "a DNS connection ended");
    }
}

async fn converse(
    context: &PodContext,
    app: &mut TcpStream,
    client: ClientAddr,
    resolver: OriginalDst,
) -> io::Result<()> {
    let mut upstream: Option<TcpStream> = None;
    let mut message = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, receive(app, &mut message)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
        match decide(context, &message, Limit::Message) {
            Decision::Reply(answer) => answered(app, &answer).await?,
            Decision::Drop => return Ok(()),
            Decision::Forward => {
                let open = match &mut upstream {
                    Some(open) => open,
                    None => {
                        let made =
                            upstream::plain(context, client, resolver.0).await.map_err(io::Error::other)?;
                        upstream.insert(made)
                    }
                };
                let asked = ask(open, &mut message);
                tokio::time::timeout(RESOLVER_WITHIN, asked).await??;
                answered(app, &message).await?;
            }
        }
    }
}

/// Sends an answer to a client that reads: one that only asks would hold its connection for ever.
async fn answered(app: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    tokio::time::timeout(IDLE, send(app, answer)).await?
}

/// Puts a question to the resolver and leaves its answer in `message`.
async fn ask(resolver: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<()> {
    send(resolver, message).await?;
    if receive(resolver, message).await? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
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

async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidData, "a DNS message of more than 65,535 bytes");
    let length = u16::try_from(message.len()).map_err(too_long)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
