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

/// The order in which nodes are told: a policy before the workloads that name it, and that it is gone after these, because a workload
/// that names a policy which is not known is refused everything.
const OF_NODES: [Step; 4] = [
    Step { type_url: type_url::AUTHORIZATION, part: Part::Changes },
    Step { type_url: type_url::ADDRESS, part: Part::Awaited },
    Step { type_url: type_url::AUTHORIZATION, part: Part::Removals },
    Step::whole(type_url::POD_ENROLMENT),
];

/// The order in which waypoints are told: the TLS towards services before these, what rules lead to before the rules, these before the
/// services that are theirs to guard, and in the same order backwards what is gone. So no request passes without a rule that it
/// should meet, meets one that leads nowhere, or goes in plaintext where TLS is wanted.
const OF_WAYPOINTS: [Step; 12] = [
    Step { type_url: type_url::AUTHORIZATION, part: Part::Changes },
    Step { type_url: type_url::L7_BACKEND_TLS, part: Part::Changes },
    Step { type_url: type_url::ADDRESS, part: Part::Early },
    Step { type_url: type_url::L7_POLICY, part: Part::Changes },
    Step { type_url: type_url::L7_RULE, part: Part::Changes },
    Step { type_url: type_url::ADDRESS, part: Part::Changes },
    Step { type_url: type_url::L7_RULE, part: Part::Removals },
    Step { type_url: type_url::L7_POLICY, part: Part::Removals },
    Step { type_url: type_url::ADDRESS, part: Part::Removals },
    Step { type_url: type_url::L7_BACKEND_TLS, part: Part::Removals },
    Step { type_url: type_url::AUTHORIZATION, part: Part::Removals },
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use prost_types::Any;
    use xds::message;
    use xds::server_core::Core;

    use super::*;

    /// A mesh of these policies and of a workload that names them all.
    struct Named(&'static [&'static str]);

    impl View for Named {
        fn snapshot(&self, type_url: &str) -> Resources {
            let resource = |name: &str, body: String| {
                let value = body.into_bytes();
                Resource::new(name.to_owned(), Vec::new(), Any { type_url: type_url.to_owned(), value })
            };
            match type_url {
                type_url::ADDRESS => [resource("workload", self.0.join(" "))].into_iter().collect(),
                type_url::AUTHORIZATION => self.0.iter().map(|name| resource(name, String::new())).collect(),
                _ => Resources::default(),
            }
        }

        fn lookup(&self, _: &str, _: &str) -> Vec<Arc<Resource>> {
            Vec::new()
        }
    }

    /// A client that comes back with what it holds, and asks for policies first.
    fn comes_back(steps: &[Step], before: &Named, now: &Named) {
        let mut session = Core::new(steps, usize::MAX);
        let mut held: BTreeMap<&str, Resources> = BTreeMap::new();
        let mut requests = VecDeque::new();
        for type_url in [type_url::AUTHORIZATION, type_url::ADDRESS] {
            let known = before.snapshot(type_url);
            let versions = known.iter().map(|it| (it.name.clone(), it.version.clone())).collect();
            requests.push_back(message::Request {
                type_url: type_url.to_owned(),
                held: versions,
                ..Default::default()
            });
            held.insert(type_url, known);
        }
        while let Some(request) = requests.pop_front() {
            session.request(Duration::ZERO, request).expect("within limits");
            while let Some(response) = session.poll(now) {
                let of_type = held.get_mut(response.type_url.as_str()).expect("asked for");
                of_type.extend(response.resources);
                for name in response.removed {
                    of_type.remove(&name);
                }
                let workload = held[type_url::ADDRESS].get("workload").expect("it stays");
                let names = String::from_utf8_lossy(&workload.body.value);
                for name in names.split_whitespace() {
                    assert!(held[type_url::AUTHORIZATION].get(name).is_some(), "{name} is named and unknown");
                }
                let (type_url, nonce) = (response.type_url, response.nonce);
                requests.push_back(message::Request { type_url, nonce, ..Default::default() });
            }
        }
        for (type_url, held) in held {
            let told = |all: &Resources| {
                all.iter().map(|it| (it.name.clone(), it.version.clone())).collect::<Vec<_>>()
            };
            assert_eq!(told(&held), told(&now.snapshot(type_url)), "{type_url}");
        }
    }

    #[test]
    fn policies_that_a_client_is_told_of_when_it_comes_back_are_known_while_they_are_named() {
        for steps in [&OF_NODES[..], &OF_WAYPOINTS] {
            for (before, now) in
                [(&[][..], &["new"][..]), (&["old"], &["new"]), (&["old"], &[]), (&["old"], &["old"])]
            {
                comes_back(steps, &Named(before), &Named(now));
            }
        }
    }
}
