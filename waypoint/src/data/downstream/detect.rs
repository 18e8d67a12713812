//! Protocol detection, on ports that declare nothing: HTTP if that is what the client says first, else bytes.
//!
//! An endpoint is connected to meanwhile, so that a server that speaks first is heard at once, and then its connection carries
//! bytes whatever its client says. Waits for nobody by time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hbone::{Incoming, Reason, Received, Stream, StreamError};
use model::route::Behind;
use proxy::headers;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::data::opaque::{Reached, reach, relay};
use crate::data::requests::first_bytes::{self, First};
use crate::data::upstream::pool::{self, Carrier};
use crate::data::upstream::{Io, Upstream};
use crate::data::{Asked, Context, authorization, requests};
use crate::http1;
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// How long a client may yet turn out to speak HTTP, and be told in it, when no endpoint can be connected to. A request comes
/// right after its connection.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Bytes of what a server says first that are read at once, where they can't be left unread.
const SPOKEN: usize = 4 << 10;

/// What a stream turned out to be.
enum Heard {
    /// Bytes, between the client and this endpoint, which has said this already.
    Bytes(Reached, Vec<Bytes>),
    /// Requests; a connection that nothing was sent over may have been made for them.
    Requests(Option<Reached>),
}

/// Carries one stream to its end and reports it.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, asked: Asked, facts: Facts) {
    let telemetry = &context.shared.telemetry;
    let policies = authorization::watched(context);
    let mut found = facts.clone();
    // Where there are routes requests may go elsewhere, and need no endpoint here; and a fault is for either, not for both.
    let reached = if is_ruled(context, &asked, &facts) {
        None
    } else {
        match reach(context, (&asked, None), &mut found).await {
            Ok(reached) => Some(reached),
            Err(refusal) => {
                telemetry.refused(&found, &refusal);
                return incoming.refuse(refusal.status());
            }
        }
    };
    let mut stream = match incoming.accept(headers::answer(Some(&asked.local))) {
        Ok(stream) => stream,
        Err(error) => return telemetry.refused(&facts, &error.into()),
    };
    let mut said = Vec::new();
    let heard = match reached {
        Some(reached) => either(&mut stream, &mut said, reached).await,
        None => hear(&mut stream, &mut said, reach(context, (&asked, None), &mut found)).await,
    };
    match heard {
        Ok(Heard::Bytes(reached, answered)) => {
            relay(context, (stream, said), (reached, answered), found, policies).await;
        }
        Ok(Heard::Requests(unused)) => {
            if let Some((upstream, aimed, _)) = unused {
                let who = found.destination.identity.as_ref();
                http1::Upstream::new(Io::from(upstream)).keep(context, pool::key(&aimed), who);
            }
            requests::carry(context, (stream, said), asked, facts).await;
        }
        Err(refusal) => {
            telemetry.refused(&found, &refusal);
            stream.reset(Reason::CONNECT_ERROR);
        }
    }
}

fn is_ruled(context: &Context, asked: &Asked, facts: &Facts) -> bool {
    let Behind::Service(service, port, _) = &asked.behind else { return false };
    let client = facts.source.identity.as_ref();
    let book = context.shared.book.load();
    let known = book.of(&service.id);
    known.routes(*port).kind(client).is_some() || known.chosen(None).fault.is_some()
}

/// Waits for the client to say what it speaks, or for an endpoint and whoever speaks first then.
async fn hear(
    stream: &mut Stream,
    said: &mut Vec<Bytes>,
    reaching: impl Future<Output = Result<Reached, Refusal>>,
) -> Result<Heard, Refusal> {
    let mut reaching = pin!(reaching);
    let reached = tokio::select! {
        biased;
        first = listen(stream, said) => match first? {
            First::Http => return Ok(Heard::Requests(None)),
            First::Other => reaching.await,
        },
        reached = &mut reaching => reached,
    };
    match reached {
        Ok(reached) => either(stream, said, reached).await,
        Err(refusal) => match timeout(LAST_WORD, listen(stream, said)).await {
            Ok(Ok(First::Http)) => Ok(Heard::Requests(None)),
            Ok(_) | Err(_) => Err(refusal),
        },
    }
}

/// Waits for either end to speak.
async fn either(stream: &mut Stream, said: &mut Vec<Bytes>, mut reached: Reached) -> Result<Heard, Refusal> {
    let mut answered = Vec::new();
    tokio::select! {
        biased;
        first = listen(stream, said) => match first? {
            First::Http => return Ok(Heard::Requests(Some(reached))),
            First::Other => {}
        },
        spoken = speaks(&mut reached.0, &mut answered) => spoken?,
    }
    Ok(Heard::Bytes(reached, answered))
}

/// What the client speaks. Nothing is lost when this is given up.
async fn listen(stream: &mut Stream, said: &mut Vec<Bytes>) -> Result<First, StreamError> {
    loop {
        // Nearly always there is one piece, and it tells.
        let told = match said.as_slice() {
            [only] => first_bytes::first(only),
            pieces => first_bytes::first(&pieces.concat()),
        };
        if let Some(first) = told {
            return Ok(first);
        }
        match poll_fn(|cx| stream.poll_recv(cx, said)).await? {
            Received::Data(_) => {}
            Received::End => return Ok(First::Other),
        }
    }
}

/// Resolves when the server has said something, or ended. What a tunnel or TLS hands out of it is put into `answered`.
async fn speaks(upstream: &mut Upstream, answered: &mut Vec<Bytes>) -> Result<(), Refusal> {
    match upstream {
        Upstream::Secured(inside) => {
            let mut said = BytesMut::with_capacity(SPOKEN);
            inside.io.read_buf(&mut said).await.map_err(Refusal::Broken)?;
            answered.extend((!said.is_empty()).then(|| said.freeze()));
            Ok(())
        }
        Upstream::Tcp(tcp) => tcp.peek(&mut [0]).await.map(drop).map_err(Refusal::Broken),
        Upstream::Tunnel(opened) => {
            poll_fn(|cx| opened.stream.poll_recv(cx, answered)).await?;
            Ok(())
        }
    }
}
