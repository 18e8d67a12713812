//! The server's side of one discovery session: what the client asked for, holds and has acknowledged, and what to send it
//! next. A function of the requests, the view of the resources, and nothing else.
//!
//! One response of a type is under way at a time; what changes meanwhile is merged, because the next response is made from
//! the difference between what the client holds and what there is by then. Changes go out in the order of the session's steps:
//! where one has to wait for an answer, all that come after it wait too, so that a client is never ahead in a later one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Request, Response};
use crate::resource::{Resource, Resources};
use crate::type_core::{Next, Type};

/// The most names that a client may subscribe to in one type: a node talks to fewer services and pods than this, and a
/// session costs memory for each.
pub const MAX_NAMES: usize = 65_536;

/// What one client may see.
pub trait View {
    /// All resources of a type, for a client that wants everything.
    fn snapshot(&self, type_url: &str) -> Resources;

    /// What a client that asks for `key` must get: for a service, also its workloads. Empty when there is none.
    fn lookup(&self, type_url: &str, key: &str) -> Vec<Arc<Resource>>;

    /// Whether a resource as it is now may be told only after steps that come before [`Part::Changes`] of its type.
    fn waits(&self, _type_url: &str, _name: &str) -> bool {
        false
    }
}

/// A step on the way from what a client holds to what it may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Of which type.
    pub type_url: &'static str,
    /// What of it.
    pub part: Part,
}

/// Of what is different, what a step tells. The steps of a type together have to tell everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything, and nothing of later steps before the client has asked for this type.
    Awaited,
    /// What is new or different.
    Changes,
    /// What is new or different and does not [wait](View::waits), and nothing of later steps before the client has asked for this
    /// type.
    Early,
    /// What is gone.
    Removals,
    /// Everything.
    Whole,
}

impl Step {
    /// Everything of a type at once.
    #[must_use]
    pub const fn whole(type_url: &'static str) -> Self {
        Self { type_url, part: Part::Whole }
    }
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
    pub(crate) answered: Resources,
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
    /// Which of the types, and what of it.
    steps: Vec<(usize, Part)>,
    max_response_bytes: usize,
    last_nonce: u64,
}

impl Core {
    /// A session that serves the types of these steps, in this order. A response is kept below `max_response_bytes` unless a single
    /// resource is larger.
    #[must_use]
    pub fn new(steps: &[Step], max_response_bytes: usize) -> Self {
        let mut types: Vec<Type> = Vec::new();
        let mut place = |url: &'static str| {
            types.iter().position(|kind| kind.url == url).unwrap_or_else(|| {
                types.push(Type::new(url));
                types.len() - 1
            })
        };
        let steps = steps.iter().map(|step| (place(step.type_url), step.part)).collect();
        Self { types, steps, max_response_bytes, last_nonce: 0 }
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

    /// The next response to send, if any. To be asked again until there is none; between [`Core::changed`] and the next one always
    /// with the same view.
    pub fn poll(&mut self, view: &dyn View) -> Option<Response> {
        let nonce = (self.last_nonce + 1).to_string();
        for (index, part) in &self.steps {
            match self.types[*index].poll(view, *part, &nonce, self.max_response_bytes) {
                Next::Nothing => {}
                Next::Waits => return None,
                Next::Response(response) => {
                    self.last_nonce += 1;
                    return Some(response);
                }
            }
        }
        None
    }

    /// How far each type is that the client asked for.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        self.types.iter().filter_map(Type::status).collect()
    }
}
