//! The client's side of discovery, across connections: what it holds, what it asks for, and who waits for an answer.
//!
//! A function of the responses, the demands and the time it is given. One bad resource rejects only itself. Nothing that
//! was accepted is asked for again after a reconnect, and nobody waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Rejection, Request, Response, WILDCARD, refusal};
use crate::resource::Resource;

/// The most keys that are subscribed to on demand. Applications that dial many addresses outside of the mesh leave a key
/// for each; beyond this the oldest keys that stand for nothing are given up. A server bounds it as well.
const MAX_KEYS: usize = 32_768;

/// The most lookups that wait at once: as many as connections that a node opens within the seconds that a lookup may take.
const MAX_WAITERS: usize = 65_536;

/// Where accepted resources go.
pub trait Sink: Send {
    /// Takes in a part of a change, and says which resources it could not use. Must be quick.
    fn apply(&mut self, type_url: &str, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection>;

    /// The first complete answer of a type that is subscribed to as a whole has been applied. Called once per type.
    fn synced(&mut self, type_url: &str);
}

/// How much of a type is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// What is asked for by name.
    OnDemand,
    /// Everything.
    Wildcard,
}

/// A type that the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subscription {
    /// Which type.
    pub type_url: &'static str,
    /// How much of it.
    pub mode: Mode,
}

/// Why a lookup did not end in an answer. The caller must refuse what it looked up for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DemandError {
    /// The resource exists and can't be used.
    #[error("discovery sent a resource that can't be used: {reason}")]
    Rejected {
        /// What is wrong with it.
        reason: String,
    },
    /// No answer came in time.
    #[error("discovery did not answer in time; check that the controller is reachable")]
    Timeout,
    /// The lookup could not be made.
    #[error(
        "discovery can't take this lookup: it has stopped, has no such type, or has too many lookups under way"
    )]
    Unavailable,
}

/// One lookup, as the caller numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Waiter(pub u64);

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this, in order, on the connection that there is.
    Send(Request),
    /// A lookup has ended. `Ok`: what the store says by now is the answer, also if it says nothing.
    Wake(Waiter, Result<(), DemandError>),
}

/// A client, for as long as its process lives.
#[derive(Debug)]
pub struct Core {
    types: Vec<Type>,
    connected: bool,
    /// What each waiter waits for.
    waiters: BTreeMap<Waiter, Wait>,
    deadlines: BTreeSet<(Duration, Waiter)>,
}

#[derive(Debug)]
struct Wait {
    deadline: Duration,
    kind: usize,
    /// `None`: the first complete answer of the type.
    key: Option<String>,
}

