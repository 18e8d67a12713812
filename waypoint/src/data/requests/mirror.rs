//! Copies of requests, sent elsewhere while a request goes its way. Nobody waits for one, and its response is thrown away.
//!
//! A copy that can't keep up with its request is cut: what is not sent of it is bounded. It speaks as its request does.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use bytes::Bytes;
use daemon::metrics::Metrics;
use identity::origination::Speaks;
use model::route::Behind;
use model::service::ServiceName;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::data::upstream::pool::Carrier;
use crate::data::upstream::{self, Aimed, Io, choice};
use crate::data::{Asked, Context, authorization};
use crate::decide::Copied;
use crate::http2;
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Copies under way on one thread. With what each may hold unsent they bound the memory to 32 MiB; at a hundred milliseconds
/// each it is more than a thousand copies each second.
const COPIES_MAX: usize = 128;

/// Bytes of a copy that are not sent yet. What a client sends at a gigabit per second in the two milliseconds that a connection
/// takes; a copy that is further behind is cut.
const UNSENT_MAX: usize = 256 << 10;

/// Pieces that these may be in: a piece is what came in one read.
const PIECES_MAX: usize = 256;

/// How long a copy may wait for its response when all of it is sent: what most servers need at worst.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// What became of copies.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    started: AtomicU64,
    completed: AtomicU64,
    cut: AtomicU64,
    lost: AtomicU64,
}

/// The copies under way on one thread. The lock is this thread's alone and so never waited for.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<JoinSet<()>>);

/// How a copy ended that did not complete.
enum Over {
    /// It could not keep up, or its request broke off.
    Cut,
    /// There was no answer, or nowhere to ask.
    Lost(Refusal),
}

/// What is still to come of a copy. One that is dropped before [`Copying::end`] is cut.
pub(crate) struct Copying {
    pieces: mpsc::Sender<Option<Bytes>>,
    unsent: Arc<AtomicUsize>,
}

/// The other end of that.
struct Coming {
    pieces: mpsc::Receiver<Option<Bytes>>,
    unsent: Arc<AtomicUsize>,
}

impl Counts {
    /// Registers the metrics.
    pub(crate) fn register(metrics: &Metrics) -> Arc<Self> {
        let counts = Arc::new(Self::default());
        let read = |field: fn(&Self) -> &AtomicU64| {
            let counts = Arc::clone(&counts);
            move || field(&counts).load(Relaxed)
        };
        metrics.register_counter_fn("airglow_mirrors_started", "Copies to be sent", read(|all| &all.started));
        metrics.register_counter_fn(
            "airglow_mirrors_completed",
            "Copies answered",
            read(|all| &all.completed),
        );
        metrics.register_counter_fn("airglow_mirrors_cut", "Copies that were too slow", read(|all| &all.cut));
        metrics.register_counter_fn(
            "airglow_mirrors_lost",
            "Copies without an answer",
            read(|all| &all.lost),
        );
        counts
    }
}

/// Begins a copy for a port of a service, unless there are too many already.
pub(crate) fn begin(
    context: &Arc<Context>,
    to: (&ServiceName, u16),
    (asked, facts): (&Asked, &Facts),
    copied: Option<Copied>,
) -> Option<Copying> {
    let counts = &context.shared.mirrors;
    counts.started.fetch_add(1, Relaxed);
    let mut copies = context.copies.0.lock();
    while copies.try_join_next().is_some() {}
    let service = context.shared.mesh.snapshot().service_named(to.0).cloned();
    let service = service.filter(|_| copies.len() < COPIES_MAX);
    let (Some(service), Some(copied)) = (service, copied) else {
        counts.lost.fetch_add(1, Relaxed);
        return None;
    };
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    let unsent = Arc::new(AtomicUsize::new(0));
    let coming = Coming { pieces: received, unsent: Arc::clone(&unsent) };
    let facts = Facts { service: Some(Arc::clone(&service)), ..facts.clone() };
    let asked = Asked { local: Arc::clone(&asked.local), behind: Behind::Service(service, to.1, None) };
    let context = Arc::clone(context);
    copies.spawn(async move {
        let counts = &context.shared.mirrors;
        let count = match send(&context, (&asked, facts), copied, coming).await {
            Ok(()) => &counts.completed,
            Err(Over::Cut) => &counts.cut,
            Err(Over::Lost(refusal)) => {
                tracing::debug!(code = refusal.code(), %refusal, "a copy of a request is lost");
                &counts.lost
            }
        };
        count.fetch_add(1, Relaxed);
    });
    Some(Copying { pieces, unsent })
}

