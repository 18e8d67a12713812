//! A directory of manifests, edited in every way that people and tools edit them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use controller::source::objects::Event;
use controller::source::{Batch, directory};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a change may take to be noticed on a busy machine: longer than the periodic look.
const DEADLINE: Duration = Duration::from_secs(20);

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n")
}

/// A directory that is watched, and what a reader of events holds.
struct Watched {
    directory: TempDir,
    copies: TempDir,
    batches: mpsc::Receiver<Batch>,
    held: Vec<String>,
    problems: Vec<String>,
}

impl Watched {
    async fn new(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("writable");
        }
        Self::over(directory, TempDir::new().expect("a temporary directory")).await
    }

    async fn over(directory: TempDir, copies: TempDir) -> Self {
        let (out, batches) = mpsc::channel(1);
        tokio::spawn(directory::run(directory.path().to_owned(), copies.path().to_owned(), out));
        let mut watched = Self { directory, copies, batches, held: Vec::new(), problems: Vec::new() };
        watched.next().await;
        watched
    }

    /// As a new process, which knows nothing but the directories.
    async fn restarted(self) -> Self {
        let Self { directory, copies, .. } = self;
        Self::over(directory, copies).await
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).expect("writable");
    }

    async fn next(&mut self) {
        let batch = timeout(DEADLINE, self.batches.recv()).await;
        let Batch { events, problems, .. } =
            batch.expect("a change is noticed in time").expect("the watcher runs");
        for event in events {
            match event {
                Event::Upsert(object) => {
                    let name = object.metadata().name.clone();
                    self.held.retain(|held| *held != name);
                    self.held.push(name);
                }
                Event::Delete(key) => self.held.retain(|held| *held != key.name),
            }
        }
        self.held.sort();
        let prefix = format!("{}/", self.path().display());
        self.problems = problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect();
    }

    /// Waits until the reader holds exactly this and the problems begin so.
    async fn until(&mut self, held: &[&str], problems: &[&str]) {
        let good = |this: &Self| {
            this.held == held
                && this.problems.len() == problems.len()
                && this.problems.iter().zip(problems).all(|(said, expected)| said.contains(expected))
        };
        while !good(self) {
            let before =
                format!("{:?} with {:#?}, not yet {held:?} with {problems:?}", self.held, self.problems);
            timeout(DEADLINE, self.next()).await.unwrap_or_else(|_| panic!("still {before}"));
        }
    }
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut watched = Watched::new(&[("a.yaml", &node("a")), ("notes.txt", "kind: [")]).await;
    watched.until(&["a"], &[]).await;
    watched.write("b.yml", &node("b"));
    watched.until(&["a", "b"], &[]).await;
    watched.write("a.yaml", &format!("{}{}", node("a"), node("a2")));
    watched.until(&["a", "a2", "b"], &[]).await;
    fs::rename(watched.path().join("b.yml"), watched.path().join("b.yml.off")).expect("renamable");
    watched.until(&["a", "a2"], &[]).await;
    fs::remove_file(watched.path().join("a.yaml")).expect("removable");
    watched.until(&[], &[]).await;
}

#[tokio::test]
async fn an_empty_directory_is_a_complete_answer() {
    let watched = Watched::new(&[]).await;
    assert!(watched.held.is_empty() && watched.problems.is_empty());
}

#[tokio::test]
async fn a_mistake_keeps_what_was_and_says_where() {
    let mut watched =
        Watched::new(&[("a.yaml", &format!("{}{}", node("a"), node("b"))), ("c.yaml", &node("c"))]).await;
    watched.until(&["a", "b", "c"], &[]).await;
    // The second document breaks, the first is replaced: nothing of the file is taken away.
    watched.write("a.yaml", &format!("{}kind: Node\nmetadata: [\n", node("a3")));
    watched.until(&["a", "a3", "b", "c"], &["a.yaml:6:"]).await;
    fs::remove_file(watched.path().join("c.yaml")).expect("removable");
    watched.until(&["a", "a3", "b"], &["a.yaml:6:"]).await;
    watched.write("a.yaml", &node("a3"));
    watched.until(&["a3"], &[]).await;
    watched.write("a.yaml", "kind: [");
    watched.until(&["a3"], &["a.yaml:1:"]).await;
    fs::remove_file(watched.path().join("a.yaml")).expect("removable");
    watched.until(&[], &[]).await;
}

