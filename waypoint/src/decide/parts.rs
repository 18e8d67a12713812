//! What is known of fields by their names.

/// Whether a field says how to read or where to send a message: that is too late in a trailer (RFC 9110, section 6.5.1).
pub(crate) fn is_framing(name: &str) -> bool {
    const FRAMING: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    FRAMING.iter().any(|known| known.eq_ignore_ascii_case(name))
}
