//! Inner HTTP, of the version that the client speaks: each request goes its own way, over connections that are kept.
//!
//! Plans what becomes of a request (by `rules`); carrying it out is `exchange`'s, the protocol `http1`'s and `http2`'s.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use hbone::{Incoming, Received, Stream, StreamError};
use model::l7::Session;
use model::route::Behind;
use model::service::ServiceName;
use proxy::headers;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use super::exchange::OneRequest;
use super::first_bytes;
use super::forwarded::Introduction;
use crate::data::tunnel_io::TunnelIo;
use crate::data::upstream::pool::Carrier;
use crate::data::upstream::{Io, choice};
use crate::data::{Asked, Context, time_of_day};
use crate::decide::{self, AnyRequest, Decide, Outcome, Record};
use crate::http1::limits::Timeouts;
use crate::rules::{self, Of, Plan};
use crate::telemetry::{Done, Facts, Told};
use crate::{http1, http2};

/// Serves a stream whose port declares HTTP.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, asked: Asked, facts: Facts) {
    let telemetry = &context.shared.telemetry;
    match incoming.accept(headers::answer(Some(&asked.local))) {
        Ok(stream) => carry(context, (stream, Vec::new()), asked, facts).await,
        Err(error) => telemetry.refused(&facts, &error.into()),
    }
}

/// The same for a stream that was accepted, and of which something was received that is not consumed.
pub(crate) async fn carry(
    context: &Arc<Context>,
    (mut stream, said): (Stream, Vec<Bytes>),
    asked: Asked,
    facts: Facts,
) {
    let first = timeout(Timeouts::default().idle, first_bytes(&mut stream, said)).await;
    let (said, is_http2) = match first {
        Ok(Ok(first)) => first,
        // Nothing was asked.
        Ok(Err(_)) | Err(_) => return,
    };
    over(context, (TunnelIo::new(stream, said), is_http2), asked, facts).await;
}

/// The same for bytes of which it is known whether they are HTTP/2.
pub(crate) async fn over(
    context: &Arc<Context>,
    (io, is_http2): (impl AsyncRead + AsyncWrite + Unpin, bool),
    asked: Asked,
    facts: Facts,
) {
    let telemetry = &context.shared.telemetry;
    let live = telemetry.opened(facts.clone());
    let mut drain = context.shared.drain.clone();
    let drain = async move { drain.begun().await };
    // The backend is spoken to as the client speaks.
    if is_http2 {
        let decide = Arc::new(Requests::<http2::Upstream>::new(context, asked, facts));
        http2::serve(io, (decide, Arc::clone(&context.stalls)), drain).await;
    } else {
        let decide = Requests::<http1::Upstream<Io>>::new(context, asked, facts);
        http1::serve(io, &decide, &Timeouts::default(), drain).await;
    }
    telemetry.closed(&live, Ok(()));
}

/// What a client says first, and whether it is HTTP/2.
async fn first_bytes(stream: &mut Stream, mut said: Vec<Bytes>) -> Result<(Vec<Bytes>, bool), StreamError> {
    loop {
        if let Some(is_http2) = first_bytes::is_http2(&said.concat()) {
            return Ok((said, is_http2));
        }
        match std::future::poll_fn(|cx| stream.poll_recv(cx, &mut said)).await? {
            Received::Data(_) => {}
            Received::End => return Ok((said, false)),
        }
    }
}

/// Decides for the requests of one connection, which are sent over `U`s.
struct Requests<U> {
    context: Arc<Context>,
    asked: Arc<Asked>,
    facts: Facts,
    introduction: Arc<Introduction>,
    over: PhantomData<fn() -> U>,
}

impl<U> Requests<U> {
    fn new(context: &Arc<Context>, asked: Asked, facts: Facts) -> Self {
        let introduction = Arc::new(Introduction::of(&facts, &context.shared.own.identity));
        Self { context: Arc::clone(context), asked: Arc::new(asked), facts, introduction, over: PhantomData }
    }

    fn plan(&self, request: &dyn AnyRequest) -> Plan {
        // Routes are about services; who dials a pod gets the pod.
        let Behind::Service(service, port, _) = &self.asked.behind else { return Plan::straight() };
        let book = self.context.shared.book.load();
        let of = Of {
            known: book.of(&service.id),
            port: *port,
            client: self.facts.source.identity.as_ref(),
            now: &time_of_day,
            random: std::array::from_fn(|_| fastrand::u64(..)),
            holds: &|service, port, session| self.holds(service, port, session),
        };
        rules::plan(&of, request)
    }

    /// Whether the endpoint of a session is there.
    fn holds(&self, name: &ServiceName, port: u16, session: Session) -> bool {
        let mesh = self.context.shared.mesh.snapshot();
        let Some(service) = mesh.service_named(name) else { return false };
        let set = choice::endpoints(&self.context, &self.asked.local, service, (port, None));
        set.is_ok_and(|set| set.iter().any(|one| session.is_with(name, &one.target.workload.uid)))
    }
}

impl<U: Carrier> Decide for Requests<U> {
    type Upstream = U;
    type Exchange = OneRequest<U>;

    fn begin(&self, request: &dyn AnyRequest) -> OneRequest<U> {
        let plan = self.plan(request);
        let who = (self.facts.clone(), &self.introduction);
        OneRequest::begin(&self.context, &self.asked, who, (plan, request))
    }

    fn refused(&self, refusal: decide::Refusal) {
        tracing::debug!(client = %self.facts.client, code = refusal.code(), "a malformed request is refused");
        let begun = Record::begun(Instant::now());
        let record = Record { outcome: Outcome::Refused(refusal), status: Some(refusal.status()), ..begun };
        let told = Told {
            facts: &self.facts,
            request: None,
            protocol: U::PROTOCOL,
            rule: None,
            record: &record,
            grpc_status: None,
            done: Done::default(),
            given_id: None,
            trace: None,
        };
        self.context.shared.telemetry.request(&self.context.seen, &told);
    }
}
