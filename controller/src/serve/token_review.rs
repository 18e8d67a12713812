//! Service account tokens as the proof on Kubernetes: the API server says whose a token is and which pod it is bound to, and
//! so which node presents it, or which waypoint.
//!
//! What a token says of itself is believed only to refuse it. Owns no right: what a node may do is decided by each service.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use apiserver::explain;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::{BoxFuture, Clock};
use kube::Client;
use model::Str;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::published::Published;
use super::tokens::{Authenticator, Caller, MAX_TOKEN_BYTES, NotProven, Role};

/// How long an answer is relied upon, and so for how long the token of a deleted pod is still accepted. A node that starts
/// makes all its calls within that time.
const REMEMBER: Duration = Duration::from_secs(10);

/// Answers that are remembered: nodes of the largest clusters, and some that are just being replaced.
const MAX_REMEMBERED: usize = 8192;

/// Questions under way. One takes milliseconds, and whoever floods us must not flood the API server.
const MAX_QUESTIONS: usize = 16;

/// How long an answer may take, with the wait for one's turn. Callers try again.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How often the API server is asked again about the token of an open session, on average. That a pod has gone is known at
/// once without asking (`discovery`); this is for accounts and keys that were taken away. The largest clusters have some
/// thousands of sessions, so some dozens of questions a second.
const ASK_AGAIN: Duration = Duration::from_secs(60);

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum NotReviewed {
    /// It has expired, by what it says itself.
    #[error("the token has expired; does the node read its token file again?")]
    Expired,
    /// Not of the form of a service account token.
    #[error("the token is no service account token")]
    NotAToken,
    /// Another account than those of nodes and waypoints.
    #[error("the token is {0}'s, which is not among AIRGLOW_NODE_ACCOUNTS and not that of a waypoint's pod")]
    OtherAccount(String),
    /// For somebody else.
    #[error("the token is not for the audience {0}; set `audience` of the projected volume")]
    OtherAudience(Str),
    /// The API server does not accept it.
    #[error("the API server refuses the token: {0}")]
    Refused(String),
    /// No word from the API server, so nobody is at fault.
    #[error("the API server can't be asked about the token: {0}")]
    Unavailable(String),
    /// Bound to no pod on a node.
    #[error(
        "the token is not bound to a pod on a node (claim {0} is missing); project it into the pod, on Kubernetes 1.32 or \
         later"
    )]
    Unbound(&'static str),
}

/// Whom to accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// What tokens must be made for.
    pub audience: Str,
    /// The service accounts of nodes, as `namespace/name`.
    pub accounts: BTreeSet<String>,
}

/// Asks the API server about tokens.
pub struct TokenReviews {
    client: Client,
    accepted: Accepted,
    published: Published,
    clock: Arc<dyn Clock>,
    questions: Semaphore,
    remembered: Mutex<HashMap<[u8; 32], (Caller, Instant)>>,
}

impl TokenReviews {
    /// Asks by `client`. `published` says which pods are waypoints'.
    #[must_use]
    pub fn new(client: Client, accepted: Accepted, published: Published, clock: Arc<dyn Clock>) -> Self {
        let questions = Semaphore::new(MAX_QUESTIONS);
        Self { client, accepted, published, clock, questions, remembered: Mutex::default() }
    }

    async fn review(&self, token: &str) -> Result<Caller, NotReviewed> {
        let left = self.left(token)?;
        let key: [u8; 32] =
            digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(caller) = self.remembered(&key) {
            return Ok(caller);
        }
        let asked = timeout(ANSWER_WITHIN, async {
            let _turn = self.questions.acquire().await.expect("never closed");
            // Someone may have asked about the same token while we waited.
            match self.remembered(&key) {
                Some(caller) => Ok(caller),
                None => self.ask(token).await.inspect(|caller| self.remember(key, caller, left)),
            }
        });
        asked
            .await
            .unwrap_or_else(|_| Err(NotReviewed::Unavailable(format!("no answer within {ANSWER_WITHIN:?}"))))
    }

