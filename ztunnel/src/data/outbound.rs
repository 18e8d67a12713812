//! Outbound: a captured connection of one of this node's pods, from the dialled address to whoever answers.
//!
//! who is the source -> where does it go -> {in process | HBONE | plain TCP | refuse}. A connect that fails before a byte
//! was sent is tried again on another endpoint. Decides nothing about policy: that is the destination's.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use bytes::Bytes;
use model::address::{AppAddr, ClientAddr, NetworkAddress, OriginalDst, PROXY_PORTS, canonical};
use model::route::{self, Query, Route, Target};
use model::workload::{TunnelProtocol, Workload, WorkloadUid};
use nix::sys::socket::{MsgFlags, recv};
use proxy::tunnels::Opened;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::{PodContext, Shared, dns_tcp, local, relay, upstream};
use crate::flow::{Registered, Traffic};
use crate::pod::Pod;
use crate::refusal::Refusal;
use crate::tcp_info;
use crate::telemetry::{Facts, Party, Reporter, Transport};

/// The most that is read ahead of a tunnel's answer: a request with its headers, or a TLS hello.
const EARLY: usize = 4096;
/// Where DNS is spoken over TCP.
const DNS_PORT: u16 = 53;
/// Endpoints tried for one connection: two that fail are bad luck, three are an outage that a fourth won't mend.
const ATTEMPTS: usize = 3;

/// Carries one captured connection to its end and reports it.
pub(crate) async fn handle(context: Arc<PodContext>, mut app: TcpStream, client: SocketAddr) {
    let Some(facts) = seen(&context, &app, client) else { return };
    let Facts { dialled, client, .. } = facts;
    let mut early = Bytes::new();
    if dialled.0.port() == DNS_PORT && !context.pod.owns(dialled.0.ip()) {
        match dns_tcp::serve(&context, &mut app).await {
            Some(question) => early = question,
            None => return,
        }
    }
    let mut attempt = Attempt { context: &context, client, dialled, facts, early };
    match attempt.connect(&app).await {
        Ok(connected) => connected.run(&context, app, attempt.early).await,
        Err(refusal) => {
            context.shared.telemetry.refused(&attempt.facts, &refusal);
            relay::reset(&app);
        }
    }
}

/// A connection that has somewhere to go.
enum Connected {
    /// To another pod of this node, judged by its policies.
    Local(local::Local),
    /// Plain TCP.
    Plain(Registered, TcpStream, Option<super::balance::Outstanding>),
    /// Through a tunnel, which must be over at a moment.
    Tunnel(Registered, (hbone::Stream, Instant), super::balance::Outstanding),
}

impl Connected {
    /// `early` was read from the application before; a tunnel has it already.
    async fn run(self, context: &PodContext, mut app: TcpStream, early: Bytes) {
        let telemetry = &context.shared.telemetry;
        match self {
            Self::Local(local) => local.run(context, app, early).await,
            Self::Plain(flow, mut server, _outstanding) => {
                let outcome = tokio::select! {
                    biased;
                    ending = flow.ended() => Err(ending.into()),
                    outcome = relay::relay(&mut app, &mut server, &flow.traffic, early, &context.buffers) => outcome.map_err(Refusal::Relay),
                };
                if outcome.is_err() {
                    relay::reset(&server);
                    relay::reset(&app);
                }
                telemetry.closed(&flow, &outcome, tcp_info::of(&server));
            }
            Self::Tunnel(flow, (stream, until), _outstanding) => {
                flow.traffic.add_to_server(early.len() as u64);
                let outcome = tokio::select! {
                    biased;
                    ending = flow.ended() => Err(ending.into()),
                    outcome = upstream::relay(&app, stream, &flow.traffic, upstream::End::Client) => outcome,
                    () = sleep_until(until) => Err(Refusal::Drained("the certificates of its tunnel expired a day ago")),
                };
                if outcome.is_err() {
                    relay::reset(&app);
                }
                telemetry.closed(&flow, &outcome, tcp_info::of(&app));
            }
        }
    }
}

