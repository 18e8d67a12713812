//! The forms in which a command answers, and what it is restricted to.
//!
//! Text in, text out.

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::cluster::label;
use crate::mesh::Which;
use crate::progress::print;
use crate::term::{Style, Table};

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Columns for people.
    Table,
    /// The same with more columns.
    Wide,
    /// For programs.
    Json,
    /// The same, easier to read.
    Yaml,
}

impl Form {
    /// Whether it is for programs.
    pub(crate) fn is_document(self) -> bool {
        matches!(self, Self::Json | Self::Yaml)
    }

    /// A document as text, in this form or else as JSON.
    pub(crate) fn document(self, value: &Value) -> anyhow::Result<String> {
        Ok(match self {
            Self::Yaml => serde_saphyr::to_string(value)?,
            Self::Json | Self::Table | Self::Wide => format!("{value:#}\n"),
        })
    }

    /// A table as text; `nothing` is said of an empty one.
    pub(crate) fn table(self, table: Table, nothing: &str, style: Style) -> String {
        let empty = table.is_empty();
        let table = if self == Self::Wide { table } else { table.narrow() };
        let mut lines = table.lines(style);
        if empty {
            lines.push(nothing.to_owned());
        }
        lines.join("\n") + "\n"
    }
}

/// What a command that lists looks at, and how it shows that.
#[derive(Args, Debug)]
pub(crate) struct Where {
    /// Only this node.
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Only what belongs to this namespace.
    #[arg(short = 'n', long, value_name = "NAME", value_parser = label)]
    pub(crate) namespace: Option<String>,
    /// All namespaces, as without -n.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    #[command(flatten)]
    pub(crate) which: Which,
    /// How to print it.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub(crate) form: Form,
}

impl Where {
    /// Whether something is to be shown that belongs to these namespaces.
    pub(crate) fn admits<'a>(&self, namespaces: impl IntoIterator<Item = &'a str>) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| namespaces.into_iter().any(|is| is == wanted))
    }

    /// Prints a document, or else a table.
    pub(crate) fn print(
        &self,
        document: &Value,
        table: Table,
        nothing: &str,
        style: Style,
    ) -> anyhow::Result<()> {
        let text = if self.form.is_document() {
            self.form.document(document)?
        } else {
            self.form.table(table, nothing, style)
        };
        Ok(print(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_json_or_yaml() {
        let value = json!([{"pod": "shop/a", "ok": true}]);
        let yaml = Form::Yaml.document(&value).expect("text");
        assert!(yaml.contains("pod: shop/a") && yaml.contains("ok: true"), "{yaml}");
        let again: Value = serde_json::from_str(&Form::Json.document(&value).expect("text")).expect("JSON");
        assert_eq!(again, value);
    }

    #[test]
    fn wide_tables_have_more_columns() {
        let mut table = Table::new(["A", "+B", ">C"]);
        table.row(["a".into(), "b".into(), "c".into()]);
        let plain = Style::new(false, false, false);
        assert_eq!(Form::Table.table(table.clone(), "nothing", plain), "A  C\na  c\n");
        assert_eq!(Form::Wide.table(table, "nothing", plain), "A  B  C\na  b  c\n");
        assert_eq!(Form::Table.table(Table::new(["A"]), "nothing", plain), "A\nnothing\n");
    }
}
