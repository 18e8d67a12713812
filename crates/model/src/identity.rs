//! SPIFFE identities of the form `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
//!
//! Parsing is as strict as the SPIFFE-ID standard (section 2) and admits only the Kubernetes path form. Nothing is
//! normalised: a spelling that another reader could take for something else is refused. Owns no certificates.

use std::fmt;
use std::str::FromStr;

use crate::Str;

/// The longest SPIFFE ID, in bytes (SPIFFE-ID standard, section 2.3).
pub const MAX_ID_LENGTH: usize = 2048;

/// The longest trust domain, in bytes (SPIFFE-ID standard, section 2.1).
pub const MAX_TRUST_DOMAIN_LENGTH: usize = 255;

/// The only scheme there is, lower case.
const SCHEME: &str = "spiffe://";

/// Who a workload is. Only made from parts that were checked: by [`Identity::new`] or by parsing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Identity {
    /// The trust domain, lower case.
    pub trust_domain: Str,
    /// The Kubernetes namespace.
    pub namespace: Str,
    /// The Kubernetes service account.
    pub service_account: Str,
}

impl Identity {
    /// Makes an identity of its parts.
    ///
    /// # Errors
    /// When a part is empty, holds a character that SPIFFE IDs do not have there, or is too long.
    pub fn new(
        trust_domain: impl Into<Str>,
        namespace: impl Into<Str>,
        service_account: impl Into<Str>,
    ) -> Result<Self, InvalidIdentity> {
        let identity = Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        };
        check_trust_domain(&identity.trust_domain)?;
        check_segment("namespace", &identity.namespace)?;
        check_segment("service account", &identity.service_account)?;
        match SCHEME.len() + identity.parts().iter().map(|part| part.len()).sum::<usize>() {
            length if length > MAX_ID_LENGTH => Err(InvalidIdentity::TooLong { length }),
            _ => Ok(identity),
        }
    }

    /// The SPIFFE ID without its scheme, which is how policies name principals.
    #[must_use]
    pub fn principal(&self) -> String {
        self.parts().concat()
    }

    /// The pieces of [`Identity::principal`] in order, for comparing without building it.
    pub(crate) fn parts(&self) -> [&str; 5] {
        [&self.trust_domain, "/ns/", &self.namespace, "/sa/", &self.service_account]
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        self.parts().iter().try_for_each(|part| f.write_str(part))
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        if id.len() > MAX_ID_LENGTH {
            return Err(InvalidIdentity::TooLong { length: id.len() });
        }
        let rest = id.strip_prefix(SCHEME).ok_or(InvalidIdentity::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Before the path's form, so that userinfo, ports and the like are named as what they are.
        check_trust_domain(trust_domain)?;
        let mut segments = path.split('/');
        let mut next = || segments.next();
        let parts = (next(), next(), next(), next(), next());
        let (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) = parts else {
            return Err(InvalidIdentity::Path);
        };
        Self::new(trust_domain, namespace, service_account)
    }
}

/// Why something is not an identity of this mesh. The text quotes the offending part with escapes, so it is safe to log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// The path is not the Kubernetes one.
    #[error("the path of the SPIFFE ID is not /ns/<namespace>/sa/<service account>")]
    Path,
    /// It does not begin with `spiffe://`.
    #[error("the identity does not begin with spiffe:// (lower case)")]
    Scheme,
    /// A namespace or service account that can't be part of a SPIFFE ID.
    #[error(
        "{part} {value:?} is not a SPIFFE path segment: use letters, digits, '.', '-' and '_', and not only dots"
    )]
    Segment {
        /// Which part it is.
        part: &'static str,
        /// What was given.
        value: String,
    },
    /// Longer than [`MAX_ID_LENGTH`].
    #[error("the SPIFFE ID has {length} bytes, more than the {MAX_ID_LENGTH} that are allowed")]
    TooLong {
        /// In bytes.
        length: usize,
    },
    /// A trust domain that is empty, too long, or holds something else than a name (a port, a user, an escape).
    #[error(
        "trust domain {0:?} is not 1 to {MAX_TRUST_DOMAIN_LENGTH} lower-case letters, digits, '.', '-' and '_'"
    )]
    TrustDomain(String),
}

fn check_trust_domain(name: &str) -> Result<(), InvalidIdentity> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_LENGTH || !name.bytes().all(allowed) {
        return Err(InvalidIdentity::TrustDomain(excerpt(name)));
    }
    Ok(())
}

fn check_segment(part: &'static str, value: &str) -> Result<(), InvalidIdentity> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if matches!(value, "" | "." | "..") || !value.bytes().all(allowed) {
        return Err(InvalidIdentity::Segment { part, value: excerpt(value) });
    }
    Ok(())
}

