//! Discovery: which resources a caller may see. Policies are everyone's, workloads and services every node's; enrolments are a node's
//! own, and a waypoint is told of what it guards, with the rules and traffic policies about that and what these lead to.
//!
//! Owns no session protocol (`xds`) and no resources (`published`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::discovery as wire;
use api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::type_url;
use futures_util::StreamExt as _;
use model::Str;
use model::policy::PolicyName;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use xds::server_core::{Answer, Part, Step, TypeStatus, View};
use xds::{Provider, Resource, Resources, Server};

use super::gate::Gate;
use super::published::{Published, Snapshot, Told};
use super::tokens::{Caller, Role};
use crate::index;

/// The order in which nodes are told: a policy before the workloads that name it, because a workload that names a policy which is
/// not known is refused everything.
const OF_NODES: [Step; 3] = [
    Step::whole(type_url::AUTHORIZATION),
    Step::whole(type_url::ADDRESS),
    Step::whole(type_url::POD_ENROLMENT),
];

/// The order in which waypoints are told: the TLS towards services before these, what rules lead to before the rules, these before the
/// services that are theirs to guard, and in the same order backwards what is gone. So no request passes without a rule that it
/// should meet, meets one that leads nowhere, or goes in plaintext where TLS is wanted.
const OF_WAYPOINTS: [Step; 11] = [
    Step::whole(type_url::AUTHORIZATION),
    Step { type_url: type_url::L7_BACKEND_TLS, part: Part::Changes },
    Step { type_url: type_url::ADDRESS, part: Part::Early },
    Step { type_url: type_url::L7_POLICY, part: Part::Changes },
    Step { type_url: type_url::L7_RULE, part: Part::Changes },
    Step { type_url: type_url::ADDRESS, part: Part::Changes },
    Step { type_url: type_url::L7_RULE, part: Part::Removals },
    Step { type_url: type_url::L7_POLICY, part: Part::Removals },
    Step { type_url: type_url::ADDRESS, part: Part::Removals },
    Step { type_url: type_url::L7_BACKEND_TLS, part: Part::Removals },
    Step::whole(type_url::CLIENT),
];

/// The largest request: a node that comes back names everything that it holds, at about 100 bytes each.
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// The key under which a client says which node it is on.
const NODE_NAME: &str = "NODE_NAME";

/// What callers may see.
pub struct Nodes(Published);

impl Provider for Nodes {
    /// Who it is, proven.
    type Session = Caller;
    type View = Seen;

    fn open(&self, node: &xds::Node, call: &xds::server::Caller) -> Result<Caller, Status> {
        let caller =
            call.extensions.get::<Caller>().ok_or_else(|| Status::unauthenticated("not authenticated"))?;
        let claimed = node.metadata.get(NODE_NAME);
        // A waypoint does not speak for the node that it runs on.
        let is_its_own = |claimed: &String| caller.role == Role::Node && **claimed == *caller.node;
        if claimed.is_some_and(|claimed| !is_its_own(claimed)) {
            tracing::warn!(node = %caller.node, claimed, "a client says that it is another node");
            return Err(Status::permission_denied("not permitted"));
        }
        Ok(caller.clone())
    }

    fn steps(&self, caller: &Caller) -> &'static [Step] {
        match caller.role {
            Role::Node => &OF_NODES,
            Role::Waypoint(_) => &OF_WAYPOINTS,
        }
    }

    fn view(&self, caller: &Caller) -> Seen {
        let now = self.0.now();
        match &caller.role {
            Role::Node => Seen { node: Some(caller.node.clone()), told: Told::default(), now },
            Role::Waypoint(identity) => {
                let pods: Vec<_> = match &caller.pod {
                    Some(uid) => now.waypoint(uid).into_iter().collect(),
                    // A proof that is bound to none stands for any of its account: these are alike.
                    None => now.waypoints().filter(|pod| pod.identity == *identity).collect(),
                };
                let mut told = pods.first().map(|pod| now.told(pod)).unwrap_or_default();
                told.addresses
                    .extend(pods.iter().filter_map(|pod| now.addresses.get(&pod.workload.0).cloned()));
                Seen { node: None, told, now }
            }
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.0.watch()
    }
}

/// What a caller may see at one moment.
pub struct Seen {
    /// Which node it is; `None`: a waypoint.
    node: Option<Str>,
    /// What it is told as a waypoint.
    told: Told,
    now: Arc<Snapshot>,
}

impl View for Seen {
    fn snapshot(&self, type_url: &str) -> Resources {
        match type_url {
            type_url::ADDRESS if self.node.is_none() => self.told.addresses.clone(),
            type_url::ADDRESS => self.now.addresses.clone(),
            type_url::AUTHORIZATION => self.now.authorizations.clone(),
            // Nodes begin no TLS of this kind.
            type_url::L7_BACKEND_TLS if self.node.is_none() => self.now.backend_tls.clone(),
            type_url::L7_POLICY => self.told.policies.clone(),
            type_url::L7_RULE => self.told.rules.clone(),
            type_url::POD_ENROLMENT => {
                self.node.as_ref().map(|node| self.now.enrolments(node)).unwrap_or_default()
            }
            _ => Resources::default(),
        }
    }

