//! What many lines have in common, put in words once: most of a line is who speaks with whom, and by which rule.

use std::sync::Arc;

use super::line::{Field, Fields, name};
use super::{Party, Text};
use crate::logs::Format;

/// Who asks whom, and by which rule. The addresses are each request's own.
pub struct Route<'a> {
    /// The client.
    pub source: Party<'a>,
    /// The endpoint.
    pub destination: Party<'a>,
    /// The service that it is sent to.
    pub service: Text<'a>,
    /// The rule that decided.
    pub rule: Text<'a>,
}

/// The same as a part of a line, in the log's format.
#[derive(Clone, Debug, Default)]
pub struct Words(Option<Arc<str>>);

impl Route<'_> {
    /// The one place that says which fields these are and in which order.
    fn fields(&self, to: &mut Fields<'_>) {
        let Self { source, destination, service, rule } = self;
        for (name, value) in [
            (name!("src.workload"), source.workload),
            (name!("src.namespace"), source.namespace),
            (name!("src.identity"), source.identity),
            (name!("src.cluster"), source.cluster),
            (name!("dst.service"), *service),
            (name!("dst.workload"), destination.workload),
            (name!("dst.namespace"), destination.namespace),
            (name!("dst.identity"), destination.identity),
            (name!("dst.cluster"), destination.cluster),
            (name!("rule"), *rule),
        ] {
            if let Some(value) = value {
                to.add(name, Field::Quoted(value));
            }
        }
    }
}

impl Words {
    pub(super) fn of(format: Format, route: &Route<'_>) -> Self {
        let mut words = String::new();
        route.fields(&mut Fields::new(format, &mut words));
        Self(Some(words).filter(|words| !words.is_empty()).map(Arc::from))
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_part_of_a_line_that_stays_one_line() {
        let source = Party { workload: Some(&"a\nb\""), namespace: Some(&"shop"), ..Party::default() };
        let route = Route { source, destination: Party::default(), service: None, rule: Some(&"r") };
        let plain = Words::of(Format::Plain, &route);
        assert_eq!(plain.text(), Some(r#"src.workload="a\nb\"" src.namespace="shop" rule="r""#));
        let json = Words::of(Format::Json, &route);
        let json: serde_json::Value =
            serde_json::from_str(&format!("{{{}}}", json.text().expect("some"))).expect("JSON");
        assert_eq!(json["src.workload"], "a\nb\"");
    }

    #[test]
    fn of_nothing_there_are_no_words() {
        let (source, destination) = Default::default();
        let route = Route { source, destination, service: None, rule: None };
        assert_eq!(Words::of(Format::Plain, &route).text(), None);
    }
}
