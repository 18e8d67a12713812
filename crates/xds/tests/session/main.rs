//! The client's core against the server's core in memory, under virtual time.

mod convergence;
mod demands;
mod hostile;
mod pair;
mod sync;
