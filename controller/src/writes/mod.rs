//! What the controller writes to an API server: the authority's state, the roots that everyone should trust, on each pod
//! whether it is enrolled, in each policy's status what became of it, and Events of what someone has to mend.
//!
//! Whatever several replicas could write is guarded: the authority's Secret by its version, all else by a Lease, save what one replica
//! alone has been told. Owns no
//! decision about the mesh.

mod entries;
mod events;
mod lease;
mod marks;
mod plugged;
mod root_maps;
mod secret;
mod statuses;
mod waypoints;

pub use events::say_events;
pub use lease::{Leader, lead};
pub use marks::mark_pods;
pub use root_maps::publish_roots;
pub use secret::{SecretError, SharedAuthority, Trouble};
pub use statuses::say_statuses;
pub use waypoints::make_waypoints;

/// Who we are to the API server: the manager of the fields that we write.
const FIELD_MANAGER: &str = "airglow-controller";

/// Whether the last attempt failed, so that the first of a row is warned of and no other.
#[derive(Debug, Default)]
struct Failing(bool);

impl Failing {
    fn note<T, E>(&mut self, outcome: &Result<T, E>, warn: impl FnOnce(&E)) {
        let failed_before = std::mem::replace(&mut self.0, outcome.is_err());
        if let (Err(error), false) = (outcome, failed_before) {
            warn(error);
        }
    }
}
