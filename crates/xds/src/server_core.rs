//! The server's side of one discovery session: what the client asked for, holds and has acknowledged, and what to send it
//! next. A function of the requests, the view of the resources, and nothing else.
//!
//! One response of a type is under way at a time; what changes meanwhile is merged, because the next response is made from
//! the difference between what the client holds and what there is by then.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Request, Response, WILDCARD, reasons};
use crate::resource::{Difference, Resource, Resources};

/// The most names that a client may subscribe to in one type: a node talks to fewer services and pods than this, and a
/// session costs memory for each.
pub const MAX_NAMES: usize = 65_536;

/// What one client may see.
pub trait View {
    /// All resources of a type, for a client that wants everything.
    fn snapshot(&self, type_url: &str) -> Resources;

    /// What a client that asks for `key` must get: for a service, also its workloads. Empty when there is none.
    fn lookup(&self, type_url: &str, key: &str) -> Vec<Arc<Resource>>;
}

/// Why a session must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More subscriptions than a session may have.
    #[error("more than {MAX_NAMES} names of {type_url} subscribed; use a wildcard subscription")]
    TooManyNames {
        /// Of which type.
        type_url: String,
    },
}

/// A refusal that a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// When, since the caller's epoch.
    pub at: Duration,
    /// Of which response.
    pub nonce: String,
    /// The client's words.
    pub message: String,
}

/// How far one type of a session is.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    /// Which type.
    pub type_url: &'static str,
    /// Everything, or only what is named.
    pub wildcard: bool,
    /// How many names are subscribed to.
    pub names: usize,
    /// Whether a response waits for its answer.
    pub in_flight: bool,
    /// Responses that were acknowledged whole.
    pub acks: u64,
    /// Responses of which something was refused.
    pub nacks: u64,
    /// The last refusal.
    pub last_nack: Option<Nack>,
    /// What the client refused and has not taken since, by name, with its reason.
    pub refused: BTreeMap<String, String>,
    answered: Resources,
}

/// What a client has said of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It can't use it, for this reason.
    Refused(&'a str),
    /// It uses it.
    Taken,
}

impl TypeStatus {
    /// What the client said of this version of a resource; `None` while it has not.
    #[must_use]
    pub fn answer(&self, name: &str, version: &str) -> Option<Answer<'_>> {
        self.answered.get(name).filter(|answered| answered.version == version)?;
        Some(self.refused.get(name).map_or(Answer::Taken, |reason| Answer::Refused(reason)))
    }

    /// The version of a resource that the client is known to use.
    #[must_use]
    pub fn acknowledged(&self, name: &str) -> Option<&str> {
        let version = &self.answered.get(name)?.version;
        (!version.is_empty() && !self.refused.contains_key(name)).then_some(version)
    }
}

/// One session.
#[derive(Debug)]
pub struct Core {
    types: Vec<Type>,
    max_response_bytes: usize,
    last_nonce: u64,
}

impl Core {
    /// A session that serves these types, in this order where several have changes to send. A response is kept below
    /// `max_response_bytes` unless a single resource is larger.
    #[must_use]
    pub fn new(types: &[&'static str], max_response_bytes: usize) -> Self {
        Self { types: types.iter().map(|url| Type::new(url)).collect(), max_response_bytes, last_nonce: 0 }
    }

    /// Takes a request in. A type that is not served is not answered: an empty answer would say that there is nothing.
    ///
    /// # Errors
    /// When the session must end.
    pub fn request(&mut self, now: Duration, request: Request) -> Result<(), ProtocolError> {
        let Some(kind) = self.types.iter_mut().find(|kind| kind.url == request.type_url) else {
            return Ok(());
        };
        kind.answer(now, &request.nonce, request.error);
        kind.subscribe(request.subscribe, &request.unsubscribe, request.held)
    }

    /// The view may have changed.
    pub fn changed(&mut self) {
        for kind in &mut self.types {
            kind.dirty = true;
        }
    }

    /// The next response to send, if any. To be asked again until there is none.
    pub fn poll(&mut self, view: &dyn View) -> Option<Response> {
        let nonce = (self.last_nonce + 1).to_string();
        let limit = self.max_response_bytes;
        let response = self.types.iter_mut().find_map(|kind| kind.poll(view, &nonce, limit))?;
        self.last_nonce += 1;
        Some(response)
    }

    /// How far each type is that the client asked for.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        self.types.iter().filter_map(Type::status).collect()
    }
}

