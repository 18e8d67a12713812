//! The variants: no mesh, ours in several forms, and another proxy; set up all at once, each on nodes of its own.
//!
//! A variant is used only after it was seen to be what its name says: with or without tunnels.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lab::{Env, Lab, LabConfig, Node, Pod, PodSpec, Process, Program, Tuning, wait_until};
use serde::Serialize;

use super::measure::{Measurement, Window};
use super::peer::Peer;
use super::{measure, say};
use crate::load::client::Kind;
use crate::load::{ECHO_PORT, SINK_PORT};

/// How long a variant may take until its traffic goes the way it should. Enrolment takes a fraction of a second; the
/// rest is for machines where much else runs.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where tunnels lead, in the kernel's hexadecimal.
const HBONE_PORT: &str = "3AA0";

/// Everything that is measured, and the lab that it runs in.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) variants: Vec<Variant>,
    _peers: Vec<Peer>,
    _lab: Lab,
}

/// One way from a client pod to a server pod.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) plan: Plan,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) app: Process,
    pub(crate) proxies: Vec<Process>,
}

/// What a variant is, before it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) mesh: Mesh,
    pub(crate) way: Way,
}

/// Who carries the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mesh {
    None,
    Airglow,
    /// With one data thread, so that all connections of a pod share one tunnel.
    AirglowOneThread,
    /// With tunnels also between pods of one node.
    AirglowTunnel,
    Peer,
}

/// Between which pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// Of two nodes.
    Cross,
    /// Of one node.
    Local,
}

/// What the results say of a variant.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Description {
    pub(crate) name: &'static str,
    pub(crate) mesh: Mesh,
    pub(crate) way: Way,
    pub(crate) client: String,
    pub(crate) server: String,
    pub(crate) proxies: Vec<u32>,
}

/// Every variant, in the order of the tables.
const PLANS: [Plan; 8] = [
    Plan { name: "none-cross", mesh: Mesh::None, way: Way::Cross },
    Plan { name: "airglow-cross", mesh: Mesh::Airglow, way: Way::Cross },
    Plan { name: "airglow-cross-1-thread", mesh: Mesh::AirglowOneThread, way: Way::Cross },
    Plan { name: "peer-cross", mesh: Mesh::Peer, way: Way::Cross },
    Plan { name: "none-local", mesh: Mesh::None, way: Way::Local },
    Plan { name: "airglow-local", mesh: Mesh::Airglow, way: Way::Local },
    Plan { name: "airglow-local-tunnel", mesh: Mesh::AirglowTunnel, way: Way::Local },
    Plan { name: "peer-local", mesh: Mesh::Peer, way: Way::Local },
];

/// The variants to set up: without a peer those of ours, and of these the named ones and what they are compared with.
pub(crate) fn plans(has_peer: bool, named: &[String]) -> anyhow::Result<Vec<Plan>> {
    let possible: Vec<_> = PLANS.into_iter().filter(|plan| plan.mesh != Mesh::Peer || has_peer).collect();
    for name in named {
        let names: Vec<_> = possible.iter().map(|plan| plan.name).collect();
        ensure!(names.contains(&name.as_str()), "there is no variant {name}; there are {}", names.join(", "));
    }
    let is_asked_for = |plan: &Plan| named.is_empty() || named.iter().any(|name| name == plan.name);
    let ways: Vec<_> = possible.iter().filter(|plan| is_asked_for(plan)).map(|plan| plan.way).collect();
    let is_base = |plan: &Plan| plan.mesh == Mesh::None && ways.contains(&plan.way);
    Ok(possible.into_iter().filter(|plan| is_asked_for(plan) || is_base(plan)).collect())
}

impl Mesh {
    fn is_ours(self) -> bool {
        matches!(self, Self::Airglow | Self::AirglowOneThread | Self::AirglowTunnel)
    }
}

