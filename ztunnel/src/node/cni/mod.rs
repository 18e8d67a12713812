//! Keeps the CNI plugin installed on the node: its program, and a network configuration that ends with it.
//!
//! The configuration that another network plugin wrote stays as it is. Ours, with the same content and one plugin more,
//! stands before it, so nobody who rewrites theirs takes us out, and a node that restarts starts no pod without us. It is
//! made anew whenever theirs changes, and goes when theirs goes. What it holds is `conflist`'s.

mod conflist;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::readiness::Latch;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::report::Reports;
use crate::config::CniConfig;

/// The plugin's name, of its program and in network configurations.
pub(crate) const PLUGIN: &str = "ztunnel-cni";

/// How often the node is looked at though nothing was noticed.
const LOOK: Duration = Duration::from_secs(10);
/// Between two looks, so that somebody who keeps rewriting costs us nothing.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the plugin can't be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// There is nothing to chain it to.
    #[error("{0} has no network configuration yet; waiting for the cluster's network plugin to write one")]
    NoNetwork(PathBuf),
    /// What is there can't be chained to.
    #[error("{path}: {why}")]
    Unusable {
        /// The configuration that container runtimes take.
        path: PathBuf,
        /// What is wrong with it.
        why: conflist::Unusable,
    },
    /// Reading or writing failed.
    #[error("{path}: {error}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Installs the plugin and keeps it installed.
#[derive(Debug)]
pub(crate) struct Installer {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    program: PathBuf,
    entry: Value,
}

impl Installer {
    /// `run_dir` must have the same path on the host. `program` is what is copied.
    pub(crate) fn new(config: &CniConfig, run_dir: &Path, program: PathBuf) -> Self {
        let entry = json!({"type": PLUGIN, "runDir": run_dir, "alwaysStart": config.always_start});
        Self { conf_dir: config.conf_dir.clone(), bin_dir: config.bin_dir.clone(), program, entry }
    }

    /// Works until dropped, whenever this process is in charge of the node: before that it could not answer the plugin, and
    /// a ztunnel that can't be in charge must not keep pods from starting. `latch` is released when the plugin is installed.
    pub(crate) async fn run(self, mut reports: watch::Receiver<Reports>, latch: Latch) {
        let mut latch = Some(latch);
        let noticed = Arc::new(Notify::new());
        let _watcher = self.watch(&noticed).inspect_err(
            |error| tracing::warn!(%error, "changes of network configurations are noticed late"),
        );
        let (mut copied, mut problem) = (false, String::new());
        loop {
            if reports.wait_for(Option::is_some).await.is_err() {
                return;
            }
            match self.look(!copied) {
                Ok(changed) => {
                    copied = true;
                    drop(latch.take());
                    problem.clear();
                    if changed {
                        tracing::info!(folder = %self.conf_dir.display(), "the CNI plugin is installed");
                    }
                }
                Err(error) => {
                    let now = error.to_string();
                    if now != problem {
                        tracing::warn!(error = %now, "the CNI plugin can't be installed: pods may start outside the mesh");
                    }
                    problem = now;
                }
            }
            tokio::time::sleep(PAUSE).await;
            // Either is a reason to look.
            let _ = tokio::time::timeout(LOOK, noticed.notified()).await;
        }
    }

