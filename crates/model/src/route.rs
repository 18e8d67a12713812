//! L4 route choice: where a captured connection goes.
//!
//! A pure function of the snapshot, the source, the dialled address, and what the caller knows of endpoints (`Pick`).
//! Owns no sockets, no randomness and no record of failures.
