//! The HTTP/1.1 forwarder between two streams: what passes, what is refused, and what becomes of either side when the
//! other is slow, early, late or gone.

mod bodies;
mod differential;
mod hyper_peers;
mod lifecycle;
mod oracle;
mod refusals;
mod support;
mod upgrades;
