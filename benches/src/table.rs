//! Tables in Markdown whose columns also line up on a terminal, and numbers with three digits that matter.

use crate::stats::Spread;

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns and no rows yet.
    pub(crate) fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![columns.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row, which has as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len(), "{cells:?}");
        self.rows.push(cells);
    }

    pub(crate) fn to_markdown(&self) -> String {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.rows[0].len()).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                text += &format!("| {cell:<width$} ");
            }
            text += "|\n";
            if number == 0 {
                for width in &widths {
                    text += &format!("|{}", "-".repeat(width + 2));
                }
                text += "|\n";
            }
        }
        text
    }
}

/// The median and, of several, the ends.
pub(crate) fn cell(spread: Option<Spread>) -> String {
    match spread {
        None => "-".into(),
        Some(Spread { median, min, max }) if min == max => number(median),
        Some(Spread { median, min, max }) => format!("{} [{}-{}]", number(median), number(min), number(max)),
    }
}

/// Three digits that matter; thousands are kept whole.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 0.0005 => 0,
        below if below < 1.0 => 3,
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["variant", "Gb/s"]);
        table.row(vec!["none".into(), "67.1 [60.2-70.3]".into()]);
        let expected = "| variant | Gb/s             |\n\
                        |---------|------------------|\n\
                        | none    | 67.1 [60.2-70.3] |\n";
        assert_eq!(table.to_markdown(), expected);
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, text) in
            [(0.0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (12345.6, "12346")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_single_value_has_no_ends() {
        assert_eq!(cell(None), "-");
        assert_eq!(cell(Some(Spread { median: 1.5, min: 1.5, max: 1.5 })), "1.50");
        assert_eq!(cell(Some(Spread { median: 1.5, min: 1.0, max: 2.0 })), "1.50 [1.00-2.00]");
    }
}