impl Cluster {
    /// Sets everything up and waits until each variant's traffic goes the way it should.
    pub(crate) fn start(plans: &[Plan], peer: Option<&Path>, tuning: Tuning) -> anyhow::Result<Self> {
        say(&format!("setting up {} variants", plans.len()));
        let nodes = plans.iter().map(|plan| plan.way.nodes()).sum();
        let lab = Lab::start(LabConfig { nodes, ipv6: false, capture: false, tuning, binaries: None })?;
        lab.start_controller(Env::new())?;
        let mut first = 0;
        let mut variants = Vec::new();
        let mut peers = Vec::new();
        for &plan in plans {
            let nodes: Vec<_> = (first..first + plan.way.nodes()).map(|index| lab.node(index)).collect();
            first += nodes.len();
            let (variant, more) = set_up(&lab, plan, &nodes, peer)
                .with_context(|| format!("set up the variant {}", plan.name))?;
            variants.push(variant);
            peers.extend(more);
        }
        for variant in &variants {
            variant.await_ready().with_context(|| format!("try the variant {}", variant.plan.name))?;
            say(&format!("{} is ready; its proxies: {:?}", variant.plan.name, variant.describe().proxies));
        }
        Ok(Self { variants, _peers: peers, _lab: lab })
    }

    /// Ends our proxies as a node that is shut down does: one that can't end has not been measured as what it is.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        for variant in self.variants.iter().filter(|variant| variant.plan.mesh.is_ours()) {
            for proxy in &variant.proxies {
                proxy.terminate().with_context(|| format!("end a proxy of {}", variant.plan.name))?;
            }
        }
        Ok(())
    }
}

impl Variant {
    /// Where the load goes.
    pub(crate) fn address(&self, kind: Kind) -> SocketAddr {
        let port = if kind == Kind::Bulk { SINK_PORT } else { ECHO_PORT };
        SocketAddr::new(self.server.ip(), port)
    }

    /// What the results say of it.
    pub(crate) fn describe(&self) -> Description {
        let Plan { name, mesh, way } = self.plan;
        let pod = |pod: &Pod| format!("{} on {}", pod.ip(), pod.node().name());
        let proxies = self.proxies.iter().map(Process::pid).collect();
        Description { name, mesh, way, client: pod(&self.client), server: pod(&self.server), proxies }
    }

    /// Uses it until its connections are in a tunnel, or not, as they should be.
    fn await_ready(&self) -> anyhow::Result<()> {
        let window = Window { warm: Duration::ZERO, length: Duration::from_millis(50) };
        let wanted = self.plan.is_tunnelled();
        wait_until(&format!("traffic of {}", self.plan.name), READY_WITHIN, || {
            let report = measure::run(self, Kind::PingPong, 1, window)?;
            let carried = report.cpu.proxies > 0.0;
            match (report.operations > 0, tunnels(&self.client)? > 0, carried) {
                (true, tunnelled, true) if tunnelled == wanted => Ok(()),
                (true, false, _) if self.plan.mesh == Mesh::None => Ok(()),
                (answered, tunnelled, carried) => {
                    bail!("answered: {answered}, in a tunnel: {tunnelled}, through a proxy: {carried}")
                }
            }
        })?;
        Ok(())
    }
}

impl Plan {
    /// Whether it takes part: what needs all connections in one tunnel is there for that alone.
    pub(crate) fn takes(self, measurement: Measurement, besides: bool) -> bool {
        match self.mesh {
            Mesh::AirglowOneThread => {
                besides
                    && matches!(
                        measurement,
                        Measurement::Bulk(4) | Measurement::PingPong(1) | Measurement::Beside
                    )
            }
            Mesh::None | Mesh::Airglow | Mesh::AirglowTunnel | Mesh::Peer => {
                measurement != Measurement::Beside || self.way == Way::Cross
            }
        }
    }

    fn is_tunnelled(self) -> bool {
        match (self.mesh, self.way) {
            (Mesh::None, _) | (Mesh::Airglow | Mesh::AirglowOneThread, Way::Local) => false,
            (Mesh::AirglowTunnel | Mesh::Peer, _) | (Mesh::Airglow | Mesh::AirglowOneThread, Way::Cross) => {
                true
            }
        }
    }
}

impl Way {
    fn nodes(self) -> usize {
        match self {
            Self::Cross => 2,
            Self::Local => 1,
        }
    }
}

