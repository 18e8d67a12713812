//! A line in either form, from fields.

use std::fmt::{self, Display, Write};
use std::net::SocketAddr;
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::logs::Format;

/// What every line begins with.
pub(super) struct Head {
    pub(super) at: SystemTime,
    pub(super) level: &'static str,
    pub(super) message: &'static str,
}

/// A field's name, with what stands before and behind it in each format: a line has two dozen of them.
#[derive(Clone, Copy)]
pub(super) struct Name {
    pub(super) json: &'static str,
    pub(super) plain: &'static str,
}

macro_rules! name {
    ($name:literal) => {
        $crate::access::line::Name { json: concat!(",\"", $name, "\":"), plain: concat!(" ", $name, "=") }
    };
}
pub(super) use name;

/// A field's value: how it is written differs between the formats.
pub(super) enum Field<'a> {
    /// Written often, so without the detours of `fmt`.
    Address(SocketAddr),
    /// Safe to write as it is: addresses, our own words.
    Bare(&'a dyn Display),
    Number(u64),
    /// Quoted and escaped: it may hold anything, and a line must stay one line.
    Quoted(&'a dyn Display),
    /// The same of what is a text already, without the detours of `fmt`.
    Text(&'a str),
    /// The same of what is one in several parts.
    Texts(&'a [&'a str]),
}

/// Bytes of a line that is not longer than most are.
const USUAL: usize = 1024;

/// The line of these fields.
pub(super) fn line(format: Format, head: &Head, fields: impl FnOnce(&mut Fields<'_>)) -> String {
    let Head { at, level, message } = head;
    let mut line = String::with_capacity(USUAL);
    match format {
        Format::Json => {
            add(&mut line, &["{\"level\":\"", level, "\",\"time\":\""]);
            time(&mut line, *at);
            add(&mut line, &["\",\"scope\":\"access\",\"message\":\"", message, "\","]);
        }
        Format::Plain => {
            time(&mut line, *at);
            add(&mut line, &["\t", level, "\taccess\t", message, "\t"]);
        }
    }
    fields(&mut Fields::new(format, &mut line));
    line.push_str(match format {
        Format::Json => "}\n",
        Format::Plain => "\n",
    });
    line
}

/// Where the fields of a line are written, one after another.
pub(super) struct Fields<'a> {
    line: &'a mut String,
    format: Format,
    /// None was written yet.
    first: bool,
}

impl<'a> Fields<'a> {
    /// Of what follows the last separator of `line`.
    pub(super) fn new(format: Format, line: &'a mut String) -> Self {
        Self { line, format, first: true }
    }

    /// Writes one.
    pub(super) fn add(&mut self, name: Name, value: Field<'_>) {
        let name = match self.format {
            Format::Json => name.json,
            Format::Plain => name.plain,
        };
        self.line.push_str(&name[usize::from(self.first)..]);
        self.first = false;
        match (value, self.format) {
            (Field::Number(value), _) => number(self.line, value),
            (Field::Address(value), Format::Plain) => address(self.line, value),
            (Field::Address(value), Format::Json) => {
                self.line.push('"');
                address(self.line, value);
                self.line.push('"');
            }
            (Field::Text(value), _) => texts(self.line, &[value]),
            (Field::Texts(value), _) => texts(self.line, value),
            // Writing to a String cannot fail.
            (Field::Bare(value), Format::Plain) => drop(write!(self.line, "{value}")),
            (Field::Bare(value), Format::Json) | (Field::Quoted(value), _) => quote(self.line, value),
        }
    }

    /// Writes some that were written before, in the same format.
    pub(super) fn add_words(&mut self, words: &str) {
        if !std::mem::take(&mut self.first) {
            self.line.push(match self.format {
                Format::Json => ',',
                Format::Plain => ' ',
            });
        }
        self.line.push_str(words);
    }
}

fn add(line: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| line.push_str(part));
}

/// Writes a JSON string, which is how a value is quoted in both formats.
fn quote(line: &mut String, value: &dyn Display) {
    line.push('"');
    let _ = write!(Escaped(line), "{value}");
    line.push('"');
}

