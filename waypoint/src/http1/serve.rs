//! One connection of a client, from its first request to its end.

use std::future::Future;
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::client::Client;
use super::exchange::{self, After};
use super::limits::Timeouts;
use super::upstream::Upstream;
use crate::decide::Decide;

/// Serves the requests of one connection, one after the other, until either side ends it. When `drain` resolves, the
/// response that is under way is the last one.
///
/// An `io` that is dropped without a shutdown must look broken to its peer, not ended: so does a response that is lost.
/// A future that is dropped cuts what is under way, without [`Exchange::end`](crate::decide::Exchange::end).
pub async fn serve<Io, To, D>(io: Io, decide: &D, timeouts: &Timeouts, drain: impl Future<Output = ()>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
    To: AsyncRead + AsyncWrite + Unpin + Send,
    D: Decide<Upstream = Upstream<To>>,
{
    let drain = pin!(drain);
    let mut client = Client::new(io, timeouts, drain);
    let mut rested = Instant::now();
    loop {
        let request = match client.request(rested).await {
            Ok(Some(request)) => request,
            Ok(None) => return client.close().await,
            Err(refusal) => {
                decide.refused(refusal.into());
                return client.refuse(refusal).await;
            }
        };
        let exchange = decide.begin(&request.0);
        let (after, ended) = exchange::run(&mut client, exchange, request).await;
        rested = ended;
        match after {
            After::Close => return client.close().await,
            After::Next => {}
            After::Over => return,
        }
    }
}
