//! The controller's own certificate authority: a self-signed root on disk, or somebody's CA that is plugged in; leaves for
//! workloads and servers, and a root rotation that overlaps by construction.
//!
//! Refuses to guess: state that is damaged, readable by others or half missing is an error, never a new root.

mod disk;
mod issue;
mod plugged;
mod root;
mod shared;
mod state;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use model::identity::Identity;
use rustls_pki_types::CertificateDer;

pub use disk::StorageError;
pub use plugged::{BadPluggedCa, PluggedCa, PluggedPem};
pub use shared::Step;
pub use state::{Corrupt, RotationError};

use crate::BoxFuture;
use crate::certificate::Signed;
use crate::clock::Clock;
use crate::signer::{SignError, Signer, Subject};
use disk::Directory;
use state::State;

/// What an authority grants.
#[derive(Clone, Debug)]
pub struct AuthorityConfig {
    /// The organisation in the root's name, so that people recognise it: the trust domain.
    pub trust_domain: String,
    /// The validity of a leaf when none was asked for.
    pub ttl: Duration,
    /// The longest validity that is granted. It also decides how long a retired root must be trusted.
    pub ttl_max: Duration,
    /// The validity of a new root.
    pub root_ttl: Duration,
}

impl AuthorityConfig {
    /// The usual numbers for `trust_domain`.
    pub fn new(trust_domain: impl Into<String>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            // A day: it outlasts a night without a control plane, and a stolen key is worthless soon.
            ttl: Duration::from_secs(24 * 3600),
            // A week: whoever must live longer without a control plane should plug in a signer of their own.
            ttl_max: Duration::from_secs(7 * 24 * 3600),
            // Ten years; it is renewed when a fifth is left (`maintain`).
            root_ttl: Duration::from_secs(3650 * 24 * 3600),
        }
    }
}

/// The authority. Share it in an [`Arc`]; one with a directory locks that against a second process for as long as it lives.
pub struct Authority {
    config: AuthorityConfig,
    clock: Arc<dyn Clock>,
    /// `None`: several processes share the state, and whoever made this stores it.
    directory: Option<Directory>,
    state: Mutex<State>,
}

/// Why an authority could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The state was read and makes no sense.
    #[error(
        "the authority's state in {path} is damaged ({reason}); restore it from a backup. Only if the old root may be \
             forgotten by everyone, remove the whole directory to start with a new one"
    )]
    Corrupt {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: Corrupt,
    },
    /// A first root could not be made.
    #[error("a root certificate could not be made: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl Authority {
    /// Opens the authority in `path`, or makes one with a new root if the directory is empty or missing.
    pub fn open_or_create(
        path: &Path,
        config: AuthorityConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let directory = Directory::open(path)?;
        let now = clock.now();
        let mut state = match directory.read()? {
            Some(bytes) => State::parse(&bytes)
                .map_err(|reason| OpenError::Corrupt { path: directory.state_file(), reason })?,
            None => {
                let state =
                    State::new(issue::root(&config.trust_domain, now, config.root_ttl)?, config.ttl_max);
                directory.write(&state.to_bytes())?;
                state
            }
        };
        // Written before the first leaf that lives this long: retirement counts on it after a restart, too.
        let longer = state.allow_ttl(config.ttl_max);
        if state.advance(now) || longer {
            directory.write(&state.to_bytes())?;
        }
        directory.publish_roots(&state.roots_pem())?;
        Ok(Self { config, clock, directory: Some(directory), state: Mutex::new(state) })
    }

    /// Certifies the key of `csr_pem` as `identity`, for `ttl` or the default.
    ///
    /// The request must be signed by the key it carries; the names in it are ignored.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Option<Duration>,
    ) -> Result<Signed, SignError> {
        self.sign_for(csr_pem, &Subject::Workload(identity.clone()), ttl)
    }

    /// [`Authority::sign`] for any subject.
    pub fn sign_for(
        &self,
        csr_pem: &str,
        subject: &Subject,
        ttl: Option<Duration>,
    ) -> Result<Signed, SignError> {
        let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(self.config.ttl);
        if ttl > self.config.ttl_max {
            return Err(SignError::TtlTooLong { asked: ttl, max: self.config.ttl_max });
        }
        let key = issue::checked_key(csr_pem)?;
        let now = self.clock.now();
        let (root, roots) = self.change(|state| {
            state.advance(now);
            (state.signing_root(), state.roots())
        })?;
        let leaf = issue::leaf(&root, &key, subject, now, ttl)?;
        let chain = std::iter::once(leaf).chain(root.chain().iter().cloned()).collect();
        Ok(Signed { chain, roots })
    }

    /// The roots that everyone should trust now, as PEM: the signing one first.
    pub fn roots_pem(&self) -> String {
        crate::certificate::to_pem(&self.roots())
    }

    /// Begins a root rotation: publishes a new root at once, and signs with it after `overlap`.
    ///
    /// `overlap`: how long everyone gets to learn the new root. `None` for the longest validity that is granted: by then
    /// every certificate in use came with both roots. The old root stays published until the last leaf it signed has
    /// expired.
    pub fn rotate(&self, overlap: Option<Duration>) -> Result<(), RotationError> {
        self.take(&Step::Rotate(overlap))
    }

    /// Signs with the new root from now on, without waiting for the overlap to end.
    pub fn activate(&self) -> Result<(), RotationError> {
        self.take(&Step::Activate)
    }

    /// What has become due: signs with a root whose overlap is over, drops retired roots, begins a rotation when less
    /// than a fifth of the root's life is left; writes the roots' file again if it was lost. Call it about hourly; [`Authority::sign`] does the first two by itself.
    pub fn maintain(&self) -> Result<(), RotationError> {
        self.take(&Step::Maintain)?;
        if let Some(directory) = &self.directory {
            directory.publish_roots(&self.roots_pem())?;
        }
        Ok(())
    }

    /// When what signs now ends, if that is near and nothing follows of itself: somebody's plugged CA has to be replaced.
    pub fn to_be_replaced_by(&self) -> Option<SystemTime> {
        let now = self.clock.now();
        self.lock(|state| {
            (state.is_plugged() && state.renewal_due(now)).then(|| state.signing_root().not_after())
        })
    }

    /// When the published new root will sign, if there is one.
    pub fn next_root_at(&self) -> Option<SystemTime> {
        self.lock(|state| state.activate_at())
    }

    /// Takes a step and stores it.
    fn take(&self, step: &Step) -> Result<(), RotationError> {
        if self.directory.is_none() {
            return Err(RotationError::Storage(StorageError::Shared));
        }
        let now = self.clock.now();
        self.change(|state| self.step(state, step, now))?
    }

    /// Applies `change` to a copy, stores the copy if it differs, and only then uses it. Shared state is not stored: what time
    /// alone has made due is the same for everyone who shares it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, StorageError> {
        self.lock(|state| {
            let mut changed = state.clone();
            let answer = change(&mut changed);
            if changed != *state {
                if let Some(directory) = &self.directory {
                    directory.write(&changed.to_bytes())?;
                }
                *state = changed;
                if let Some(directory) = &self.directory {
                    directory.publish_roots(&state.roots_pem())?;
                }
            }
            Ok(answer)
        })
    }

    fn lock<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Signer for Authority {
    fn sign(
        &self,
        csr_pem: String,
        subject: Subject,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Signed, SignError>> {
        Box::pin(std::future::ready(self.sign_for(&csr_pem, &subject, ttl)))
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.lock(|state| state.roots())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("config", &self.config).finish_non_exhaustive()
    }
}
