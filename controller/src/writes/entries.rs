//! What became of each attachment of a route or policy, as entries in its status.
//!
//! The list of entries belongs to several controllers and is written as a whole: others' entries, and conditions that are not
//! ours, are kept as they are, and what somebody else has written meanwhile is never written over. Decides nothing.

use std::time::SystemTime;

use apiserver::{call, is_conflict, merge};
use http::Method;
use kube::Client;
use serde_json::{Map, Value, json};

use super::lease::timestamp;
use crate::index::{Attachment, CONDITIONS, Condition, SPEAKER, Statement, has_parents};
use crate::source::objects::{Key, ParentRef};

/// How often to begin again when somebody else was quicker: other controllers answer the same change of the object.
const ATTEMPTS: usize = 4;

/// Writes what is to be said. An object that has changed since it was judged is left alone: it will be judged again.
pub(super) async fn say(client: &Client, statement: &Statement) -> Result<(), kube::Error> {
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        outcome = attempt(client, statement).await;
        match &outcome {
            Err(error) if is_conflict(error) => {}
            Ok(()) | Err(_) => break,
        }
    }
    outcome
}

async fn attempt(client: &Client, statement: &Statement) -> Result<(), kube::Error> {
    let Statement { key: Key { kind, namespace, name }, generation, attachments } = statement;
    for version in kind.versions() {
        let path = format!("/apis/{version}/namespaces/{namespace}/{}/{name}", kind.plural());
        // Not there in this version: the definition may be older than we are.
        let Some(object) = call(client, Method::GET, &path, None).await? else { continue };
        if object["metadata"]["generation"].as_i64() != *generation {
            return Ok(());
        }
        let (list, reference) =
            if has_parents(*kind) { ("parents", "parentRef") } else { ("ancestors", "ancestorRef") };
        let before = object["status"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        let now = timestamp(SystemTime::now());
        let after = merged(before, attachments, reference, &Stamp { generation: *generation, now });
        if before == after {
            return Ok(());
        }
        let patch = json!({
            "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
            "status": { list: after },
        });
        return merge(client, &format!("{path}/status"), &patch).await.map(drop);
    }
    Ok(())
}

/// What a condition is stamped with.
struct Stamp {
    generation: Option<i64>,
    now: String,
}

/// The entries as they should be: others' first, in their order.
fn merged(before: &[Value], attachments: &[Attachment], reference: &str, stamp: &Stamp) -> Vec<Value> {
    let is_ours = |entry: &&Value| entry["controllerName"] == SPEAKER;
    let others = before.iter().filter(|entry| !is_ours(entry)).cloned();
    let ours = attachments.iter().map(|attachment| {
        let to = parent(&attachment.to);
        let said = before.iter().filter(is_ours).find(|entry| entry[reference] == to);
        let said =
            said.and_then(|entry| entry["conditions"].as_array()).map(Vec::as_slice).unwrap_or_default();
        let foreign = said.iter().filter(|it| !CONDITIONS.iter().any(|kind| it["type"] == *kind)).cloned();
        let conditions = attachment.conditions.iter().map(|it| condition(it, said, stamp)).chain(foreign);
        json!({ reference: to, "controllerName": SPEAKER, "conditions": conditions.collect::<Vec<_>>() })
    });
    others.chain(ours).collect()
}

fn condition(condition: &Condition, said: &[Value], stamp: &Stamp) -> Value {
    let Condition { kind, holds, reason, message } = condition;
    let status = if *holds { "True" } else { "False" };
    let same = said.iter().find(|it| it["type"] == *kind && it["status"] == status);
    let since = same.map(|it| &it["lastTransitionTime"]).filter(|since| since.is_string());
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "observedGeneration": stamp.generation,
        "lastTransitionTime": since.cloned().unwrap_or_else(|| stamp.now.clone().into()),
    })
}

/// A reference as its author wrote it.
fn parent(of: &ParentRef) -> Value {
    let ParentRef { group, kind, namespace, name, section_name, port } = of;
    let text = |value: &Option<String>| value.clone().map(Value::from);
    let fields = [
        ("group", text(group)),
        ("kind", text(kind)),
        ("namespace", text(namespace)),
        ("name", Some(name.as_str().into())),
        ("sectionName", text(section_name)),
        ("port", port.map(Value::from)),
    ];
    let set = fields.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?)));
    Value::Object(set.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(name: &str, holds: bool) -> Attachment {
        let to = ParentRef { group: Some(String::new()), name: name.to_owned(), ..ParentRef::default() };
        let condition =
            Condition { kind: "Accepted", holds, reason: "Because", message: "it is so".to_owned() };
        Attachment { to, conditions: vec![condition] }
    }

    #[test]
    fn others_entries_and_conditions_stay_and_ours_are_as_they_should_be() {
        let foreign = json!({"parentRef": {"name": "a"}, "controllerName": "example.com/other", "conditions": [{"type": "Accepted"}]});
        let said = json!([
            {"type": "Accepted", "status": "True", "lastTransitionTime": "then"},
            {"type": "PartiallyInvalid", "status": "True", "lastTransitionTime": "then"},
            {"type": "example.com/Seen", "status": "True"},
        ]);
        let ours = |name: &str| json!({"parentRef": {"group": "", "name": name}, "controllerName": SPEAKER, "conditions": said});
        let before = [ours("gone"), foreign.clone(), ours("a")];
        let stamp = Stamp { generation: Some(7), now: "now".to_owned() };
        let after = merged(&before, &[attachment("a", true), attachment("b", false)], "parentRef", &stamp);
        let [other, a, b] = &after[..] else { panic!("{after:?}") };
        assert_eq!(*other, foreign);
        let types = |entry: &Value| {
            let all = entry["conditions"].as_array().expect("a list").iter();
            all.map(|it| format!("{} {}", it["type"], it["lastTransitionTime"])).collect::<Vec<_>>()
        };
        assert_eq!(types(a), ["\"Accepted\" \"then\"", "\"example.com/Seen\" null"]);
        assert_eq!(types(b), ["\"Accepted\" \"now\""]);
        assert_eq!(b["conditions"][0]["observedGeneration"], 7);
        assert_eq!(a["parentRef"], json!({"group": "", "name": "a"}));
        assert_eq!(
            merged(&after, &[attachment("a", true), attachment("b", false)], "parentRef", &stamp),
            after
        );
    }
}
