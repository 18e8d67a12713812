//! YAML text in, objects out: several documents per file, `kind: List`, and for each mistake where it is and how to mend it.
//!
//! A mistake costs only the document (or list item) that it is in. Owns no files and no memory of what was there before.

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::{DefaultMessageFormatter, Location, MessageFormatter, Spanned};

use super::objects::read::{Form, check_names, read};
use super::objects::{Kind, Object};

/// Documents per file. Whoever prints a whole cluster gets a list, which is one document.
const MAX_DOCUMENTS: usize = 10_000;

/// What a text says. Lines count from 1.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    /// Each object with the line that it begins on.
    pub objects: Vec<(Object, u64)>,
    /// In the order of their lines.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// Whether some part could not be understood, and so may be an object that is not in `objects`.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Broken)
    }
}

/// Something that is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where. From 1.
    pub line: u64,
    /// Where in the line. From 1.
    pub column: u64,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and how to mend it.
    pub message: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Not understood.
    Broken,
    /// Understood, and without effect.
    Ignored,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl Problem {
    pub(crate) fn broken(line: u64, column: u64, message: impl Into<String>) -> Self {
        Self { line, column, severity: Severity::Broken, message: message.into() }
    }
}

/// Reads all documents of a text.
#[must_use]
pub fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (at, (before, document)) in documents(text).into_iter().enumerate() {
        if at == MAX_DOCUMENTS {
            let message = format!("more than {MAX_DOCUMENTS} documents in one file; split it");
            parsed.problems.push(Problem::broken(before + 1, 1, message));
            break;
        }
        let Parsed { objects, problems } = document_of(document);
        parsed.objects.extend(objects.into_iter().map(|(object, line)| (object, before + line)));
        let moved = |problem: Problem| Problem { line: before + problem.line, ..problem };
        parsed.problems.extend(problems.into_iter().map(moved));
    }
    parsed
}

/// The documents that say anything, each with the number of lines before it. YAML forbids its markers inside a scalar,
/// so that cutting at them is sound whatever is wrong with the text around them.
fn documents(text: &str) -> Vec<(u64, &str)> {
    let is_marker = |line: &str| {
        let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let says_nothing = |line: &str| {
        let line = if line.starts_with("---") || line.starts_with("...") { &line[3..] } else { line }.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    };
    let mut documents = Vec::new();
    let (mut start, mut lines_before, mut offset) = (0, 0, 0);
    for (line, lines) in text.split_inclusive('\n').zip(0..) {
        if is_marker(line.trim_end()) {
            documents.push((lines_before, &text[start..offset]));
            // What follows the marker on its line belongs to the next document.
            (start, lines_before) = (offset, lines);
        }
        offset += line.len();
    }
    documents.push((lines_before, &text[start..]));
    documents.retain(|(_, document)| !document.lines().all(says_nothing));
    documents
}

/// What is read of every object before its kind is known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

fn document_of(text: &str) -> Parsed {
    // The end marker of the document before, if any.
    let blank = text.starts_with("...").then(|| text.replacen("...", "   ", 1));
    let text = blank.as_deref().unwrap_or(text);
    let first = first_line(text);
    let head = match from_yaml::<Head>(text) {
        Ok(head) => head,
        Err(problem) => return one(Err(problem)),
    };
    if head.kind == "List" {
        return match from_yaml::<List>(text) {
            Ok(list) => list.items.into_iter().map(item_of).fold(Parsed::default(), join),
            Err(problem) => one(Err(problem)),
        };
    }
    one(object_of(&head, (first, 1), Text(text)).map(|object| object.map(|object| (object, first))))
}

fn item_of(Spanned { value, referenced, .. }: Spanned<serde_json::Value>) -> Parsed {
    let at = place(Some(referenced));
    let object = match serde_json::from_value::<Head>(value.clone()) {
        Ok(head) => object_of(&head, at, Tree { value, at }),
        Err(error) => Err(Problem::broken(at.0, at.1, error.to_string())),
    };
    one(object.map(|object| object.map(|object| (object, at.0))))
}

fn one(found: Result<Option<(Object, u64)>, Problem>) -> Parsed {
    match found {
        Ok(object) => Parsed { objects: object.into_iter().collect(), problems: Vec::new() },
        Err(problem) => Parsed { objects: Vec::new(), problems: vec![problem] },
    }
}

fn join(mut parsed: Parsed, more: Parsed) -> Parsed {
    parsed.objects.extend(more.objects);
    parsed.problems.extend(more.problems);
    parsed
}

struct Text<'a>(&'a str);

impl Form for Text<'_> {
    type Error = Problem;

    fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        from_yaml(self.0)
    }
}

struct Tree {
    value: serde_json::Value,
    at: (u64, u64),
}

impl Form for Tree {
    type Error = Problem;

    fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        serde_json::from_value(self.value)
            .map_err(|error| Problem::broken(self.at.0, self.at.1, format!("in this list item: {error}")))
    }
}

fn object_of(
    head: &Head,
    at: (u64, u64),
    form: impl Form<Error = Problem>,
) -> Result<Option<Object>, Problem> {
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.to_string() == head.kind) else {
        if head.kind.is_empty() {
            return Err(Problem::broken(at.0, at.1, "no `kind`; add one, or put `---` between documents"));
        }
        let message =
            format!("Airglow does not read kind {}; if that is a typing mistake, mend it", head.kind);
        return Err(Problem { line: at.0, column: at.1, severity: Severity::Ignored, message });
    };
    if !kind.versions().contains(&head.api_version.as_str()) {
        let message = format!("{} has apiVersion {:?}; use {}", kind, head.api_version, kind.api_version());
        return Err(Problem::broken(at.0, at.1, message));
    }
    let object = read(kind, form)?;
    check_names(&object).map_err(|message| Problem::broken(at.0, at.1, message))?;
    Ok(Some(object))
}

fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    serde_saphyr::from_str(text).map_err(|error| {
        let (line, column) = place(error.location());
        Problem::broken(line, column, DefaultMessageFormatter.format_message(error.without_snippet()))
    })
}

fn place(location: Option<Location>) -> (u64, u64) {
    location.map_or((1, 1), |location| (location.line().max(1), location.column().max(1)))
}

/// The line on which a document begins to say something.
fn first_line(document: &str) -> u64 {
    let says_something = |line: &str| {
        !matches!(line.trim().trim_start_matches("---").trim().bytes().next(), None | Some(b'#'))
    };
    (1..).zip(document.lines()).find(|(_, line)| says_something(line)).map_or(1, |(number, _)| number)
}
