//! Tunnels kept per key and shared by streams. Acts on what the core decides: delivers its words, runs the drivers,
//! counts the places. Whom to dial and how is the caller's closure.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::sync::{Arc, Weak};

use h2::Reason;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Connect, ConnectError, Driver, OpenError, Opener};
use crate::dialling::{Dialling, Dials, persist};
use crate::limits::PoolLimits;
use crate::pool_core::{Answer, Core, Idle, PoolStats, Ticket, TunnelId, Turn, Word, Words};
use crate::stream::{Place, Places, Stream};
use crate::tunnel::TunnelError;

/// A request that the peer certainly has not processed is tried again this often, on another tunnel if need be.
/// Two tunnels that close under our hands one after the other are bad luck; three are a peer that cannot serve.
pub(crate) const ATTEMPTS: usize = 3;

/// Words on their way to one waiting stream: at most "dial" twice and one end.
const MAILBOX: usize = 4;

/// Why a dial failed. Cloneable: everybody who waited for it is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// The dialling task was ended, with its runtime.
    #[error("dialling was abandoned: the runtime is shutting down")]
    Abandoned,
    /// The peer could not be reached.
    #[error("cannot connect: {0}")]
    Connect(#[source] Arc<io::Error>),
    /// The caller does not accept the peer that answered, or failed in its own way.
    #[error(transparent)]
    Rejected(Arc<dyn std::error::Error + Send + Sync>),
    /// The peer was reached, and no tunnel came about.
    #[error(transparent)]
    Tunnel(Arc<ConnectError>),
}

impl DialError {
    /// Any other reason of the caller's.
    pub fn rejected(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Rejected(Arc::new(error))
    }

    /// Whether the peer took its leave, in good order, before the tunnel was usable: it is being replaced, and whoever
    /// takes its place answers the next dial.
    pub(crate) fn is_farewell(&self) -> bool {
        let Self::Tunnel(error) = self else { return false };
        matches!(**error, ConnectError::Tunnel(TunnelError::Closed(Reason::NO_ERROR)))
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Self::Connect(Arc::new(error))
    }
}

impl From<ConnectError> for DialError {
    fn from(error: ConnectError) -> Self {
        Self::Tunnel(Arc::new(error))
    }
}

/// What a waiting stream receives.
enum Letter {
    Use(Opener, Place),
    Dial,
    Fail(OpenError),
}

struct State<K> {
    core: Core<K>,
    openers: HashMap<TunnelId, Opener>,
    waiting: HashMap<Ticket, mpsc::Sender<Letter>>,
    closed: bool,
}

pub(crate) struct Inner<K> {
    state: Mutex<State<K>>,
    pub(crate) idle: std::time::Duration,
    me: Weak<Inner<K>>,
}

/// Tunnels to many peers. Clones share it; the last one gone closes it.
pub struct Pool<K: Clone + Eq + Hash + Send + 'static> {
    owner: Arc<Owner<K>>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Pool { owner: self.owner.clone() }
    }
}

struct Owner<K: Clone + Eq + Hash + Send + 'static>(Arc<Inner<K>>);