fn texts(line: &mut String, parts: &[&str]) {
    line.push('"');
    parts.iter().for_each(|part| escape(line, part));
    line.push('"');
}

fn address(line: &mut String, address: SocketAddr) {
    let SocketAddr::V4(address) = address else {
        let _ = write!(line, "{address}");
        return;
    };
    let [a, b, c, d] = address.ip().octets().map(u64::from);
    for (value, end) in [(a, '.'), (b, '.'), (c, '.'), (d, ':')] {
        number(line, value);
        line.push(end);
    }
    number(line, address.port().into());
}

/// Escapes what JSON wants escaped, and no more.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

fn escape(line: &mut String, text: &str) {
    let mut rest = text;
    let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    // Most have none, and to look at all of them at once is quicker than to look for the first.
    if !text.bytes().fold(false, |any, byte| any | special(byte)) {
        return line.push_str(text);
    }
    while let Some(at) = rest.bytes().position(special) {
        line.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            byte @ (b'"' | b'\\') => {
                line.push('\\');
                line.push(byte.into());
            }
            byte => drop(write!(line, "\\u{byte:04x}")),
        }
        rest = &rest[at + 1..];
    }
    line.push_str(rest);
}

/// UTC with microseconds, e.g. `2026-01-31T12:00:00.000001Z`.
fn time(line: &mut String, at: SystemTime) {
    let t = OffsetDateTime::from(at);
    let (year, month, day) = t.to_calendar_date();
    let (hour, minute, second, micro) = t.to_hms_micro();
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    for (value, end) in [
        (u64::from(year.unsigned_abs()), 4),
        (u64::from(u8::from(month)), 7),
        (u64::from(day), 10),
        (u64::from(hour), 13),
        (u64::from(minute), 16),
        (u64::from(second), 19),
        (u64::from(micro), 26),
    ] {
        digits(&mut text[..end], value);
    }
    line.push_str(ascii(&text));
}

/// Writes a number without the detours of `fmt`: a line has half a dozen of them.
fn number(line: &mut String, value: u64) {
    // As many digits as the largest has.
    let mut text = [b'0'; 20];
    let first = digits(&mut text, value).min(text.len() - 1);
    line.push_str(ascii(&text[first..]));
}

/// Writes a number's digits at the end of `text`; where the first of them is. What has no room is left out.
fn digits(text: &mut [u8], value: u64) -> usize {
    let (mut first, mut rest) = (text.len(), value);
    while rest > 0 && first > 0 {
        first -= 1;
        text[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    first
}

fn ascii(text: &[u8]) -> &str {
    str::from_utf8(text).expect("digits and what is between them are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_fmt_writes_them() {
        for value in [0, 7, 10, 99, 1_000_000, u64::MAX] {
            let mut line = String::new();
            number(&mut line, value);
            assert_eq!(line, value.to_string());
        }
    }

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for micros in [0, 999_999, 951_782_399_123_456, 1_767_225_600_000_001, 253_402_300_799_999_999] {
            let mut line = String::new();
            time(&mut line, SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(micros));
            let parsed =
                OffsetDateTime::parse(&line, &time::format_description::well_known::Rfc3339).unwrap();
            assert_eq!(parsed.unix_timestamp_nanos(), i128::from(micros) * 1_000, "{line}");
            assert_eq!(line.len(), "2026-01-31T12:00:00.000001Z".len());
        }
    }

    #[test]
    fn addresses_are_written_as_fmt_writes_them() {
        for text in ["10.0.200.3:80", "0.0.0.0:0", "255.255.255.255:65535", "[2001:db8::1]:443"] {
            let mut line = String::new();
            address(&mut line, text.parse().unwrap());
            assert_eq!(line, text);
        }
    }

    #[test]
    fn a_text_is_quoted_as_anything_that_is_displayed() {
        let said = "a \"b\"\n\u{1}";
        for format in [Format::Json, Format::Plain] {
            let (mut one, mut other) = (String::new(), String::new());
            Fields::new(format, &mut one).add(name!("x"), Field::Text(said));
            Fields::new(format, &mut other).add(name!("x"), Field::Quoted(&said));
            assert_eq!(one, other);
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