/// What a client wants of a type.
#[derive(Debug, Default)]
struct Wanted {
    wildcard: bool,
    names: BTreeSet<String>,
}

#[derive(Debug)]
struct Type {
    url: &'static str,
    /// `None` until the client's first request.
    wanted: Option<Wanted>,
    /// What the client says it holds, until that is compared with the view.
    claimed: BTreeMap<String, String>,
    /// Keys whose answer is not sent in full, and whether it must repeat what the client already holds.
    asked: BTreeMap<String, bool>,
    /// Names to report as removed.
    gone: BTreeSet<String>,
    /// What the client holds once it has taken in all that was sent; of what is outdated, only the name matters.
    held: Resources,
    /// What it held when it last answered.
    answered: Resources,
    /// What of `answered` it refused, and why.
    refused: BTreeMap<String, String>,
    /// `held` may differ from the view.
    dirty: bool,
    /// A response must follow even if it is empty.
    answer_due: bool,
    in_flight: Option<InFlight>,
    acks: u64,
    nacks: u64,
    last_nack: Option<Nack>,
}

/// A response that the client has not answered.
#[derive(Debug)]
struct InFlight {
    nonce: String,
    names: BTreeSet<String>,
    held: Resources,
}

impl Type {
    fn new(url: &'static str) -> Self {
        Self {
            url,
            wanted: None,
            claimed: BTreeMap::new(),
            asked: BTreeMap::new(),
            gone: BTreeSet::new(),
            held: Resources::default(),
            answered: Resources::default(),
            refused: BTreeMap::new(),
            dirty: false,
            answer_due: false,
            in_flight: None,
            acks: 0,
            nacks: 0,
            last_nack: None,
        }
    }

    /// An answer to anything but the response under way is late, and says nothing any more.
    fn answer(&mut self, now: Duration, nonce: &str, error: Option<String>) {
        let Some(InFlight { nonce, names, held }) = self.in_flight.take_if(|sent| sent.nonce == nonce) else {
            return;
        };
        self.answered = held;
        self.refused.retain(|name, _| !names.contains(name));
        let Some(message) = error else {
            self.acks += 1;
            return;
        };
        let mut named = reasons(&message, |name| names.contains(name));
        if named.is_empty() {
            // Words that name none of the resources refuse them all.
            named = names.into_iter().map(|name| (name, message.clone())).collect();
        }
        self.refused.extend(named);
        self.nacks += 1;
        self.last_nack = Some(Nack { at: now, nonce, message });
    }

    fn subscribe(
        &mut self,
        subscribe: Vec<String>,
        unsubscribe: &[String],
        held: BTreeMap<String, String>,
    ) -> Result<(), ProtocolError> {
        let first = self.wanted.is_none();
        if !first && subscribe.is_empty() && unsubscribe.is_empty() {
            return Ok(());
        }
        let wanted = self.wanted.get_or_insert_default();
        let was_wildcard = wanted.wildcard;
        wanted.wildcard |= first && subscribe.is_empty() && unsubscribe.is_empty();
        for name in subscribe {
            if name == WILDCARD {
                wanted.wildcard = true;
                continue;
            }
            // A later request for a name that is held all the same means that the client waits for it.
            let repeat = !first || held.get(&name).is_some_and(String::is_empty);
            self.asked.insert(name.clone(), repeat);
            wanted.names.insert(name);
        }
        for name in unsubscribe {
            wanted.wildcard &= name != WILDCARD;
            wanted.names.remove(name);
            self.asked.remove(name);
        }
        if wanted.names.len() > MAX_NAMES {
            return Err(ProtocolError::TooManyNames { type_url: self.url.to_owned() });
        }
        // A client learns that it has everything from the answer, even if there is nothing.
        self.answer_due |= wanted.wildcard && !was_wildcard;
        self.dirty = true;
        if first {
            self.claimed = held;
        }
        Ok(())
    }

