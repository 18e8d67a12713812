//! What is taken for a route or traffic policy that can't be understood. Of a route, each rule that can be read counts; another one
//! keeps its place and what it matches, if that can be read, and answers with an error. Of a policy nothing counts but what it is
//! about.

use serde_json::{Map, Value, json};

use super::super::objects::read::from_json;
use super::super::objects::{Kind, Object};

/// What no filter and no kind of backend is called, so that what has it can't be carried out.
const UNREADABLE: &str = "unreadable";

/// A route, as far as it can be read. `None` when not even its name can be.
pub(super) fn route(kind: Kind, value: &Value) -> Option<Object> {
    let reader = Reader { kind, metadata: &value["metadata"] };
    let spec = &value["spec"];
    let hostnames = reader.part(spec, "hostnames");
    let is_whole = |rule: &Value| hostnames.is_some() && reader.can_read(json!({ "rules": [rule] }));
    let rule = |rule: &Value| if is_whole(rule) { rule.clone() } else { reader.closed(rule) };
    let rules: Vec<_> = match spec["rules"].as_array() {
        Some(rules) => rules.iter().map(rule).collect(),
        None => vec![reader.closed(&Value::Null)],
    };
    reader.read(
        json!({
            "parentRefs": reader.each(spec, "parentRefs"),
            "hostnames": hostnames.unwrap_or(&Value::Null),
            "rules": rules,
        }),
        &value["status"],
    )
}

/// A policy without settings, which says so. `None` when not even its name can be read.
pub(super) fn policy(kind: Kind, value: &Value) -> Option<Object> {
    let reader = Reader { kind, metadata: &value["metadata"] };
    reader.read(json!({ "targetRefs": reader.each(&value["spec"], "targetRefs") }), &value["status"])
}

struct Reader<'a> {
    kind: Kind,
    metadata: &'a Value,
}

impl Reader<'_> {
    fn read(&self, spec: Value, status: &Value) -> Option<Object> {
        from_json(self.kind, json!({ "metadata": self.metadata, "spec": spec, "status": status })).ok()
    }

    fn can_read(&self, spec: Value) -> bool {
        self.read(spec, &Value::Null).is_some()
    }

    /// A field, if it can be read.
    fn part<'a>(&self, of: &'a Value, field: &str) -> Option<&'a Value> {
        let found = &of[field];
        self.can_read(json!({ field: found })).then_some(found)
    }

    /// The items of a list that can be read.
    fn each(&self, of: &Value, field: &str) -> Vec<Value> {
        let items = of[field].as_array().into_iter().flatten();
        items.filter(|item| self.can_read(json!({ field: [item] }))).cloned().collect()
    }

    /// A rule that can't be carried out, in place of one that can't be read.
    fn closed(&self, rule: &Value) -> Value {
        let mut closed = Map::new();
        for field in ["name", "matches"] {
            let found = &rule[field];
            if !found.is_null() && self.can_read(json!({ "rules": [{ field: found }] })) {
                closed.insert(field.to_owned(), found.clone());
            }
        }
        let (field, refused) = match matches!(self.kind, Kind::GRPCRoute | Kind::HTTPRoute) {
            true => ("filters", json!([{ "type": UNREADABLE }])),
            // Those of connections have no filters.
            false => ("backendRefs", json!([{ "kind": UNREADABLE, "name": UNREADABLE }])),
        };
        closed.insert(field.to_owned(), refused);
        Value::Object(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent() -> Value {
        json!({"group": "", "kind": "Service", "name": "web"})
    }

    #[test]
    fn a_rule_that_can_not_be_read_is_closed_where_it_stands() {
        let matches = json!([{"path": {"type": "PathPrefix", "value": "/a"}}]);
        let found = json!({
            "metadata": {"name": "r", "namespace": "shop"},
            "spec": {
                "parentRefs": [parent(), {"port": "web"}],
                "rules": [{"matches": matches, "timeouts": 7}, {"name": "good", "backendRefs": [{"name": "web", "port": 80}]}],
            },
        });
        assert!(from_json(Kind::HTTPRoute, found.clone()).is_err());
        let Some(Object::HTTPRoute(read)) = route(Kind::HTTPRoute, &found) else { panic!("a route") };
        assert_eq!(read.spec.parent_refs.len(), 1, "the one that can be read");
        let rules = read.spec.rules.as_deref().expect("rules");
        let [closed, good] = rules else { panic!("{rules:?}") };
        assert_eq!((closed.matches.len(), closed.filters.len()), (1, 1));
        assert_eq!((good.name.as_deref(), good.backend_refs.len()), (Some("good"), 1));
    }

    #[test]
    fn what_can_not_be_read_at_all_is_closed_as_a_whole() {
        let found = |spec: Value| json!({"metadata": {"name": "r", "namespace": "shop"}, "spec": spec});
        let unreadable = found(json!({"parentRefs": [parent()], "rules": "all"}));
        let Some(Object::TCPRoute(read)) = route(Kind::TCPRoute, &unreadable) else { panic!("a route") };
        let rules = read.spec.rules.as_deref().expect("rules");
        assert_eq!(rules[0].backend_refs[0].target.kind.as_deref(), Some(UNREADABLE));
        let names = found(json!({"parentRefs": [parent()], "hostnames": 7, "rules": [{"backendRefs": []}]}));
        let Some(Object::TLSRoute(read)) = route(Kind::TLSRoute, &names) else { panic!("a route") };
        let rules = read.spec.rules.as_deref().expect("rules");
        assert_eq!(rules[0].backend_refs.len(), 1, "whatever names it was meant for");
        let chaos = found(json!({"targetRefs": [{"kind": "Service", "name": "web"}], "fault": 7}));
        let Some(Object::TrafficPolicy(read)) = policy(Kind::TrafficPolicy, &chaos) else {
            panic!("a policy")
        };
        assert_eq!((read.spec.target_refs.len(), read.spec.fault.is_none()), (1, true));
    }
}
