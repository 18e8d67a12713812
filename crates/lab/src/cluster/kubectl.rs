//! Running kubectl as the cluster's administrator.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{LabError, cannot};
use crate::inner::without_proxies;

/// kubectl with a kubeconfig, and a cache that goes with the run.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    pub(crate) fn new(program: &Path, dir: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: dir.join("kubeconfig"), cache: dir.join("kubectl") }
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs it to its end and returns what it printed; the error has what it complained of.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, LabError> {
        self.feed(args, None)
    }

    /// The same with something on its standard input.
    pub(crate) fn feed<S: AsRef<OsStr>>(&self, args: &[S], input: Option<&str>) -> Result<String, LabError> {
        let said = || {
            let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
            format!("kubectl {}", words.join(" "))
        };
        let mut command = self.command();
        command.args(args).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot(format!("start `{}`", said())))?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // It reads all of it before it prints. When it does not read, its complaint says why.
            drop(pipe.write_all(input.as_bytes()));
        }
        let output = child.wait_with_output().map_err(cannot(format!("wait for `{}`", said())))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Tool { command: said(), stderr })
    }

    /// kubectl without a subcommand yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(&self.cache);
        without_proxies(&mut command);
        command
    }
}
