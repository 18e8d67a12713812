//! The admin socket: what this waypoint knows and does, for people and for `airglow`.
//!
//! A unix socket that only its owner can open. Reads by GET; what changes anything is a POST. Decides nothing.

use std::sync::Arc;

use daemon::http::{Reply, Routes};
use proxy::dump;
use proxy::process::Process;
use serde_json::{Value, json};

use crate::data::Shared;
use crate::watched::Board;

/// Every route of the socket.
pub(crate) fn routes(process: &Process, shared: &Arc<Shared>, board: Arc<Board>) -> Routes {
    let dumped = Arc::clone(shared);
    let base = proxy::admin::routes(process).get(
        "/requests",
        "?after=number: single requests with every decision, from now on while somebody asks",
        move |request| {
            let after = request.param("after").and_then(|number| number.parse().ok());
            let reply = Reply::json(&board.read(after));
            async move { reply }
        },
    );
    base.get("/config_dump", "everything known, in the form that istioctl reads", move |_| {
        let reply = Reply::json(&config_dump(&dumped));
        async move { reply }
    })
}

fn config_dump(shared: &Shared) -> Value {
    let mut all = dump::all(&shared.mesh.snapshot(), &shared.certificates);
    let config = json!({
        "identity": shared.own.identity.to_string(),
        "workload": shared.own.workload.to_string(),
    });
    all.insert("config".to_owned(), config);
    Value::Object(all)
}
