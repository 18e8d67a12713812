//! One rule of a route: what it matches, does and sends to.
//!
//! A rule that can't be carried out as it is meant is there all the same, with the reason: its traffic must not fall through
//! to another rule.

use std::time::Duration;

use model::l7::{
    CookieName, Filter, HeaderName, Lifetime, Match, Moment, Parent, PathMatch, PathText, Retry, RouteKind,
    Rule, RuleKey, SessionCarrier, SessionPersistence, Timeouts, duration,
};

use super::backends::{Lookup, Unresolved};
use super::described::{Own, RuleOf};
use super::filters;
use super::matches;
use super::refusal::Refusal;
use crate::source::objects::{self, HttpRule, Kind};

/// How often a request is tried again by a rule that says when and not how often.
const ATTEMPTS: u32 = 1;

/// What there is to say about a rule.
pub(super) struct Remarks {
    /// Why it can't be carried out.
    pub(super) refusal: Option<Refusal>,
    /// References that lead nowhere.
    pub(super) unresolved: Vec<Unresolved>,
}

/// The rule, and what there is to say about it.
pub(super) fn convert(
    lookup: Lookup<'_>,
    (index, found): (usize, &RuleOf<'_>),
    parents: &[Parent],
    created: Moment,
) -> (Rule, Remarks) {
    let metadata = lookup.route.metadata;
    let kind = route_kind(lookup.route.kind);
    let key = RuleKey {
        kind,
        namespace: metadata.namespace.as_str().into(),
        name: metadata.name.as_str().into(),
        // The API server allows some dozen rules.
        index: u32::try_from(index).unwrap_or(u32::MAX),
    };
    let (matches, mut refusal) = matches(lookup, found);
    let mut unresolved = Vec::new();
    let mut refuse = |why: Refusal| {
        refusal.get_or_insert(why);
    };
    let filters = filters::convert(found.filters, lookup, &mut unresolved).unwrap_or_else(|why| {
        refuse(why);
        Vec::new()
    });
    let mut backends = Vec::new();
    for backend in found.backends {
        let filters = filters::convert(&backend.filters, lookup, &mut unresolved).unwrap_or_else(|why| {
            refuse(why);
            Vec::new()
        });
        backends.push(lookup.backend(backend, filters, &mut unresolved));
    }
    let every = filters.iter().chain(backends.iter().flat_map(|backend| &backend.filters));
    if let Err(why) = check(&filters, every, !backends.is_empty(), &matches) {
        refuse(why);
    }
    let mut rule = Rule {
        name: found.name.map(Into::into),
        parents: parents.to_vec(),
        created,
        matches,
        filters,
        backends,
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        refusal: None,
        key,
    };
    if let Err(why) = conduct(found, &mut rule) {
        refuse(why);
    }
    rule.refusal = refusal.as_ref().map(|refusal| refusal.message.as_str().into());
    (rule, Remarks { refusal, unresolved })
}

/// The kind in the words of the model.
pub(crate) fn route_kind(kind: Kind) -> RouteKind {
    if kind == Kind::GRPCRoute {
        RouteKind::Grpc
    } else if kind == Kind::HTTPRoute {
        RouteKind::Http
    } else if kind == Kind::TLSRoute {
        RouteKind::Tls
    } else {
        RouteKind::Tcp
    }
}

fn matches(lookup: Lookup<'_>, found: &RuleOf<'_>) -> (Vec<Match>, Option<Refusal>) {
    let mut wrong = Vec::new();
    let matches = match found.of {
        Own::Connection if lookup.route.kind == Kind::TLSRoute => {
            matches::names(lookup.route.hostnames, &mut wrong)
        }
        Own::Connection => vec![Match::default()],
        Own::Grpc(rule) => {
            let listed = rule.map_or(&[][..], |rule| &rule.matches);
            let every = || Match { path: matches::every_call(), ..Match::default() };
            match listed {
                [] => vec![every()],
                some => some.iter().map(|found| matches::grpc(found, &mut wrong)).collect(),
            }
        }
        Own::Http(rule) => match rule.map_or(&[][..], |rule| &rule.matches) {
            [] => vec![Match::default()],
            some => some.iter().map(|found| matches::http(found, &mut wrong)).collect(),
        },
    };
    let refusal = (!wrong.is_empty()).then(|| Refusal::unsupported(wrong.join("; ")));
    (matches, refusal)
}

/// What the API server would refuse, unless somebody's definitions let it pass.
fn check<'a>(
    filters: &[Filter],
    mut every: impl Iterator<Item = &'a Filter>,
    has_backends: bool,
    matches: &[Match],
) -> Result<(), Refusal> {
    if has_backends && filters.iter().any(filters::answers) {
        return Err(Refusal::incompatible(
            "what is redirected is not sent on; take out the redirect or the backendRefs",
        ));
    }
    if every.any(filters::replaces_prefix) && !matches!(matches, [Match { path: PathMatch::Prefix(_), .. }]) {
        let message =
            "ReplacePrefixMatch needs a rule with one match, by PathPrefix, to know what to replace";
        return Err(Refusal::unsupported(message));
    }
    Ok(())
}

