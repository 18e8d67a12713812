//! The authority's state in a Secret that all replicas share. A replica writes only what follows from what is stored: the
//! version of the Secret guards it.
//!
//! A CA that is plugged in (`plugged`) becomes part of that state, so that what it replaces can sign until everyone trusts it,
//! whichever replica starts meanwhile. One that can't be used changes nothing, and is said to be so.

use std::sync::Arc;
use std::time::Duration;

use apiserver::{call, explain, is_conflict};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use identity::Clock;
use identity::authority::{Authority, AuthorityConfig, Corrupt, RotationError, Step};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::Failing;
use super::lease::timestamp;
use super::plugged::{self, Found};

/// The Secret's name. Not Istio's: its form is another, and two signers must not share one.
const NAME: &str = "airglow-ca";

/// The key within it, named as the file in a state directory.
const KEY: &str = "authority.json";

/// How often to look what other replicas have stored. Rotations overlap by days.
const LOOK: Duration = Duration::from_secs(15);

/// How often the authority does what time has made due.
const MAINTENANCE: Duration = Duration::from_secs(3600);

/// Attempts to be the one who stores a step. Each failure means that another replica has stored one.
const ATTEMPTS: usize = 5;

/// Why the authority's Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server refused, or did not answer.
    #[error(
        "the Secret {0} can't be used: {1}; the controller needs get, create and update on airglow-ca, and get on cacerts"
    )]
    Api(String, String),
    /// It is there and is not what we wrote.
    #[error(
        "the Secret {0} is damaged ({1}); restore it from a backup. Only if the old root may be forgotten by everyone, \
         delete it to start with a new one"
    )]
    Damaged(String, String),
    /// Somebody's CA is plugged in and can't be used, and there is nothing to go on with.
    #[error(
        "the CA in the Secret {0} can't be used: {1}; mend the Secret, or delete it for a root of Airglow's own"
    )]
    Plugged(String, String),
    /// A root of ours was asked for, and somebody's CA is plugged in.
    #[error("a CA is plugged in by the Secret {0}; rotate it by changing that Secret")]
    PluggedIn(String),
    /// Others were always faster.
    #[error("the Secret {0} was changed by others again and again; try once more")]
    Contended(String),
    /// The step is not possible.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// No root could be made.
    #[error("a root certificate could not be made: {0}")]
    Root(String),
}

/// The authority whose state is in the Secret.
pub struct SharedAuthority {
    client: Client,
    namespace: String,
    trust_domain: String,
    clock: Arc<dyn Clock>,
    authority: Arc<Authority>,
    /// As it was last seen or written.
    secret: Mutex<Value>,
    /// The plugged CA as it was last judged.
    plugged: watch::Sender<Plugged>,
}

/// The plugged CA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plugged {
    /// Of its Secret, if there is one.
    version: Option<String>,
    /// Why it can't be used.
    wrong: Option<String>,
}

