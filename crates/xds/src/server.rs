//! The server's shell: one gRPC stream per session around [`server_core`](crate::server_core), which decides.
//!
//! A session is the stream of its responses: it is driven by whoever writes them to the network, spawns nothing, and ends
//! with it. Owns no resources (the [`Provider`] has them) and no authentication (layers before it, and [`Provider::open`]).

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::discovery as wire;
use api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::server_core::{Core, Nack, Step, TypeStatus, View};
use crate::wire::Node;

/// How long a client may take from opening a stream to its first request, which clients send at once.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The size that a response is kept below for clients that take changes in parts: gRPC's own default limit, so that also
/// what looks at the wire in between takes it, and little enough that a large mesh does not stall small changes.
const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// The largest request that is taken: a client that comes back names everything it holds, at some 100 bytes each.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// The most sessions at once: a cluster of Kubernetes' largest supported size has 5,000 nodes, and waypoints come on top.
const MAX_SESSIONS: usize = 20_000;

/// Where the resources come from, and who may see them.
pub trait Provider: Send + Sync + 'static {
    /// What the provider needs to know of a client to tell what it may see.
    type Session: Send + Sync + 'static;

    /// What one client may see at one moment: a workload is looked up by uid or `network/ip`, a service by `namespace/hostname` or
    /// `network/ip`, and with a service come all its workloads.
    type View: View + Send + Sync + 'static;

    /// Admits a client. What is to be trusted is in `caller`; `node` is only what the client says. Must not wait:
    /// authentication that does belongs in a layer before, which leaves its result in the extensions.
    ///
    /// # Errors
    /// What the client is told when it is turned away.
    fn open(&self, node: &Node, caller: &Caller) -> Result<Self::Session, Status>;

    /// In which order this client is told what is different: what is named before what names it, and what acts on both last.
    /// Types that are in none of the steps are not served.
    fn steps(&self, session: &Self::Session) -> &'static [Step];

    /// What this client may see at present. Called at every change: to be kept ready, not made.
    fn view(&self, session: &Self::Session) -> Self::View;

    /// Changes after a view may have changed.
    fn watch(&self) -> watch::Receiver<u64>;
}

/// What came with the call that opened a session.
#[derive(Debug)]
pub struct Caller {
    /// The call's headers.
    pub metadata: MetadataMap,
    /// What layers before found out.
    pub extensions: Extensions,
}

/// One client, as it is now.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// Counts sessions of this server.
    pub id: u64,
    /// Who it says it is.
    pub node: Node,
    /// How long it has been here.
    pub age: Duration,
    /// The types that it asked for.
    pub types: Vec<TypeStatus>,
}

impl SessionStatus {
    /// The last refusal of any type.
    #[must_use]
    pub fn last_nack(&self) -> Option<&Nack> {
        self.types.iter().filter_map(|kind| kind.last_nack.as_ref()).max_by_key(|nack| nack.at)
    }
}

/// A discovery server. Cloning it gives another handle to the same.
pub struct Server<P> {
    shared: Arc<Shared<P>>,
}

impl<P> Clone for Server<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<P> {
    provider: P,
    sessions: Mutex<Sessions>,
    /// Counts changes of what clients refuse.
    refusals: watch::Sender<u64>,
}

#[derive(Default)]
struct Sessions {
    open: BTreeMap<u64, (Instant, SessionStatus)>,
    last: u64,
}

impl<P: Provider> Server<P> {
    /// Serves what `provider` has.
    #[must_use]
    pub fn new(provider: P) -> Self {
        let (sessions, refusals) = (Mutex::default(), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { provider, sessions, refusals }) }
    }

    /// The gRPC service, to be added to a tonic router.
    #[must_use]
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// The clients that are here, and what each has acknowledged.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionStatus> {
        let aged = |(since, status): &(Instant, SessionStatus)| SessionStatus {
            age: since.elapsed(),
            ..status.clone()
        };
        self.shared.sessions().open.values().map(aged).collect()
    }

    /// Changes when a client refuses something, or something else than before.
    #[must_use]
    pub fn refusals(&self) -> watch::Receiver<u64> {
        self.shared.refusals.subscribe()
    }
}

