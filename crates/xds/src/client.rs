//! The client's shell: connections, clock and channels around [`client_core`](crate::client_core), which decides.
//!
//! Owns no credentials (the [`Connector`] brings them anew for each connection) and no meaning of resources (the [`Sink`]).

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::future::{Future, pending};
use std::pin::pin;
use std::time::Duration;

use api::discovery as wire;
use api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::client_core::{Action, Core, DemandError, Sink, Subscription, Waiter};
use crate::message;
use crate::wire::{Node, own_node, request};

/// How long connecting and opening a session may take. A control plane that takes longer is not better waited for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a lookup may wait: shorter than applications wait for a connection, longer than a controller's restart with
/// its state at hand.
const DEMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Lookups on their way to the client: as many as can come in while it applies a large change.
const MAX_QUEUED_DEMANDS: usize = 4096;

/// Requests on their way to the server, which reads them as they come.
const MAX_QUEUED_REQUESTS: usize = 16;

/// The largest response that is taken: Istio's control plane sends the whole mesh in one, of about 1 KiB per workload.
const MAX_RESPONSE_BYTES: usize = 200 << 20;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who it says it is.
    pub node: Node,
    /// What it wants, in the order to ask for it.
    pub subscriptions: Vec<Subscription>,
    /// Waits between connections.
    pub backoff: Backoff,
    /// How long a lookup may wait for its answer.
    pub demand_timeout: Duration,
}

impl Config {
    /// The defaults for this node and these types.
    #[must_use]
    pub fn new(node: Node, subscriptions: Vec<Subscription>) -> Self {
        Self { node, subscriptions, backoff: Backoff::default(), demand_timeout: DEMAND_TIMEOUT }
    }
}

/// A way to the control plane, with what proves who asks.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The connection.
    pub channel: Channel,
    /// `authorization` and the like, sent when the session opens.
    pub metadata: MetadataMap,
}

/// Makes a connection each time that one is needed, with a fresh token. It should set HTTP/2 keep-alive: nothing else
/// notices a peer that vanished without a word.
pub trait Connector: Send {
    /// Connects.
    fn connect(&mut self) -> impl Future<Output = Result<Connection, Box<dyn Error + Send + Sync>>> + Send;
}

/// How the client is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientStatus {
    /// A session is open.
    pub connected: bool,
    /// Sessions that were opened.
    pub sessions: u64,
    /// Responses that were taken in.
    pub responses: u64,
    /// Responses of which something was rejected.
    pub nacks: u64,
    /// Resources in use, by type, in the order of the subscriptions.
    pub held: Vec<(&'static str, usize)>,
}

/// Asks for what is not known yet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Demand {
    asks: mpsc::Sender<Ask>,
    timeout: Duration,
}

#[derive(Debug)]
struct Ask {
    type_url: String,
    key: String,
    reply: oneshot::Sender<Result<(), DemandError>>,
}

impl Demand {
    /// Waits until the store is as current for `key` (a resource's name or one of its aliases) as the control plane is.
    /// `Ok` also when there is no such resource. For a type that is subscribed to as a whole this is its first complete
    /// answer.
    ///
    /// # Errors
    /// When that can't be said in time, or what was sent could not be used. Refuse what the lookup was for.
    pub async fn lookup(&self, type_url: &str, key: &str) -> Result<(), DemandError> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask { type_url: type_url.to_owned(), key: key.to_owned(), reply };
        let outcome = async {
            self.asks.send(ask).await.map_err(|_| DemandError::Unavailable)?;
            answer.await.map_err(|_| DemandError::Unavailable)?
        };
        timeout(self.timeout, outcome).await.unwrap_or(Err(DemandError::Timeout))
    }
}

/// A discovery client: a future that the binary runs.
pub struct Client<C, S> {
    connector: C,
    node: Node,
    backoff: Backoff,
    session: Session<S>,
}

impl<C: Connector, S: Sink> Client<C, S> {
    /// A client that feeds `sink`, and the handle by which others ask.
    pub fn new(config: Config, connector: C, sink: S) -> (Self, Demand) {
        let Config { node, subscriptions, backoff, demand_timeout } = config;
        let (asks, demands) = mpsc::channel(MAX_QUEUED_DEMANDS);
        let session = Session {
            core: Core::new(&subscriptions),
            types: subscriptions.iter().map(|subscription| subscription.type_url).collect(),
            sink,
            demands,
            demand_timeout,
            replies: Replies::default(),
            outbox: VecDeque::new(),
            epoch: Instant::now(),
            status: watch::Sender::default(),
        };
        (Self { connector, node, backoff, session }, Demand { asks, timeout: demand_timeout })
    }