/// What someone must do about the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// With which Secret.
    pub secret: &'static str,
    /// In a word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl SharedAuthority {
    /// Opens the authority of `namespace`, or makes one if there is none.
    ///
    /// # Errors
    /// When there is one that can't be used, or nobody can tell.
    pub async fn open(
        client: Client,
        namespace: &str,
        config: AuthorityConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SecretError> {
        let place = format!("{namespace}/{NAME}");
        let failed = |error: kube::Error| SecretError::Api(place.clone(), explain(&error));
        let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
        let path = format!("{secrets}/{NAME}");
        let mut found = call(&client, Method::GET, &path, None).await.map_err(failed)?;
        if found.is_none() {
            let first = first_state(&client, namespace, &config, &clock).await?;
            let new = new_secret(namespace, &first);
            found = match call(&client, Method::POST, &secrets, Some(&new)).await {
                Ok(made) => {
                    tracing::info!(secret = place, "the authority begins; back the Secret up");
                    made
                }
                // Another replica has just made one.
                Err(error) if is_conflict(&error) => {
                    call(&client, Method::GET, &path, None).await.map_err(failed)?
                }
                Err(error) => return Err(failed(error)),
            };
        }
        let secret = found.ok_or_else(|| SecretError::Contended(place.clone()))?;
        let damaged = |corrupt: Corrupt| SecretError::Damaged(place.clone(), corrupt.to_string());
        let stored = stored(&secret).map_err(|why| SecretError::Damaged(place.clone(), why))?;
        let trust_domain = config.trust_domain.clone();
        let authority = Arc::new(Authority::shared(&stored, config, clock.clone()).map_err(damaged)?);
        let shared = Self {
            client,
            namespace: namespace.to_owned(),
            trust_domain,
            clock,
            authority,
            secret: Mutex::new(secret),
            plugged: watch::channel(Plugged::default()).0,
        };
        shared.step(&Step::Maintain).await?;
        shared.plug().await?;
        Ok(shared)
    }

    /// What signs.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Where its Secrets are.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Changes with the plugged CA.
    pub(super) fn plugged(&self) -> watch::Receiver<Plugged> {
        self.plugged.subscribe()
    }

    /// Takes a step, unless another replica has taken it: then that counts.
    ///
    /// # Errors
    /// When it is not possible, or could not be stored; then it is not taken.
    pub async fn step(&self, step: &Step) -> Result<(), SecretError> {
        if matches!(step, Step::Rotate(_)) && self.plugged.borrow().version.is_some() {
            return Err(SecretError::PluggedIn(self.place_of(plugged::NAME)));
        }
        self.store(|authority| authority.prepare(step)).await
    }

    /// What someone must do about the authority, if anything.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        if let Some(wrong) = &self.plugged.borrow().wrong {
            let message =
                format!("the CA can't be used: {wrong}. Until it is mended, the one before goes on signing");
            return Some(Trouble { secret: plugged::NAME, reason: "CAUnusable", message });
        }
        let end = self.authority.to_be_replaced_by()?;
        let message = format!(
            "the plugged CA ends at {}, and no certificate after that; replace it in time",
            timestamp(end)
        );
        Some(Trouble { secret: plugged::NAME, reason: "CAExpiring", message })
    }

    /// Looks whether another CA is plugged in, and has it sign if it can be used.
    async fn plug(&self) -> Result<(), SecretError> {
        let place = self.place_of(plugged::NAME);
        let found = plugged::look(&self.client, &self.namespace, &self.trust_domain, self.clock.now()).await;
        let found = found.map_err(|error| SecretError::Api(place.clone(), explain(&error)))?;
        let before = self.plugged.borrow().clone();
        let Some(Found { version, ca }) = found else {
            if before.version.is_some() {
                tracing::warn!(
                    secret = place,
                    "no CA is plugged in any more; the last one signs until a root of our own is rotated in"
                );
                self.plugged.send_replace(Plugged::default());
            }
            return Ok(());
        };
        if before.version.as_ref() == Some(&version) {
            return Ok(());
        }
        let wrong = match ca {
            Ok(ca) => {
                self.store(|authority| authority.prepare_plugged(&ca)).await?;
                let next = self.authority.next_root_at().map(timestamp);
                tracing::info!(secret = place, signs_at = next, "a CA is plugged in");
                None
            }
            Err(wrong) => {
                tracing::error!(
                    secret = place,
                    wrong,
                    "the CA that is plugged in can't be used; the one before goes on signing"
                );
                Some(wrong)
            }
        };
        self.plugged.send_replace(Plugged { version: Some(version), wrong });
        Ok(())
    }

    /// Stores what `prepare` says, and then adopts it.
    async fn store(
        &self,
        prepare: impl Fn(&Authority) -> Result<Option<Vec<u8>>, RotationError>,
    ) -> Result<(), SecretError> {
        let mut secret = self.secret.lock().await;
        for _ in 0..ATTEMPTS {
            let Some(bytes) = prepare(&self.authority)? else { return Ok(()) };
            let mut changed = secret.clone();
            changed["data"][KEY] = STANDARD.encode(&bytes).into();
            match call(&self.client, Method::PUT, &self.path(), Some(&changed)).await {
                Ok(Some(written)) => {
                    self.adopt(&bytes)?;
                    *secret = written;
                    return Ok(());
                }
                // Gone: what we hold is all there is.
                Ok(None) => self.restore(&mut secret).await?,
                Err(error) if is_conflict(&error) => self.refresh(&mut secret).await?,
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(SecretError::Contended(self.place()))
    }

    /// Follows what other replicas store, and does what time has made due. Does not end.
    pub async fn run(self: Arc<Self>) {
        let (mut looks, mut maintenance) = (interval(LOOK), interval(MAINTENANCE));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = Failing::default();
        loop {
            let done = tokio::select! {
                _ = maintenance.tick() => self.step(&Step::Maintain).await,
                _ = looks.tick() => self.look().await,
            };
            failing.note(&done, |error| tracing::warn!(%error, "the authority goes on with what it has"));
        }
    }

    async fn look(&self) -> Result<(), SecretError> {
        {
            let mut secret = self.secret.lock().await;
            self.refresh(&mut secret).await?;
        }
        self.plug().await
    }

    async fn refresh(&self, secret: &mut Value) -> Result<(), SecretError> {
        let found = call(&self.client, Method::GET, &self.path(), None).await;
        let Some(found) = found.map_err(|error| self.failed(&error))? else {
            return self.restore(secret).await;
        };
        if found.pointer("/metadata/resourceVersion") != secret.pointer("/metadata/resourceVersion") {
            let stored = stored(&found).map_err(|why| SecretError::Damaged(self.place(), why))?;
            self.adopt(&stored)?;
            *secret = found;
        }
        Ok(())
    }

    /// Stores what we hold again: somebody has deleted the Secret.
    async fn restore(&self, secret: &mut Value) -> Result<(), SecretError> {
        let new = new_secret(&self.namespace, &self.authority.stored());
        let secrets = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        match call(&self.client, Method::POST, &secrets, Some(&new)).await {
            Ok(Some(made)) => {
                tracing::warn!(
                    secret = self.place(),
                    "the authority's Secret was deleted; it was written again"
                );
                *secret = made;
                Ok(())
            }
            Ok(None) => Err(SecretError::Contended(self.place())),
            // Another replica was faster; the next look sees what it wrote.
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn adopt(&self, stored: &[u8]) -> Result<(), SecretError> {
        let damaged = |corrupt: Corrupt| SecretError::Damaged(self.place(), corrupt.to_string());
        self.authority.adopt(stored).map_err(damaged)
    }

    fn failed(&self, error: &kube::Error) -> SecretError {
        SecretError::Api(self.place(), explain(error))
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets/{NAME}", self.namespace)
    }

    fn place(&self) -> String {
        self.place_of(NAME)
    }

    fn place_of(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }
}

/// With a plugged CA if there is one that can be used; with a root of our own only if there is none at all.
async fn first_state(
    client: &Client,
    namespace: &str,
    config: &AuthorityConfig,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<u8>, SecretError> {
    let place = format!("{namespace}/{}", plugged::NAME);
    let found = plugged::look(client, namespace, &config.trust_domain, clock.now()).await;
    match found.map_err(|error| SecretError::Api(place.clone(), explain(&error)))? {
        Some(Found { ca, .. }) => {
            let ca = ca.map_err(|wrong| SecretError::Plugged(place, wrong))?;
            Ok(Authority::first_plugged_state(config, &ca))
        }
        None => {
            let first = Authority::first_state(config, clock.now());
            first.map_err(|error| SecretError::Root(error.to_string()))
        }
    }
}

fn new_secret(namespace: &str, state: &[u8]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "name": NAME, "namespace": namespace },
        "data": { KEY: STANDARD.encode(state) },
    })
}

fn stored(secret: &Value) -> Result<Vec<u8>, String> {
    let text = secret["data"][KEY].as_str().ok_or_else(|| format!("it has no {KEY}"))?;
    STANDARD.decode(text).map_err(|error| format!("{KEY}: {error}"))
}