#[tokio::test]
async fn a_mistake_and_a_restart_keep_what_was() {
    let mut watched =
        Watched::new(&[("a.yaml", &node("a")), ("b.yaml", &node("b")), ("c.yaml", &node("c"))]).await;
    watched.until(&["a", "b", "c"], &[]).await;
    watched.write("a.yaml", "kind: [");
    watched.until(&["a", "b", "c"], &["a.yaml:1:"]).await;
    fs::remove_file(watched.path().join("b.yaml")).expect("removable");
    watched.write("c.yaml", &node("c2"));
    watched.until(&["a", "c2"], &["a.yaml:1:"]).await;
    let mut watched = watched.restarted().await;
    watched.until(&["a", "c2"], &["a.yaml:1:"]).await;
    watched.write("a.yaml", &node("a3"));
    watched.until(&["a3", "c2"], &[]).await;
    fs::write(watched.path().join("c.yaml"), b"kind: \xff\xfe").expect("writable");
    watched.until(&["a3", "c2"], &["can't read the file"]).await;
    let mut watched = watched.restarted().await;
    watched.until(&["a3", "c2"], &["can't read the file"]).await;
    fs::remove_file(watched.path().join("a.yaml")).expect("removable");
    watched.until(&["c2"], &["can't read the file"]).await;
}

#[tokio::test]
async fn an_unreadable_file_keeps_what_was() {
    let mut watched = Watched::new(&[("a.yaml", &node("a"))]).await;
    fs::write(watched.path().join("a.yaml"), b"kind: \xff\xfe").expect("writable");
    watched.until(&["a"], &["can't read the file"]).await;
    watched.write("a.yaml", &node("b"));
    watched.until(&["b"], &[]).await;
}

#[tokio::test]
async fn one_object_in_two_files() {
    let mut watched = Watched::new(&[("a.yaml", &node("n")), ("b.yaml", &node("n"))]).await;
    watched.until(&["n"], &["b.yaml:1:1: Node n is also defined in"]).await;
    fs::remove_file(watched.path().join("a.yaml")).expect("removable");
    watched.until(&["n"], &[]).await;
    watched.write("b.yaml", &format!("{0}{0}", node("n")));
    watched.until(&["n"], &["b.yaml:5:1: Node n is also defined on line 1"]).await;
}

#[tokio::test]
async fn directories_below_and_hidden_names() {
    let mut watched = Watched::new(&[(".hidden.yaml", &node("hidden"))]).await;
    let below = watched.path().join("team/x");
    fs::create_dir_all(&below).expect("creatable");
    fs::write(below.join("a.yaml"), node("a")).expect("writable");
    watched.until(&["a"], &[]).await;
    symlink(watched.path(), below.join("round")).expect("linkable");
    fs::write(below.join("b.yaml"), node("b")).expect("writable");
    watched.until(&["a", "b"], &[]).await;
    fs::remove_dir_all(watched.path().join("team")).expect("removable");
    watched.until(&[], &[]).await;
}

/// What the kubelet does when a mounted ConfigMap changes.
#[tokio::test]
async fn links_that_are_swapped() {
    let directory = TempDir::new().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("..1")).expect("creatable");
    fs::write(at("..1/a.yaml"), node("one")).expect("writable");
    symlink("..1", at("..data")).expect("linkable");
    symlink("..data/a.yaml", at("a.yaml")).expect("linkable");
    let root = directory.path().to_owned();
    let mut watched = Watched::over(directory, TempDir::new().expect("a temporary directory")).await;
    watched.until(&["one"], &[]).await;
    fs::create_dir(root.join("..2")).expect("creatable");
    fs::write(root.join("..2/a.yaml"), node("two")).expect("writable");
    symlink("..2", root.join("..new")).expect("linkable");
    fs::rename(root.join("..new"), root.join("..data")).expect("renamable");
    fs::remove_dir_all(root.join("..1")).expect("removable");
    watched.until(&["two"], &[]).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_takes_nothing_with_it() {
    let mut watched = Watched::new(&[("a.yaml", &node("a"))]).await;
    let (here, there) = (watched.path().to_owned(), watched.path().with_extension("moved"));
    fs::rename(&here, &there).expect("renamable");
    watched.until(&["a"], &["can't list the directory"]).await;
    fs::rename(&there, &here).expect("renamable");
    watched.until(&["a"], &[]).await;
}