    fn watch(&self, noticed: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
        let noticed = Arc::clone(noticed);
        let mut watcher = notify::recommended_watcher(move |_| noticed.notify_one())?;
        watcher.watch(&self.conf_dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Makes the node what it should be; says whether it was not.
    fn look(&self, renew_program: bool) -> Result<bool, InstallError> {
        let target = self.bin_dir.join(PLUGIN);
        if renew_program || !target.exists() {
            let program = fs::read(&self.program).map_err(at(&self.program))?;
            if fs::read(&target).ok().as_deref() != Some(&program) {
                replace(&target, &program, 0o755)?;
            }
        }
        let names = names(&self.conf_dir)?;
        let base = conflist::base(&names);
        let ours = base.map(|base| self.conf_dir.join(conflist::chained_name(base)));
        let changed = match (base, &ours) {
            (Some(base), Some(ours)) => self.chain(&self.conf_dir.join(base), ours)?,
            _ => false,
        };
        // Behind the new one, so that there is one at any time.
        for stale in names.iter().filter(|name| conflist::is_ours(name)).map(|name| self.conf_dir.join(name))
        {
            if Some(&stale) != ours.as_ref() {
                fs::remove_file(&stale).map_err(at(&stale))?;
            }
        }
        if base.is_none() { Err(InstallError::NoNetwork(self.conf_dir.clone())) } else { Ok(changed) }
    }

    fn chain(&self, base: &Path, ours: &Path) -> Result<bool, InstallError> {
        let text = fs::read(base).map_err(at(base))?;
        let chained = conflist::chained(&text, &self.entry)
            .map_err(|why| InstallError::Unusable { path: base.to_owned(), why })?;
        if fs::read(ours).ok().as_deref() == Some(chained.as_bytes()) {
            return Ok(false);
        }
        replace(ours, chained.as_bytes(), 0o600)?;
        Ok(true)
    }
}

/// Removes what any installer put into these folders.
///
/// # Errors
/// When something of it can't be removed.
pub(crate) fn uninstall(conf_dir: &Path, bin_dir: &Path) -> Result<(), InstallError> {
    // The configuration first: one that names a program that is not there starts no pod.
    let is_ours = |name: &String| conflist::is_ours(draft_of(name).unwrap_or(name));
    let ours = names(conf_dir)?.into_iter().filter(is_ours).map(|name| conf_dir.join(name));
    for path in ours.chain([PLUGIN.to_owned(), draft(PLUGIN)].map(|name| bin_dir.join(name))) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InstallError::Disk { path, error });
            }
            _ => {}
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>, InstallError> {
    let entries =
        fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(at(folder))?;
    Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The name under which a file is written, before it takes its own.
fn draft(name: &str) -> String {
    format!(".{name}.draft")
}

fn draft_of(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".draft")
}

/// Whole or not at all, also over a crash of the node.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or(PLUGIN);
    let draft = path.with_file_name(draft(name));
    let write = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|error| {
        // On a full disk a half-written one would only be in the way.
        drop(fs::remove_file(&draft));
        at(path)(error)
    })
}

