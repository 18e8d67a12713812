//! Which tunnel a new stream takes, who dials when there is none, and who waits. Decides and does nothing else: no
//! I/O, no clock, no task. Streams that want different keys never wait for each other, and all that want one key
//! share one dial.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

use crate::limits::PoolLimits;

/// A tunnel in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TunnelId(pub(crate) u64);

/// A stream that waits for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// What a waiting stream is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// A place in this tunnel is yours.
    Use(TunnelId),
    /// Dial, for yourself and for everybody who wants the same key; then keep waiting.
    Dial,
    /// The dial that you waited for has failed.
    Fail,
}

/// What a new stream is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Use(TunnelId),
    /// A word will come for this ticket.
    Wait(Ticket),
    /// So many wait already.
    Full(usize),
}

/// What became of a waiter's turn to dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It dials now.
    Begun,
    /// It has dialled as often as it may; it is to stop waiting, so that the turn goes to another.
    Declined,
    /// Another word for it is on its way already.
    Over,
}

/// Whether an unused tunnel is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idle {
    /// It is forgotten; close it.
    Close,
    /// Ask again then.
    Until(Instant),
}

#[derive(Debug)]
struct Tunnel<K> {
    key: K,
    used: usize,
    max: usize,
    closing: bool,
    idle_since: Instant,
}

#[derive(Debug)]
struct Entry {
    /// Tunnels that take streams, oldest first: filling those lets the younger ones go idle and close.
    tunnels: Vec<TunnelId>,
    dialling: Option<Dial>,
    waiting: VecDeque<Ticket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    /// This waiter was told to, and has not begun.
    Asked(Ticket),
    Begun,
}

/// The pool's state.
#[derive(Debug)]
pub(crate) struct Core<K> {
    entries: HashMap<K, Entry>,
    tunnels: HashMap<TunnelId, Tunnel<K>>,
    max_tunnels: usize,
    max_waiting: usize,
    idle: std::time::Duration,
    next: u64,
}

/// How much the pool holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Peers (keys) with a tunnel, a dial or a waiting stream.
    pub keys: usize,
    /// Tunnels, closing ones included.
    pub tunnels: usize,
    /// Streams that hold a place in a tunnel.
    pub streams: usize,
    /// Streams that wait for a tunnel.
    pub waiting: usize,
}

/// Words for waiting streams, in the order in which they are to be delivered.
pub(crate) type Words = Vec<(Ticket, Word)>;

impl<K: Clone + Eq + Hash> Core<K> {
    pub(crate) fn new(limits: &PoolLimits) -> Self {
        Core {
            entries: HashMap::new(),
            tunnels: HashMap::new(),
            max_tunnels: limits.max_tunnels.max(1),
            max_waiting: limits.max_waiting,
            idle: limits.idle,
            next: 0,
        }
    }

