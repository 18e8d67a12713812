//! The parameters of a query, decoded as HTML forms are (WHATWG URL, application/x-www-form-urlencoded): what servers
//! behind the proxy take them for.

use std::borrow::Cow;

/// The parameters of one request, in order.
pub(super) struct Query<'a>(Vec<Parameter<'a>>);

/// Name and value.
type Parameter<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl<'a> Query<'a> {
    pub(super) fn of(query: &'a str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        });
        Self(pairs.collect())
    }

    /// The value of the first parameter of this name.
    pub(super) fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(own, _)| **own == *name.as_bytes()).map(|(_, value)| &**value)
    }
}

/// `+` is a space, `%41` is `A`, and a `%` without two digits is itself.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return Cow::Owned(bytes),
            [b'+', tail @ ..] => {
                bytes.push(b' ');
                tail
            }
            [b'%', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(nibble(*high) << 4 | nibble(*low));
                tail
            }
            [byte, tail @ ..] => {
                bytes.push(*byte);
                tail
            }
        };
    }
}

/// The value of a hexadecimal digit.
fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_first_counts() {
        let query = Query::of("a=1&a=2&b=x+y%20z&c&=e&%64=%3D%&&f=%4g%");
        let rows: [(&str, Option<&[u8]>); 8] = [
            ("a", Some(b"1")),
            ("b", Some(b"x y z")),
            ("c", Some(b"")),
            ("", Some(b"e")),
            ("d", Some(b"=%")),
            ("f", Some(b"%4g%")),
            ("A", None),
            ("%64", None),
        ];
        for (name, value) in rows {
            assert_eq!(query.first(name), value, "{name:?}");
        }
    }
}
