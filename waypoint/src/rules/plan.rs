//! What becomes of one request: the rule that it meets, its faults and edits, and which backend it goes to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION, VARY};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue};
use model::identity::Identity;
use model::l7::{
    AbortAnswer, Asked, Backend, BackendTarget, Balancing, Cors, CorsAnswer, Fault, Filter, HeaderEdits,
    Injected, Mirror, Moment, PathMatch, Redirect, Request, RetryLedger, Rule, Scheme, Selected, Session,
    UrlRewrite,
};
use model::service::ServiceName;
use twox_hash::XxHash64;

use super::store::OfService;
use crate::decide::{Answer, AnyRequest, FieldEdits, GRPC_STATUS, RequestEdits};
use crate::telemetry::Cause;

/// What a plan depends on.
pub(crate) struct Of<'a> {
    /// What is known of the service.
    pub(crate) known: &'a OfService,
    /// The service's port.
    pub(crate) port: u16,
    /// Who asks.
    pub(crate) client: Option<&'a Identity>,
    /// The time, which few rules ask for.
    pub(crate) now: &'a dyn Fn() -> Moment,
    /// Uniform over all of `u64`: for the weights, a delay, an abort and the copies.
    pub(crate) random: [u64; 4],
    /// Whether the endpoint of a session is one of a port of this service, and up.
    pub(crate) holds: &'a dyn Fn(&ServiceName, u16, Session) -> bool,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) struct Plan {
    /// It waits so long first.
    pub(crate) delay: Option<Duration>,
    /// Then.
    pub(crate) then: Then,
    /// The rule that decides, unless none does.
    pub(crate) rule: Option<Arc<Rule>>,
    /// Why it is answered here, unless the rule wants just that.
    pub(crate) cause: Option<Cause>,
    /// What retries of the service are counted in, where a rule decides.
    pub(crate) ledger: Option<Arc<RetryLedger>>,
}

/// What becomes of a request in the end.
#[derive(Debug)]
pub(crate) enum Then {
    /// The connection is cut.
    Abort,
    /// We answer.
    Answer(Answer),
    /// It is sent on.
    Forward(Box<Way>),
}

/// Where a request is sent, and what is changed on the way.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// A port of this service; `None`: of the one that was asked.
    pub(crate) to: Option<(ServiceName, u16)>,
    /// Ports of services that get copies.
    pub(crate) copies: Vec<(ServiceName, u16)>,
    /// Changes of the request.
    pub(crate) request: RequestEdits,
    /// The session that the request belongs to, where the rule keeps sessions.
    pub(crate) session: Option<Session>,
    /// How an endpoint is chosen, where a policy says so.
    pub(crate) balancing: Option<Balancing>,
    /// Changes of the response.
    response: FieldEdits,
    /// What browsers are told, in place of what the backend says about it.
    cors: Vec<(HeaderName, HeaderValue)>,
}

impl Of<'_> {
    fn has(&self, backend: &Backend, session: Session) -> bool {
        match &backend.target {
            BackendTarget::Service { name, port } => (self.holds)(name, *port, session),
            BackendTarget::Invalid(_) => false,
        }
    }
}

/// Why a request goes no further.
enum Stop {
    /// It is answered as the rule wants.
    Answer(Answer),
    /// The backend leads nowhere.
    Invalid(Answer),
    /// A browser asked, and is answered whatever is broken on purpose.
    Preflight(Answer),
    /// What the rule makes of it can't be written, and is not sent on as something else.
    Unwritable,
}

