//! What signs: its certificate and key, and what is above it.

use std::fmt;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::issue::not_after;
use crate::peer::parse;

/// What signs: a root certificate of ours with its key, or somebody's plugged CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key_pem: Secret,
    /// `None`: it is its own root.
    pub(super) above: Option<Above>,
}

/// What is above a plugged CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Above {
    /// Sent behind each leaf: from the certificate that signs up to, and without, a root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The roots that everyone is to trust.
    pub(super) anchors: Vec<CertificateDer<'static>>,
}

/// Text that `{:?}` does not show.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Root {
    /// When it ends, or something that its leaves need.
    pub(super) fn not_after(&self) -> SystemTime {
        let ends = self.chain().iter().map(not_after);
        ends.chain([not_after(&self.certificate)]).min().expect("one at least")
    }

    /// What is sent behind each leaf.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        self.above.as_ref().map_or(&[], |above| &above.chain)
    }

    /// What everyone is to trust.
    pub(super) fn anchors(&self) -> Vec<CertificateDer<'static>> {
        match &self.above {
            Some(above) => above.anchors.clone(),
            None => vec![self.certificate.clone()],
        }
    }

    /// The one of them that its leaves lead to, if that can be told.
    pub(super) fn anchor(&self) -> Option<CertificateDer<'static>> {
        let anchors = self.anchors();
        if anchors.contains(&self.certificate) {
            return Some(self.certificate.clone());
        }
        let is_below = |below: &CertificateDer<'_>, anchor: &CertificateDer<'_>| {
            let (Ok(below), Ok(anchor)) = (parse(below), parse(anchor)) else { return false };
            below.issuer() == anchor.subject() && below.verify_signature(Some(anchor.public_key())).is_ok()
        };
        anchors.into_iter().find(|anchor| self.chain().iter().any(|below| is_below(below, anchor)))
    }
}

impl Secret {
    /// The text itself.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}
