//! Settings from environment variables: raw text to valid values, once, purely, with every mistake reported at once.
//!
//! [`Environment`] is the only place in the workspace that reads the process environment. A [`Parser`] never probes: it opens
//! no file, resolves no name and asks no kernel; a path is a path whether or not something is there.

mod value;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::ops::RangeInclusive;
use std::str::FromStr;

pub use value::{ByteSize, Secret, Value};

/// Variables with this prefix are ours: one that nobody asked for is a mistake (usually a typing error that would
/// otherwise leave a setting silently at its default).
pub const OUR_PREFIX: &str = "AIRGLOW_";

/// A name is only suggested for an unknown one when this few edits apart; further away a suggestion misleads.
const SUGGESTION_DISTANCE_MAX: usize = 4;

/// Where raw settings come from.
pub trait Vars {
    /// The text of one variable; `None` when it is not set. An empty text is a value.
    fn get(&self, name: &str) -> Option<String>;
    /// The names of all variables that are set.
    fn names(&self) -> Vec<String>;
}

/// The process environment, copied when it was made.
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Reads the environment of this process. Call it once, in `main`. Bytes that are not UTF-8 become U+FFFD, so a value
    /// with such bytes fails to parse, or shows them in the error of whoever uses it.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    pub fn read() -> Self {
        let text = |s: std::ffi::OsString| s.to_string_lossy().into_owned();
        Self(std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect())
    }
}

impl Vars for Environment {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

impl Vars for BTreeMap<&str, &str> {
    fn get(&self, name: &str) -> Option<String> {
        BTreeMap::get(self, name).map(|value| (*value).to_owned())
    }

    fn names(&self) -> Vec<String> {
        self.keys().map(|name| (*name).to_owned()).collect()
    }
}

/// What is wrong with one variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It must be set and is not.
    #[error("{variable} is not set: expected {expected}")]
    Missing {
        /// Its name.
        variable: String,
        /// What a good value looks like.
        expected: String,
    },
    /// Its value cannot be used.
    #[error("{variable}={value:?} is not usable: expected {expected}")]
    Malformed {
        /// Its name.
        variable: String,
        /// What was found (`<hidden>` for a secret).
        value: String,
        /// What a good value looks like.
        expected: String,
    },
    /// Its value is fine alone, but does not go with the others.
    #[error("{variable}: {problem}")]
    Conflict {
        /// Its name.
        variable: String,
        /// What does not fit, and what to do.
        problem: String,
    },
    /// It has our prefix and no part of this program reads it.
    #[error("{variable} is not a setting of this program{}", suggestion(.nearest))]
    Unknown {
        /// Its name.
        variable: String,
        /// The setting that was perhaps meant.
        nearest: Option<String>,
    },
}

/// All mistakes of one configuration, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Invalid>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} mistake(s)", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// Reads variables and remembers what was wrong. Every call returns `None` after a mistake, so that parsing goes on and
/// [`Parser::finish`] can report them all.
///
/// Ask for every setting unconditionally: a name that was not asked for counts as unknown.
pub struct Parser<'a> {
    vars: &'a dyn Vars,
    asked: RefCell<BTreeSet<String>>,
    mistakes: RefCell<Vec<Invalid>>,
}

impl<'a> Parser<'a> {
    /// A parser over `vars`. Names are always written in full, so that they can be searched for.
    pub fn new(vars: &'a dyn Vars) -> Self {
        Self { vars, asked: RefCell::default(), mistakes: RefCell::default() }
    }

    /// A setting that has no safe default.
    pub fn required<T: Value>(&self, name: &str) -> Option<T> {
        self.required_with(name, T::EXPECTED, T::SECRET, T::parse)
    }

    /// A setting with a default.
    pub fn or<T: Value>(&self, name: &str, default: T) -> Option<T> {
        self.optional(name).map(|value| value.unwrap_or(default))
    }

    /// A setting that may be left out. `Some(None)`: it was.
    pub fn optional<T: Value>(&self, name: &str) -> Option<Option<T>> {
        self.read(name, T::EXPECTED, T::SECRET, T::parse)
    }

    /// A setting with a default, and limits that both ends of `range` still satisfy.
    pub fn or_within<T>(&self, name: &str, default: T, range: RangeInclusive<T>) -> Option<T>
    where
        T: Value + PartialOrd + Debug,
    {
        let expected = format!("{}, between {:?} and {:?}", T::EXPECTED, range.start(), range.end());
        let parse = |text: &str| T::parse(text).filter(|value| range.contains(value));
        self.read(name, &expected, T::SECRET, parse).map(|value| value.unwrap_or(default))
    }

    /// Like [`Parser::required`] for any `FromStr` type; `expected` completes "expected …".
    pub fn required_as<T: FromStr>(&self, name: &str, expected: &str) -> Option<T> {
        self.required_with(name, expected, false, |text| text.parse().ok())
    }

    /// Like [`Parser::or`] for any `FromStr` type.
    pub fn or_as<T: FromStr>(&self, name: &str, expected: &str, default: T) -> Option<T> {
        self.optional_as(name, expected).map(|value| value.unwrap_or(default))
    }

    /// Like [`Parser::optional`] for any `FromStr` type.
    pub fn optional_as<T: FromStr>(&self, name: &str, expected: &str) -> Option<Option<T>> {
        self.read(name, expected, false, |text| text.parse().ok())
    }

    /// Remembers a mistake between settings that are each fine alone. `problem` says what to do about it.
    pub fn conflict(&self, variable: &str, problem: impl Into<String>) {
        self.remember(Invalid::Conflict { variable: variable.to_owned(), problem: problem.into() });
    }

