//! What tests of attacks share: connections by unusual ways, peers that prove and say what they like, floods, and a look at
//! what an attack costs. Says what happened; what should have is the tests' to say.

use std::time::Duration;

pub(crate) mod arena;
pub(crate) mod attempt;
pub(crate) mod flood;
pub(crate) mod peer;
pub(crate) mod proof;
#[path = "../../crates/hbone/tests/tunnel/raw.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "part of the tunnels' own tests, which say more with it")]
pub(crate) mod raw;

/// How long a connection may be silent before a test takes it for stuck.
pub(crate) const IN_VAIN: Duration = Duration::from_secs(30);