impl Core {
    /// A client that wants these types.
    #[must_use]
    pub fn new(subscriptions: &[Subscription]) -> Self {
        Self {
            types: subscriptions.iter().copied().map(Type::new).collect(),
            connected: false,
            waiters: BTreeMap::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// There is a new connection; these are the first requests to send on it.
    pub fn connected(&mut self) -> Vec<Request> {
        self.connected = true;
        self.types.iter().map(Type::first_request).collect()
    }

    /// The connection is gone. What was accepted stays in use.
    pub fn disconnected(&mut self) {
        self.connected = false;
        for kind in &mut self.types {
            kind.settled.clear();
        }
    }

    /// Takes in a response of this connection.
    pub fn received(&mut self, response: Response, sink: &mut dyn Sink) -> Vec<Action> {
        let Response { type_url, nonce, resources, removed, more } = response;
        let Some(kind) = self.types.iter_mut().find(|kind| kind.url == type_url) else {
            let error = Some(format!("{type_url}: not subscribed to"));
            return vec![Action::Send(Request { type_url, nonce, error, ..Request::default() })];
        };
        let rejections = kind.apply(resources, removed, sink);
        let error = refusal(&rejections);
        let mut actions = vec![Action::Send(Request { type_url, nonce, error, ..Request::default() })];
        if !more {
            actions.extend(
                kind.complete(sink).into_iter().map(|(waiter, outcome)| Action::Wake(waiter, outcome)),
            );
        }
        for action in &actions {
            if let Action::Wake(waiter, _) = action
                && let Some(wait) = self.waiters.remove(waiter)
            {
                self.deadlines.remove(&(wait.deadline, *waiter));
            }
        }
        actions
    }

    /// Someone needs what `key` stands for, and waits until `deadline`.
    pub fn demand(&mut self, type_url: &str, key: &str, waiter: Waiter, deadline: Duration) -> Vec<Action> {
        let found = self.types.iter_mut().enumerate().find(|(_, kind)| kind.url == type_url);
        let Some((index, kind)) = found.filter(|_| self.waiters.len() < MAX_WAITERS) else {
            return vec![Action::Wake(waiter, Err(DemandError::Unavailable))];
        };
        let (outcome, requests) = kind.demand(key, waiter);
        if let Some(outcome) = outcome {
            return vec![Action::Wake(waiter, outcome)];
        }
        let key = (kind.mode == Mode::OnDemand).then(|| key.to_owned());
        self.waiters.insert(waiter, Wait { deadline, kind: index, key });
        self.deadlines.insert((deadline, waiter));
        requests.into_iter().filter(|_| self.connected).map(Action::Send).collect()
    }

    /// Ends the lookups whose time is up.
    pub fn expire(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let Some((_, waiter)) = self.deadlines.pop_first() else { break };
            if let Some(wait) = self.waiters.remove(&waiter) {
                self.types[wait.kind].forget(wait.key.as_deref(), waiter);
            }
            actions.push(Action::Wake(waiter, Err(DemandError::Timeout)));
        }
        actions
    }

    /// When [`Core::expire`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many resources of a type are in use.
    #[must_use]
    pub fn held(&self, type_url: &str) -> usize {
        let kind = self.types.iter().find(|kind| kind.url == type_url);
        kind.map_or(0, |kind| kind.held.len() - kind.rejected.len())
    }

    /// Whether everything of a type has arrived once. Never so for a type that is only asked for on demand.
    #[must_use]
    pub fn synced(&self, type_url: &str) -> bool {
        self.types.iter().any(|kind| kind.url == type_url && kind.synced)
    }
}

#[derive(Debug)]
struct Type {
    url: &'static str,
    mode: Mode,
    /// Versions by name. Empty for what was rejected: an older version may still be in use, so the server must say when it
    /// is gone, and must send it again on the next connection.
    held: BTreeMap<String, String>,
    /// Names in `held` whose last version was rejected.
    rejected: BTreeSet<String>,
    synced: bool,
    /// Who waits for the first complete answer.
    awaiting_sync: BTreeSet<Waiter>,
    keys: BTreeMap<String, Key>,
    /// Keys that stand for nothing, oldest first.
    absent: BTreeMap<u64, String>,
    next_absent: u64,
    /// Answers of a change that is not complete.
    settled: BTreeMap<String, Answer>,
}

/// A key that is subscribed to.
#[derive(Debug, Default)]
struct Key {
    answer: Option<Answer>,
    waiters: Vec<Waiter>,
}

#[derive(Clone, Debug)]
enum Answer {
    /// Nothing has that name; this many keys were found absent before.
    Absent(u64),
    Known,
    Rejected(String),
}

impl Answer {
    fn outcome(&self) -> Result<(), DemandError> {
        match self {
            Self::Absent(_) | Self::Known => Ok(()),
            Self::Rejected(reason) => Err(DemandError::Rejected { reason: reason.clone() }),
        }
    }
}

type Woken = (Waiter, Result<(), DemandError>);

impl Type {
    fn new(Subscription { type_url, mode }: Subscription) -> Self {
        Self {
            url: type_url,
            mode,
            held: BTreeMap::new(),
            rejected: BTreeSet::new(),
            synced: false,
            awaiting_sync: BTreeSet::new(),
            keys: BTreeMap::new(),
            absent: BTreeMap::new(),
            next_absent: 0,
            settled: BTreeMap::new(),
        }
    }

    fn first_request(&self) -> Request {
        let mut request =
            Request { type_url: self.url.to_owned(), held: self.held.clone(), ..Request::default() };
        if self.mode == Mode::OnDemand {
            // Both at once is how the protocol spells "nothing but what is named".
            request.unsubscribe.push(WILDCARD.to_owned());
            request.subscribe.push(WILDCARD.to_owned());
            request.subscribe.extend(self.keys.keys().cloned());
            // An empty version asks for an answer, even if another key has brought the resource already.
            let unanswered = self.keys.iter().filter(|(_, key)| key.answer.is_none());
            request.held.extend(unanswered.map(|(name, _)| (name.clone(), String::new())));
        }
        request
    }

