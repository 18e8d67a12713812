//! What a rule does to requests and responses. A filter that can't be carried out costs the rule that it is in.

use model::l7::{
    Filter, Fraction, HeaderEdits, HeaderName, HeaderValue, Host, Mirror, PathModifier, PathText, Redirect,
    Scheme, UrlRewrite,
};

use super::backends::{Lookup, Unresolved};
use super::cors::cors;
use super::refusal::{Refusal, known};
use crate::source::objects::{self, Header, HeaderModifier, Rewrite};

/// What redirects may answer.
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// The filters of a rule or backend.
pub(super) fn convert(
    found: &[objects::Filter],
    lookup: Lookup<'_>,
    unresolved: &mut Vec<Unresolved>,
) -> Result<Vec<Filter>, Refusal> {
    let filters =
        found.iter().map(|found| filter(found, lookup, unresolved)).collect::<Result<Vec<_>, _>>()?;
    for (at, one) in filters.iter().enumerate() {
        let is_same = |other: &Filter| std::mem::discriminant(one) == std::mem::discriminant(other);
        if !matches!(one, Filter::Mirror(_)) && filters[..at].iter().any(is_same) {
            let kind = &found[at].kind;
            return Err(Refusal::incompatible(format!("{kind} is there twice; keep one")));
        }
    }
    let has = |is: fn(&Filter) -> bool| filters.iter().any(is);
    if has(|filter| matches!(filter, Filter::Redirect(_)))
        && has(|filter| matches!(filter, Filter::Rewrite(_)))
    {
        return Err(Refusal::incompatible(
            "what is redirected is not sent on, so URLRewrite has nothing to do; keep one",
        ));
    }
    Ok(filters)
}

/// Whether a filter answers in place of a backend.
pub(super) fn answers(filter: &Filter) -> bool {
    matches!(filter, Filter::Redirect(_))
}

/// Whether a filter replaces the prefix that was matched.
pub(super) fn replaces_prefix(filter: &Filter) -> bool {
    let path = match filter {
        Filter::Redirect(Redirect { path, .. }) | Filter::Rewrite(UrlRewrite { path, .. }) => path,
        Filter::Cors(_) | Filter::Mirror(_) | Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => {
            return false;
        }
    };
    matches!(path, Some(PathModifier::ReplacePrefix(_)))
}

fn filter(
    found: &objects::Filter,
    lookup: Lookup<'_>,
    unresolved: &mut Vec<Unresolved>,
) -> Result<Filter, Refusal> {
    let is_grpc = lookup.route.kind == objects::Kind::GRPCRoute;
    match found.kind.as_str() {
        "RequestHeaderModifier" => {
            edits(part(found, found.request_header_modifier.as_ref())?).map(Filter::RequestHeaders)
        }
        "ResponseHeaderModifier" => {
            edits(part(found, found.response_header_modifier.as_ref())?).map(Filter::ResponseHeaders)
        }
        "RequestMirror" => {
            let mirror = part(found, found.request_mirror.as_ref())?;
            let share = share(mirror.percent, mirror.fraction.map(|it| (it.numerator, it.denominator)))?;
            Ok(Filter::Mirror(Mirror { target: lookup.target(&mirror.backend_ref, unresolved), share }))
        }
        "RequestRedirect" if !is_grpc => {
            redirect(part(found, found.request_redirect.as_ref())?).map(Filter::Redirect)
        }
        "URLRewrite" if !is_grpc => rewrite(part(found, found.url_rewrite.as_ref())?).map(Filter::Rewrite),
        "CORS" if !is_grpc => cors(part(found, found.cors.as_ref())?).map(Filter::Cors),
        "ExtensionRef" => {
            Err(Refusal::unsupported("there are no extensions that an ExtensionRef could name"))
        }
        other => {
            Err(Refusal::unsupported(format!("filter {other:?} is not known to {}s", lookup.route.kind)))
        }
    }
}

fn part<'a, T>(filter: &objects::Filter, part: Option<&'a T>) -> Result<&'a T, Refusal> {
    part.ok_or_else(|| Refusal::unsupported(format!("filter {:?} does not say what to do", filter.kind)))
}

/// A share by percent or fraction; all when neither is said.
pub(crate) fn share(percent: Option<u32>, fraction: Option<(u32, Option<u32>)>) -> Result<Fraction, Refusal> {
    let (numerator, denominator) = match (percent, fraction) {
        (None, None) => return Ok(Fraction::ALL),
        (Some(percent), None) => (percent, 100),
        (None, Some((numerator, denominator))) => (numerator, denominator.unwrap_or(100)),
        (Some(_), Some(_)) => {
            return Err(Refusal::unsupported("percent and fraction say the same; keep one"));
        }
    };
    Fraction::new(numerator, denominator).ok_or_else(|| {
        Refusal::unsupported(format!("{numerator} of {denominator} is no share; it goes from none to all"))
    })
}

fn edits(found: &HeaderModifier) -> Result<HeaderEdits, Refusal> {
    let HeaderModifier { set, add, remove, unknown } = found;
    known(unknown)?;
    let pair = |Header { name, value }: &Header| Ok((HeaderName::new(name)?, HeaderValue::new(value)?));
    let edits = HeaderEdits {
        set: set.iter().map(pair).collect::<Result<_, Refusal>>()?,
        add: add.iter().map(pair).collect::<Result<_, Refusal>>()?,
        remove: remove.iter().map(|name| Ok(HeaderName::new(name)?)).collect::<Result<_, Refusal>>()?,
    };
    edits.check()?;
    let mut names: Vec<_> =
        edits.set.iter().chain(&edits.add).map(|(name, _)| name).chain(&edits.remove).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(twice) => Err(Refusal::unsupported(format!("header {} is changed twice; keep one", twice[0]))),
        None => Ok(edits),
    }
}

fn rewrite(Rewrite { hostname, path, unknown }: &Rewrite) -> Result<UrlRewrite, Refusal> {
    known(unknown)?;
    let host = hostname.as_deref().map(Host::new).transpose()?;
    Ok(UrlRewrite { host, path: path.as_ref().map(path_modifier).transpose()? })
}

fn redirect(found: &objects::Redirect) -> Result<Redirect, Refusal> {
    let objects::Redirect { scheme, hostname, path, port, status_code, unknown } = found;
    known(unknown)?;
    let scheme = match scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => {
            return Err(Refusal::unsupported(format!("scheme {other:?} is neither http nor https")));
        }
    };
    let status = status_code.unwrap_or(302);
    if !REDIRECTS.contains(&status) {
        return Err(Refusal::unsupported(format!(
            "status {status} is no redirect; use one of {REDIRECTS:?}"
        )));
    }
    Ok(Redirect {
        scheme,
        host: hostname.as_deref().map(Host::new).transpose()?,
        port: *port,
        path: path.as_ref().map(path_modifier).transpose()?,
        status,
    })
}

fn path_modifier(found: &objects::PathModifier) -> Result<PathModifier, Refusal> {
    let objects::PathModifier { kind, replace_full_path, replace_prefix_match } = found;
    // An empty prefix leaves what follows, which is a path or nothing.
    let path = |text: &str| PathText::new(if text.is_empty() { "/" } else { text });
    match (kind.as_str(), replace_full_path, replace_prefix_match) {
        ("ReplaceFullPath", Some(text), None) => Ok(PathModifier::ReplaceFull(path(text)?)),
        ("ReplacePrefixMatch", None, Some(text)) => Ok(PathModifier::ReplacePrefix(path(text)?)),
        _ => Err(Refusal::unsupported(format!(
            "a path can't be changed by {kind:?} with what is given for it"
        ))),
    }
}