impl<P> Shared<P> {
    /// A panic elsewhere can't leave the table half written: each change of it is one call.
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<P: Provider> AggregatedDiscoveryService for Server<P> {
    type StreamAggregatedResourcesStream = Responses<wire::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<wire::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<wire::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only the delta protocol is served: call DeltaAggregatedResources"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<wire::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (metadata, extensions, mut requests) = request.into_parts();
        let first = timeout(FIRST_REQUEST_TIMEOUT, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no request came after the stream was opened"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended before its first request"))?;
        let node = first.node.clone().map(Node::from).filter(|node| !node.id.is_empty());
        let node = node.ok_or_else(|| Status::invalid_argument("the first request must name the node"))?;
        let mut session = Session::open(&self.shared, node, &Caller { metadata, extensions }, requests)?;
        session.request(first)?;
        let responses = stream::unfold(Some(session), |session| async {
            let mut session = session?;
            match session.next().await {
                Ok(response) => Some((Ok(response?), Some(session))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// One session. It counts as open until it is dropped.
struct Session<P: Provider> {
    shared: Arc<Shared<P>>,
    id: u64,
    access: P::Session,
    /// What the client may see, as of the last change that was noticed.
    view: P::View,
    steps: &'static [Step],
    core: Core,
    changes: watch::Receiver<u64>,
    requests: Streaming<wire::DeltaDiscoveryRequest>,
    since: Instant,
}

impl<P: Provider> Session<P> {
    fn open(
        shared: &Arc<Shared<P>>,
        node: Node,
        caller: &Caller,
        requests: Streaming<wire::DeltaDiscoveryRequest>,
    ) -> Result<Self, Status> {
        let access = shared.provider.open(&node, caller)?;
        let mut changes = shared.provider.watch();
        changes.mark_unchanged();
        let (view, steps) = (shared.provider.view(&access), shared.provider.steps(&access));
        let limit = if node.takes_parts() { MAX_RESPONSE_BYTES } else { usize::MAX };
        let core = Core::new(steps, limit);
        let since = Instant::now();
        let id = shared.sessions().open(node, since)?;
        Ok(Self { shared: Arc::clone(shared), id, access, view, steps, core, changes, requests, since })
    }

    fn request(&mut self, request: wire::DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(error) = &request.error_detail {
            warn!(
                session = self.id,
                kind = request.type_url,
                reason = error.message,
                "a client refused resources"
            );
        }
        if !self.steps.iter().any(|step| step.type_url == request.type_url) {
            warn!(session = self.id, kind = request.type_url, "a client asked for a type that is not served");
        }
        let now = self.since.elapsed();
        self.core.request(now, request.into()).map_err(|error| Status::resource_exhausted(error.to_string()))
    }

    /// The next response; `None` when the client has left.
    async fn next(&mut self) -> Result<Option<wire::DeltaDiscoveryResponse>, Status> {
        loop {
            let response = self.core.poll(&self.view);
            if self.shared.sessions().update(self.id, self.core.status()) {
                self.shared.refusals.send_modify(|count| *count += 1);
            }
            if let Some(response) = response {
                return Ok(Some(response.into()));
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.request(request)?,
                    None => return Ok(None),
                },
                // What is seen changes here and nowhere else: all types are of one moment, or one could overtake another.
                () = changed(&mut self.changes) => {
                    self.view = self.shared.provider.view(&self.access);
                    self.core.changed();
                }
            }
        }
    }
}

impl<P: Provider> Drop for Session<P> {
    fn drop(&mut self) {
        self.shared.sessions().open.remove(&self.id);
    }
}

/// A provider that has gone changes nothing any more.
async fn changed(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        pending().await
    }
}

impl Sessions {
    fn open(&mut self, node: Node, since: Instant) -> Result<u64, Status> {
        if self.open.len() >= MAX_SESSIONS {
            return Err(Status::resource_exhausted(
                "this controller has as many discovery sessions as it takes",
            ));
        }
        self.last += 1;
        let id = self.last;
        info!(session = id, node = node.id, "discovery session open");
        self.open.insert(id, (since, SessionStatus { id, node, age: Duration::ZERO, types: Vec::new() }));
        Ok(id)
    }

    /// Whether the client refuses something else than before.
    fn update(&mut self, id: u64, types: Vec<TypeStatus>) -> bool {
        let Some((_, status)) = self.open.get_mut(&id) else { return false };
        let before = std::mem::replace(&mut status.types, types);
        let refused = |types: &[TypeStatus]| -> Vec<_> {
            types.iter().map(|kind| kind.refused.clone()).filter(|refused| !refused.is_empty()).collect()
        };
        refused(&before) != refused(&status.types)
    }
}
