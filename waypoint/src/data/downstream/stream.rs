//! One stream of a client's tunnel: what it asks for, and whether this waypoint guards that.
//!
//! Decides nothing about endpoints: that is for whoever speaks the stream's protocol.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::Incoming;
use model::address::{ClientAddr, NetworkAddress};
use model::identity::Identity;
use model::route::Behind;
use proxy::headers;
use proxy::series::Party;

use super::declared::{self, Spoken};
use super::detect;
use crate::data::budgets::Share;
use crate::data::opaque::{self, tls_passthrough};
use crate::data::{Asked, Context, requests};
use crate::refusal::Refusal;
use crate::telemetry::Facts;

/// Who opened a tunnel.
pub(crate) struct Client {
    /// What it has proven to be.
    pub(crate) identity: Identity,
    /// Where the tunnel comes from: the client's pod, though not the port of its connection.
    pub(crate) address: SocketAddr,
    /// What its streams may hold.
    pub(crate) share: Share,
}

/// Serves one stream, from its authority to its last byte.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, client: &Client) {
    let said = headers::forwarded_for(&incoming.headers);
    let (facts, asked) = introduced(context, client, (incoming.authority.as_str(), said)).await;
    let asked = match asked {
        Ok(asked) => asked,
        Err(refusal) => {
            context.shared.telemetry.refused(&facts, &refusal);
            return incoming.refuse(refusal.status());
        }
    };
    let spoken = declared::declared(&asked.behind, &context.shared.book.load(), &client.identity);
    match spoken {
        Spoken::Bytes => opaque::serve(context, incoming, &asked, facts).await,
        Spoken::Http => requests::serve(context, incoming, asked, facts).await,
        Spoken::Tls => tls_passthrough::serve(context, incoming, &asked, facts).await,
        Spoken::Undeclared => detect::serve(context, incoming, asked, facts).await,
    }
}

/// What is known of a connection to `authority`, whose client says that it comes from `said`; and what it asks for there.
pub(crate) async fn introduced(
    context: &Context,
    client: &Client,
    (authority, said): (&str, Option<ClientAddr>),
) -> (Facts, Result<Asked, Refusal>) {
    let mut facts = facts(context, client, (authority, said));
    let asked = asked(context, client, &mut facts).await;
    (facts, asked)
}

async fn asked(context: &Context, client: &Client, facts: &mut Facts) -> Result<Asked, Refusal> {
    let authority = facts.authority.parse()?;
    if client.share.is_exceeded() {
        return Err(Refusal::Hoarded);
    }
    let mesh = &context.shared.mesh;
    let own = &context.shared.own.workload;
    let local = mesh.local_workload(own).await.ok_or_else(|| Refusal::Unknown(own.clone()))?;
    let past = &context.shared.past;
    let behind = past.guarded(mesh, &local, &client.identity.namespace, &authority).await?;
    if let Behind::Service(service, ..) = &behind {
        facts.service = Some(service.clone());
    }
    Ok(Asked { local, behind })
}

/// What is said of a stream before it is understood.
fn facts(context: &Context, client: &Client, (authority, said): (&str, Option<ClientAddr>)) -> Facts {
    let mesh = context.shared.mesh.snapshot();
    // The client's own port, if its node says it; its address is the tunnel's, which nobody can forge.
    let address = said
        .map(|ClientAddr(said)| said)
        .filter(|said| said.ip() == client.address.ip())
        .unwrap_or(client.address);
    let place = NetworkAddress { network: context.shared.network(&mesh), ip: address.ip() };
    let workload = context.shared.clients.find(&mesh, &place);
    // A workload that is not who the peer has proven to be is another one that had the address before or after.
    let workload = workload.filter(|workload| workload.identity == client.identity);
    Facts {
        client: ClientAddr(address),
        source: Party { workload, identity: Some(client.identity.clone()) },
        destination: Party::default(),
        service: None,
        authority: authority.into(),
        app: None,
    }
}