/// Decides about a request.
pub(crate) fn plan(of: &Of<'_>, request: &dyn AnyRequest) -> Plan {
    let asked = Request {
        method: request.method(),
        path: request.path(),
        query: request.query(),
        headers: request,
        client: of.client,
    };
    let (rule, way) = match of.known.routes(of.port).select(&asked) {
        Selected::Implicit => (None, Ok(Way::default())),
        Selected::Unmatched => return Plan::answer(None, Answer::status(404), Cause::NoRule),
        Selected::Rule { rule, .. } if rule.refusal.is_some() => {
            return Plan::answer(Some(rule), Answer::impossible(), Cause::RuleRefused);
        }
        Selected::Rule { rule, by } => (Some(rule), follow(rule, &by.path, of, request)),
    };
    let chosen = of.known.chosen(rule.map(|rule| &rule.key));
    let ledger = rule.map(|_| Arc::clone(of.known.ledger()));
    let rule = rule.cloned();
    let injected = chosen.fault.as_ref().map(|fault| inject(fault, of, request)).unwrap_or_default();
    let (then, cause) = match (way, injected.abort) {
        (Err(Stop::Preflight(answer)), _) => {
            return Plan { delay: None, then: Then::Answer(answer), rule, cause: None, ledger };
        }
        (_, Some(abort)) => (aborted(abort), Some(Cause::Fault)),
        (Err(Stop::Answer(answer)), None) => (Then::Answer(answer), None),
        (Err(Stop::Invalid(answer)), None) => (Then::Answer(answer), Some(Cause::BackendInvalid)),
        (Err(Stop::Unwritable), None) => (Then::Answer(Answer::status(400)), Some(Cause::Unwritable)),
        (Ok(way), None) => {
            (Then::Forward(Box::new(Way { balancing: chosen.balancing.clone(), ..way })), None)
        }
    };
    Plan { delay: injected.delay, then, rule, cause, ledger }
}

impl Plan {
    /// On to what was asked for, as it is.
    pub(crate) fn straight() -> Self {
        Self { delay: None, then: Then::Forward(Box::default()), rule: None, cause: None, ledger: None }
    }

    fn answer(rule: Option<&Arc<Rule>>, answer: Answer, cause: Cause) -> Self {
        let then = Then::Answer(answer);
        Self { delay: None, then, rule: rule.cloned(), cause: Some(cause), ledger: None }
    }
}

impl Way {
    /// Tells the client one thing more.
    pub(crate) fn tell(&mut self, name: HeaderName, value: HeaderValue) {
        self.response.add(name, value);
    }

    /// The changes of the response.
    pub(crate) fn response(&self) -> FieldEdits {
        self.told(self.response.clone())
    }

    /// The same, the last time that they are asked for.
    pub(crate) fn take_response(&mut self) -> FieldEdits {
        let edits = std::mem::take(&mut self.response);
        self.told(edits)
    }

    fn told(&self, mut edits: FieldEdits) -> FieldEdits {
        if !self.cors.is_empty() {
            edits.remove_all("access-control-");
            self.tell_browsers(&mut edits);
        }
        edits
    }

    fn tell_browsers(&self, edits: &mut FieldEdits) {
        for (name, value) in &self.cors {
            if *name == VARY {
                edits.add(name.clone(), value.clone());
            } else {
                edits.set(name.clone(), value.clone());
            }
        }
    }

    /// An answer of our own on this way.
    fn answer(&self, answer: Answer) -> Answer {
        let mut fields = self.response.clone();
        self.tell_browsers(&mut fields);
        Answer { fields, ..answer }
    }

