//! An ordinary program for tests.
fn main() {}
