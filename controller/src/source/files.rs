//! What a directory said and says: file contents in, object events and problems out.
//!
//! A file with a mistake keeps everything that it said before, until it is mended or removed. Owns no file system.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::mem;
use std::path::{Path, PathBuf};

use super::objects::{Event, Key, Object};
use super::yaml::{self, Problem, Severity};

/// One look at a directory.
#[derive(Debug, Default)]
pub struct Scan {
    /// What each file held, or why it could not be read.
    pub files: BTreeMap<PathBuf, Result<String, String>>,
    /// Directories that could not be listed: what was in them before still holds.
    pub unlisted: Vec<(PathBuf, String)>,
}

/// A problem and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileProblem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong there.
    pub problem: Problem,
}

impl std::fmt::Display for FileProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.problem)
    }
}

/// What is different since the last look.
#[derive(Debug, Default, PartialEq)]
pub struct Update {
    /// Objects that are new, different or gone.
    pub events: Vec<Event>,
    /// Files that are new or different, and wholly understood.
    pub good: Vec<PathBuf>,
    /// Files that are not there any more.
    pub gone: Vec<PathBuf>,
}

/// What a directory said so far.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<PathBuf, File>,
    unlisted: Vec<FileProblem>,
    merged: BTreeMap<Key, Object>,
    /// Something was recalled that is not merged yet.
    recalled: bool,
}

/// What one look at a file found.
enum Look {
    /// The same content as before, or none to be had.
    Same,
    /// Another content, not wholly understood.
    Broken,
    /// Another content.
    Good,
}

#[derive(Debug, Default)]
struct File {
    content: Option<u64>,
    objects: BTreeMap<Key, (Object, u64)>,
    problems: Vec<Problem>,
}

impl Files {
    /// Before the first look: what a file said when it was last good, in case it is not good now.
    pub fn recall(&mut self, path: PathBuf, text: &str) {
        let file = self.files.entry(path).or_default();
        file.update(Ok(text));
        file.content = None;
        self.recalled = true;
    }

    /// Takes one look in, and says what is different since the last.
    pub fn update(&mut self, scan: &Scan) -> Update {
        let Scan { files, unlisted } = scan;
        let still_holds = |path: &Path| unlisted.iter().any(|(directory, _)| path.starts_with(directory));
        let gone = self.files.extract_if(.., |path, _| !files.contains_key(path) && !still_holds(path));
        let gone: Vec<_> = gone.map(|(path, _)| path).collect();
        let mut good = Vec::new();
        let mut different = mem::take(&mut self.recalled) || !gone.is_empty();
        for (path, read) in files {
            let file = self.files.entry(path.clone()).or_default();
            match file.update(read.as_deref().map_err(String::as_str)) {
                Look::Same => {}
                Look::Broken => different = true,
                Look::Good => {
                    different = true;
                    good.push(path.clone());
                }
            }
        }
        self.unlisted = unlisted.iter().map(|(path, error)| unlistable(path.clone(), error)).collect();
        Update { events: if different { self.merge() } else { Vec::new() }, good, gone }
    }

    /// Everything that is wrong, in the order of files and lines.
    #[must_use]
    pub fn problems(&self) -> Vec<FileProblem> {
        let of = |path: &PathBuf, problem: Problem| FileProblem { path: path.clone(), problem };
        let mut problems = self.unlisted.clone();
        let mut owners: BTreeMap<&Key, (&PathBuf, u64)> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().map(|problem| of(path, problem.clone())));
            for (key, (_, line)) in &file.objects {
                if let Some((owner, at)) = owners.get(key) {
                    let message = format!(
                        "{key} is also defined in {}:{at}, which comes first and counts; remove one",
                        owner.display()
                    );
                    problems.push(of(
                        path,
                        Problem { line: *line, column: 1, severity: Severity::Ignored, message },
                    ));
                } else {
                    owners.insert(key, (path, *line));
                }
            }
        }
        problems.sort();
        problems
    }

    /// Of objects that several files define, the first file's counts.
    fn merge(&mut self) -> Vec<Event> {
        let mut merged: BTreeMap<Key, Object> = BTreeMap::new();
        for (key, (object, _)) in self.files.values().flat_map(|file| &file.objects) {
            merged.entry(key.clone()).or_insert_with(|| object.clone());
        }
        let gone = self.merged.keys().filter(|key| !merged.contains_key(*key));
        let mut events: Vec<_> = gone.cloned().map(Event::Delete).collect();
        let new = merged.iter().filter(|(key, object)| self.merged.get(*key) != Some(*object));
        events.extend(new.map(|(_, object)| Event::Upsert(object.clone())));
        self.merged = merged;
        events
    }
}

impl File {
    fn update(&mut self, read: Result<&str, &str>) -> Look {
        let text = match read {
            Ok(text) => text,
            Err(error) => {
                self.content = None;
                self.problems =
                    vec![Problem::broken(1, 1, format!("{error}; what the file said before still holds"))];
                return Look::Same;
            }
        };
        let content = hash(text);
        if self.content.replace(content) == Some(content) {
            return Look::Same;
        }
        let parsed = yaml::parse(text);
        let good = !parsed.is_broken();
        if good {
            self.objects.clear();
        }
        self.problems = parsed.problems;
        let mut seen: BTreeMap<Key, u64> = BTreeMap::new();
        for (object, line) in parsed.objects {
            let key = object.key();
            if let Some(first) = seen.get(&key) {
                let message = format!("{key} is also defined on line {first}, which counts; remove one");
                self.problems.push(Problem { line, column: 1, severity: Severity::Ignored, message });
                continue;
            }
            seen.insert(key.clone(), line);
            self.objects.insert(key, (object, line));
        }
        if good { Look::Good } else { Look::Broken }
    }
}

/// Tells contents apart; the same in every process of this build.
pub(crate) fn hash(text: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(text)
}

fn unlistable(path: PathBuf, error: &str) -> FileProblem {
    let message = format!("{error}; what the directory held before still holds");
    FileProblem { path, problem: Problem::broken(1, 1, message) }
}