fn at(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |error| InstallError::Disk { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use daemon::readiness::Readiness;

    use super::*;

    const BASE: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"ptp"}]}"#;

    struct Host {
        _folder: tempfile::TempDir,
        conf: PathBuf,
        bin: PathBuf,
        program: PathBuf,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let [conf, bin] = ["conf", "bin"].map(|name| folder.path().join(name));
            [&conf, &bin].into_iter().for_each(|path| fs::create_dir(path).unwrap());
            let program = folder.path().join("program");
            fs::write(&program, "first").unwrap();
            Self { _folder: folder, conf, bin, program }
        }

        fn installer(&self) -> Installer {
            let (conf_dir, bin_dir) = (self.conf.clone(), self.bin.clone());
            let config = CniConfig { conf_dir, bin_dir, always_start: vec!["kube-system".to_owned()] };
            Installer::new(&config, Path::new("/run/airglow"), self.program.clone())
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.conf.join(name), text).unwrap();
        }

        fn files(&self) -> Vec<String> {
            let mut names = names(&self.conf).unwrap();
            names.sort();
            names
        }

        fn types(&self, name: &str) -> Vec<String> {
            let config: Value = serde_json::from_slice(&fs::read(self.conf.join(name)).unwrap()).unwrap();
            let plugins = config["plugins"].as_array().unwrap();
            plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
        }
    }

    #[test]
    fn what_is_installed_is_first_whole_and_gone_afterwards() {
        let host = Host::new();
        let installer = host.installer();
        assert!(matches!(installer.look(true), Err(InstallError::NoNetwork(_))));
        host.write("10-lab.conflist", BASE);
        assert!(installer.look(true).unwrap());
        assert!(!installer.look(true).unwrap(), "again changes nothing");
        assert_eq!(host.files(), ["10-lab.airglow.conflist", "10-lab.conflist"]);
        assert_eq!(host.types("10-lab.airglow.conflist"), ["ptp", PLUGIN]);
        assert_eq!(fs::read_to_string(host.conf.join("10-lab.conflist")).unwrap(), BASE);
        let program = host.bin.join(PLUGIN);
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);

        fs::write(&host.program, "second").unwrap();
        installer.look(false).unwrap();
        assert_eq!(fs::read_to_string(&program).unwrap(), "first", "while two ztunnels run, one renews it");
        host.installer().look(true).unwrap();
        assert_eq!(fs::read_to_string(&program).unwrap(), "second");

        fs::write(host.conf.join(".10-lab.airglow.conflist.draft"), "a crash left it").unwrap();
        uninstall(&host.conf, &host.bin).unwrap();
        uninstall(&host.conf, &host.bin).unwrap();
        assert_eq!(host.files(), ["10-lab.conflist"]);
        assert!(!program.exists());
    }

    #[test]
    fn ours_follows_theirs() {
        let host = Host::new();
        let installer = host.installer();
        host.write("10-lab.conf", r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#);
        assert!(installer.look(true).unwrap());
        assert_eq!(host.types("10-lab.airglow.conflist"), ["bridge", PLUGIN]);
        host.write("10-lab.conf", r#"{"cniVersion":"1.0.0","name":"pods","type":"macvlan"}"#);
        assert!(installer.look(false).unwrap());
        assert_eq!(host.types("10-lab.airglow.conflist"), ["macvlan", PLUGIN]);
        host.write("05-other.conflist", BASE);
        assert!(installer.look(false).unwrap());
        assert_eq!(host.files(), ["05-other.airglow.conflist", "05-other.conflist", "10-lab.conf"]);
        host.write("05-other.conflist", "{");
        assert!(matches!(installer.look(false), Err(InstallError::Unusable { .. })));
        assert_eq!(host.types("05-other.airglow.conflist"), ["ptp", PLUGIN], "until it is whole");
        for name in ["05-other.conflist", "10-lab.conf"] {
            fs::remove_file(host.conf.join(name)).unwrap();
        }
        assert!(matches!(installer.look(false), Err(InstallError::NoNetwork(_))));
        assert!(host.files().is_empty());
    }

    #[tokio::test]
    async fn a_rewritten_configuration_is_noticed_by_whoever_is_in_charge() {
        let host = Host::new();
        host.write("10-lab.conflist", BASE);
        let readiness = Readiness::new();
        let (reports, reported) = watch::channel(None);
        let latch = readiness.latch("the CNI plugin");
        let running = tokio::spawn(host.installer().run(reported, latch));
        tokio::task::yield_now().await;
        assert_eq!(host.files(), ["10-lab.conflist"], "not in charge yet");
        reports.send_replace(Some(Arc::default()));
        let until = async |is_so: &dyn Fn() -> bool| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            while !is_so() {
                assert!(tokio::time::Instant::now() < deadline, "{:?}", host.files());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        until(&|| readiness.is_ready()).await;
        assert_eq!(host.types("10-lab.airglow.conflist"), ["ptp", PLUGIN]);
        host.write("10-lab.conflist", &BASE.replace("ptp", "calico"));
        until(&|| host.types("10-lab.airglow.conflist") == ["calico", PLUGIN]).await;
        fs::remove_file(host.conf.join("10-lab.airglow.conflist")).unwrap();
        until(&|| host.files().len() == 2).await;
        running.abort();
    }
}