    fn apply(
        &mut self,
        resources: Vec<Arc<Resource>>,
        removed: Vec<String>,
        sink: &mut dyn Sink,
    ) -> Vec<Rejection> {
        let names: Vec<(String, String, Vec<String>)> =
            resources.iter().map(|r| (r.name.clone(), r.version.clone(), r.aliases.clone())).collect();
        let gone = removed.clone();
        let rejections =
            sink.apply(self.url, resources.into_iter().map(Arc::unwrap_or_clone).collect(), removed);
        let reasons: BTreeMap<&str, &str> =
            rejections.iter().map(|r| (r.name.as_str(), r.reason.as_str())).collect();
        for name in gone {
            self.held.remove(&name);
            self.rejected.remove(&name);
            let answer = Answer::Absent(self.next_absent);
            self.next_absent += 1;
            self.settle(name, answer);
        }
        for (name, version, aliases) in names {
            let reason = reasons.get(name.as_str());
            let answer = reason.map_or(Answer::Known, |reason| Answer::Rejected((*reason).to_owned()));
            for alias in aliases {
                self.settle(alias, answer.clone());
            }
            self.settle(name.clone(), answer);
            if reason.is_some() {
                self.rejected.insert(name.clone());
                self.held.insert(name, String::new());
            } else {
                self.rejected.remove(&name);
                self.held.insert(name, version);
            }
        }
        rejections
    }

    fn settle(&mut self, key: String, answer: Answer) {
        if self.keys.contains_key(&key) {
            self.settled.insert(key, answer);
        }
    }

    /// A change has arrived as a whole: only now does a service have its workloads.
    fn complete(&mut self, sink: &mut dyn Sink) -> Vec<Woken> {
        let mut woken = Vec::new();
        for (name, answer) in mem::take(&mut self.settled) {
            let Some(key) = self.keys.get_mut(&name) else { continue };
            if let Some(Answer::Absent(since)) = key.answer {
                self.absent.remove(&since);
            }
            if let Answer::Absent(since) = answer {
                self.absent.insert(since, name);
            }
            woken.extend(key.waiters.drain(..).map(|waiter| (waiter, answer.outcome())));
            key.answer = Some(answer);
        }
        if self.mode == Mode::Wildcard && !mem::replace(&mut self.synced, true) {
            sink.synced(self.url);
            woken.extend(mem::take(&mut self.awaiting_sync).into_iter().map(|waiter| (waiter, Ok(()))));
        }
        woken
    }

    /// The outcome if it is known, else what to ask.
    fn demand(&mut self, name: &str, waiter: Waiter) -> (Option<Result<(), DemandError>>, Vec<Request>) {
        if self.mode == Mode::Wildcard {
            if self.synced {
                return (Some(Ok(())), Vec::new());
            }
            self.awaiting_sync.insert(waiter);
            return (None, Vec::new());
        }
        if let Some(key) = self.keys.get_mut(name) {
            if let Some(answer) = &key.answer {
                return (Some(answer.outcome()), Vec::new());
            }
            key.waiters.push(waiter);
            return (None, Vec::new());
        }
        let mut request = Request { type_url: self.url.to_owned(), ..Request::default() };
        if self.keys.len() >= MAX_KEYS {
            let Some((_, oldest)) = self.absent.pop_first() else {
                return (Some(Err(DemandError::Unavailable)), Vec::new());
            };
            self.keys.remove(&oldest);
            self.settled.remove(&oldest);
            request.unsubscribe.push(oldest);
        }
        self.keys.insert(name.to_owned(), Key { answer: None, waiters: vec![waiter] });
        request.subscribe.push(name.to_owned());
        (None, vec![request])
    }

    /// That waiter is no longer there. Its key stays: the answer is still worth having.
    fn forget(&mut self, key: Option<&str>, waiter: Waiter) {
        self.awaiting_sync.remove(&waiter);
        if let Some(key) = key.and_then(|key| self.keys.get_mut(key)) {
            key.waiters.retain(|other| *other != waiter);
        }
    }
}
