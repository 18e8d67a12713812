//! Which endpoint of a service takes a request: nearness, then load as it was seen, or a given hash.
//!
//! What is known of an endpoint is kept by service and endpoint, so that all routes and threads learn from each other. Cores:
//! the time and randomness are arguments. Opens nothing.

mod maglev;
mod registry;
mod set;
mod state;

pub use registry::Registry;
pub use set::{Ask, Endpoint, Set, Strategy};
pub use state::{Lease, Outcome, State};