    /// For how long the token is valid by its own words. They are checked before anyone is asked, so that a mistake costs
    /// nothing and its reason is plain; the API server judges the token as a whole.
    fn left(&self, token: &str) -> Result<Duration, NotReviewed> {
        let payload = token.split('.').nth(1).filter(|_| token.len() as u64 <= MAX_TOKEN_BYTES);
        let payload = payload.and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
        let claims: Option<Claims> = payload.and_then(|json| serde_json::from_slice(&json).ok());
        let Claims { exp, aud, sub } = claims.ok_or(NotReviewed::NotAToken)?;
        self.role(&sub, None)?;
        if !aud.has(&self.accepted.audience) {
            return Err(NotReviewed::OtherAudience(self.accepted.audience.clone()));
        }
        let until =
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)).ok_or(NotReviewed::NotAToken)?;
        until.duration_since(self.clock.now()).map_err(|_| NotReviewed::Expired)
    }

    /// Refuses an account that is neither a node's nor that of a waypoint. `pod`: the one that the token is bound to, if that
    /// is known already.
    fn role(&self, user: &str, pod: Option<&str>) -> Result<Role, NotReviewed> {
        let account = user.strip_prefix(ACCOUNT_PREFIX).and_then(|account| account.split_once(':'));
        let other = || NotReviewed::OtherAccount(user.to_owned());
        let (namespace, name) = account.ok_or_else(other)?;
        if self.accepted.accounts.contains(&format!("{namespace}/{name}")) {
            return Ok(Role::Node);
        }
        let now = self.published.now();
        let is_bound = |uid: &str| pod.is_none_or(|pod| pod == uid);
        let mut waypoints = now.waypoints().filter(|waypoint| is_bound(&waypoint.uid));
        let found = waypoints
            .find(|it| *it.identity.namespace == *namespace && *it.identity.service_account == *name);
        found.map(|waypoint| Role::Waypoint(waypoint.identity.clone())).ok_or_else(other)
    }

    async fn ask(&self, token: &str) -> Result<Caller, NotReviewed> {
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": { "token": token, "audiences": [&*self.accepted.audience] },
        });
        let request = http::Request::post(PATH)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(question.to_string().into_bytes())
            .expect("a constant path and header");
        let answer = self.client.request::<Answer>(request).await;
        let ReviewStatus { authenticated, error, audiences, user } =
            answer.map_err(|error| NotReviewed::Unavailable(explain(&error)))?.status;
        if !authenticated {
            return Err(NotReviewed::Refused(error));
        }
        // A server that knows nothing of audiences would accept a token that was made for anyone.
        if !audiences.iter().any(|audience| **audience == *self.accepted.audience) {
            return Err(NotReviewed::OtherAudience(self.accepted.audience.clone()));
        }
        let claim = |name: &'static str| {
            let value = user.extra.get(name).and_then(|values| values.first());
            value.filter(|value| !value.is_empty()).ok_or(NotReviewed::Unbound(name))
        };
        let (node, pod, uid) = (claim(NODE_NAME)?, claim(POD_NAME)?, claim(POD_UID)?);
        let role = self.role(&user.username, Some(uid))?;
        tracing::debug!(node, pod, uid, account = user.username, "a caller has proven itself");
        Ok(Caller { node: node.as_str().into(), pod: Some(uid.as_str().into()), role })
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Caller> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(key).filter(|(_, until)| Instant::now() < *until).map(|(caller, _)| caller.clone())
    }

    fn remember(&self, key: [u8; 32], caller: &Caller, left: Duration) {
        let now = Instant::now();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.retain(|_, (_, until)| now < *until);
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(key, (caller.clone(), now + REMEMBER.min(left)));
        }
    }
}

impl Authenticator for TokenReviews {
    fn authenticate<'a>(&'a self, bearer: Option<&'a str>) -> BoxFuture<'a, Result<Caller, NotProven>> {
        Box::pin(async move { Ok(self.review(bearer.ok_or(NotProven::NoToken)?).await?) })
    }

    fn taken_back<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            loop {
                // Sessions that began together, after a restart of ours, are spread.
                tokio::time::sleep(ASK_AGAIN.mul_f64(0.5 + fastrand::f64())).await;
                match self.review(bearer).await {
                    // An expired token can't be asked about; nor does it say anything of whether the node is one.
                    Ok(_) | Err(NotReviewed::Unavailable(_) | NotReviewed::Expired) => {}
                    Err(_) => return,
                }
            }
        })
    }
}

/// What a token says of itself.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
    aud: Audiences,
    sub: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Audiences {
    fn has(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    error: String,
    audiences: Vec<String>,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: HashMap<String, Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::super::published::Publisher;
    use super::*;
    use identity::SystemClock;
    use kube::client::Body;
    use std::collections::VecDeque;
    use std::convert::Infallible;

    const ACCOUNT: &str = "system:serviceaccount:mesh:ztunnel";

    /// An API server with these answers, in order.
    fn server(answers: Vec<(u16, serde_json::Value)>) -> Client {
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let (status, body) =
                answers.lock().expect("not poisoned").pop_front().expect("an answer is left");
            let body = Body::from(body.to_string().into_bytes());
            std::future::ready(Ok::<_, Infallible>(
                http::Response::builder().status(status).body(body).expect("an answer"),
            ))
        });
        Client::new(service, "default")
    }

    fn answer(authenticated: bool) -> (u16, serde_json::Value) {
        let extra = json!({ NODE_NAME: ["n1"], POD_NAME: ["ztunnel"], POD_UID: ["u1"] });
        let user = json!({ "username": ACCOUNT, "extra": extra });
        (200, json!({ "status": { "authenticated": authenticated, "audiences": ["mesh"], "user": user } }))
    }

    fn token(valid_for: Duration) -> String {
        let until = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970") + valid_for;
        let claims = json!({ "exp": until.as_secs(), "aud": ["mesh"], "sub": ACCOUNT });
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn reviews(client: Client) -> TokenReviews {
        let accepted = Accepted { audience: "mesh".into(), accounts: ["mesh/ztunnel".to_owned()].into() };
        TokenReviews::new(client, accepted, Publisher::new().1, Arc::new(SystemClock))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_taken_back_when_the_api_server_says_so_and_not_when_it_says_nothing() {
        let down = (503, json!({ "kind": "Status", "status": "Failure", "code": 503, "message": "not now" }));
        let reviews = reviews(server(vec![answer(true), answer(true), down, answer(true), answer(false)]));
        let token = token(Duration::from_secs(3600));
        let caller = reviews.authenticate(Some(&token)).await.expect("it is genuine");
        assert_eq!((&*caller.node, caller.pod.as_deref()), ("n1", Some("u1")));
        let mut taken_back = reviews.taken_back(&token);
        assert!(
            timeout(ASK_AGAIN * 3 / 2, &mut taken_back).await.is_err(),
            "it is still genuine, or nobody knows"
        );
        timeout(ASK_AGAIN * 6, &mut taken_back).await.expect("it is not any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_has_merely_expired_is_not_taken_back() {
        let reviews = reviews(server(Vec::new()));
        let token = token(Duration::ZERO);
        assert!(timeout(ASK_AGAIN * 100, reviews.taken_back(&token)).await.is_err(), "nobody is asked");
    }
}