impl Copying {
    /// The next bytes of the body. `false` if the copy can't keep up.
    pub(crate) fn body(&mut self, bytes: &Bytes) -> bool {
        let behind = self.unsent.fetch_add(bytes.len(), Relaxed) + bytes.len();
        behind <= UNSENT_MAX && self.pieces.try_send(Some(bytes.clone())).is_ok()
    }

    /// The body is complete.
    pub(crate) fn end(self) {
        // A copy that is so far behind is cut.
        let _ = self.pieces.try_send(None);
    }
}

async fn send(
    context: &Arc<Context>,
    (asked, mut facts): (&Asked, Facts),
    copied: Copied,
    coming: Coming,
) -> Result<(), Over> {
    let mut policies = authorization::watched(context);
    let (aimed, _lease) =
        choice::endpoint(context, (asked, &facts), choice::LEAST_LOAD, &[]).map_err(Over::Lost)?;
    upstream::aim(context, &aimed.target, &mut facts).map_err(Over::Lost)?;
    let client = facts.clone();
    tokio::select! {
        biased;
        denial = authorization::revoked(context, &aimed.target, &client, &mut policies) => Err(Over::Lost(denial.into())),
        ended = send_to(context, (&aimed, facts), copied, coming) => ended,
    }
}

async fn send_to(
    context: &Arc<Context>,
    (aimed, mut facts): (&Aimed, Facts),
    copied: Copied,
    coming: Coming,
) -> Result<(), Over> {
    match copied {
        Copied::Http1 { head, length } => {
            let reached = upstream::connect(context, aimed, Speaks::Http1, &mut facts).await;
            let reached = reached.map_err(Over::Lost)?;
            let (mut from, mut to) = tokio::io::split(Io::from(reached));
            let answered = both(write(&mut to, (head, length), coming), discard(&mut from)).await;
            // It was answered, or not: how the connection ends is all the same.
            let _ = to.shutdown().await;
            answered
        }
        Copied::Http2(request) => {
            let reached = http2::Upstream::reach(context, aimed, &mut facts, true).await;
            let (body, answer) = reached.map_err(Over::Lost)?.copy(request).map_err(broken)?;
            both(stream(body, coming), async { answer.discard().await.map_err(broken) }).await
        }
    }
}

/// Sends a copy, and waits for its answer. A server may answer before it has read everything, and need not read on then.
async fn both(
    sending: impl Future<Output = Result<(), Over>>,
    answered: impl Future<Output = Result<(), Over>>,
) -> Result<(), Over> {
    let mut answered = pin!(answered);
    tokio::select! {
        sent = sending => sent?,
        answered = &mut answered => return answered,
    }
    let answered = timeout(RESPONSE_TIMEOUT, answered).await;
    answered.unwrap_or_else(|_| Err(broken(io::ErrorKind::TimedOut.into())))
}

impl Coming {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Over> {
        self.pieces.recv().await.ok_or(Over::Cut)
    }

    fn sent(&self, bytes: &Bytes) {
        self.unsent.fetch_sub(bytes.len(), Relaxed);
    }
}

/// Writes a copy as HTTP/1.1, to its end.
async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    (head, mut left): (Vec<u8>, Option<u64>),
    mut coming: Coming,
) -> Result<(), Over> {
    to.write_all(&head).await.map_err(broken)?;
    while left != Some(0) {
        let Some(bytes) = coming.next().await? else { break };
        match &mut left {
            Some(left) => {
                *left = left.saturating_sub(bytes.len() as u64);
                to.write_all(&bytes).await
            }
            None => {
                let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat();
                to.write_all(&chunk).await
            }
        }
        .map_err(broken)?;
        coming.sent(&bytes);
    }
    match left {
        // Its request was shorter than it said.
        Some(1..) => return Err(Over::Cut),
        Some(0) => {}
        None => to.write_all(b"0\r\n\r\n").await.map_err(broken)?,
    }
    to.flush().await.map_err(broken)
}

/// Sends a copy as HTTP/2, to its end.
async fn stream(mut body: http2::Body, mut coming: Coming) -> Result<(), Over> {
    while let Some(bytes) = coming.next().await? {
        body.send(bytes.clone()).await.map_err(broken)?;
        coming.sent(&bytes);
    }
    body.end().map_err(broken)
}

/// Reads an answer to its end; the server ends the connection with it.
async fn discard(from: &mut (impl AsyncRead + Unpin)) -> Result<(), Over> {
    let mut buffer = vec![0; 4 << 10];
    let mut heard = false;
    loop {
        match from.read(&mut buffer).await {
            Ok(0) if heard => return Ok(()),
            Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => heard = true,
            // Many a server ends TLS without saying so.
            Err(error) if heard && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(broken(error)),
        }
    }
}

fn broken(error: io::Error) -> Over {
    Over::Lost(Refusal::Broken(error))
}
