//! `GET /connections`: live connections, with what the kernel and policy say of each at this moment.
//!
//! Round trips and retransmits are those of the TCP connection on the network: of the tunnels between both ends, where there
//! are some, never of the sockets within the pod. Changes nothing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ebpf::socket::{self, Tuple};
use model::address::HBONE_PORT;
use model::policy::{Allowed, Verdict};
use serde_json::{Value, json};

use crate::data::Shared;
use crate::flow::Flow;
use crate::pod::Pod;
use crate::telemetry::{Facts, Party, Reporter, Transport};

/// All of them. Asks the kernel once for each pod that has any.
pub(super) fn all(shared: &Shared) -> Value {
    let mut of_pods: HashMap<Arc<str>, Vec<Arc<Flow>>> = HashMap::new();
    for flow in shared.flows.all() {
        of_pods.entry(flow.facts.pod.clone()).or_default().push(flow);
    }
    let pods: HashMap<_, _> = shared.pods.all().into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
    let shown = of_pods.into_iter().flat_map(|(uid, flows)| {
        let paths = pods.get(&uid).map(|pod| Paths::of(pod)).unwrap_or_default();
        flows.into_iter().map(move |flow| connection(shared, &flow, &paths)).collect::<Vec<_>>()
    });
    Value::Array(shown.collect())
}

fn connection(shared: &Shared, flow: &Flow, paths: &Paths) -> Value {
    let facts = &flow.facts;
    let party = |party: &Party| {
        let workload = party.workload.as_deref();
        json!({
            "workload": workload.map(|w| &*w.name),
            "owner": workload.map(|w| &*w.workload_name),
            "namespace": workload.map(|w| &**w.namespace()),
            "identity": party.identity.as_ref().map(ToString::to_string),
        })
    };
    let path = paths.find(facts);
    json!({
        "id": flow.id,
        "reporter": facts.reporter.as_str(),
        "transport": facts.transport.as_str(),
        "source": party(&facts.source),
        "destination": party(&facts.destination),
        "client": facts.client.to_string(),
        "dialled": facts.dialled.to_string(),
        "app": facts.app.to_string(),
        "authority": facts.authority.as_deref(),
        "service": facts.service.as_ref().map(|service| service.id.to_string()),
        "bytes_to_server": flow.traffic.to_server(),
        "bytes_to_client": flow.traffic.to_client(),
        "open_ms": u64::try_from(flow.opened.elapsed().as_millis()).unwrap_or(u64::MAX),
        "since": flow.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "rtt_us": path.and_then(|path| path.rtt).map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        "retransmits": path.map(|path| path.retransmits),
        "policy": policy(shared, facts),
    })
}

/// What policy says of it now; `null` at the source, where nobody asks.
fn policy(shared: &Shared, facts: &Facts) -> Value {
    let destination = facts.destination.workload.as_ref().filter(|_| facts.reporter == Reporter::Destination);
    let mesh = shared.mesh.snapshot();
    let destination = destination.and_then(|known| mesh.workload(&known.uid));
    destination.map_or(Value::Null, |workload| verdict(&mesh.authorize(&workload, facts.connection())))
}

/// A verdict for people and programs: what, by which policy, in words.
pub(super) fn verdict(Verdict { enforced, dry_run }: &Verdict) -> Value {
    let dry_run = dry_run.as_ref().map(ToString::to_string);
    match enforced {
        Ok(permit) => {
            let (by, reason) = match permit.reason() {
                Allowed::By(name) => (vec![name.to_string()], format!("allowed by policy {name}")),
                Allowed::NoPolicy => {
                    (Vec::new(), "no ALLOW policy guards it and no DENY policy matches".into())
                }
            };
            json!({ "allowed": true, "policies": by, "reason": reason, "dry_run": dry_run })
        }
        Err(denial) => {
            let by: Vec<_> = denial.policies().iter().map(ToString::to_string).collect();
            json!({ "allowed": false, "policies": by, "reason": denial.to_string(), "dry_run": dry_run })
        }
    }
}

/// What the kernel says of TCP connections between the same ends.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    /// The longest of their round trips.
    rtt: Option<Duration>,
    /// Of all of them together.
    retransmits: u32,
}

/// The TCP connections of one pod that lead to the network.
#[derive(Debug, Default)]
struct Paths {
    /// Tunnels by the other end, and whether they were made here.
    tunnels: HashMap<(IpAddr, bool), Path>,
    plain: HashMap<SocketAddr, Path>,
}

impl Paths {
    /// Without a netns that can be looked at there are none: they are an addition to what is shown.
    fn of(pod: &Pod) -> Self {
        let mut paths = Self::default();
        let sockets = socket::connections(&pod.netns).unwrap_or_default();
        for socket in sockets.iter().filter(|socket| !socket.is_within_pod()) {
            let Tuple { local, remote } = socket.tuple;
            let path = if remote.port() == HBONE_PORT {
                paths.tunnels.entry((remote.ip(), true)).or_default()
            } else if local.port() == HBONE_PORT {
                paths.tunnels.entry((remote.ip(), false)).or_default()
            } else if pod.owns(local.ip()) {
                paths.plain.entry(remote).or_default()
            } else {
                continue;
            };
            path.rtt = path.rtt.max(socket.rtt);
            path.retransmits = path.retransmits.saturating_add(socket.retransmits);
        }
        paths
    }

    fn find(&self, facts: &Facts) -> Option<Path> {
        let (ours, other) = match facts.reporter {
            Reporter::Source => (true, facts.app.0),
            Reporter::Destination => (false, facts.client.0),
        };
        match facts.transport {
            Transport::Hbone => self.tunnels.get(&(other.ip(), ours)).copied(),
            Transport::Local => None,
            Transport::Plaintext => self.plain.get(&other).copied(),
        }
    }
}