impl<K: Clone + Eq + Hash + Send + 'static> Drop for Owner<K> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Pool<K> {
    /// An empty pool.
    pub fn new(limits: &PoolLimits) -> Self {
        let inner = Arc::new_cyclic(|me| Inner {
            state: Mutex::new(State {
                core: Core::new(limits),
                openers: HashMap::new(),
                waiting: HashMap::new(),
                closed: false,
            }),
            idle: limits.idle,
            me: me.clone(),
        });
        Pool { owner: Arc::new(Owner(inner)) }
    }

    /// Opens a stream in a tunnel of `key`. `dial` is used when there is none and it is this stream's turn to dial;
    /// it runs in a task of its own on the current runtime, so that others who wait for it do not depend on this
    /// future, and so does the tunnel. It is used again when the peer closes what it made, in good order, before this
    /// stream was in it. Dropping the future gives everything back.
    pub async fn open<D, F>(&self, key: &K, request: Connect, dial: D) -> Result<Stream, OpenError>
    where
        D: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = Result<(Opener, Driver), DialError>> + Send + 'static,
    {
        let mut dials = Dials { dial, left: ATTEMPTS };
        for _ in 1..ATTEMPTS {
            let (opener, place) = self.owner.0.place(key, &mut dials).await?;
            let id = TunnelId(place.id());
            match opener.open_in_place(request.clone(), Some(place)).await {
                // The tunnel is closing, or refuses more than it promised: it gets no new streams.
                Err(OpenError::Unprocessed) => self.owner.0.changed(id, 0, true),
                result => return result,
            }
        }
        let (opener, place) = self.owner.0.place(key, &mut dials).await?;
        opener.open_in_place(request, Some(place)).await
    }

    /// Takes no more streams; tunnels close when their streams have ended. Those who wait are told.
    pub fn close(&self) {
        self.owner.0.close();
    }

    /// Closes the tunnels that no stream uses now. Later streams get new ones.
    pub fn close_idle(&self) {
        self.owner.0.close_idle();
    }

    /// How much the pool holds now.
    pub fn stats(&self) -> PoolStats {
        self.owner.0.state.lock().core.stats()
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Inner<K> {
    /// A place in a tunnel of `key`.
    async fn place<D, F>(&self, key: &K, dials: &mut Dials<D>) -> Result<(Opener, Place), OpenError>
    where
        D: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = Result<(Opener, Driver), DialError>> + Send + 'static,
    {
        let mut waiting = match self.ask(key)? {
            Asked::Have(opener, place) => return Ok((opener, place)),
            Asked::Wait(waiting) => waiting,
        };
        loop {
            match waiting.letters.recv().await {
                Some(Letter::Use(opener, place)) => return Ok((opener, place)),
                Some(Letter::Fail(error)) => return Err(error),
                Some(Letter::Dial) => {
                    let turn = self.state.lock().core.begin_dial(key, waiting.ticket, &mut dials.left);
                    match turn {
                        Turn::Begun => {}
                        // A place has come free since, and its letter lies behind this one.
                        Turn::Over => continue,
                        // All its dials were good, and each tunnel closed before it could be used.
                        Turn::Declined => return Err(OpenError::Unprocessed),
                    }
                    let me = self.me.upgrade().ok_or(OpenError::PoolClosed)?;
                    let dialling = Dialling { inner: me, key: Some(key.clone()) };
                    tokio::spawn(dialling.run(persist(dials.dial.clone())));
                }
                None => return Err(OpenError::PoolClosed),
            }
        }
    }

    fn ask<'a>(&'a self, key: &'a K) -> Result<Asked<'a, K>, OpenError> {
        let mut words = Words::new();
        let mut state = self.state.lock();
        if state.closed {
            return Err(OpenError::PoolClosed);
        }
        match state.core.ask(key, &mut words) {
            Answer::Use(id) => {
                let opener = state.openers.get(&id).expect("a tunnel in the core has an opener").clone();
                drop(state);
                Ok(Asked::Have(opener, self.seat(id)))
            }
            Answer::Full(count) => Err(OpenError::TooManyWaiting(count)),
            Answer::Wait(ticket) => {
                let (sender, letters) = mpsc::channel(MAILBOX);
                state.waiting.insert(ticket, sender);
                self.deliver(state, words, None);
                Ok(Asked::Wait(Waiting { inner: self, key, ticket, letters }))
            }
        }
    }

    fn seat(&self, id: TunnelId) -> Place {
        let me: Arc<dyn Places> = self.me.upgrade().expect("`self` is in the Arc that `me` points to");
        Place::new(me, id.0)
    }

    /// Turns words into letters and sends them after the lock is released: a letter that nobody takes gives its
    /// place back, which takes the lock again.
    fn deliver(
        &self,
        mut state: parking_lot::MutexGuard<'_, State<K>>,
        words: Words,
        failure: Option<DialError>,
    ) {
        let mut letters = Vec::with_capacity(words.len());
        for (ticket, word) in words {
            let sender = match word {
                Word::Dial => state.waiting.get(&ticket).cloned(),
                Word::Use(_) | Word::Fail => state.waiting.remove(&ticket),
            };
            let letter = match word {
                Word::Dial => Letter::Dial,
                Word::Use(id) => match state.openers.get(&id) {
                    Some(opener) => Letter::Use(opener.clone(), self.seat(id)),
                    None => Letter::Fail(OpenError::Unprocessed),
                },
                Word::Fail => Letter::Fail(failure.clone().unwrap_or(DialError::Abandoned).into()),
            };
            letters.push((sender, letter));
        }
        drop(state);
        for (sender, letter) in letters {
            if let Some(sender) = sender {
                // A stream that has stopped waiting takes nothing; its place goes back when the letter is dropped.
                let _ = sender.try_send(letter);
            }
        }
    }

    fn with_core(&self, act: impl FnOnce(&mut Core<K>, &mut Words)) {
        let mut words = Words::new();
        let mut state = self.state.lock();
        act(&mut state.core, &mut words);
        self.deliver(state, words, None);
    }

    pub(crate) fn changed(&self, id: TunnelId, max: usize, closing: bool) {
        self.with_core(|core, words| core.changed(id, max, closing, words));
        if closing {
            // Without its opener the tunnel closes as soon as its streams have ended.
            let opener = self.state.lock().openers.remove(&id);
            drop(opener);
        }
    }

    pub(crate) fn dialled(&self, key: &K, opener: Opener) -> Option<TunnelId> {
        let mut words = Words::new();
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        // The words may already speak of the new tunnel, so its opener must be there when they are delivered.
        let max = opener.max_streams();
        let id = state.core.dialled(key, max, Instant::now().into_std(), &mut words);
        state.openers.insert(id, opener);
        self.deliver(state, words, None);
        Some(id)
    }

    pub(crate) fn dial_failed(&self, key: &K, error: DialError) {
        let mut words = Words::new();
        let mut state = self.state.lock();
        state.core.dial_failed(key, &mut words);
        self.deliver(state, words, Some(error));
    }

    pub(crate) fn gone(&self, id: TunnelId) {
        let mut words = Words::new();
        let mut state = self.state.lock();
        state.core.gone(id, &mut words);
        let opener = state.openers.remove(&id);
        self.deliver(state, words, None);
        drop(opener);
    }

    pub(crate) fn idle(&self, id: TunnelId) -> Idle {
        let mut words = Words::new();
        let mut state = self.state.lock();
        let idle = state.core.idle(id, Instant::now().into_std(), &mut words);
        let opener = if idle == Idle::Close { state.openers.remove(&id) } else { None };
        self.deliver(state, words, None);
        drop(opener);
        idle
    }

    fn close_idle(&self) {
        let mut words = Words::new();
        let mut state = self.state.lock();
        let unused = state.core.close_idle(&mut words);
        let openers: Vec<_> = unused.iter().filter_map(|id| state.openers.remove(id)).collect();
        self.deliver(state, words, None);
        drop(openers);
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let openers = std::mem::take(&mut state.openers);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        // Without openers the tunnels close when their last streams have ended; without senders the waiting
        // streams learn that nothing will come.
        drop(openers);
        drop(waiting);
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Places for Inner<K> {
    fn release(&self, id: u64) {
        self.with_core(|core, words| core.released(TunnelId(id), Instant::now().into_std(), words));
    }
}

enum Asked<'a, K: Clone + Eq + Hash + Send + 'static> {
    Have(Opener, Place),
    Wait(Waiting<'a, K>),
}

/// A stream that waits. Dropped, it gives its turn to the next.
struct Waiting<'a, K: Clone + Eq + Hash + Send + 'static> {
    inner: &'a Inner<K>,
    key: &'a K,
    ticket: Ticket,
    letters: mpsc::Receiver<Letter>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        let waits_still = self.inner.state.lock().waiting.remove(&self.ticket).is_some();
        if waits_still {
            self.inner.with_core(|core, words| core.cancel(self.key, self.ticket, words));
        }
    }
}
