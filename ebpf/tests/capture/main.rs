//! Capture on the real kernel: every table of what must be captured, untouched, refused and left behind.
//! Needs root. Each test has network namespaces, a cgroup subtree and pins of its own.

mod attach;
mod closed;
mod dns;
mod inbound;
mod lifecycle;
mod outbound;
mod support;
