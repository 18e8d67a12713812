//! Prometheus' text format, as far as our own endpoint writes it: samples with labels. Pure.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The metric's name, without the `_total` of counters.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its value.
    pub(crate) value: f64,
}

impl Sample {
    /// A label's value; empty when there is none of that name.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// The samples whose name begins with `prefix`. Comments and lines that are not samples are passed over.
pub(crate) fn samples(text: &str, prefix: &str) -> Vec<Sample> {
    text.lines().filter(|line| line.starts_with(prefix)).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = read_labels(inside, &mut labels)?;
    }
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    let name = name.strip_suffix("_total").unwrap_or(name).to_owned();
    Some(Sample { name, labels, value })
}

/// Reads labels up to the closing brace, and returns what follows it.
fn read_labels<'a>(mut text: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        text = &rest[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(sample(line), Some(Sample { name: name.to_owned(), labels, value }), "{line}");
    }

    #[test]
    fn samples_have_names_labels_and_values() {
        check("up 1", "up", &[], 1.0);
        check("x_total{a=\"b\",c=\"\"} 12.5", "x", &[("a", "b"), ("c", "")], 12.5);
        check("x{} 3 1700000000", "x", &[], 3.0);
        check(r#"x{a="say \"hi\"}, \\ \n"} 1"#, "x", &[("a", "say \"hi\"}, \\ \n")], 1.0);
    }

    #[test]
    fn what_is_not_a_sample_is_passed_over() {
        for line in ["", "x", "x{a=\"b\" 1", "x{a} 1", "x one", "x{a=\"b\"}"] {
            assert_eq!(sample(line), None, "{line}");
        }
        let text = "# HELP istio_x X.\n# TYPE istio_x counter\nistio_x_total 7\nother 1\n# EOF\n";
        let found = samples(text, "istio_");
        assert_eq!((found.len(), found[0].value), (1, 7.0));
    }
}
