//! Copies of files as they were when they were last good, so that a mistake made now and a restart later do not together
//! take policies away.
//!
//! Best effort: a copy that can't be written or read is a line in the log. Owns no meaning of a file.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The copies of one directory.
#[derive(Debug)]
pub(crate) struct Kept {
    directory: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Copy {
    path: PathBuf,
    text: String,
}

impl Kept {
    /// Copies in `directory`, which is made when it is needed.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// All copies.
    pub(crate) fn load(&self) -> BTreeMap<PathBuf, String> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
            Err(error) => {
                tracing::warn!(directory = %self.directory.display(), %error, "copies of manifests can't be read");
                return BTreeMap::new();
            }
        };
        let mut copies = BTreeMap::new();
        for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|it| it == "json"))
        {
            let copy = fs::read(entry.path()).and_then(|bytes| Ok(serde_json::from_slice::<Copy>(&bytes)?));
            match copy {
                Ok(Copy { path, text }) => drop(copies.insert(path, text)),
                Err(error) => {
                    tracing::warn!(copy = %entry.path().display(), %error, "a copy of a manifest can't be read")
                }
            }
        }
        copies
    }

    /// Keeps `text` as what `path` said.
    pub(crate) fn save(&self, path: &Path, text: &str) {
        let saved = || {
            fs::create_dir_all(&self.directory)?;
            let copy = self.copy_of(path);
            let beside = copy.with_extension("new");
            fs::write(&beside, serde_json::to_vec(&Copy { path: path.to_owned(), text: text.to_owned() })?)?;
            fs::rename(beside, copy)
        };
        if let Err(error) = saved() {
            tracing::warn!(manifest = %path.display(), %error, "no copy of a good manifest could be kept");
        }
    }

    /// Forgets what `path` said.
    pub(crate) fn remove(&self, path: &Path) {
        match fs::remove_file(self.copy_of(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(manifest = %path.display(), %error, "the copy of a manifest that is gone stays");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn copy_of(&self, path: &Path) -> PathBuf {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(path);
        self.directory.join(format!("{hash:016x}.json"))
    }
}
