//! `airglow pods|certs|connections|workloads|services|policies`: what ztunnels know, as a table or as a document.
//!
//! The first three differ from node to node; of the others every node holds the same, so one of them is asked.

mod discovery;

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use daemon::config::Vars;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::admin_client;
use crate::flows::{short, size};
use crate::mesh::{Mesh, Peer};
use crate::output::Where;
use crate::term::{self, Style, Table};

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Certificates,
    Connections,
    Pods,
    Policies,
    Services,
    Workloads,
}

impl What {
    /// The route, and the name of the list in a document.
    fn key(self) -> &'static str {
        match self {
            Self::Certificates => "certificates",
            Self::Connections => "connections",
            Self::Pods => "pods",
            Self::Policies => "policies",
            Self::Services => "services",
            Self::Workloads => "workloads",
        }
    }

    /// Whether every node knows something else.
    fn is_of_node(self) -> bool {
        matches!(self, Self::Certificates | Self::Connections | Self::Pods)
    }

    /// The namespaces that a thing belongs to.
    fn namespaces(self, thing: &Value) -> Vec<&str> {
        match self {
            Self::Certificates => {
                let identity = thing["identity"].as_str().unwrap_or_default();
                let rest = identity.split_once("/ns/").map_or("", |(_, rest)| rest);
                vec![rest.split('/').next().unwrap_or_default()]
            }
            Self::Connections => {
                let ends = ["source", "destination"].into_iter();
                ends.filter_map(|end| thing[end]["namespace"].as_str()).collect()
            }
            Self::Pods => {
                let pod = thing["pod"].as_str().unwrap_or_default();
                vec![pod.split('/').next().unwrap_or_default()]
            }
            Self::Policies | Self::Services | Self::Workloads => {
                vec![thing["namespace"].as_str().unwrap_or_default()]
            }
        }
    }
}

/// A pod in the answer to `/pods`.
#[derive(Debug, Deserialize)]
pub(crate) struct Pod {
    /// `namespace/name`.
    pub(crate) pod: String,
    /// `enrolled`, `not wanted`, ...
    pub(crate) state: String,
    /// Why, where that is not plain.
    #[serde(default)]
    pub(crate) message: String,
    /// Its Kubernetes UID.
    pub(crate) uid: String,
}

/// A connection in the answer to `/connections`.
#[derive(Debug, Deserialize)]
pub(crate) struct Connection {
    pub(crate) reporter: String,
    pub(crate) transport: String,
    pub(crate) source: Party,
    pub(crate) destination: Party,
    client: String,
    app: String,
    bytes_to_server: u64,
    bytes_to_client: u64,
    open_ms: u64,
    /// Of its TCP connection on the network, or of its tunnel's.
    #[serde(default)]
    pub(crate) rtt_us: Option<u64>,
    #[serde(default)]
    pub(crate) retransmits: Option<u64>,
    #[serde(default)]
    pub(crate) policy: Option<Policy>,
}

/// What policy says of a connection at its destination.
#[derive(Debug, Deserialize)]
pub(crate) struct Policy {
    allowed: bool,
    policies: Vec<String>,
}

