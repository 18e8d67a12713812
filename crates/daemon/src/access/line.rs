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
const USUAL: usize = 1024;

/// The line of these fields.
pub(super) fn line(
    format: Format,
    head: &Head,
    fields: impl FnOnce(&mut dyn FnMut(&str, Field<'_>)),
) -> String {
    let Head { at, level, message } = head;
    let mut line = String::with_capacity(USUAL);
    // Writing to a String cannot fail.
    match format {
        Format::Json => {
            let _ = write!(line, r#"{{"level":"{level}","time":""#);
            time(&mut line, *at);
            let _ = write!(line, r#"","scope":"access","message":"{message}""#);
            fields(&mut |name, value| {
                [",\"", name, "\":"].into_iter().for_each(|part| line.push_str(part));
                match value {
                    Field::Bare(value) | Field::Quoted(value) => quote(&mut line, value),
                    Field::Number(value) => number(&mut line, value, 1),
                }
            });
            line.push('}');
        }
        Format::Plain => {
            time(&mut line, *at);
            let _ = write!(line, "\t{level}\taccess\t{message}\t");
            let mut separator = "";
            fields(&mut |name, value| {
                [separator, name, "="].into_iter().for_each(|part| line.push_str(part));
                match value {
                    Field::Bare(value) => drop(write!(line, "{value}")),
                    Field::Number(value) => number(&mut line, value, 1),
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
        // Most have none, and to look at all of them at once is quicker than to look for the first.
        if !text.bytes().fold(false, |any, byte| any | special(byte)) {
            self.0.push_str(text);
            return Ok(());
        }
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
fn time(line: &mut String, at: SystemTime) {
    let t = OffsetDateTime::from(at);
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second, micro) = t.to_hms_micro();
    let parts = [
        (u64::from(year.unsigned_abs()), 4, '-'),
        (u64::from(u8::from(month)), 2, '-'),
        (u64::from(day), 2, 'T'),
        (u64::from(hour), 2, ':'),
        (u64::from(minute), 2, ':'),
        (u64::from(second), 2, '.'),
        (u64::from(micro), 6, 'Z'),
    ];
    for (value, digits, end) in parts {
        number(line, value, digits);
        line.push(end);
    }
}

/// Writes a number with at least so many digits, without the detours of `fmt`: a line has a dozen of them.
fn number(line: &mut String, value: u64, at_least: usize) {
    // As many digits as the largest has.
    let mut digits = [b'0'; 20];
    let (mut first, mut rest) = (digits.len(), value);
    while rest > 0 {
        first -= 1;
        digits[first] += (rest % 10) as u8;
        rest /= 10;
    }
    let first = first.min(digits.len() - at_least);
    line.extend(digits[first..].iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_fmt_writes_them() {
        for value in [0, 7, 10, 99, 1_000_000, u64::MAX] {
            let mut line = String::new();
            number(&mut line, value, 1);
            number(&mut line, value, 6);
            assert_eq!(line, format!("{value}{value:06}"));
        }
    }

    #[test]
    fn whatever_is_quoted_reads_back_as_it_was() {
        let all: String = (0..0x250).filter_map(char::from_u32).chain("€\u{1f600}\u{2028}".chars()).collect();
        let mut line = String::new();
        quote(&mut line, &all);
        assert!(!line.contains(['\n', '\r', '\t', '\0']), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), all);
    }
}
