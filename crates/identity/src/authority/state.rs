//! Which roots there are and which one signs: pure, told the time, written down whole.
//!
//! The order of a rotation is what makes it safe: a new root is published first, signs later, and the old one stays
//! published until nothing it signed can be valid any more.

use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::disk::StorageError;
use super::issue::validity;
use super::root::{Above, Root};
use crate::certificate::to_pem;
use crate::peer::parse;

/// The version of the file's form.
const VERSION: u32 = 1;

/// Roots that may be published at once. A rotation needs two; more come only of rotations forced within one leaf's life,
/// and each is carried by every certificate of the mesh.
const MAX_ROOTS: usize = 8;

/// The same while CAs are plugged in, whose bundles have several. Clients take twice as many.
const MAX_PLUGGED_ROOTS: usize = 32;

/// A root is due for renewal when less than one part in this many of its life is left.
const RENEWAL_PART: u32 = 5;

/// The authority's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The longest validity that any leaf was ever granted.
    ttl_max: Duration,
    active: Root,
    next: Option<Pending>,
    retired: Vec<Retired>,
}

/// A published root that does not sign yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    root: Root,
    activate_at: SystemTime,
}

/// What signs no more. Its key is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Retired {
    anchors: Vec<CertificateDer<'static>>,
    drop_at: SystemTime,
}

