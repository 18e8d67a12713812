//! What a directory said and says: file contents in, object events and problems out.
//!
//! A file with a mistake keeps everything that it said before, until it is mended or removed. Owns no file system.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
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

/// What a directory said so far.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<PathBuf, File>,
    unlisted: Vec<FileProblem>,
    merged: BTreeMap<Key, Object>,
}

#[derive(Debug, Default)]
struct File {
    content: Option<u64>,
    objects: BTreeMap<Key, (Object, u64)>,
    problems: Vec<Problem>,
}

impl Files {
    /// Takes one look in, and says what is different since the last.
    pub fn update(&mut self, scan: Scan) -> Vec<Event> {
        let Scan { files, unlisted } = scan;
        let still_holds = |path: &Path| unlisted.iter().any(|(directory, _)| path.starts_with(directory));
        self.files.retain(|path, _| files.contains_key(path) || still_holds(path));
        for (path, read) in files {
            self.files.entry(path).or_default().update(read);
        }
        self.unlisted = unlisted.into_iter().map(|(path, error)| unlistable(path, &error)).collect();
        self.merge()
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
    fn update(&mut self, read: Result<String, String>) {
        let text = match read {
            Ok(text) => text,
            Err(error) => {
                self.content = None;
                self.problems =
                    vec![Problem::broken(1, 1, format!("{error}; what the file said before still holds"))];
                return;
            }
        };
        let content = BuildHasherDefault::<DefaultHasher>::default().hash_one(&text);
        if self.content.replace(content) == Some(content) {
            return;
        }
        let parsed = yaml::parse(&text);
        if !parsed.is_broken() {
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
    }
}

fn unlistable(path: PathBuf, error: &str) -> FileProblem {
    let message = format!("{error}; what the directory held before still holds");
    FileProblem { path, problem: Problem::broken(1, 1, message) }
}
