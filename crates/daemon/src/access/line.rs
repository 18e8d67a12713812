//! A line in either form, from fields.

use std::fmt::{self, Display, Write};
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::logs::Format;

/// What every line begins with.
pub(super) struct Head {
    pub(super) at: SystemTime,
    pub(super) level: &'static str,
    pub(super) message: &'static str,
}

/// A field's value: how it is written differs between the formats.
pub(super) enum Field<'a> {
    /// Safe to write as it is: numbers, addresses, our own words.
    Bare(&'a dyn Display),
    Number(u64),
    /// Quoted and escaped: it may hold anything, and a line must stay one line.
    Quoted(&'a dyn Display),
}

/// Bytes of a line that is not longer than most are.
const USUAL: usize = 768;

/// The line of these fields.
pub(super) fn line(
    format: Format,
    head: &Head,
    fields: impl FnOnce(&mut dyn FnMut(&str, Field<'_>)),
) -> String {
    let Head { at, level, message } = head;
    let at = Rfc3339(*at);
    let mut line = String::with_capacity(USUAL);
    // Writing to a String cannot fail.
    match format {
        Format::Json => {
            let _ =
                write!(line, r#"{{"level":"{level}","time":"{at}","scope":"access","message":"{message}""#);
            fields(&mut |name, value| {
                let _ = write!(line, ",\"{name}\":");
                match value {
                    Field::Bare(value) | Field::Quoted(value) => quote(&mut line, value),
                    Field::Number(value) => drop(write!(line, "{value}")),
                }
            });
            line.push('}');
        }
        Format::Plain => {
            let _ = write!(line, "{at}\t{level}\taccess\t{message}\t");
            let mut separator = "";
            fields(&mut |name, value| {
                let _ = write!(line, "{separator}{name}=");
                match value {
                    Field::Bare(value) => drop(write!(line, "{value}")),
                    Field::Number(value) => drop(write!(line, "{value}")),
                    Field::Quoted(value) => quote(&mut line, value),
                }
                separator = " ";
            });
        }
    }
    line.push('\n');
    line
}

/// Writes a JSON string, which is how a value is quoted in both formats.
fn quote(line: &mut String, value: &dyn Display) {
    line.push('"');
    let _ = write!(Escaped(line), "{value}");
    line.push('"');
}

/// Escapes what JSON wants escaped, and no more.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        while let Some(at) = rest.bytes().position(special) {
            self.0.push_str(&rest[..at]);
            match rest.as_bytes()[at] {
                b'\n' => self.0.push_str("\\n"),
                b'\r' => self.0.push_str("\\r"),
                b'\t' => self.0.push_str("\\t"),
                byte @ (b'"' | b'\\') => {
                    self.0.push('\\');
                    self.0.push(byte.into());
                }
                byte => write!(self.0, "\\u{byte:04x}")?,
            }
            rest = &rest[at + 1..];
        }
        self.0.push_str(rest);
        Ok(())
    }
}

/// UTC with microseconds, e.g. `2026-01-31T12:00:00.000001Z`.
struct Rfc3339(SystemTime);

impl Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = OffsetDateTime::from(self.0);
        let (year, month, day) = t.to_calendar_date();
        let (hour, minute, second, micro) = t.to_hms_micro();
        write!(f, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z", u8::from(month))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_quoted_reads_back_as_it_was() {
        let all: String = (0..0x250).filter_map(char::from_u32).chain("€\u{1f600}\u{2028}".chars()).collect();
        let mut line = String::new();
        quote(&mut line, &all);
        assert!(!line.contains(['\n', '\r', '\t', '\0']), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), all);
    }
}
