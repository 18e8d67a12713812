//! Why a step of the demo could not be run to its end. A promise that does not hold is not an error: it is a finding.

use std::path::PathBuf;
use std::time::Duration;

use lab::{LabError, ProcessError, RunError, WireError};

use crate::admin_client::AdminError;
use crate::interrupt::Interrupted;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// A ztunnel does not answer on its admin socket.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The lab could not be built or changed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s; seen last: {last}", within.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        within: Duration,
        /// What was there instead.
        last: String,
    },
    /// The shop's programs were not built.
    #[error("the executable `airglow-shop` is not in {}; build it with `cargo build -p airglow`", .0.display())]
    MissingShop(PathBuf),
    /// A program of the shop did not say what it should.
    #[error("`{command}` said nothing that can be understood: {said:?}")]
    Silent {
        /// The program.
        command: String,
        /// Its last words.
        said: String,
    },
    /// A program of the lab could not be run or signalled.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// What was on the wire is not known.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl From<RunError> for DemoError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Lab(error) => Self::Lab(error),
            RunError::Process(error) => Self::Process(error),
        }
    }
}
