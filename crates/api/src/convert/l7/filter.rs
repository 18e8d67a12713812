//! What rules and backends do to requests and responses. A filter that can't be understood is an error: leaving it out
//! would send on what should have been changed or answered.

use std::str::FromStr;

use model::l7::{
    Cors, Filter, Fraction, HeaderEdits, HeaderName, HeaderValue, Host, List, Mirror, PathModifier, PathText,
    Redirect, Scheme, UrlRewrite,
};

use super::settings::{duration, millis};
use super::{target, wire_target};
use crate::convert::{known, optional_port};
use crate::invalid::{InvalidField, Problem};
use crate::l7 as wire;
use wire::filter::Kind;
use wire::path_modifier::Kind as Modifier;

pub(super) fn from_wire(wire::Filter { kind }: wire::Filter) -> Result<Filter, InvalidField> {
    Ok(match kind.ok_or_else(|| Problem::Missing.of("filters"))? {
        Kind::RequestHeaders(edits) => Filter::RequestHeaders(header_edits(edits)?),
        Kind::ResponseHeaders(edits) => Filter::ResponseHeaders(header_edits(edits)?),
        Kind::Rewrite(wire::UrlRewrite { host, path }) => {
            Filter::Rewrite(UrlRewrite { host: optional_host(&host)?, path: path.map(modifier).transpose()? })
        }
        Kind::Redirect(redirect) => Filter::Redirect(self::redirect(redirect)?),
        Kind::Mirror(wire::Mirror { target: to, share }) => {
            Filter::Mirror(Mirror { target: target(to)?, share: fraction(share)? })
        }
        Kind::Cors(cors) => Filter::Cors(self::cors(cors)?),
    })
}

pub(super) fn to_wire(filter: &Filter) -> wire::Filter {
    let kind = match filter {
        Filter::RequestHeaders(edits) => Kind::RequestHeaders(wire_header_edits(edits)),
        Filter::ResponseHeaders(edits) => Kind::ResponseHeaders(wire_header_edits(edits)),
        Filter::Rewrite(UrlRewrite { host, path }) => Kind::Rewrite(wire::UrlRewrite {
            host: text(host.as_ref()),
            path: path.as_ref().map(wire_modifier),
        }),
        Filter::Redirect(redirect) => Kind::Redirect(wire_redirect(redirect)),
        Filter::Mirror(Mirror { target, share }) => Kind::Mirror(wire::Mirror {
            target: Some(wire_target(target)),
            share: Some(wire_fraction(*share)),
        }),
        Filter::Cors(cors) => Kind::Cors(wire_cors(cors)),
    };
    wire::Filter { kind: Some(kind) }
}

fn header_edits(
    wire::HeaderEdits { set, add, remove }: wire::HeaderEdits,
) -> Result<HeaderEdits, InvalidField> {
    let fields = |list: Vec<wire::Header>| list.into_iter().map(header).collect::<Result<Vec<_>, _>>();
    let edits = HeaderEdits {
        set: fields(set)?,
        add: fields(add)?,
        remove: remove.iter().map(|name| header_name(name)).collect::<Result<_, _>>()?,
    };
    edits.check().map_err(|why| Problem::from(why).of("filters.headers"))?;
    Ok(edits)
}

fn header(wire::Header { name, value }: wire::Header) -> Result<(HeaderName, HeaderValue), InvalidField> {
    let value = HeaderValue::new(&value).map_err(|why| Problem::from(why).of("filters.headers"))?;
    Ok((header_name(&name)?, value))
}

pub(super) fn header_name(name: &str) -> Result<HeaderName, InvalidField> {
    HeaderName::new(name).map_err(|why| Problem::from(why).of("filters.headers"))
}

fn wire_header_edits(HeaderEdits { set, add, remove }: &HeaderEdits) -> wire::HeaderEdits {
    let fields = |list: &[(HeaderName, HeaderValue)]| {
        list.iter()
            .map(|(name, value)| wire::Header { name: name.to_string(), value: value.to_string() })
            .collect()
    };
    wire::HeaderEdits {
        set: fields(set),
        add: fields(add),
        remove: remove.iter().map(ToString::to_string).collect(),
    }
}

fn modifier(wire::PathModifier { kind }: wire::PathModifier) -> Result<PathModifier, InvalidField> {
    const FIELD: &str = "filters.path";
    let path = |text: &str| PathText::new(text).map_err(|why| Problem::from(why).of(FIELD));
    Ok(match kind.ok_or_else(|| Problem::Missing.of(FIELD))? {
        Modifier::ReplaceFull(full) => PathModifier::ReplaceFull(path(&full)?),
        Modifier::ReplacePrefix(prefix) => PathModifier::ReplacePrefix(path(&prefix)?),
    })
}