    /// The configuration, or every mistake made on the way: those of `build`'s parts, and our variables that nobody
    /// asked for.
    ///
    /// # Panics
    /// When `build` returns `None` though nothing was wrong: it withheld a value without saying why.
    pub fn finish<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, Mistakes> {
        let asked = self.asked.into_inner();
        let mut mistakes = self.mistakes.into_inner();
        let ours = self.vars.names().into_iter().filter(|name| name.starts_with(OUR_PREFIX));
        mistakes.extend(ours.filter(|name| !asked.contains(name)).map(|variable| {
            let nearest = nearest(&variable, &asked);
            Invalid::Unknown { variable, nearest }
        }));
        if mistakes.is_empty() {
            Ok(build().expect("a part is missing only after a mistake was remembered"))
        } else {
            Err(Mistakes(mistakes))
        }
    }

    fn required_with<T>(
        &self,
        name: &str,
        expected: &str,
        secret: bool,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.read(name, expected, secret, parse)?;
        if value.is_none() {
            self.remember(Invalid::Missing { variable: name.to_owned(), expected: expected.to_owned() });
        }
        value
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        secret: bool,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<Option<T>> {
        self.asked.borrow_mut().insert(name.to_owned());
        let Some(text) = self.vars.get(name) else { return Some(None) };
        let value = parse(&text);
        if value.is_none() {
            self.remember(Invalid::Malformed {
                variable: name.to_owned(),
                value: if secret { "<hidden>".to_owned() } else { text },
                expected: expected.to_owned(),
            });
        }
        value.map(Some)
    }

    fn remember(&self, mistake: Invalid) {
        self.mistakes.borrow_mut().push(mistake);
    }
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

fn nearest(unknown: &str, known: &BTreeSet<String>) -> Option<String> {
    known
        .iter()
        .map(|name| (edits(unknown, name), name))
        .min()
        .filter(|(distance, _)| *distance <= SUGGESTION_DISTANCE_MAX)
        .map(|(_, name)| name.clone())
}

/// Levenshtein distance: insertions, deletions and replacements from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::time::Duration;

    fn parse<T>(
        vars: &[(&'static str, &'static str)],
        build: impl Fn(&Parser<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let vars: BTreeMap<&str, &str> = vars.iter().copied().collect();
        let parser = Parser::new(&vars);
        let built = build(&parser);
        parser.finish(|| built).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn values_and_defaults() {
        let vars = [("AIRGLOW_LISTEN", "[::1]:15020"), ("AIRGLOW_DRAIN", "1m30s")];
        let got = parse(&vars, |p| {
            let listen = p.required::<SocketAddr>("AIRGLOW_LISTEN");
            let drain = p.or("AIRGLOW_DRAIN", Duration::from_secs(5));
            let threads = p.or("AIRGLOW_THREADS", 2_usize);
            let node = p.optional::<String>("NODE_NAME");
            Some((listen?, drain?, threads?, node?))
        });
        let listen = "[::1]:15020".parse().unwrap();
        assert_eq!(got, Ok((listen, Duration::from_secs(90), 2, None)));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let vars = [("AIRGLOW_DRAIN", "5"), ("AIRGLOW_TREADS", "4"), ("AIRGLOW_FAR_AWAY", "")];
        let got = parse(&vars, |p| {
            let server = p.required::<String>("AIRGLOW_XDS_ADDRESS");
            let drain = p.or("AIRGLOW_DRAIN", Duration::from_secs(5));
            let threads = p.or("AIRGLOW_THREADS", 2_usize);
            p.conflict("AIRGLOW_XDS_ADDRESS", "needs AIRGLOW_THREADS; set it");
            Some((server?, drain?, threads?))
        });
        let expected = "the configuration has 5 mistake(s)
  AIRGLOW_XDS_ADDRESS is not set: expected a text
  AIRGLOW_DRAIN=\"5\" is not usable: expected a duration such as \"5s\", \"150ms\" or \"1m30s\"
  AIRGLOW_XDS_ADDRESS: needs AIRGLOW_THREADS; set it
  AIRGLOW_FAR_AWAY is not a setting of this program
  AIRGLOW_TREADS is not a setting of this program; did you mean AIRGLOW_THREADS?";
        assert_eq!(got.map(|_| ()), Err(expected.to_owned()));
    }

    #[test]
    fn limits_include_their_ends() {
        let within =
            |text: &'static str| parse(&[("AIRGLOW_N", text)], |p| p.or_within("AIRGLOW_N", 4_u32, 1..=8));
        assert_eq!(within("1"), Ok(1));
        assert_eq!(within("8"), Ok(8));
        let error = within("9").unwrap_err();
        assert!(error.contains("expected a whole number, between 1 and 8"), "{error}");
    }

    #[test]
    fn secrets_never_show() {
        let got = parse(&[("AIRGLOW_TOKEN", " ")], |p| p.required::<Secret>("AIRGLOW_TOKEN"));
        let error = got.map(|_| ()).unwrap_err();
        assert!(error.contains("<hidden>"), "{error}");
        assert_eq!(format!("{:?}", Secret::parse("hunter2").unwrap()), "Secret(<hidden>)");
    }

    #[test]
    fn any_from_str_type_can_be_read() {
        let family = |text: &'static str| {
            parse(&[("AIRGLOW_LETTER", text)], |p| p.required_as::<char>("AIRGLOW_LETTER", "one letter"))
        };
        assert_eq!(family("x"), Ok('x'));
        assert!(family("xy").unwrap_err().contains("expected one letter"));
        assert_eq!(parse(&[], |p| p.or_as("AIRGLOW_LETTER", "one letter", 'd')), Ok('d'));
    }

    #[test]
    fn the_process_environment_is_readable() {
        assert!(Environment::read().names().iter().any(|name| name == "PATH"));
    }
}
