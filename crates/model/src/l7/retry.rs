//! When to try a request again.

use std::collections::BTreeSet;
use std::time::Duration;

/// What a rule wants tried again, beyond failures before which nothing was sent: those are always tried elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Retry {
    /// How often, after the first attempt. At least 1.
    pub attempts: u32,
    /// The shortest wait before an attempt; doubled for each further one, with jitter. `None`: the proxy's own.
    pub backoff: Option<Duration>,
    /// Statuses of responses that are tried again.
    pub statuses: BTreeSet<u16>,
    /// gRPC codes of responses that are tried again, as long as no message was sent on to the client.
    pub grpc_codes: BTreeSet<u32>,
}

/// How many retries there may be, in relation to requests (GEP-3388).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// Retries per hundred requests of the last `interval`.
    pub percent: u32,
    /// What is looked back at.
    pub interval: Duration,
    /// So many retries per `min_interval` are allowed in any case.
    pub min_retries: u32,
    /// See `min_retries`.
    pub min_interval: Duration,
}

impl Default for RetryBudget {
    /// GEP-3388's: a fifth of the requests of 10 s, and 10 each second anyway.
    fn default() -> Self {
        Self {
            percent: 20,
            interval: Duration::from_secs(10),
            min_retries: 10,
            min_interval: Duration::from_secs(1),
        }
    }
}
