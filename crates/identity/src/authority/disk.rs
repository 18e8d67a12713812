//! The authority's directory: one state file with the private keys, one file with the public roots, one lock.
//!
//! A file is replaced whole or not at all, also when the power fails. Keys that others can read are refused.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const STATE: &str = "authority.json";
const ROOTS: &str = "roots.pem";
const LOCK: &str = "lock";

/// The largest state file that is read: eight roots with their keys have about 16 KiB.
const MAX_STATE: u64 = 1 << 20;

/// Why the authority's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read the keys.
    #[error(
        "{path} has mode {mode:04o}, so others than its owner can reach the private keys in it; run: chmod go= {path}"
    )]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The keys are gone, but a root was published.
    #[error(
        "{state} is missing although {roots} shows that there was a root; restore it from a backup. Only if the old \
             root may be forgotten by everyone, remove the whole directory to start with a new one"
    )]
    KeysMissing {
        /// The file that is missing.
        state: PathBuf,
        /// The file that is there.
        roots: PathBuf,
    },
    /// Several processes share the state, so that this one alone must not change it.
    #[error("the authority's state is shared; whoever stores it has to store a step before it is taken")]
    Shared,
    /// The file is larger than any we write.
    #[error("{0} is too large to be the authority's state")]
    TooLarge(PathBuf),
    /// Another process has it open.
    #[error(
        "another process uses the authority in {0}; two signers with one state would lose each other's roots"
    )]
    InUse(PathBuf),
}

/// An open, locked directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// The lock is released when this closes, also by a crash.
    _lock: File,
}

impl Directory {
    /// Opens `path`, makes it if it is missing (mode 0700), and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("create the directory", path))?;
        let lock = path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(failed("open", &lock))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: file }),
            Err(TryLockError::WouldBlock) => Err(StorageError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed("lock", &lock)(source)),
        }
    }

    /// Where the state is.
    pub(super) fn state_file(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// The stored state, or `None` if this directory never had one.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, StorageError> {
        let path = self.state_file();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.never_had_one(path),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        // Of the open file, so that what was checked is what is read.
        let metadata = file.metadata().map_err(failed("examine", &path))?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StorageError::Readable { path, mode });
        }
        let mut bytes = Vec::new();
        let read = file.take(MAX_STATE + 1).read_to_end(&mut bytes).map_err(failed("read", &path))?;
        if read as u64 > MAX_STATE { Err(StorageError::TooLarge(path)) } else { Ok(Some(bytes)) }
    }

    /// Stores the state.
    pub(super) fn write(&self, state: &[u8]) -> Result<(), StorageError> {
        self.replace(STATE, state, 0o600)
    }

    /// Writes the public roots, unless they are there already.
    pub(super) fn publish_roots(&self, roots_pem: &str) -> Result<(), StorageError> {
        match fs::read(self.path.join(ROOTS)) {
            Ok(there) if there == roots_pem.as_bytes() => Ok(()),
            Ok(_) | Err(_) => self.replace(ROOTS, roots_pem.as_bytes(), 0o644),
        }
    }

    fn never_had_one(&self, state: PathBuf) -> Result<Option<Vec<u8>>, StorageError> {
        let roots = self.path.join(ROOTS);
        match roots.try_exists().map_err(failed("examine", &roots))? {
            true => Err(StorageError::KeysMissing { state, roots }),
            false => Ok(None),
        }
    }

    /// Writes beside, syncs, renames, syncs the directory: a reader sees the old or the new file, a crash leaves one.
    fn replace(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), StorageError> {
        let beside = self.path.join(format!(".{name}.new"));
        let path = self.path.join(name);
        // Left by a crash. We hold the lock, so nobody else is writing it.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &beside)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&beside)
            .map_err(failed("create", &beside))?;
        // The umask only takes away; whoever should read the roots can.
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", &beside))?;
        file.write_all(bytes).map_err(failed("write", &beside))?;
        file.sync_all().map_err(failed("sync", &beside))?;
        fs::rename(&beside, &path).map_err(failed("replace", &path))?;
        let directory = File::open(&self.path).map_err(failed("open", &self.path))?;
        directory.sync_all().map_err(failed("sync", &self.path))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io { action, path, source }
}
