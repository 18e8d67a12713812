//! `airglow waypoint`: asks a cluster for waypoints, and says how they are. A waypoint is a Gateway; everything here could be done with
//! kubectl as well.
//!
//! Makes no Deployment: the controller does. Enrols nothing in a waypoint that is not ready, because what names one is refused
//! without it.

mod apply;
mod awaited;
mod delete;
mod gateway;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use daemon::config::Vars;
use serde_json::{Value, json};

use crate::Terminal;
use crate::cluster::{At, Cluster, label};
use crate::interrupt::Interrupt;
use crate::output::Form;
use crate::progress::print;
use crate::term::Table;
use gateway::Gateway;

#[derive(Args, Debug)]
pub(crate) struct Waypoint {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Ask for a waypoint, or change one, and wait until it is ready.
    Apply(apply::Apply),
    /// The waypoints of a namespace, or of all.
    List(List),
    /// Whether waypoints are ready, and why not. Exit code 1: one is not.
    Status(List),
    /// Take waypoints away. Refused while something names them, because that would be refused without them.
    Delete(delete::Delete),
}

#[derive(Args, Debug)]
struct List {
    /// Only these.
    names: Vec<String>,
    /// Only this namespace; without it, the kubeconfig's.
    #[arg(short = 'n', long, value_name = "NAME", value_parser = label)]
    namespace: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    at: At,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    form: Form,
}

/// Does what is asked.
pub(crate) fn run(
    args: &Waypoint,
    stdout: Terminal,
    vars: &dyn Vars,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Apply(apply) => apply::run(apply, stdout, vars, interrupt),
        Action::List(list) => {
            let found = list.look(vars)?;
            list.print(&found, listed(&found), stdout)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Status(list) => {
            let found = list.look(vars)?;
            list.print(&found, states(&found), stdout)?;
            let all_ready = found.iter().all(|gateway| gateway.programmed().0 == "True");
            Ok(ExitCode::from(u8::from(!all_ready)))
        }
        Action::Delete(delete) => delete::run(delete, stdout, vars),
    }
}

impl List {
    fn look(&self, vars: &dyn Vars) -> anyhow::Result<Vec<Gateway>> {
        let cluster = Cluster::new(&self.at, vars)?;
        let own = self.namespace.as_deref().unwrap_or(cluster.default_namespace());
        let namespace = (!self.all_namespaces).then_some(own);
        let mut found = gateway::waypoints(&cluster, namespace)?;
        found.retain(|gateway| self.names.is_empty() || self.names.contains(&gateway.metadata.name));
        for name in &self.names {
            if !found.iter().any(|gateway| gateway.metadata.name == *name) {
                anyhow::bail!("there is no waypoint {name}; `airglow waypoint list -A` has all of them");
            }
        }
        Ok(found)
    }

    fn print(&self, found: &[Gateway], table: Table, stdout: Terminal) -> anyhow::Result<()> {
        let text = if self.form.is_document() {
            self.form.document(&Value::Array(found.iter().map(document).collect()))?
        } else {
            self.form.table(table, "no waypoint; `airglow waypoint apply` asks for one", stdout.style)
        };
        Ok(print(&text)?)
    }
}

fn document(gateway: &Gateway) -> Value {
    let (programmed, reason, message) = gateway.programmed();
    json!({
        "namespace": gateway.metadata.namespace, "name": gateway.metadata.name, "class": gateway.spec.gateway_class_name,
        "trafficType": gateway.traffic_type(), "serviceAccount": gateway.account(),
        "programmed": programmed, "reason": reason, "message": message,
        "addresses": gateway.status.addresses.iter().map(|address| &address.value).collect::<Vec<_>>(),
    })
}

fn listed(found: &[Gateway]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "TRAFFIC TYPE",
        "SERVICE ACCOUNT",
        "PROGRAMMED",
        "+CLASS",
        "+ADDRESS",
    ]);
    for gateway in found {
        let address = gateway.status.addresses.first().map(|address| address.value.clone());
        table.row([
            gateway.metadata.namespace.clone(),
            gateway.metadata.name.clone(),
            gateway.traffic_type().to_owned(),
            gateway.account().unwrap_or("-").to_owned(),
            gateway.programmed().0.to_owned(),
            gateway.spec.gateway_class_name.clone(),
            address.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn states(found: &[Gateway]) -> Table {
    let mut table = Table::new(["NAMESPACE", "NAME", "PROGRAMMED", "REASON", "MESSAGE"]);
    for gateway in found {
        let (programmed, reason, message) = gateway.programmed();
        let Gateway { metadata, .. } = gateway;
        let texts = [&metadata.namespace, &metadata.name, programmed, reason, message];
        table.row(texts.map(str::to_owned));
    }
    table
}