    /// A stream wants a place.
    pub(crate) fn ask(&mut self, key: &K, words: &mut Words) -> Answer {
        let waiting = self.entries.get(key).map_or(0, |entry| entry.waiting.len());
        if waiting == 0
            && let Some(tunnel) = self.take_place(key)
        {
            return Answer::Use(tunnel);
        }
        if waiting >= self.max_waiting {
            return Answer::Full(waiting);
        }
        let ticket = Ticket(self.fresh());
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            tunnels: Vec::new(),
            dialling: None,
            waiting: VecDeque::new(),
        });
        entry.waiting.push_back(ticket);
        self.schedule(key, words);
        Answer::Wait(ticket)
    }

    /// A waiting stream gave up (or had its word already, which does no harm).
    pub(crate) fn cancel(&mut self, key: &K, ticket: Ticket, words: &mut Words) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.waiting.retain(|waiting| *waiting != ticket);
        if entry.dialling == Some(Dial::Asked(ticket)) {
            // It was to dial and will not: somebody else must.
            entry.dialling = None;
        }
        self.schedule(key, words);
    }

    /// A waiter that was told to dial is about to, if it still may (`left` times). It may not be its turn any more: a
    /// place may have come free since.
    pub(crate) fn begin_dial(&mut self, key: &K, ticket: Ticket, left: &mut usize) -> Turn {
        let Some(entry) = self.entries.get_mut(key) else { return Turn::Over };
        if entry.dialling != Some(Dial::Asked(ticket)) {
            return Turn::Over;
        }
        match left.checked_sub(1) {
            None => Turn::Declined,
            Some(rest) => {
                *left = rest;
                entry.dialling = Some(Dial::Begun);
                Turn::Begun
            }
        }
    }

    /// A dial has succeeded.
    pub(crate) fn dialled(&mut self, key: &K, max: usize, now: Instant, words: &mut Words) -> TunnelId {
        let id = TunnelId(self.fresh());
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            tunnels: Vec::new(),
            dialling: None,
            waiting: VecDeque::new(),
        });
        entry.dialling = None;
        entry.tunnels.push(id);
        self.tunnels.insert(id, Tunnel { key: key.clone(), used: 0, max, closing: false, idle_since: now });
        self.schedule(key, words);
        id
    }

    /// A dial has failed: everybody who waited for it is told.
    pub(crate) fn dial_failed(&mut self, key: &K, words: &mut Words) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.dialling = None;
        words.extend(entry.waiting.drain(..).map(|ticket| (ticket, Word::Fail)));
        self.tidy(key);
    }

    /// The peer changed its limit, or takes no new streams.
    pub(crate) fn changed(&mut self, id: TunnelId, max: usize, closing: bool, words: &mut Words) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.max = max;
        tunnel.closing |= closing;
        let key = tunnel.key.clone();
        if tunnel.closing {
            self.retire(&key, id);
        }
        self.schedule(&key, words);
    }

    /// A stream has ended.
    pub(crate) fn released(&mut self, id: TunnelId, now: Instant, words: &mut Words) {
        // A tunnel that has ended before its last stream's owner noticed is forgotten already.
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.used -= 1;
        tunnel.idle_since = now;
        let key = tunnel.key.clone();
        self.schedule(&key, words);
    }

    /// A tunnel has ended.
    pub(crate) fn gone(&mut self, id: TunnelId, words: &mut Words) {
        let Some(tunnel) = self.tunnels.remove(&id) else { return };
        self.retire(&tunnel.key, id);
        self.schedule(&tunnel.key, words);
    }

    /// Forgets a tunnel that nobody has used for the idle time.
    pub(crate) fn idle(&mut self, id: TunnelId, now: Instant, words: &mut Words) -> Idle {
        let Some(tunnel) = self.tunnels.get(&id) else { return Idle::Close };
        if tunnel.used > 0 {
            return Idle::Until(now + self.idle);
        }
        let due = tunnel.idle_since + self.idle;
        if now < due {
            return Idle::Until(due);
        }
        self.gone(id, words);
        Idle::Close
    }

    /// Forgets every tunnel that nobody uses now; they are to be closed.
    pub(crate) fn close_idle(&mut self, words: &mut Words) -> Vec<TunnelId> {
        let unused: Vec<TunnelId> =
            self.tunnels.iter().filter(|(_, tunnel)| tunnel.used == 0).map(|(id, _)| *id).collect();
        for id in &unused {
            self.gone(*id, words);
        }
        unused
    }

    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats {
            keys: self.entries.len(),
            tunnels: self.tunnels.len(),
            streams: self.tunnels.values().map(|tunnel| tunnel.used).sum(),
            waiting: self.entries.values().map(|entry| entry.waiting.len()).sum(),
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn take_place(&mut self, key: &K) -> Option<TunnelId> {
        let entry = self.entries.get(key)?;
        for id in &entry.tunnels {
            let tunnel = self.tunnels.get_mut(id).expect("a listed tunnel exists until `retire` unlists it");
            if tunnel.used < tunnel.max {
                tunnel.used += 1;
                return Some(*id);
            }
        }
        None
    }

    /// Serves the waiting streams of a key in order, and has one of them dial if that can help.
    fn schedule(&mut self, key: &K, words: &mut Words) {
        while self.entries.get(key).is_some_and(|entry| !entry.waiting.is_empty()) {
            let Some(tunnel) = self.take_place(key) else { break };
            let entry = self.entries.get_mut(key).expect("checked above");
            let ticket = entry.waiting.pop_front().expect("checked above");
            if entry.dialling == Some(Dial::Asked(ticket)) {
                entry.dialling = None;
            }
            words.push((ticket, Word::Use(tunnel)));
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.dialling.is_none()
            && entry.tunnels.len() < self.max_tunnels
            && let Some(ticket) = entry.waiting.front()
        {
            entry.dialling = Some(Dial::Asked(*ticket));
            words.push((*ticket, Word::Dial));
        }
        self.tidy(key);
    }

    /// No new streams for this tunnel; those that it has go on.
    fn retire(&mut self, key: &K, id: TunnelId) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.tunnels.retain(|listed| *listed != id);
        }
    }

    /// Forgets a key that nothing belongs to.
    fn tidy(&mut self, key: &K) {
        let unused =
            |entry: &Entry| entry.tunnels.is_empty() && entry.waiting.is_empty() && entry.dialling.is_none();
        if self.entries.get(key).is_some_and(unused) {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "pool_core_tests.rs"]
mod tests;
