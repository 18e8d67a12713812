//! A type as the structural schema that Kubernetes wants: one type per value, nothing referenced, nothing defaulted.
//!
//! Owns no rules beyond the types' own.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

/// The schema of what is said about an object. Other controllers say more, in fields that we do not know.
pub(super) fn status() -> Value {
    let text = || json!({"type": "string"});
    json!({
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"conditions": {
            "type": "array",
            // Each controller owns the conditions of its types.
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object", "required": ["type"], "x-kubernetes-preserve-unknown-fields": true,
                "properties": {
                    "type": text(), "status": text(), "reason": text(), "message": text(),
                    "lastTransitionTime": text(), "observedGeneration": {"x-kubernetes-int-or-string": true},
                },
            },
        }},
    })
}

fn structural(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    for of_no_use in ["$schema", "title", "default", "format"] {
        schema.remove(of_no_use);
    }
    // Unknown fields are for the API server to refuse; in a structural schema nobody may say so.
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    without_null(schema);
    enumerated(schema);
    if let Some(Value::Object(patterns)) = schema.remove("patternProperties") {
        // Keys that are numbers; which ones is for a rule to say.
        schema.extend(patterns.into_iter().map(|(_, values)| ("additionalProperties".to_owned(), values)));
    }
    for within in ["items", "additionalProperties"] {
        schema.get_mut(within).into_iter().for_each(structural);
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(Map::values_mut).for_each(structural);
}

/// What may be absent is left out; `null` says the same to those who read it.
fn without_null(schema: &mut Map<String, Value>) {
    let null = json!({"type": "null"});
    if let Some(Value::Array(choices)) = schema.remove("anyOf") {
        for choice in choices.into_iter().filter(|choice| *choice != null) {
            let Value::Object(choice) = choice else { continue };
            for (key, value) in choice {
                schema.entry(key).or_insert(value);
            }
        }
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        let only = types.pop();
        assert!(types.is_empty(), "a value of two types");
        schema.extend(only.map(|only| ("type".to_owned(), only)));
    }
}

/// Choices that carry a description each are listed without.
fn enumerated(schema: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = schema.remove("oneOf") else { return };
    let mut values = Vec::new();
    for mut choice in choices {
        match (choice["const"].take(), choice["enum"].take()) {
            (Value::Null, Value::Array(several)) => values.extend(several),
            (one @ Value::String(_), _) => values.push(one),
            (one, several) => panic!("a choice that is no text: {one} {several}"),
        }
    }
    schema.insert("type".to_owned(), "string".into());
    schema.insert("enum".to_owned(), values.into());
}
