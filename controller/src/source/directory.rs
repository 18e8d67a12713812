//! Watches a directory of manifests and says what is different.
//!
//! Reads `*.yaml` and `*.yml` in it and below, following links but not hidden names (a mounted ConfigMap keeps its data
//! twice, once hidden). Changes are noticed at once and, as a safety net, by looking again from time to time.
//! What files mean is `files`' business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::Batch;
use super::files::{FileProblem, Files, Scan, Update, hash};
use super::kept::Kept;
use super::objects::Event;

/// Per file. A list of 10,000 pods is about that; beyond, someone pointed us at something else.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// Files that are read. All are read again on each look, which takes some tens of milliseconds for that many.
const MAX_FILES: usize = 10_000;

/// Directories below directories: enough for any layout, and an end for links that go round in circles.
const MAX_DEPTH: usize = 8;

/// After a file was closed, renamed or removed it is complete; its siblings may be about to follow.
const SETTLED: Duration = Duration::from_millis(5);

/// While a file is being written it is not worth reading.
const UNSETTLED: Duration = Duration::from_millis(100);

/// A writer that never pauses must not keep us from looking.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How often to look without having been told, for what notification misses: linked directories, network file systems.
const RESCAN: Duration = Duration::from_secs(5);

/// Looks at `directory` until the receiver of `out` is gone. Always sends a first batch, and then only differences. In
/// `copies` it keeps what each file said when it was last good.
pub async fn run(directory: PathBuf, copies: PathBuf, out: mpsc::Sender<Batch>) {
    let (noticed, mut notices) = watch::channel(Notice { count: 0, settled: true });
    // Held for as long as we run; without it the periodic look is all there is.
    let _watcher = match watch_for_changes(&directory, noticed.clone()) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, every = ?RESCAN,
                "changes are not notified, so the directory is read again and again; check fs.inotify limits");
            None
        }
    };
    let mut look = Look { directory, copies: Kept::new(copies), files: Files::default(), kept: None };
    let mut told: Option<Vec<FileProblem>> = None;
    loop {
        notices.mark_unchanged();
        let Ok((looked, events)) = tokio::task::spawn_blocking(move || look.again()).await else { return };
        look = looked;
        let problems = look.files.problems();
        if !events.is_empty() || told.as_ref() != Some(&problems) {
            told = Some(problems.clone());
            if out.send(Batch { events, problems, misunderstood: Vec::new() }).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = change(&mut notices) => {}
            () = tokio::time::sleep(RESCAN) => {}
            () = out.closed() => return,
        }
    }
}

/// What is carried from one look to the next.
struct Look {
    directory: PathBuf,
    copies: Kept,
    files: Files,
    /// What the copies say; `None` before the first look.
    kept: Option<BTreeMap<PathBuf, u64>>,
}

impl Look {
    /// Looks, and keeps copies of what is good.
    fn again(mut self) -> (Self, Vec<Event>) {
        let kept = self.kept.get_or_insert_with(|| {
            let copies = self.copies.load();
            copies.iter().for_each(|(path, text)| self.files.recall(path.clone(), text));
            copies.into_iter().map(|(path, text)| (path, hash(&text))).collect()
        });
        let scan = scan(&self.directory);
        let Update { events, good, gone } = self.files.update(&scan);
        for path in good {
            if let Some(Ok(text)) = scan.files.get(&path)
                && kept.insert(path.clone(), hash(text)) != Some(hash(text))
            {
                self.copies.save(&path, text);
            }
        }
        for path in gone {
            kept.remove(&path);
            self.copies.remove(&path);
        }
        (self, events)
    }
}

#[derive(Clone, Copy)]
struct Notice {
    count: u64,
    settled: bool,
}

/// Waits for a change, and then until it looks complete.
async fn change(notices: &mut watch::Receiver<Notice>) {
    // The sender lives as long as the caller's loop does.
    let _ = notices.changed().await;
    let latest = Instant::now() + LONGEST_WAIT;
    loop {
        let quiet = if notices.borrow_and_update().settled { SETTLED } else { UNSETTLED };
        let until = latest.min(Instant::now() + quiet);
        if timeout_at(until, notices.changed()).await.is_err() {
            return;
        }
    }
}

fn watch_for_changes(directory: &Path, noticed: watch::Sender<Notice>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let settled = match event.map(|event| event.kind) {
            Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) => true,
            // Our own reading.
            Ok(EventKind::Access(_)) => return,
            Ok(EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_)) => true,
            Ok(EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other) => false,
            // Something was lost: look.
            Err(_) => true,
        };
        noticed.send_modify(|notice| *notice = Notice { count: notice.count.wrapping_add(1), settled });
    })?;
    watcher.watch(directory, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Reads everything that there is to read.
fn scan(directory: &Path) -> Scan {
    let mut scan = Scan::default();
    visit(directory, &mut Vec::new(), &mut scan);
    scan
}

/// `above` holds the true paths of the directories on the way here.
fn visit(directory: &Path, above: &mut Vec<PathBuf>, scan: &mut Scan) {
    let listed = fs::canonicalize(directory).and_then(|real| Ok((real, list(directory)?)));
    let (real, entries) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            return scan.unlisted.push((directory.to_owned(), format!("can't list the directory: {error}")));
        }
    };
    if above.contains(&real) || above.len() == MAX_DEPTH {
        return;
    }
    above.push(real);
    for path in entries {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => visit(&path, above, scan),
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                let read = if scan.files.len() < MAX_FILES {
                    read(&path).map_err(|error| format!("can't read the file: {error}"))
                } else {
                    Err(format!("more than {MAX_FILES} files; put several objects into one"))
                };
                scan.files.insert(path, read);
            }
            Ok(_) => {}
            // Gone between listing and looking: it is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {}
            Err(error) if is_manifest(&path) => {
                scan.files.insert(path, Err(format!("can't read the file: {error}")));
            }
            Err(_) => {}
        }
    }
    above.pop();
}

fn list(directory: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut entries = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            entries.insert(entry.path());
        }
    }
    Ok(entries)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is longer than {} MiB; split it", MAX_FILE_BYTES >> 20)));
    }
    Ok(text)
}