    fn cors(&mut self, cors: &Cors, request: &dyn AnyRequest) -> Result<(), Stop> {
        let told = |fields: Vec<(&'static str, String)>| {
            let told = fields.into_iter().filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?))
            });
            told.collect()
        };
        match cors.answer(request.method(), request) {
            CorsAnswer::Preflight(fields) => {
                self.cors = told(fields);
                Err(Stop::Preflight(self.answer(Answer::status(204))))
            }
            CorsAnswer::Proceed(fields) => {
                self.cors = told(fields);
                Ok(())
            }
        }
    }

    fn redirect(&self, redirect: &Redirect, by: &PathMatch, port: u16, request: &dyn AnyRequest) -> Stop {
        let asked = Asked {
            scheme: Scheme::Http,
            authority: request.authority(),
            port,
            path: request.path(),
            query: request.query(),
            by,
        };
        let Ok(location) = HeaderValue::from_str(&redirect.location(&asked)) else {
            return Stop::Unwritable;
        };
        let mut answer = self.answer(Answer::status(redirect.status));
        answer.fields.set(LOCATION, location);
        Stop::Answer(answer)
    }

    fn rewrite(
        &mut self,
        rewrite: &UrlRewrite,
        by: &PathMatch,
        request: &dyn AnyRequest,
    ) -> Result<(), Stop> {
        if let Some(host) = &rewrite.host {
            let authority = host.as_str().parse::<Authority>().map_err(|_| Stop::Unwritable)?;
            self.request.authority = Some(authority);
        }
        // `*` and the target of CONNECT are no paths.
        if let Some(path) = rewrite.path.as_ref().filter(|_| request.path().starts_with('/')) {
            let mut target = path.apply(request.path(), by);
            if let Some(query) = request.query() {
                target.push('?');
                target.push_str(query);
            }
            self.request.target = Some(target.parse::<PathAndQuery>().map_err(|_| Stop::Unwritable)?);
        }
        Ok(())
    }
}

/// What a rule does with a request.
fn follow(rule: &Rule, by: &PathMatch, of: &Of<'_>, request: &dyn AnyRequest) -> Result<Way, Stop> {
    let session = rule.session.as_ref().and_then(|kept| kept.session(request, (of.now)()));
    let mut way = Way { session, ..Way::default() };
    let backend = session.and_then(|session| rule.backends.iter().find(|backend| of.has(backend, session)));
    let backend = backend.or_else(|| rule.backend(of.random[0]));
    let filters = rule.filters.iter().chain(backend.into_iter().flat_map(|backend| &backend.filters));
    for (index, filter) in filters.enumerate() {
        match filter {
            Filter::Cors(cors) => way.cors(cors, request)?,
            Filter::Mirror(Mirror { target, share }) => {
                // Each share is drawn by itself.
                let drawn = XxHash64::oneshot(of.random[3], &index.to_le_bytes());
                if let BackendTarget::Service { name, port } = target
                    && share.takes(drawn)
                {
                    way.copies.push((name.clone(), *port));
                }
            }
            Filter::Redirect(redirect) => return Err(way.redirect(redirect, by, of.port, request)),
            Filter::RequestHeaders(edits) => edit(&mut way.request.fields, edits),
            Filter::ResponseHeaders(edits) => edit(&mut way.response, edits),
            Filter::Rewrite(rewrite) => way.rewrite(rewrite, by, request)?,
        }
    }
    match backend.map(|backend| &backend.target) {
        Some(BackendTarget::Service { name, port }) => way.to = Some((name.clone(), *port)),
        Some(BackendTarget::Invalid(_)) | None => {
            return Err(Stop::Invalid(way.answer(Answer::impossible())));
        }
    }
    Ok(way)
}

fn edit(fields: &mut FieldEdits, edits: &HeaderEdits) {
    let HeaderEdits { set, add, remove } = edits;
    set.iter().for_each(|(name, value)| fields.set(name.http().clone(), value.http().clone()));
    add.iter().for_each(|(name, value)| fields.add(name.http().clone(), value.http().clone()));
    remove.iter().for_each(|name| fields.remove(name.http().clone()));
}

fn inject(fault: &Fault, of: &Of<'_>, request: &dyn AnyRequest) -> Injected {
    let [_, delay, abort, _] = of.random;
    fault.inject(request, of.client, (of.now)(), [delay, abort])
}

fn aborted(abort: AbortAnswer) -> Then {
    match abort {
        AbortAnswer::Grpc(code) => {
            let mut answer = Answer { grpc: Some(code), ..Answer::status(200) };
            answer.fields.set(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            answer.fields.set(GRPC_STATUS, HeaderValue::from(code));
            Then::Answer(answer)
        }
        AbortAnswer::Http(status) => Then::Answer(Answer {
            body: Bytes::from_static(b"fault injected on purpose\n"),
            ..Answer::status(status)
        }),
        AbortAnswer::Reset => Then::Abort,
    }
}
