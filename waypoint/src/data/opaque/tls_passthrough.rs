//! TLS that passes through: each connection goes where the rule for the name says that its client asks for.
//!
//! Reads the ClientHello, within bounds of bytes and time, and hands it on as it came. Ends no TLS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hbone::{Incoming, Reason, Received, Stream};
use identity::ClientHello;
use model::route::Behind;
use proxy::headers;
use tokio::time::timeout;

use super::serve::carry;
use crate::data::{Asked, Context};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Bytes of a ClientHello. Browsers send two KiB, with keys against quantum computers; those that resume sessions or hide
/// names send a few more.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// How long a ClientHello may take: what a TLS server would wait.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries one stream to its end and reports it.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, asked: &Asked, facts: Facts) {
    let telemetry = &context.shared.telemetry;
    let mut stream = match incoming.accept(headers::answer(Some(&asked.local))) {
        Ok(stream) => stream,
        Err(error) => return telemetry.refused(&facts, &error.into()),
    };
    let heard = timeout(HELLO_TIMEOUT, hello(&mut stream)).await;
    let heard = heard.unwrap_or_else(|_| {
        Err(NoHello::Other(format!("without a ClientHello within {} s", HELLO_TIMEOUT.as_secs())))
    });
    match heard {
        Ok((said, name)) => carry(context, (stream, said), (asked, name.as_deref()), facts).await,
        Err(why) => {
            telemetry.refused(&facts, &why.of(asked));
            stream.reset(Reason::CONNECT_ERROR);
        }
    }
}

enum NoHello {
    Broken(Refusal),
    Other(String),
}

impl NoHello {
    fn of(self, asked: &Asked) -> Refusal {
        match (self, &asked.behind) {
            (Self::Broken(refusal), _) => refusal,
            (Self::Other(what), Behind::Service(service, port, _)) => {
                Refusal::Unmatched { service: service.id.clone(), port: *port, what }
            }
            // Routes are about services.
            (Self::Other(what), Behind::Workload(..)) => Refusal::Broken(std::io::Error::other(what)),
        }
    }
}

/// What the client said, and the name in it.
async fn hello(stream: &mut Stream) -> Result<(Vec<Bytes>, Option<String>), NoHello> {
    let (mut hello, mut said, mut seen) = (ClientHello::default(), Vec::<Bytes>::new(), 0);
    loop {
        let before = said.len();
        let received = std::future::poll_fn(|cx| stream.poll_recv(cx, &mut said)).await;
        let received = received.map_err(|error| NoHello::Broken(error.into()))?;
        for bytes in &said[before..] {
            seen += bytes.len();
            let name =
                hello.take(bytes).map_err(|error| NoHello::Other(format!("that is not TLS ({error})")))?;
            if let Some(name) = name {
                return Ok((said, name));
            }
        }
        if received == Received::End || seen > HELLO_BYTES_MAX {
            let what = format!("without a ClientHello in its first {seen} bytes");
            return Err(NoHello::Other(what));
        }
    }
}
