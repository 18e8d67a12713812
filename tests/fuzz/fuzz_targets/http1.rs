//! Any bytes from a client mean the same with the HTTP/1.1 forwarder as without it, or it refuses them.

#![no_main]

#[path = "../../../waypoint/tests/http1/oracle.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    oracle::check(bytes);
});
