//! The gate that every call passes: who calls, and whether too often.
//!
//! A refused caller learns nothing; the log learns why, at a bounded rate. Owns no rights: what a node may do is decided by
//! each service from [`Caller`].

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::control::ControlPeer;
use model::Str;
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::rate::{Allowance, Rates};
use super::tokens::{Authenticator, Caller};

/// Calls of one node, or of one waypoint. A node that starts asks for a certificate per service account, of which it has at most some
/// hundreds; after that a few calls a minute are usual.
const OF_CALLER: Allowance = Allowance { burst: 1000, every: Duration::from_millis(20) };

/// Log lines about refusals, from whomever: enough to see what happens, and no way to fill a disk.
const OF_LOG: Allowance = Allowance { burst: 10, every: Duration::from_secs(6) };

/// The gate. Clones share it.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    authenticator: Box<dyn Authenticator>,
    epoch: Instant,
    state: Mutex<State>,
}

struct State {
    callers: Rates<Str>,
    log: Rates<()>,
    unlogged: u64,
    refused: u64,
}

impl Gate {
    /// A gate that believes `authenticator`.
    #[must_use]
    pub fn new(authenticator: Box<dyn Authenticator>) -> Self {
        Self(Arc::new(Inner {
            authenticator,
            epoch: Instant::now(),
            state: Mutex::new(State {
                callers: Rates::new(OF_CALLER),
                log: Rates::new(OF_LOG),
                unlogged: 0,
                refused: 0,
            }),
        }))
    }

    /// Lets a proven node in, unless it calls too often.
    ///
    /// # Errors
    /// With what the caller may know.
    pub async fn admit<T>(&self, request: &tonic::Request<T>) -> Result<Caller, Status> {
        let peer = request.extensions().get::<ControlPeer>().map(|peer| peer.address);
        match self.0.authenticator.authenticate(bearer(request.metadata())).await {
            Ok(caller) => match self.with(|state, now| state.callers.allow(caller.counted(), now)) {
                true => Ok(caller),
                false => {
                    self.refused(peer, Some(&caller), "it calls too often");
                    Err(Status::resource_exhausted("too many calls; try again later"))
                }
            },
            Err(why) => {
                // Not counted against its address: whoever shares that with a node could lock the node out.
                self.refused(peer, None, &why.to_string());
                if why.is_undecided() {
                    return Err(Status::unavailable("can't be authenticated at present; try again later"));
                }
                Err(Status::unauthenticated("not authenticated"))
            }
        }
    }

    /// Resolves when the proof that came with an admitted call was taken back, or when `gone` says that the pod that it is bound
    /// to has gone, and says so in the log.
    pub fn taken_back<T, G: Future<Output = ()> + Send>(
        &self,
        request: &tonic::Request<T>,
        caller: &Caller,
        gone: G,
    ) -> impl Future<Output = ()> + Send + use<T, G> {
        let peer = request.extensions().get::<ControlPeer>().map(|peer| peer.address);
        let (gate, caller) = (self.clone(), caller.clone());
        let bearer = bearer(request.metadata()).unwrap_or_default().to_owned();
        async move {
            let why = tokio::select! {
                () = gate.0.authenticator.taken_back(&bearer) => "its token was taken away; its session is ended",
                () = gone => "the pod that its token is bound to has gone; its session is ended",
            };
            gate.refused(peer, Some(&caller), why);
        }
    }

    /// Says in the log why a caller was refused, unless that was said often enough.
    pub fn refused(&self, peer: Option<SocketAddr>, caller: Option<&Caller>, why: &str) {
        let unlogged = self.with(|state, now| {
            state.refused += 1;
            if state.log.allow(&(), now) {
                Some(std::mem::take(&mut state.unlogged))
            } else {
                state.unlogged += 1;
                None
            }
        });
        let node = caller.map(|caller| caller.node.to_string());
        if let Some(unlogged) = unlogged {
            tracing::warn!(peer = ?peer, node = node.as_deref(), why, unlogged, "a caller was refused");
        }
    }

    /// How many calls were refused so far.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.with(|state, _| state.refused)
    }

    fn with<T>(&self, f: impl FnOnce(&mut State, Duration) -> T) -> T {
        let now = self.0.epoch.elapsed();
        f(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

/// The token of an authorization header.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