    fn poll(&mut self, view: &dyn View, nonce: &str, limit: usize) -> Option<Response> {
        if self.in_flight.is_some() || !(self.dirty || self.answer_due) {
            return None;
        }
        let target = self.target(view)?;
        self.take_in_claims(&target);
        self.answer_questions(view);
        let Batch { resources, removed, complete } = self.batch(&target, limit);
        if complete {
            self.held = target; // The same content, and shared with every other session that has it.
            self.asked.clear();
        }
        self.dirty = !complete;
        // The last part follows, even if nothing is left to say by then.
        let due = mem::replace(&mut self.answer_due, !complete);
        if resources.is_empty() && removed.is_empty() && !due {
            return None;
        }
        let names = resources.iter().map(|r| r.name.clone()).chain(removed.iter().cloned()).collect();
        self.in_flight = Some(InFlight { nonce: nonce.to_owned(), names, held: self.held.clone() });
        let (type_url, nonce) = (self.url.to_owned(), nonce.to_owned());
        Some(Response { type_url, nonce, resources, removed, more: !complete })
    }

    /// What the client should hold.
    fn target(&self, view: &dyn View) -> Option<Resources> {
        let wanted = self.wanted.as_ref()?;
        let mut target = if wanted.wildcard { view.snapshot(self.url) } else { Resources::default() };
        target.extend(wanted.names.iter().flat_map(|key| view.lookup(self.url, key)));
        Some(target)
    }

    /// What the client holds from an earlier connection and is still current need not be sent again; what no longer exists
    /// must be reported, because only the client knows of it.
    fn take_in_claims(&mut self, target: &Resources) {
        if self.claimed.is_empty() {
            return;
        }
        for (name, version) in mem::take(&mut self.claimed) {
            match target.get(&name) {
                Some(resource) if resource.version == version => self.held.insert(Arc::clone(resource)),
                None if self.asked.contains_key(&name) => {}
                Some(_) | None => self.held.insert(Resource::outdated(name, version)),
            }
        }
        self.answered = self.held.clone();
    }

    /// Each key that was asked for is answered: by its resources, or by its removal when there are none. A key whose
    /// resources may still be in a later part stays asked for, as they may be gone by then.
    fn answer_questions(&mut self, view: &dyn View) {
        let Self { asked, held, gone, url, .. } = self;
        asked.retain(|key, repeat| {
            let found = view.lookup(url, key);
            if found.is_empty() {
                held.remove(key);
                gone.insert(key.clone());
            } else if mem::take(repeat) {
                let exact = found.iter().any(|resource| resource.answers(key));
                for resource in found.iter().filter(|resource| !exact || resource.answers(key)) {
                    held.outdate(&resource.name);
                }
            }
            !found.is_empty()
        });
    }

    /// As much of the way to `target` as fits. What is taken counts as held.
    fn batch(&mut self, target: &Resources, limit: usize) -> Batch {
        let mut batch = Batch { resources: Vec::new(), removed: Vec::new(), complete: true };
        let mut size = 0;
        let mut fits = |bytes: usize| {
            let fits = size == 0 || size + bytes <= limit;
            size += bytes;
            fits
        };
        while let Some(name) = self.gone.first() {
            if !fits(name.len() + 4) {
                batch.complete = false;
                return batch;
            }
            batch.removed.extend(self.gone.pop_first());
        }
        for difference in self.held.diff(target) {
            let bytes = match &difference {
                Difference::Changed(resource) => resource.size(),
                Difference::Removed(name) => name.len() + 4,
            };
            if !fits(bytes) {
                batch.complete = false;
                break;
            }
            match difference {
                Difference::Changed(resource) => batch.resources.push(resource),
                Difference::Removed(name) => batch.removed.push(name),
            }
        }
        if !batch.complete {
            for name in &batch.removed {
                self.held.remove(name);
            }
            self.held.extend(batch.resources.iter().cloned());
        }
        batch
    }

    fn status(&self) -> Option<TypeStatus> {
        let Wanted { wildcard, names } = self.wanted.as_ref()?;
        Some(TypeStatus {
            type_url: self.url,
            wildcard: *wildcard,
            names: names.len(),
            in_flight: self.in_flight.is_some(),
            acks: self.acks,
            nacks: self.nacks,
            last_nack: self.last_nack.clone(),
            answered: self.answered.clone(),
            refused: self.refused.clone(),
        })
    }
}

/// A part of a change.
struct Batch {
    resources: Vec<Arc<Resource>>,
    removed: Vec<String>,
    /// Nothing is left for a next part.
    complete: bool,
}
