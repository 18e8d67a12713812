//! What can go wrong while a lab is built, changed or used. Every text says what, where and how to mend it.
//!
//! A program that fails *inside* the lab is not an error of the lab: it is an `Output` with a status.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::ProcessError;

/// A step of building or changing the lab failed. The lab stays usable and removable.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces, cgroups and mounts are root's.
    #[error("the lab makes network namespaces and cgroups and needs root; run it as root")]
    NotRoot,
    /// The machine lacks something that the lab stands on.
    #[error("this machine has no {what}; {mend}")]
    Missing {
        /// The program, mount or kernel feature.
        what: String,
        /// What a user does about it.
        mend: String,
    },
    /// One of our own executables has not been built.
    #[error("the executable `{name}` is not in {}; build it with `{build}`", dir.display())]
    MissingBinary {
        /// File name of the executable.
        name: String,
        /// The directory that was searched.
        dir: PathBuf,
        /// The command that makes it.
        build: String,
    },
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was attempted, with the path or address.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `ip` or `nft` refused a change.
    #[error("`{command}` failed: {stderr}")]
    Tool {
        /// The program and, for a batch, where it ran.
        command: String,
        /// Its complaint.
        stderr: String,
    },
    /// A request names something that this lab cannot give.
    #[error("{0}")]
    Refused(String),
    /// A node's ztunnel answered the node API with an error.
    #[error("the ztunnel of node {node} refused: {reason}")]
    NodeApi {
        /// The node's name.
        node: String,
        /// Its words.
        reason: String,
    },
    /// A component of a cluster ended while it was needed.
    #[error("{what} failed: {said}")]
    Component {
        /// What was waited for.
        what: String,
        /// Which component, how it ended, and the end of its log.
        said: String,
    },
    /// A condition did not become true in time.
    #[error("{what} did not happen within {within:?}: {last}")]
    Deadline {
        /// The condition that was waited for.
        what: String,
        /// How long.
        within: Duration,
        /// What was seen last.
        last: String,
    },
}

impl LabError {
    /// Adds what somebody's log says to a condition that did not become true.
    pub(crate) fn with_log(mut self, log: &str) -> Self {
        if let Self::Deadline { last, .. } = &mut self {
            last.push('\n');
            last.push_str(log);
        }
        self
    }
}

/// A program could not be started, or did not do what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The lab could not start or reach it.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// It ran, but not as expected.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Names the attempt that an I/O error belongs to: `.map_err(cannot("open /dev/x"))`.
pub(crate) fn cannot<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> LabError {
    let doing = doing.into();
    move |source| LabError::System { doing, source: source.into() }
}
