//! `airglow pods|certs|connections`: what each node's ztunnel knows, as a table or as JSON.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::Form;
use crate::admin_client::{self, AdminError};
use crate::flows::{short, size};
use crate::nodes::{self, Node};
use crate::progress::print;
use crate::term::{self, Style, Table};
use crate::top::Where;

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Certificates,
    Connections,
    Pods,
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

/// A connection in the answer to `/connections`.
#[derive(Debug, Deserialize)]
struct Connection {
    reporter: String,
    transport: String,
    source: Party,
    destination: Party,
    client: String,
    app: String,
    bytes_to_server: u64,
    bytes_to_client: u64,
    open_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Party {
    workload: Option<String>,
    namespace: Option<String>,
    identity: Option<String>,
}

/// Prints it.
pub(crate) fn run(what: What, at: &Where, style: Style) -> anyhow::Result<()> {
    let nodes = nodes::find(at.run_dir.as_deref(), at.node.as_deref())?;
    match at.form {
        Form::Json => {
            let answers: Result<Vec<Value>, AdminError> = nodes.iter().map(|node| raw(what, node)).collect();
            print(&format!("{:#}\n", Value::Array(answers?)))?;
        }
        Form::Table => print(&(table(what, &nodes)?.lines(style).join("\n") + "\n"))?,
    }
    Ok(())
}

fn raw(what: What, node: &Node) -> Result<Value, AdminError> {
    let (path, key) = match what {
        What::Certificates => ("/certificates", "certificates"),
        What::Connections => ("/connections", "connections"),
        What::Pods => ("/pods", "pods"),
    };
    Ok(json!({ "node": node.name, key: admin_client::get_json::<Value>(&node.socket, path)? }))
}

fn table(what: What, nodes: &[Node]) -> Result<Table, AdminError> {
    match what {
        What::Certificates => certificates(nodes),
        What::Connections => connections(nodes),
        What::Pods => pods(nodes),
    }
}

fn pods(nodes: &[Node]) -> Result<Table, AdminError> {
    let mut table = Table::new(["NODE", "POD", "STATE", "UID", "MESSAGE"]);
    for node in nodes {
        for pod in admin_client::get_json::<Vec<Pod>>(&node.socket, "/pods")? {
            table.row([node.name.clone(), pod.pod, pod.state, pod.uid, pod.message]);
        }
    }
    Ok(table)
}

fn certificates(nodes: &[Node]) -> Result<Table, AdminError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut table = Table::new(["NODE", "IDENTITY", "STATE", "EXPIRES IN", "SERIAL", "LAST FAILURE"]);
    for node in nodes {
        for certificate in admin_client::get_json::<Vec<Certificate>>(&node.socket, "/certificates")? {
            let leaf = certificate.cert_chain.first();
            let left = leaf.map(|leaf| leaf.expiration_time.saturating_sub(now));
            table.row([
                node.name.clone(),
                certificate.identity,
                certificate.state,
                left.map(expiry).unwrap_or_default(),
                leaf.map(|leaf| leaf.serial_number.clone()).unwrap_or_default(),
                certificate.last_failure.unwrap_or_default(),
            ]);
        }
    }
    Ok(table)
}

fn connections(nodes: &[Node]) -> Result<Table, AdminError> {
    let mut table = Table::new([
        "NODE",
        "WAY",
        "SOURCE",
        "SOURCE IDENTITY",
        "DESTINATION",
        "DESTINATION IDENTITY",
        "TRANSPORT",
        ">REQUEST",
        ">RESPONSE",
        ">AGE",
    ]);
    for node in nodes {
        for connection in admin_client::get_json::<Vec<Connection>>(&node.socket, "/connections")? {
            let Connection { source, destination, .. } = &connection;
            let identity = |party: &Party| short(party.identity.as_deref().unwrap_or_default());
            table.row([
                node.name.clone(),
                if connection.reporter == "source" { "out" } else { "in" }.to_owned(),
                name(source, &connection.client),
                identity(source),
                name(destination, &connection.app),
                identity(destination),
                connection.transport.clone(),
                size(connection.bytes_to_server),
                size(connection.bytes_to_client),
                term::duration(Duration::from_millis(connection.open_ms)),
            ]);
        }
    }
    Ok(table)
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
    use super::*;

    #[test]
    fn answers_of_the_admin_socket_are_understood() {
        let connection = json!({
            "id": 1, "reporter": "source", "transport": "hbone", "dialled": "10.96.1.0:80", "authority": null, "service": null,
            "source": {"workload": "a", "namespace": "shop", "identity": "spiffe://cluster.local/ns/shop/sa/a"},
            "destination": {"workload": null, "namespace": null, "identity": null},
            "client": "10.0.0.1:4000", "app": "10.0.0.2:80",
            "bytes_to_server": 1, "bytes_to_client": 2, "open_ms": 3, "since": 4,
        });
        let read: Connection = serde_json::from_value(connection).unwrap();
        assert_eq!(name(&read.source, &read.client), "shop/a (10.0.0.1:4000)");
        assert_eq!(name(&read.destination, &read.app), "10.0.0.2:80");
        let pod: Pod =
            serde_json::from_value(json!({"uid": "u", "pod": "shop/a", "state": "enrolled"})).unwrap();
        assert_eq!(pod.message, "");
        let certificate = json!({
            "identity": "spiffe://cluster.local/ns/shop/sa/a", "state": "Available", "lastFailure": null,
            "certChain": [{"serialNumber": "1f", "validFrom": 1, "expirationTime": 2}],
        });
        let read: Certificate = serde_json::from_value(certificate).unwrap();
        assert_eq!(read.cert_chain[0].serial_number, "1f");
    }

    #[test]
    fn what_is_left_of_a_certificate_is_rounded_sensibly() {
        assert_eq!([0, 59, 7200, 86400 * 3].map(expiry), ["expired", "1 min", "2 h", "3 d"]);
    }
}
