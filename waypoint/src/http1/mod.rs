//! HTTP/1.1, forwarded: heads are read into offsets over one buffer, decided on, and sent on with edits; bodies pass as
//! the bytes that they are. Owns the protocol (RFC 9112) between two byte streams, and its limits.
//!
//! Decides nothing: where a request goes and what is changed on the way is asked of a [`Decide`](crate::decide::Decide). Makes no connections:
//! it is handed them, and hands them back.

mod attempt;
mod body;
mod buffers;
mod client;
mod exchange;
mod framing;
mod head;
pub mod limits;
mod pump;
mod refusal;
mod request;
mod response;
mod serve;
mod target;
#[cfg(test)]
mod tests;
mod tunnel;
mod upstream;
mod wire;
mod write;

pub use framing::Framing;
pub use head::Fields;
pub use refusal::Refusal;
pub use request::RequestHead;
pub use response::ResponseHead;
pub use serve::serve;
pub(crate) use target::{is_host, is_target};
pub(crate) use tunnel::carry;
pub use upstream::Upstream;
