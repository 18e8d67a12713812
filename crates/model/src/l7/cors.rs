//! Cross-origin requests (WHATWG Fetch, section 3.2): which origins may ask for what, and what browsers are told.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Str;
use crate::l7::request::Headers;
use crate::l7::text::{HeaderName, InvalidText};

/// What other origins may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cors {
    /// Which origins.
    pub origins: List<Origin>,
    /// Whether their requests may carry credentials.
    pub credentials: bool,
    /// With which methods, besides GET, HEAD and POST; tokens, case-sensitive.
    pub methods: List<Str>,
    /// With which header fields, besides those that are always allowed.
    pub headers: List<HeaderName>,
    /// Which header fields of the response scripts may read.
    pub expose: List<HeaderName>,
    /// How long a browser may remember the answer.
    pub max_age: Duration,
}

/// Some, or all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum List<T> {
    /// `*`.
    All,
    /// These.
    Only(Vec<T>),
}

/// Origins that a list names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// In lower case, without `://`.
    pub scheme: Str,
    /// In lower case; a bracketed IPv6 address keeps its brackets.
    pub host: OriginHost,
    /// The scheme's default is written out; `None` for a scheme that has none.
    pub port: Option<u16>,
}

/// The host of an origin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OriginHost {
    /// Any (`https://*`).
    Any,
    /// One or more labels and then this (`https://*.example.com` is written without its `*.`).
    Below(Str),
    /// Equal.
    Exact(Str),
}

/// What to do with a request, and what to tell the browser. Fields are for the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsAnswer {
    /// The browser asks whether it may: answer with 204 and these fields, and ask no backend. For an origin that may not,
    /// nothing in them allows anything.
    Preflight(Vec<(&'static str, String)>),
    /// Go on. Whatever the backend says in fields of these names (and in others that begin with `access-control-`) is
    /// replaced by these; `vary` is added to.
    Proceed(Vec<(&'static str, String)>),
}

impl Cors {
    /// What becomes of a request.
    #[must_use]
    pub fn answer(&self, method: &str, headers: &dyn Headers) -> CorsAnswer {
        let Some(origin) = headers.first("origin") else { return CorsAnswer::Proceed(Vec::new()) };
        let preflight = headers.first("access-control-request-method").filter(|_| method == "OPTIONS");
        let mut fields = Vec::new();
        // Caches must not give one origin's answer to another.
        let any = self.origins == List::All && !self.credentials;
        if !any {
            fields.push(("vary", "Origin".to_owned()));
        }
        if self.allows(origin) {
            fields
                .push(("access-control-allow-origin", if any { "*".to_owned() } else { origin.to_owned() }));
            if self.credentials {
                fields.push(("access-control-allow-credentials", "true".to_owned()));
            }
            match preflight {
                Some(asked) => self.permissions(asked, headers, &mut fields),
                None => fields.extend(
                    self.list(&self.expose, None).map(|list| ("access-control-expose-headers", list)),
                ),
            }
        }
        if preflight.is_some() { CorsAnswer::Preflight(fields) } else { CorsAnswer::Proceed(fields) }
    }

    fn allows(&self, origin: &str) -> bool {
        match &self.origins {
            List::All => true,
            List::Only(origins) => {
                let asked = origin.parse::<Origin>().ok();
                asked.is_some_and(|asked| origins.iter().any(|origin| origin.covers(&asked)))
            }
        }
    }

    fn permissions(&self, asked: &str, headers: &dyn Headers, fields: &mut Vec<(&'static str, String)>) {
        let methods = self.list(&self.methods, Some(asked));
        fields.extend(methods.map(|list| ("access-control-allow-methods", list)));
        if let Some(asked) = headers.first("access-control-request-headers") {
            let names = self.list(&self.headers, Some(asked));
            fields.extend(names.map(|list| ("access-control-allow-headers", list)));
        }
        fields.push(("access-control-max-age", self.max_age.as_secs().to_string()));
    }

    /// A list as a response says it. With credentials `*` would mean a name, so what was asked for stands in its place.
    fn list<T: fmt::Display>(&self, list: &List<T>, asked: Option<&str>) -> Option<String> {
        match list {
            List::All if self.credentials => asked.map(str::to_owned),
            List::All => Some("*".to_owned()),
            List::Only(names) if names.is_empty() => None,
            List::Only(names) => Some(names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

impl Origin {
    fn covers(&self, asked: &Self) -> bool {
        let OriginHost::Exact(host) = &asked.host else { return false };
        let covered = match &self.host {
            OriginHost::Any => true,
            OriginHost::Below(rest) => host
                .strip_suffix(&**rest)
                .and_then(|labels| labels.strip_suffix('.'))
                .is_some_and(|l| !l.is_empty()),
            OriginHost::Exact(own) => own == host,
        };
        covered && self.scheme == asked.scheme && self.port == asked.port
    }
}

impl FromStr for Origin {
    type Err = InvalidText;

    /// `scheme://host`, `scheme://host:port`; the host may be or begin with `*`.
    fn from_str(text: &str) -> Result<Self, InvalidText> {
        let invalid = || InvalidText::Origin(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let (scheme, rest) = lower.split_once("://").ok_or_else(invalid)?;
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().map_err(|_| invalid())?)),
            _ => (rest, None),
        };
        let named = |host: &str| {
            let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
            let bracketed = host.starts_with('[') && host.ends_with(']');
            !host.is_empty() && host.bytes().all(fine) && (bracketed || !host.contains(['[', ']', ':']))
        };
        let host = match host.strip_prefix("*.") {
            _ if host == "*" => OriginHost::Any,
            Some(rest) if named(rest) => OriginHost::Below(rest.into()),
            None if named(host) => OriginHost::Exact(host.into()),
            Some(_) | None => return Err(invalid()),
        };
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(letter) {
            return Err(invalid());
        }
        let default = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        Ok(Self { scheme: scheme.into(), host, port: port.or(default) })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        match &self.host {
            OriginHost::Any => f.write_str("*")?,
            OriginHost::Below(rest) => write!(f, "*.{rest}")?,
            OriginHost::Exact(host) => f.write_str(host)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}
