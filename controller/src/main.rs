//! The controller's process.
fn main() {}
