//! The client's core against the server's core in memory, under virtual time.

mod convergence;
mod demands;
mod hostile;
mod order;
mod pair;
mod sync;
