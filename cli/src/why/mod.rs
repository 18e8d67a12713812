//! `airglow why NS/POD HOST:PORT`: what would become of a connection, on the node of the pod and on that of each endpoint.
//!
//! The nodes decide, by the functions that decide about real connections; here they are asked in turn. Opens no connection to
//! any pod's port but the admin one.

mod judge;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use daemon::config::Vars;
use serde_json::{Value, json};

use self::judge::{Admission, Endpoint, Outcome, Source};
use crate::Terminal;
use crate::admin_client::{self, encode};
use crate::cluster::label;
use crate::mesh::{Mesh, Peer, Which};
use crate::output::Form;
use crate::progress::print;

#[derive(Args, Debug)]
pub(crate) struct Why {
    /// Whose connection: NAMESPACE/POD, or POD with -n.
    #[arg(value_name = "NS/POD")]
    pub(crate) pod: String,
    /// Where to, as the pod would write it: a service's name or an address, and a port.
    #[arg(value_name = "HOST:PORT")]
    pub(crate) to: String,
    /// The pod's namespace, if it is not part of its name.
    #[arg(short = 'n', long, value_name = "NAME", value_parser = label)]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) which: Which,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub(crate) form: Form,
}

/// Asks and tells. The exit code is 1 when an endpoint is refused.
pub(crate) fn run(args: &Why, stdout: Terminal, vars: &dyn Vars) -> anyhow::Result<ExitCode> {
    let pod = match (args.pod.split_once('/'), &args.namespace) {
        (Some(_), None) => args.pod.clone(),
        (None, Some(namespace)) => format!("{namespace}/{}", args.pod),
        (Some(_), Some(_)) => anyhow::bail!("{} names a namespace already: leave out -n", args.pod),
        (None, None) => anyhow::bail!("{}: of which namespace? NAMESPACE/POD, or -n NAMESPACE", args.pod),
    };
    let mesh = Mesh::find(&args.which, vars)?;
    let peers = mesh.nodes(None)?;
    let (source, asked) = at_source(&mesh, &peers, &pod, &args.to)?;
    let mut endpoints = Vec::new();
    for (route, raw) in source.routes.iter().zip(asked["routes"].as_array().into_iter().flatten()) {
        let admission = match route.question(&source) {
            Some((node, path)) => at_destination(&mesh, &peers, node, &path)?,
            None => None,
        };
        endpoints.push((
            Endpoint::new(route, admission.as_ref().map(|(admission, _)| admission)),
            raw,
            admission,
        ));
    }
    let judged: Vec<_> = endpoints.iter().map(|(endpoint, ..)| endpoint.clone()).collect();
    let outcome = Outcome::of(&source, &judged);
    let text = if args.form.is_document() {
        let shown = endpoints.iter().map(|(endpoint, raw, admission)| {
            let admits = admission.as_ref().map(|(_, raw)| raw);
            json!({ "route": raw, "admits": admits, "verdict": endpoint.verdict, "objects": endpoint.objects })
        });
        let mut asked = asked.clone();
        if let Some(fields) = asked.as_object_mut() {
            fields.remove("routes");
        }
        let document = json!({
            "pod": pod, "to": args.to, "verdict": outcome, "source": asked, "endpoints": shown.collect::<Vec<_>>(),
        });
        args.form.document(&document)?
    } else {
        judge::lines(&source, &args.to, &judged, stdout).join("\n") + "\n"
    };
    print(&text)?;
    Ok(if outcome.is_refused() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The answer of the pod's node, as it is and as it came.
fn at_source(mesh: &Mesh, peers: &[Peer], pod: &str, to: &str) -> anyhow::Result<(Source, Value)> {
    let path = format!("/why?pod={}&to={}", encode(pod), encode(to));
    let mut elsewhere: Option<(Source, Value)> = None;
    let mut failure = None;
    let mut queue: Vec<&Peer> = peers.iter().rev().collect();
    while let Some(peer) = queue.pop() {
        let body = match mesh.ask(peer, &path) {
            Ok(body) => body,
            Err(error) => {
                // Somebody who does not know the pod says less than somebody who can't be asked.
                if failure.is_none() || !error.is_not_found() {
                    failure = Some(error);
                }
                continue;
            }
        };
        let asked: Value = admin_client::read(&peer.name, "/why", &body)?;
        let source: Source = admin_client::read(&peer.name, "/why", &body)?;
        if source.is_of_its_node() {
            return Ok((source, asked));
        }
        match peers.iter().find(|peer| peer.name == source.on_node) {
            // Everyone knows on which node a pod is.
            Some(home) if elsewhere.is_none() => queue = vec![home],
            Some(_) | None => {}
        }
        elsewhere.get_or_insert((source, asked));
    }
    let Some((source, asked)) = elsewhere else {
        return Err(failure.context("there is no node to ask")?.into());
    };
    eprintln!("airglow: nobody answers for node {}: this is how another node sees it", source.on_node);
    Ok((source, asked))
}

/// What the endpoint's node says; `None` when it has no ztunnel.
fn at_destination(
    mesh: &Mesh,
    peers: &[Peer],
    node: &str,
    path: &str,
) -> anyhow::Result<Option<(Admission, Value)>> {
    let Some(peer) = peers.iter().find(|peer| peer.name == node) else { return Ok(None) };
    let body = mesh.ask(peer, path)?;
    Ok(Some((admin_client::read(&peer.name, path, &body)?, admin_client::read(&peer.name, path, &body)?)))
}
