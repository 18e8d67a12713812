//! The nodes' own account of everything so far.

use serde_json::{Value, json};

use super::super::error::DemoError;
use super::super::report::Stage;
use super::super::shop::Shop;
use crate::flows::{short, size};
use crate::term::{self, Table};

/// One table for both nodes.
pub(super) fn flows(stage: &mut Stage<'_>, shop: &mut Shop) -> Result<(), DemoError> {
    let mut table = Table::new([
        "NODE",
        "WAY",
        "FROM",
        "AS",
        "TO",
        "AS",
        "HOW",
        ">CONNECTIONS",
        ">REFUSED",
        ">REQUEST",
        ">RESPONSE",
    ]);
    let mut list = Vec::new();
    for (node, pairs) in shop.flows()? {
        for (pair, totals) in pairs {
            table.row([
                node.clone(),
                pair.direction.to_owned(),
                pair.source.clone(),
                short(&pair.source_identity),
                pair.destination.clone(),
                short(&pair.destination_identity),
                pair.transport.to_owned(),
                totals.opened.to_string(),
                totals.failed.to_string(),
                size(totals.bytes_to_server),
                size(totals.bytes_to_client),
            ]);
            list.push(json!({ "node": node, "pair": pair, "totals": totals }));
        }
    }
    stage.table(&table);
    let told = |node: &str, transport: &str| {
        list.iter().any(|row: &Value| {
            row["node"] == node
                && row["pair"]["transport"] == transport
                && row["totals"]["bytes_to_client"].as_u64() > Some(0)
        })
    };
    let complete = told("n1", "hbone") && told("n2", "hbone") && told("n1", "local") && told("n2", "local");
    stage.claim(
        complete,
        format!(
            "{} with identities, connections and bytes, from both ends",
            term::count(list.len() as u64, "flow")
        ),
    );
    stage.measured("flows", list);
    Ok(())
}
