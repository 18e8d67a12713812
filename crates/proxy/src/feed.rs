//! From what discovery delivers to updates of the mesh: what is valid, and what is not, by name.
//!
//! Publishes nothing.

use api::decode;
use model::store::Update;
use xds::{Rejection, Resource};

/// What a delivery comes to.
#[derive(Debug, Default)]
pub struct Batch {
    /// To be applied together.
    pub updates: Vec<Update>,
    /// What can't be.
    pub rejections: Vec<Rejection>,
}

/// Workloads and services.
#[must_use]
pub fn addresses(added: Vec<Resource>, removed: &[String]) -> Batch {
    let updates = removed.iter().flat_map(|name| decode::address_removed(name)).collect();
    let mut batch = Batch { updates, rejections: Vec::new() };
    for resource in added {
        match decode::address(&resource.body) {
            Ok(update) => batch.updates.push(update),
            Err(error) => batch.rejections.push(rejection(resource.name, &error)),
        }
    }
    batch
}

/// Policies.
#[must_use]
pub fn policies(added: Vec<Resource>, removed: &[String]) -> Batch {
    let updates = removed.iter().filter_map(|name| decode::authorization_removed(name)).collect();
    let mut batch = Batch { updates, rejections: Vec::new() };
    for resource in added {
        match decode::authorization(&resource.name, &resource.body) {
            Ok(update) => batch.updates.push(update),
            Err(error) => {
                // What can't be understood can't be enforced: what it may guard is closed until it is mended.
                batch.updates.extend(error.update());
                batch.rejections.push(rejection(resource.name, &error));
            }
        }
    }
    batch
}

/// A resource that can't be used, which the log says too.
pub fn rejection(name: String, error: &dyn std::error::Error) -> Rejection {
    tracing::warn!(%name, %error, "a resource from the controller is refused");
    Rejection { name, reason: error.to_string() }
}

/// Resources of a kind that was not asked for, which the log says.
#[must_use]
pub fn unasked(kind: &str) -> Vec<Rejection> {
    tracing::warn!(kind, "the controller sent a kind of resource that was not asked for");
    Vec::new()
}
