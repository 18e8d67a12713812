//! Streams whose bytes are nobody's business but their ends': an endpoint where routes say, and the bytes both ways.
//!
//! What is allowed is decided at the endpoint, apart from what it could not: see [`authorization`].

use std::sync::Arc;

use bytes::Bytes;
use hbone::{Incoming, Reason, Stream};
use proxy::headers;

use super::reach::reach;
use super::relay::relay;
use crate::data::{Asked, Context, authorization};
use crate::telemetry::Facts;

/// Carries one stream to its end and reports it.
pub(crate) async fn serve(context: &Arc<Context>, incoming: Incoming, asked: &Asked, mut facts: Facts) {
    let telemetry = &context.shared.telemetry;
    let policies = authorization::watched(context);
    let reached = match reach(context, (asked, None), &mut facts).await {
        Ok(reached) => reached,
        Err(refusal) => {
            telemetry.refused(&facts, &refusal);
            return incoming.refuse(refusal.status());
        }
    };
    match incoming.accept(headers::answer(Some(&asked.local))) {
        Ok(stream) => relay(context, (stream, Vec::new()), (reached, Vec::new()), facts, policies).await,
        // The client gave up while the endpoint was being connected to.
        Err(error) => telemetry.refused(&facts, &error.into()),
    }
}

/// The same for a stream that was accepted, of which something was received that is not consumed, and whose client may have asked
/// for a name in TLS.
pub(super) async fn carry(
    context: &Arc<Context>,
    (mut stream, said): (Stream, Vec<Bytes>),
    asked: (&Asked, Option<&str>),
    mut facts: Facts,
) {
    let policies = authorization::watched(context);
    match reach(context, asked, &mut facts).await {
        Ok(reached) => relay(context, (stream, said), (reached, Vec::new()), facts, policies).await,
        Err(refusal) => {
            context.shared.telemetry.refused(&facts, &refusal);
            stream.reset(Reason::CONNECT_ERROR);
        }
    }
}
