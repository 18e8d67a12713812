//! The step between `fork` and a program of the lab: join its cgroup and namespaces, see its own /etc files, exec.
//!
//! It runs in the single-threaded `lab-run`, so that no code of the lab's process runs between `fork` and `exec`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Where a program of the lab runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The cgroup v2 directory that the program is born into.
    pub cgroup: PathBuf,
    /// The network namespace; the caller's when absent.
    pub netns: Option<PathBuf>,
    /// The host name; makes a UTS namespace.
    pub hostname: Option<String>,
    /// Files that stand in for others (what, where); makes a mount namespace.
    pub files: Vec<(PathBuf, PathBuf)>,
}

impl Entry {
    /// The arguments of `lab-run exec` that describe this entry; the program follows them.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args = vec!["exec".into(), "--cgroup".into(), self.cgroup.clone().into()];
        if let Some(netns) = &self.netns {
            args.extend(["--netns".into(), netns.clone().into()]);
        }
        if let Some(hostname) = &self.hostname {
            args.extend(["--hostname".into(), hostname.into()]);
        }
        for (what, at) in &self.files {
            args.extend(["--file".into(), what.clone().into(), at.clone().into()]);
        }
        args.push("--".into());
        args
    }

    /// Reads back the arguments of `lab-run exec` (without that word), and the program that follows.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Option<(Self, Vec<OsString>)> {
        let mut args = args.into_iter();
        let mut entry = Self::default();
        loop {
            let flag = args.next()?;
            match flag.to_str()? {
                "--cgroup" => entry.cgroup = args.next()?.into(),
                "--netns" => entry.netns = Some(args.next()?.into()),
                "--hostname" => entry.hostname = Some(args.next()?.into_string().ok()?),
                "--file" => entry.files.push((args.next()?.into(), args.next()?.into())),
                "--" => break,
                _ => return None,
            }
        }
        let program: Vec<_> = args.collect();
        (!program.is_empty()).then_some((entry, program))
    }

    /// Becomes the program. Returns only when that failed, with a sentence that says where.
    pub fn exec(&self, program: &[OsString]) -> String {
        if let Err(reason) = self.enter() {
            return reason;
        }
        let (name, args) = program.split_first().expect("from_args refuses an empty program");
        let error = Command::new(name).args(args).exec();
        format!("cannot run {}: {error}", name.to_string_lossy())
    }

    fn enter(&self) -> Result<(), String> {
        let step = |what: &str, at: &Path, result: io::Result<()>| {
            result.map_err(|error| format!("cannot {what} {}: {error}", at.display()))
        };
        step("join the cgroup", &self.cgroup, fs::write(self.cgroup.join("cgroup.procs"), "0"))?;
        if let Some(path) = &self.netns {
            let entered = File::open(path)
                .and_then(|netns| setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
            step("enter the network namespace", path, entered)?;
        }
        if let Some(hostname) = &self.hostname {
            let named = unshare(CloneFlags::CLONE_NEWUTS).and_then(|()| nix::unistd::sethostname(hostname));
            step("set the host name", Path::new(hostname), named.map_err(io::Error::from))?;
        }
        if !self.files.is_empty() {
            step("make a mount namespace for", &self.cgroup, private_mounts())?;
        }
        for (what, at) in &self.files {
            step("replace", at, replace_file(what, at))?;
        }
        Ok(())
    }
}

/// A mount namespace whose changes stay inside, while unmounts of the machine still reach it.
fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    Ok(())
}

fn replace_file(what: &Path, at: &Path) -> io::Result<()> {
    // /etc/resolv.conf is a symbolic link on many machines; a bind mount covers what it points to.
    let at = fs::canonicalize(at)?;
    mount(Some(what), AsRef::<OsStr>::as_ref(&at), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_the_command_line() {
        let entry = Entry {
            cgroup: "/sys/fs/cgroup/ag1/n1/kubepods/pod7".into(),
            netns: Some("/run/x/netns/p".into()),
            hostname: Some("web-0".into()),
            files: vec![("/a/hosts".into(), "/etc/hosts".into())],
        };
        let mut args = entry.to_args();
        args.extend(["curl".into(), "--".into(), "x".into()]);
        let (read, program) = Entry::from_args(args.into_iter().skip(1)).expect("own arguments");
        assert_eq!(read, entry);
        assert_eq!(program, ["curl", "--", "x"]);
    }

    #[test]
    fn nothing_to_run_is_refused() {
        assert_eq!(Entry::from_args(["--cgroup".into(), "/x".into(), "--".into()]), None);
        assert_eq!(Entry::from_args(["--cgroup".into()]), None);
        assert_eq!(Entry::from_args(["--else".into()]), None);
    }
}
