//! Routes of the Gateway API that are attached to Services, in; rules that waypoints carry out, and what is said about each
//! attachment, out.
//!
//! Owns no precedence among rules (`model::l7`), and no waypoint: a rule is there whether or not somebody carries it out.

mod backends;
mod cors;
mod described;
mod filters;
mod matches;
mod parents;
mod refusal;
mod rules;

use model::l7::{Moment, Rule};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Config;
use super::cluster::Cluster;
use super::service::unguarded;
use super::statements::{Attachment, Condition};
use crate::source::objects::{Metadata, Object};
use backends::{Lookup, Unresolved};
use parents::Judged;
use rules::Remarks;

pub(super) use described::{Described, GATEWAY_API};
pub(super) use filters::share;
pub(super) use matches::header;
pub(super) use parents::{PRECEDENCE as ROUTES, can_be_parent, weaker_than};
pub(super) use refusal::Refusal;
pub(super) use rules::route_kind;

/// The rules, and what there is to say of each attachment that is ours.
pub(crate) fn convert(config: &Config, cluster: &Cluster, object: &Object) -> (Vec<Rule>, Vec<Attachment>) {
    let Some(route) = Described::of(object) else { return (Vec::new(), Vec::new()) };
    let judged = parents::judge(config, cluster, &route);
    if judged.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let mut parents: Vec<_> = judged.iter().filter_map(|(_, judged)| judged.as_ref().ok().cloned()).collect();
    parents.sort_unstable();
    parents.dedup();
    let lookup = Lookup { config, cluster, route: &route };
    let created = created(route.metadata);
    let each = route.rules.iter().enumerate();
    let (mut rules, remarks): (Vec<_>, Vec<_>) =
        each.map(|rule| rules::convert(lookup, rule, &parents, created)).unzip();
    if parents.is_empty() {
        rules.clear();
    }
    let said = judged.into_iter().map(|(parent, judged)| {
        let service = judged.is_ok().then(|| described::parent_service(parent, route.metadata)).flatten();
        let unguarded = service.and_then(|it| unguarded(config, cluster, &(it.namespace, it.name)));
        Attachment { to: parent.clone(), conditions: conditions(&judged, unguarded, &route, &remarks) }
    });
    (rules, said.collect())
}

/// When an object was made. One without a time counts as the newest: the API server always sets one, a directory may not.
pub(super) fn created(metadata: &Metadata) -> Moment {
    metadata.creation_timestamp.as_deref().and_then(moment).unwrap_or(Moment(u64::MAX))
}

/// What became of an attachment, and what there is to add.
pub(super) fn joined(what: &str, more: Option<String>) -> String {
    more.map_or_else(|| what.to_owned(), |more| format!("{what}; {more}"))
}

/// A time in the notation of RFC 3339.
pub(super) fn moment(text: &str) -> Option<Moment> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos()).ok().map(Moment)
}

fn conditions(
    judged: &Judged,
    unguarded: Option<String>,
    route: &Described<'_>,
    remarks: &[Remarks],
) -> Vec<Condition> {
    let refused: Vec<_> =
        (0..).zip(remarks).filter_map(|(at, it)| Some((at, it.refusal.as_ref()?))).collect();
    let which = |at: usize| match route.rules[at].name {
        Some(name) => format!("rule {at} ({name})"),
        None => format!("rule {at}"),
    };
    let said = |joint: &str| {
        let each = refused.iter().map(|(at, refusal)| format!("{joint}{}: {}", which(*at), refusal.message));
        format!("{}; what it matches is answered with an error", each.collect::<Vec<_>>().join("; "))
    };
    let accepted = match judged {
        Err(parents::Refused { reason, message }) => Condition::not("Accepted", reason, message.clone()),
        Ok(_) if refused.len() == remarks.len() => {
            let reason =
                refused.iter().map(|(_, refusal)| refusal.reason).min().unwrap_or("UnsupportedValue");
            Condition::not("Accepted", reason, said(""))
        }
        Ok(_) => Condition::is("Accepted", "Accepted", joined("attached to the Service", unguarded)),
    };
    let unresolved: Vec<&Unresolved> = remarks.iter().flat_map(|remarks| &remarks.unresolved).collect();
    let resolved = match unresolved.first() {
        None => Condition::is("ResolvedRefs", "ResolvedRefs", "every backend is there".to_owned()),
        Some(first) => {
            let mut messages: Vec<_> = unresolved.iter().map(|it| it.message.as_str()).collect();
            messages.dedup();
            let message = format!("{}; its share of requests is answered with an error", messages.join("; "));
            Condition::not("ResolvedRefs", first.reason, message)
        }
    };
    let in_part = accepted.holds && !refused.is_empty();
    let partial =
        in_part.then(|| Condition::is("PartiallyInvalid", "UnsupportedValue", said("Dropped Rule: ")));
    [accepted, resolved].into_iter().chain(partial).collect()
}
