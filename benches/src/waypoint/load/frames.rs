//! Frames and header blocks of HTTP/2, made by hand: whatever one likes. Pure.

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;
/// The window of a connection that nobody has widened, and the widest.
const FIRST_WINDOW: u32 = 65_535;
const WINDOW_MAX: u32 = 0x7fff_ffff;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// How a client begins that lets its peer send so much on each stream, and anything on the connection.
pub(crate) fn beginning(window: u32) -> Vec<u8> {
    let setting = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &setting),
        frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - FIRST_WINDOW).to_be_bytes()),
    ]
    .concat()
}

/// A header block of literals that nobody is to remember (RFC 7541, section 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(0, name, value)).collect()
}

/// A field that its reader remembers as the newest (RFC 7541, section 6.2.1), and one byte that repeats the newest.
pub(crate) fn remembered(name: &str, value: &str) -> Vec<u8> {
    literal(0x40, name, value)
}
pub(crate) const NEWEST: u8 = 0x80 | 62;

fn literal(kind: u8, name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![kind];
    for part in [name, value] {
        // An integer with a prefix of seven bits (RFC 7541, section 5.1).
        let prefix = part.len().min(127);
        bytes.push(u8::try_from(prefix).unwrap_or(127));
        if prefix == 127 {
            let mut rest = part.len() - prefix;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap_or_default() | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap_or_default());
        }
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_the_standards_say() {
        assert_eq!(frame(PING, 1, 3, b"12345678"), *b"\0\0\x08\x06\x01\0\0\0\x0312345678");
        assert_eq!(block(&[("a", "bc")]), *b"\0\x01a\x02bc");
        let long = block(&[("a", &"b".repeat(127 + 300))]);
        assert_eq!(long[..6], [0, 1, b'a', 127, 0xac, 2]);
        assert_eq!(long.len(), 6 + 427);
    }
}
