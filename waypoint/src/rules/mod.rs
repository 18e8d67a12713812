//! The routes and traffic policies that this waypoint follows: compiled once per change, and what they make of a request.
//!
//! Cores: time and randomness are arguments. Chooses no endpoint and sends nothing.

mod plan;
mod secured;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use plan::{Of, Plan, Then, Way, plan};
pub(crate) use secured::Secure;
pub(crate) use store::{Book, Change, Rules};
