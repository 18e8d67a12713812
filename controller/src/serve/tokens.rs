//! Who calls: the proof that a node or a waypoint presents, and join tokens as the proof outside Kubernetes.
//!
//! Who it is comes from the proof alone; what a request says about itself counts for nothing.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use identity::BoxFuture;
use model::Str;
use model::identity::Identity;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::published::Published;
use super::token_review::NotReviewed;

/// Fewer bytes can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Longer than any token that there is; a projected service account token has about 1 KiB.
pub(super) const MAX_TOKEN_BYTES: u64 = 8 << 10;

/// Nodes that can have a token: more than a mesh without Kubernetes will see. Each costs a comparison per call.
const MAX_TOKENS: usize = 4096;

/// A token that was taken away is refused after at most this long.
const REREAD: Duration = Duration::from_secs(1);

/// Between two looks at whether the token of an open session is still there: what taking it away ends ends within this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A program that proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of the node that it runs on, as in `spec.nodeName` of its pods.
    pub node: Str,
    /// The uid of the pod that the proof is bound to, where it is bound to one.
    pub pod: Option<Str>,
    /// What it is.
    pub role: Role,
}

/// What a caller is, and so what it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node's proxy: it speaks for every pod of the node whose traffic it carries.
    Node,
    /// A waypoint: it speaks for itself.
    Waypoint(Identity),
}

impl Caller {
    /// What its calls are counted under: a waypoint can't use its node's allowance up.
    #[must_use]
    pub fn counted(&self) -> &Str {
        match (&self.role, &self.pod) {
            (Role::Waypoint(_), Some(pod)) => pod,
            (Role::Node | Role::Waypoint(_), _) => &self.node,
        }
    }
}

/// Why a caller is not believed. For the log; the caller is told nothing.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// Nothing was presented.
    #[error("no bearer token in the authorization header")]
    NoToken,
    /// The API server was asked about it, or need not be.
    #[error(transparent)]
    Reviewed(#[from] NotReviewed),
    /// It was presented and is not one of ours.
    #[error("the token is not one of those in {0}; is the node's token file up to date?")]
    UnknownToken(PathBuf),
    /// It is one of ours, and of no waypoint's pod that lives.
    #[error(
        "the token is that of {0}, and no pod of that name is a waypoint's; see docs/reference/controller.md"
    )]
    NoWaypoint(Str),
    /// Nothing can be compared with.
    #[error("the join tokens in {path} can't be read: {error}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl NotProven {
    /// Whether that is nobody's fault, so that the caller is to try again with the same proof.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        matches!(self, Self::Reviewed(NotReviewed::Unavailable(_)))
    }
}

/// Checks a caller's proof.
pub trait Authenticator: Send + Sync + 'static {
    /// Who presents `bearer`, the value of its authorization header without the scheme.
    fn authenticate<'a>(&'a self, bearer: Option<&'a str>) -> BoxFuture<'a, Result<Caller, NotProven>>;

    /// Resolves when a proof that was believed is known to have been taken back, which ends what it opened. One that has
    /// merely expired is not taken back; nor is one of which nothing can be learnt now. Never, where nobody can take any back.
    fn taken_back<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, ()> {
        let _ = bearer;
        Box::pin(std::future::pending())
    }
}

/// Join tokens: a directory with one file for each node, named like the node and holding its token; for a pod of a waypoint
/// named `<namespace>:<pod>`, which is no node's name.
#[derive(Debug)]
pub struct JoinTokens {
    directory: PathBuf,
    published: Published,
    read: Mutex<Option<(Instant, Arc<Tokens>)>>,
}

/// Digests, so that comparing takes the same time whatever the tokens have in common.
type Tokens = Vec<(Str, Digest)>;

impl JoinTokens {
    /// The tokens of `directory`, which is read when someone calls. `published` says which pods are waypoints'.
    #[must_use]
    pub fn new(directory: PathBuf, published: Published) -> Self {
        Self { directory, published, read: Mutex::new(None) }
    }

    /// Whom the token of that file is for.
    fn caller(&self, name: Str) -> Result<Caller, NotProven> {
        let Some((namespace, pod)) = name.split_once(':') else {
            return Ok(Caller { node: name, pod: None, role: Role::Node });
        };
        let now = self.published.now();
        let mut waypoints = now.waypoints();
        let found = waypoints.find(|it| *it.identity.namespace == *namespace && *it.name == *pod);
        let found = found.ok_or_else(|| NotProven::NoWaypoint(name.clone()))?;
        let role = Role::Waypoint(found.identity.clone());
        Ok(Caller { node: found.node.clone(), pod: Some(found.uid.clone()), role })
    }

    async fn tokens(&self) -> io::Result<Arc<Tokens>> {
        let mut held = self.read.lock().await;
        if let Some((at, tokens)) = &*held
            && at.elapsed() < REREAD
        {
            return Ok(tokens.clone());
        }
        let directory = self.directory.clone();
        let tokens =
            tokio::task::spawn_blocking(move || read(&directory)).await.map_err(io::Error::other)??;
        let tokens = Arc::new(tokens);
        *held = Some((Instant::now(), tokens.clone()));
        Ok(tokens)
    }
}

impl Authenticator for JoinTokens {
    fn authenticate<'a>(&'a self, bearer: Option<&'a str>) -> BoxFuture<'a, Result<Caller, NotProven>> {
        Box::pin(async move {
            let presented = digest(&SHA256, bearer.ok_or(NotProven::NoToken)?.as_bytes());
            let unreadable = |error| NotProven::Unreadable { path: self.directory.clone(), error };
            let tokens = self.tokens().await.map_err(unreadable)?;
            // All are compared, whichever it is.
            let matching = tokens.iter().fold(None, |found, (node, token)| {
                let equal = verify_slices_are_equal(token.as_ref(), presented.as_ref()).is_ok();
                if equal { Some(node.clone()) } else { found }
            });
            let unknown = || NotProven::UnknownToken(self.directory.clone());
            self.caller(matching.ok_or_else(unknown)?)
        })
    }

