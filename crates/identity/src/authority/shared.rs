//! An authority whose state several processes share: each holds a copy, somebody else stores it, and a step counts when it is
//! stored.
//!
//! Owns no storage: whoever does must refuse to overwrite what another process has stored meanwhile.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::plugged::PluggedCa;
use super::state::{Corrupt, RotationError, State};
use super::{Authority, AuthorityConfig, issue};
use crate::clock::Clock;

/// A step in the life of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The published root signs from now on.
    Activate,
    /// What has become due, see [`Authority::maintain`].
    Maintain,
    /// A new root is published, and signs after the overlap, see [`Authority::rotate`].
    Rotate(Option<Duration>),
}

impl Authority {
    /// The state of an authority that begins now: JSON with the private key in it.
    ///
    /// # Errors
    /// When no root could be made.
    pub fn first_state(config: &AuthorityConfig, now: SystemTime) -> Result<Vec<u8>, rcgen::Error> {
        let root = issue::root(&config.trust_domain, now, config.root_ttl)?;
        Ok(State::new(root, config.ttl_max).to_bytes())
    }

    /// The state of an authority that begins now with a plugged CA: JSON with its private key in it.
    #[must_use]
    pub fn first_plugged_state(config: &AuthorityConfig, ca: &PluggedCa) -> Vec<u8> {
        State::new(ca.0.clone(), config.ttl_max).to_bytes()
    }

    /// An authority with shared state. [`Step::Maintain`] is due at once: leaves may live longer by these settings than by
    /// those of whoever stored it.
    ///
    /// # Errors
    /// When `stored` makes no sense.
    pub fn shared(stored: &[u8], config: AuthorityConfig, clock: Arc<dyn Clock>) -> Result<Self, Corrupt> {
        let state = State::parse(stored)?;
        Ok(Self { config, clock, directory: None, state: Mutex::new(state) })
    }

    /// Goes on with what is stored now.
    ///
    /// # Errors
    /// When it makes no sense; then everything stays as it is.
    pub fn adopt(&self, stored: &[u8]) -> Result<(), Corrupt> {
        let stored = State::parse(stored)?;
        self.lock(|state| *state = stored);
        Ok(())
    }

    /// What to store for `step`; to be adopted once it is. `None` if there is nothing to do.
    ///
    /// # Errors
    /// When the step is not possible.
    pub fn prepare(&self, step: &Step) -> Result<Option<Vec<u8>>, RotationError> {
        let now = self.clock.now();
        self.lock(|state| {
            let mut changed = state.clone();
            self.step(&mut changed, step, now)?;
            Ok((changed != *state).then(|| changed.to_bytes()))
        })
    }

    /// What to store for the plugged `ca` to sign: at once if it is below the same root as what signs now; else its roots are
    /// published, and it signs when everyone has learnt them. `None` if that is so already.
    ///
    /// # Errors
    /// When there are too many roots already.
    pub fn prepare_plugged(&self, ca: &PluggedCa) -> Result<Option<Vec<u8>>, RotationError> {
        let now = self.clock.now();
        self.lock(|state| {
            let mut changed = state.clone();
            changed.advance(now);
            changed.plug(ca.0.clone(), now, now + self.config.ttl_max)?;
            Ok((changed != *state).then(|| changed.to_bytes()))
        })
    }

    /// What is to be stored if it was lost.
    #[must_use]
    pub fn stored(&self) -> Vec<u8> {
        self.lock(|state| state.to_bytes())
    }

    pub(super) fn step(&self, state: &mut State, step: &Step, now: SystemTime) -> Result<(), RotationError> {
        state.advance(now);
        let overlap = match step {
            Step::Activate => return state.activate(now),
            Step::Maintain => {
                state.allow_ttl(self.config.ttl_max);
                // Of a plugged CA, only its owner can make another.
                if state.is_plugged() || !state.renewal_due(now) {
                    return Ok(());
                }
                None
            }
            Step::Rotate(overlap) => *overlap,
        };
        let activate_at = now + overlap.unwrap_or(self.config.ttl_max);
        let root = issue::root(&self.config.trust_domain, now, self.config.root_ttl)?;
        state.publish(root, activate_at)
    }
}