/// One connection on its way to a destination; `facts` grow as it is understood.
struct Attempt<'a> {
    context: &'a Arc<PodContext>,
    client: ClientAddr,
    dialled: OriginalDst,
    facts: Facts,
    /// What the application has said already: it goes along with a tunnel's request, one round trip early.
    early: Bytes,
}

impl Attempt<'_> {
    async fn connect(&mut self, app: &TcpStream) -> Result<Connected, Refusal> {
        let pod = &self.context.pod;
        may_dial(pod, self.dialled)?;
        let ClientAddr(client) = self.client;
        if !pod.owns(client.ip()) {
            // Any program can bind an address that its host does not have, and policies and applications would believe it.
            return Err(Refusal::ForeignSource(client));
        }
        let shared = &self.context.shared;
        let source = shared.mesh.local_workload(&pod.workload).await;
        let source = source.ok_or_else(|| Refusal::WorkloadUnknown(pod.workload.clone()))?;
        self.facts.source.workload = Some(Arc::clone(&source));
        look_up(shared, &pod.identity.namespace, self.dialled).await?;
        let mut tried: Vec<WorkloadUid> = Vec::new();
        loop {
            let query = Query { source: &source, dst: self.dialled, exclude: &tried };
            let route = route::outbound(&shared.mesh.snapshot(), query, &mut self.context.balance.clone())?;
            let (target, waypoint) = match route {
                Route::Passthrough(to) => return self.passthrough(to).await,
                Route::Waypoint(target) => (target, true),
                Route::Workload(target) => (target, false),
            };
            let endpoint = target.workload.uid.clone();
            let more = target.alternatives && tried.len() + 1 < ATTEMPTS;
            match self.reach(target, waypoint, app).await {
                Ok(connected) => {
                    self.context.balance.succeeded(&endpoint);
                    return Ok(connected);
                }
                Err(refusal) if refusal.is_endpoints_fault() => {
                    self.context.balance.failed(&endpoint);
                    if !more {
                        return Err(refusal);
                    }
                    tracing::debug!(%endpoint, %refusal, "trying another endpoint");
                    tried.push(endpoint);
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Out of the mesh: plain TCP to the address that was dialled.
    async fn passthrough(&mut self, to: SocketAddr) -> Result<Connected, Refusal> {
        let server = upstream::plain(self.context, self.client, to).await?;
        let flow = self.open(AppAddr(to));
        Ok(Connected::Plain(flow, server, None))
    }

    async fn reach(&mut self, target: Target, waypoint: bool, app: &TcpStream) -> Result<Connected, Refusal> {
        self.describe(&target);
        let context = self.context;
        let way = way(&context.shared, &target, waypoint)?;
        let outstanding = context.balance.connecting(&target.workload.uid);
        match way {
            Way::Local(destination) => {
                self.facts.transport = Transport::Local;
                let local = local::connect(context, destination, self.facts.clone(), outstanding).await?;
                Ok(Connected::Local(local))
            }
            Way::Tunnel => {
                self.facts.transport = Transport::Hbone;
                self.facts.authority = Some(target.authority.as_str().into());
                if self.early.is_empty() {
                    self.early = said_already(app);
                }
                let Opened { stream, identity, until } =
                    upstream::open(context, &target, &self.facts, self.early.clone()).await?;
                self.facts.destination.identity = Some(identity);
                let flow = self.open(target.app);
                Ok(Connected::Tunnel(flow, (stream, until), outstanding))
            }
            Way::Plain => {
                self.facts.transport = Transport::Plaintext;
                let server = upstream::plain(context, self.client, target.app.0).await?;
                let flow = self.open(target.app);
                Ok(Connected::Plain(flow, server, Some(outstanding)))
            }
        }
    }

    fn describe(&mut self, target: &Target) {
        self.facts.destination = Party { workload: Some(Arc::clone(&target.workload)), identity: None };
        self.facts.service.clone_from(&target.service);
        self.facts.app = target.app;
    }

    fn open(&mut self, app: AppAddr) -> Registered {
        self.facts.app = app;
        let flow = self.context.shared.flows.open(self.facts.clone(), Arc::new(Traffic::default()));
        self.context.shared.telemetry.opened(&flow);
        flow
    }
}

/// How a target is reached.
#[derive(Debug)]
pub(crate) enum Way {
    /// Within this process: both ends are pods of this node.
    Local(Arc<Pod>),
    /// Plain TCP.
    Plain,
    /// In mutual TLS.
    Tunnel,
}

/// The way to a target from a pod of this node.
pub(crate) fn way(shared: &Shared, target: &Target, waypoint: bool) -> Result<Way, Refusal> {
    if PROXY_PORTS.contains(&target.app.0.port()) && !waypoint {
        return Err(Refusal::OwnPort(target.app.0));
    }
    let here = !waypoint && !shared.settings.force_tunnel;
    let local = here.then(|| shared.pods.get(&target.workload.uid)).flatten();
    Ok(match (local, target.tunnel) {
        (Some(destination), _) => Way::Local(destination),
        (None, TunnelProtocol::Hbone) => Way::Tunnel,
        (None, TunnelProtocol::None) => Way::Plain,
    })
}

/// Whether connections of `pod` to an address are carried, whatever is there.
pub(crate) fn may_dial(pod: &Pod, OriginalDst(dialled): OriginalDst) -> Result<(), Refusal> {
    if let Some(reason) = &pod.refused {
        return Err(Refusal::PodRefused(reason.clone()));
    }
    if pod.owns(dialled.ip()) || dialled.ip().is_loopback() {
        // Nothing of this kind is captured: somebody dialled the listener itself.
        return Err(Refusal::OwnPort(dialled));
    }
    Ok(())
}

/// In on-demand mode, asks the controller for an address that is not known yet.
pub(crate) async fn look_up(
    shared: &Shared,
    namespace: &str,
    OriginalDst(dialled): OriginalDst,
) -> Result<(), Refusal> {
    let Some(demand) = &shared.demand else { return Ok(()) };
    let address = NetworkAddress { network: shared.settings.network.clone(), ip: dialled.ip() };
    let known = {
        let mesh = shared.mesh.snapshot();
        mesh.service_by_vip(&address.network, address.ip, namespace).is_some()
            || mesh.workload_by_address(&address).is_some()
    };
    if known {
        return Ok(());
    }
    let asked = demand.lookup(api::type_url::ADDRESS, &address.to_string()).await;
    asked.map_err(|error| Refusal::Tunnel {
        to: dialled,
        reason: format!("discovery does not answer: {error}"),
    })
}

/// What the application has said by now, without waiting for it. Clients that speak first mostly have by the time that
/// their connection is understood; what comes later, an end or an error too, is the relay's to read.
fn said_already(app: &TcpStream) -> Bytes {
    let mut buffer = [0; EARLY];
    match recv(app.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(count) => Bytes::copy_from_slice(&buffer[..count]),
        Err(_) => Bytes::new(),
    }
}

/// What a connection shows before it is looked up; `None` if it is gone already.
pub(crate) fn seen(context: &PodContext, app: &TcpStream, client: SocketAddr) -> Option<Facts> {
    let workload: Option<Arc<Workload>> = None;
    let (client, dialled) = (ClientAddr(canonical(client)), OriginalDst(canonical(app.local_addr().ok()?)));
    Some(Facts {
        reporter: Reporter::Source,
        transport: Transport::Plaintext,
        source: Party { workload, identity: Some(context.pod.identity.clone()) },
        destination: Party::default(),
        client,
        dialled,
        app: AppAddr(dialled.0),
        authority: None,
        service: None,
        pod: context.pod.uid.clone(),
        generation: context.pod.generation,
    })
}
