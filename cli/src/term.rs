//! How things look on a terminal and in a pipe: colours, tables, numbers with units.
//!
//! Pure text in, text out. Whether there is a terminal, and whether it wants colours, is decided in `main` once.

use std::fmt::Write as _;
use std::time::Duration;

/// Names that a list has before it counts the others.
const LISTED: usize = 5;

/// Whether output may have colours. Passed to whoever makes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// Colours only on a terminal that can, and only if nobody objects (<https://no-color.org>).
    pub(crate) fn new(terminal: bool, no_color: bool, dumb: bool) -> Self {
        Self { colour: terminal && !no_color && !dumb }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    heading: &'static str,
    align: Align,
    /// Only where there is room for it.
    wide: bool,
}

/// Rows under a heading, every column as wide as its widest cell.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A heading that begins with `>` makes a column of numbers, aligned to the right; one with `+` before that a column for
    /// wide tables only.
    pub(crate) fn new<const N: usize>(headings: [&'static str; N]) -> Self {
        let column = |heading: &'static str| {
            let (heading, wide) =
                heading.strip_prefix('+').map_or((heading, false), |heading| (heading, true));
            match heading.strip_prefix('>') {
                Some(heading) => Column { heading, align: Align::Right, wide },
                None => Column { heading, align: Align::Left, wide },
            }
        };
        Self { columns: headings.into_iter().map(column).collect(), rows: Vec::new() }
    }

    /// Without the columns for wide tables.
    pub(crate) fn narrow(mut self) -> Self {
        let wide: Vec<bool> = self.columns.iter().map(|column| column.wide).collect();
        for row in &mut self.rows {
            let mut wide = wide.iter();
            row.retain(|_| !wide.next().copied().unwrap_or_default());
        }
        self.columns.retain(|column| !column.wide);
        self
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When it has not a cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns.len(), "a row has a cell for each column");
        // What a peer chose (a name, an error) must not steer the terminal.
        self.rows.push(cells.map(|cell| cell.replace(char::is_control, "?")).into());
    }

    /// The table as lines without line breaks. Nothing but the heading when there is no row.
    pub(crate) fn lines(&self, style: Style) -> Vec<String> {
        self.lines_within(usize::MAX, style)
    }

    /// The same, each line cut at that many characters.
    pub(crate) fn lines_within(&self, width: usize, style: Style) -> Vec<String> {
        let headings: Vec<String> = self.columns.iter().map(|column| column.heading.to_owned()).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self.rows.iter().chain([&headings]).map(|row| row[column].chars().count());
                cells.max().unwrap_or_default()
            })
            .collect();
        let line = |row: &[String]| {
            let mut line = String::new();
            for ((cell, width), Column { align, .. }) in row.iter().zip(&widths).zip(&self.columns) {
                let gap = if line.is_empty() { "" } else { "  " };
                let written = match align {
                    Align::Left => write!(line, "{gap}{cell:<width$}"),
                    Align::Right => write!(line, "{gap}{cell:>width$}"),
                };
                written.expect("writing to a String cannot fail");
            }
            let cut: String = line.chars().take(width).collect();
            cut.trim_end().to_owned()
        };
        let mut lines = vec![style.dim(&line(&headings))];
        lines.extend(self.rows.iter().map(|row| line(row)));
        lines
    }
}

/// A number of bytes for people: three digits and a binary unit.
pub(crate) fn bytes(number: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = number;
    let mut unit = 0;
    while scaled >= 1024.0 && unit < UNITS.len() - 1 {
        scaled /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && scaled < 100.0);
    format!("{scaled:.digits$} {}", UNITS[unit])
}

/// A duration for people, in the unit that suits it.
pub(crate) fn duration(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// `1 request`, `2 requests`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// `a, b, c and 7 others`.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let shown = names.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        1 => format!("{shown} and one other"),
        more => format!("{shown} and {more} others"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { colour: false };

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["FROM", "TO", ">BYTES"]);
        table.row(["frontend".into(), "a".into(), "7".into()]);
        table.row(["x".into(), "reviews".into(), "12345678".into()]);
        let expected =
            ["FROM      TO          BYTES", "frontend  a               7", "x         reviews  12345678"];
        assert_eq!(table.lines(PLAIN), expected);
        assert_eq!(table.lines_within(4, PLAIN), ["FROM", "fron", "x"]);
    }

    #[test]
    fn cells_cannot_steer_the_terminal() {
        let mut table = Table::new(["NAME"]);
        table.row(["a\x1b[2Jb\n".into()]);
        assert_eq!(table.lines(PLAIN)[1], "a?[2Jb?");
    }

    #[test]
    fn an_empty_table_has_its_heading() {
        assert_eq!(Table::new(["A", ">B"]).lines(PLAIN), ["A  B"]);
    }

    #[test]
    fn colours_need_a_terminal_that_wants_them() {
        let check = |terminal, no_color, dumb| Style::new(terminal, no_color, dumb).red("x");
        assert_eq!(check(true, false, false), "\x1b[31mx\x1b[0m");
        for plain in [check(false, false, false), check(true, true, false), check(true, false, true)] {
            assert_eq!(plain, "x");
        }
    }

    #[test]
    fn numbers_have_units() {
        let sizes = [0.0, 1023.0, 1024.0, 1536.0, 200.0 * 1024.0, 5e9].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "200 KiB", "4.7 GiB"]);
        let times = [0.0004, 0.0123, 0.999, 1.25].map(|s| duration(Duration::from_secs_f64(s)));
        assert_eq!(times, ["0.4 ms", "12 ms", "999 ms", "1.2 s"]);
        assert_eq!((count(1, "pod"), count(2, "pod")), ("1 pod".to_owned(), "2 pods".to_owned()));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(["a", "b"]), "a, b");
        assert_eq!(listed(["a", "b", "c", "d", "e", "f"]), "a, b, c, d, e and one other");
        assert_eq!(listed(["a"; 12]), "a, a, a, a, a and 7 others");
    }
}
