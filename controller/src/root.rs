//! The authority, wherever its state is: in the state directory, or in a Secret that replicas share.

use std::sync::Arc;

use identity::authority::{Authority, RotationError, Step};

use crate::writes::{SecretError, SharedAuthority};

/// The authority. Clones are the same.
#[derive(Clone)]
pub enum Root {
    /// Its state is in the state directory.
    Directory(Arc<Authority>),
    /// Its state is in a Secret.
    Secret(Arc<SharedAuthority>),
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Not possible, or not kept in the directory.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// Not kept in the Secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Root {
    /// What signs.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        match self {
            Self::Directory(authority) => authority,
            Self::Secret(shared) => shared.authority(),
        }
    }

    /// Takes a step, once that is kept.
    ///
    /// # Errors
    /// When it was not taken.
    pub async fn step(&self, step: &Step) -> Result<(), StepError> {
        match (self, *step) {
            (Self::Directory(authority), Step::Activate) => authority.activate()?,
            (Self::Directory(authority), Step::Maintain) => authority.maintain()?,
            (Self::Directory(authority), Step::Rotate(overlap)) => authority.rotate(overlap)?,
            (Self::Secret(shared), _) => shared.step(step).await?,
        }
        Ok(())
    }
}