/// As much of a refused part as a log line should hold: a peer chooses its length.
fn excerpt(value: &str) -> String {
    /// Enough to recognise any real name (a Kubernetes label has at most 63).
    const EXCERPT_CHARS: usize = 80;
    value.chars().take(EXCERPT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(id: &str) -> Result<Identity, InvalidIdentity> {
        id.parse()
    }

    #[test]
    fn a_kubernetes_identity_is_read_and_written() {
        let id = parse("spiffe://cluster.local/ns/shop/sa/cart").expect("valid");
        assert_eq!(
            (&*id.trust_domain, &*id.namespace, &*id.service_account),
            ("cluster.local", "shop", "cart")
        );
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/cart");
        assert_eq!(Identity::new("cluster.local", "shop", "cart"), Ok(id));
    }

    #[test]
    fn other_spellings_are_refused() {
        let refused = [
            "",
            "spiffe://",
            "spiffe:/td/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "Spiffe://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            " spiffe://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b ",
            "spiffe://td/ns/a/sa/b\n",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td.Example/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://user:pw@td/ns/a/sa/b",
            "spiffe://td:443/ns/a/sa/b",
            "spiffe://td:/ns/a/sa/b",
            "spiffe://[::1]/ns/a/sa/b",
            "spiffe://t%64/ns/a/sa/b",
            "spiffe://td\0/ns/a/sa/b",
            "spiffe://tđ/ns/a/sa/b",
            "spiffe://td",
            "spiffe://td/",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/ns/a/SA/b",
            "spiffe://td/sa/b/ns/a",
            "spiffe://td/x/ns/a/sa/b",
            "spiffe://td/ns/./sa/b",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/..",
            "spiffe://td/ns/a%2fb/sa/c",
            "spiffe://td/ns/a/sa/%62",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/ns/a/sa/b\0/ns/c/sa/d",
            "spiffe://td/ns/a/sa/b?x=y",
            "spiffe://td/ns/a/sa/b?",
            "spiffe://td/ns/a/sa/b#f",
            "spiffe://td/ns/a/sa/b#",
            "spiffe://td?/ns/a/sa/b",
            "spiffe://td#/ns/a/sa/b",
            "spiffe://td\\ns/a/sa/b",
            "spiffe://td/ns/a b/sa/c",
            "spiffe://td/ns/a/sa/ü",
            "spiffe://td/ns/*/sa/b",
        ];
        for id in refused {
            assert!(parse(id).is_err(), "{id:?} was taken for an identity");
        }
    }

    #[test]
    fn lengths_are_limited() {
        let domain = |length| format!("spiffe://{}/ns/a/sa/b", "d".repeat(length));
        assert!(parse(&domain(MAX_TRUST_DOMAIN_LENGTH)).is_ok());
        assert!(matches!(parse(&domain(MAX_TRUST_DOMAIN_LENGTH + 1)), Err(InvalidIdentity::TrustDomain(_))));

        let stem = "spiffe://td/ns/a/sa/";
        let whole = |length: usize| format!("{stem}{}", "s".repeat(length - stem.len()));
        assert!(parse(&whole(MAX_ID_LENGTH)).is_ok());
        assert_eq!(
            parse(&whole(MAX_ID_LENGTH + 1)),
            Err(InvalidIdentity::TooLong { length: MAX_ID_LENGTH + 1 })
        );
        assert!(Identity::new("td", "a", "s".repeat(MAX_ID_LENGTH)).is_err());
    }

    #[test]
    fn a_refusal_quotes_what_a_peer_sent_escaped_and_shortened() {
        let text =
            parse(&format!("spiffe://\n{}/ns/a/sa/b", "x".repeat(1000))).expect_err("refused").to_string();
        assert!(!text.contains('\n') && text.len() < 300, "{text}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            td in "[a-z0-9._-]{1,20}", ns in "[a-zA-Z0-9_-]{1,20}", sa in "[a-zA-Z0-9._-]{0,19}[a-z]"
        ) {
            let id = Identity::new(td, ns, sa).expect("valid parts");
            prop_assert_eq!(parse(&id.to_string()), Ok(id.clone()));
            prop_assert_eq!(format!("spiffe://{}", id.principal()), id.to_string());
        }

        /// Whatever is accepted is written back byte for byte: nothing is normalised away.
        #[test]
        fn nothing_is_normalised(id in "spiffe://[a-zA-Z0-9.%:@#?/_-]{0,8}/ns/[a-z.%/\\PC]{0,4}/sa/[a-z.%/?#\0]{0,4}") {
            if let Ok(parsed) = parse(&id) {
                prop_assert_eq!(parsed.to_string(), id);
            }
        }
    }
}