/// Stored state that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// Not our JSON.
    #[error("line {line}: {message}")]
    Syntax {
        /// Counted from one.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// Written by another version.
    #[error("its form is version {0}, and this program knows version {VERSION}")]
    Version(u32),
    /// A certificate that is none, or not a CA's.
    #[error("the {0} root is not a CA certificate")]
    Certificate(&'static str),
    /// A key that is none.
    #[error("the {0} root's key is not a private key")]
    Key(&'static str),
    /// A key and a certificate of different pairs.
    #[error("the {0} root's key does not belong to its certificate")]
    Mismatch(&'static str),
}

/// Why a rotation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// One is under way.
    #[error("a root rotation is under way already; activate the new root, or wait for its overlap to end")]
    UnderWay,
    /// `activate` without `rotate`.
    #[error("there is no new root to activate; begin a rotation first")]
    NothingPending,
    /// Too many within one leaf's life.
    #[error("{0} roots are published already; wait until an old one has retired")]
    TooMany(usize),
    /// It could not be written down, so it was not done.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The new root could not be made.
    #[error("a root certificate could not be made: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl State {
    /// One root that signs.
    pub(super) fn new(root: Root, ttl_max: Duration) -> Self {
        Self { ttl_max, active: root, next: None, retired: Vec::new() }
    }

    /// Remembers that leaves may live this long. Says whether that is news.
    pub(super) fn allow_ttl(&mut self, ttl: Duration) -> bool {
        let news = ttl > self.ttl_max;
        self.ttl_max = self.ttl_max.max(ttl);
        news
    }

    /// Does what time has made due, and says whether anything was.
    pub(super) fn advance(&mut self, now: SystemTime) -> bool {
        let before = self.retired.len();
        self.retired.retain(|retired| now < retired.drop_at);
        let dropped = self.retired.len() != before;
        let due = self.next.as_ref().is_some_and(|next| next.activate_at <= now);
        dropped | (due && self.activate(now).is_ok())
    }

    /// Publishes `root`; it will sign from `activate_at` on.
    pub(super) fn publish(&mut self, root: Root, activate_at: SystemTime) -> Result<(), RotationError> {
        if self.next.is_some() {
            return Err(RotationError::UnderWay);
        }
        match self.roots().len() {
            published if published >= MAX_ROOTS => Err(RotationError::TooMany(published)),
            _ => {
                self.next = Some(Pending { root, activate_at });
                Ok(())
            }
        }
    }

    /// Makes the published root the signing one.
    pub(super) fn activate(&mut self, now: SystemTime) -> Result<(), RotationError> {
        let next = self.next.take().ok_or(RotationError::NothingPending)?;
        let old = std::mem::replace(&mut self.active, next.root);
        self.retire(old, now);
        Ok(())
    }

    /// Has the plugged `root` sign: at once if it is below the same root as what signs now, because everyone trusts it then;
    /// else it is published, and signs from `activate_at` on. Nothing else that was to sign next will.
    pub(super) fn plug(
        &mut self,
        root: Root,
        now: SystemTime,
        activate_at: SystemTime,
    ) -> Result<(), RotationError> {
        if self.active == root {
            self.next = None;
            return Ok(());
        }
        if self.next.as_ref().is_some_and(|next| next.root == root) {
            return Ok(());
        }
        self.next = None;
        match self.roots().len() + root.anchors().len() {
            published if published > MAX_PLUGGED_ROOTS => return Err(RotationError::TooMany(published)),
            _ => {}
        }
        let anchor = root.anchor();
        if anchor.is_some() && anchor == self.active.anchor() {
            let old = std::mem::replace(&mut self.active, root);
            if old.anchors() != self.active.anchors() {
                self.retire(old, now);
            }
        } else {
            self.next = Some(Pending { root, activate_at });
        }
        Ok(())
    }

    /// Whether somebody else's CA signs.
    pub(super) fn is_plugged(&self) -> bool {
        self.active.above.is_some()
    }

    /// It may have signed until this moment, for the longest validity there is.
    fn retire(&mut self, old: Root, now: SystemTime) {
        self.retired.push(Retired { anchors: old.anchors(), drop_at: now + self.ttl_max });
    }

    /// The root that signs.
    pub(super) fn signing_root(&self) -> Root {
        self.active.clone()
    }

    /// All that should be trusted: the signing root first.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let next = self.next.iter().flat_map(|next| next.root.anchors());
        let retired = self.retired.iter().flat_map(|retired| retired.anchors.clone());
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        for root in self.active.anchors().into_iter().chain(next).chain(retired) {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots
    }

    /// [`State::roots`] as PEM.
    pub(super) fn roots_pem(&self) -> String {
        to_pem(&self.roots())
    }

    /// When the published root will sign.
    pub(super) fn activate_at(&self) -> Option<SystemTime> {
        self.next.as_ref().map(|next| next.activate_at)
    }

    /// Whether the signing root nears its end and no successor is there.
    pub(super) fn renewal_due(&self, now: SystemTime) -> bool {
        let Some((start, _)) = validity(&self.active.certificate) else { return false };
        let end = self.active.not_after();
        let life = end.duration_since(start).unwrap_or(Duration::ZERO);
        self.next.is_none() && now + life / RENEWAL_PART >= end
    }

    /// Reads what [`State::to_bytes`] wrote, checking all of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Corrupt> {
        let stored: Stored = serde_json::from_slice(bytes)
            .map_err(|error| Corrupt::Syntax { line: error.line(), message: error.to_string() })?;
        let Stored { version, ttl_max_seconds, active, next, retired } = stored;
        if version != VERSION {
            return Err(Corrupt::Version(version));
        }
        let next = next.map(|StoredPending { root, activate_at }| {
            Ok(Pending { root: root.check("next")?, activate_at: from_seconds(activate_at) })
        });
        let retired = retired.into_iter().map(|StoredRetired { certificate, drop_at }| {
            Ok(Retired { anchors: ca_certificates(&certificate, "retired")?, drop_at: from_seconds(drop_at) })
        });
        Ok(Self {
            ttl_max: Duration::from_secs(ttl_max_seconds),
            active: active.check("active")?,
            next: next.transpose()?,
            retired: retired.collect::<Result<_, _>>()?,
        })
    }

    /// The state as it is stored: JSON with the private keys in it.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let stored = Stored {
            version: VERSION,
            ttl_max_seconds: seconds_up(self.ttl_max),
            active: StoredRoot::of(&self.active),
            next: self.next.as_ref().map(|next| StoredPending {
                root: StoredRoot::of(&next.root),
                activate_at: to_seconds(next.activate_at),
            }),
            retired: self
                .retired
                .iter()
                .map(|retired| StoredRetired {
                    certificate: to_pem(&retired.anchors),
                    drop_at: to_seconds(retired.drop_at),
                })
                .collect(),
        };
        serde_json::to_vec_pretty(&stored).expect("strings and numbers always have a JSON form")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    ttl_max_seconds: u64,
    active: StoredRoot,
    next: Option<StoredPending>,
    retired: Vec<StoredRetired>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRoot {
    certificate: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    above: Option<StoredAbove>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAbove {
    chain: String,
    anchors: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPending {
    root: StoredRoot,
    activate_at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRetired {
    certificate: String,
    drop_at: u64,
}

impl StoredRoot {
    fn of(root: &Root) -> Self {
        Self {
            certificate: to_pem(std::slice::from_ref(&root.certificate)),
            key: root.key_pem.reveal().to_owned(),
            above: root
                .above
                .as_ref()
                .map(|above| StoredAbove { chain: to_pem(&above.chain), anchors: to_pem(&above.anchors) }),
        }
    }

    fn check(self, which: &'static str) -> Result<Root, Corrupt> {
        let certificate = ca_certificates(&self.certificate, which)?.swap_remove(0);
        let key = KeyPair::from_pem(&self.key).map_err(|_| Corrupt::Key(which))?;
        let parsed = parse(&certificate).map_err(|_| Corrupt::Certificate(which))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(Corrupt::Mismatch(which));
        }
        let above = self.above.map(|StoredAbove { chain, anchors }| {
            // A root that signs by itself has nothing to send.
            let chain = if chain.is_empty() { Vec::new() } else { ca_certificates(&chain, which)? };
            Ok(Above { chain, anchors: ca_certificates(&anchors, which)? })
        });
        Ok(Root { key_pem: self.key.into(), certificate: certificate.clone(), above: above.transpose()? })
    }
}

/// At least one.
fn ca_certificates(pem: &str, which: &'static str) -> Result<Vec<CertificateDer<'static>>, Corrupt> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|_| Corrupt::Certificate(which))?;
    let are_cas = read.iter().all(|der| parse(der).is_ok_and(|it| it.is_ca()));
    if are_cas && !read.is_empty() { Ok(read) } else { Err(Corrupt::Certificate(which)) }
}

/// Seconds since 1970, rounded up: state that was stored and read again is never earlier than it was.
fn to_seconds(at: SystemTime) -> u64 {
    seconds_up(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn from_seconds(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}