    fn lookup(&self, type_url: &str, key: &str) -> Vec<Arc<Resource>> {
        match type_url {
            type_url::ADDRESS => self.now.find_addresses(key),
            type_url::CLIENT => self.now.find_workloads(key),
            _ => self.snapshot(type_url).get(key).cloned().into_iter().collect(),
        }
    }

    fn waits(&self, type_url: &str, name: &str) -> bool {
        type_url == type_url::ADDRESS && self.told.guarded.contains(name)
    }
}

/// The discovery service: proves the caller, then leaves the rest to `xds`.
#[derive(Clone)]
pub struct Discovery {
    gate: Gate,
    published: Published,
    server: Server<Nodes>,
}

impl Discovery {
    /// Serves `published` to those that `gate` admits.
    #[must_use]
    pub fn new(gate: Gate, published: Published) -> Self {
        let server = Server::new(Nodes(published.clone()));
        Self { gate, published, server }
    }

    /// The service to be added to a tonic router.
    #[must_use]
    pub fn service(&self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// Who is connected, and what each has acknowledged.
    #[must_use]
    pub fn sessions(&self) -> Vec<xds::server::SessionStatus> {
        self.server.sessions()
    }

    /// What nodes have answered, of policies as they are published now.
    #[must_use]
    pub fn answers(&self) -> Answers {
        let mut nodes: BTreeMap<String, Vec<TypeStatus>> = BTreeMap::new();
        for session in self.server.sessions() {
            // Proven: whoever says another name than its own is not let in.
            let Some(node) = session.node.metadata.get(NODE_NAME) else { continue };
            let policies = session.types.into_iter().filter(|kind| kind.type_url == type_url::AUTHORIZATION);
            nodes.entry(node.clone()).or_default().extend(policies);
        }
        Answers::new(self.published.now().authorizations.clone(), nodes)
    }

    /// Changes when a node refuses something, or something else than before.
    #[must_use]
    pub fn refusals(&self) -> watch::Receiver<u64> {
        self.server.refusals()
    }
}

/// What the nodes that are served here have answered.
#[derive(Debug)]
pub struct Answers {
    current: Resources,
    /// The sessions of each node, in the order of their beginning: the successor of a ztunnel says what its node thinks.
    nodes: BTreeMap<String, Vec<TypeStatus>>,
    /// By policy and node, why.
    refused: BTreeMap<String, BTreeMap<String, String>>,
}

impl Answers {
    fn new(current: Resources, nodes: BTreeMap<String, Vec<TypeStatus>>) -> Self {
        let mut refused: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (node, sessions) in &nodes {
            for policy in sessions.iter().flat_map(|session| session.refused.keys()) {
                if let Some(Answer::Refused(why)) = last_answer(sessions, &current, policy) {
                    refused.entry(policy.clone()).or_default().insert(node.clone(), why.to_owned());
                }
            }
        }
        Self { current, nodes, refused }
    }
}

impl index::Answers for Answers {
    fn refusals(&self, policy: &PolicyName) -> BTreeMap<String, String> {
        self.refused.get(&policy.to_string()).cloned().unwrap_or_default()
    }

    fn has_taken(&self, node: &str, policy: &PolicyName) -> bool {
        let sessions = self.nodes.get(node).map(Vec::as_slice).unwrap_or_default();
        last_answer(sessions, &self.current, &policy.to_string()) == Some(Answer::Taken)
    }
}

/// What a node has said last of a policy as it is now.
fn last_answer<'a>(sessions: &'a [TypeStatus], current: &Resources, policy: &str) -> Option<Answer<'a>> {
    let version = &current.get(policy)?.version;
    sessions.iter().rev().find_map(|session| session.answer(policy, version))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream =
        <Server<Nodes> as AggregatedDiscoveryService>::StreamAggregatedResourcesStream;
    type DeltaAggregatedResourcesStream =
        <Server<Nodes> as AggregatedDiscoveryService>::DeltaAggregatedResourcesStream;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<wire::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.gate.admit(&request).await?;
        self.server.stream_aggregated_resources(request).await
    }

    async fn delta_aggregated_resources(
        &self,
        mut request: Request<Streaming<wire::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.gate.admit(&request).await?;
        let gone = pod_gone(self.published.clone(), caller.clone());
        let taken_back = Box::pin(self.gate.taken_back(&request, &caller, gone));
        request.extensions_mut().insert(caller);
        let responses = self.server.delta_aggregated_resources(request).await?;
        Ok(responses.map(|responses| -> Self::DeltaAggregatedResourcesStream {
            Box::pin(responses.take_until(taken_back))
        }))
    }
}

/// Resolves when the pod that a caller's proof is bound to has lived on its node as what the caller is, as far as we know, and does
/// so no more.
async fn pod_gone(published: Published, caller: Caller) {
    if let Some(pod) = caller.pod {
        let mut changes = published.watch();
        for lives in [true, false] {
            let is_so = |_: &u64| {
                let now = published.now();
                let is_there = match caller.role {
                    Role::Node => now.has_pod(&caller.node, &pod),
                    Role::Waypoint(_) => now.waypoint(&pod).is_some(),
                };
                is_there == lives
            };
            if changes.wait_for(is_so).await.is_err() {
                // Nothing is published any more: the process is about to end.
                break;
            }
            if !lives {
                return;
            }
        }
    }
    std::future::pending().await
}
