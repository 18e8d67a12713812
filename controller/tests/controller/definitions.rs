//! The definitions that charts carry are those that the types say.

use controller::definitions;

#[test]
fn the_charts_definitions_are_fresh() {
    let kept = include_str!("../../../deploy/chart/airglow/crds/definitions.yaml");
    let made = definitions::yaml();
    let different = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
    assert!(
        made == kept,
        "the chart's definitions are stale, run `make render`; first difference: {different:?}"
    );
}

#[test]
fn every_field_that_is_written_down_has_one_type_and_no_default() {
    for definition in definitions::all() {
        let text = definition.to_string();
        for word in ["\"default\":", "\"$ref\"", "\"anyOf\"", "\"oneOf\"", "additionalProperties\":false"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}
