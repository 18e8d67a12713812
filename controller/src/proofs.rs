//! Proofs of enrolment on disk, so that a restart tells no peer to fall back to plaintext.
//!
//! The file is replaced whole or not at all. Owns no decision about what counts as proven.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::index::Proven;

const FILE: &str = "enrolled.json";

/// Raised when the file's meaning changes.
const VERSION: u32 = 1;

/// Why proofs can't be kept or restored.
#[derive(Debug, thiserror::Error)]
pub enum ProofsError {
    /// The file is there and is not what we wrote.
    #[error(
        "{path} is damaged ({reason}); restore it, or remove it: then peers are told to use plaintext until every node has \
         reported again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// Pod uid to the node that proved it.
    enrolled: BTreeMap<String, String>,
}

/// Where proofs are kept.
#[derive(Clone, Debug)]
pub struct Proofs {
    directory: PathBuf,
}

impl Proofs {
    /// Proofs kept in `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// What was kept; nothing, if nothing ever was.
    ///
    /// # Errors
    /// When the file can't be read or understood: starting without it would downgrade peers in silence.
    pub fn load(&self) -> Result<Proven, ProofsError> {
        let path = self.directory.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Proven::default()),
            Err(error) => return Err(ProofsError::Io { action: "read", path, error }),
        };
        let damaged = |reason: String| ProofsError::Damaged { path: path.clone(), reason };
        let Stored { version, enrolled } =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if version != VERSION {
            return Err(damaged(format!("its version is {version}, this program knows {VERSION}")));
        }
        Ok(Proven::restore(enrolled.into_iter().map(|(uid, node)| (uid.into(), node.into()))))
    }

    /// Keeps `proven`. Blocks until it is on disk.
    ///
    /// # Errors
    /// When it is not kept; what was kept before still is.
    pub fn save(&self, proven: &Proven) -> Result<(), ProofsError> {
        let text = |(uid, node): (&model::Str, &model::Str)| (uid.to_string(), node.to_string());
        let stored = Stored { version: VERSION, enrolled: proven.entries().map(text).collect() };
        let (path, new) = (self.directory.join(FILE), self.directory.join(format!(".{FILE}.new")));
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error| ProofsError::Io { action, path, error }
        };
        let mut file = File::create(&new).map_err(failed("create", &new))?;
        let bytes = serde_json::to_vec(&stored).map_err(io::Error::from).map_err(failed("encode", &new))?;
        file.write_all(&bytes).map_err(failed("write", &new))?;
        file.sync_all().map_err(failed("sync", &new))?;
        fs::rename(&new, &path).map_err(failed("replace", &path))?;
        // The rename itself must survive a power failure.
        let directory = File::open(&self.directory).map_err(failed("open", &self.directory))?;
        directory.sync_all().map_err(failed("sync", &self.directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let proofs = Proofs::new(directory.path());
        assert_eq!(proofs.load().expect("nothing was kept"), Proven::default());
        for kept in [vec![("u1", "n1"), ("u2", "n2")], vec![("u2", "n2")], vec![]] {
            let proven = Proven::restore(kept.into_iter().map(|(uid, node)| (uid.into(), node.into())));
            proofs.save(&proven).expect("writable");
            assert_eq!(proofs.load().expect("just kept"), proven);
        }
    }

    #[test]
    fn damage_is_an_error_that_says_what_to_do() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let proofs = Proofs::new(directory.path());
        for text in ["", "{", "{\"version\":2,\"enrolled\":{}}", "{\"version\":1,\"enrolled\":{},\"more\":1}"]
        {
            fs::write(directory.path().join(FILE), text).expect("writable");
            let error = proofs.load().expect_err("damaged").to_string();
            assert!(error.contains("damaged") && error.contains("plaintext"), "{error}");
        }
    }
}