    /// How it is doing, from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ClientStatus> {
        self.session.status.subscribe()
    }

    /// Connects, keeps the sink current, and connects again when the connection is lost. Ends only by being dropped.
    pub async fn run(mut self) {
        loop {
            let ended = self.serve().await;
            self.session.close();
            let wait = self.backoff.wait(fastrand::f64());
            match ended {
                Ok(()) => info!(?wait, "the control plane ended the discovery session; connecting again"),
                Err(error) => {
                    warn!(error = %error, ?wait, "discovery session lost; what is known stays in use, connecting again");
                }
            }
            self.session.meanwhile(tokio::time::sleep(wait)).await;
        }
    }

    /// One connection.
    async fn serve(&mut self) -> Result<(), SessionError> {
        let (requests, outgoing) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let Self { connector, node, backoff, session } = self;
        session.outbox.clear();
        let opening = async {
            let connection = connector.connect().await.map_err(SessionError::Connect)?;
            let mut grpc = AggregatedDiscoveryServiceClient::new(connection.channel)
                .max_decoding_message_size(MAX_RESPONSE_BYTES);
            let mut call = Request::new(ReceiverStream::new(outgoing));
            *call.metadata_mut() = connection.metadata;
            Ok::<_, SessionError>(grpc.delta_aggregated_resources(call).await?.into_inner())
        };
        // A server may look at the first request before it answers at all, so requests flow while the call opens.
        session.open(own_node(node));
        let opened = session.sending(&requests, timeout(OPEN_TIMEOUT, opening)).await;
        let mut responses = opened.map_err(|_| SessionError::Slow)??;
        session.status.send_modify(|status| {
            status.connected = true;
            status.sessions += 1;
        });
        info!("discovery session open");
        while let Some(response) = session.sending(&requests, responses.message()).await? {
            session.receive(response.into());
            backoff.reset();
        }
        Ok(())
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("can't connect to the control plane: {0}")]
    Connect(Box<dyn Error + Send + Sync>),
    #[error("the control plane ended the session: {0}")]
    Refused(#[from] Status),
    #[error("the control plane did not open a session within {OPEN_TIMEOUT:?}")]
    Slow,
}

/// What outlives a connection.
struct Session<S> {
    core: Core,
    types: Vec<&'static str>,
    sink: S,
    demands: mpsc::Receiver<Ask>,
    demand_timeout: Duration,
    replies: Replies,
    outbox: VecDeque<wire::DeltaDiscoveryRequest>,
    /// What the core's times count from.
    epoch: Instant,
    status: watch::Sender<ClientStatus>,
}

impl<S: Sink> Session<S> {
    fn open(&mut self, node: wire::Node) {
        let first = self.core.connected();
        self.outbox = first.into_iter().map(|message| request(message, Some(node.clone()))).collect();
    }

    fn close(&mut self) {
        self.core.disconnected();
        self.outbox.clear();
        self.status.send_modify(|status| status.connected = false);
    }

    /// Runs `future`, and answers lookups and sends requests while it is not done.
    async fn sending<F: Future>(
        &mut self,
        requests: &mpsc::Sender<wire::DeltaDiscoveryRequest>,
        future: F,
    ) -> F::Output {
        let mut future = pin!(future);
        loop {
            let room = async {
                match requests.reserve().await {
                    Ok(room) => room,
                    Err(_) => pending().await, // The connection is going; `future` says how.
                }
            };
            tokio::select! {
                output = &mut future => return output,
                room = room, if !self.outbox.is_empty() => {
                    if let Some(message) = self.outbox.pop_front() {
                        room.send(message);
                    }
                }
                () = self.tend() => {}
            }
        }
    }

    /// Runs `future`, and takes lookups in while it is not done.
    async fn meanwhile<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return output,
                () = self.tend() => {}
            }
        }
    }

    /// Waits for the next lookup or the next deadline and deals with it. Loses nothing when it is dropped.
    async fn tend(&mut self) {
        let deadline = self.core.next_deadline();
        let expiry = async {
            match deadline {
                Some(deadline) => sleep_until(self.epoch + deadline).await,
                None => pending().await,
            }
        };
        let demand = async {
            match self.demands.recv().await {
                Some(ask) => ask,
                None => pending().await, // Nobody is left who could ask.
            }
        };
        let actions = tokio::select! {
            ask = demand => self.demand(ask),
            () = expiry => self.core.expire(self.epoch.elapsed()),
        };
        self.act(actions);
    }

    fn demand(&mut self, Ask { type_url, key, reply }: Ask) -> Vec<Action> {
        let deadline = self.epoch.elapsed() + self.demand_timeout;
        let waiter = self.replies.insert(reply);
        self.core.demand(&type_url, &key, waiter, deadline)
    }

    fn receive(&mut self, response: message::Response) {
        let actions = self.core.received(response, &mut self.sink);
        let refused = |action: &Action| match action {
            Action::Send(request) => request.error.clone(),
            Action::Wake(..) => None,
        };
        let nack = actions.iter().find_map(refused);
        if let Some(reason) = &nack {
            warn!(%reason, "rejected resources from the control plane; mend what they describe");
        }
        let held = self.types.iter().map(|url| (*url, self.core.held(url))).collect();
        self.status.send_modify(|status| {
            status.responses += 1;
            status.nacks += u64::from(nack.is_some());
            status.held = held;
        });
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(message) => self.outbox.push_back(request(message, None)),
                Action::Wake(waiter, outcome) => self.replies.send(waiter, outcome),
            }
        }
    }
}

/// Where the answers to lookups go.
#[derive(Default)]
struct Replies {
    waiting: BTreeMap<Waiter, oneshot::Sender<Result<(), DemandError>>>,
    last: u64,
}

impl Replies {
    fn insert(&mut self, reply: oneshot::Sender<Result<(), DemandError>>) -> Waiter {
        self.last += 1;
        let waiter = Waiter(self.last);
        self.waiting.insert(waiter, reply);
        waiter
    }

    fn send(&mut self, waiter: Waiter, outcome: Result<(), DemandError>) {
        if let Some(reply) = self.waiting.remove(&waiter) {
            // Whoever asked may have given up meanwhile.
            let _ = reply.send(outcome);
        }
    }
}