fn set_up(
    lab: &Lab,
    plan: Plan,
    nodes: &[Node],
    peer: Option<&Path>,
) -> anyhow::Result<(Variant, Vec<Peer>)> {
    let namespace = plan.name;
    let is_ours = plan.mesh.is_ours();
    let mut proxies = Vec::new();
    if is_ours {
        lab.label_namespace(namespace, "istio.io/dataplane-mode", Some("ambient"))?;
        for node in nodes {
            proxies.push(node.start_ztunnel(ztunnel_env(plan.mesh))?);
        }
    }
    let pod = |node: &Node, name: &str| {
        let mut spec = PodSpec::new(namespace, name).service_account(name);
        if plan.mesh == Mesh::Peer {
            // Makes the controller publish that the pod is reached by HBONE, though our ztunnel does not enrol it.
            spec = spec.label("networking.istio.io/tunnel", "http");
        }
        node.add_pod(spec)
    };
    let (near, far) = (&nodes[0], &nodes[nodes.len() - 1]);
    let (client, server) = (pod(near, "client")?, pod(far, "server")?);
    let mut peers = Vec::new();
    if let (Mesh::Peer, Some(path)) = (plan.mesh, peer) {
        for node in nodes {
            let pods: Vec<_> =
                [&client, &server].into_iter().filter(|pod| pod.node().name() == node.name()).collect();
            peers.push(Peer::start(path, node, &pods)?);
        }
        proxies.extend(peers.iter().map(|peer| peer.process.clone()));
    }
    let app = server.spawn(own_program()?.args(["app-server"]))?;
    app.wait_for_line("serving", READY_WITHIN)?;
    if is_ours {
        for pod in [&client, &server] {
            pod.wait_for_state("enrolled", READY_WITHIN)?;
        }
    }
    Ok((Variant { plan, client, server, app, proxies }, peers))
}

fn ztunnel_env(mesh: Mesh) -> Env {
    let set = |name: &str, value: &str| Env::from([(name.to_owned(), value.to_owned())]);
    match mesh {
        Mesh::AirglowOneThread => set("AIRGLOW_THREADS", "1"),
        Mesh::AirglowTunnel => set("AIRGLOW_LOCAL_PATH", "tunnel"),
        Mesh::None | Mesh::Airglow | Mesh::Peer => Env::new(),
    }
}

/// This executable, whose other commands make and take load.
pub(crate) fn own_program() -> anyhow::Result<Program> {
    Ok(Program::new(std::env::current_exe().context("find this executable")?))
}

/// Established connections from a pod's namespace to an HBONE port.
fn tunnels(pod: &Pod) -> anyhow::Result<usize> {
    let read = || {
        let files = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        files.map(|path| fs::read_to_string(path).unwrap_or_default())
    };
    Ok(pod.netns().run(read)?.iter().map(|text| count_tunnels(text)).sum())
}

/// Lines of /proc/net/tcp (proc_net(5)) whose remote port is HBONE's and whose state is "established".
fn count_tunnels(text: &str) -> usize {
    let mut fields = text.lines().map(|line| line.split_whitespace().skip(2));
    let is_tunnel = |(remote, state): (&str, &str)| {
        remote.rsplit_once(':').is_some_and(|(_, port)| port == HBONE_PORT) && state == "01"
    };
    fields
        .by_ref()
        .filter_map(|mut fields| Some((fields.next()?, fields.next()?)))
        .filter(|f| is_tunnel(*f))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_told_from_other_connections() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                    0: 0201F40A:3AA0 0202F40A:9C40 01 00000000:00000000\n\
                    1: 0201F40A:9C40 0202F40A:3AA0 01 00000000:00000000\n\
                    2: 0201F40A:9C41 0202F40A:3AA0 06 00000000:00000000\n";
        assert_eq!(count_tunnels(text), 1);
    }

    #[track_caller]
    fn check_plans(has_peer: bool, named: &[&str], expected: &[&str]) {
        let named: Vec<_> = named.iter().map(|name| (*name).to_owned()).collect();
        let found: Vec<_> = plans(has_peer, &named).unwrap().iter().map(|plan| plan.name).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_asked_for_comes_with_what_it_is_compared_with() {
        check_plans(false, &["airglow-local"], &["none-local", "airglow-local"]);
        check_plans(true, &["peer-cross", "airglow-cross"], &["none-cross", "airglow-cross", "peer-cross"]);
        assert_eq!(plans(true, &[]).unwrap().len(), PLANS.len());
        assert_eq!(plans(false, &[]).unwrap().len(), PLANS.len() - 2);
        assert!(plans(false, &["peer-cross".into()]).unwrap_err().to_string().contains("airglow-cross"));
    }

    #[test]
    fn every_way_and_mesh_has_something_to_be_compared_with() {
        for plan in PLANS {
            let has = |mesh| PLANS.iter().any(|other| other.mesh == mesh && other.way == plan.way);
            assert!(has(Mesh::None) && has(Mesh::Peer), "{}", plan.name);
        }
    }
}