/// How requests are sent: timeouts, retries, sessions.
fn conduct(found: &RuleOf<'_>, rule: &mut Rule) -> Result<(), Refusal> {
    let session = match found.of {
        Own::Connection => None,
        Own::Grpc(of) => of.and_then(|of| of.session_persistence.as_ref()),
        Own::Http(None) => None,
        Own::Http(Some(HttpRule { timeouts, retry, session_persistence, .. })) => {
            rule.timeouts = self::timeouts(timeouts)?;
            rule.retry = retry.as_ref().map(self::retry).transpose()?;
            session_persistence.as_ref()
        }
    };
    rule.session = session.map(|found| self::session(found, &rule.key)).transpose()?;
    Ok(())
}

fn timeouts(found: &objects::Timeouts) -> Result<Timeouts, Refusal> {
    // Nothing at all switches a timeout off.
    let limit = |text: &Option<String>| -> Result<Option<Duration>, Refusal> {
        let limit = text.as_deref().map(duration).transpose()?;
        Ok(limit.filter(|limit| !limit.is_zero()))
    };
    let (request, backend_request) = (limit(&found.request)?, limit(&found.backend_request)?);
    if let (Some(request), Some(attempt)) = (request, backend_request)
        && attempt > request
    {
        return Err(Refusal::unsupported(
            "timeouts.backendRequest is longer than timeouts.request, which would end it",
        ));
    }
    Ok(Timeouts { request, backend_request })
}

fn retry(found: &objects::Retry) -> Result<Retry, Refusal> {
    let objects::Retry { codes, attempts, backoff } = found;
    if let Some(code) = codes.iter().find(|code| !(400..600).contains(*code)) {
        return Err(Refusal::unsupported(format!(
            "retry.codes has {code}, which is no failure; they go from 400 to 599"
        )));
    }
    let attempts = attempts.unwrap_or(ATTEMPTS);
    if attempts == 0 {
        return Err(Refusal::unsupported("retry.attempts is 0; leave retry out"));
    }
    let backoff = backoff.as_deref().map(duration).transpose()?;
    Ok(Retry { attempts, backoff, statuses: codes.iter().copied().collect(), grpc_codes: Default::default() })
}

fn session(found: &objects::SessionPersistence, rule: &RuleKey) -> Result<SessionPersistence, Refusal> {
    let objects::SessionPersistence { kind, session_name, absolute_timeout, cookie, header, cookie_config } =
        found;
    let absolute_timeout = absolute_timeout.as_deref().map(duration).transpose()?;
    // Sessions of different rules must not be taken for each other.
    let unnamed = || format!("airglow-session-{}-{}-{}", rule.namespace, rule.name, rule.index);
    let name =
        |given: &Option<String>| given.clone().or_else(|| session_name.clone()).unwrap_or_else(unnamed);
    let carrier = match kind.as_deref().unwrap_or("Cookie") {
        "Header" => SessionCarrier::Header(HeaderName::new(&name(&header.name))?),
        "Cookie" => {
            let lifetime = cookie.lifetime_type.as_ref().or(cookie_config.lifetime_type.as_ref());
            let lifetime = match (lifetime.map(String::as_str), absolute_timeout) {
                (None | Some("Session"), _) => Lifetime::Session,
                (Some("Permanent"), Some(_)) => Lifetime::Permanent,
                (Some("Permanent"), None) => {
                    return Err(Refusal::unsupported(
                        "a permanent cookie needs sessionPersistence.absoluteTimeout",
                    ));
                }
                (Some(other), _) => {
                    return Err(Refusal::unsupported(format!("lifetimeType {other:?} is not known")));
                }
            };
            let path = PathText::new(cookie.path.as_deref().unwrap_or("/"))?;
            SessionCarrier::Cookie { name: CookieName::new(&name(&cookie.name))?, path, lifetime }
        }
        other => {
            return Err(Refusal::unsupported(format!(
                "sessions can't be kept by {other:?}; use Cookie or Header"
            )));
        }
    };
    Ok(SessionPersistence { carrier, absolute_timeout })
}