fn wire_modifier(modifier: &PathModifier) -> wire::PathModifier {
    let kind = match modifier {
        PathModifier::ReplaceFull(path) => Modifier::ReplaceFull(path.to_string()),
        PathModifier::ReplacePrefix(path) => Modifier::ReplacePrefix(path.to_string()),
    };
    wire::PathModifier { kind: Some(kind) }
}

fn optional_host(host: &str) -> Result<Option<Host>, InvalidField> {
    let read = |host| Host::new(host).map_err(|why| Problem::from(why).of("filters.host"));
    (!host.is_empty()).then(|| read(host)).transpose()
}

fn text(host: Option<&Host>) -> String {
    host.map(ToString::to_string).unwrap_or_default()
}

/// The statuses that a redirect may have (HTTPRequestRedirectFilter).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

fn redirect(redirect: wire::Redirect) -> Result<Redirect, InvalidField> {
    let wire::Redirect { scheme, host, port, path, status } = redirect;
    let scheme = match known(scheme).map_err(|p| p.of("filters.redirect.scheme"))? {
        wire::Scheme::Unspecified => None,
        wire::Scheme::Http => Some(Scheme::Http),
        wire::Scheme::Https => Some(Scheme::Https),
    };
    let allowed = REDIRECTS.into_iter().find(|allowed| u32::from(*allowed) == status);
    Ok(Redirect {
        scheme,
        host: optional_host(&host)?,
        port: optional_port(port).map_err(|p| p.of("filters.redirect.port"))?,
        path: path.map(modifier).transpose()?,
        status: allowed.ok_or_else(|| Problem::Status { value: status }.of("filters.redirect.status"))?,
    })
}

fn wire_redirect(Redirect { scheme, host, port, path, status }: &Redirect) -> wire::Redirect {
    let scheme = match scheme {
        None => wire::Scheme::Unspecified,
        Some(Scheme::Http) => wire::Scheme::Http,
        Some(Scheme::Https) => wire::Scheme::Https,
    };
    wire::Redirect {
        scheme: scheme.into(),
        host: text(host.as_ref()),
        port: port.unwrap_or_default().into(),
        path: path.as_ref().map(wire_modifier),
        status: (*status).into(),
    }
}

pub(super) fn fraction(fraction: Option<wire::Fraction>) -> Result<Fraction, InvalidField> {
    let wire::Fraction { numerator, denominator } = fraction.ok_or_else(|| Problem::Missing.of("share"))?;
    let share = Fraction::new(numerator, denominator);
    share.ok_or_else(|| Problem::Fraction { numerator, denominator }.of("share"))
}

pub(super) fn wire_fraction(fraction: Fraction) -> wire::Fraction {
    wire::Fraction { numerator: fraction.numerator(), denominator: fraction.denominator() }
}

fn cors(cors: wire::Cors) -> Result<Cors, InvalidField> {
    let wire::Cors { origins, credentials, methods, headers, expose, max_age_ms } = cors;
    // A method is a token, as a field's name is (RFC 9110, section 9.1).
    let method = |text: &str| header_name(text).map(|_| text.into());
    Ok(Cors {
        origins: list(&origins, |text| {
            FromStr::from_str(text).map_err(|why| Problem::Text(why).of("filters.cors.origins"))
        })?,
        credentials,
        methods: list(&methods, method)?,
        headers: list(&headers, header_name)?,
        expose: list(&expose, header_name)?,
        max_age: duration(max_age_ms),
    })
}

fn wire_cors(cors: &Cors) -> wire::Cors {
    let Cors { origins, credentials, methods, headers, expose, max_age } = cors;
    wire::Cors {
        origins: wire_list(origins),
        credentials: *credentials,
        methods: wire_list(methods),
        headers: wire_list(headers),
        expose: wire_list(expose),
        max_age_ms: millis(*max_age),
    }
}

const ALL: &str = "*";

fn list<T>(
    texts: &[String],
    read: impl Fn(&str) -> Result<T, InvalidField>,
) -> Result<List<T>, InvalidField> {
    match texts {
        [only] if only == ALL => Ok(List::All),
        texts => texts.iter().map(|text| read(text)).collect::<Result<_, _>>().map(List::Only),
    }
}

fn wire_list<T: ToString>(list: &List<T>) -> Vec<String> {
    match list {
        List::All => vec![ALL.to_owned()],
        List::Only(items) => items.iter().map(ToString::to_string).collect(),
    }
}