impl Policy {
    /// `ok` without a policy, `ok (shop/allow)`, `denied (shop/deny)`.
    pub(crate) fn words(&self) -> String {
        let verdict = if self.allowed { "ok" } else { "denied" };
        if self.policies.is_empty() {
            verdict.to_owned()
        } else {
            format!("{verdict} ({})", self.policies.join(", "))
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Party {
    workload: Option<String>,
    /// What the pod belongs to: a Deployment and the like.
    #[serde(default)]
    pub(crate) owner: Option<String>,
    pub(crate) namespace: Option<String>,
    identity: Option<String>,
}

/// Prints it.
pub(crate) fn run(what: What, at: &Where, style: Style, vars: &dyn Vars) -> anyhow::Result<()> {
    let mesh = Mesh::find(&at.which, vars)?;
    let peers = mesh.nodes(at.node.as_deref())?;
    let (mut nodes, problems) = if what.is_of_node() {
        each(&mesh, &peers, what)
    } else {
        (vec![any(&mesh, &peers, what)?], Vec::new())
    };
    for (_, things) in &mut nodes {
        things.retain(|thing| at.admits(what.namespaces(thing)));
        if !what.is_of_node() {
            things.sort_by_cached_key(|thing| (what.namespaces(thing).concat(), name_of(thing)));
        }
    }
    let table = table(what, &nodes)?;
    let document = |(node, things): (String, Vec<Value>)| {
        let fields = [("node".to_owned(), node.into()), (what.key().to_owned(), things.into())];
        Value::Object(Map::from_iter(fields))
    };
    let document = if what.is_of_node() {
        Value::Array(nodes.into_iter().map(document).collect())
    } else {
        Value::Array(nodes.into_iter().flat_map(|(_, things)| things).collect())
    };
    at.print(&document, table, &format!("no {}", what.key()), style)?;
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

fn name_of(thing: &Value) -> String {
    let name = thing.get("hostname").filter(|host| *host != "").unwrap_or(&thing["name"]);
    name.as_str().unwrap_or_default().to_owned()
}

/// What each node knows, and whose answer can't be had.
fn each(mesh: &Mesh, peers: &[Peer], what: What) -> (Vec<(String, Vec<Value>)>, Vec<String>) {
    let path = format!("/{}", what.key());
    let (mut known, mut problems) = (Vec::new(), Vec::new());
    for (answer, peer) in mesh.ask_all(peers, &path).into_iter().zip(peers) {
        match answer.and_then(|answer| admin_client::read(&peer.name, &path, &answer)) {
            Ok(things) => known.push((peer.name.clone(), things)),
            Err(error) => problems.push(error.to_string()),
        }
    }
    (known, problems)
}

/// What the first node that answers knows.
fn any(mesh: &Mesh, peers: &[Peer], what: What) -> anyhow::Result<(String, Vec<Value>)> {
    let mut failure = None;
    for peer in peers {
        match mesh.ask_json(peer, &format!("/{}", what.key())) {
            Ok(things) => return Ok((peer.name.clone(), things)),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.context("there is no node to ask")?.into())
}

fn table(what: What, nodes: &[(String, Vec<Value>)]) -> anyhow::Result<Table> {
    let things =
        nodes.iter().flat_map(|(node, things)| things.iter().map(move |thing| (node.as_str(), thing)));
    match what {
        What::Certificates => fill(certificates(), things, certificate),
        What::Connections => fill(connections(), things, connection),
        What::Pods => {
            fill(Table::new(["NODE", "POD", "STATE", "+UID", "MESSAGE"]), things, |node, pod: Pod| {
                [node.to_owned(), pod.pod, pod.state, pod.uid, pod.message]
            })
        }
        What::Policies => fill(discovery::policies(), things, |_, policy| discovery::policy_row(policy)),
        What::Services => fill(discovery::services(), things, |_, service| discovery::service_row(service)),
        What::Workloads => {
            fill(discovery::workloads(), things, |_, workload| discovery::workload_row(workload))
        }
    }
}

/// Makes a row of each thing.
fn fill<'a, T: serde::de::DeserializeOwned, const N: usize>(
    mut table: Table,
    things: impl Iterator<Item = (&'a str, &'a Value)>,
    row: impl Fn(&str, T) -> [String; N],
) -> anyhow::Result<Table> {
    for (node, thing) in things {
        let thing = serde_json::from_value(thing.clone()).with_context(|| {
            format!("{node} answers in a form that this airglow does not know; is it as old as the ztunnel?")
        })?;
        table.row(row(node, thing));
    }
    Ok(table)
}

/// A certificate in the answer to `/certificates`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    identity: String,
    state: String,
    cert_chain: Vec<Leaf>,
    last_failure: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Leaf {
    serial_number: String,
    expiration_time: u64,
}

fn certificates() -> Table {
    Table::new(["NODE", "IDENTITY", "STATE", "EXPIRES IN", "+SERIAL", "LAST FAILURE"])
}

fn certificate(node: &str, certificate: Certificate) -> [String; 6] {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let leaf = certificate.cert_chain.first();
    let left = leaf.map(|leaf| leaf.expiration_time.saturating_sub(now));
    [
        node.to_owned(),
        certificate.identity,
        certificate.state,
        left.map(expiry).unwrap_or_default(),
        leaf.map(|leaf| leaf.serial_number.clone()).unwrap_or_default(),
        certificate.last_failure.unwrap_or_default(),
    ]
}

fn connections() -> Table {
    Table::new([
        "NODE",
        "WAY",
        "SOURCE",
        "SOURCE IDENTITY",
        "DESTINATION",
        "DESTINATION IDENTITY",
        "TRANSPORT",
        ">REQUEST",
        ">RESPONSE",
        ">RTT",
        ">RETRANS",
        ">AGE",
        "POLICY",
    ])
}

fn connection(node: &str, connection: Connection) -> [String; 13] {
    let Connection { source, destination, .. } = &connection;
    let identity = |party: &Party| short(party.identity.as_deref().unwrap_or_default());
    [
        node.to_owned(),
        if connection.reporter == "source" { "out" } else { "in" }.to_owned(),
        name(source, &connection.client),
        identity(source),
        name(destination, &connection.app),
        identity(destination),
        connection.transport.clone(),
        size(connection.bytes_to_server),
        size(connection.bytes_to_client),
        round_trip(connection.rtt_us),
        or_dash(connection.retransmits),
        term::duration(Duration::from_millis(connection.open_ms)),
        connection.policy.as_ref().map_or_else(|| "-".to_owned(), Policy::words),
    ]
}

/// A round trip for people, where there is one.
pub(crate) fn round_trip(micros: Option<u64>) -> String {
    micros.map_or_else(|| "-".to_owned(), |micros| term::duration(Duration::from_micros(micros)))
}

/// A number, where there is one.
pub(crate) fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// The workload where it is known, with the address in any case.
fn name(party: &Party, address: &str) -> String {
    match (&party.namespace, &party.workload) {
        (Some(namespace), Some(workload)) => format!("{namespace}/{workload} ({address})"),
        _ => address.to_owned(),
    }
}

/// Seconds in the unit that suits certificates.
fn expiry(seconds: u64) -> String {
    match seconds {
        0 => "expired".to_owned(),
        s if s < 3600 => format!("{} min", s.div_ceil(60)),
        s if s < 48 * 3600 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The cells of the rows that `things` make.
    fn rows(what: What, things: Value) -> String {
        let things = serde_json::from_value(things).expect("a list");
        let table = table(what, &[("n1".to_owned(), things)]).expect("they are understood");
        table.lines(Style::new(false, false, false))[1..].join("\n")
    }

    #[test]
    fn answers_of_the_admin_socket_are_understood() {
        let party = json!({"workload": "a-1", "owner": "a", "namespace": "shop", "identity": "spiffe://cluster.local/ns/shop/sa/a"});
        let row = rows(
            What::Connections,
            json!([{
                "id": 1, "reporter": "source", "transport": "hbone", "dialled": "10.96.1.0:80", "authority": null, "service": null,
                "source": party, "destination": {"workload": null, "owner": null, "namespace": null, "identity": null},
                "client": "10.0.0.1:4000", "app": "10.0.0.2:80", "rtt_us": 1500, "retransmits": 3,
                "policy": {"allowed": true, "policies": ["shop/allow"], "reason": "", "dry_run": null},
                "bytes_to_server": 1, "bytes_to_client": 2, "open_ms": 3, "since": 4,
            }]),
        );
        for part in ["out", "shop/a-1 (10.0.0.1:4000)", "10.0.0.2:80", "1.5 ms", "ok (shop/allow)"] {
            assert!(row.contains(part), "{part}: {row}");
        }
        let row =
            rows(What::Pods, json!([{"uid": "u", "pod": "shop/a", "state": "enrolled", "netns": "/n"}]));
        assert!(row.contains("shop/a  enrolled"), "{row}");
        let row = rows(
            What::Certificates,
            json!([{
                "identity": "spiffe://cluster.local/ns/shop/sa/a", "state": "Available", "lastFailure": null,
                "certChain": [{"serialNumber": "1f", "validFrom": 1, "expirationTime": 2}],
            }]),
        );
        assert!(row.contains("expired     1f"), "{row}");
    }

    #[test]
    fn what_discovery_said_is_understood() {
        let row = rows(
            What::Workloads,
            json!([{
                "uid": "Kubernetes//Pod/shop/a", "name": "a", "namespace": "shop", "serviceAccount": "default", "node": "n1",
                "workloadIps": ["10.0.0.1", "fd00::1"], "protocol": "HBONE", "status": "Healthy", "waypoint": null,
                "authorizationPolicies": ["shop/p"], "services": {"shop/a.shop.svc.cluster.local": {"80": 8080}},
            }]),
        );
        assert!(row.contains("10.0.0.1,fd00::1") && row.contains("HBONE") && row.contains("shop/p"), "{row}");
        let row = rows(
            What::Services,
            json!([{
                "namespace": "shop", "hostname": "a.shop.svc.cluster.local", "vips": ["/10.96.0.1"], "ports": {"80": 8080, "81": 0},
                "endpoints": {"x": {}}, "waypoint": {"destination": "shop/w"}, "loadBalancer": {"mode": "Standard"},
            }]),
        );
        assert!(
            row.contains(" 10.96.0.1 ") && row.contains("80->8080,81") && row.contains("shop/w"),
            "{row}"
        );
        let row = rows(
            What::Policies,
            json!([{
                "name": "p", "namespace": "shop", "scope": "Namespace", "action": "Deny", "rules": [[]], "dryRun": false,
            }]),
        );
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["shop", "p", "Namespace", "Deny", "1", "no"]);
    }

    #[test]
    fn things_belong_to_namespaces() {
        let of = |what: What, thing: Value| what.namespaces(&thing).join(" ");
        assert_eq!(of(What::Certificates, json!({"identity": "spiffe://d/ns/shop/sa/a"})), "shop");
        let ends = json!({"source": {"namespace": "a"}, "destination": {"namespace": null}});
        assert_eq!(of(What::Connections, ends), "a");
        assert_eq!(of(What::Pods, json!({"pod": "shop/a"})), "shop");
        assert_eq!(of(What::Policies, json!({"namespace": "shop"})), "shop");
    }

    #[test]
    fn what_is_left_of_a_certificate_is_rounded_sensibly() {
        assert_eq!([0, 59, 7200, 86400 * 3].map(expiry), ["expired", "1 min", "2 h", "3 d"]);
    }
}
