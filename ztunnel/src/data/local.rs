//! Node-local: source and destination are pods of this node, and both ends are this process.
//!
//! Policy sees the source's identity, which needs no TLS to be proven here: the connection was captured in the source's
//! own network namespace. No tunnel, no encryption within the node's memory. A setting forces the tunnel instead.

use std::sync::Arc;

use bytes::Bytes;
use model::policy::Permit;
use tokio::net::TcpStream;

use super::balance::Outstanding;
use super::{PodContext, relay, upstream};
use crate::flow::{Registered, Traffic};
use crate::pod::Pod;
use crate::refusal::Refusal;
use crate::tcp_info;
use crate::telemetry::{Facts, Reporter};

/// A connection within the node, as both ends report it.
#[derive(Debug)]
pub(crate) struct Local {
    source: Registered,
    destination: Registered,
    server: TcpStream,
    _outstanding: Outstanding,
}

/// Asks the destination's policies and connects to its application with the client's address.
pub(crate) async fn connect(
    context: &PodContext,
    destination: Arc<Pod>,
    facts: Facts,
    outstanding: Outstanding,
) -> Result<Local, Refusal> {
    if let Some(reason) = &destination.refused {
        return Err(Refusal::PodRefused(reason.clone()));
    }
    let shared = &context.shared;
    let traffic = Arc::new(Traffic::default());
    let mut theirs = Facts {
        reporter: Reporter::Destination,
        pod: destination.uid.clone(),
        generation: destination.generation,
        ..facts.clone()
    };
    theirs.destination.identity = Some(destination.identity.clone());
    let (flow, verdict) =
        shared.flows.admit(&shared.mesh, &destination.workload, theirs, Arc::clone(&traffic));
    let permit: Permit = verdict.map_err(Refusal::Denied).inspect_err(|refusal| {
        shared.telemetry.refused(&flow.facts, refusal);
    })?;
    let server = upstream::to_app(context, &destination, &permit).await.inspect_err(|refusal| {
        shared.telemetry.refused(&flow.facts, refusal);
    })?;
    shared.telemetry.opened(&flow);
    let mut ours = facts;
    ours.destination.identity = Some(destination.identity.clone());
    let source = shared.flows.open(ours, traffic);
    shared.telemetry.opened(&source);
    Ok(Local { source, destination: flow, server, _outstanding: outstanding })
}

impl Local {
    /// Copies until both ends have finished or policy changes; reports for both ends.
    pub(crate) async fn run(mut self, context: &PodContext, mut app: TcpStream, early: Bytes) {
        let telemetry = &context.shared.telemetry;
        let outcome = tokio::select! {
            biased;
            ending = self.destination.ended() => Err(ending.into()),
            ending = self.source.ended() => Err(ending.into()),
            outcome = relay::relay(&mut app, &mut self.server, &self.source.traffic, early, &context.buffers) => outcome.map_err(Refusal::Relay),
        };
        let tcp = tcp_info::of(&self.server);
        telemetry.closed(&self.source, &outcome, tcp);
        telemetry.closed(&self.destination, &outcome, tcp);
        if outcome.is_err() {
            relay::reset(&self.server);
            relay::reset(&app);
        }
    }
}
