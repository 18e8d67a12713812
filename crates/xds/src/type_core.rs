//! One type of a server's session: what is wanted of it, held and under way. Pure, a part of [`server_core`](crate::server_core).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Response, WILDCARD, reasons};
use crate::resource::{Difference, Resource, Resources};
use crate::server_core::{MAX_NAMES, Nack, Part, ProtocolError, TypeStatus, View};

/// What is to be done about a step.
pub(crate) enum Next {
    /// There is nothing to tell.
    Nothing,
    /// This is to be sent.
    Response(Response),
    /// There is something to tell, after the response under way was answered.
    Waits,
}

/// What a client wants of a type.
#[derive(Debug, Default)]
struct Wanted {
    wildcard: bool,
    names: BTreeSet<String>,
}

impl Wanted {
    /// What the client should hold.
    fn target(&self, url: &str, view: &dyn View) -> Resources {
        let mut target = if self.wildcard { view.snapshot(url) } else { Resources::default() };
        target.extend(self.names.iter().flat_map(|key| view.lookup(url, key)));
        target
    }
}

/// One type of a session.
#[derive(Debug)]
pub(crate) struct Type {
    pub(crate) url: &'static str,
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
    pub(crate) dirty: bool,
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
    pub(crate) fn new(url: &'static str) -> Self {
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
    pub(crate) fn answer(&mut self, now: Duration, nonce: &str, error: Option<String>) {
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

    pub(crate) fn subscribe(
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

    /// What is to be done about that part of what is different.
    pub(crate) fn poll(&mut self, view: &dyn View, part: Part, nonce: &str, limit: usize) -> Next {
        let Some(wanted) = &self.wanted else {
            // What comes later counts on it, and a client that has not asked for it yet will.
            return if matches!(part, Part::Awaited | Part::Early) { Next::Waits } else { Next::Nothing };
        };
        if !(self.dirty || self.answer_due) {
            return Next::Nothing;
        }
        let target = wanted.target(self.url, view);
        self.take_in_claims(&target);
        self.answer_questions(view);
        let url = self.url;
        let tells = |difference: &Difference| match (part, difference) {
            (Part::Awaited | Part::Whole, _)
            | (Part::Changes, Difference::Changed(_))
            | (Part::Removals, Difference::Removed(_)) => true,
            (Part::Early, Difference::Changed(resource)) => !view.waits(url, &resource.name),
            (Part::Changes | Part::Early, Difference::Removed(_))
            | (Part::Removals, Difference::Changed(_)) => false,
        };
        if self.in_flight.is_some() {
            let is_left =
                !self.gone.is_empty() || self.held.diff(&target).any(|difference| tells(&difference));
            return if is_left { Next::Waits } else { Next::Nothing };
        }
        let Batch { resources, removed, complete } = self.batch(&target, tells, limit);
        if complete {
            self.held = target; // The same content, and shared with every other session that has it.
            self.asked.clear();
        }
        self.dirty = !complete;
        // The last part follows, even if nothing is left to say by then.
        if resources.is_empty() && removed.is_empty() && !(self.answer_due && complete) {
            return Next::Nothing;
        }
        self.answer_due = !complete;
        let names = resources.iter().map(|r| r.name.clone()).chain(removed.iter().cloned()).collect();
        self.in_flight = Some(InFlight { nonce: nonce.to_owned(), names, held: self.held.clone() });
        let (type_url, nonce) = (self.url.to_owned(), nonce.to_owned());
        Next::Response(Response { type_url, nonce, resources, removed, more: !complete })
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

    /// As much of the way to `target` as this part tells and fits. What is taken counts as held.
    fn batch(&mut self, target: &Resources, tells: impl Fn(&Difference) -> bool, limit: usize) -> Batch {
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
            if !tells(&difference) {
                batch.complete = false;
                continue;
            }
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

    pub(crate) fn status(&self) -> Option<TypeStatus> {
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
