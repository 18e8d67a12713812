//! The authority's state in a Secret that all replicas share. A replica writes only what follows from what is stored: the
//! version of the Secret guards it.

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
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};

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
    #[error("the Secret {0} can't be used: {1}; the controller needs get, create and update on it")]
    Api(String, String),
    /// It is there and is not what we wrote.
    #[error(
        "the Secret {0} is damaged ({1}); restore it from a backup. Only if the old root may be forgotten by everyone, \
         delete it to start with a new one"
    )]
    Damaged(String, String),
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
    authority: Arc<Authority>,
    /// As it was last seen or written.
    secret: Mutex<Value>,
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
            let first = Authority::first_state(&config, clock.now());
            let first = first.map_err(|error| SecretError::Root(error.to_string()))?;
            let new = new_secret(namespace, &first);
            found = match call(&client, Method::POST, &secrets, Some(&new)).await {
                Ok(made) => {
                    tracing::info!(secret = place, "a new root was made; back the Secret up");
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
        let authority = Arc::new(Authority::shared(&stored, config, clock).map_err(damaged)?);
        let shared = Self { client, namespace: namespace.to_owned(), authority, secret: Mutex::new(secret) };
        shared.step(&Step::Maintain).await?;
        Ok(shared)
    }

    /// What signs.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Takes a step, unless another replica has taken it: then that counts.
    ///
    /// # Errors
    /// When it is not possible, or could not be stored; then it is not taken.
    pub async fn step(&self, step: &Step) -> Result<(), SecretError> {
        let mut secret = self.secret.lock().await;
        for _ in 0..ATTEMPTS {
            let Some(bytes) = self.authority.prepare(step)? else { return Ok(()) };
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
        let mut failing = false;
        loop {
            let done = tokio::select! {
                _ = maintenance.tick() => self.step(&Step::Maintain).await,
                _ = looks.tick() => {
                    let mut secret = self.secret.lock().await;
                    self.refresh(&mut secret).await
                }
            };
            match done {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the authority goes on with what it has");
                    }
                }
            }
        }
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
        format!("{}/{NAME}", self.namespace)
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