    fn taken_back<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            while !matches!(self.authenticate(Some(bearer)).await, Err(NotProven::UnknownToken(_))) {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        })
    }
}

fn read(directory: &Path) -> io::Result<Tokens> {
    let listed = which(directory)?;
    let mut tokens: Tokens = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(node) = entry.file_name().into_string() else { continue };
        // Hidden names are how mounted Secrets and editors keep their own things.
        if node.starts_with('.') || !fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        if tokens.len() == MAX_TOKENS {
            tracing::warn!(directory = %directory.display(), limit = MAX_TOKENS, "too many join tokens; the rest is unused");
            break;
        }
        match token(&entry.path()) {
            Ok(token) => tokens.push((node.into(), token)),
            Err(error) => tracing::warn!(%node, %error, "a join token can't be used"),
        }
    }
    // Files that were not found because their directory had been moved were not taken away.
    if which(directory)? != listed {
        return Err(io::Error::other("the directory was replaced while it was read"));
    }
    Ok(without_twins(tokens))
}

/// Which directory it is that has this path now.
fn which(directory: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(directory).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn token(path: &Path) -> io::Result<Digest> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_TOKEN_BYTES).read_to_string(&mut text)?;
    let token = text.trim();
    if token.len() < MIN_TOKEN_BYTES {
        let message =
            format!("it is shorter than {MIN_TOKEN_BYTES} bytes and could be guessed; write a random one");
        return Err(io::Error::other(message));
    }
    Ok(digest(&SHA256, token.as_bytes()))
}

/// A token that two nodes share says nothing about which of them calls.
fn without_twins(tokens: Tokens) -> Tokens {
    let same = |(_, a): &(Str, Digest), (_, b): &(Str, Digest)| a.as_ref() == b.as_ref();
    let (alone, shared): (Vec<_>, Vec<_>) =
        tokens.iter().partition(|token| tokens.iter().filter(|other| same(token, other)).count() == 1);
    for (node, _) in shared {
        tracing::warn!(%node, "the node's join token is also another node's, so neither is accepted; make each its own");
    }
    alone.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::published::Publisher;
    use super::*;

    const ONE: &str = "0123456789abcdef-one";
    const TWO: &str = "0123456789abcdef-two";

    async fn node(tokens: &JoinTokens, bearer: Option<&str>) -> Option<String> {
        tokens.authenticate(bearer).await.ok().map(|caller| caller.node.to_string())
    }

    fn tokens_of(directory: &tempfile::TempDir) -> JoinTokens {
        JoinTokens::new(directory.path().to_owned(), Publisher::new().1)
    }

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("writable");
        }
        directory
    }

    #[tokio::test]
    async fn a_token_names_its_node() {
        let directory = directory(&[
            ("n1", ONE),
            ("n2", &format!("{TWO}\n")),
            (".hidden", "0123456789abcdef-hid"),
            ("weak", "x"),
        ]);
        let tokens = tokens_of(&directory);
        assert_eq!(node(&tokens, Some(ONE)).await.as_deref(), Some("n1"));
        assert_eq!(node(&tokens, Some(TWO)).await.as_deref(), Some("n2"));
        for bad in ["", "x", "0123456789abcdef-hid", "0123456789abcdef-on", "0123456789abcdef-one "] {
            assert_eq!(node(&tokens, Some(bad)).await, None, "{bad:?}");
        }
        assert_eq!(node(&tokens, None).await, None);
    }

    #[tokio::test]
    async fn a_shared_token_names_nobody() {
        let directory = directory(&[("n1", ONE), ("n2", ONE), ("n3", TWO)]);
        let tokens = tokens_of(&directory);
        assert_eq!(node(&tokens, Some(ONE)).await, None);
        assert_eq!(node(&tokens, Some(TWO)).await.as_deref(), Some("n3"));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_read_again() {
        let directory = directory(&[("n1", ONE)]);
        let tokens = tokens_of(&directory);
        assert_eq!(node(&tokens, Some(ONE)).await.as_deref(), Some("n1"));
        fs::write(directory.path().join("n1"), TWO).expect("writable");
        tokio::time::advance(REREAD).await;
        assert_eq!(node(&tokens, Some(ONE)).await, None);
        assert_eq!(node(&tokens, Some(TWO)).await.as_deref(), Some("n1"));
        drop(directory);
        tokio::time::advance(REREAD).await;
        assert_eq!(node(&tokens, Some(TWO)).await, None, "nothing to compare with: refused");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_taken_back_by_removing_it_and_not_by_failing_to_read_it() {
        let directory = directory(&[("n1", ONE), ("n2", TWO)]);
        let tokens = tokens_of(&directory);
        let mut taken_back = tokens.taken_back(ONE);
        let for_a_while = Duration::from_secs(60);
        assert!(tokio::time::timeout(for_a_while, &mut taken_back).await.is_err(), "it is there");
        let away = directory.path().with_extension("away");
        fs::rename(directory.path(), &away).expect("renamable");
        assert!(tokio::time::timeout(for_a_while, &mut taken_back).await.is_err(), "nobody knows");
        fs::rename(&away, directory.path()).expect("renamable");
        fs::remove_file(directory.path().join("n1")).expect("removable");
        // The look that is due at just this moment still has to read the directory.
        tokio::time::timeout(ASK_AGAIN + REREAD, &mut taken_back).await.expect("it is gone");
    }
}
